"""FCN-32s, FCN-16s and FCN-8s on any of the backbones (PAMI sections 4.2 and 4.3), and an FCN-4s on VGG16.

Two geometries. `caffe` is the released networks to the pixel: the encoder's border, Caffe's sizes of poolings, unpadded
fc6, and the release's crops, which follow from where the cells of each map lie. `same` has no border: n pixels become
ceil(n / stride) cells at every level. It costs about half.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models import upsample
from fcn_jax.models.backbones import alexnet, googlenet, vgg16
from fcn_jax.models.grid import Grid
from fcn_jax.models.layers import HE_NORMAL, Layers, Map, add, at_least_float32, mean_of, preprocess
from fcn_jax.models.spec import Head, ModelSpec

ENCODERS: dict[str, Callable[[Map, Layers, int, int], dict[str, Map]]] = {
    "vgg16": vgg16.encode,
    "alexnet": alexnet.encode,
    "alexnet_torchvision": alexnet.encode_torchvision,
    "googlenet": googlenet.encode,
}


class FCN(nn.Module):
    """The network of a spec; its parameters carry the paper's layer names: conv1_1 .. fc7, score_fr, upscore2.

    Attributes:
      spec: what shapes the parameters and the output.
      dropout: rate after fc6 and fc7.
      dtype: what the encoder computes in; scores and upsampling are float32.
      kernel_init: as in Layers, of the encoder; score layers start from zero.
    """

    spec: ModelSpec
    dropout: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = HE_NORMAL

    @nn.compact
    def __call__(self, image: jax.Array, sizes: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Class scores of a padded batch.

        Args:
          image: RGB 0..255 [B, H, W, 3], uint8 or another dtype, with a further channel for each further mean; what
            lies outside an image's size does not matter.
          sizes: int32 [B, 2], height and width of each image at the top left of its canvas; None: all of the canvas.
          train: applies dropout (rng stream `dropout`).

        Returns:
          Logits float32 [B, H, W, num_classes], the classes of several heads side by side; inside each image's size
          exactly those that it has alone.
        """
        spec = self.spec
        streams = {stream: self._encode(image, sizes, stream, train=train) for stream in spec.streams}
        logits = [self._decode(streams, head, image.shape[1:3]) for head, _ in spec.outputs]
        return logits[0] if len(logits) == 1 else jnp.concatenate(logits, -1)

    def _encode(self, image: jax.Array, sizes: jax.Array | None, stream: str, *, train: bool) -> dict[str, Map]:
        """The maps that are scored, of one stream."""
        spec, dtype = self.spec, at_least_float32(self.dtype)
        data = Map(preprocess(image, spec, stream, dtype), sizes).masked()
        layers = Layers(spec.geometry == "caffe", self.dtype, self.dropout, train, stream, self.kernel_init)
        data = data.with_cells(data.x.astype(self.dtype))
        return ENCODERS[spec.backbone](data, layers, spec.width, spec.fc_width)

    def _decode(self, streams: dict[str, dict[str, Map]], head: Head, size: tuple[int, ...]) -> jax.Array:
        """The logits of one head."""
        spec = self.spec
        m = self._score(streams, "score_fr", spec.last, head)
        *between, last = spec.kernels(head).items()
        for (name, kernel), skip in zip(between, spec.skips, strict=True):
            score = self._score(streams, f"score_{skip}", skip, head, spec.scale(skip))
            m = add(self._upsample(name, m, kernel), score)
        return self._upsample(last[0], m, last[1]).cropped(Grid(), size)

    def _score(self, streams: dict[str, dict[str, Map]], name: str, of: str, head: Head, scale: float = 1.0) -> Map:
        """The scores of a map, their mean over the streams."""
        maps = []
        for stream, encoded in streams.items():
            layers = Layers(self.spec.geometry == "caffe", at_least_float32(self.dtype), suffix=stream + head.suffix)
            x = encoded[of].x
            x = x if scale == 1 else x * jnp.asarray(scale, x.dtype)
            m = encoded[of].with_cells(x.astype(layers.dtype))
            maps.append(layers.conv(m, name, head.classes, 1))
        return mean_of(maps)

    def _upsample(self, name: str, m: Map, size: int) -> Map:
        if self.spec.upsampling == "learned":
            x = upsample.LearnedUpsample(size, name=name)(m.x)
        else:
            x = upsample.fixed_bilinear(m.x, size)
        return Map(x, None if m.extent is None else upsample.upsampled(m.extent, size), m.grid.upsampled(size))


def init(spec: ModelSpec, key: jax.Array) -> Any:
    """Fresh parameters {layer: {name: float32 array}}; they do not depend on the size of any image."""
    # Run once, and its random numbers unroll: on CPU LLVM's optimizations take several times as long as the rest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(_init, static_argnums=0, compiler_options=options)(spec, key)


def _init(spec: ModelSpec, key: jax.Array, **others: Any) -> Any:
    image = jnp.zeros((1, 32, 32, len(spec.mean)), jnp.uint8)
    return FCN(spec, **others).init(key, image)["params"]


def abstract_params(spec: ModelSpec) -> Any:
    """The same tree of jax.ShapeDtypeStruct, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _abstract_params(spec))  # dicts of the caller's own


@functools.lru_cache(16)  # a start asks for it several times, and each is a trace of the network
def _abstract_params(spec: ModelSpec) -> Any:
    zeros = nn.initializers.zeros  # random numbers would take half of the trace
    return jax.eval_shape(lambda: _init(spec, jax.random.key(0), kernel_init=zeros))

"""FCN-32s, FCN-16s and FCN-8s on VGG16 (PAMI sections 4.2 and 4.3).

Two geometries. `caffe` is the released networks to the pixel: pad 100, ceil pooling, unpadded fc6, full transposed
convolutions, and crops at the release's offsets. `same` has no border: level k holds ceil(n / 2^k), fc6 pads 3, and
each upsampling gives stride x n, cropped at the top left to what it is fused with. It costs about half.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models import upsample, vgg
from fcn_jax.models.layers import MEAN_BGR, Map, at_least_float32, conv

# An encoder makes its layers inside of FCN.__call__ and returns the maps pool3, pool4 and fc7, at strides 8, 16, 32.
BACKBONES = {"vgg16": vgg.encode}

# The skips that each network fuses, from the deepest on, and the stride of its last upsampling.
SKIPS = {"fcn32s": (), "fcn16s": ("pool4",), "fcn8s": ("pool4", "pool3")}
FINAL_STRIDE = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}
FINAL_NAME = {"fcn32s": "upscore", "fcn16s": "upscore16", "fcn8s": "upscore8"}
SKIP_UPSCORE = {"pool4": "upscore2", "pool3": "upscore_pool4"}
# Where the release's Crop layers start (net.py: the offset that aligns a map with pad 100 and kernel 2s).
SKIP_OFFSET = {"pool4": 5, "pool3": 9}
FINAL_OFFSET = {"fcn32s": 19, "fcn16s": 27, "fcn8s": 31}
# voc-fcn8s-atonce scales the skips down before they are scored, so that they start small.
AT_ONCE_SCALE = {"pool4": 0.01, "pool3": 0.0001}
GEOMETRIES = ("caffe", "same")
UPSAMPLINGS = ("fixed", "learned")


class FCN(nn.Module):
    """An FCN on VGG16; its parameters carry the paper's layer names: conv1_1 .. fc7, score_fr, score_pool4, upscore2.

    Attributes:
      num_classes: channels of the logits.
      network: fcn32s, fcn16s or fcn8s.
      backbone: a key of BACKBONES.
      geometry: `caffe` or `same`.
      at_once: scale the skips as the at-once network does.
      upsampling: `fixed` (bilinear, no parameters) or `learned` (dense kernels that start bilinear).
      mean: (B, G, R), subtracted from the image; each further value is the mean of a further channel.
      width, fc_width: channels of conv1_x and of fc6/fc7; 64 and 4096 are VGG16.
      dropout: rate after fc6 and fc7.
      dtype: what the encoder computes in; scores and upsampling are float32.
    """

    num_classes: int
    network: str = "fcn8s"
    backbone: str = "vgg16"
    geometry: str = "same"
    at_once: bool = False
    upsampling: str = "fixed"
    mean: tuple[float, ...] = MEAN_BGR
    width: int = 64
    fc_width: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, sizes: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Class scores of a padded batch.

        Args:
          image: RGB 0..255 [B, H, W, 3], uint8 or another dtype; what lies outside an image's size does not matter.
          sizes: int32 [B, 2], height and width of each image at the top left of its canvas; None: all of the canvas.
          train: applies dropout (rng stream `dropout`).

        Returns:
          Logits float32 [B, H, W, num_classes]; inside each image's size exactly those that it has alone.
        """
        maps = BACKBONES[self.backbone](
            image,
            sizes,
            geometry=self.geometry,
            mean=self.mean,
            width=self.width,
            fc_width=self.fc_width,
            dropout=self.dropout,
            dtype=self.dtype,
            train=train,
        )
        m = self._score("score_fr", maps["fc7"])
        for skip in SKIPS[self.network]:
            m = self._fuse(m, maps[skip], skip)
        up = self._upsample(FINAL_NAME[self.network], m, FINAL_STRIDE[self.network])
        return _crop(up.x, FINAL_OFFSET[self.network] if self.geometry == "caffe" else 0, image.shape[1:3])

    def _score(self, name: str, m: Map) -> Map:
        dtype = at_least_float32(self.dtype)
        x = conv(m.x.astype(dtype), name, self.num_classes, 1, 0, dtype, zero=True)
        return Map(x, m.extent).masked()

    def _fuse(self, m: Map, feature: Map, skip: str) -> Map:
        """Upsamples the scores by two and adds the scores of a finer level."""
        if self.at_once:
            feature = Map(feature.x * jnp.asarray(AT_ONCE_SCALE[skip], feature.x.dtype), feature.extent)
        score = self._score(f"score_{skip}", feature)
        up = self._upsample(SKIP_UPSCORE[skip], m, 2)
        if self.geometry == "caffe":
            return Map(up.x + _crop(score.x, SKIP_OFFSET[skip], up.x.shape[1:3]), up.extent)
        return Map(_crop(up.x, 0, score.x.shape[1:3]) + score.x, score.extent).masked()

    def _upsample(self, name: str, m: Map, stride: int) -> Map:
        """(n + 1) s in `caffe` geometry; in `same` the s n in the middle."""
        if self.upsampling == "learned":
            x = upsample.LearnedUpsample(stride, name=name)(m.x)
        else:
            x = upsample.fixed_bilinear(m.x, stride)
        if self.geometry == "caffe":
            return m.resized(x, lambda n: (n + 1) * stride)
        x = _crop(x, stride // 2, (m.x.shape[1] * stride, m.x.shape[2] * stride))
        return m.resized(x, lambda n: n * stride)


def _crop(x: jax.Array, offset: int, size: tuple[int, ...]) -> jax.Array:
    """x [B, H, W, C] from `offset` on, of the given height and width."""
    return x[:, offset : offset + size[0], offset : offset + size[1]]

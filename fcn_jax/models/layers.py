"""What networks are made of: layers that take a Map and give a Map.

Exactness in a padded batch of images of different sizes: every layer sets to zero what lies outside each image's own
extent, so that each image sees the same zeros as alone. Pooling of non-negative values with zeros beyond the edge
equals pooling without them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models import convolution
from fcn_jax.models.grid import Grid
from fcn_jax.models.spec import ModelSpec, initialised


class Map(NamedTuple):
    """A feature map, how much of it belongs to each image, and where its cells lie; `extent` None means all of it."""

    x: Any  # [B, H, W, C]; in the exporter to ONNX the name of such a value
    extent: jax.Array | None  # int32 [B, 2], height and width
    grid: Grid = Grid()

    def with_cells(self, x: Any) -> "Map":
        """Other values at the same places, such that zeros are still zeros."""
        return self._replace(x=x)

    def masked(self) -> "Map":
        """The same map with zeros outside each image's extent."""
        if self.extent is None:
            return self
        rows, columns = (jnp.arange(n, dtype=self.extent.dtype)[None] for n in self.x.shape[1:3])
        rows, columns = rows < self.extent[:, :1], columns < self.extent[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return self._replace(x=jnp.where(inside, self.x, jnp.zeros((), self.x.dtype)))

    def cropped(self, grid: Grid, size: tuple[int, ...]) -> jax.Array:
        """The cells `[B, *size, C]` of `grid`, whose first one is a cell of this map."""
        start = self.grid.offset(grid)
        x: jax.Array = self.x[:, start : start + size[0], start : start + size[1]]
        return x


def add(a: Map, b: Map) -> Map:
    """The sum of two maps of one stride; the one that begins first is cropped to the other."""
    larger, smaller = (a, b) if a.grid.start <= b.grid.start else (b, a)
    x = larger.cropped(smaller.grid, smaller.x.shape[1:3]) + smaller.x
    return smaller.with_cells(x).masked()


def mean_of(maps: Sequence[Map]) -> Map:
    """The mean of maps of the same cells (the release's score_fused)."""
    if len(maps) == 1:
        return maps[0]
    return maps[0].with_cells(sum(m.x for m in maps) * jnp.asarray(1 / len(maps), maps[0].x.dtype))


def preprocess(image: jax.Array, spec: ModelSpec, stream: str, dtype: Any) -> jax.Array:
    """What a stream of a network sees: its channels of images [B, H, W, C], minus their means.

    Colour, RGB in 0..255, becomes BGR; of depth it is the natural logarithm, as in the release's nyud_layers.py, where
    what is below 1 (a millimetre, say) counts as 1; other channels are as they are.

    Raises:
      ValueError: the image has not one channel for each value of the mean.
    """
    if image.shape[-1] != len(spec.mean):
        raise ValueError(f"the images have {image.shape[-1]} channels and the network takes {len(spec.mean)}")
    parts = []
    for given, place in spec.streams[stream]:
        x = image[..., place]
        if given.name == "depth":
            x = jnp.log(jnp.maximum(x.astype(dtype), 1))
        x = x[..., ::-1] if given.name == "colour" else x
        x = x.astype(dtype) if given.scale == 1 else x.astype(dtype) * jnp.asarray(given.scale, dtype)
        parts.append(x - jnp.asarray(spec.mean[place], dtype).reshape(1, 1, 1, -1))
    return jnp.concatenate(parts, -1)


def at_least_float32(dtype: Any) -> Any:
    """What scores and the subtraction of the mean are computed in."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


HE_NORMAL = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of a network, inside its compact method.

    Attributes:
      caffe: Caffe's sizes: convolutions pad both sides alike, windows of poolings may end beyond the edge. Else n cells
        become ceil(n / stride), and what is padded after them follows from that.
      dtype: what is computed in; parameters are float32.
      dropout: rate, without effect unless `train`.
      suffix: of the names of all layers.
      kernel_init: what convolutions start from, where their names do not say zero.
    """

    caffe: bool
    dtype: Any
    dropout: float = 0.0
    train: bool = False
    suffix: str = ""
    kernel_init: nn.initializers.Initializer = HE_NORMAL

    def pads(self, size: int, padding: int, beyond: int = 0) -> tuple[int, int]:
        """Cells before and after the map; in Caffe's sizes a window may end `beyond` what is padded."""
        return padding, padding + beyond if self.caffe else size - 1 - padding

    def conv(
        self,
        m: Map,
        name: str,
        features: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> Map:
        """A size x size convolution with bias; `padding` is before the first cell. Starts as its name tells."""

        def sized(n: Any) -> Any:
            return (n + 2 * padding - size) // stride + 1 if self.caffe else -(-n // stride)

        pads = (self.pads(size, padding),) * 2
        layer = nn.Conv(
            features,
            (size, size),
            strides=(stride, stride),
            padding=pads,
            feature_group_count=groups,
            dtype=self.dtype,
            conv_general_dilated=lambda x, kernel, *_, **__: convolution.convolve(x, kernel, pads, stride, groups),
            kernel_init=nn.initializers.zeros if initialised(name) == "zero" else self.kernel_init,
            name=name + self.suffix,
        )
        return _resized(m, layer(m.x), sized, m.grid.windows(size, stride, padding)).masked()

    def relu(self, m: Map) -> Map:
        """max(x, 0)."""
        return m.with_cells(convolution.relu(m.x))

    def max_pool(self, m: Map, name: str, size: int, *, stride: int = 2, padding: int = 0) -> Map:
        """Windows of size x size, the first of them from -padding on; beyond the edge is nothing.

        Of values that are not negative, or that are rectified after it.
        """

        def sized(n: Any) -> Any:
            return -(-(n + 2 * padding - size) // stride) + 1 if self.caffe else -(-n // stride)

        pads = (self.pads(size, padding, beyond=stride - 1),) * 2
        with jax.named_scope(name):
            halves = size == stride == 2
            x = convolution.max_pool(m.x) if halves else nn.max_pool(m.x, (size, size), (stride, stride), pads)
        pooled = _resized(m, x, sized, m.grid.windows(size, stride, padding))
        return pooled if halves else pooled.masked()  # only overlapping windows reach back from beyond the extent

    def concatenate(self, maps: Sequence[Map], name: str) -> Map:
        """The channels of maps of the same cells, side by side."""
        with jax.named_scope(name):
            return maps[0].with_cells(jnp.concatenate([m.x for m in maps], -1))

    def local_response_norm(self, m: Map, name: str) -> Map:
        """x / (1 + 1e-4 / 5 * sum of x^2 over the 5 channels around)^0.75: Caffe's LRN, with CaffeNet's constants."""
        with jax.named_scope(name):
            squares = jnp.pad(jnp.square(m.x.astype(at_least_float32(self.dtype))), ((0, 0),) * 3 + ((2, 2),))
            channels = m.x.shape[-1]
            total = sum(squares[..., i : i + channels] for i in range(5))
            return m.with_cells(m.x * ((1 + 2e-5 * total) ** -0.75).astype(m.x.dtype))

    def drop(self, m: Map) -> Map:
        """Dropout of single values, as Caffe's."""
        return m.with_cells(nn.Dropout(self.dropout, deterministic=not self.train)(m.x))


def _resized(m: Map, x: jax.Array, sized: Callable[[Any], Any], grid: Grid) -> Map:
    """The map that a layer makes of m, with the sizes that it makes of m's."""
    return Map(x, None if m.extent is None else sized(m.extent), grid)

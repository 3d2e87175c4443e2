"""VGG16 as a fully convolutional encoder (PAMI section 4.1), for padded batches of images of different sizes.

Exactness in a padded batch: whatever lies outside an image's own extent is set to zero after every layer that could
have filled it, so that each image sees the same zeros as alone. Ceil pooling of non-negative values with zeros beyond
the edge equals pooling without them.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# BGR mean of PASCAL VOC's training images, as in the release's data layers.
MEAN_BGR = (104.00699, 116.66877, 122.67892)
BLOCKS = ((1, 2, 1), (2, 2, 2), (3, 3, 4), (4, 3, 8), (5, 3, 8))  # block, convolutions, multiple of `width`
BORDER = 100  # conv1_1's padding in `caffe` geometry; every other 3x3 convolution pads 1


class Map(NamedTuple):
    """A feature map and how much of it belongs to each image; `extent` None means all of it."""

    x: jax.Array  # [B, H, W, C]
    extent: jax.Array | None  # int32 [B, 2], height and width

    def resized(self, x: jax.Array, change: Any) -> "Map":
        """Another map whose extents are `change` of these."""
        return Map(x, None if self.extent is None else change(self.extent))

    def masked(self) -> "Map":
        """The same map with zeros outside each image's extent."""
        if self.extent is None:
            return self
        rows, columns = (jnp.arange(n, dtype=self.extent.dtype)[None] for n in self.x.shape[1:3])
        rows, columns = rows < self.extent[:, :1], columns < self.extent[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return Map(jnp.where(inside, self.x, jnp.zeros((), self.x.dtype)), self.extent)


def preprocess(image: jax.Array, dtype: Any) -> jax.Array:
    """uint8 RGB [B, H, W, 3] -> BGR minus the mean, the one input convention."""
    return image[..., ::-1].astype(dtype) - jnp.asarray(MEAN_BGR, dtype).reshape(1, 1, 1, 3)


def at_least_float32(dtype: Any) -> Any:
    """What scores and the subtraction of the mean are computed in."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def conv(x: jax.Array, name: str, features: int, size: int, padding: int, dtype: Any, zero: bool = False) -> jax.Array:
    """The layer `name`: a size x size convolution with bias, float32 parameters, computed in `dtype`.

    float32 means float32: the fast reduced-precision products of TPU and GPU are used with bfloat16 only.
    """
    layer = nn.Conv(
        features,
        (size, size),
        padding=padding,
        dtype=dtype,
        precision=lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST,
        kernel_init=nn.initializers.zeros if zero else nn.initializers.he_normal(),
        name=name,
    )
    return layer(x)


def ceil_pool(m: Map) -> Map:
    """2x2 max pooling, stride 2, in Caffe's ceil mode: n -> ceil(n / 2)."""
    pooled = nn.max_pool(m.x, (2, 2), strides=(2, 2), padding="SAME")
    return m.resized(pooled, lambda n: (n + 1) // 2)


def encode(
    image: jax.Array,
    sizes: jax.Array | None,
    *,
    geometry: str,
    width: int,
    fc_width: int,
    dropout: float,
    dtype: Any,
    train: bool,
) -> dict[str, Map]:
    """conv1_1 .. fc7 of VGG16, called inside the compact method of the network whose layers they become.

    Args:
      image: uint8 RGB [B, H, W, 3].
      sizes: int32 [B, 2], each image's height and width at the top left of its canvas; None: all of the canvas.
      geometry: `caffe` pads 100 before conv1_1 and none before fc6, `same` keeps ceil(n / 2^k) at level k.
      width: channels of conv1_x, 64 in VGG16. fc_width: channels of fc6 and fc7, 4096 in VGG16.

    Returns:
      {'pool3', 'pool4', 'fc7': Map}.
    """
    caffe = geometry == "caffe"
    m = Map(preprocess(image, at_least_float32(dtype)), sizes).masked()
    m = Map(m.x.astype(dtype), m.extent)
    maps = {}
    for block, convolutions, multiple in BLOCKS:
        for index in range(1, convolutions + 1):
            name = f"conv{block}_{index}"
            border = BORDER if caffe and name == "conv1_1" else 1
            x = nn.relu(conv(m.x, name, multiple * width, 3, border, dtype))
            m = m.resized(x, lambda n, grown=2 * (border - 1): n + grown).masked()
        m = maps[f"pool{block}"] = ceil_pool(m)
    x = nn.relu(conv(m.x, "fc6", fc_width, 7, 0 if caffe else 3, dtype))
    m = m.resized(x, lambda n: n - 6 if caffe else n)
    x = nn.Dropout(dropout, deterministic=not train)(m.x)
    x = nn.relu(conv(x, "fc7", fc_width, 1, 0, dtype))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    return {"pool3": maps["pool3"], "pool4": maps["pool4"], "fc7": Map(x, m.extent)}

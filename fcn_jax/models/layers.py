"""What encoders are made of: feature maps that know each image's extent, convolutions, pooling, preprocessing.

Exactness in a padded batch of images of different sizes: whatever lies outside an image's own extent is set to zero
after every layer that could have filled it, so that each image sees the same zeros as alone. Ceil pooling of
non-negative values with zeros beyond the edge equals pooling without them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models.convolution import convolve, max_pool

# BGR mean of PASCAL VOC's training images, as in the release's data layers.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


class Map(NamedTuple):
    """A feature map and how much of it belongs to each image; `extent` None means all of it."""

    x: jax.Array  # [B, H, W, C]
    extent: jax.Array | None  # int32 [B, 2], height and width

    def resized(self, x: jax.Array, change: Callable[[Any], Any]) -> "Map":
        """Another map whose extents are `change` of these."""
        return Map(x, None if self.extent is None else change(self.extent))

    def grown(self, x: jax.Array, by: int) -> "Map":
        """Another map whose extents are larger by a number of pixels."""
        return self.resized(x, lambda n: n + by)

    def masked(self) -> "Map":
        """The same map with zeros outside each image's extent."""
        if self.extent is None:
            return self
        rows, columns = (jnp.arange(n, dtype=self.extent.dtype)[None] for n in self.x.shape[1:3])
        rows, columns = rows < self.extent[:, :1], columns < self.extent[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return Map(jnp.where(inside, self.x, jnp.zeros((), self.x.dtype)), self.extent)


def preprocess(image: jax.Array, mean: tuple[float, ...], dtype: Any) -> jax.Array:
    """RGB [B, H, W, 3] in 0..255 -> BGR minus the mean (B, G, R); channels after the third stay where they are.

    Raises:
      ValueError: the image has not one channel for each value of the mean.
    """
    if image.shape[-1] != len(mean):
        raise ValueError(f"the images have {image.shape[-1]} channels and the network takes {len(mean)}")
    bgr = jnp.concatenate([image[..., 2::-1], image[..., 3:]], -1)
    return bgr.astype(dtype) - jnp.asarray(mean, dtype).reshape(1, 1, 1, -1)


def at_least_float32(dtype: Any) -> Any:
    """What scores and the subtraction of the mean are computed in."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def conv(x: jax.Array, name: str, features: int, size: int, padding: int, dtype: Any, zero: bool = False) -> jax.Array:
    """The layer `name`: a size x size convolution with bias, float32 parameters, computed in `dtype`."""
    layer = nn.Conv(
        features,
        (size, size),
        padding=padding,
        dtype=dtype,
        conv_general_dilated=lambda x, kernel, *_, **__: convolve(x, kernel, padding),
        kernel_init=nn.initializers.zeros if zero else nn.initializers.he_normal(),
        name=name,
    )
    return layer(x)


def ceil_pool(m: Map) -> Map:
    """2x2 max pooling, stride 2, in Caffe's ceil mode: n -> ceil(n / 2)."""
    return m.resized(max_pool(m.x), lambda n: (n + 1) // 2)

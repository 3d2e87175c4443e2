"""VGG16 as a fully convolutional encoder (PAMI section 4.1)."""

from typing import Any

import flax.linen as nn
import jax

from fcn_jax.models.convolution import relu
from fcn_jax.models.layers import Map, at_least_float32, ceil_pool, conv, preprocess

BLOCKS = ((1, 2, 1), (2, 2, 2), (3, 3, 4), (4, 3, 8), (5, 3, 8))  # block, convolutions, multiple of `width`
BORDER = 100  # conv1_1's padding in `caffe` geometry; every other 3x3 convolution pads 1


def encode(
    image: jax.Array,
    sizes: jax.Array | None,
    *,
    geometry: str,
    mean: tuple[float, ...],
    width: int,
    fc_width: int,
    dropout: float,
    dtype: Any,
    train: bool,
) -> dict[str, Map]:
    """conv1_1 .. fc7 of VGG16, called inside the compact method of the network whose layers they become.

    Args:
      image: uint8 RGB [B, H, W, 3], or with further channels, one for each value of `mean` after the third.
      sizes: int32 [B, 2], each image's height and width at the top left of its canvas; None: all of the canvas.
      geometry: `caffe` pads 100 before conv1_1 and none before fc6, `same` keeps ceil(n / 2^k) at level k.
      width: channels of conv1_x, 64 in VGG16. fc_width: channels of fc6 and fc7, 4096 in VGG16.

    Returns:
      {'pool3', 'pool4', 'fc7': Map}.
    """
    caffe = geometry == "caffe"
    m = Map(preprocess(image, mean, at_least_float32(dtype)), sizes).masked()
    m = Map(m.x.astype(dtype), m.extent)
    maps = {}
    for block, convolutions, multiple in BLOCKS:
        for index in range(1, convolutions + 1):
            name = f"conv{block}_{index}"
            border = BORDER if caffe and name == "conv1_1" else 1
            m = m.grown(conv(m.x, name, multiple * width, 3, border, dtype), 2 * (border - 1)).masked()
            if index == convolutions:  # rectified are the largest alone: the same, and less to compute and to keep
                m = ceil_pool(m)
            m = Map(relu(m.x), m.extent)
        maps[f"pool{block}"] = m
    x = relu(conv(m.x, "fc6", fc_width, 7, 0 if caffe else 3, dtype))
    m = m.grown(x, -6 if caffe else 0)
    x = nn.Dropout(dropout, deterministic=not train)(m.x)
    x = relu(conv(x, "fc7", fc_width, 1, 0, dtype))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    return {"pool3": maps["pool3"], "pool4": maps["pool4"], "fc7": Map(x, m.extent)}

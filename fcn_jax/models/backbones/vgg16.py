"""VGG16 as a fully convolutional encoder (PAMI section 4.1)."""

from fcn_jax.models.layers import Layers, Map
from fcn_jax.models.spec import VGG16_BLOCKS

BORDER = 100  # conv1_1's padding in `caffe` geometry; every other 3x3 convolution pads 1


def encode(m: Map, layers: Layers, width: int, fc_width: int) -> dict[str, Map]:
    """conv1_1 .. fc7.

    Args:
      m: the image, minus its mean. In `caffe` geometry it gets a border of 100, and fc6 none.
      width: channels of conv1_x, 64 in VGG16. fc_width: channels of fc6 and fc7, 4096 in VGG16.

    Returns:
      {'pool2', 'pool3', 'pool4', 'fc7': Map}.
    """
    maps = {}
    for block, convolutions, multiple in VGG16_BLOCKS:
        for index in range(1, convolutions + 1):
            name = f"conv{block}_{index}"
            border = BORDER if layers.caffe and name == "conv1_1" else 1
            m = layers.conv(m, name, multiple * width, 3, padding=border)
            if index == convolutions:  # rectified are the largest alone: the same, and less to compute and to keep
                m = layers.max_pool(m, f"pool{block}", 2)
            m = layers.relu(m)
        maps[f"pool{block}"] = m
    m = layers.drop(layers.relu(layers.conv(m, "fc6", fc_width, 7, padding=0 if layers.caffe else 3)))
    m = layers.drop(layers.relu(layers.conv(m, "fc7", fc_width, 1)))
    return {**{pool: maps[pool] for pool in ("pool2", "pool3", "pool4")}, "fc7": m}

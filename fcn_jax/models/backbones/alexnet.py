"""AlexNet as a fully convolutional encoder: CaffeNet, as the release has it, and torchvision's.

CaffeNet (voc-fcn-alexnet/net.py) is Krizhevsky et al. 2012 with pooling before local response normalisation.
torchvision's (Krizhevsky 2014, "One weird trick") is another network, of other widths, without groups and
normalisation: weights of the one are of no use to the other.
"""

import functools

from fcn_jax.models.layers import Layers, Map

BORDER = 100  # conv1's padding in `caffe` geometry


def _encode(m: Map, layers: Layers, width: int, fc_width: int, *, caffenet: bool) -> dict[str, Map]:
    """conv1 .. fc7.

    In `same` geometry, conv1 and fc6 are padded such that the cells of fc7 lie in the middle of their 32 pixels, within
    half of one: (15, 15), (47, 15), ...

    Args:
      m: the image, minus its mean. In `caffe` geometry it gets a border of 100, and fc6 none.
      width: channels of conv1, 96 in CaffeNet (even), 64 in torchvision's. fc_width: of fc6 and fc7, 4096 in both.

    Returns:
      {'fc7': Map}.
    """
    groups = 2 if caffenet else 1
    medium = 2 * (width * 4 // 3)  # 256 of 96
    features = (medium, 4 * width, 4 * width, medium) if caffenet else (3 * width, 6 * width, 4 * width, 4 * width)
    m = layers.relu(layers.conv(m, "conv1", width, 11, stride=4, padding=BORDER if layers.caffe else 2))
    m = layers.max_pool(m, "pool1", 3)
    m = layers.local_response_norm(m, "norm1") if caffenet else m
    m = layers.relu(layers.conv(m, "conv2", features[0], 5, padding=2, groups=groups))
    m = layers.max_pool(m, "pool2", 3)
    m = layers.local_response_norm(m, "norm2") if caffenet else m
    m = layers.relu(layers.conv(m, "conv3", features[1], 3, padding=1))
    m = layers.relu(layers.conv(m, "conv4", features[2], 3, padding=1, groups=groups))
    m = layers.relu(layers.conv(m, "conv5", features[3], 3, padding=1, groups=groups))
    m = layers.max_pool(m, "pool5", 3)
    m = layers.drop(layers.relu(layers.conv(m, "fc6", fc_width, 6, padding=0 if layers.caffe else 3)))
    m = layers.drop(layers.relu(layers.conv(m, "fc7", fc_width, 1)))
    return {"fc7": m}


encode = functools.partial(_encode, caffenet=True)
encode_torchvision = functools.partial(_encode, caffenet=False)

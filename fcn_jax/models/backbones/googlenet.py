"""GoogLeNet (Inception v1) as a fully convolutional encoder, with the layers of Caffe's bvlc_googlenet.

The paper's FCN-GoogLeNet drops the average pooling and the auxiliary losses and scores inception_5b (CVPR 4.1). Its
padding and crops were never published: the border of 100 in `caffe` geometry, where cells lie in `same` geometry, and
the skips are choices of this project.
"""

from fcn_jax.models.layers import Layers, Map

BORDER = 100  # conv1_7x7_s2's padding in `caffe` geometry
# Channels of bvlc_googlenet: 1x1; 3x3_reduce, 3x3; 5x5_reduce, 5x5; pool_proj.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def encode(m: Map, layers: Layers, width: int, fc_width: int) -> dict[str, Map]:
    """conv1_7x7_s2 .. inception_5b.

    In `same` geometry the windows of pool2 and pool3 begin one cell earlier, so that cells stay near the middle of
    their pixels: those of stride 8, 16 and 32 lie at 2, 2 and 18.

    Args:
      m: the image, minus its mean. In `caffe` geometry it gets a border of 100.
      width: channels of conv1_7x7_s2, 64 in GoogLeNet; all others in proportion. fc_width: without effect.

    Returns:
      {'inception_3b', 'inception_4e', 'inception_5b': Map}.
    """

    def conv(m: Map, name: str, features: int, size: int, stride: int = 1, padding: int = 0) -> Map:
        scaled = max(1, features * width // 64)
        return layers.relu(layers.conv(m, name, scaled, size, stride=stride, padding=padding))

    def inception(m: Map, block: str) -> Map:
        one, three_reduce, three, five_reduce, five, pool = INCEPTIONS[block]
        name = f"inception_{block}"
        branches = (
            conv(m, f"{name}_1x1", one, 1),
            conv(conv(m, f"{name}_3x3_reduce", three_reduce, 1), f"{name}_3x3", three, 3, padding=1),
            conv(conv(m, f"{name}_5x5_reduce", five_reduce, 1), f"{name}_5x5", five, 5, padding=2),
            conv(layers.max_pool(m, f"{name}_pool", 3, stride=1, padding=1), f"{name}_pool_proj", pool, 1),
        )
        return layers.concatenate(branches, f"{name}_output")

    earlier = 0 if layers.caffe else 1
    m = conv(m, "conv1_7x7_s2", 64, 7, stride=2, padding=BORDER if layers.caffe else 3)
    m = layers.local_response_norm(layers.max_pool(m, "pool1", 3), "norm1")
    m = conv(conv(m, "conv2_3x3_reduce", 64, 1), "conv2_3x3", 192, 3, padding=1)
    m = layers.max_pool(layers.local_response_norm(m, "norm2"), "pool2", 3, padding=earlier)
    m = stride8 = inception(inception(m, "3a"), "3b")
    m = layers.max_pool(m, "pool3", 3, padding=earlier)
    for block in ("4a", "4b", "4c", "4d", "4e"):
        m = inception(m, block)
    stride16 = m
    m = inception(inception(layers.max_pool(m, "pool4", 3), "5a"), "5b")
    return {"inception_3b": stride8, "inception_4e": stride16, "inception_5b": layers.drop(m)}

"""Input conventions, and how a network trained with one is made to expect another."""

from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Convention(NamedTuple):
    """What a network expects as input: (scale * pixel - mean) / std, pixel in 0..255.

    Attributes:
      order: of the channels, 'RGB' or 'BGR'.
      scale: what a pixel is multiplied by.
      mean: one value per channel, in `order`, subtracted after scaling.
      std: one value per channel, in `order`.
    """

    order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


# The paper's release: voc_layers.py.
OURS = Convention("BGR", 1.0, (104.00699, 116.66877, 122.67892))
TORCHVISION = Convention("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# keras.applications.imagenet_utils.preprocess_input, mode 'caffe'.
KERAS = Convention("BGR", 1.0, (103.939, 116.779, 123.68))


def fold(arrays: Arrays, convention: Convention) -> Arrays:
    """Rewrites conv1_1, trained with `convention`, for our input: BGR minus `OURS.mean`, 0..255.

    With K the kernel [kh, kw, 3, O] (input channels already in BGR), b the bias, and per channel s, m', d the source's
    scale, mean and std and m our mean, the source's input is (s (x + m) - m') / d for our input x, hence

        K_ours[h, w, c, o] = K[h, w, c, o] s / d_c
        b_ours[o] = b[o] + sum_hwc K[h, w, c, o] (s m_c - m'_c) / d_c

    Exact wherever the kernel sees the image alone. Zero padding is the mean colour, which differs between conventions,
    so a tap in the padding sees a colour other by m - m'/s: (B, G, R) = (+0.477, +0.389, -0.996) grey levels of 255 for
    torchvision, (+0.068, -0.110, -1.001) for Keras. Measured with torchvision's kernel: conv1_1, before its ReLU,
    changes by at most 0.046 at the border, whatever the image, against a standard deviation of 0.8 to 1.1 over
    photographs; Keras' mean with that kernel gives at most 0.037. Too little to correct.

    Args:
      arrays: 'conv1_1/kernel' [kh, kw, 3, O] and 'conv1_1/bias' [O], any others; not changed.

    Returns:
      the same arrays but for conv1_1, which is float32.
    """
    scale, mean, std = convention.scale, np.array(convention.mean), np.array(convention.std)
    kernel = arrays["conv1_1/kernel"].astype(np.float64)
    if convention.order == "RGB":
        kernel, mean, std = kernel[:, :, ::-1], mean[::-1], std[::-1]
    shift = (scale * np.array(OURS.mean) - mean) / std
    bias = arrays["conv1_1/bias"] + np.einsum("hwco,c->o", kernel, shift)
    kernel = kernel * (scale / std)[:, None]
    return {**arrays, "conv1_1/kernel": kernel.astype(np.float32), "conv1_1/bias": bias.astype(np.float32)}

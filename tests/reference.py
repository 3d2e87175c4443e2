"""Slow, plain NumPy reference of the networks, the loss and the metrics, which the tests compare the project with.

Nothing here imports the project or shares code with it. Everything is float64 and handles one image at a time, with
arrays laid out [H, W, C]. The facts come from the authors' Caffe release (github.com/shelhamer/fcn.berkeleyvision.org:
the net definitions, surgery.py, score.py, voc_layers.py) and from the behaviour of the Caffe layers that these use.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Params = Mapping[str, Mapping[str, Any]]

MEAN_BGR = (104.00699, 116.66877, 122.67892)

# VGG16's convolutions by block; one pooling follows each block.
BLOCKS = (
    ("conv1_1", "conv1_2"),
    ("conv2_1", "conv2_2"),
    ("conv3_1", "conv3_2", "conv3_3"),
    ("conv4_1", "conv4_2", "conv4_3"),
    ("conv5_1", "conv5_2", "conv5_3"),
)
# Per network, the deconvolutions in order: (layer, stride, skip that the result is added to or None for the last,
# offset of the crop in the Caffe geometry). The kernel's size is twice the stride. A crop with a skip cuts the skip's
# scores to the size of the upsampled ones; the last crop cuts the upsampled scores to the size of the image. FCN-4s is
# not in the release: its crops are where cells of pool2, at 4 i - 97.5, and pixels lie (test_grid.py).
UPSAMPLING: Mapping[str, tuple[tuple[str, int, str | None, int], ...]] = {
    "fcn32s": (("upscore", 32, None, 19),),
    "fcn16s": (("upscore2", 2, "pool4", 5), ("upscore16", 16, None, 27)),
    "fcn8s": (("upscore2", 2, "pool4", 5), ("upscore_pool4", 2, "pool3", 9), ("upscore8", 8, None, 31)),
    "fcn4s": (
        *(("upscore2", 2, "pool4", 5), ("upscore_pool4", 2, "pool3", 9), ("upscore_pool3", 2, "pool2", 17)),
        ("upscore4", 4, None, 33),
    ),
}
# The at-once net scales the skips' features, before their score convolutions.
AT_ONCE_SCALE = {"pool4": 0.01, "pool3": 0.0001, "pool2": 1e-6}


class Scores(TypedDict):
    """What `scores` returns; per_class_iou is [C], all others are fractions of one."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    frequency_weighted_iou: float
    per_class_iou: FloatArray


# Layers


def preprocess(image: Array) -> FloatArray:
    """Turn a uint8 RGB image [H, W, 3] into float64 BGR minus the mean, [H, W, 3], unscaled."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 RGB image [H, W, 3], got {image.dtype} {image.shape}")
    bgr: FloatArray = image[:, :, ::-1].astype(np.float64)
    bgr -= np.array(MEAN_BGR)
    return bgr


def convolve(x: Array, layer: Mapping[str, Any], pad: int = 0) -> FloatArray:
    """Stride-1 convolution (Caffe's: a correlation) with zero padding, plus the bias.

    x [H, W, I], kernel [k, k, I, O], bias [O] -> [H + 2 pad - k + 1, W + 2 pad - k + 1, O].
    """
    kernel = np.asarray(layer["kernel"], np.float64)
    bias = np.asarray(layer["bias"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((pad, pad), (pad, pad), (0, 0)))
    height = padded.shape[0] - kernel.shape[0] + 1
    width = padded.shape[1] - kernel.shape[1] + 1
    if height < 1 or width < 1:
        raise ValueError(f"an input of {x.shape[:2]} padded by {pad} is smaller than the kernel {kernel.shape[:2]}")
    out = np.zeros((height, width, kernel.shape[3])) + bias
    for r in range(kernel.shape[0]):
        for c in range(kernel.shape[1]):
            out += padded[r : r + height, c : c + width] @ kernel[r, c]
    return out


def relu(x: FloatArray) -> FloatArray:
    """Set what is negative to zero."""
    return np.maximum(x, 0.0)


def pooled_extent(extent: int) -> int:
    """Caffe's number of 2x2 stride-2 windows, without padding, along `extent` pixels: ceil((extent - 2) / 2) + 1.

    Caffe drops a last window that starts beyond the border only in a layer with padding. Without, as here, no window
    does: the last one starts at extent - 2 or, if the extent is odd, at extent - 1 and covers that row or column alone.
    """
    return -((2 - extent) // 2) + 1


def max_pool(x: FloatArray) -> FloatArray:
    """2x2 stride-2 max pooling with windows clipped at the border; [H, W, C] -> [ceil(H / 2), ceil(W / 2), C]."""
    rows = [2 * i for i in range(pooled_extent(x.shape[0]))]
    columns = [2 * i for i in range(pooled_extent(x.shape[1]))]
    # reduceat takes the maximum from each start up to the next start, the last one up to the end.
    down: FloatArray = np.maximum.reduceat(x, rows, axis=0)
    result: FloatArray = np.maximum.reduceat(down, columns, axis=1)
    return result


def bilinear_kernel(size: int) -> FloatArray:
    """Weights [size, size] of bilinear interpolation by the factor f = (size + 1) // 2, peak of the hat at the centre.

    A weight is the product over both axes of 1 - distance / f, with the distance to the kernel's centre (size - 1) / 2.
    """
    factor = (size + 1) // 2
    centre = (size - 1) / 2
    kernel = np.zeros((size, size))
    for r in range(size):
        for c in range(size):
            kernel[r, c] = (1 - abs(r - centre) / factor) * (1 - abs(c - centre) / factor)
    return kernel


def diagonal_bilinear_kernel(size: int, channels: int) -> FloatArray:
    """Bilinear kernel of every channel to itself, zero across channels: [size, size, channels, channels]."""
    kernel = np.zeros((size, size, channels, channels))
    for channel in range(channels):
        kernel[:, :, channel, channel] = bilinear_kernel(size)
    return kernel


def upsample(x: Array, kernel: Array, stride: int) -> FloatArray:
    """Transposed convolution, written as what it is: every input pixel adds its kernel to the output.

    x [H, W, I], kernel [k, k, I, O] -> [(H - 1) stride + k, (W - 1) stride + k, O];
    out[stride * i + r, stride * j + c] += x[i, j] @ kernel[r, c].
    """
    x = np.asarray(x, np.float64)
    kernel = np.asarray(kernel, np.float64)
    size = kernel.shape[0]
    height, width, _ = x.shape
    out = np.zeros(((height - 1) * stride + size, (width - 1) * stride + size, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            top, left = stride * i, stride * j
            out[top : top + size, left : left + size] += x[i, j] @ kernel
    return out


def crop(x: FloatArray, offset: int, height: int, width: int) -> FloatArray:
    """Cut [height, width, C] out of x, starting at (offset, offset); as in Caffe, an error if x ends too soon."""
    if offset + height > x.shape[0] or offset + width > x.shape[1]:
        raise ValueError(f"cannot crop {(height, width)} at offset {offset} from {x.shape[:2]}")
    return x[offset : offset + height, offset : offset + width]


# Networks


def features(params: Params, image: Array, *, first_pad: int, fc6_pad: int) -> dict[str, FloatArray]:
    """Run the encoder, without dropout: uint8 RGB [H, W, 3] -> {'pool1': ..., 'pool5': ..., 'fc6': ..., 'fc7': ...}."""
    x = preprocess(image)
    found: dict[str, FloatArray] = {}
    for number, block in enumerate(BLOCKS, start=1):
        for name in block:
            x = relu(convolve(x, params[name], pad=first_pad if name == "conv1_1" else 1))
        x = max_pool(x)
        found[f"pool{number}"] = x
    x = found["fc6"] = relu(convolve(x, params["fc6"], pad=fc6_pad))
    found["fc7"] = relu(convolve(x, params["fc7"]))
    return found


def score_skip(params: Params, found: Mapping[str, FloatArray], skip: str, at_once: bool) -> FloatArray:
    """Score a pooling layer: 'pool4', 'pool3' or 'pool2' [h, w, I] -> [h, w, C], scaled first in the at-once net."""
    x = found[skip]
    if at_once:
        x = x * AT_ONCE_SCALE[skip]
    return convolve(x, params["score_" + skip])


def upsampling_kernel(params: Params, layer: str, stride: int, channels: int) -> FloatArray:
    """Return the layer's own kernel [2 stride, 2 stride, I, O], or the bilinear one where it has none."""
    if layer in params:
        kernel = np.asarray(params[layer]["kernel"], np.float64)
        if kernel.shape[:2] != (2 * stride, 2 * stride):
            raise ValueError(f"{layer} with stride {stride} needs a kernel of {2 * stride}, got {kernel.shape}")
        return kernel
    return diagonal_bilinear_kernel(2 * stride, channels)


def fcn_caffe(params: Params, image: Array, *, network: str, at_once: bool = False) -> FloatArray:
    """Logits of the released network: uint8 RGB [H, W, 3] -> float64 [H, W, C].

    conv1_1 pads 100 and fc6 pads nothing; crops start at the offsets of the released net definitions. `params` holds
    {layer: {'kernel': [k, k, I, O], 'bias': [O]}} and, if wanted, {deconvolution: {'kernel': [2s, 2s, I, O]}};
    `network` is a key of UPSAMPLING.
    """
    found = features(params, image, first_pad=100, fc6_pad=0)
    x = convolve(found["fc7"], params["score_fr"])
    for layer, stride, skip, offset in UPSAMPLING[network]:
        x = upsample(x, upsampling_kernel(params, layer, stride, x.shape[2]), stride)
        if skip is None:
            x = crop(x, offset, image.shape[0], image.shape[1])
        else:
            x = x + crop(score_skip(params, found, skip, at_once), offset, x.shape[0], x.shape[1])
    return x


def fcn_same(params: Params, image: Array, *, network: str, at_once: bool = False) -> FloatArray:
    """Logits of the network without the 100-pixel border: uint8 RGB [H, W, 3] -> float64 [H, W, C].

    conv1_1 pads 1 and fc6 pads 3, so that level k has the extent ceil(n / 2^k). An upsampling by s of n pixels gives
    s n: the (n + 1) s of the transposed convolution less s / 2 on each side. Its top left, as large as the skip (at the
    end: as the image), is kept. `params` and `network` as for `fcn_caffe`.
    """
    found = features(params, image, first_pad=1, fc6_pad=3)
    x = convolve(found["fc7"], params["score_fr"])
    for layer, stride, skip, _ in UPSAMPLING[network]:
        height, width, channels = x.shape
        x = upsample(x, upsampling_kernel(params, layer, stride, channels), stride)
        x = crop(x, stride // 2, height * stride, width * stride)
        if skip is None:
            x = crop(x, 0, image.shape[0], image.shape[1])
        else:
            scored = score_skip(params, found, skip, at_once)
            x = crop(x, 0, scored.shape[0], scored.shape[1]) + scored
    return x


# AlexNet: voc-fcn-alexnet/net.py, with torchvision's as a variant without groups and normalisation


def windows(extent: int, size: int, stride: int, first: int, count: int) -> list[range]:
    """The rows or columns inside of 0 .. extent - 1 that each of `count` windows covers, the first from `first` on."""
    starts = [first + stride * i for i in range(count)]
    inside = [(min(max(start, 0), extent), min(max(start + size, 0), extent)) for start in starts]
    return [range(*ends) for ends in inside]


def strided(x: Array, layer: Mapping[str, Any], stride: int, first: int, counts: tuple[int, int]) -> FloatArray:
    """A convolution with as many groups as its kernel [k, k, I / groups, O] tells, output by output.

    Output (i, j) sees rows stride * i + first .. + k - 1 and columns likewise; beyond the border are zeros.
    """
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    size, _, inputs, outputs = kernel.shape
    groups = x.shape[2] // inputs
    out = np.zeros((*counts, outputs))
    rows, columns = (windows(n, size, stride, first, m) for n, m in zip(x.shape[:2], counts, strict=True))
    for i, down in enumerate(rows):
        for j, across in enumerate(columns):
            top, left = first + stride * i, first + stride * j
            seen = x[down.start : down.stop, across.start : across.stop]
            taps = kernel[down.start - top : down.stop - top, across.start - left : across.stop - left]
            for g in range(groups):
                of_x, of_y = (
                    slice(g * inputs, (g + 1) * inputs),
                    slice(g * outputs // groups, (g + 1) * outputs // groups),
                )
                out[i, j, of_y] = np.tensordot(seen[..., of_x], taps[..., of_y], 3)
    return out + bias


def pool3(x: Array, counts: tuple[int, int], stride: int = 2, first: int = 0) -> FloatArray:
    """3x3 max pooling, window by window, clipped at the border."""
    rows, columns = (windows(n, 3, stride, first, m) for n, m in zip(x.shape[:2], counts, strict=True))
    out = [[x[r.start : r.stop, c.start : c.stop].max((0, 1)) for c in columns] for r in rows]
    return np.array(out, np.float64)


def normalised(x: Array) -> FloatArray:
    """Caffe's LRN across channels: local_size 5, alpha 1e-4, beta 0.75, k 1."""
    out = np.zeros(x.shape)
    for c in range(x.shape[2]):
        out[..., c] = x[..., c] / (1 + 1e-4 / 5 * (x[..., max(c - 2, 0) : c + 3] ** 2).sum(-1)) ** 0.75
    return out


def alexnet(params: Params, image: Array, *, geometry: str, caffenet: bool = True) -> FloatArray:
    """Logits of FCN-AlexNet: uint8 RGB [H, W, 3] -> float64 [H, W, C].

    In `caffe` geometry sizes are Caffe's: floor for convolutions, ceil for poolings. In `same` n cells become
    ceil(n / stride), conv1 looks 2 pixels and fc6 3 cells back. The kernel of 63 is cropped at 18, in `same` at 16:
    cell 0 lies at pixel 15, and the middle of the kernel at 31.
    """
    caffe = geometry == "caffe"

    def sized(n: int, size: int, stride: int, back: int) -> int:
        return (n + 2 * back - size) // stride + 1 if caffe else -(-n // stride)

    def conv(x: Array, name: str, stride: int = 1, back: int = 0) -> FloatArray:
        size = len(params[name]["kernel"])
        counts = sized(x.shape[0], size, stride, back), sized(x.shape[1], size, stride, back)
        return strided(x, params[name], stride, -back, counts)

    def pool(x: Array) -> FloatArray:
        counts = tuple(-((3 - n) // 2) + 1 if caffe else -(-n // 2) for n in x.shape[:2])
        return pool3(x, (counts[0], counts[1]))

    norm = normalised if caffenet else np.asarray
    x = pool(relu(conv(preprocess(image), "conv1", 4, 100 if caffe else 2)))
    x = pool(relu(conv(norm(x), "conv2", 1, 2)))
    x = relu(conv(norm(x), "conv3", 1, 1))
    x = relu(conv(x, "conv4", 1, 1))
    x = pool(relu(conv(x, "conv5", 1, 1)))
    x = relu(conv(x, "fc6", 1, 0 if caffe else 3))
    x = conv(relu(conv(x, "fc7")), "score_fr")
    learned = params.get("upscore", {}).get("kernel")
    kernel = diagonal_bilinear_kernel(63, x.shape[2]) if learned is None else np.asarray(learned, np.float64)
    return crop(upsample(x, kernel, 32), 18 if caffe else 16, image.shape[0], image.shape[1])


# GoogLeNet: bvlc_googlenet/deploy.prototxt up to inception_5b


def googlenet(params: Params, image: Array, *, geometry: str, network: str) -> FloatArray:
    """Logits of an FCN on GoogLeNet: uint8 RGB [H, W, 3] -> float64 [H, W, C], with bilinear upsampling.

    `caffe`: conv1 pads 100, floor for convolutions and ceil for poolings. `same`: ceil(n / stride), conv1 looks 3 back,
    pool2 and pool3 look 1 back. The centre of cell i of a map is at pixel stride * i + start.
    """
    caffe = geometry == "caffe"

    def conv(x: Array, name: str, stride: int = 1, back: int = 0) -> FloatArray:
        size = len(params[name]["kernel"])
        counts = [(n + 2 * back - size) // stride + 1 if caffe else -(-n // stride) for n in x.shape[:2]]
        return relu(strided(x, params[name], stride, -back, (counts[0], counts[1])))

    def halved(x: Array, back: int) -> FloatArray:
        counts = [-((3 - n) // 2) + 1 if caffe else -(-n // 2) for n in x.shape[:2]]
        return pool3(x, (counts[0], counts[1]), first=-back)

    def inception(x: Array, block: str) -> FloatArray:
        name = f"inception_{block}_"
        pooled = pool3(x, (x.shape[0], x.shape[1]), stride=1, first=-1)
        three, five = conv(x, name + "3x3_reduce"), conv(x, name + "5x5_reduce")
        branches = conv(x, name + "1x1"), conv(three, name + "3x3", 1, 1), conv(five, name + "5x5", 1, 2)
        return np.concatenate([*branches, conv(pooled, name + "pool_proj")], -1)

    x = normalised(halved(conv(preprocess(image), "conv1_7x7_s2", 2, 100 if caffe else 3), 0))
    x = normalised(conv(conv(x, "conv2_3x3_reduce"), "conv2_3x3", 1, 1))
    back = 0 if caffe else 1
    eight = inception(inception(halved(x, back), "3a"), "3b")
    sixteen = halved(eight, back)
    for block in ("4a", "4b", "4c", "4d", "4e"):
        sixteen = inception(sixteen, block)
    x = convolve(inception(inception(halved(sixteen, 0), "5a"), "5b"), params["score_fr"])
    start = -67 if caffe else 18
    skips = {"inception_4e": (sixteen, -83 if caffe else 2), "inception_3b": (eight, -91 if caffe else 2)}
    stride = 32
    for skip in list(skips)[: {"fcn32s": 0, "fcn16s": 1, "fcn8s": 2}[network]]:
        found, begins = skips[skip]
        x, stride, start = upsample(x, diagonal_bilinear_kernel(3, x.shape[2]), 2), stride // 2, start - stride // 2
        scored = convolve(found, params["score_" + skip])
        x = crop(x, (begins - start) // stride, scored.shape[0], scored.shape[1]) + scored
        start = begins
    x = upsample(x, diagonal_bilinear_kernel(2 * stride - 1, x.shape[2]), stride)
    return crop(x, stride - 1 - start, image.shape[0], image.shape[1])


# Loss and metrics


def cross_entropy(logits: Array, label: Array, ignore: int = 255) -> FloatArray:
    """Per-pixel -log softmax(logits)[label], 0 where the label is `ignore`: [..., C] and [...] -> [...].

    Any other label outside [0, C) is an error.
    """
    values = np.asarray(logits, np.float64)
    loss = np.zeros(label.shape)
    for index in np.ndindex(*label.shape):
        wanted = int(label[index])
        if wanted == ignore:
            continue
        if not 0 <= wanted < values.shape[-1]:
            raise ValueError(f"label {wanted} at {index} is neither in [0, {values.shape[-1]}) nor {ignore}")
        pixel = values[index]
        highest = pixel.max()
        loss[index] = highest + np.log(np.exp(pixel - highest).sum()) - pixel[wanted]
    return loss


def confusion_matrix(label: Array, prediction: Array, num_classes: int) -> IntArray:
    """Count pixels: [C, C] int64 with the true class along rows and the predicted one along columns.

    `label` and `prediction` have the same shape. Pixels whose true label is outside [0, C), as void is, do not count.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label {label.shape} and prediction {prediction.shape} differ in shape")
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for index in np.ndindex(*label.shape):
        truth, guess = int(label[index]), int(prediction[index])
        if not 0 <= truth < num_classes:
            continue
        if not 0 <= guess < num_classes:
            raise ValueError(f"prediction {guess} at {index} is not in [0, {num_classes})")
        confusion[truth, guess] += 1
    return confusion


def scores(confusion: Array) -> Scores:
    """Compute the metrics of score.py from the confusion matrix [C, C] of a whole dataset.

    A class in neither truth nor prediction has the IoU NaN and is left out of the mean; one that is predicted but never
    true has the IoU 0 and no accuracy. Without any counted pixel everything is NaN.
    """
    num_classes = len(confusion)
    total = 0
    correct = 0
    weighted = 0.0
    accuracies: list[float] = []
    ious: list[float] = []
    per_class = np.full(num_classes, np.nan)
    for i in range(num_classes):
        hit = int(confusion[i, i])
        true = sum(int(confusion[i, j]) for j in range(num_classes))
        predicted = sum(int(confusion[j, i]) for j in range(num_classes))
        union = true + predicted - hit
        total += true
        correct += hit
        if true > 0:
            accuracies.append(hit / true)
            weighted += true * (hit / union)
        if union > 0:
            per_class[i] = hit / union
            ious.append(hit / union)
    return Scores(
        pixel_accuracy=correct / total if total else float("nan"),
        mean_accuracy=sum(accuracies) / len(accuracies) if accuracies else float("nan"),
        mean_iou=sum(ious) / len(ious) if ious else float("nan"),
        frequency_weighted_iou=weighted / total if total else float("nan"),
        per_class_iou=per_class,
    )

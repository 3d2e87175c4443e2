"""What every reader gives: named arrays, what was done to them, and the input that they expect."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.models.spec import BACKBONES, MEAN_BGR, Head, Input

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
    mean: tuple[float, ...]
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


# The paper's release: voc_layers.py; its PASCAL-Context layer rounds the same mean to three decimals.
OURS = Convention("BGR", 1.0, MEAN_BGR)
TORCHVISION = Convention("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# VGG16's own (Simonyan and Zisserman), and so keras.applications.imagenet_utils.preprocess_input's, mode 'caffe'.
VGG = Convention("BGR", 1.0, (103.939, 116.779, 123.68))
GOOGLENET = Convention("BGR", 1.0, (104.0, 117.0, 123.0))  # bvlc_googlenet/train_val.prototxt
# The release's nyud_layers.py, and siftflow_layers.py.
NYUD_COLOR = Convention("BGR", 1.0, (116.190, 97.203, 92.318))
NYUD_HHA = Convention("BGR", 1.0, (132.431, 94.076, 118.477))
NYUD_COLOR_D = Convention("BGR", 1.0, (*NYUD_COLOR.mean, 7.844), (1.0,) * 4)
NYUD_COLOR_HHA = Convention("BGR", 1.0, (*NYUD_COLOR.mean, *NYUD_HHA.mean), (1.0,) * 6)
SIFT_FLOW = Convention("BGR", 1.0, (114.578, 115.294, 108.353))
CONVENTIONS = {"voc": OURS, "vgg": VGG, "torchvision": TORCHVISION, "nyud-color": NYUD_COLOR, "nyud-hha": NYUD_HHA}


def parse_convention(text: str) -> Convention:
    """A name in CONVENTIONS, or ORDER,SCALE,MEAN,MEAN,MEAN[,STD,STD,STD]; ValueError for anything else."""
    if text in CONVENTIONS:
        return CONVENTIONS[text]
    order, *rest = text.split(",")
    try:
        scale, *values = map(float, rest)
    except ValueError:
        values = []
    if order not in ("RGB", "BGR") or len(values) not in (3, 6) or not all(np.isfinite(values)) or 0 in values[3:]:
        raise ValueError(
            f"input convention {text!r}: give one of {', '.join(CONVENTIONS)}, or"
            " ORDER,SCALE,MEAN,MEAN,MEAN[,STD,STD,STD] with ORDER RGB or BGR"
        )
    return Convention(order, scale, tuple(values[:3]), tuple(values[3:]) or (1.0, 1.0, 1.0))


def backbone(arrays: Arrays) -> str:
    """The backbone of arrays by their names and widths, VGG16 where nothing tells."""
    if "conv1_7x7_s2/kernel" in arrays:
        return "googlenet"
    if "conv1/bias" in arrays and "conv1_1/bias" not in arrays:
        ungrouped = "conv2/kernel" in arrays and arrays["conv2/kernel"].shape[-2] == len(arrays["conv1/bias"])
        return "alexnet_torchvision" if ungrouped else "alexnet"
    return "vgg16"


def own_convention(arrays: Arrays) -> Convention:
    """What ImageNet weights of Caffe expect. CaffeNet's mean is an image, whose mean is that of the release."""
    return {"vgg16": VGG, "googlenet": GOOGLENET}.get(backbone(arrays), OURS)


def first_layer(arrays: Arrays) -> str:
    """The layer that sees the image, empty where the arrays have no such kernel."""
    return next((found.first for found in BACKBONES.values() if f"{found.first}/kernel" in arrays), "")


class Weights(NamedTuple):
    """Pretrained arrays under the paper's names, as they are in a file but for their layout.

    Attributes:
      arrays: float32, {'conv1_1/kernel': [3, 3, 3, 64] (HWIO, input channels in the convention's order),
        'conv1_1/bias': [64], ..., 'fc6/kernel': [7, 7, 512, 4096], 'fc7/kernel': [1, 1, 4096, 4096],
        'upscore2/kernel': [4, 4, C, C] (h, w, in, out; what models.upsample.transposed takes), ...}. ImageNet's
        classifier is 'fc8'. The at-once release's Scale layers are 'scale_pool4/scale' [512] and 'scale_pool3/scale'.
      notes: what was done to an array beyond transposing it: {'fc6/kernel': 'reshaped from 4096x25088'}.
      convention: the input that conv1_1 expects; None where the file does not say and its use must.
      model: model.json as a dict, where the file carries it.
      at_once: whether score_pool4 and score_pool3 expect pools scaled by 0.01 and 0.0001; None where nothing tells.
      remarks: lines for the report: what was stripped from names, and what of the file was passed over.
      inputs: what the network sees, where it is more than colour.
    """

    arrays: Arrays
    notes: dict[str, str]
    convention: Convention | None
    model: dict[str, Any] | None = None
    at_once: bool | None = None
    remarks: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()

    @property
    def streams(self) -> tuple[str, ...]:
        """The suffixes of the layers of each stream."""
        return tuple(dict.fromkeys(given.stream for given in self.inputs)) or ("",)

    def heads(self) -> list[Head]:
        """Those that have scores, by what their layers are called behind score_fr and the stream."""
        start = f"score_fr{self.streams[0]}"
        names = [
            name.removesuffix("/bias") for name in self.arrays if name.startswith(start) and name.endswith("/bias")
        ]
        return [Head(name.removeprefix(start).removeprefix("_"), len(self.arrays[f"{name}/bias"])) for name in names]


def told(error: Exception) -> str:
    """What an error says, which may quote a damaged file: in one printable line of limited length."""
    return printable(" ".join(str(error).split())[:300]) or type(error).__name__


def printable(text: str) -> str:
    """The text with escapes for what a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(names: Iterable[object], most: int = 8) -> str:
    """'epoch, optimizer, ... (5 more)': `most` names at most, each in one line and no longer than 60 characters."""
    texts = [name if name.isprintable() else repr(name) for name in map(str, names)]
    short = [text if len(text) <= 60 else f"{text[:57]}..." for text in texts[:most]]
    return ", ".join(short) + (f", ... ({len(texts) - most} more)" if len(texts) > most else "")


def passed_over(names: Sequence[str]) -> tuple[str, ...]:
    """The remark that says so, none for no names."""
    return (f"passed over: {listed(names)}",) if names else ()


def the_plain(labels: Sequence[str], path: object) -> str:
    """The one of several networks in a file that is to be read: the only one that is not an average of another.

    Raises:
      ValueError: there are several of them.
    """
    plain = [label for label in labels if not _AVERAGES & set(re.split(r"[\W_]+", label.lower()))] or labels
    if len(plain) > 1:
        raise ValueError(
            f"{path} holds {len(plain)} networks: {listed(label or 'one without a prefix' for label in plain)};"
            " save the one that is meant to a file of its own"
        )
    return plain[0]


# What trainers call the running average of a network.
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow"}


def fully_connected(kernel: np.ndarray, size: int, order: str) -> np.ndarray:
    """A fully connected layer [out, size * size * channels] as the convolution HWIO [size, size, channels, out].

    Args:
      kernel: [out, in].
      size: 7 for fc6, 1 for the others.
      order: in which the map was flattened, 'CHW' (Caffe, PyTorch) or 'HWC' (TensorFlow).

    Raises:
      ValueError: `in` is not a multiple of size * size.
    """
    outputs, inputs = kernel.shape
    if inputs % (size * size):
        raise ValueError(f"{outputs}x{inputs} is no {size}x{size} convolution: {inputs} is not a multiple of {size**2}")
    if order == "CHW":
        return kernel.reshape(outputs, -1, size, size).transpose(2, 3, 1, 0)
    return kernel.reshape(outputs, size, size, -1).transpose(1, 2, 3, 0)

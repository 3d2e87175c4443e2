"""PyTorch's names and layouts of VGG16 and of FCNs on it: what .pth and .safetensors files have in common."""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from fcn_jax.weights import common

VGG_RGB = common.Convention("RGB", common.VGG.scale, common.VGG.mean[::-1])

# Of torchvision: the 13 convolutions are numbered among ReLUs and poolings.
_FEATURES = dict(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), common.CONVOLUTIONS, strict=True))
_LAYERS = {
    **{f"features.{number}": layer for number, layer in _FEATURES.items()},
    **{"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"},
    **{"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"},  # timm
}
# Fully connected layers, and the size of the map that each sees.
SIZES = {"fc6": 7, "fc7": 1, "fc8": 1}

# The first biases of VGG16 as its authors published it, and its first kernel's top left taps of blue and of red. Under
# torchvision's names (pytorch-fcn's vgg16_from_caffe.pth) nothing else tells it from torchvision's own.
_RELEASED_BIASES = (0.73429835, 0.09340367, 0.06775674, 0.8862966)
_RELEASED_BLUE, _RELEASED_RED = 0.42947057, 0.4800154


def convert(
    tensors: common.Arrays, path: pathlib.Path, model: dict[str, Any] | None = None, at_once: bool | None = None
) -> common.Weights:
    """Weights from arrays under PyTorch's names.

    Args:
      tensors: {'conv1_1.weight': [64, 3, 3, 3], ...} by the paper's names, or {'features.0.weight': ...} by
        torchvision's or timm's.
      path: names the file in messages.
      model, at_once: as in `common.Weights`.

    Returns:
      the weights. What is not of VGG16 or an FCN keeps its name: 'x.weight' is 'x/kernel', 'x.y' is 'x/y'.

    Raises:
      ValueError: other networks' names, a layer that cannot be one of VGG16's, an array that holds no numbers.
    """
    tensors = _without_prefix(tensors)
    torchvision = "conv1_1.weight" not in tensors
    _check_names(tensors, path)
    arrays: common.Arrays = {}
    notes: dict[str, str] = {}
    for torch_name, tensor in tensors.items():
        layer, _, part = torch_name.rpartition(".")
        if torchvision:
            layer = _LAYERS.get(layer, layer)
        part = "kernel" if part == "weight" else part
        name = f"{layer}/{part}" if layer else part
        if name in arrays:
            raise ValueError(f"{path} has {name} twice, once as {torch_name}; leave one of them out")
        try:
            array, done = as_float32(tensor)
            if part == "kernel":
                array, reshaped = _kernel(layer, array)
                done += reshaped
        except ValueError as error:
            raise ValueError(f"{path}: {torch_name}: {error}") from error
        arrays[name] = array
        if done:
            notes[name] = ", ".join(done)
    return common.Weights(arrays, notes, _convention(arrays, torchvision, model, path), model, at_once)


def as_float32(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The array as float32, itself if it is that, and what was done; ValueError if it does not hold numbers."""
    if array.dtype == np.float32:
        return array, []
    if array.dtype.kind not in "fiub" and array.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"an array of {array.dtype} does not hold numbers that can be float32")
    with np.errstate(over="ignore"):  # whoever reads weights refuses infinite ones
        return array.astype(np.float32), [f"cast from {array.dtype}"]


def by(shape: Iterable[int]) -> str:
    """(2, 3) as 2x3."""
    return "x".join(map(str, shape)) or "()"


def _kernel(layer: str, weight: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A weight as kernel: convolutions OIHW to HWIO, transposed ones IOHW to HWIO, fully connected ones to HWIO."""
    if layer.startswith("upscore") and weight.ndim == 4:
        return weight.transpose(2, 3, 0, 1), []
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0), []
    if layer in SIZES and weight.ndim == 2:
        return common.fully_connected(weight, SIZES[layer], "CHW"), [f"reshaped from {by(weight.shape)}"]
    return weight, []


def _without_prefix(tensors: common.Arrays) -> common.Arrays:
    """'module.' is what DataParallel puts before every name."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _check_names(names: Iterable[str], path: pathlib.Path) -> None:
    """Raises ValueError for what is neither VGG16 nor an FCN on it."""
    names = list(names)
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{path} has the name {name[:80]!r}; it is damaged, get it again")
    if "conv1_1.weight" in names:
        return
    if "features.0.weight" not in names:
        listed = ", ".join(names[:3]) or "nothing"
        raise ValueError(
            f"{path} has {listed}{', ...' if len(names) > 3 else ''}; wanted a VGG16, or an FCN on it, with names such"
            " as conv1_1.weight or features.0.weight: rename what is in it"
        )
    numbers = sorted({int(match[1]) for match in map(re.compile(r"features\.(\d+)\.").match, names) if match})
    if not set(numbers) <= set(_FEATURES):
        raise ValueError(
            f"{path} has features {', '.join(map(str, numbers))}, and VGG16 has {', '.join(map(str, _FEATURES))};"
            " vgg16_bn, vgg19 and others are not read: give vgg16"
        )


def _convention(
    arrays: common.Arrays, torchvision: bool, model: dict[str, Any] | None, path: pathlib.Path
) -> common.Convention:
    if torchvision:
        return _released(arrays) or common.TORCHVISION
    if model is not None:
        mean = model.get("mean", common.OURS.mean)
        try:
            return common.Convention("BGR", 1.0, tuple(map(float, mean)), (1.0,) * len(mean))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: its model.json has the mean {str(mean)[:80]}, wanted numbers") from error
    return common.OURS if "score_fr/kernel" in arrays else common.VGG


def _released(arrays: common.Arrays) -> common.Convention | None:
    """The convention of weights that are the VGG's own or started from them, None for others."""
    biases = arrays.get("conv1_1/bias", np.zeros(0)).flat[:4]
    if len(biases) < 4 or not np.allclose(biases, _RELEASED_BIASES, rtol=0, atol=5e-3):
        return None
    tap = float(arrays["conv1_1/kernel"].flat[:1].sum())
    return common.VGG if abs(tap - _RELEASED_BLUE) < abs(tap - _RELEASED_RED) else VGG_RGB

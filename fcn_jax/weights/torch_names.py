"""PyTorch's names and layouts of VGG16, AlexNet and FCNs on them: what .pth and .safetensors files have in common."""

import collections
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common

VGG_RGB = common.Convention("RGB", common.VGG.scale, common.VGG.mean[::-1])

# torchvision numbers the convolutions among ReLUs and poolings, in `features`.
_FEATURES = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet_torchvision": (0, 3, 6, 8, 10),
}
_TOPS = {
    "vgg16": {
        **{"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"},
        **{"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"},  # timm
    },
    "alexnet_torchvision": {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"},
}
_LAYERS = {
    name: {f"features.{n}": layer for n, layer in zip(numbers, BACKBONES[name].convolutions, strict=True)} | _TOPS[name]
    for name, numbers in _FEATURES.items()
}
# jcjohnson's vgg16-00b39a1b.pth, in whose classifier dropout comes first.
_DROPOUT_FIRST = {"classifier.1": "fc6", "classifier.4": "fc7"}
# What DataParallel, torch.compile, FSDP and activation checkpointing put into names, at any place.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_FIRST = re.compile(r"((?:.*\.)?)(?:conv1_1|conv1|conv1_7x7_s2|features\.0)\.weight")
_NUMBERED = re.compile(r"((?:.*\.)?)(\d+)\.(?:weight|bias)")
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
        torchvision's or timm's; wrappers (module., _orig_mod.) and what stands before all of these are stripped.
      path: names the file in messages.
      model, at_once: as in `common.Weights`.

    Returns:
      the weights. What is not of VGG16 or an FCN keeps its name: 'x.weight' is 'x/kernel', 'x.y' is 'x/y'. What has
      no dot in its name is of no layer, and passed over.

    Raises:
      ValueError: other networks' names, several networks, a layer that cannot be one of VGG16's, an array that holds no
        numbers.
    """
    own = bool(model and model.get("inputs"))  # streams are in its names, which nobody else has
    tensors, remarks = (tensors, ()) if own else _plain_names(tensors, path)
    torchvision = "features.0.weight" in tensors and "conv1_1.weight" not in tensors
    if not own:
        _check_names(tensors, path)
    loose = [name for name in tensors if "." not in name]  # of no layer: a counter, the state of a generator
    remarks += common.passed_over([f"{name} (tensor)" for name in loose])
    backbone = "alexnet_torchvision" if _is_alexnet(tensors) else "vgg16"
    dropout_first = {f"{layer}.weight" for layer in _DROPOUT_FIRST} <= tensors.keys()
    known = {**_LAYERS[backbone], **(_DROPOUT_FIRST if dropout_first else {})}
    sizes = {**SIZES, "fc6": BACKBONES[backbone].fc6}
    arrays: common.Arrays = {}
    notes: dict[str, str] = {}
    for torch_name, tensor in tensors.items():
        layer, dot, part = torch_name.rpartition(".")
        if not dot:
            continue
        if torchvision:
            layer = known.get(layer, layer)
        part = "kernel" if part == "weight" else part
        name = f"{layer}/{part}"
        if name in arrays:
            raise ValueError(f"{path} has {name} twice, once as {torch_name}; leave one of them out")
        try:
            array, done = as_float32(tensor)
            if part == "kernel":
                array, reshaped = _kernel(layer, array, sizes.get(layer, 0))
                done += reshaped
        except ValueError as error:
            raise ValueError(f"{path}: {torch_name}: {error}") from error
        arrays[name] = array
        if done:
            notes[name] = ", ".join(done)
    return common.Weights(arrays, notes, _convention(arrays, torchvision, model, path), model, at_once, remarks)


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


def _kernel(layer: str, weight: np.ndarray, size: int) -> tuple[np.ndarray, list[str]]:
    """A weight as kernel HWIO: convolutions OIHW, transposed ones IOHW, fully connected ones that saw a `size` map."""
    if layer.startswith("upscore") and weight.ndim == 4:
        return weight.transpose(2, 3, 0, 1), []
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0), []
    if size and weight.ndim == 2:
        return common.fully_connected(weight, size, "CHW"), [f"reshaped from {by(weight.shape)}"]
    return weight, []


def prefixes(names: Iterable[str]) -> list[str]:
    """What stands before the names of a network, once for each that is there: ['model.'] for model.features.0.weight.

    Without 'features.' the numbers tell: of torchvision's VGGs VGG16 alone has convolutions at 0, 2, ..., 28. Others
    than AlexNet have a conv1, too, but no conv5.
    """
    names = [_unwrapped(name) for name in names]
    all_names = set(names)
    numbers = collections.defaultdict(set)
    for match in filter(None, map(_NUMBERED.fullmatch, names)):
        numbers[match[1]].add(match[2])
    features = [{str(number) for number in table} for table in _FEATURES.values()]
    bare = [prefix for prefix, found in numbers.items() if found in features]
    named = [
        match[1]
        for match in map(_FIRST.fullmatch, names)
        if match and (not match[0].endswith("conv1.weight") or f"{match[1]}conv5.weight" in all_names)
    ]
    return list(dict.fromkeys([*named, *(prefix for prefix in bare if not prefix.endswith("features."))]))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _plain_names(tensors: common.Arrays, path: pathlib.Path) -> tuple[common.Arrays, tuple[str, ...]]:
    """The arrays of one network without wrappers and prefix in their names, and what was stripped and passed over."""
    stripped = sorted({f"{part}." for name in tensors for part in name.split(".") if part in _WRAPPERS})
    tensors = _renamed(tensors, _unwrapped, path)
    found = prefixes(tensors)
    prefix = common.the_plain(found, path) if found else ""
    others = tuple(other for other in found if other != prefix)
    tensors = {name: tensor for name, tensor in tensors.items() if not (others and name.startswith(others))}
    tensors = _renamed(tensors, lambda name: name.removeprefix(prefix), path)
    if "0.weight" in tensors and prefixes(tensors) == [""]:
        tensors = _renamed(tensors, lambda name: f"features.{name}" if name[:1].isdigit() else name, path)
    stripped += [prefix] if prefix else []
    remarks = (f"stripped from names: {common.listed(stripped)}",) if stripped else ()
    return tensors, remarks + common.passed_over([f"{other}* (another network)" for other in others])


def _renamed(tensors: common.Arrays, rename: Callable[[str], str], path: pathlib.Path) -> common.Arrays:
    renamed: common.Arrays = {}
    for name, tensor in tensors.items():
        short = rename(name)
        if short in renamed:
            raise ValueError(f"{path} has {short[:80]!r} twice, once as {name[:80]!r}; leave one of them out")
        renamed[short] = tensor
    return renamed


def _check_names(names: Iterable[str], path: pathlib.Path) -> None:
    """Raises ValueError for what is neither VGG16 or AlexNet nor an FCN on it."""
    names = list(names)
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{path} has the name {name[:80]!r}; it is damaged, get it again")
    if {"conv1_1.weight", "conv1_7x7_s2.weight"} & set(names) or {"conv1.weight", "conv5.weight"} <= set(names):
        return
    if "features.0.weight" not in names:
        listed = ", ".join(names[:3]) or "nothing"
        raise ValueError(
            f"{path} has {listed}{', ...' if len(names) > 3 else ''}; wanted a VGG16 or AlexNet, or an FCN on it, with"
            " names such as conv1_1.weight or features.0.weight: rename what is in it"
        )
    numbers, known = sorted(_numbers(names)), _FEATURES["vgg16"]
    if not set(numbers) <= set(known) and not _is_alexnet(names):
        raise ValueError(
            f"{path} has features {', '.join(map(str, numbers))}, and VGG16 has {', '.join(map(str, known))};"
            " vgg16_bn, vgg19 and others are not read: give vgg16"
        )


def _numbers(names: Iterable[str]) -> set[int]:
    """Those of torchvision's features that have weights."""
    return {int(match[1]) for match in map(re.compile(r"features\.(\d+)\.").match, names) if match}


def _is_alexnet(names: Iterable[str]) -> bool:
    names = set(names)
    return "conv1_1.weight" not in names and (
        "conv1.weight" in names or _numbers(names) == set(_FEATURES["alexnet_torchvision"])
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
    return common.OURS if "score_fr/kernel" in arrays else common.own_convention(arrays)


def _released(arrays: common.Arrays) -> common.Convention | None:
    """The convention of weights that are the VGG's own or started from them, None for others."""
    biases = arrays.get("conv1_1/bias", np.zeros(0)).flat[:4]
    if len(biases) < 4 or not np.allclose(biases, _RELEASED_BIASES, rtol=0, atol=5e-3):
        return None
    tap = float(arrays["conv1_1/kernel"].flat[:1].sum())
    return common.VGG if abs(tap - _RELEASED_BLUE) < abs(tap - _RELEASED_RED) else VGG_RGB

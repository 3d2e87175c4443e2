"""A .pth file that the networks of pytorch-fcn (github.com/wkentaro/pytorch-fcn) load."""

import collections
import pathlib
from typing import Any

from fcn_jax.export import common
from fcn_jax.models.spec import MEAN_BGR, ModelSpec

CARRIES_MODEL_JSON = False
# What pytorch-fcn's networks are, each with no choice.
_WANTED = {
    "backbone": "vgg16",
    "geometry": "caffe",
    "width": 64,
    "fc_width": 4096,
    "mean": MEAN_BGR,
    "inputs": (),
    "heads": (),
}
_CLASSES = {"fcn32s": "FCN32s", "fcn16s": "FCN16s", "fcn8s": "FCN8s"}


def check(spec: ModelSpec) -> None:
    """ValueError for a network that pytorch-fcn does not have, and if PyTorch is missing."""
    differences = [
        f"{key} {getattr(spec, key)!r}, not {value!r}" for key, value in _WANTED.items() if getattr(spec, key) != value
    ]
    if spec.network not in _CLASSES:
        differences.append(f"network {spec.network!r}, not one of {', '.join(_CLASSES)}")
    elif spec.at_once and spec.network == "fcn16s":
        differences.append("an at-once fcn16s, and only its fcn8s is")
    if differences:
        raise ValueError(
            f"--format=torchfcn is for pytorch-fcn's own networks; this one has {'; '.join(differences)}:"
            " --format=safetensors takes any"
        )
    _torch()


def write(path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """An OrderedDict of `common.torch_arrays` as tensors, of any network, in the format from before PyTorch 1.6."""
    torch = _torch()
    arrays = common.torch_arrays(params, spec)
    state = collections.OrderedDict((name, torch.from_numpy(array)) for name, array in arrays.items())
    with open(path, "wb") as file:  # an open file, since its errors are Python's own
        torch.save(state, file, _use_new_zipfile_serialization=False)


def usage(path: pathlib.Path, spec: ModelSpec) -> str:
    """How to load it."""
    name = "FCN8sAtOnce" if spec.at_once and spec.network == "fcn8s" else _CLASSES[spec.network]
    model = f"model = torchfcn.models.{name}(n_class={len(spec.class_names)})"
    load = f"import torch, torchfcn; {model}; model.load_state_dict(torch.load({str(path)!r}))"
    return f"{load}  # {common.torch_input(spec)}"


def _torch() -> Any:
    return common.require("torch", "torchfcn", "pip install 'fcn_jax[parity]'")

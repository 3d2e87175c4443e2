"""VGG16 of Keras: conv1_1 to conv5_3 and, with its top, fc6, fc7 and ImageNet's fc8.

HDF5 in which a layer (block1_conv1 .. block5_conv3, fc1, fc2, predictions) holds a kernel (HWIO, or [in, out]) and a
bias: block1_conv1/block1_conv1_W_1:0 in the files of keras.applications, block1_conv1/block1_conv1/kernel:0 by Keras 2,
below model_weights/ where the whole model was saved. Keras 3 writes layers/conv2d_3/vars/0 and /1 instead: by class and
number, in the layers' order; .keras is a zip around that. Attributes are not read: damaged ones crash the HDF5 library.
"""

import io
import pathlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, numpy_file, torch_names

if TYPE_CHECKING:
    import h5py

_HDF5 = b"\x89HDF\r\n\x1a\n"
_IN_ZIP = "model.weights.h5"
# Datasets that claim more than so many times the file's size are refused: weights shrink by a tenth.
_MAX_RATIO = 100
_SECONDS = 300  # that HDF5 may take; half a gigabyte takes one
_WALK = f"""
import io, resource, sys, zipfile, h5py
path, member, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS // 5}, hard))
with open(path, "rb") as file:
    zipped = file.read(2) == b"PK"
source = io.BytesIO(zipfile.ZipFile(path).read(member)) if zipped else path
def visit(name, item):
    global most
    if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not item.external and not item.is_virtual:
        most -= item.nbytes
        if most >= 0:
            item[()]
with h5py.File(source, "r") as file:
    file.visititems(visit)
"""
_CONVOLUTIONS = BACKBONES["vgg16"].convolutions
_LAYERS = {
    **{f"block{layer[4]}_conv{layer[6]}": layer for layer in _CONVOLUTIONS},
    "fc1": "fc6",
    "fc2": "fc7",
    "predictions": "fc8",
}


class _Found(NamedTuple):
    """A dataset of a layer: where the layer is, its name or class and number, 'kernel' or 'bias', and its values."""

    owner: str
    layer: str
    part: str
    values: np.ndarray


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is HDF5, or a zip as Keras writes it."""
    first = numpy_file.first_member(head)
    return head.startswith(_HDF5) or first in (b"metadata.json", b"config.json", _IN_ZIP.encode())


def read(path: pathlib.Path) -> common.Weights:
    """Reads 'conv1_1/kernel' [3, 3, 3, 64] ... 'fc6/kernel' [7, 7, 512, 4096], 'fc7/kernel' [1, 1, 4096, 4096].

    What is not of VGG16 keeps the name that it has in the file.

    Raises:
      ValueError: truncated, damaged, or not the weights of Keras' VGG16.
    """
    import h5py  # takes a while, and only this format needs it

    passed: list[str] = []
    most = _MAX_RATIO * path.stat().st_size
    _rehearse(path, most)
    try:
        with h5py.File(_source(path), "r") as file:
            found = _datasets(file, most, passed)
    except (
        OSError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what h5py raises, by where the damage is
        raise ValueError(f"{path} is truncated or damaged ({common.told(error)}); download it again") from error
    named, remarks = _named(found, path)
    arrays: common.Arrays = {}
    notes: dict[str, str] = {}
    for name, values in named.items():
        layer, _, part = name.rpartition("/")
        array, done = torch_names.as_float32(values)
        if layer in torch_names.SIZES and part == "kernel":
            done.append(f"reshaped from {torch_names.by(array.shape)}")
            array = _as_convolution(array, layer, path)
        arrays[name] = array
        notes |= {name: ", ".join(done)} if done else {}
    return common.Weights(arrays, notes, common.VGG, remarks=(*remarks, *common.passed_over(passed)))


def _rehearse(path: pathlib.Path, most: int) -> None:
    """Reads the file in a process of its own: on some damaged ones the HDF5 library hangs, or ends the process."""
    command = [sys.executable, "-c", _WALK, str(path), _IN_ZIP, str(most)]
    try:
        code = subprocess.run(command, timeout=_SECONDS, capture_output=True).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0:  # an error of Python's comes again, and is told
        raise ValueError(f"{path} is truncated or damaged (its HDF5 cannot be walked through); download it again")


def _source(path: pathlib.Path) -> pathlib.Path | io.BytesIO:
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return path
    members = numpy_file.read_zip(path)
    if _IN_ZIP not in members:
        raise ValueError(f"{path} is a zip file without {_IN_ZIP}; wanted what model.save writes")
    return io.BytesIO(members[_IN_ZIP])


def _datasets(file: "h5py.File", most: int, passed: list[str]) -> list[_Found]:
    """The arrays of layers; what is of an optimizer or no floats is passed over, links to other files not followed."""
    import h5py

    found, size = [], 0

    def visit(name: str, item: Any) -> None:
        nonlocal size
        top = name.partition("/")[0]
        if not isinstance(item, h5py.Dataset):
            return
        if "optimizer" in top or item.dtype.kind != "f":
            passed.append(top if "optimizer" in top else name)
            return
        size += item.nbytes
        if size > most or item.external or item.is_virtual:
            raise OSError(f"{name[:80]} claims {item.nbytes} bytes that are not in it")
        found.append(_parse(name, item))

    file.visititems(visit)
    passed[:] = dict.fromkeys(passed)
    return found


def _parse(name: str, item: "h5py.Dataset") -> _Found:
    """By layers/conv2d_3/vars/0, block1_conv1/block1_conv1/kernel:0 or block1_conv1/block1_conv1_W_1:0."""
    parts = name.replace("\\", "/").split("/")  # Keras on Windows wrote layers\\conv2d
    *owner, last = parts
    if owner[-1:] == ["vars"] and len(owner) > 1:
        part = {"0": "kernel", "1": "bias"}.get(last, last)
        return _Found("/".join(owner[:-2]), owner[-2], part, np.asarray(item))
    last = last.removesuffix(":0")
    part = {"_W_1": "kernel", "_b_1": "bias"}.get(last[-4:], last)
    known = [part for part in owner if part in _LAYERS]
    if known or not owner:
        return _Found("", known[0] if known else "", part, np.asarray(item))
    owner = owner[:-1] if owner[-2:-1] == owner[-1:] else owner
    return _Found("/".join(owner[:-1]), owner[-1], part, np.asarray(item))


def _named(found: list[_Found], path: pathlib.Path) -> tuple[common.Arrays, tuple[str, ...]]:
    """The arrays by the paper's names: by Keras' names for the layers, else by the layers' order."""
    remarks: tuple[str, ...] = ()
    names = {(each.owner, each.layer): _LAYERS.get(each.layer, "") for each in found}
    if "conv1_1" not in names.values():
        names |= _by_order(found, path)
        remarks = ("layers told by their order, as the file does not name them",)
    arrays: common.Arrays = {}
    for owner, layer, part, values in found:
        own = f"{owner}/{layer}" if owner else layer
        name = f"{names[owner, layer] or own}/{part}"
        if name in arrays:
            raise ValueError(f"{path} has {name} twice; save the VGG16 that is meant by itself")
        arrays[name] = values
    return arrays, remarks


def _by_order(found: list[_Found], path: pathlib.Path) -> dict[tuple[str, str], str]:
    """{(owner, 'conv2d_3'): 'conv2_2'}: the model that has 13 convolutions of 3x3, each of what the last one gives."""
    kernels = {(each.owner, each.layer): each.values for each in found if each.part == "kernel"}
    counts = []
    for owner in dict.fromkeys(each.owner for each in found):
        convolutions = _numbered(kernels, owner, "conv2d")
        counts.append(len(convolutions))
        if len(convolutions) != len(_CONVOLUTIONS):
            continue
        shapes = [kernels[key].shape for key in convolutions]
        inputs = [shape[2] for shape in shapes if len(shape) == 4 and shape[:2] == (3, 3)]
        if inputs != [*inputs[:1], *(shape[3] for shape in shapes[:-1] if len(shape) == 4)]:
            break
        dense = _numbered(kernels, owner, "dense")
        top = len(dense) == 3 and len(kernels[dense[0]]) == 49 * shapes[-1][3]
        return dict(zip(convolutions, _CONVOLUTIONS, strict=True)) | (
            dict(zip(dense, ("fc6", "fc7", "fc8"), strict=True)) if top else {}
        )
    listed = common.listed(dict.fromkeys(each.layer for each in found), 3) or "no arrays"
    raise ValueError(
        f"{path} has no block1_conv1, nor 13 convolutions in a row ({max(counts, default=0)} conv2d; {listed});"
        " expected the weights of Keras' VGG16"
    )


def _numbered(kernels: dict[tuple[str, str], np.ndarray], owner: str, kind: str) -> list[tuple[str, str]]:
    """The keys of 'conv2d', 'conv2d_1', ..., 'conv2d_10' in this order."""
    found = {}
    for key in kernels:
        match = re.fullmatch(rf"{kind}(?:_(\d{{1,9}}))?", key[1]) if key[0] == owner else None
        if match:
            found[int(match[1] or 0)] = key
    return [found[number] for number in sorted(found)]


def _as_convolution(kernel: np.ndarray, layer: str, path: pathlib.Path) -> np.ndarray:
    """[in, out] to HWIO. Keras flattens pool5 in the order H, W, C, so fc1's rows are 7 x 7 x 512 in that order."""
    size = torch_names.SIZES[layer]
    if kernel.ndim != 2 or len(kernel) % size**2:
        wanted = "(25088, n)" if layer == "fc6" else "(m, n)"
        raise ValueError(f"{path}: the kernel of {layer} is {kernel.shape}, wanted {wanted} as for 224 x 224 images")
    return common.fully_connected(kernel.T, size, "HWC")

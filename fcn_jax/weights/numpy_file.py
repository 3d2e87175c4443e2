"""NumPy's files of named arrays.

`.npz` under the common names ('conv1_1/kernel', ...); Davi Frossard's vgg16_weights.npz ('conv1_1_W' HWIO, 'fc6_W'
[in, out], ...), whose input is RGB; and `.npy` with a pickled dict {'conv1_1': [kernel HWIO, bias], ...,
'fc6': [[in, out], bias], ...}, as tensorflow-vgg's vgg16.npy. TensorFlow flattens a map in the order H, W, C.
"""

import io
import math
import mmap
import pathlib
import re
import struct
import warnings
import zipfile
from typing import Any

import numpy as np

from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, pickles, torch_names

_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"
_MAX_HEADER = 20_000  # of an array in bytes; NumPy's own limit is 10,000
# A zip whose compressed members claim more than so many times its size is refused: weights shrink by a tenth.
_MAX_RATIO = 100
_FROSSARD = {"W": "kernel", "b": "bias"}


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is `.npy`, or a zip whose first member is that."""
    return head.startswith(_NPY) or first_member(head).endswith(b".npy")


def read(path: pathlib.Path) -> common.Weights:
    """Reads a `.npz` or `.npy` file.

    Raises:
      ValueError: truncated, damaged, without names, or not safe to unpickle.
    """
    with open(path, "rb") as file:
        named = file.read(len(_NPY)) != _NPY
    return _read_npz(path) if named else _read_npy(path)


def _read_npz(path: pathlib.Path) -> common.Weights:
    arrays = {name.removesuffix(".npy"): _array(data, name, path) for name, data in read_zip(path).items()}
    arrays, remarks = _without_prefix(arrays, path)
    if common.first_layer(arrays):
        return _weights(arrays, path, common.OURS, flattened=False)._replace(remarks=remarks)
    if "conv1_1_W" in arrays:
        named = {_common_name(name): array for name, array in arrays.items()}
        return _weights(named, path, torch_names.VGG_RGB, flattened=True)
    listed = ", ".join(list(arrays)[:3]) or "nothing"
    raise ValueError(
        f"{path} has {listed}; wanted an FCN or its encoder, with conv1_1/kernel, conv1_1_W or conv1/kernel"
    )


def _without_prefix(arrays: common.Arrays, path: pathlib.Path) -> tuple[common.Arrays, tuple[str, ...]]:
    """The arrays of a network of which all stand below something, as 'params/conv1_1/kernel', and what was left."""
    found = [
        name.removesuffix(first)
        for first in dict.fromkeys(f"{backbone.first}/kernel" for backbone in BACKBONES.values())
        for name in arrays
        if f"/{name}".endswith(f"/{first}") and name[:3] != "opt"
    ]
    prefix = common.the_plain(found, path) if found else ""
    if not prefix:
        return arrays, ()
    named = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    others = [name for name in arrays if not name.startswith(prefix)]
    return named, (f"stripped from names: {common.listed([prefix])}", *common.passed_over(others))


def _common_name(name: str) -> str:
    """'conv1_1_W' as 'conv1_1/kernel'; other names as they are."""
    found = re.fullmatch("(.+)_([Wb])", name)
    return f"{found[1]}/{_FROSSARD[found[2]]}" if found else name


def _read_npy(path: pathlib.Path) -> common.Weights:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _, _, dtype, offset = _header(memoryview(mapped), "its array", path)
    if not dtype.hasobject:
        raise ValueError(f"{path} holds one array without names; give a .npz, or a .npy with a dict of them")
    mapped.seek(offset)
    array = pickles.load(mapped, path)
    tree = array.item() if isinstance(array, np.ndarray) and array.shape == () else array
    wanted = "wanted a dict {'conv1_1': [kernel, bias], ...}"
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no dict; {wanted}")
    arrays: common.Arrays = {}
    for layer, pair in tree.items():
        if not isinstance(layer, str) or not layer.isprintable():
            raise ValueError(f"{path} has a layer {str(layer)[:80]!r}; {wanted}")
        if not isinstance(pair, list | tuple) or [isinstance(array, np.ndarray) for array in pair] != [True, True]:
            raise ValueError(f"{path}: {layer[:80]} is no pair of arrays; {wanted}")
        arrays |= {f"{layer}/{part}": np.asarray(array) for part, array in zip(("kernel", "bias"), pair, strict=True)}
    if "conv1_1/kernel" not in arrays:
        raise ValueError(f"{path} has {', '.join(list(tree)[:3]) or 'nothing'}; {wanted}")
    return _weights(arrays, path, common.VGG, flattened=True)


def _weights(
    given: common.Arrays, path: pathlib.Path, convention: common.Convention, *, flattened: bool
) -> common.Weights:
    """The arrays as float32; fully connected ones [in, out] as convolutions, if they see a `flattened` map."""
    arrays: common.Arrays = {}
    notes: dict[str, str] = {}
    for name, array in given.items():
        layer, _, part = name.rpartition("/")
        try:
            array, done = torch_names.as_float32(array)
            if flattened and layer in torch_names.SIZES and part == "kernel" and array.ndim == 2:
                done.append(f"reshaped from {torch_names.by(array.shape)}")
                array = common.fully_connected(array.T, torch_names.SIZES[layer], "HWC")
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
        arrays[name] = array
        if done:
            notes[name] = ", ".join(done)
    return common.Weights(arrays, notes, convention)


def _array(data: memoryview, name: str, path: pathlib.Path) -> np.ndarray:
    """The array that the bytes of a .npy file hold, as a view of them."""
    shape, fortran, dtype, offset = _header(data, name, path)
    if dtype.hasobject:
        raise ValueError(f"{path}: {name} holds Python objects, which are not read from a .npz; save arrays of numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - offset:
        raise ValueError(
            f"{path} is truncated or damaged ({name} claims {torch_names.by(shape)} of {dtype} and has"
            f" {len(data) - offset} bytes); get it again"
        )
    return np.ndarray(shape, dtype, data, offset, order="F" if fortran else "C")


def _header(data: memoryview, name: str, path: pathlib.Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, and where the data begin."""
    file = io.BytesIO(data[:_MAX_HEADER])
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # a damaged header can raise anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is truncated or damaged ({name}: {reason}); get it again") from error
    return shape, fortran, dtype, file.tell()


# Zip files, PyTorch's too.


def first_member(head: bytes) -> bytes:
    """The name of the first member of a zip file that begins with `head`, empty if it is none."""
    if not head.startswith(_ZIP) or len(head) < 30:
        return b""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def read_zip(path: pathlib.Path) -> dict[str, memoryview]:
    """The members of a zip file: views of the mapped file, which must stay as it is, where they are not compressed.

    Raises:
      ValueError: truncated, damaged, encrypted, or compressed beyond all measure.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
            if claimed > _MAX_RATIO * len(mapped):
                raise ValueError(f"its members claim {claimed} bytes")
            unprintable = [entry.filename for entry in entries if not entry.filename.isprintable()]
            if unprintable:
                raise ValueError(f"it has a member {unprintable[0][:80]!r}")
            return {entry.filename: _member(archive, entry, mapped) for entry in entries}
    except Exception as error:  # a damaged zip can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} is truncated or damaged ({reason}); get it again") from error


def _member(archive: zipfile.ZipFile, entry: Any, mapped: memoryview) -> memoryview:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:  # bit 0: encrypted, which read refuses
        return memoryview(archive.read(entry))
    # Name and extra field may be longer here than in the directory: PyTorch and NumPy align data by the latter.
    header = mapped[entry.header_offset : entry.header_offset + 30]
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if header[:4] != _ZIP or entry.file_size != entry.compress_size or start + entry.file_size > len(mapped):
        raise ValueError(f"{entry.filename} does not lie where the directory says")
    return mapped[start : start + entry.file_size]

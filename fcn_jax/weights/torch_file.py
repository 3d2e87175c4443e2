"""PyTorch's .pth files, both formats of torch.save, read without PyTorch.

Since 1.6 a zip: `<name>/data.pkl` is a pickle whose tensors refer to storages, `<name>/data/<key>` the raw data of one.
Before, pickles in a row: a magic number, the protocol, the system, the object and the list of the storages' keys; then
for each key an int64, the number of elements, and raw data. Arrays are views of the mapped file, which must stay as it
is while they live.
"""

import io
import math
import mmap
import numbers
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fcn_jax.weights import common, numpy_file, pickles, torch_names

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A piece of memory.

    Attributes:
      kind: a key of _DTYPES.
      key: of its data in the file, which several may share.
      elements: how many these data have.
      start, stop: the elements that are its own.
    """

    kind: str
    key: str
    elements: int
    start: int
    stop: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """An OrderedDict, less what else a state dict hangs on it."""

    def __setstate__(self, state: object) -> None:
        pass


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is of torch.save, or a zip file of folders as it writes them."""
    if head.startswith(b"\x80"):
        return _MAGIC.to_bytes(10, "little") in head[:32]
    first = numpy_file.first_member(head)
    return b"/" in first and not first.endswith(b".npy")


def read(path: pathlib.Path) -> common.Weights:
    """Reads a state dict, bare or in the checkpoint of a trainer.

    Raises:
      ValueError: truncated, damaged, not safe to unpickle, or not VGG16 nor an FCN on it.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    tree, data = _read_zip(path) if zipped else _read_legacy(path)
    arrays = {}
    for name, value in _state_dict(tree, path).items():
        try:
            arrays[name] = _array(value, data)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name!r} {error}") from error
    return torch_names.convert(arrays, path, at_once=_at_once(tree))


# The two formats: what was saved, and the data by the storages' keys.


def _read_zip(path: pathlib.Path) -> tuple[Any, dict[str, memoryview]]:
    members = numpy_file.read_zip(path)
    found = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if not found:
        raise ValueError(f"{path} is a zip file without data.pkl; wanted what torch.save writes")
    folder = found[0]
    if bytes(members.get(f"{folder}byteorder", b"little")) != b"little":
        raise ValueError(f"{path} was written on a big-endian machine; save it on another")
    tree = _load(io.BytesIO(members[f"{folder}data.pkl"]), path, {})
    prefix = f"{folder}data/"
    return tree, {name.removeprefix(prefix): data for name, data in members.items() if name.startswith(prefix)}


def _read_legacy(path: pathlib.Path) -> tuple[Any, dict[str, memoryview]]:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, protocol, system = (_load(mapped, path, {}) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError(f"{path} is of another protocol of torch.save than {_PROTOCOL}; save it anew")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ValueError(f"{path} was written on a big-endian machine; save it on another")
    storages: dict[str, _Storage] = {}
    tree = _load(mapped, path, storages)
    keys = _load(mapped, path, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise ValueError(f"{path} is truncated or damaged (it lists storages that no tensor has); get it again")
    content, at = memoryview(mapped), mapped.tell()
    data = {}
    for key in keys:
        size = int.from_bytes(content[at : at + 8], "little") * _DTYPES[storages[key].kind].itemsize
        at += 8
        if at + size > len(content):
            left = max(len(content) - at, 0)
            raise ValueError(f"{path} is truncated (a storage has {size} bytes, and {left} are left); get it again")
        data[key] = content[at : at + size]
        at += size
    return tree, data


def _load(file: Any, path: pathlib.Path, storages: dict[str, _Storage]) -> Any:
    """Reads a pickle, adding the storages that it refers to."""
    what = "the tensors of a state_dict()"
    return pickles.load(file, path, admitted=_ADMITTED, what=what, refer=_referring(storages))


def _referring(storages: dict[str, _Storage]) -> Callable[[Any], _Storage]:
    def refer(pid: Any) -> _Storage:
        match pid:
            case ("module", *_):
                raise pickles.Forbidden("it holds a whole network, and nothing but its state_dict() is admitted")
            case ("storage", str(kind), key, _, int(elements), *view) if kind in _DTYPES and elements >= 0:
                storage = _Storage(kind, str(key), elements, 0, elements)
            case _:
                raise pickles.Forbidden(f"it refers to {str(pid)[:80]}, which is no storage")
        if storages.setdefault(storage.key, storage)[:3] != storage[:3]:
            raise ValueError(f"storage {storage.key[:40]!r} is of two kinds or sizes")
        match view:
            case [] | [None]:
                return storage
            case [(_, int(start), int(size))] if min(start, size) >= 0 and start + size <= elements:
                return storage._replace(start=start, stop=start + size)
        raise ValueError(f"a view {str(view)[:80]} of a storage of {elements}")

    return refer


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: object) -> _Tensor:
    """Checked before anything is made of the numbers; one larger than its storage could have copies of any size."""
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("a tensor of sizes that are none")
    elements = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    size = storage.stop - storage.start
    if elements > size or (elements and last >= size):
        spans = f"{torch_names.by(shape)} with strides {tuple(strides)} from {offset} on"
        raise ValueError(f"a tensor of {spans} does not fit into its storage of {size}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ADMITTED: Mapping[tuple[str, str], Any] = {
    **pickles.ARRAYS,
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    **{(module, kind): kind for module in ("torch", "torch.cuda") for kind in _DTYPES},
}


# What was saved.


def _state_dict(tree: Any, path: pathlib.Path) -> dict[str, Any]:
    """The first of the object itself and what trainers call the network in it that is a dict with tensors."""
    candidates = [tree]
    if isinstance(tree, dict):
        candidates += [tree.get(key) for key in ("model_state_dict", "state_dict", "model")]
    for state in candidates:
        if isinstance(state, dict) and any(isinstance(value, _Tensor) for value in state.values()):
            return {_text(name): value for name, value in state.items()}
    names = ", ".join(repr(_text(name)) for name in tree)[:80] if isinstance(tree, dict) else ""
    found = f"a dict of {names}" if names else f"a {_kind(tree)}"
    raise ValueError(
        f"{path} holds {found}, wanted tensors by name; save it with torch.save(network.state_dict(), ...)"
    )


def _text(name: Any) -> str:
    return name if isinstance(name, str) else f"a {_kind(name)}"


def _kind(value: Any) -> str:
    return type(value).__name__.strip("_").lower()


def _array(value: Any, data: Mapping[str, memoryview]) -> np.ndarray:
    if isinstance(value, numbers.Number):
        return np.asarray(value)
    if not isinstance(value, _Tensor):
        raise ValueError(f"is a {_kind(value)} among tensors; leave it out")
    storage, offset, shape, strides = value
    dtype = _DTYPES[storage.kind]
    size, wanted = len(data.get(storage.key, b"")), storage.elements * dtype.itemsize
    if size != wanted:
        raise ValueError(f"is of a storage with {size} bytes, wanted {wanted}; the file is damaged, get it again")
    if not wanted:
        return np.zeros(shape, dtype)
    start = (storage.start + offset) * dtype.itemsize
    return np.ndarray(shape, dtype, data[storage.key], start, [stride * dtype.itemsize for stride in strides])


def _at_once(tree: Any) -> bool | None:
    """By the class that pytorch-fcn's trainer notes; its at-once network scales pools without parameters."""
    arch = tree.get("arch") if isinstance(tree, dict) else None
    return {"FCN8sAtOnce": True, "FCN8s": False, "FCN16s": False}.get(_text(arch))

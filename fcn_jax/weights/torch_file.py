"""PyTorch's .pth files, both formats of torch.save, read without PyTorch.

Since 1.6 a zip: `<name>/data.pkl` is a pickle whose tensors refer to storages, `<name>/data/<key>` the raw data of one.
Before, pickles in a row: a magic number, the protocol, the system, the object and the list of the storages' keys; then
for each key an int64, the number of elements, and raw data. Arrays are views of the mapped file, which must stay as it
is while they live.
"""

import io
import math
import mmap
import pathlib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
    # Of quantized tensors, and of types without a storage of their own: bytes of what is passed over.
    "QInt8Storage": np.dtype("i1"),
    "QUInt8Storage": np.dtype("u1"),
    "QInt32Storage": np.dtype("<i4"),
    "UntypedStorage": np.dtype("u1"),
}


_Passed = dict[str, type[pickles.Opaque]]


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
    """Reads a state dict, bare or anywhere in the checkpoint of a trainer; objects of other classes are read past.

    Raises:
      ValueError: truncated, damaged, several networks, none with its tensors, or not VGG16 nor an FCN on it.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    passed: _Passed = {}
    tree, data = _read_zip(path, passed) if zipped else _read_legacy(path, passed)
    keys, state = _network(tree, path)
    arrays = {}
    for name, value in state.items():
        try:
            if isinstance(value, _Tensor):
                arrays[name] = _array(value, data)
            elif name.endswith((".weight", ".bias")):
                raise ValueError(
                    f"is a {common.listed([_kind(value)])}, and no tensor; save the tensors of a state_dict()"
                )
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name[:80]!r} {error}") from error
    weights = torch_names.convert(arrays, path, at_once=_at_once(tree))
    return weights._replace(remarks=(*weights.remarks, *_remarks(tree, keys, passed)))


# The two formats: what was saved, and the data by the storages' keys.


def _read_zip(path: pathlib.Path, passed: _Passed) -> tuple[Any, dict[str, memoryview]]:
    members = numpy_file.read_zip(path)
    found = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if not found:
        raise ValueError(
            f"{path} is a zip file without data.pkl; wanted a state_dict() by torch.save: unpack any other archive"
        )
    folder = found[0]
    if bytes(members.get(f"{folder}byteorder", b"little")) != b"little":
        raise ValueError(f"{path} was written on a big-endian machine; save it on another")
    tree = _load(io.BytesIO(members[f"{folder}data.pkl"]), path, {}, passed)
    prefix = f"{folder}data/"
    return tree, {name.removeprefix(prefix): data for name, data in members.items() if name.startswith(prefix)}


def _read_legacy(path: pathlib.Path, passed: _Passed) -> tuple[Any, dict[str, memoryview]]:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, protocol, system = (_load(mapped, path, {}) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError(f"{path} is of another protocol of torch.save than {_PROTOCOL}; save it anew")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ValueError(f"{path} was written on a big-endian machine; save it on another")
    storages: dict[str, _Storage] = {}
    tree = _load(mapped, path, storages, passed)
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


def _load(file: Any, path: pathlib.Path, storages: dict[str, _Storage], passed: _Passed | None = None) -> Any:
    """Reads a pickle, adding the storages that it refers to, and past all else to `passed`."""
    what = "the tensors of a state_dict()"
    return pickles.load(file, path, admitted=_ADMITTED, what=what, refer=_referring(storages), passed=passed)


def _referring(storages: dict[str, _Storage]) -> Callable[[Any], Any]:
    def refer(pid: Any) -> Any:
        match pid:
            case ("module", type() as kind, *_) if issubclass(kind, pickles.Opaque):
                return kind  # the class of a whole network, which comes with its source
            case ("storage", type() as kind, *_) if issubclass(kind, pickles.Opaque):
                return kind()  # of a type that no weights have
            case ("storage", str(kind), key, _, int(elements), *view) if kind in _DTYPES and elements >= 0:
                storage = _Storage(kind, str(key), elements, 0, elements)
            case _:
                raise pickles.Forbidden(f"it refers to {reprlib.repr(pid)}, which is no storage")
        if storages.setdefault(storage.key, storage)[:3] != storage[:3]:
            raise ValueError(f"storage {storage.key[:40]!r} is of two kinds or sizes")
        match view:
            case [] | [None]:
                return storage
            case [(_, int(start), int(size))] if min(start, size) >= 0 and start + size <= elements:
                return storage._replace(start=start, stop=start + size)
        raise ValueError(f"a view {reprlib.repr(view)} of a storage of {elements}")

    return refer


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> Any:
    """Checked before anything is made of the numbers; one larger than its storage could have copies of any size."""
    if isinstance(storage, pickles.Opaque):
        return storage
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
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): lambda *_: _Dict(),
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, _, arguments, *__: rebuild(*arguments),
    ("torch", "Size"): tuple,
    **{(module, kind): kind for module in ("torch", "torch.cuda", "torch.storage") for kind in _DTYPES},
}


# What was saved.


# How deep a network is looked for.
_DEPTH = 4


def _network(tree: Any, path: pathlib.Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The keys to the state dict in what was saved, and that dict itself, whatever a trainer calls it.

    Of several the one that is not an average. If none has the names of a VGG16, the largest that has weights at all.
    """
    states = {keys: _parts(found) for keys, found in _dicts(tree, (), set())}
    tensors = {
        keys: [name for name, value in state.items() if isinstance(value, _Tensor)] for keys, state in states.items()
    }
    labels = {".".join(keys): keys for keys, names in tensors.items() if torch_names.prefixes(names)}
    if labels:
        keys = labels[common.the_plain(list(labels), path)]
        return keys, states[keys]
    others = [keys for keys, names in tensors.items() if any(name.endswith(".weight") for name in names)]
    if others:
        keys = max(others, key=lambda keys: len(tensors[keys]))
        return keys, states[keys]
    raise ValueError(f"{path} holds {_description(tree)}, wanted tensors by name; {_remedy(tree)}")


def _dicts(value: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """The dicts in what was saved, once each, by the keys that lead there; not those of an optimizer."""
    if id(value) in seen or not isinstance(value, dict | list | tuple) or isinstance(value, _Tensor):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        yield keys, value
    if len(keys) < _DEPTH:
        for key, part in _parts(value).items():
            if "optim" not in key.lower():
                yield from _dicts(part, (*keys, key), seen)


def _remarks(tree: Any, keys: Sequence[str], passed: _Passed) -> tuple[str, ...]:
    """What was passed over on the way to the state dict and in it, and the objects that were not built."""
    names, here = [], tree
    for key in keys:
        parts = _parts(here)
        names += [f"{name} ({_kind(part)})" for name, part in parts.items() if name != key]
        here = parts[key]
    names += [f"{name} ({_kind(part)})" for name, part in _parts(here).items() if not isinstance(part, _Tensor)]
    found = [f"read from: {common.listed(['.'.join(keys)])}"] if keys else []
    objects = [f"objects that were not built: {common.listed(passed)}"] if passed else []
    return (*found, *common.passed_over(names), *objects)


def _parts(value: Any) -> dict[str, Any]:
    """What a dict, a list or a tuple holds."""
    return {_text(key): part for key, part in (value.items() if isinstance(value, dict) else enumerate(value))}


def _description(tree: Any) -> str:
    """'a dict of epoch (int), model (models.Net)'."""
    if isinstance(tree, dict) and tree:
        return f"a dict of {common.listed((f'{_text(name)!r} ({_kind(part)})' for name, part in tree.items()), 4)}"
    return f"a {common.listed([_kind(tree)])}"


def _remedy(tree: Any) -> str:
    if _kind(tree).startswith("__torch__."):
        return "of TorchScript save torch.save(torch.jit.load(PATH).state_dict(), NEW)"
    return "save it with torch.save(network.state_dict(), ...)"


def _text(name: Any) -> str:
    if isinstance(name, int) and abs(name) < 2**63:
        return str(name)
    return name if isinstance(name, str) else f"a {_kind(name)}"


def _kind(value: Any) -> str:
    asked = getattr(value, "asked", "")
    return asked or type(value).__name__.strip("_").lower()


def _array(value: _Tensor, data: Mapping[str, memoryview]) -> np.ndarray:
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

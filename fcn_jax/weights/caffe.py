"""`.caffemodel` files: the networks that the paper released, and VGG16 as its authors published it.

Such a file is one protobuf message, NetParameter of Caffe's src/caffe/proto/caffe.proto. It is read field by field,
without Caffe and without protobuf; the arrays are views of the mapped file, which must stay as it is while they live.
"""

import collections
import math
import mmap
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.models.spec import BACKBONES, Input
from fcn_jax.weights import common

# How a field's content comes: a varint, 8 bytes, a length and as many bytes, or 4 bytes.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}

# NetParameter's fields (name, layers, input, input_dim, force_backward, state, debug_info, input_shape, layer).
_NET_FIELDS = {
    *((number, _LENGTH) for number in (1, 2, 3, 4, 6, 8, 100)),
    *((number, _VARINT) for number in (4, 5, 7)),
}
_V1_LAYERS, _V2_LAYERS = 2, 100
# (name, type, blobs) of V1LayerParameter and LayerParameter.
_LAYER_FIELDS = {_V1_LAYERS: (4, 5, 6), _V2_LAYERS: (1, 2, 7)}
_V1_KINDS = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}
# BlobProto: num, channels, height and width, which `shape` replaced; data as float and as double.
_BLOB_LEGACY_SHAPE, _BLOB_SHAPE, _BLOB_DATA, _BLOB_DOUBLES = (1, 2, 3, 4), 7, 5, 8
_MAX_AXES = 32  # Caffe's
_MAX_TEXT = 1000  # more is no name

# A grouped deconvolution is refused where its dense kernel would have more elements: 2 GiB.
_MAX_DENSE = 2**29


class _Damaged(Exception):
    """What no Caffe has written."""


class _Field(NamedTuple):
    """A field of a message: `value` of a varint, `content` of the others."""

    number: int
    wire: int
    value: int
    content: memoryview


class _Layer(NamedTuple):
    name: str
    kind: str
    blobs: list[memoryview]


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is a NetParameter: fields that it has, up to a layer that begins as one.

    The format has no magic number, and a net's name, the first field, may be empty or missing.
    """
    try:
        for field in _fields(memoryview(head), whole=False):
            if field.number in _LAYER_FIELDS:
                return field.wire == _LENGTH and _begins_layer(field.content)
            if (field.number, field.wire) not in _NET_FIELDS or (field.number == 1 and not _is_text(field.content)):
                return False
    except _Damaged:
        pass
    return False


def read(path: pathlib.Path) -> common.Weights:
    """Reads the layers with blobs, under their own names. The second blob of a Scale is its 'bias'.

    The release's NYUD network of colour and depth has its first layer as conv1_1_bgrd, here conv1_1; those of colour
    and HHA have two streams, `color` and `hha`, and those of SIFT Flow two heads, `sem` and `geo`.

    Returns:
      `convention` is ours where there are score layers, but unknown for 40 classes: the released NYUD networks of
      colour and of HHA have different means and look the same. Without score layers it is VGG16's own. `at_once` is
      told by the Scale layers.

    Raises:
      ValueError: truncated or damaged, none of those networks, or a layer other than Convolution, InnerProduct,
        Deconvolution and Scale has blobs.
    """
    with open(path, "rb") as file:
        net = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")
    try:
        layers = [layer for layer in _layers(net) if layer.blobs]
        backbone = _check_network(layers)
        fc6 = BACKBONES[backbone].fc6
        inputs = _inputs(layers)
        layers = [layer._replace(name=_FIRST.get(layer.name, layer.name)) for layer in layers]
        if backbone == "googlenet":
            layers = [layer._replace(name=layer.name.replace("/", "_")) for layer in layers]
        arrays: common.Arrays = {}
        notes: dict[str, str] = {}
        for layer in layers:
            _convert(layer, fc6, arrays, notes)
        _check_first(arrays, inputs)
    except _Damaged as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); get it again") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    scored = any(name.startswith("score_pool4") for name in arrays)
    at_once = "scale_pool4/scale" in arrays if scored else None
    return common.Weights(arrays, notes, _convention(arrays, inputs), at_once=at_once, inputs=inputs)


# The wire format.


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte from the lowest on, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Damaged("a message ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Damaged("a number runs on for more than ten bytes")


def _fields(message: memoryview, *, whole: bool = True) -> Iterator[_Field]:
    """The fields of a message in turn; if it is not `whole`, the last content may be cut short."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if not number or wire not in (_VARINT, _LENGTH, *_FIXED_SIZES):
            raise _Damaged(f"field {number} of wire type {wire}")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield _Field(number, wire, value, message[:0])
            continue
        size, at = _varint(message, at) if wire == _LENGTH else (_FIXED_SIZES[wire], at)
        if whole and size > len(message) - at:
            raise _Damaged(f"field {number} claims {size} bytes where {len(message) - at} are left")
        yield _Field(number, wire, 0, message[at : at + size])
        at += size


def _content(field: _Field) -> memoryview:
    if field.wire != _LENGTH:
        raise _Damaged(f"field {field.number} is of wire type {field.wire}, wanted {_LENGTH}")
    return field.content


def _value(field: _Field) -> int:
    if field.wire != _VARINT:
        raise _Damaged(f"field {field.number} is of wire type {field.wire}, wanted {_VARINT}")
    return field.value


def _is_text(content: memoryview) -> bool:
    return len(content) <= _MAX_TEXT and all(byte >= 32 for byte in content)


def _text(field: _Field) -> str:
    content = _content(field)
    if not _is_text(content):
        raise _Damaged(f"field {field.number} of {len(content)} bytes is no name")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise _Damaged(f"field {field.number} is no UTF-8") from error


# Caffe's messages.


def _begins_layer(message: memoryview) -> bool:
    """Whether a layer, perhaps cut short, begins with a string: its name, or what is below or above it."""
    for field in _fields(message, whole=False):
        return field.number <= 4 and field.wire == _LENGTH and len(field.content) > 0 and _is_text(field.content)
    return False


def _layers(net: memoryview) -> Iterator[_Layer]:
    for field in _fields(net):
        if field.number in _LAYER_FIELDS:
            yield _layer(_content(field), *_LAYER_FIELDS[field.number])


def _layer(message: memoryview, name_field: int, kind_field: int, blobs_field: int) -> _Layer:
    name, kind, blobs = "", "no type", []
    for field in _fields(message):
        if field.number == name_field:
            name = _text(field)
        elif field.number == kind_field and field.wire == _VARINT:
            kind = _V1_KINDS.get(field.value, f"V1 type {field.value}")
        elif field.number == kind_field:
            kind = _text(field)
        elif field.number == blobs_field:
            blobs.append(_content(field))
    if blobs and not name:
        raise _Damaged("a layer with weights has no name")
    return _Layer(name, kind, blobs)


def _blob(message: memoryview) -> np.ndarray:
    """A blob as float32 of its own shape."""
    legacy: dict[int, int] = {}
    shape: list[int] = []
    floats: list[memoryview] = []
    doubles: list[memoryview] = []
    for field in _fields(message):
        if field.number in _BLOB_LEGACY_SHAPE:
            legacy[field.number] = _value(field)
        elif field.number == _BLOB_SHAPE:
            shape += _dims(_content(field))
        elif field.number == _BLOB_DATA:
            floats.append(_numbers(field, _FIXED32))
        elif field.number == _BLOB_DOUBLES:
            doubles.append(_numbers(field, _FIXED64))
    if legacy:  # before `shape`, and doubles before floats, as Caffe's Blob::FromProto has it
        shape = [legacy.get(number, 0) for number in _BLOB_LEGACY_SHAPE]
    flat = np.frombuffer(_join(doubles), "<f8") if doubles else np.frombuffer(_join(floats), "<f4")
    if min(shape, default=1) < 1 or max(shape, default=1) >= 2**31 or math.prod(shape) != flat.size:
        signed = [dim - 2**64 if dim >= 2**63 else dim for dim in shape]
        raise _Damaged(f"a blob of shape {_by(signed)} with {flat.size} values")
    with np.errstate(over="ignore"):  # whoever reads weights refuses infinite ones
        return flat.astype(np.float32, copy=False).reshape(shape)


def _dims(message: memoryview) -> list[int]:
    """`dim` of a BlobShape, packed or one by one."""
    dims = []
    for field in _fields(message):
        if field.number != 1:
            continue
        if field.wire == _VARINT:
            dims.append(field.value)
        else:
            packed, at = _content(field), 0
            while at < len(packed) and len(dims) <= _MAX_AXES:
                dim, at = _varint(packed, at)
                dims.append(dim)
        if len(dims) > _MAX_AXES:
            raise _Damaged(f"a blob of more than {_MAX_AXES} axes")
    return dims


def _numbers(field: _Field, wire: int) -> memoryview:
    """The bytes of packed numbers, or of a single one, of the fixed size of `wire`."""
    content = field.content if field.wire == wire else _content(field)
    if len(content) % _FIXED_SIZES[wire]:
        raise _Damaged(f"{len(content)} bytes of numbers of {_FIXED_SIZES[wire]} bytes")
    return content


def _join(chunks: Sequence[memoryview]) -> bytes | memoryview:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


# The networks.


# The first layers and the scores of networks with one of each, with depth, with two streams, and with two heads.
_FIRSTS = ({"conv1_1"}, {"conv1_1_bgrd"}, {"conv1_1color", "conv1_1hha"})
_SCORES = ({"score_frcolor", "score_frhha"}, {"score_fr_sem", "score_fr_geo"})
_FIRST = {"conv1_1_bgrd": "conv1_1"}


def _inputs(layers: Sequence[_Layer]) -> tuple[Input, ...]:
    """What the release's networks see beside colour; empty for colour alone."""
    names = {layer.name for layer in layers}
    if "conv1_1_bgrd" in names:
        return Input("colour", 3), Input("depth", 1)
    if "conv1_1color" in names:
        return Input("colour", 3, "color"), Input("hha", 3, "hha")
    return ()


def _check_first(arrays: common.Arrays, inputs: Sequence[Input]) -> None:
    """ValueError where the first layers do not take the channels of the inputs."""
    channels: dict[str, int] = {}
    for given in inputs or (Input("colour", 3),):
        channels[given.stream] = channels.get(given.stream, 0) + given.channels
    for stream, wanted in channels.items():
        for name in (f"conv1_1{stream}", "conv1"):
            found = arrays[f"{name}/kernel"].shape[2] if f"{name}/kernel" in arrays else wanted
            if found != wanted:
                raise ValueError(f"layer {name!r} takes {found} channels, and {wanted} are known by their names")


def _check_network(layers: Sequence[_Layer]) -> str:
    """The backbone; ValueError for other layers than those of one of the networks, by their names."""
    only = (
        "only VGG16, CaffeNet, GoogLeNet, FCNs on them and the release's networks of several streams or heads are read"
    )
    names = [layer.name for layer in layers]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"several layers are called {', '.join(repeated)}; get a file as Caffe saves it")
    convolutions = [layer.name for layer in layers if layer.kind == "Convolution"]
    firsts = {name for name in convolutions if name.startswith("conv1_1")}
    heads = {name for name in convolutions if name.startswith("score_fr")}
    if (firsts and firsts not in _FIRSTS) or (len(heads) > 1 and heads not in _SCORES):
        odd = heads if not firsts or firsts in _FIRSTS else firsts
        raise ValueError(f"it has {', '.join(sorted(odd))}; {only}")
    if firsts:
        return "vgg16"
    if {"conv1", "conv5"} <= set(names):
        return "alexnet"
    if "conv1/7x7_s2" in names:
        return "googlenet"
    others = ", ".join(names[:3]) or "no weights at all"
    raise ValueError(f"it has no conv1_1 but {others}; {only}")


def _convert(layer: _Layer, fc6: int, arrays: common.Arrays, notes: dict[str, str]) -> None:
    """Adds the arrays of a layer, and what is to be noted of them; fc6 saw a map of `fc6` x `fc6` cells."""
    title = f"layer {layer.name!r} ({layer.kind})"
    if layer.kind not in _KINDS:
        raise ValueError(f"{title} has weights, and an FCN has them in {', '.join(_KINDS)} layers only")
    parts, wanted, convert = _KINDS[layer.kind]
    if len(layer.blobs) not in wanted:
        raise ValueError(f"{title} has {len(layer.blobs)} blob(s), wanted {' or '.join(map(str, wanted))}")
    try:
        blobs = [_blob(message) for message in layer.blobs]
    except _Damaged as error:
        raise _Damaged(f"{title}: {error}") from error
    try:
        first, note = convert(layer.name, blobs[0], fc6)
        converted = [first, *(_vector(blob, first.shape[-1]) for blob in blobs[1:])]
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from error
    arrays |= {f"{layer.name}/{part}": array for part, array in zip(parts, converted, strict=False)}
    if note:
        notes[f"{layer.name}/{parts[0]}"] = note


def _convolution(name: str, blob: np.ndarray, fc6: int) -> tuple[np.ndarray, str]:
    """[O, I, kh, kw] to HWIO."""
    _check_axes(blob, 4)
    return blob.transpose(2, 3, 1, 0), ""


def _inner_product(name: str, blob: np.ndarray, fc6: int) -> tuple[np.ndarray, str]:
    """[O, I], or [1, 1, O, I] before shapes, to HWIO; all but fc6 saw a map of one cell."""
    if blob.ndim == 4 and blob.shape[:2] == (1, 1):
        blob = blob[0, 0]
    _check_axes(blob, 2)
    return common.fully_connected(blob, fc6 if name == "fc6" else 1, "CHW"), f"reshaped from {_by(blob.shape)}"


def _deconvolution(name: str, blob: np.ndarray, fc6: int) -> tuple[np.ndarray, str]:
    """[C, C, kh, kw], or [C, 1, kh, kw] of as many groups as channels, to the dense [kh, kw, C, C] (in, out)."""
    _check_axes(blob, 4)
    channels, outputs, *size = blob.shape
    if outputs == channels:
        return blob.transpose(2, 3, 0, 1), ""
    if outputs != 1 or blob.size * channels > _MAX_DENSE:
        raise ValueError(f"its weight is {_by(blob.shape)}, wanted CxCxHxW, or Cx1xHxW of at most 2 GiB when dense")
    dense = np.zeros((*size, channels, channels), np.float32)
    dense[:, :, range(channels), range(channels)] = blob[:, 0].transpose(1, 2, 0)
    return dense, f"made dense from {_by(blob.shape)}"


def _scale(name: str, blob: np.ndarray, fc6: int) -> tuple[np.ndarray, str]:
    return _vector(blob, blob.size), ""


def _vector(blob: np.ndarray, size: int) -> np.ndarray:
    """[size], which was [1, 1, 1, size] before shapes."""
    if blob.shape[-1:] != (size,) or blob.size != size:
        raise ValueError(f"a blob is {_by(blob.shape)}, wanted {size}")
    return blob.reshape(size)


def _check_axes(blob: np.ndarray, axes: int) -> None:
    if blob.ndim != axes:
        raise ValueError(f"its weight is {_by(blob.shape)}, wanted {axes} axes")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _convention(arrays: common.Arrays, inputs: Sequence[Input]) -> common.Convention | None:
    if inputs:
        return common.NYUD_COLOR_HHA if inputs[-1].name == "hha" else common.NYUD_COLOR_D
    if "score_fr_geo/kernel" in arrays:
        return common.SIFT_FLOW
    classes = {a.shape[-1] for name, a in arrays.items() if name.startswith("score") and name.endswith("/kernel")}
    if not classes:
        return common.own_convention(arrays)
    return None if 40 in classes else common.OURS


_Convert = Callable[[str, np.ndarray, int], tuple[np.ndarray, str]]
# What the blobs of a layer are called, how many there may be, and what is done to the first: array and note.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[int, ...], _Convert]] = {
    "Convolution": (("kernel", "bias"), (2,), _convolution),
    "InnerProduct": (("kernel", "bias"), (2,), _inner_product),
    "Deconvolution": (("kernel",), (1,), _deconvolution),
    "Scale": (("scale", "bias"), (1, 2), _scale),
}

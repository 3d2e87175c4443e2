"""One array out of a struct of a MATLAB file, version 5, such as SBD's annotations are.

SciPy reads such files too, and on some damaged ones ends the process.
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

# Types of an element and classes of an array: MAT-File Format, tables 1-1 and 1-3.
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_STRUCT = 2
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_HEADER = 128
_MAX = 2**28  # bytes of a compressed variable


class _Matrix(NamedTuple):
    kind: int
    shape: tuple[int, ...]
    name: bytes
    parts: memoryview  # the elements behind the name


def read_field(data: bytes, variable: str, field: str) -> np.ndarray:
    """The numbers in `field` of the struct `variable`, [rows, columns, ...] of the dtype that MATLAB had.

    Raises:
      ValueError: no such file, variable or field, or damaged.
    """
    if data[124:128] != b"\0\1IM":
        raise ValueError("it is no MATLAB file of version 5 from a little-endian machine")
    found = _find(memoryview(data)[_HEADER:], variable)
    if found.kind != _STRUCT or math.prod(found.shape) != 1:
        raise ValueError(f"its {variable} is no single struct")
    return _numbers(_matrix(_field(found.parts, field)), field)


def read_variable(data: bytes, variable: str) -> np.ndarray:
    """The numbers in the variable itself, as read_field; ValueError likewise."""
    if data[124:128] != b"\0\1IM":
        raise ValueError("it is no MATLAB file of version 5 from a little-endian machine")
    return _numbers(_find(memoryview(data)[_HEADER:], variable), variable)


def _find(elements: memoryview, variable: str) -> _Matrix:
    while elements:
        kind, content, elements = _element(elements)
        if kind == _COMPRESSED:
            kind, content, _ = _element(_inflated(content))
        if kind == _MATRIX and (matrix := _matrix(content)).name == variable.encode():
            return matrix
    raise ValueError(f"it has no variable {variable}")


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Type and content of the first element, and what comes behind it."""
    if len(data) < 8:
        raise ValueError("it ends within a tag")
    kind, size = struct.unpack_from("<II", data)
    start, end = 8, 8 + size + (0 if kind == _COMPRESSED else -size % 8)
    if kind >> 16:  # a content of up to four bytes, within the tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
    if start + size > min(end, len(data)):
        raise ValueError(f"an element claims {size} bytes where {len(data) - start} are left")
    return kind, data[start : start + size], data[end:]


def _typed(data: memoryview, wanted: int) -> tuple[memoryview, memoryview]:
    kind, content, rest = _element(data)
    if kind != wanted:
        raise ValueError(f"an element is of type {kind}, wanted {wanted}")
    return content, rest


def _inflated(content: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(content, _MAX)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError(f"a compressed variable is cut short, or has more than {_MAX} bytes")
    return memoryview(whole)


def _matrix(content: memoryview) -> _Matrix:
    flags, rest = _typed(content, _UINT32)
    sizes, rest = _typed(rest, _INT32)
    name, rest = _typed(rest, _INT8)
    if len(flags) != 8 or len(sizes) % 4:
        raise ValueError("an array has no class or no shape")
    return _Matrix(flags[0], struct.unpack(f"<{len(sizes) // 4}i", sizes), bytes(name), rest)


def _field(parts: memoryview, field: str) -> memoryview:
    """The content of a field's matrix. The names come first, each filled up with zeros to the same length."""
    size, rest = _typed(parts, _INT32)
    names, rest = _typed(rest, _INT8)
    length = int.from_bytes(size, "little")
    for start in range(0, len(names), max(length, 1)):
        content, rest = _typed(rest, _MATRIX)
        if bytes(names[start : start + length]).rstrip(b"\0") == field.encode():
            return content
    raise ValueError(f"it has no field {field}")


def _numbers(matrix: _Matrix, name: str) -> np.ndarray:
    """MATLAB stores numbers by columns, as the smallest type that holds them all."""
    if matrix.kind not in _CLASSES:
        raise ValueError(f"its {name} is no array of numbers")
    kind, content, _ = _element(matrix.parts)
    stored = np.dtype(_STORED.get(kind, "V1"))
    if (
        kind not in _STORED
        or min(matrix.shape, default=-1) < 0
        or math.prod(matrix.shape) * stored.itemsize != len(content)
    ):
        raise ValueError(f"its {name} of shape {list(matrix.shape)[:9]} has {len(content)} bytes of type {kind}")
    with np.errstate(invalid="ignore"):
        return np.frombuffer(content, stored).astype(_CLASSES[matrix.kind]).reshape(matrix.shape, order="F")

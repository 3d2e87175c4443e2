"""Paths and files: where a run and its checkpoints may lie, texts whole or not at all, room on the disk."""

import errno
import os
import pathlib
import re
import shutil

# What the libraries below Orbax misread in a path: a separator, addresses in a cloud, bytes that Python has put aside.
_MISREAD = {
    r"\\": "a backslash",
    r"^/(gs|s3|az|hf)/|(gs|s3):/": "the look of an address in a cloud",
    r"[\ud800-\udfff]": "a name that is not UTF-8",
}


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """`path` without `~` and `..`, absolute: as everything that reads and writes checkpoints understands it.

    Raises:
      ValueError: it has one of `_MISREAD`, or begins with a home directory that there is not.
    """
    try:
        given = pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: there is no such home directory: begin with ./ or /") from None
    whole = given.resolve() if ".." in given.parts else given.absolute()
    for pattern, reason in _MISREAD.items():
        if re.search(pattern, f"{whole}/"):
            remedy = "which checkpoints cannot have: name another folder or a link"
            raise ValueError(f"{str(whole)!r} has {reason}, {remedy}")
    return whole


def write(path: pathlib.Path, text: str) -> None:
    """All of it or nothing, whoever else writes it."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """As `write`."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    partial.replace(path)


def check_room(folder: pathlib.Path, needed: int, what: str) -> None:
    """OSError if fewer than `needed` bytes are free for `what`. Who writes in threads finds a full disk too late."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{what} would take {needed / 1e6:.1f} MB, of which {free / 1e6:.1f} are free"
        raise OSError(errno.ENOSPC, message, str(folder))

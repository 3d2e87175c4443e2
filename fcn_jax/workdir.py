"""A run's folder: where it may lie, one run at a time, files whole or not at all, which of its processes are alive."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator

# Beside checkpoints/ and the rest; each process of a run holds a lock on the file of its number while it lives.
_LOCKS = ".processes"
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


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, process: int = 0) -> Iterator[None]:
    """Holds `workdir` for this process. The kernel lets go of it when the process ends, in whatever way.

    Raises:
      ValueError: another run works there.
    """
    (workdir / _LOCKS).mkdir(parents=True, exist_ok=True)
    with open(_lock(workdir, process), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"another run works in {workdir} ({file.read().strip()}): wait for its end, or use another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def dead(workdir: pathlib.Path, processes: int) -> list[str]:
    """Those of a run's processes whose lock is free: '1 (process 4711 on host)'."""
    found = []
    for index in range(processes):
        with contextlib.suppress(OSError), open(_lock(workdir, index), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            file.seek(0)
            found.append(f"{index} ({file.read().strip()})")
    return found


def await_end(workdir: pathlib.Path, process: int) -> None:
    """Returns when a process of the run has ended."""
    with open(_lock(workdir, process), "a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def write(path: pathlib.Path, text: str) -> None:
    """All of it or nothing, whoever else writes it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)


def check_room(folder: pathlib.Path, needed: int, what: str) -> None:
    """OSError if fewer than `needed` bytes are free for `what`. Who writes in threads finds a full disk too late."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{what} would take {needed / 1e6:.1f} MB, of which {free / 1e6:.1f} are free"
        raise OSError(errno.ENOSPC, message, str(folder))


def _lock(workdir: pathlib.Path, process: int) -> pathlib.Path:
    return workdir / _LOCKS / str(process)

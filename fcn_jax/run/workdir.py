"""A run's folder: one run at a time, and which of its processes are alive."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

# Beside checkpoints/ and the rest; each process of a run holds a lock on the file of its number while it lives.
_LOCKS = ".processes"


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


def _lock(workdir: pathlib.Path, process: int) -> pathlib.Path:
    return workdir / _LOCKS / str(process)

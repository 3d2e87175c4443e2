"""Several processes as one run, by jax.distributed: joining, and what only one of them does."""

import contextlib
import glob
import importlib.util
import logging
import os
import pathlib
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from fcn_jax.run import workdir as workdir_lib
from fcn_jax.run.stop import Stopped

log = logging.getLogger(__name__)

# After so many seconds without a sign of life a process counts as dead, and JAX ends the others.
_HEARTBEAT = 60
_INTERVAL = 1  # seconds between two looks at the other processes
_NAMING = 5


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, saves: bool = True
) -> None:
    """Joins the job that the arguments or else the environment describe; alone, does nothing. Before any computation.

    Args:
      coordinator: HOST:PORT of process 0. processes: how many there are. process: which this is, from 0 on.
      saves: that SIGTERM waits for stop.Stop, so that a step can be saved; else it ends the process at once.

    Raises:
      ValueError: some of the three are given and others not, or `process` is none of `processes`.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError("--coordinator=HOST:PORT, --processes and --process belong together: give all three or none")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process={process}: with --processes={processes} it is 0 to {processes - 1}")
    if all(given) or described_by(os.environ):
        jax.config.update("jax_enable_preemption_service", saves)
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=_HEARTBEAT)


def described_by(environment: Mapping[str, str]) -> bool:
    """Whether jax.distributed finds a job by itself: an address, several Slurm tasks, or a Cloud TPU machine."""
    slurm = "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    return "JAX_COORDINATOR_ADDRESS" in environment or slurm or _on_cloud_tpu()


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def check_shared(workdir: pathlib.Path) -> None:
    """Raises ValueError on every process unless all of them see the same folder `workdir`."""
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    mark = workdir / f".shared-{token}"
    if is_main():
        mark.touch()
    multihost_utils.sync_global_devices("marked")
    seen = multihost_utils.process_allgather(np.array([mark.exists()]))
    if is_main():
        mark.unlink()
    blind = np.flatnonzero(~seen.ravel()).tolist()
    if blind:
        raise ValueError(
            f"{workdir} is not the same folder on every host (process {', '.join(map(str, blind))} does not see what"
            " process 0 writes there): give a --workdir on storage that all of them share"
        )


def wait_for_all(point: str) -> None:
    """Returns when every process has come to `point`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def all_of(condition: bool) -> bool:
    """Whether it holds on every process."""
    return total(not condition) == 0


def total(number: int) -> int:
    """The sum over all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array([number])).sum())


def of_main(number: int) -> int:
    """The number that the first process has."""
    return total(number if is_main() else 0)


@contextlib.contextmanager
def together(workdir: pathlib.Path) -> Iterator[None]:
    """While it is open, the end of another process of the run ends this one too, with a line that names it.

    JAX's own heartbeats do so after a minute, and without a name that a person knows; computations that miss a process
    raise an error or wait. Where the storage has no locks across hosts, the heartbeats alone are left.
    """
    if jax.process_count() == 1:
        yield
        return
    finished = threading.Event()
    if all_of(not workdir_lib.dead(workdir, jax.process_count())):
        threading.Thread(target=_watch, args=(workdir, jax.process_count(), finished), daemon=True).start()
    elif is_main():
        log.warning("%s has no locks across hosts: that a process ends is noticed after %d s", workdir, _HEARTBEAT)
    try:
        yield
    except Stopped:
        finished.set()
        wait_for_all("stopped")
        raise
    except KeyboardInterrupt:
        finished.set()
        raise
    except Exception:  # by what was under way, a process that is missing is an error of JAX, of Orbax or of Python
        time.sleep(_NAMING)  # for the watch to name it
        finished.set()  # it is this one's own error, and others that have the same are soon gone
        raise
    finished.set()
    wait_for_all("finished")


def _watch(workdir: pathlib.Path, processes: int, finished: threading.Event) -> None:
    """Ends this process when another has ended. The first looks at all, the others wait for the end of the first."""
    first = is_main()
    found: list[str] = []
    while not found and not finished.is_set():
        if first:
            time.sleep(_INTERVAL)
        else:
            workdir_lib.await_end(workdir, 0)
        found = workdir_lib.dead(workdir, processes)
    if not finished.is_set():
        # As it is: whatever would be tidied up waits for the other one.
        remedy = "see what it wrote last; the same command on all hosts goes on from the last checkpoint"
        print(f"process {', '.join(found)} of the run is gone: {remedy}", file=sys.stderr, flush=True)
        os._exit(1)


def _on_cloud_tpu() -> bool:
    """Whether this is a machine with TPU chips and JAX for them."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None

"""Being stopped: Ctrl-C, SIGTERM and the like let a step end and be saved, on all processes at the same step."""

import itertools
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

# Slurm's --signal can be any of them; SIGHUP is a terminal that is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# JAX stops all processes at one more than the highest number that any has asked with. Counted from 1, since that is
# where a signal before the first question stops them, which the steps of a resumed run are far beyond.
_questions = itertools.count(1)


class Stopped(BaseException):
    """The run was stopped from outside and is saved; `code` is the exit code that shells count for the signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


class Stop:
    """While it is open, the first signal asks for a stop; a second one is as usual, and ends the process at once.

    In a run that has joined a job SIGTERM belongs to JAX, which tells all processes of it and agrees on a step; the
    others are handed on to it. SIGHUP that nohup has ignored stays ignored.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._together = jax.distributed.is_initialized()
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # only there Python takes signals
            mine = [number for number in _SIGNALS if self._takes(number)]
            self._usual = {number: signal.signal(number, self._ask) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def asked(self) -> bool:
        """Whether to stop after this step, the same on every process. To be called at each step, by all of them."""
        if self._together and multihost_utils.reached_preemption_sync_point(next(_questions)):
            self._signal = self._signal or signal.SIGTERM
            return True
        return bool(self._signal) and not self._together

    def stopped(self) -> Stopped:
        """What to raise once the step is saved."""
        return Stopped(self._signal)

    def _takes(self, number: int) -> bool:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            return False
        return not (self._together and number == signal.SIGTERM)

    def _ask(self, number: int, _: Any) -> None:
        self._signal = number
        self._restore()
        # Past logging: the signal may have come while it writes, and its files cannot be entered twice.
        os.write(2, b"stopping when this step is done and saved; again stops at once\n")
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        self._usual = {}

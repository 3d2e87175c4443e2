#!/usr/bin/env python3
"""Starts N processes of one run on this machine's CPU: python launch/local.py 2 -- --config=configs/fcn8s.py:demo

For trying a run of several processes without a cluster. Needs nothing but Python and fcn_jax's dependencies.
"""

import argparse
import contextlib
import os
import pathlib
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
_TERMINATION = 10  # seconds between SIGTERM and SIGKILL, at most
_OUTPUT = 5  # seconds that output may still come after a process has ended
_DEVICES = "--xla_force_host_platform_device_count"
_print_lock = threading.Lock()


class Parser(argparse.ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """An integer from 1 on."""
    number = int(text) if re.fullmatch(r"\d+", text) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return number


def seconds(text: str) -> float:
    """A number from 0 on."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return float(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, and as `rest` what stands after --."""
    parser = Parser(
        prog="local.py",
        usage="launch/local.py N [options] -- --config=FILE [options of fcn_jax.main]",
        description=__doc__.split("\n\n")[1],
        allow_abbrev=False,
    )
    parser.add_argument("processes", metavar="N", type=positive, help="how many processes")
    parser.add_argument("--devices-per-process", metavar="D", type=positive, default=1, help="CPU devices; default 1")
    parser.add_argument("--port", type=positive, help="of process 0 on 127.0.0.1; default a free one")
    parser.add_argument(
        "--grace",
        metavar="S",
        type=seconds,
        default=120.0,
        help="seconds that the others have to end by themselves once one has failed; default 120",
    )
    parser.add_argument("--module", default="fcn_jax.main", help="what each process runs; default fcn_jax.main")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    own, rest = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    options, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}: what fcn_jax.main is to get stands after --")
    options.rest = rest
    return options


def environment(devices: int, port: int) -> dict[str, str]:
    """What a process has beside, or instead of, the variables here."""
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.split("=")[0] != _DEVICES]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # JAX would listen on every address of the machine
        "XLA_FLAGS": " ".join([*others, f"{_DEVICES}={devices}"]),
        "PYTHONPATH": os.pathsep.join(path),  # this clone, whatever folder the command is given in
        "PYTHONUNBUFFERED": "1",
    }


def command(options: argparse.Namespace, port: int, process: int) -> list[str]:
    """Of process number `process`."""
    place = (f"--coordinator=127.0.0.1:{port}", f"--processes={options.processes}", f"--process={process}")
    return [sys.executable, "-m", options.module, *options.rest, *place]


def free_port() -> int:
    """A TCP port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """The processes, each a session of its own: Ctrl-C of the terminal reaches them through here alone, and once."""

    def __init__(self, commands: Sequence[Sequence[str]], variables: dict[str, str]):
        self.ended: list[tuple[int, int]] = []  # (process, its exit code or minus its signal), as they ended
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ends: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        try:
            for index, arguments in enumerate(commands):
                self._start(index, arguments, variables)
        except BaseException:
            self.send(signal.SIGKILL)
            raise

    def _start(self, index: int, arguments: Sequence[str], variables: dict[str, str]) -> None:
        process = subprocess.Popen(
            arguments,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
            reader = threading.Thread(target=_copy, args=(source, target, f"[{index}] ".encode()), daemon=True)
            reader.start()
            self._readers.append(reader)
        threading.Thread(target=lambda: self._ends.put((index, process.wait())), daemon=True).start()

    def send(self, number: int) -> None:
        """A signal to every process that has not ended; SIGKILL to what they started too."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    if number == signal.SIGKILL:
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)

    def wait(self, until: float | None = None) -> bool:
        """Whether all have ended; if not, one has failed, or the time `until` (time.monotonic) has come."""
        while len(self.ended) < len(self._processes):
            try:
                rest = None if until is None else max(until - time.monotonic(), 0)
                self.ended.append(self._ends.get(timeout=rest))
            except queue.Empty:
                return False
            if until is None and self.ended[-1][1] != 0:
                return len(self.ended) == len(self._processes)
        return True

    def drain(self) -> None:
        """The rest of their output."""
        deadline = time.monotonic() + _OUTPUT
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0))


def _copy(source: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
    for line in source:
        with _print_lock, contextlib.suppress(BrokenPipeError):
            target.write(prefix + line.removesuffix(b"\n") + b"\n")
            target.flush()


def run(job: Job, grace: float) -> None:
    """Until every process has ended: by itself, or, once one has failed and `grace` is over, by force."""
    if job.wait():
        return
    if job.wait(time.monotonic() + grace):
        return
    job.send(signal.SIGTERM)
    if not job.wait(time.monotonic() + min(grace, _TERMINATION)):
        job.send(signal.SIGKILL)
        job.wait(time.monotonic() + _TERMINATION)


def summary(ended: Sequence[tuple[int, int]]) -> tuple[int, str]:
    """The exit code, and how the processes ended in one line."""
    failed = [position for position, (_, code) in enumerate(ended) if code != 0]
    if not failed:
        return 0, f"all {len(ended)} processes ended with exit code 0"
    (process, code), later = ended[failed[0]], ended[failed[0] + 1 :]
    line = f"process {process} ended with {_how(code)}"
    if later:
        line += "; after it " + ", ".join(f"process {process} with {_how(code)}" for process, code in later)
    return (code if code > 0 else 128 - code), line


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    options = parse(arguments)
    port = options.port or free_port()
    variables = environment(options.devices_per_process, port)
    commands = [command(options, port, process) for process in range(options.processes)]
    if options.dry_run:
        for words in commands:
            print(*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(words))
        return 0
    early: list[int] = []  # signals that came before there was a job
    take: Callable[[int], None] = early.append
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda number, _: take(number))
    job = Job(commands, variables)
    take = job.send
    for number in early:
        job.send(number)
    try:
        run(job, options.grace)
    finally:
        job.send(signal.SIGKILL)
    job.drain()
    code, line = summary(job.ended)
    print(f"local.py: {line}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Damaged and hostile files for everything that reads one: python tests/fuzz.py --target=images --inputs=10000

Each input is a small valid file (tests/fuzz_targets.py), changed (tests/mutations.py). It is to be read, or one line
names the file and what is wrong; no traceback, no warning, nothing printed, no hang, no memory out of proportion to
the file. The same --seed gives the same inputs; those that break a rule are kept in --keep. For Linux.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import logging
import os
import pathlib
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from fuzz_targets import TARGETS, Target
from tqdm import tqdm

from fcn_jax import cli

SECONDS = 5.0  # of CPU, for an input
SILENT = 120  # seconds of a call that Python cannot interrupt, before the process ends with its traceback
BASE, FACTOR = 200e6, 100  # bytes that any input may take, and how many for each of its own
PIXEL = 24  # bytes that each pixel may take that an image's header speaks of
SPACE = 4 << 30  # bytes of new address space, after which an allocation fails
LINE = 5000  # characters
PACKAGE = pathlib.Path(cli.__file__).parent


@dataclasses.dataclass
class Report:
    """What came of the inputs of a target."""

    inputs: int = 0
    fine: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by kind
    slowest: float = 0.0  # seconds of CPU
    largest: int = 0  # bytes

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {kind}" for kind, count in self.refused.most_common()) or "0"
        faults = sum(map(len, self.faults.values()))
        return (
            f"{self.inputs} inputs: {self.fine} fine, refused: {refused}; {faults} faults of {len(self.faults)} kinds;"
            f" slowest {self.slowest:.2f} s, largest allocation {self.largest / 1e6:.0f} MB"
        )


class Fault(BaseException):
    """A rule that was broken. Nothing but this file catches it."""


def run(name: str, target: Target, inputs: int, seed: int, keep: pathlib.Path, show: Any = None) -> Report:
    """Tries `inputs` inputs; those that break a rule are kept in `keep`. `show` is where the bar goes, if anywhere."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _watched() as printed:
        where = pathlib.Path(folder)
        seeds = target.make(where)
        bar = tqdm(range(inputs), name, unit=" inputs", file=show, disable=show is None, mininterval=1)
        for index in bar:
            rng = random.Random(f"{seed} {name} {index}")
            file, other = (rng.choice(sorted(seeds)) for _ in range(2))
            data = target.mutate(rng, seeds[file], seeds[other])
            path = where / file
            path.unlink(missing_ok=True)  # not in place: an earlier file may be mapped still
            path.write_bytes(data)
            fault = _try(report, target, path, where, data, printed)
            path.write_bytes(seeds[file])
            if fault:
                fault = fault.replace(folder, "FOLDER")
                found = report.faults.setdefault(_kind(fault), [])
                found.append(f"input {index}: {fault[:300]}")
                if len(found) <= 3:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{seed}-{index}-{path.name}").write_bytes(data)
    return report


def _try(
    report: Report, target: Target, path: pathlib.Path, where: pathlib.Path, data: bytes, printed: "Printed"
) -> str:
    """Reads one input and counts what comes of it; the rule that it breaks, or nothing."""
    report.inputs += 1
    before, began = _memory(reset=True), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again and again, as some libraries catch everything
    faulthandler.dump_traceback_later(SILENT, exit=True, file=printed.stderr)
    try:
        kind = _outcome(target, path, where)
    except Fault as fault:
        return str(fault)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        took, grown = time.process_time() - began, _memory() - before
        report.slowest, report.largest = max(report.slowest, took), max(report.largest, grown)
    text = printed.take()
    if text:
        return f"printed {text}"
    if took > SECONDS:
        return f"more than {SECONDS} s"
    allowed = BASE + FACTOR * len(data) + PIXEL * target.pixels(data)
    if grown > allowed:
        return f"memory beyond {allowed / 1e6:.0f} MB"
    report.fine += kind == "fine"
    report.refused.update([kind] if kind != "fine" else [])
    return ""


def _outcome(target: Target, path: pathlib.Path, where: pathlib.Path) -> str:
    """'fine', or the kind of the error that says in a line what is wrong; anything else is a Fault."""
    try:
        target.call(path, where)
        return "fine"
    except Exception as error:
        hidden: BaseException | None = error
        while hidden:  # also behind an error that hides it
            if isinstance(hidden, Warning | MemoryError):
                raise Fault(_told(hidden)) from None
            hidden = hidden.__context__
        told = _told(error)
        try:
            line = cli.explain(error)
        except Exception:
            raise Fault(told) from None
        for wrong, reason in (
            (str(where) not in line, "does not name the file"),
            (len(line) > LINE, "is too long"),
            (not line.isprintable(), "is not printable"),
        ):
            if wrong:
                raise Fault(f"what it says {reason}: {told}") from None
        return type(error).__name__


def _told(error: BaseException) -> str:
    """An error with the innermost function of fcn_jax that it passed."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [code for code in frames if pathlib.Path(code.co_filename).is_relative_to(PACKAGE)]
    at = f"{pathlib.Path(ours[-1].co_filename).stem}.{ours[-1].co_name}" if ours else "tests"
    return f"{type(error).__name__} in {at}: {' '.join(str(error).split())}"


def _kind(fault: str) -> str:
    """A fault less what differs from input to input."""
    return re.sub(r"[\"'].*|0x[0-9a-f]+|[-+\d][\d.]*", "#", fault)[:100]


def _memory(reset: bool = False) -> int:
    """The most bytes that this process has had in memory since the last reset; after a reset, those that it has."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024


def _interrupt(*_: object) -> None:
    raise Fault(f"more than {SECONDS} s")


class Printed:
    """What goes to standard output and error, by whatever library, into a file; `stderr` is where it went before."""

    def __enter__(self) -> "Printed":
        self._file = tempfile.TemporaryFile()
        self._kept = self._redirect([self._file.fileno()] * 2)
        self.stderr = self._kept[1]
        return self

    def __exit__(self, *_: object) -> None:
        for number in (*self._redirect(self._kept), *self._kept):
            os.close(number)
        self._file.close()

    def take(self) -> str:
        """What has been printed since the last call."""
        if not os.fstat(self._file.fileno()).st_size:
            return ""
        text = os.pread(self._file.fileno(), 1000, 0).decode(errors="replace")
        os.ftruncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return text

    @staticmethod
    def _redirect(to: list[int]) -> list[int]:
        """Sends both to other descriptors; returns copies of those before."""
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(number) for number in (1, 2)]
        for number, target in zip((1, 2), to, strict=True):
            os.dup2(target, number)
        return before


@contextlib.contextmanager
def _watched() -> Iterator[Printed]:
    """Warnings are errors, time and memory are limited, and what is printed is kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGPROF, _interrupt)
    try:
        with Printed() as printed, warnings.catch_warnings():
            warnings.simplefilter("error")
            for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", unseen)  # as outside of tests
            resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, hard))
            logging.disable()  # which says in a line of its own what was mended
            yield printed
    finally:
        logging.disable(logging.NOTSET)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, handler)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: each in turn")
    parser.add_argument("--inputs", type=int, default=1000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("fuzz-faults"))
    given = parser.parse_args()
    broken = 0
    show = os.fdopen(os.dup(2), "w")
    faulthandler.enable(show)  # of a crash; its input is left in the temporary folder fuzz-*
    for name in given.target or TARGETS:
        report = run(name, TARGETS[name], given.inputs, given.seed, given.keep, show)
        print(f"{name}: {report}", flush=True)
        for found in report.faults.values():
            print(f"  {len(found)} such as {found[0]!r}", flush=True)
        broken += len(report.faults)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()

"""Runs in processes of their own: started, stopped, killed and awaited; and what they leave behind."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import flags
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from forks import Forked

ROOT = pathlib.Path(__file__).parents[1]
# Without fused multiplication and addition, which XLA puts into each program elsewhere: runs on other devices are then
# alike to 4e-7 of the largest weight, and with it to 1e-3, on some machines and not on others.
FLAGS = f"{flags.QUICK} --xla_cpu_max_isa=AVX"
LIMIT = 300  # seconds; a test that waits for longer has failed


def environment(devices=1):
    """That of a process with so many CPU devices; conftest.py says where it keeps what it compiles."""
    given = f"--xla_force_host_platform_device_count={devices} {FLAGS}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": given, "PYTHONUNBUFFERED": "1"}


def run(module, *arguments, wrap=()):
    """The finished process of `python -m module`; `wrap` is a command that gets the command as its arguments."""
    command = [*wrap, sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT)


needs_namespaces = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(("unshare", "-rm", "true"), capture_output=True).returncode != 0,
    reason="needs Linux user namespaces for a file system of its own",
)


def mounted(folder, options, before="", after=""):
    """Arguments that run a command with a small file system at `folder` ($0), between two lines of the shell."""
    script = f'mount -t tmpfs {options} none "$0"; {before} "$@"; code=$?; {after} exit $code'
    return ("unshare", "-rm", "bash", "-c", script, folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """`processes` of one run, each with so many devices; what still lives when the context is left is killed.

    `own` are arguments of single processes, by number; `wrap` is a command that gets the command as its arguments.
    """

    def __init__(self, *arguments, processes=1, devices=1, own=(), wrap=(), module="fcn_jax.main"):
        self._logs = pathlib.Path(tempfile.mkdtemp(prefix="fcn_jax_job_"))
        self.processes = []
        port = free_port()
        for index in range(processes):
            main = ("-m", module) if index == 0 else (str(ROOT / "tests" / "other_process.py"),)
            command = [*main, *map(str, arguments)]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={index}"]
            command += dict(own).get(index, ())
            self.processes.append(self._start(index, wrap, command, environment(devices)))

    def _start(self, index, wrap, command, env):
        paths = [self._logs / f"{index}.{name}" for name in ("out", "err")]
        for path in paths:
            path.touch()
        if not wrap:
            return Forked(command, index=index, env=env, stdout=str(paths[0]), stderr=str(paths[1]))
        with open(paths[0], "w") as out, open(paths[1], "w") as err:
            return subprocess.Popen([*wrap, sys.executable, *command], cwd=ROOT, env=env, stdout=out, stderr=err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        shutil.rmtree(self._logs)

    def stderr(self, index=0):
        return (self._logs / f"{index}.err").read_text()

    def stdout(self, index=0):
        return (self._logs / f"{index}.out").read_text()

    def lines(self, index=0):
        return self.stderr(index).splitlines()

    def until(self, condition, limit=LIMIT):
        """Waits for a text on the first process's stderr, or for what a function says; at most a few ms longer."""
        holds = (lambda: condition in self.stderr()) if isinstance(condition, str) else condition
        deadline = time.monotonic() + limit
        while not (found := holds()):
            ended = [process.poll() for process in self.processes]
            assert ended == [None] * len(ended), f"ended with {ended} before {condition}: {self.everything()}"
            assert time.monotonic() < deadline, f"no {condition} in {limit} s: {self.everything()}"
            time.sleep(0.002)
        return found

    def signal(self, number, index=0):
        self.processes[index].send_signal(number)

    def kill(self, index=0):
        self.signal(signal.SIGKILL, index)
        self.processes[index].wait()

    def wait(self, limit=LIMIT):
        """The exit codes, as a shell counts them: 128 + the signal that ended a process."""
        deadline = time.monotonic() + limit
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not ended in {limit} s: {self.everything()}") from None
        return [code if code >= 0 else 128 - code for code in (p.returncode for p in self.processes)]

    def everything(self):
        return "\n".join(f"--- process {i}\n{self.stderr(i)}" for i in range(len(self.processes)))


def finish(*arguments, **options):
    """Runs a job to its end, which has to be a good one; what its first process said."""
    with Job(*arguments, **options) as job:
        codes = job.wait()
        assert set(codes) == {0}, (codes, job.everything())
        return job.stderr()


def rows(workdir):
    """The lines of curves.jsonl."""
    return [json.loads(line) for line in (workdir / "curves.jsonl").read_text().splitlines()]


def losses(workdir):
    """float64 [steps]; every step has to be there once and in order."""
    found = [(row["step"], row["loss"]) for row in rows(workdir) if "loss" in row]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return np.array([loss for _, loss in found])


def saved_steps(workdir):
    """The steps of the whole checkpoints, in order."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def state(workdir, step=None):
    """{path: array} of all parameters and all of the optimizer's state; of the newest checkpoint by default."""
    directory = (workdir / "checkpoints" / str(step or saved_steps(workdir)[-1])).absolute()
    found = {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("params", "train"):
            saved = checkpointer.metadata(directory / item).item_metadata.tree
            whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            tree = checkpointer.restore(directory / item, ocp.args.PyTreeRestore(restore_args=whole))
            for path, value in jax.tree_util.tree_leaves_with_path(tree):
                found[item + jax.tree_util.keystr(path)] = np.asarray(value)
    assert any("mu" in path for path in found), "AdamW's moments are among them"
    return found


def assert_identical(found, expected):
    """Bit for bit."""
    assert found.keys() == expected.keys()
    different = [path for path, value in expected.items() if found[path].tobytes() != value.tobytes()]
    assert not different, f"{len(different)} of {len(expected)} arrays differ: {different[:5]}"


def copy(workdir, to, *, without=()):
    """A copy of a run as it was before the checkpoints of some steps were saved."""
    shutil.copytree(workdir, to)
    for step in without:
        shutil.rmtree(to / "checkpoints" / str(step))
    return to

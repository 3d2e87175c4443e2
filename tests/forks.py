"""Processes of fcn_jax.main that start at once: forks of a server that has imported already what takes it seconds.

Such a process is one of its own in all that tests look at: its number, signals, streams, files, devices and exit code.
"""

import functools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
import warnings

ROOT = pathlib.Path(__file__).parents[1]


class Forked:
    """`python -m MODULE ARGUMENTS`, or of a file, as subprocess.Popen gives it; `index` is that of a job's process."""

    def __init__(self, command, *, index, env, stdout, stderr):
        # XLA reads its flags when a device is first asked for, the rest may be read by an import.
        own = {name: value for name, value in env.items() if name not in ("XLA_FLAGS", "PYTEST_CURRENT_TEST")}
        self._server = _server(index, tuple(sorted(own.items())))
        self.pid = self._ask(command=command, env=env, stdout=stdout, stderr=stderr)
        self.returncode = None

    def _ask(self, **request):
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def poll(self):
        if self.returncode is None:
            self.returncode = self._ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout=None):
        deadline = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server(index, environment):
    """The server of an environment; one for each process of a job, since texts hash otherwise in each."""
    command = (sys.executable, __file__)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=dict(environment), text=True, **pipes)


def _serve():
    """Answers requests until there are none; returns in each fork, with what it is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is pytest's, whose end is the server's
    replies = os.fdopen(os.dup(1), "w")
    for line in iter(sys.stdin.buffer.raw.readline, b""):
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            replies.close()
            return request
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    os._exit(0)


def _become(request):
    """Takes the environment and the streams of a process that has just started."""
    os.environ.clear()
    os.environ.update(request["env"])
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)


def _run(command):
    """Runs a module or a file as Python does."""
    if command[0] == "-m":
        sys.argv = [command[1], *command[2:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        sys.path.insert(0, str(pathlib.Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import tensorflow_datasets  # noqa: F401

    from fcn_jax import evaluate, multiscale, train  # noqa: F401  # what fcn_jax.main imports
    from fcn_jax.run import distributed  # noqa: F401

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX has no threads before its first device
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        request = _serve()
    _become(request)
    _run(request["command"])

"""The commands in this process: what `python -m` does, without the seconds that a process takes to start."""

import contextlib
import io
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import jax
from absl import flags
from absl import logging as absl_logging

from fcn_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
NAME = "fcn_jax"  # absl's name for the module that is run
_IMPORTED = set()  # flags of modules that tests import; once they are put back, absl does not know of which


def command(module, *arguments):
    """The outcome of `python -m module`, as subprocess.run gives it; a defect raises instead of printing a traceback.

    It has this process's devices, of which there are four.
    """
    out, err = io.StringIO(), io.StringIO()
    argv = [NAME, *map(str, arguments)]
    with _as_a_process(argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code(module)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def _exit_code(module):
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    return 0


def _run(main, parser=cli.parse):
    """cli.run, but for what it does to the streams and the home of the process."""
    cli.guarded(main)(parser(sys.argv))


def _leave(code):
    raise SystemExit(code)


@contextlib.contextmanager
def _as_a_process(argv) -> Iterator[None]:
    """Whatever a command sets is as before when it has ended."""
    logger, verbosity = logging.getLogger("fcn_jax"), absl_logging.get_verbosity()
    levels = {log: log.level for log in (logging.root, logger)}
    with (
        contextlib.chdir(ROOT),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        mock.patch.object(logging.root, "handlers", []),
        mock.patch.object(os, "_exit", _leave),
        mock.patch.object(cli, "run", _run),
        warnings.catch_warnings(),
        _no_flags(),
    ):
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # imported by another test
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # ml_collections'
        try:
            yield
        finally:
            absl_logging.set_verbosity(verbosity)
            for log, level in levels.items():
                log.setLevel(level)


@contextlib.contextmanager
def _no_flags() -> Iterator[None]:
    """Every command defines its own, and absl knows one of each name."""
    imported = _take_flags()
    _IMPORTED.update(imported)
    try:
        yield
    finally:
        _take_flags()
        for name, flag in imported.items():
            flags.FLAGS[name] = flag


def _take_flags():
    """Removes the flags of this project's modules, and those of the keys of a config."""
    own = [
        flag.name for module, found in flags.FLAGS.flags_by_module_dict().items() for flag in found if NAME in module
    ]
    own += _IMPORTED
    taken = {name: flags.FLAGS[name] for name in flags.FLAGS if name in own or name.startswith("config.")}
    for name in taken:
        delattr(flags.FLAGS, name)
    return taken

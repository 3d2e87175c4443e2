"""What the commands share: plain log lines, and a user's error as one line instead of a traceback."""

import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import logging as absl_logging

# What a user can cause and mend; anything else is a defect and shows its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def set_up() -> None:
    """Logging as plain lines, and XLA's compilation cache, so that a second start is quick."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells every step of a save
    logging.basicConfig(format="%(message)s", level=logging.ERROR, stream=sys.stderr, force=True)
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/fcn_jax/xla").expanduser()))


def one_line(error: BaseException) -> str:
    """A user's error without its traceback."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """`main` set up as a command, whose user's errors are one line and exit code 1."""

    def run(argv: Sequence[str]) -> None:
        set_up()
        try:
            main(argv)
        except USER_ERRORS as error:
            sys.exit(one_line(error))
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sys.exit(f"out of memory: {one_line(error)[:200]}: use a smaller batch or smaller images")

    return run

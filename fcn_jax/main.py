"""Trains or evaluates: python -m fcn_jax.main --config=configs/fcn8s.py"""

import logging
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/fcn8s.py:demo.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config.name>.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (and evaluate on the way), or evaluate alone.")
_SPLIT = flags.DEFINE_string("split", None, "The split for --mode=eval; default config.data.eval_split.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint --mode=eval takes.")

# What a user can cause and mend; anything else is a defect and shows its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    if _CONFIG.value is None:
        raise ValueError("--config is missing: give a file of configs/, such as --config=configs/fcn8s.py:demo")
    from fcn_jax import evaluate, metrics, train  # after the flags, since they take seconds to import

    config = _CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.name}").expanduser()
    if _MODE.value == "train":
        train.train_and_evaluate(config, workdir)
        return
    split = _SPLIT.value or config.data.eval_split
    results = evaluate.evaluate_checkpoint(config, workdir, split=split, which=_CHECKPOINT.value)
    print(f"{workdir} at step {results['step']}, {results['num_examples']} images of {split}")
    print(metrics.table(results))


def set_up() -> None:
    """Logging as plain lines, and XLA's compilation cache, so that a second start is quick."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells every step of every save
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/fcn_jax/xla").expanduser()))


def one_line(error: BaseException) -> str:
    """A user's error without its traceback."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's flags, with a mistyped config key or value as one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(one_line(error))
    except (AttributeError, KeyError, TypeError, *USER_ERRORS) as error:
        sys.exit(f"--config: {one_line(error)}")


def guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """`main` set up as a command, whose user's errors are one line and exit code 1."""

    def run(argv: Sequence[str]) -> None:
        set_up()
        try:
            main(argv)
        except USER_ERRORS as error:
            sys.exit(one_line(error))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sys.exit(f"out of memory: {one_line(error)[:200]}: use a smaller batch or smaller images")

    return run


if __name__ == "__main__":
    app.run(guarded(main), flags_parser=_parse)

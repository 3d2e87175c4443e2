"""Trains or evaluates: python -m fcn_jax.main --config=configs/fcn8s.py

--config names a file, or one of the configs that come along by its name; what follows a colon is a variant of it.
Any of its values can be set: --config.steps=2000. The same command again goes on with a run that was stopped.

  python -m fcn_jax.main --config=fcn8s:demo
  python -m fcn_jax.main --config=folder --config.data.raw_dir=PHOTOS --workdir=runs/mine
  python -m fcn_jax.main --config=folder --config.data.raw_dir=PHOTOS --workdir=runs/mine --mode=eval --split=val
"""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fcn_jax import cli, command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file or a name, such as configs/fcn8s.py:demo or fcn8s:demo."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config.name>.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (and evaluate on the way), or evaluate alone.")
_SPLIT = flags.DEFINE_string("split", None, "The split for --mode=eval; default config.data.eval_split.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if the environment does not tell it.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0 on.", lower_bound=0)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint that --mode=eval takes.")


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    if _MODE.value == "train" and (_SPLIT.present or _WHICH.present):
        raise ValueError("--split and --which are for --mode=eval, which is not given")
    if _CONFIG.value is None:
        raise ValueError("--config is missing: give a file of configs/, such as --config=configs/fcn8s.py:demo")
    from fcn_jax import evaluate, metrics, multiscale, train  # after the flags, since they take seconds to import
    from fcn_jax.run import distributed

    config = _CONFIG.value
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    distributed.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, saves=_MODE.value == "train")
    if not distributed.is_main():
        logging.getLogger("fcn_jax").setLevel(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.name}").expanduser()
    if _MODE.value == "train":
        train.train_and_evaluate(config, workdir)
        return
    split = _SPLIT.value or config.data.eval_split
    results = evaluate.evaluate_checkpoint(config, workdir, split=split, which=_WHICH.value)
    if not distributed.is_main():
        return
    print(f"{workdir} at step {results['step']}, {results['num_examples']} images of {split}")
    if not multiscale.is_plain(results["scales"], flip=results["flip"]):
        print(f"scales {', '.join(map(str, results['scales']))}{' and mirrored' if results['flip'] else ''}")
    if results.get("refine"):
        print("masks are aligned with contours")
    for name, scores in results.get("heads", {"": results}).items():
        print(*([f"{name}:"] if name else []), metrics.table(scores), sep="\n")


def _parse(argv: Sequence[str]) -> list[str]:
    rest = cli.parse([*map(command.by_name, argv)])
    try:
        if _CONFIG.value is not None:
            _ = _CONFIG.value.name  # a config file that cannot be read fails only here
    except OSError as error:
        sys.exit(cli.last_line(error))
    return rest


if __name__ == "__main__":
    cli.run(main, _parse)

"""Exports a network: python -m fcn_jax.export --checkpoint=RUN --format=onnx --output=fcn8s.onnx

python -m fcn_jax.export --checkpoint=runs/mine --format=safetensors --output=mine.safetensors
python -m fcn_jax.export --checkpoint=runs/mine --format=stablehlo --output=mine.stablehlo
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from fcn_jax import cli, export

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a step of its checkpoints, or converted weights."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of a run that is taken.")
_FORMAT = flags.DEFINE_enum("format", None, list(export.FORMATS), "What is written.")
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, a folder for savedmodel; it must not exist.")


def _required(flag: flags.FlagHolder[str | None]) -> str:
    if not flag.value:
        raise ValueError(f"--{flag.name} is missing: --checkpoint, --format and --output are needed")
    return flag.value


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    checkpoint, format, output = (_required(flag) for flag in (_CHECKPOINT, _FORMAT, _OUTPUT))
    export.export_checkpoint(checkpoint, format, pathlib.Path(output).expanduser(), _WHICH.value)


if __name__ == "__main__":
    cli.run(main)

"""A trained network as a file for other runtimes: one module a format.

stablehlo, onnx and savedmodel hold the whole function, image -> logits, with preprocessing and crops:

    image    uint8 RGB [B, H, W, 3]; float32 [B, H, W, C] where the network has further input channels
    logits   float32 [B, H, W, num_classes]

for every B, H, W >= 1, in either geometry, always in float32. safetensors and torchfcn hold the parameters alone, in
PyTorch's layouts and under the paper's names.

model.json (network, geometry, mean, class names, palette) travels with each: under the key 'fcn_jax' of ONNX's
metadata_props and of safetensors' metadata, as assets.extra/model.json of a SavedModel, and as <output>.json beside a
stablehlo or torchfcn file, which have no place for it.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np

from fcn_jax import checkpoint, networks
from fcn_jax.export import common, onnx, safetensors, savedmodel, stablehlo, torchfcn
from fcn_jax.models import spec as model_spec
from fcn_jax.models.spec import ModelSpec

log = logging.getLogger(__name__)


class Format(Protocol):
    """What the module of a format offers."""

    CARRIES_MODEL_JSON: bool  # False: it is written beside

    def check(self, spec: ModelSpec) -> None:
        """ValueError if the format cannot hold this network, or if a package that it needs is not installed."""

    def write(self, path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
        """Writes parameters {layer: {name: NumPy array}} and all that belongs to them to a path that does not exist."""

    def usage(self, path: pathlib.Path, spec: ModelSpec) -> str:
        """A line of Python that runs or reads what was written."""


FORMATS: dict[str, Format] = {
    "stablehlo": stablehlo,
    "onnx": onnx,
    "safetensors": safetensors,
    "torchfcn": torchfcn,
    "savedmodel": savedmodel,
}


def export_checkpoint(source: str | pathlib.Path, format: str, output: str | pathlib.Path, which: str = "best") -> None:
    """Writes the network of a run, of one step of its checkpoints, or of converted weights.

    Args:
      source: as in `checkpoint.find`, or a name of networks.PUBLISHED.
      format: a key of FORMATS.
      output: the file to write, a folder for savedmodel; it must not exist, and appears whole or not at all.
      which: `best` or `latest`, where `source` is a run.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: an unknown format, an `output` that exists, a network that the format cannot hold, a package missing.
      OSError: it cannot be written; nothing of it is left.
    """
    writer = _writer(format, pathlib.Path(output).expanduser())
    directory = checkpoint.find(networks.locate(source), which)
    writer.check(model_spec.read(directory / checkpoint.MODEL_JSON))  # before the parameters are read
    write(*checkpoint.load_params(directory), format, output)


def write(params: Any, spec: ModelSpec, format: str, output: str | pathlib.Path) -> None:
    """Writes a network that is in memory, such as `predictor.params, predictor.spec`; as `export_checkpoint`."""
    output = pathlib.Path(output).expanduser()
    writer = _writer(format, output)
    writer.check(spec)
    params = jax.tree.map(np.asarray, params)
    with _whole(*_targets(writer, output)) as parts:
        for part in parts[1:]:
            part.write_text(common.model_json(spec))
        writer.write(parts[0], params, spec)
    log.info("%s: %s, %s", output, format, _megabytes(output))
    log.info("%s", writer.usage(output, spec))


def _writer(format: str, output: pathlib.Path) -> Format:
    """The module of a format; ValueError if it is unknown or would overwrite something."""
    if format not in FORMATS:
        raise ValueError(f"--format={format} is unknown: choose from {', '.join(FORMATS)}")
    writer = FORMATS[format]
    for path in _targets(writer, output):
        if os.path.lexists(path):
            raise ValueError(f"--output={str(output)!r}: {str(path)!r} exists: remove it, or name another")
    return writer


def _targets(writer: Format, output: pathlib.Path) -> list[pathlib.Path]:
    """`output`, and where model.json goes if it cannot go into it."""
    return [output] if writer.CARRIES_MODEL_JSON else [output, output.with_name(f"{output.name}.json")]


@contextlib.contextmanager
def _whole(*outputs: pathlib.Path) -> Iterator[list[pathlib.Path]]:
    """Paths beside the outputs to write to; they get the outputs' names in the end, or are removed."""
    parts = [output.with_name(f"{output.name}.part") for output in outputs]
    try:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        for part in parts:
            _remove(part)  # of a command that was killed
            part.touch()  # fails in Python's own words; not every format's writer does
            part.unlink()
        yield parts
        for part, output in zip(parts, outputs, strict=True):
            part.rename(output)
    except OSError as error:
        reason = "its disk is read-only: name another" if error.errno == errno.EROFS else str(error)
        raise OSError(f"{str(outputs[0])!r} cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            for part in parts:
                _remove(part)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _megabytes(path: pathlib.Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"

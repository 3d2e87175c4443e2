"""config.json: the config that a run belongs to."""

import logging
import pathlib

from ml_collections import ConfigDict

from fcn_jax import config as config_lib
from fcn_jax import files, json_file

log = logging.getLogger(__name__)

_NAME = "config.json"


def write(config: ConfigDict, workdir: pathlib.Path) -> None:
    """As the config of the run there."""
    files.write(workdir / _NAME, config_lib.to_json(config))


def check_same(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises ValueError where the config of the run there and `config` differ in what may not."""
    path = workdir / _NAME
    changes = config_lib.changes(json_file.read(path), config) if path.exists() else []
    if changes:
        raise ValueError(
            f"use another --workdir, or delete {workdir}, which holds a run with another config: {'; '.join(changes)}"
        )


def tell_of_extension(config: ConfigDict, workdir: pathlib.Path, step: int) -> None:
    """Says what becomes of the schedule of a run whose steps were raised since its last start."""
    path = workdir / _NAME
    if step and path.exists():
        before, now = sum(config_lib.completed(json_file.read(path))["steps"]), sum(config.steps)
        if before != now:
            rule = f"from step {step + 1} on the learning rate is that of a run of {now} steps"
            log.info("extended from %d to %d steps: %s", before, now, rule)

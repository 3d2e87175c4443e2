"""The parameters that a stage starts from: those that earlier stages left, pretrained weights, initial values."""

import functools
import logging
import pathlib
from typing import Any

import jax

from fcn_jax import checkpoint, weights
from fcn_jax import config as config_lib
from fcn_jax.config import Stage
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run.context import Run
from fcn_jax.run.resume import Start
from fcn_jax.weights import merge, surgery

log = logging.getLogger(__name__)


def initial(run: Run, start: Start, previous: Any) -> Any:
    """Host parameters before the first update of a stage, {layer: {name: array}}.

    `previous` are those of the stage right before, None where the newest checkpoint has them. They are kept below
    stages/ where a later stage starts from them, too.
    """
    spec = run.spec(start.stage)
    _keep_for_later(run, start.stage, previous)
    if start.before is not None:
        found, wishes = _left_by(run, start.before, start.stage, previous), merge.Wishes()
    else:
        found, wishes = _by_stream(run, start, previous)
    make = functools.partial(fcn.init, spec, jax.random.key(run.config.seed))
    params, _ = merge.merge(spec, found, wishes, initial=make)
    log.info("%s: %s parameters", start.stage.network, f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}")
    return params


def _by_stream(run: Run, start: Start, previous: Any) -> tuple[weights.Weights, merge.Wishes]:
    """What each stream starts from, and what of it may be random or left out, which is of pretrained weights alone."""
    init, spec = run.config.init, run.spec(start.stage)
    new = [name for name, stage in start.streams.items() if stage is None]
    pretrained = weights.read(init.weights, init.cache_dir) if new and init.weights else weights.NONE
    if len(new) == len(start.streams):
        found = pretrained
    else:
        found = merge.join(
            spec,
            {
                name: _left_by(run, stage, start.stage, previous) if stage else pretrained
                for name, stage in start.streams.items()
            },
        )
    if not new:
        return found, merge.Wishes()
    globs = ",".join(_fully_connected(pretrained, spec)) if init.random == "auto" else init.random
    # The config names layers without their stream.
    random, skip = ([f"{glob}{name}" for glob in config_lib.words(text) for name in new] for text in (globs, init.skip))
    classes = surgery.by_name(pretrained, spec.class_names) if init.classes == "auto" else init.classes
    return found, merge.Wishes(random, skip, classes=classes)


def _fully_connected(found: weights.Weights, spec: ModelSpec) -> list[str]:
    """fc6 and fc7 where the weights of a classifier's convolutions have none."""
    wanted = [layer for layer in ("fc6", "fc7") if layer in fcn.abstract_params(spec)]
    return [layer for layer in wanted if f"{layer}/kernel" not in found.arrays]


def _left_by(run: Run, found: Stage, stage: Stage, previous: Any) -> weights.Weights:
    """What a finished stage has left; `previous` are the parameters of the one right before `stage`."""
    if found.end == stage.start:
        params = previous or _newest(run)
    else:
        params, _ = checkpoint.load_params(_kept(run, found.end))
    return weights.from_params(params, run.spec(found))


def _keep_for_later(run: Run, stage: Stage, previous: Any) -> None:
    """Saves the parameters of the stage right before `stage` where a later one than that starts from them."""
    stages = config_lib.stages(run.config)
    before = next((s for s in stages if s.end == stage.start), None)
    if before is None or before.inputs == stage.inputs or _kept(run, before.end).exists():
        return
    if any(before.inputs in (s.inputs, *s.inputs.split("/")) for s in stages if s.start > before.end):
        params = previous or _newest(run)
        _kept(run, before.end).parent.mkdir(exist_ok=True)
        checkpoint.save_params(_kept(run, before.end), params, run.spec(before))


def _kept(run: Run, end: int) -> pathlib.Path:
    return run.workdir / "stages" / str(end)


def _newest(run: Run) -> Any:
    return checkpoint.load_params(checkpoint.find(run.workdir, "latest"))[0]

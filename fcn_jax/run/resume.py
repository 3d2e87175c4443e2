"""Where a run goes on: at which step, in which stage, and from which parameters."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fcn_jax import checkpoint
from fcn_jax import config as config_lib
from fcn_jax.config import Stage
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run import config_file, distributed
from fcn_jax.run.context import Run

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a stage begins, or goes on.

    Attributes:
      stage: it.
      step: the updates of the run that are done.
      streams: by stream of its network, the finished stage that left the parameters; None for config.init.weights. A
        stage with the same inputs left those of all streams together.
    """

    stage: Stage
    step: int
    streams: Mapping[str, Stage | None]

    @property
    def within(self) -> bool:
        """Whether the stage has begun: its state is in the checkpoint of `step`, and `streams` is past."""
        return self.step > self.stage.start

    @property
    def before(self) -> Stage | None:
        """The stage of which this one is the continuation, with all of its layers."""
        one = next(iter(self.streams.values()))
        return one if one is not None and one.inputs == self.stage.inputs else None

    def origin(self, weights: str) -> str:
        """What the parameters come from, for people; `weights` is config.init.weights."""
        if self.within:
            return f"the checkpoint of step {self.step}"
        found = [
            weights or "initial values" if s is None else f"{s.network} at step {s.end}" for s in self.streams.values()
        ]
        return " and ".join(dict.fromkeys(found))


def is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the run in `workdir` is done, as all processes see it; ValueError if it is one of another config."""
    steps = checkpoint.saved_steps(workdir)
    if steps:
        config_file.check_same(config, workdir)
    return distributed.all_of(bool(steps) and steps[-1] >= config_lib.stages(config)[-1].end)


def resume(run: Run) -> list[Start]:
    """The stages that are not done, in order. The first goes on from the newest checkpoint.

    Raises:
      ValueError: that checkpoint is of another network than the config's.
    """
    stages, step = config_lib.stages(run.config), run.checkpoints.latest_step() or 0
    if step:
        made_by = next(stage for stage in stages if step <= stage.end)
        _check_same_network(run.checkpoints.spec(step), run.spec(made_by), run.workdir)
        log.info("resuming %s at step %d of %d", run.workdir, step, stages[-1].end)
    return [
        Start(stage, max(step, stage.start), _streams(stages, stage, run.spec(stage)))
        for stage in stages
        if step < stage.end
    ]


def _streams(stages: Sequence[Stage], stage: Stage, spec: ModelSpec) -> dict[str, Stage | None]:
    """By stream, the last stage before `stage` that saw the same: all of its inputs, or else those of the stream."""
    by_inputs = {earlier.inputs: earlier for earlier in stages if earlier.end <= stage.start}
    whole, inputs = by_inputs.get(stage.inputs), stage.inputs.split("/")
    return {name: whole or by_inputs.get(seen) for name, seen in zip(spec.streams, inputs, strict=True)}


def _check_same_network(found: ModelSpec, wanted: ModelSpec, workdir: pathlib.Path) -> None:
    differences = found.differences(wanted)
    if differences:
        raise ValueError(
            f"the checkpoint in {workdir} is of another network ({'; '.join(differences)}): use another --workdir"
        )

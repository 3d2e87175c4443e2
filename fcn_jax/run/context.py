"""What all stages of a run share, and its opening."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import checkpoint
from fcn_jax import config as config_lib
from fcn_jax.data.datasets import Split
from fcn_jax.models.spec import Head, ModelSpec, configured, parse_inputs
from fcn_jax.run import config_file, damage, distributed, environment, results
from fcn_jax.run.checkpoints import Checkpoints
from fcn_jax.run.curves import Curves


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose workdir is open; `curves` is None on all processes but the first."""

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    train_split: Split
    eval_split: Split
    checkpoints: Checkpoints
    curves: Curves | None

    def spec(self, stage: config_lib.Stage) -> ModelSpec:
        """The network of a stage."""
        split = self.train_split
        inputs, mean = parse_inputs(stage.inputs, split.inputs, split.scales)
        return configured(
            stage.network,
            self.config.model,
            class_names=split.class_names,
            palette=split.palette,
            mean=mean,
            inputs=inputs,
            heads=tuple(Head(name, classes) for _, name, classes in split.heads) if len(split.heads) > 1 else (),
        )


@contextlib.contextmanager
def opened(
    config: ConfigDict, workdir: pathlib.Path, mesh: Mesh, train_split: Split, eval_split: Split
) -> Iterator[Run]:
    """The run in a workdir that is claimed, at its newest checkpoint that can be read; the others are set aside.

    Raises:
      ValueError: there are checkpoints and none can be read, or the processes do not see the same ones.
    """
    step, curves = _newest_step(workdir), None
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            config_file.tell_of_extension(config, workdir, step)
            config_file.write(config, workdir)
            environment.note(workdir, step)
            curves = stack.enter_context(Curves(workdir, step))
        scoring = results.scoring(config, config_lib.stages(config)[-1].inputs)
        checkpoints = stack.enter_context(Checkpoints(workdir, scoring))
        stack.enter_context(distributed.together(workdir))
        if not distributed.all_of((checkpoints.latest_step() or 0) == step):
            raise ValueError(f"not every host sees the checkpoint of step {step} in {workdir}: start again in a minute")
        yield Run(config, workdir, mesh, train_split, eval_split, checkpoints, curves)


def _newest_step(workdir: pathlib.Path) -> int:
    """Of the checkpoints that can be read, 0 without any; the same on all processes."""
    lost = ""
    if distributed.is_main():
        lost = damage.set_aside(workdir)
        (workdir / "checkpoints").mkdir(exist_ok=True)  # else Orbax' processes race for it
    if not distributed.all_of(not lost):
        raise ValueError(lost or f"none of the checkpoints in {workdir} can be read")
    return distributed.of_main(max(checkpoint.saved_steps(workdir), default=0))

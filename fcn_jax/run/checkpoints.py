"""The checkpoints of a run: the latest two, to go on from one if the other is damaged, and the best by mean IU."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from fcn_jax import checkpoint, files
from fcn_jax.models import spec as model_spec
from fcn_jax.train_state import TrainState


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what Orbax warns of when it opens a folder to read."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(min(verbosity, absl_logging.ERROR))
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)


class _Manager(ocp.CheckpointManager):
    """Leaves the question whether to stop to the loop.

    Orbax would ask JAX too, on the first process with the step of a save that has just come to its end: that sets the
    number that JAX knows of this process back, and a signal at that moment would stop the processes at different steps.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run; saving is asynchronous; leaving the context waits for it."""

    def __init__(self, workdir: str | pathlib.Path, scoring: dict[str, Any] | None = None):
        """Opens or creates them; scores had otherwise than by `scoring` {scales, flip, ...} do not count."""
        self._workdir = files.local(workdir)
        self.directory = self._workdir / "checkpoints"

        def rank(metrics: dict[str, Any]) -> float:
            return (
                metrics[checkpoint.METRIC] if checkpoint.scoring(metrics) == checkpoint.scoring(scoring or {}) else -2.0
            )

        # Orbax's own best_fn with max_to_keep would delete the latest step, which resuming needs.
        policy = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=rank,
            cleanup_tmp_directories=True,  # what a kill inside of a save has left
            temporary_path_class=checkpoint.Sealed,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "train": ocp.StandardCheckpointHandler(),
            "model": ocp.JsonCheckpointHandler(filename="model.json"),
        }
        with _quiet():
            self._manager = _Manager(checkpoint.Literal(self.directory), options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The newest step saved, None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """As the function of this name."""
        return checkpoint.best_step(self._workdir)

    def save(self, state: TrainState, spec: model_spec.ModelSpec, metrics: dict[str, Any] | None = None) -> None:
        """Starts to save a state; `metrics` of an evaluation, with their scoring, make it a candidate for the best.

        Raises:
          OSError: the disk has no room for it (found before anything is written).
        """
        step = int(state.step)
        files.check_room(self.directory, checkpoint.num_bytes(state), f"the checkpoint of step {step}")
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.result),
            train=ocp.args.StandardSave(_rest(state)),
            model=ocp.args.JsonSave(spec.to_json()),
        )
        if not self._manager.save(step, args=items, metrics=metrics):
            raise RuntimeError(f"Orbax did not save step {step} in {self.directory}: it holds that step or a newer one")

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state at `step`, placed as `target` is (an abstract state with shardings will do)."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(target.result),
            train=ocp.args.StandardRestore(_rest(target)),
        )
        restored = self._manager.restore(step, args=items)
        result, rest = restored["params"], restored["train"]
        number = jax.device_put(jax.numpy.int32(step), target.step.sharding)
        if target.average is None:
            return TrainState(number, result, rest["opt_state"], rest["bad_step"])
        return TrainState(number, rest["params"], rest["opt_state"], rest["bad_step"], result)

    def spec(self, step: int) -> model_spec.ModelSpec:
        """The network of the checkpoint at `step`."""
        return model_spec.read(self.directory / str(step) / checkpoint.MODEL_JSON)

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises what went wrong meanwhile."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what is being saved, also where an error or Ctrl-C ends the run."""
        self._manager.close()


def _rest(state: TrainState) -> dict[str, Any]:
    """What a checkpoint's `train` holds: all that predicting does not need."""
    rest = {"opt_state": state.opt_state, "bad_step": state.bad_step}
    return rest if state.average is None else {**rest, "params": state.params}

"""Checkpoints by Orbax. A run keeps the latest two, to go on from one if the other is damaged, and the best by mean IU.

Layout: <workdir>/checkpoints/<step>/{params, train, model/model.json, metrics, SHA256SUMS}; `params` is the average
where optim.ema asks for one. Without `train` it is a parameters-only checkpoint: converted weights. Earlier versions
wrote no SHA256SUMS.
"""

import contextlib
import glob
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils.epath.gpath import PosixGPath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.path import atomicity

from fcn_jax import digests, integrity, json_file
from fcn_jax import workdir as workdir_lib
from fcn_jax.integrity import MODEL_JSON
from fcn_jax.models import fcn
from fcn_jax.models import spec as model_spec
from fcn_jax.sharding import make_mesh, replicated
from fcn_jax.train_state import TrainState

METRIC = "mean_iou"
_PIECE = 32 * 2**20  # bytes
# How images were scored before the checkpoints said so, and of what they were made.
_PLAIN = {"scales": [1.0], "flip": False, "inputs": "colour", "mask": ""}


class _Literal(PosixGPath):
    """A folder as Orbax takes it, with what is special to globs in its name: Orbax looks for its files by globs."""

    def glob(self, pattern: str) -> Iterator["_Literal"]:
        return PosixGPath(glob.escape(os.fspath(self))).glob(pattern)


class _Sealed(atomicity.AtomicRenameTemporaryPath):
    """A checkpoint that is being written: it gets the digests of its files with its name."""

    async def finalize(self) -> None:
        if atomicity.TMP_DIR_SUFFIX in self.get_final().parent.name:  # one item of a checkpoint
            await super().finalize()
            return
        # Before the name, since it takes a second a gigabyte; only two small files change with the name.
        found = digests.of_files(pathlib.Path(self.get()))
        await super().finalize()
        folder = pathlib.Path(self.get_final())
        names = [path.name for path in folder.iterdir() if path.is_file()]
        digests.write(folder, found | digests.of_files(folder, names))


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
        self._workdir = workdir_lib.local(workdir)
        self.directory = self._workdir / "checkpoints"

        def rank(metrics: dict[str, Any]) -> float:
            return metrics[METRIC] if _scoring(metrics) == _scoring(scoring or {}) else -2.0

        # Orbax's own best_fn with max_to_keep would delete the latest step, which resuming needs.
        policy = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=rank,
            cleanup_tmp_directories=True,  # what a kill inside of a save has left
            temporary_path_class=_Sealed,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "train": ocp.StandardCheckpointHandler(),
            "model": ocp.JsonCheckpointHandler(filename="model.json"),
        }
        with _quiet():
            self._manager = _Manager(_Literal(self.directory), options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The newest step saved, None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """As the function of this name."""
        return best_step(self._workdir)

    def save(self, state: TrainState, spec: model_spec.ModelSpec, metrics: dict[str, Any] | None = None) -> None:
        """Starts to save a state; `metrics` of an evaluation, with their scoring, make it a candidate for the best.

        Raises:
          OSError: the disk has no room for it (found before anything is written).
        """
        step = int(state.step)
        workdir_lib.check_room(self.directory, _bytes(state), f"the checkpoint of step {step}")
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
        return model_spec.read(self.directory / str(step) / MODEL_JSON)

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises what went wrong meanwhile."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what is being saved, also where an error or Ctrl-C ends the run."""
        self._manager.close()


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _rest(state: TrainState) -> dict[str, Any]:
    """What a checkpoint's `train` holds: all that predicting does not need."""
    rest = {"opt_state": state.opt_state, "bad_step": state.bad_step}
    return rest if state.average is None else {**rest, "params": state.params}


def _scoring(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: metrics.get(key, plain) for key, plain in _PLAIN.items()}


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
    """The steps saved in a run's workdir, in order; creates nothing. Not by Orbax, which waits for other processes."""
    return sorted(int(path.parent.parent.name) for path in _models(workdir))


def _models(workdir: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """The model.json of each step; other folders are none of ours."""
    for path in (pathlib.Path(workdir) / "checkpoints").glob(f"*/{MODEL_JSON}"):
        name = path.parent.parent.name
        if name.isdecimal() and name == str(int(name)):
            yield path


def best_step(workdir: str | pathlib.Path) -> int | None:
    """The step with the highest mean IU of those scored as the newest one is; without any scored one, the latest."""
    steps = saved_steps(workdir)
    found = {step: pathlib.Path(workdir) / "checkpoints" / str(step) / "metrics" / "metrics" for step in steps}
    scored = {step: _read_metrics(path) for step, path in found.items() if path.is_file()}
    if not scored:
        return steps[-1] if steps else None
    wanted = _scoring(scored[max(scored)])
    return max((metrics[METRIC], step) for step, metrics in scored.items() if _scoring(metrics) == wanted)[1]


def _read_metrics(path: pathlib.Path) -> dict[str, Any]:
    metrics = json_file.read(path)
    if not isinstance(metrics.get(METRIC), float | int):
        raise ValueError(f"{path} has no {METRIC}: take the latest step instead of the best")
    return metrics


def find(path: str | pathlib.Path, which: str = "best") -> pathlib.Path:
    """The directory with `params` and model.json that `path` means.

    Args:
      path: a run's workdir, one step of its checkpoints, or converted weights.
      which: `best` or `latest`, for a workdir.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: a path that workdir.local refuses.
    """
    path = workdir_lib.local(path)
    if (path / MODEL_JSON).is_file():
        return path
    step = best_step(path) if which == "best" else max(saved_steps(path), default=None)
    if step is not None:
        return path / "checkpoints" / str(step)
    raise FileNotFoundError(
        f"no checkpoint in {str(path)!r}: give the workdir of a run, a step in its checkpoints/, or converted weights"
    )


def load_params(directory: pathlib.Path, sharding: Any = None) -> tuple[Any, model_spec.ModelSpec]:
    """Parameters and spec of a directory that `find` returned, placed by `sharding`.

    By default on the default device; with several processes, which all have to call this, whole on every device.

    Raises:
      ValueError: a file of it is not what was written, or model.json is not one that this version reads.
    """
    reason = integrity.flaw(directory, ["params"])
    if reason:
        raise ValueError(f"the checkpoint {directory} is damaged ({reason}): take another step or a copy of it")
    spec = model_spec.read(directory / MODEL_JSON)
    alone = jax.process_count() == 1
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if alone else replicated(make_mesh())
    target = with_sharding(fcn.abstract_params(spec), sharding or default)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(_Literal(directory / "params"), target), spec


def save_params(directory: str | pathlib.Path, params: Any, spec: model_spec.ModelSpec) -> None:
    """Writes a parameters-only checkpoint to a directory that does not exist yet; OSError if there is no room."""
    directory = workdir_lib.local(directory)
    workdir_lib.check_room(directory.parent, _bytes(params), "the parameters")
    # In pieces, and without the copy of NumPy arrays that guards an asynchronous save: half the memory.
    handlers = ocp.type_handlers
    numpy_handler = handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = handlers.create_type_handler_registry((np.ndarray, numpy_handler), (jax.Array, handlers.ArrayHandler()))
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_PIECE), params)
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params, save_args=pieces), model=ocp.args.JsonSave(spec.to_json())
    )
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        model=ocp.JsonCheckpointHandler(filename="model.json"),
    )
    with ocp.Checkpointer(handler, temporary_path_class=_Sealed) as checkpointer:
        checkpointer.save(_Literal(directory), args=items)


def with_sharding(tree: Any, sharding: Any) -> Any:
    """The shapes of `tree` as jax.ShapeDtypeStruct placed by `sharding`, one for all or a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)

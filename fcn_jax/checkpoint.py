"""Checkpoints by Orbax. A run keeps the latest two, to go on from one if the other is damaged, and the best by mean IU.

Layout: <workdir>/checkpoints/<step>/{params, train, model/model.json, metrics}; `params` is the average where optim.ema
asks for one. A directory with `params` and `model/model.json` alone is a parameters-only checkpoint: converted weights.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from fcn_jax import workdir as workdir_lib
from fcn_jax.models import spec as model_spec
from fcn_jax.sharding import make_mesh, replicated
from fcn_jax.train_state import TrainState

log = logging.getLogger(__name__)

MODEL_JSON = "model/model.json"
METRIC = "mean_iou"
_PIECE = 32 * 2**20  # bytes


def _metric(metrics: dict[str, float]) -> float:
    return metrics[METRIC]


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

    def __init__(self, workdir: str | pathlib.Path, *, read_only: bool = False):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        # Orbax's own best_fn with max_to_keep would delete the latest step, which resuming needs.
        policy = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_metric,
            best_mode="max",
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,  # what a kill inside of a save has left
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "train": ocp.StandardCheckpointHandler(),
            "model": ocp.JsonCheckpointHandler(filename="model.json"),
        }
        with _quiet():
            self._manager = _Manager(self.directory, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The newest step saved, None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest mean IU; without any evaluated one, the latest."""
        step = self._manager.best_step()
        return self.latest_step() if step is None else step

    def save(self, state: TrainState, spec: model_spec.ModelSpec, metrics: dict[str, float] | None = None) -> None:
        """Starts to save a state; `metrics` of an evaluation of it make it a candidate for the best.

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


def set_damaged_aside(workdir: pathlib.Path) -> None:
    """Moves checkpoints that cannot be read to workdir/damaged, and says so; arrays are read until some are whole."""
    workdir = workdir.absolute()
    whole, moved = 0, False
    for step in reversed(saved_steps(workdir)):
        directory = workdir / "checkpoints" / str(step)
        reason = _damage(directory, arrays=not whole)
        if not reason:
            whole = whole or step
            continue
        (workdir / "damaged").mkdir(exist_ok=True)
        aside, number = workdir / "damaged" / str(step), 1
        while aside.exists():
            number += 1
            aside = workdir / "damaged" / f"{step}-{number}"
        directory.rename(aside)
        moved = True
        log.warning("the checkpoint of step %d is damaged (%s): moved to %s", step, reason, aside)
    if moved:
        log.warning("going on from %s", f"step {whole}" if whole else "the start")


def _damage(directory: pathlib.Path, *, arrays: bool) -> str:
    """Why a checkpoint cannot be read, empty if it can.

    Reads one after the other what Orbax would read all at once: where that fails, the threads that are still at it
    print a traceback each.
    """
    try:
        model_spec.read(directory / MODEL_JSON)
        for path in (*directory.glob("metrics/metrics"), *directory.glob("*/array_metadatas/*")):
            json.loads(path.read_text())
        for item in ("params", "train") if arrays else ():
            saved = json.loads((directory / item / "_METADATA").read_text())
            driver = "zarr3" if saved["use_zarr3"] else "zarr"
            folder = {"driver": "file", "path": f"{directory / item}/"}
            for leaf in saved["tree_metadata"].values():
                if leaf["value_metadata"]["value_type"] == "None":
                    continue
                name = ".".join(str(part["key"]) for part in leaf["key_metadata"])
                store = {"driver": "ocdbt", "base": folder, "path": name}
                tensorstore.open({"driver": driver, "kvstore": store}, read=True).result().read().result()
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:  # by which byte is missing
        lines = str(error).splitlines() or [type(error).__name__]
        return lines[0][:100]
    return ""


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """The steps saved in a run's workdir, in order; creates nothing. Not by Orbax, which waits for other processes."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def find(path: str | pathlib.Path, which: str = "best") -> pathlib.Path:
    """The directory with `params` and model.json that `path` means.

    Args:
      path: a run's workdir, one step of its checkpoints, or converted weights.
      which: `best` or `latest`, for a workdir.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if (path / MODEL_JSON).is_file():
        return path
    if (path / "checkpoints").is_dir():
        with Checkpoints(path, read_only=True) as checkpoints:
            step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        if step is not None:
            return path / "checkpoints" / str(step)
    raise FileNotFoundError(
        f"no checkpoint in {str(path)!r}: give the workdir of a run, a step in its checkpoints/, or converted weights"
    )


def load_params(directory: pathlib.Path, sharding: Any = None) -> tuple[Any, model_spec.ModelSpec]:
    """Parameters and spec of a directory that `find` returned, placed by `sharding`.

    By default on the default device; with several processes, which all have to call this, whole on every device.
    """
    spec = model_spec.read(directory / MODEL_JSON)
    alone = jax.process_count() == 1
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if alone else replicated(make_mesh())
    target = with_sharding(spec.abstract_params(), sharding or default)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory / "params", target), spec


def save_params(directory: str | pathlib.Path, params: Any, spec: model_spec.ModelSpec) -> None:
    """Writes a parameters-only checkpoint to a directory that does not exist yet; OSError if there is no room."""
    directory = pathlib.Path(directory).absolute()
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
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=items)


def with_sharding(tree: Any, sharding: Any) -> Any:
    """The shapes of `tree` as jax.ShapeDtypeStruct placed by `sharding`, one for all or a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)

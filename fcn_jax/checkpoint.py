"""Checkpoints by Orbax: found, read, and written as parameters alone. run/checkpoints.py writes those of a run.

Layout: <workdir>/checkpoints/<step>/{params, train, model/model.json, metrics, SHA256SUMS}; `params` is the average
where optim.ema asks for one. Without `train` it is a parameters-only checkpoint: converted weights. Earlier versions
wrote no SHA256SUMS.
"""

import glob
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath
from orbax.checkpoint.path import atomicity

from fcn_jax import digests, files, integrity, json_file
from fcn_jax.integrity import MODEL_JSON
from fcn_jax.models import fcn
from fcn_jax.models import spec as model_spec
from fcn_jax.sharding import make_mesh, replicated

METRIC = "mean_iou"
_PIECE = 32 * 2**20  # bytes
# How images were scored before the checkpoints said so, and of what they were made.
_PLAIN = {"scales": [1.0], "flip": False, "inputs": "colour", "mask": "", "refine": False}


class Literal(PosixGPath):
    """A folder as Orbax takes it, with what is special to globs in its name: Orbax looks for its files by globs."""

    def glob(self, pattern: str) -> Iterator["Literal"]:
        return PosixGPath(glob.escape(os.fspath(self))).glob(pattern)


class Sealed(atomicity.AtomicRenameTemporaryPath):
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


def num_bytes(tree: Any) -> int:
    """What the arrays of a tree take."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def scoring(metrics: dict[str, Any]) -> dict[str, Any]:
    """How scores were had: what else than the weights they depend on."""
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
    wanted = scoring(scored[max(scored)])
    return max((metrics[METRIC], step) for step, metrics in scored.items() if scoring(metrics) == wanted)[1]


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
      ValueError: a path that files.local refuses.
    """
    path = files.local(path)
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
        return checkpointer.restore(Literal(directory / "params"), target), spec


def save_params(directory: str | pathlib.Path, params: Any, spec: model_spec.ModelSpec) -> None:
    """Writes a parameters-only checkpoint to a directory that does not exist yet; OSError if there is no room."""
    directory = files.local(directory)
    files.check_room(directory.parent, num_bytes(params), "the parameters")
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
    with ocp.Checkpointer(handler, temporary_path_class=Sealed) as checkpointer:
        checkpointer.save(Literal(directory), args=items)


def with_sharding(tree: Any, sharding: Any) -> Any:
    """The shapes of `tree` as jax.ShapeDtypeStruct placed by `sharding`, one for all or a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)

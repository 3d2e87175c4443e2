"""Training: the stages of a run, and the loop."""

import fnmatch
import logging
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fcn_jax import checkpoint, evaluate, files, metrics, sharding, train_state
from fcn_jax import config as config_lib
from fcn_jax.config import Stage
from fcn_jax.data import datasets, pipeline
from fcn_jax.data.dataset import Dataset
from fcn_jax.models import fcn
from fcn_jax.models.spec import parse_inputs
from fcn_jax.run import diagnosis, distributed, parameters, progress, results, resume, rules, teacher
from fcn_jax.run import stage as stage_lib
from fcn_jax.run import workdir as workdir_lib
from fcn_jax.run.context import Run, opened
from fcn_jax.run.stop import Stop, Stopped

log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs every stage of `config` in `workdir`, from where an earlier start of the same command stopped.

    Raises:
      ValueError: a value of the config; a workdir that belongs to another config, network or running process, that
        files.local refuses, or whose checkpoints can none of them be read.
      FloatingPointError: a loss that is not finite; names its step and images.
      Stopped: by Ctrl-C or SIGTERM; what was done is saved.
    """
    config_lib.validate(config_lib.filled(config))
    files.local(workdir)
    config = rules.recorded(config, workdir)
    if not config_lib.left_open(config) and resume.is_finished(config, workdir):
        end = config_lib.stages(config)[-1].end
        log.info("%s is finished: step %d of %d. --mode=eval evaluates it.", workdir, end, end)
        log.info("More config.steps extend it, at the learning rates of the longer run from there on.")
        return
    splits = _open_splits(config)
    config = rules.completed(config, splits[0])
    config_lib.validate(config)
    mesh = sharding.make_mesh()
    sharding.check_divisible("data.batch_size", config.data.batch_size, mesh.size)
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size)
    with workdir_lib.claimed(workdir, jax.process_index()):
        distributed.check_shared(workdir)
        with opened(config, workdir, mesh, *splits) as run:
            _run_stages(run)


def _open_splits(config: ConfigDict) -> tuple[datasets.Split, datasets.Split]:
    """To train and to evaluate on; ValueError, before anything is prepared, for what the dataset has not."""
    data = config.data
    dataset = datasets.find(data.name, data.raw_dir)
    _check_dataset(config, dataset)
    train_split, eval_split = (
        datasets.open_split(
            dataset,
            split,
            raw_dir=data.raw_dir,
            data_dir=data.data_dir,
            corrupt=data.corrupt,
            annotated=data.annotated,
        )
        for split in (data.train_split, data.eval_split)
    )
    if data.overlap:
        log.warning("data.overlap: images may be in both splits, so that the scores do not show what was learned")
    else:
        datasets.check_disjoint(train_split, eval_split)
    return train_split, eval_split


def _check_dataset(config: ConfigDict, dataset: Dataset) -> None:
    if "inputs" not in config_lib.left_open(config):
        for stage in config_lib.stages(config):
            parse_inputs(stage.inputs, dataset.inputs)
    if (config.data.mask or config.eval.mask) and dataset.labels[0].class_names[0] != "background":
        raise ValueError(f"config.data.mask and config.eval.mask need a class background, which {dataset.name} has not")


def _run_stages(run: Run) -> None:
    """The stages that are left, each from the parameters of earlier ones."""
    end = config_lib.stages(run.config)[-1].end
    _check_globs(run)
    teacher.check(run)
    params = None
    try:
        for start in resume.resume(run):
            params = _train_stage(run, start, params)
    except (KeyboardInterrupt, Stopped):
        kept = run.checkpoints.latest_step() or 0
        log.info("interrupted: the same command goes on from step %d", kept)
        raise
    log.info("done: step %d; best at step %s", end, run.checkpoints.best_step())


def _check_globs(run: Run) -> None:
    """Raises ValueError for a glob of optim.frozen or optim.own_bias that matches no layer of any stage."""
    stages, optim = config_lib.stages(run.config), run.config.optim
    layers = sorted({layer for stage in stages for layer in fcn.abstract_params(run.spec(stage))})
    for key, globs in (("frozen", optim.frozen), ("own_bias", optim.own_bias)):
        for glob in config_lib.words(globs):
            if not fnmatch.filter(layers, glob):
                raise ValueError(
                    f"config.optim.{key} has {glob!r}, which matches no layer: choose from {', '.join(layers)}"
                )


def _train_stage(run: Run, start: resume.Start, previous: Any) -> Any:
    """The updates from `start` to the end of its stage; its parameters, and `previous` those of the one before.

    Parameters go from stage to stage on the host, so that the devices never hold those of two.
    """
    stage = start.stage
    # Compiled first, since that shows whether the memory suffices.
    ready = stage_lib.ready(run, stage)
    places = jax.tree.map(lambda x: x.sharding, ready.abstract)
    evaluator = evaluate.compiled(ready.spec, places.params, run.mesh, run.eval_split, run.config)
    sharding.release_host_memory()
    with jax.transfer_guard("allow"):  # from the host, once
        if start.within:
            state = run.checkpoints.restore(start.step, ready.abstract)
        else:
            params = parameters.initial(run, start, previous)
            state = jax.jit(ready.create, out_shardings=places)(params)
            del params
    origin = start.origin(run.config.init.weights)
    log.info("%s: steps %d to %d, from %s", stage.network, start.step, stage.end, origin)
    with Stop() as stop:
        state = _loop(run, start, state, ready, evaluator, stop)
    return sharding.to_host(state.result, run.mesh)


def _loop(
    run: Run,
    start: resume.Start,
    state: train_state.TrainState,
    ready: stage_lib.Ready,
    evaluator: evaluate.Evaluator,
    stop: Stop,
) -> train_state.TrainState:
    config, stage = run.config, start.stage
    batches = pipeline.iterate(ready.dataset, start.step, config.data.num_threads)
    end = config_lib.stages(config)[-1].end
    clock = progress.Clock(config.data.batch_size * config.data.accumulate, start.step, end)
    losses: list[jax.Array] = []  # they stay on the devices until they are shown
    corrupt: set[str] = set()
    for step, batch in enumerate(batches, start.step + 1):
        arrays = {key: batch[key] for key in ("image", "label", "size")}
        state, found = ready.update(state, sharding.to_devices(arrays, run.mesh, 1))
        _tell_corrupt(batch, corrupt)
        losses.append(found["loss"])
        if len(losses) > 1:  # one step runs, the next is dispatched; a stop would have to wait for any more
            jax.block_until_ready(losses[-2])
        last = step == stage.end
        evaluates = last or (config.eval.every and step % config.eval.every == 0)
        stops = stop.asked()
        saves = evaluates or stops or step % config.log.checkpoint_every == 0
        if saves or step % config.log.every == 0:  # when saving too: else a restart would leave losses out of the mean
            _check_finite(run, state, ready.dataset)
            with jax.transfer_guard("allow"):  # optax counts in jax.numpy
                rate = float(ready.rate(step - 1 - stage.start))
            curve = {"loss": float(np.mean(jax.device_get(losses))), "learning_rate": rate}
            if run.curves is not None:
                run.curves.write(step, {**curve, "gradient_norm": float(jax.device_get(found["gradient_norm"]))})
            log.info("step %d/%d  loss %.4f  %s", step, end, curve["loss"], clock.tell(step))
            losses.clear()
        if saves:
            with clock.stopped():
                scores = _evaluate(run, stage, state, evaluator, show_table=last) if evaluates else None
                run.checkpoints.save(state, ready.spec, scores)
        if stops:
            raise stop.stopped()
        if last:
            break
    run.checkpoints.wait()
    if step < end and stop.asked():  # while the last step of the stage was evaluated and saved
        raise stop.stopped()
    return state


def _tell_corrupt(batch: dict[str, np.ndarray], known: set[str]) -> None:
    """Names the images of a batch that could not be read and were not named yet; adds them to `known`."""
    new = set(batch["id"][batch["corrupt"]].tolist()) - known
    if new:
        known |= new
        log.warning("corrupt and skipped: %s (%d images so far)", ", ".join(sorted(new)), len(known))


def _check_finite(run: Run, state: train_state.TrainState, dataset: Any) -> None:
    bad_step = int(jax.device_get(state.bad_step))
    if bad_step < 0:
        return
    run.checkpoints.wait()
    ids = ", ".join(dataset[bad_step]["id"].ravel().tolist())
    raise FloatingPointError(
        f"the loss or its gradient is not finite at step {bad_step + 1}, images {ids}; the last checkpoint is of step"
        f" {run.checkpoints.latest_step() or 0}: lower learning_rate, set optim.clip_norm, or look at these images"
    )


def _evaluate(
    run: Run, stage: Stage, state: train_state.TrainState, evaluator: evaluate.Evaluator, *, show_table: bool
) -> dict[str, Any]:
    """Evaluates on the eval split, writes results, curves and pictures; the scores that go with the checkpoint."""
    found, panels = evaluator(state.result)
    step = int(jax.device_get(state.step))
    scores = {key: value for key, value in found.items() if isinstance(value, float)}
    if run.curves is not None:
        run.curves.write(step, {f"eval/{key}": value for key, value in scores.items()})
        run.curves.pictures(step, panels)
        results.write(run.workdir, {"step": step, **results.scoring(run.config), **found}, panels)
    log.info(
        "step %d  eval on %s: %s", step, run.eval_split.split, "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
    )
    for line in diagnosis.look(run, stage, step, found):
        log.warning("%s", line)
    if show_table:
        for name, head in found.get("heads", {"": found}).items():
            log.info("%s%s", f"{name}:\n" if name else "", metrics.table(head))
    # A split without labels has no mean IU; it must not win.
    mean_iou = float(np.nan_to_num(scores["mean_iou"], nan=-1.0))
    return {**scores, checkpoint.METRIC: mean_iou, **results.scoring(run.config, stage.inputs)}

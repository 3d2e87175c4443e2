"""Training: the stages of a run, the loop, and nothing but the loop."""

import contextlib
import dataclasses
import fnmatch
import functools
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorboardX
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import (
    checkpoint,
    damage,
    distributed,
    evaluate,
    json_file,
    metrics,
    optim,
    progress,
    sharding,
    steps,
    train_state,
    weights,
)
from fcn_jax import config as config_lib
from fcn_jax import workdir as workdir_lib
from fcn_jax.data import datasets, pipeline
from fcn_jax.data.dataset import Dataset
from fcn_jax.models import fcn
from fcn_jax.models.spec import Head, ModelSpec, configured, parse_inputs
from fcn_jax.stop import Stop, Stopped
from fcn_jax.weights import merge

log = logging.getLogger(__name__)

_CURVES = 4_000_000  # bytes, more than an evaluation's pictures take


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    train_split: datasets.Split
    eval_split: datasets.Split
    checkpoints: checkpoint.Checkpoints
    writer: tensorboardX.SummaryWriter | None  # None on all processes but the first

    def spec(self, stage: config_lib.Stage) -> ModelSpec:
        """The network of a stage."""
        split = self.train_split
        inputs, mean = parse_inputs(stage.inputs, split.inputs)
        return configured(
            stage.network,
            self.config.model,
            class_names=split.class_names,
            palette=split.palette,
            mean=mean,
            inputs=inputs,
            heads=tuple(Head(name, classes) for _, name, classes in split.heads) if len(split.heads) > 1 else (),
        )


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs every stage of `config` in `workdir`, from where an earlier start of the same command stopped.

    Raises:
      ValueError: a value of the config; a workdir that belongs to another config, network or running process, that
        workdir.local refuses, or whose checkpoints can none of them be read.
      FloatingPointError: a loss that is not finite; names its step and images.
      Stopped: by Ctrl-C or SIGTERM; what was done is saved.
    """
    config_lib.validate(config)
    workdir_lib.local(workdir)
    mesh = sharding.make_mesh()
    sharding.check_divisible("data.batch_size", config.data.batch_size, mesh.size)
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size)
    if _is_finished(config, workdir):
        end = config_lib.stages(config)[-1].end
        log.info("%s is finished: step %d of %d. --mode=eval evaluates it.", workdir, end, end)
        log.info("More config.steps extend it, at the learning rates of the longer run from there on.")
        return
    data = config.data
    _check_dataset(config, datasets.find(data.name))
    train_split, eval_split = (
        datasets.open_split(
            data.name,
            split,
            raw_dir=data.raw_dir,
            data_dir=data.data_dir,
            corrupt=data.corrupt,
            annotated=data.annotated,
        )
        for split in (data.train_split, data.eval_split)
    )
    if config.data.overlap:
        log.warning("data.overlap: images may be in both splits, so that the scores do not show what was learned")
    else:
        datasets.check_disjoint(train_split, eval_split)
    with workdir_lib.claimed(workdir, jax.process_index()):
        distributed.check_shared(workdir)
        _train_in(config, workdir, mesh, train_split, eval_split)


def _check_dataset(config: ConfigDict, dataset: Dataset) -> None:
    """Raises ValueError, before anything is prepared, for inputs or a mask that the dataset has not."""
    for stage in config_lib.stages(config):
        parse_inputs(stage.inputs, dataset.inputs)
    if (config.data.mask or config.eval.mask) and dataset.labels[0].class_names[0] != "background":
        raise ValueError(f"config.data.mask and config.eval.mask need a class background, which {dataset.name} has not")


def _is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the run in `workdir` is done, as all processes see it; ValueError if it is one of another config."""
    steps = checkpoint.saved_steps(workdir)
    if steps:
        _check_same_config(config, workdir)
    return distributed.all_of(bool(steps) and steps[-1] >= config_lib.stages(config)[-1].end)


def _train_in(
    config: ConfigDict, workdir: pathlib.Path, mesh: Mesh, train_split: datasets.Split, eval_split: datasets.Split
) -> None:
    """The run in a workdir that is its own, from the newest checkpoint that can be read."""
    lost = ""
    if distributed.is_main():
        lost = damage.set_aside(workdir)
        (workdir / "checkpoints").mkdir(exist_ok=True)  # else Orbax' processes race for it
    if not distributed.all_of(not lost):
        raise ValueError(lost or f"none of the checkpoints in {workdir} can be read")
    step = distributed.of_main(max(checkpoint.saved_steps(workdir), default=0))
    writer, last = None, config_lib.stages(config)[-1]
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            _tell_of_extension(config, workdir, step)
            workdir_lib.write(workdir / "config.json", config_lib.to_json(config))
            _forget_curves_after(workdir, step)
            writer = stack.enter_context(tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1))
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, evaluate.scoring(config, last.inputs)))
        stack.enter_context(distributed.together(workdir))
        if not distributed.all_of((checkpoints.latest_step() or 0) == step):
            raise ValueError(f"not every host sees the checkpoint of step {step} in {workdir}: start again in a minute")
        _run_stages(Run(config, workdir, mesh, train_split, eval_split, checkpoints, writer), step)


def _run_stages(run: Run, step: int) -> None:
    """The stages from `step` on, each from the parameters of the one before."""
    stages = config_lib.stages(run.config)
    _check_globs(run, stages)
    if step:
        made_by = next(stage for stage in stages if step <= stage.end)
        _check_same_network(run.checkpoints.spec(step), run.spec(made_by), run.workdir)
        log.info("resuming %s at step %d of %d", run.workdir, step, stages[-1].end)
    params = None
    try:
        for stage in stages:
            if step < stage.end:
                params = _train_stage(run, stage, params)
            if step <= stage.end:
                _keep_for_later(run, stage, params)
    except (KeyboardInterrupt, Stopped):
        kept = run.checkpoints.latest_step() or 0
        log.info("interrupted: the same command goes on from step %d", kept)
        raise
    log.info("done: step %d; best at step %s", stages[-1].end, run.checkpoints.best_step())


def _train_stage(run: Run, stage: config_lib.Stage, previous: Any) -> Any:
    """The updates from the latest checkpoint, or from the parameters of the stage before, to the end of `stage`.

    Parameters go from stage to stage on the host, so that the devices never hold those of two.
    """
    config, spec = run.config, run.spec(stage)
    optimizer = optim.make_optimizer(
        fcn.abstract_params(spec),
        name=config.optim.name,
        schedule=_schedule(config, stage),
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        bias_multiplier=config.optim.bias_multiplier,
        clip_norm=config.optim.clip_norm,
        frozen=config_lib.words(config.optim.frozen),
        own_bias=config_lib.words(config.optim.own_bias),
    )
    create = functools.partial(
        train_state.create_train_state, optimizer=optimizer, step=stage.start, averaged=config.optim.ema > 0
    )
    abstract = jax.eval_shape(create, fcn.abstract_params(spec))
    places = sharding.place(abstract, run.mesh, divided=config.sharding.params)
    abstract = checkpoint.with_sharding(abstract, places)
    # Compiled first, since that shows whether the memory suffices.
    dataset, canvas = _train_dataset(run, stage)
    update = _compile_update(run, stage, optimizer, abstract, canvas)
    eval_steps = evaluate.compile_eval_steps(spec, places.params, run.mesh, run.eval_split, config)
    sharding.release_host_memory()
    step = run.checkpoints.latest_step() or 0
    with jax.transfer_guard("allow"):  # from the host, once
        if step > stage.start:
            state = run.checkpoints.restore(step, abstract)
        else:
            state = jax.jit(create, out_shardings=places)(_initial_params(run, stage, previous))
    log.info("%s: steps %d to %d", stage.network, int(jax.device_get(state.step)), stage.end)
    with Stop() as stop:
        state = _loop(run, stage, spec, state, dataset, update, eval_steps, stop)
    return sharding.to_host(state.result, run.mesh)


def _loop(
    run: Run,
    stage: config_lib.Stage,
    spec: ModelSpec,
    state: train_state.TrainState,
    dataset: Any,
    update: Callable[..., Any],
    eval_steps: evaluate.Steps,
    stop: Stop,
) -> train_state.TrainState:
    config, schedule = run.config, _schedule(run.config, stage)
    start = int(jax.device_get(state.step))
    batches = pipeline.iterate(dataset, start, config.data.num_threads)
    end = config_lib.stages(config)[-1].end
    clock = progress.Clock(config.data.batch_size * config.data.accumulate, start, end)
    losses: list[jax.Array] = []  # they stay on the devices until they are shown
    corrupt: set[str] = set()
    for step, batch in enumerate(batches, start + 1):
        arrays = {key: batch[key] for key in ("image", "label", "size")}
        state, results = update(state, sharding.to_devices(arrays, run.mesh, 1))
        _tell_corrupt(batch, corrupt)
        losses.append(results["loss"])
        last = step == stage.end
        evaluates = last or (config.eval.every and step % config.eval.every == 0)
        stops = stop.asked()
        saves = evaluates or stops or step % config.log.checkpoint_every == 0
        if saves or step % config.log.every == 0:  # when saving too: else a restart would leave losses out of the mean
            _check_finite(run, state, dataset)
            with jax.transfer_guard("allow"):  # optax counts in jax.numpy
                rate = float(schedule(step - 1 - stage.start))
            curve = {"loss": float(np.mean(jax.device_get(losses))), "learning_rate": rate}
            _write_curve(run, step, {**curve, "gradient_norm": float(jax.device_get(results["gradient_norm"]))})
            log.info("step %d/%d  loss %.4f  %s", step, end, curve["loss"], clock.tell(step))
            losses.clear()
        if saves:
            with clock.stopped():
                scores = _evaluate(run, stage, state, eval_steps, show_table=last) if evaluates else None
                run.checkpoints.save(state, spec, scores)
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


def _evaluate(
    run: Run, stage: config_lib.Stage, state: train_state.TrainState, eval_steps: evaluate.Steps, *, show_table: bool
) -> dict[str, Any]:
    """Evaluates on the eval split, writes results, curves and pictures; the scores that go with the checkpoint."""
    results, panels = evaluate.evaluate(
        eval_steps,
        state.result,
        run.eval_split,
        run.mesh,
        batch_size=run.config.eval.batch_size,
        num_threads=run.config.data.num_threads,
        pictures=run.config.eval.pictures,
        corrupt=run.config.data.corrupt,
        inputs=stage.input_names,
        mask=run.config.eval.mask,
    )
    step = int(jax.device_get(state.step))
    scores = {key: value for key, value in results.items() if isinstance(value, float)}
    _write_curve(run, step, {f"eval/{key}": value for key, value in scores.items()})
    if run.writer is not None:
        evaluate.write_results(
            run.workdir, {"step": step, **evaluate.scoring(run.config), **results}, run.eval_split, panels
        )
        for index, picture in enumerate(panels):
            run.writer.add_image(f"eval/{index}", picture, step, dataformats="HWC")
    log.info(
        "step %d  eval on %s: %s", step, run.eval_split.split, "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
    )
    if show_table:
        for name, found in results.get("heads", {"": results}).items():
            log.info("%s%s", f"{name}:\n" if name else "", metrics.table(found))
    # A split without labels has no mean IU; it must not win.
    mean_iou = float(np.nan_to_num(scores["mean_iou"], nan=-1.0))
    return {**scores, checkpoint.METRIC: mean_iou, **evaluate.scoring(run.config, stage.inputs)}


def _initial_params(run: Run, stage: config_lib.Stage, previous: Any) -> Any:
    """Host parameters before a stage: those of the last one with its inputs, or initial ones.

    Each of several streams has those of the last stage with its inputs, or the weights of the config.
    """
    init, spec = run.config.init, run.spec(stage)
    initial = functools.partial(jax.jit(fcn.init, static_argnums=0), spec, jax.random.key(run.config.seed))
    before = _stage_with(run, stage, stage.inputs)
    streams = {
        name: _stage_with(run, stage, inputs)
        for name, inputs in zip(spec.streams, stage.inputs.split("/"), strict=True)
    }
    if before is not None:
        params, _ = merge.merge(spec, _of_stage(run, before, stage, previous), initial=initial)
    elif all(streams.values()):
        single = {name: _of_stage(run, found, stage, previous) for name, found in streams.items() if found}
        params, _ = merge.merge(spec, merge.join(spec, single), initial=initial)
    else:
        found = weights.read(init.weights, init.cache_dir) if init.weights else weights.NONE
        if any(streams.values()):
            single = {name: _of_stage(run, s, stage, previous) if s else found for name, s in streams.items()}
            found = merge.join(spec, single)
        # Layers are named without their stream, and what comes from a stage is left as it is.
        begun = [name for name, s in streams.items() if not s]
        random, skip = (
            [f"{glob}{name}" for glob in config_lib.words(globs) for name in begun]
            for globs in (init.random, init.skip)
        )
        params, _ = merge.merge(spec, found, initial=initial, random=random, skip=skip, classes=init.classes)
    log.info("%s: %s parameters", stage.network, f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}")
    return params


def _stage_with(run: Run, stage: config_lib.Stage, inputs: str) -> config_lib.Stage | None:
    """The last stage before `stage` that saw these inputs."""
    earlier = [s for s in config_lib.stages(run.config) if s.end <= stage.start and s.inputs == inputs]
    return earlier[-1] if earlier else None


def _of_stage(run: Run, found: config_lib.Stage, stage: config_lib.Stage, previous: Any) -> weights.Weights:
    """What a finished stage has left; `previous` are the parameters of the one right before `stage`."""
    if found.end == stage.start:
        params = previous or checkpoint.load_params(checkpoint.find(run.workdir, "latest"))[0]
    else:
        params, _ = checkpoint.load_params(_kept(run, found))
    return weights.from_params(params, run.spec(found))


def _kept(run: Run, stage: config_lib.Stage) -> pathlib.Path:
    return run.workdir / "stages" / str(stage.end)


def _keep_for_later(run: Run, stage: config_lib.Stage, params: Any) -> None:
    """Saves the parameters of a stage that is done where a later one than the next starts from them."""
    later = [s for s in config_lib.stages(run.config) if s.start > stage.end]
    wanted = any(stage.inputs == inputs for s in later for inputs in (s.inputs, *s.inputs.split("/")))
    again = any(s.inputs == stage.inputs and s.start == stage.end for s in config_lib.stages(run.config))
    if wanted and not again and not _kept(run, stage).exists():
        params = params or checkpoint.load_params(checkpoint.find(run.workdir, "latest"))[0]
        _kept(run, stage).parent.mkdir(exist_ok=True)
        checkpoint.save_params(_kept(run, stage), params, run.spec(stage))


def _train_dataset(run: Run, stage: config_lib.Stage) -> tuple[Any, tuple[int, int]]:
    """The batches by step, and the height and width of their canvas."""
    data = run.config.data
    canvas = tuple(data.crop_size) or pipeline.largest_size(run.train_split)
    augmentation = pipeline.Augmentation(
        canvas=canvas,
        crop=bool(data.crop_size),
        scale=tuple(data.scale),
        flip=data.flip,
        colour_jitter=data.colour_jitter,
        mask=data.mask,
    )
    dataset = pipeline.train_dataset(
        run.train_split,
        augmentation,
        seed=run.config.seed,
        batch_size=data.batch_size,
        accumulate=data.accumulate,
        replacement=data.replacement,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        corrupt=data.corrupt,
        inputs=stage.input_names,
    )
    return dataset, canvas


def _schedule(config: ConfigDict, stage: config_lib.Stage) -> Callable[[Any], Any]:
    return optim.make_schedule(
        config.optim.schedule, stage.learning_rate, stage.end - stage.start, config.optim.warmup_steps
    )


def _compile_update(
    run: Run, stage: config_lib.Stage, optimizer: Any, abstract: Any, canvas: tuple[int, int]
) -> Callable[..., Any]:
    """train_step compiled for the one shape of batch there is; refuses, before any work, what memory cannot hold."""
    config = run.config
    spec = run.spec(stage)
    step = functools.partial(
        steps.train_step,
        heads=[place for _, place in spec.outputs],
        model=fcn.FCN(spec, dropout=config.model.dropout, dtype=config.model.dtype),
        optimizer=optimizer,
        groups=optim.parameter_groups(abstract.params, config_lib.words(config.optim.frozen)),
        class_weights=jax.device_put(datasets.class_weights(config.loss.class_weights, run.train_split)),
        normalization=config.loss.normalization,
        sampling=config.loss.sampling,
        seed=config.seed,
        ema=config.optim.ema,
        start=stage.start,
        gather=_gather(run, abstract.params),
    )
    whole, split = sharding.replicated(run.mesh), sharding.split_batch(run.mesh, 1)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    lead = (config.data.accumulate, config.data.batch_size)
    batch = evaluate.batch_shapes(spec, lead, canvas, split)
    began = time.monotonic()
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(places, whole)).lower(abstract, batch).compile()
    needed = sharding.check_memory(
        "data.batch_size",
        compiled.memory_analysis(),
        (abstract, abstract.params),
        config.data.batch_size,
        run.mesh,
    )
    log.info("compiled in %.0f s; a step needs %.2f GB per device", time.monotonic() - began, needed / 1e9)
    return compiled


def _gather(run: Run, params: Any) -> Callable[[Any], Any]:
    """What makes the parameters whole for a step, if the config divides them."""
    if not run.config.sharding.params:
        return lambda params: params
    places = jax.tree.map(lambda x: x.sharding, params)
    return functools.partial(sharding.gather, whole=sharding.replicated(run.mesh), parts=places)


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


def _check_same_network(found: ModelSpec, wanted: ModelSpec, workdir: pathlib.Path) -> None:
    differences = found.differences(wanted)
    if differences:
        raise ValueError(
            f"the checkpoint in {workdir} is of another network ({'; '.join(differences)}): use another --workdir"
        )


def _check_globs(run: Run, stages: list[config_lib.Stage]) -> None:
    """Raises ValueError for a glob of optim.frozen or optim.own_bias that matches no layer of any stage."""
    layers = sorted({layer for stage in stages for layer in fcn.abstract_params(run.spec(stage))})
    optim_config = run.config.optim
    for key, globs in (("frozen", optim_config.frozen), ("own_bias", optim_config.own_bias)):
        for glob in config_lib.words(globs):
            if not fnmatch.filter(layers, glob):
                raise ValueError(
                    f"config.optim.{key} has {glob!r}, which matches no layer: choose from {', '.join(layers)}"
                )


def _check_same_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises ValueError where config.json of a run and `config` differ in what may not."""
    path = workdir / "config.json"
    changes = config_lib.changes(json_file.read(path), config) if path.exists() else []
    if changes:
        raise ValueError(
            f"use another --workdir, or delete {workdir}, which holds a run with another config: {'; '.join(changes)}"
        )


def _tell_of_extension(config: ConfigDict, workdir: pathlib.Path, step: int) -> None:
    """Says what becomes of the schedule of a run whose steps were raised; config.json is that of the last start."""
    path = workdir / "config.json"
    if step and path.exists():
        before, now = sum(config_lib.completed(json_file.read(path))["steps"]), sum(config.steps)
        if before != now:
            rule = f"from step {step + 1} on the learning rate is that of a run of {now} steps"
            log.info("extended from %d to %d steps: %s", before, now, rule)


def _forget_curves_after(workdir: pathlib.Path, step: int) -> None:
    """Takes the points after the step that a run goes on from out of curves.jsonl: they come again."""
    path = workdir / "curves.jsonl"
    if path.exists():
        lines = path.read_bytes().decode("ascii", "replace").splitlines()
        rows = [line for line in lines if _step_of(line) <= step]
        workdir_lib.write(path, "".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    """Of a line of curves.jsonl; infinite if a full disk or a power cut has left half of it."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return found if isinstance(found, int) else math.inf


def _write_curve(run: Run, step: int, values: dict[str, float]) -> None:
    """To TensorBoard, and as a line of curves.jsonl for everything else."""
    if run.writer is None:
        return
    # TensorBoard's writer would wait for ever on its thread, which a full disk has ended.
    workdir_lib.check_room(run.workdir, _CURVES, "curves and pictures")
    for key, value in values.items():
        run.writer.add_scalar(key if "/" in key else f"train/{key}", value, step)
    with open(run.workdir / "curves.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")

"""Training: the stages of a run, the loop, and nothing but the loop."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import checkpoint, evaluate, optim, sharding, train_state, weights
from fcn_jax import config as config_lib
from fcn_jax.data import datasets, pipeline
from fcn_jax.models.spec import ModelSpec
from fcn_jax.weights import merge

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    train_split: datasets.Split
    eval_split: datasets.Split
    checkpoints: checkpoint.Checkpoints
    writer: tensorboardX.SummaryWriter

    def spec(self, network: str) -> ModelSpec:
        """The network of a stage."""
        model = self.config.model
        return ModelSpec(
            network=network,
            geometry=model.geometry,
            at_once=model.at_once,
            upsampling=model.upsampling,
            width=model.width,
            fc_width=model.fc_width,
            class_names=tuple(self.train_split.class_names),
            palette=tuple(self.train_split.palette),
        )


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs every stage of `config` in `workdir`, from where an earlier start of the same command stopped.

    Raises:
      ValueError: a value of the config, or a workdir that belongs to another config or network.
      FloatingPointError: a loss that is not finite; names its step and images.
    """
    config_lib.validate(config)
    mesh = sharding.make_mesh()
    sharding.check_divisible("data.batch_size", config.data.batch_size, mesh.size)
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size)
    train_split, eval_split = (
        datasets.open_split(config.data.name, split, raw_dir=config.data.raw_dir, data_dir=config.data.data_dir)
        for split in (config.data.train_split, config.data.eval_split)
    )
    datasets.check_disjoint(train_split, eval_split)
    workdir.mkdir(parents=True, exist_ok=True)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        _run_stages(config, workdir, mesh, train_split, eval_split, checkpoints)


def _run_stages(
    config: ConfigDict,
    workdir: pathlib.Path,
    mesh: Mesh,
    train_split: datasets.Split,
    eval_split: datasets.Split,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    step = checkpoints.latest_step() or 0
    _claim_workdir(config, workdir, resumes=step > 0)
    stages = config_lib.stages(config)
    if step >= stages[-1].end:
        log.info("%s is finished: step %d of %d. --mode=eval evaluates it.", workdir, step, stages[-1].end)
        return
    if step:
        log.info("resuming %s at step %d of %d", workdir, step, stages[-1].end)
    with tensorboardX.SummaryWriter(str(workdir), purge_step=step) as writer:
        run = Run(config, workdir, mesh, train_split, eval_split, checkpoints, writer)
        state = None
        for stage in stages:
            if step < stage.end:
                state = _train_stage(run, stage, state)
    log.info("done: step %d; best at step %s", stages[-1].end, checkpoints.best_step())


def _train_stage(run: Run, stage: config_lib.Stage, previous: train_state.TrainState | None) -> train_state.TrainState:
    """The updates from the latest checkpoint, or from the end of the stage before, to the end of `stage`."""
    config, spec = run.config, run.spec(stage.network)
    params = _initial_params(run, stage, previous)
    optimizer = optim.make_optimizer(
        params,
        name=config.optim.name,
        schedule=_schedule(config, stage),
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        bias_multiplier=config.optim.bias_multiplier,
        clip_norm=config.optim.clip_norm,
        frozen=config.optim.frozen,
    )
    create = functools.partial(train_state.create_train_state, optimizer=optimizer, step=stage.start)
    abstract = checkpoint.with_sharding(jax.eval_shape(create, params), sharding.replicated(run.mesh))
    step = run.checkpoints.latest_step() or 0
    if step > stage.start:
        _check_same_network(run.checkpoints.spec(step), spec, run.workdir)
        state = run.checkpoints.restore(step, abstract)
    else:
        state = jax.jit(create, out_shardings=sharding.replicated(run.mesh))(params)
    dataset = _train_dataset(run)
    update = _compile_update(run, spec, optimizer, abstract, dataset)
    eval_step = evaluate.make_eval_step(spec, run.mesh, config.model.dtype)
    log.info("%s: steps %d to %d", stage.network, step, stage.end)
    return _loop(run, stage, spec, state, dataset, update, eval_step)


def _loop(
    run: Run,
    stage: config_lib.Stage,
    spec: ModelSpec,
    state: train_state.TrainState,
    dataset: Any,
    update: Callable[..., Any],
    eval_step: Callable[..., Any],
) -> train_state.TrainState:
    config, schedule = run.config, _schedule(run.config, stage)
    start = int(state.step)
    batches = pipeline.iterate(dataset, start, config.data.num_threads)
    clock = _Clock(config.data.batch_size * config.data.accumulate, start, stage.end)
    losses: list[jax.Array] = []
    for step, batch in enumerate(batches, start + 1):
        arrays = {key: batch[key] for key in ("image", "label", "size")}
        state, results = update(state, sharding.to_devices(arrays, run.mesh, 1))
        losses.append(results["loss"])
        last = step == stage.end
        evaluates = last or (config.eval.every and step % config.eval.every == 0)
        saves = evaluates or step % config.log.checkpoint_every == 0
        if last or step % config.log.every == 0:
            curve = {
                "loss": float(np.mean(jax.device_get(losses))),
                "learning_rate": float(schedule(step - 1 - stage.start)),
                "gradient_norm": float(results["gradient_norm"]),
            }
            losses.clear()
            _write_curve(run, step, curve)
            log.info("step %d/%d  loss %.4f  %s", step, stage.end, curve["loss"], clock.tell(step))
        if saves or not losses:
            _check_finite(run, state, dataset)
        if saves:
            with clock.stopped():
                scores = _evaluate(run, spec, state, eval_step) if evaluates else None
                run.checkpoints.save(state, spec, scores)
        if last:
            break
    run.checkpoints.wait()
    return state


def _evaluate(
    run: Run, spec: ModelSpec, state: train_state.TrainState, eval_step: Callable[..., Any]
) -> dict[str, float]:
    """Evaluates on the eval split, writes results, curves and pictures; the scores that go with the checkpoint."""
    results, panels = evaluate.evaluate(
        eval_step,
        state.params,
        run.eval_split,
        run.mesh,
        batch_size=run.config.eval.batch_size,
        num_threads=run.config.data.num_threads,
        pictures=run.config.eval.pictures,
    )
    step = int(state.step)
    evaluate.write_results(run.workdir, {"step": step, **results}, run.eval_split, panels)
    scores = {key: value for key, value in results.items() if isinstance(value, float)}
    _write_curve(run, step, {f"eval/{key}": value for key, value in scores.items()})
    for index, picture in enumerate(panels):
        run.writer.add_image(f"eval/{index}", picture, step, dataformats="HWC")
    log.info(
        "step %d  eval on %s: %s", step, run.eval_split.split, "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
    )
    # A split without labels has no mean IU; it must not win.
    return {**scores, checkpoint.METRIC: float(np.nan_to_num(scores["mean_iou"], nan=-1.0))}


def _initial_params(run: Run, stage: config_lib.Stage, previous: train_state.TrainState | None) -> Any:
    """Parameters at the start of a stage: of the stage before, or initial ones with the weights named in the config.

    Resuming inside the stage needs their shapes alone, resuming at its start the last checkpoint of the stage before.
    """
    config, spec = run.config, run.spec(stage.network)
    step = run.checkpoints.latest_step() or 0
    if step > stage.start:
        return spec.abstract_params()
    fresh = jax.jit(spec.init)(jax.random.key(config.seed))
    if stage.start:
        old = previous.params if previous else checkpoint.load_params(checkpoint.find(run.workdir, "latest"))[0]
        # Layers that the network before did not have start as they are made: scores zero, upsampling bilinear.
        return jax.tree.map(np.asarray, {layer: old.get(layer, fresh[layer]) for layer in fresh})
    arrays = (
        weights.read(config.init.weights, pathlib.Path(config.init.cache_dir).expanduser())
        if config.init.weights
        else {}
    )
    params, report = merge.merge(fresh, arrays, random=config.init.random, skip=config.init.skip)
    log.info("%s", merge.format_report(report))
    log.info("%s: %s parameters", stage.network, f"{parameter_overview.count_parameters(params):,}")
    return params


def _train_dataset(run: Run) -> Any:
    data = run.config.data
    augmentation = pipeline.Augmentation(
        canvas=tuple(data.crop_size) or pipeline.largest_size(run.train_split),
        crop=bool(data.crop_size),
        scale=tuple(data.scale),
        flip=data.flip,
        colour_jitter=data.colour_jitter,
    )
    return pipeline.train_dataset(
        run.train_split,
        augmentation,
        seed=run.config.seed,
        batch_size=data.batch_size,
        accumulate=data.accumulate,
        replacement=data.replacement,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _schedule(config: ConfigDict, stage: config_lib.Stage) -> Callable[[Any], Any]:
    return optim.make_schedule(
        config.optim.schedule, stage.learning_rate, stage.end - stage.start, config.optim.warmup_steps
    )


def _compile_update(run: Run, spec: ModelSpec, optimizer: Any, abstract: Any, dataset: Any) -> Callable[..., Any]:
    """train_step compiled for the one shape of batch there is; refuses, before any work, what memory cannot hold."""
    config = run.config
    step = functools.partial(
        train_state.train_step,
        model=spec.build(dropout=config.model.dropout, dtype=config.model.dtype),
        optimizer=optimizer,
        groups=optim.parameter_groups(abstract.params, config.optim.frozen),
        class_weights=jnp.asarray(class_weights(config.loss.class_weights, run.train_split)),
        normalization=config.loss.normalization,
        seed=config.seed,
    )
    whole, split = sharding.replicated(run.mesh), sharding.split_batch(run.mesh, 1)
    lead = (config.data.accumulate, config.data.batch_size)
    canvas = dataset[0]["image"].shape[2:4]
    batch = {
        "image": jax.ShapeDtypeStruct((*lead, *canvas, 3), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((*lead, *canvas), jnp.uint8, sharding=split),
        "size": jax.ShapeDtypeStruct((*lead, 2), jnp.int32, sharding=split),
    }
    began = time.monotonic()
    compiled = jax.jit(step, donate_argnums=0, out_shardings=whole).lower(abstract, batch).compile()
    needed = check_memory(compiled.memory_analysis(), abstract, config.data.batch_size, run.mesh)
    log.info("compiled in %.0f s; a step needs %.2f GB per device", time.monotonic() - began, needed / 1e9)
    return compiled


def check_memory(analysis: Any, state: Any, batch_size: int, mesh: Mesh, available: int | None = None) -> int:
    """The bytes per device that a compiled step needs; ValueError with what would fit if there are not so many."""
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    available = _device_memory(mesh) if available is None else available
    if needed <= available:
        return needed
    # The state and its gradients do not shrink with the batch; all else is taken to be proportional to it.
    fixed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, state.params)))
    fits = int((available - fixed) / max(needed - fixed, 1) * batch_size / mesh.size) * mesh.size
    remedy = (
        f"data.batch_size={fits} should fit (data.accumulate makes up for it)"
        if fits > 0
        else "no batch fits: lower data.crop_size, model.fc_width or model.width, or use model.dtype=bfloat16"
    )
    raise ValueError(
        f"out of memory: a step with data.batch_size={batch_size} needs {needed / 1e9:.2f} GB per device, of which"
        f" there are {available / 1e9:.2f} GB: {remedy}"
    )


def _device_memory(mesh: Mesh) -> int:
    """Bytes of memory of each device; of the machine, divided by the devices, where these are CPUs."""
    stats = mesh.devices.flat[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)


def class_weights(choice: str, split: datasets.Split) -> np.ndarray:
    """float32 [C] for config.loss.class_weights."""
    num_classes = len(split.class_names)
    if choice == "none":
        return np.ones(num_classes, np.float32)
    if choice in ("median_frequency", "sqrt_median_frequency"):
        balanced = datasets.median_frequency_weights(split.pixel_counts)
        return np.sqrt(balanced) if choice.startswith("sqrt") else balanced
    try:
        values = np.array([float(value) for value in choice.split(",")], np.float32)
    except ValueError:
        raise ValueError(
            f"config.loss.class_weights={choice!r}: choose none, median_frequency, sqrt_median_frequency,"
            " or numbers such as 1,0.5,2"
        ) from None
    if values.shape != (num_classes,) or (values < 0).any():
        raise ValueError(
            f"config.loss.class_weights has {values.size} numbers, the lowest {values.min()}: {split.name} needs"
            f" {num_classes}, none below 0"
        )
    return values


def _check_finite(run: Run, state: train_state.TrainState, dataset: Any) -> None:
    bad_step = int(state.bad_step)
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


def _claim_workdir(config: ConfigDict, workdir: pathlib.Path, *, resumes: bool) -> None:
    """Writes config.json; where there are checkpoints already, holds the one that is there against `config`."""
    path = workdir / "config.json"
    if resumes and path.exists():
        changes = config_lib.changes(json.loads(path.read_text()), config)
        if changes:
            raise ValueError(
                f"{workdir} holds a run with another config ({'; '.join(changes)}): use another --workdir, or delete it"
            )
    partial = path.with_suffix(".json.part")
    partial.write_text(config_lib.to_json(config))
    partial.replace(path)


def _write_curve(run: Run, step: int, values: dict[str, float]) -> None:
    """To TensorBoard, and as a line of curves.jsonl for everything else."""
    for key, value in values.items():
        run.writer.add_scalar(key if "/" in key else f"train/{key}", value, step)
    with open(run.workdir / "curves.jsonl", "a") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


class _Clock:
    """Speed and time left of a loop, evaluation not counted."""

    def __init__(self, images_per_step: int, start: int, end: int):
        self._images, self._step, self._end = images_per_step, start, end
        self._since = time.monotonic()

    def tell(self, step: int) -> str:
        """'2.1 steps/s  17 images/s  ETA 0:14:03', from the time since the last call."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        seconds = int((self._end - step) / rate)
        left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return f"{rate:.2f} steps/s  {rate * self._images:.1f} images/s  ETA {left}"

    def stopped(self) -> "_Pause":
        """A context whose time does not count."""
        return _Pause(self)

    def forget(self, seconds: float) -> None:
        """Takes time out of the account."""
        self._since += seconds


class _Pause:
    def __init__(self, clock: _Clock):
        self._clock = clock

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.forget(time.monotonic() - self._began)

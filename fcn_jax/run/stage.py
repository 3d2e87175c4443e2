"""A stage of a run, made ready: its optimizer, its batches, and its update compiled."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax import checkpoint, losses, optim, sharding, steps, train_state
from fcn_jax import config as config_lib
from fcn_jax.config import Stage
from fcn_jax.data import datasets, pipeline
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run import teacher
from fcn_jax.run.context import Run

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ready:
    """What the loop of a stage needs.

    Attributes:
      create: host parameters -> the state before the first update.
      abstract: the shapes of the state, placed.
      dataset: element t are this process's batches of update t.
      update: steps.train_step, compiled.
      rate: the learning rate at an update of the stage.
    """

    spec: ModelSpec
    create: Callable[[Any], train_state.TrainState]
    abstract: train_state.TrainState
    dataset: Any
    update: Callable[..., Any]
    rate: Callable[[Any], Any]


def ready(run: Run, stage: Stage) -> Ready:
    """All that the stage needs but its parameters; compiling shows whether the memory suffices."""
    config, spec = run.config, run.spec(stage)
    rate = optim.make_schedule(
        config.optim.schedule, stage.learning_rate, stage.end - stage.start, config.optim.warmup_steps
    )
    optimizer = make_optimizer(run, stage, rate)
    create = functools.partial(
        train_state.create_train_state, optimizer=optimizer, step=stage.start, averaged=config.optim.ema > 0
    )
    abstract = jax.eval_shape(create, fcn.abstract_params(spec))
    abstract = checkpoint.with_sharding(abstract, sharding.place(abstract, run.mesh, divided=config.sharding.params))
    canvas = tuple(config.data.crop_size) or pipeline.largest_size(run.train_split)
    teach = teacher.asked(run, spec)
    compiled = compile_update(run, stage, optimizer, abstract, canvas)

    def update(state: train_state.TrainState, arrays: Any) -> Any:
        return compiled(state, teach(arrays))

    return Ready(spec, create, abstract, _dataset(run, stage, canvas), update, rate)


def make_optimizer(run: Run, stage: Stage, rate: Callable[[Any], Any]) -> Any:
    """The solver of the config, at the learning rates `rate`."""
    config = run.config
    solver = optim.Solver(
        config.optim.name,
        rate,
        config.optim.momentum,
        config.optim.weight_decay,
        config.optim.bias_multiplier,
        config.optim.clip_norm,
    )
    frozen, own_bias = config_lib.words(config.optim.frozen), config_lib.words(config.optim.own_bias)
    return _optimizer(run.spec(stage), solver, frozen, own_bias)


@functools.lru_cache(16)  # equal optimizers are one, so that equal updates share a program
def _optimizer(spec: ModelSpec, solver: optim.Solver, frozen: tuple[str, ...], own_bias: tuple[str, ...]) -> Any:
    return optim.make_optimizer(fcn.abstract_params(spec), solver, frozen=frozen, own_bias=own_bias)


def _dataset(run: Run, stage: Stage, canvas: tuple[int, int]) -> Any:
    data = run.config.data
    augmentation = pipeline.Augmentation(
        canvas=canvas,
        crop=bool(data.crop_size),
        scale=tuple(data.scale),
        flip=data.flip,
        colour_jitter=data.colour_jitter,
        mask=data.mask,
    )
    return pipeline.train_dataset(
        run.train_split,
        augmentation,
        seed=run.config.seed,
        batch_size=data.batch_size,
        accumulate=data.accumulate,
        replacement=data.replacement,
        reading=pipeline.Reading(stage.input_names, data.corrupt, jax.process_index(), jax.process_count()),
    )


def compile_update(
    run: Run, stage: Stage, optimizer: Any, abstract: train_state.TrainState, canvas: tuple[int, int]
) -> Callable[..., Any]:
    """train_step compiled for the one shape of batch there is; refuses, before any work, what memory cannot hold."""
    config, spec = run.config, run.spec(stage)
    update = steps.Update(
        model=fcn.FCN(spec, dropout=config.model.dropout, dtype=config.model.dtype),
        optimizer=optimizer,
        loss=losses.Loss(
            class_weights=tuple(datasets.class_weights(config.loss.class_weights, run.train_split).tolist()),
            normalization=config.loss.normalization,
            heads=tuple(place for _, place in spec.outputs),
            sampling=config.loss.sampling,
            soft=config.distill.weight if config.distill.teacher else 0.0,
            jaccard=config.loss.jaccard,
        ),
        frozen=config_lib.words(config.optim.frozen),
        seed=config.seed,
        ema=config.optim.ema,
        start=stage.start,
        gather=_gather(run, abstract.params) if config.sharding.params else None,
    )
    whole, split = sharding.replicated(run.mesh), sharding.split_batch(run.mesh, 1)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    lead = (config.data.accumulate, config.data.batch_size)
    batch = steps.batch_shapes(spec, lead, canvas, split)
    if config.distill.teacher:
        shape = (*lead, *canvas, len(spec.class_names))
        batch["soft"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    began = time.monotonic()
    step = jax.jit(steps.train_step, static_argnames="update", donate_argnums=0, out_shardings=(places, whole))
    compiled = step.lower(abstract, batch, update=update).compile()
    needed = sharding.check_memory(
        "data.batch_size", compiled.memory_analysis(), (abstract, abstract.params), config.data.batch_size, run.mesh
    )
    log.info("compiled in %.0f s; a step needs %.2f GB per device", time.monotonic() - began, needed / 1e9)
    return compiled


def _gather(run: Run, params: Any) -> Callable[[Any], Any]:
    """What makes divided parameters whole for a step."""
    places = jax.tree.map(lambda x: x.sharding, params)
    return functools.partial(sharding.gather, whole=sharding.replicated(run.mesh), parts=places)

"""Optimizers and schedules, with the groups that the released solvers use: kernels, biases and frozen layers."""

import dataclasses
import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class Solver:
    """A rule of updates: sgd in Caffe's form (v = m v + lr (g + wd w), w -= v) or adamw.

    Attributes:
      rate: the learning rate at an update.
      momentum: of sgd; beta1 of adamw.
      weight_decay: of kernels.
      bias_multiplier: the learning rate of biases relative to that of kernels.
      clip_norm: the largest global norm of the gradient, 0 for no limit.
    """

    name: str
    rate: optax.Schedule
    momentum: float
    weight_decay: float
    bias_multiplier: float = 1.0
    clip_norm: float = 0.0


@functools.lru_cache(16)  # equal schedules are one, so that equal updates share a program
def make_schedule(name: str, learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """The learning rate at update 0 .. steps - 1 of a stage, after `warmup_steps` of linear rise from 0 (exclusive)."""
    if warmup_steps >= steps and warmup_steps:
        raise ValueError(f"optim.warmup_steps={warmup_steps} must be below the {steps} steps of the stage")
    rest = steps - warmup_steps
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "poly":
        main = optax.polynomial_schedule(learning_rate, 0.0, power=0.9, transition_steps=rest)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest)
    else:
        raise ValueError(f"optim.schedule {name!r}: choose from constant, poly, cosine")
    if not warmup_steps:
        return main
    # Update 0 already takes a step: 1 / (w + 1), 2 / (w + 1), ... of the full rate.
    rise = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def parameter_groups(params: Any, frozen: Sequence[str], own_bias: Sequence[str] = ("*",)) -> Any:
    """The group of every parameter, in the structure of `params`: 'kernel', 'bias', 'norm' or 'frozen'.

    A layer may lie in blocks: its name is then block/layer. 'norm' are the scales of normalisation.

    Args:
      frozen: globs of layers that are not trained.
      own_bias: globs of layers whose biases are of the group 'bias'; those of others are treated as their kernels.

    Raises:
      ValueError: a parameter belongs to no group.
    """

    def group(path: tuple[Any, ...], _: Any) -> str:
        *layers, name = (entry.key for entry in path)
        layer = "/".join(layers)
        if is_frozen(path, frozen):
            return "frozen"
        if name == "scale":
            return "norm"
        if name not in ("kernel", "bias"):
            raise ValueError(
                f"parameter {layer}/{name} belongs to no optimizer group: kernel, bias, scale and frozen are known"
            )
        own = any(fnmatch.fnmatchcase(layer, glob) for glob in own_bias)
        return name if own else "kernel"

    return jax.tree_util.tree_map_with_path(group, params)


def is_frozen(path: Sequence[Any], frozen: Sequence[str]) -> bool:
    """Whether a parameter of this path of keys belongs to a layer that is not trained."""
    layer = "/".join(entry.key for entry in path[:-1])
    return any(fnmatch.fnmatchcase(layer, glob) for glob in frozen)


def without_gradient(params: Any, frozen: Sequence[str]) -> Any:
    """The parameters, of which those of layers that are not trained take no gradient."""

    def stopped(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(value) if is_frozen(path, frozen) else value

    return jax.tree_util.tree_map_with_path(stopped, params)


def make_optimizer(
    params: Any, solver: Solver, *, frozen: Sequence[str] = (), own_bias: Sequence[str] = ("*",)
) -> optax.GradientTransformation:
    """The solver over the groups of `parameter_groups`.

    Biases of the layers `own_bias` have their own rate and no decay; scales of normalisation have no decay.
    """

    def rule(multiplier: float, decay: float) -> optax.GradientTransformation:
        def rate(step: Any) -> Any:
            return multiplier * solver.rate(step)

        if solver.name == "sgd":
            # The rate is inside the velocity, so that a change of rate acts as it does in Caffe.
            return optax.chain(
                optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate), optax.trace(decay=solver.momentum)
            )
        return optax.adamw(rate, b1=solver.momentum, weight_decay=decay)

    groups = {
        "kernel": rule(1.0, solver.weight_decay),
        "bias": rule(solver.bias_multiplier, 0.0),
        "frozen": optax.set_to_zero(),
    }
    labels = parameter_groups(params, frozen, own_bias)
    if "norm" in jax.tree.leaves(labels):  # else the state is what it was before there was this group
        groups["norm"] = rule(1.0, 0.0)
    update = optax.multi_transform(groups, labels)
    return optax.chain(optax.clip_by_global_norm(solver.clip_norm), update) if solver.clip_norm else update

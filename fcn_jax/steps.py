"""The two pure functions that everything else feeds: train_step and eval_step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fcn_jax import losses, metrics, multiscale, optim
from fcn_jax import refine as refine_lib
from fcn_jax.models.spec import WIDE_INPUTS, ModelSpec
from fcn_jax.train_state import TrainState

Batch = dict[str, jax.Array]


def batch_shapes(
    spec: ModelSpec, lead: tuple[int, ...], canvas: tuple[int, int], place: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What both steps take, of such leading axes and canvas (height, width): image, label and size, placed."""
    dtype = jnp.float32 if {*WIDE_INPUTS} & {*spec.input_names} else jnp.uint8
    heads = () if len(spec.outputs) == 1 else (len(spec.outputs),)
    return {
        "image": jax.ShapeDtypeStruct((*lead, *canvas, len(spec.mean)), dtype, sharding=place),
        "label": jax.ShapeDtypeStruct((*lead, *canvas, *heads), jnp.uint8, sharding=place),
        "size": jax.ShapeDtypeStruct((*lead, 2), jnp.int32, sharding=place),
    }


@dataclasses.dataclass(frozen=True)
class Update:
    """What an optimizer update does, whatever the state and the batch: a value, so that equal ones share a program.

    Attributes:
      frozen: globs of layers that are not trained; of them no gradient is computed.
      seed: of dropout and sampling, with the step.
      ema: the decay of state.average, which began at the step `start`.
      gather: what makes divided parameters whole for the computation (sharding.gather), None if they are.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    loss: losses.Loss
    frozen: tuple[str, ...] = ()
    seed: int = 0
    ema: float = 0.0
    start: int = 0
    gather: Callable[[Any], Any] | None = None


def train_step(state: TrainState, batch: Batch, update: Update) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update.

    Args:
      batch: image uint8 [A, B, H, W, 3] (or what the network takes), label uint8 [A, B, H, W] (255 void; of several
        heads [A, B, H, W, heads]), size int32 [A, B, 2]; the gradients of the A batches are accumulated. Perhaps
        soft float32 [A, B, H, W, C], a teacher's probabilities, which count where there are labels.

    Returns:
      The next state and {'loss', 'gradient_norm'}, float32 [].
    """
    loss, heads, accumulated = update.loss, update.loss.heads, batch["image"].shape[0]
    dropout_key = jax.random.fold_in(jax.random.key(update.seed), state.step)
    labels = by_head(batch["label"], len(heads))
    weights = [
        losses.pixel_weights(label, loss.normalization, jnp.asarray(loss.class_weights[place], jnp.float32))
        for label, place in zip(labels, heads, strict=True)
    ]
    if loss.sampling < 1:  # dropout's keys are folded with 0 .. A - 1
        key = jax.random.fold_in(dropout_key, 2**31)
        weights = [losses.sampled(weight, key, loss.sampling, loss.normalization) for weight in weights]

    def pixel_loss(logits: jax.Array, label: Any, soft: Any) -> jax.Array:
        hard = losses.cross_entropy(logits, label)
        return hard if soft is None else (1 - loss.soft) * hard + loss.soft * losses.divergence(logits, soft)

    def loss_fn(params: Any, index: Any, image: Any, size: Any, labels: Any, weights: Any, soft: Any) -> jax.Array:
        params = optim.without_gradient(params, update.frozen)
        params = params if update.gather is None else update.gather(params)
        rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
        logits: Any = update.model.apply({"params": params}, image, size, train=True, rngs=rngs)
        terms = [
            jnp.sum(weight * pixel_loss(logits[..., place], label, None if soft is None else soft[..., place]))
            for place, label, weight in zip(heads, labels, weights, strict=True)
        ]
        if loss.jaccard:
            share = loss.jaccard / accumulated
            terms += [share * losses.jaccard(logits[..., place], x) for place, x in zip(heads, labels, strict=True)]
        return functools.reduce(jnp.add, terms)

    def accumulate(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(state.params, *item)), None

    items = (jnp.arange(accumulated), batch["image"], batch["size"], labels, weights, batch.get("soft"))
    if accumulated == 1:  # a loop of one is still a loop to XLA:CPU, whose convolutions are slow inside of loops
        total, grads = jax.value_and_grad(loss_fn)(state.params, *jax.tree.map(lambda item: item[0], items))
    else:
        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        (total, grads), _ = jax.lax.scan(accumulate, zero, items)

    norm = optax.tree.norm(grads)
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW raises a float to an int power
        updates, opt_state = update.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = optax.incremental_update(params, average, 1 - _decay(update.ema, state.step - update.start))
    bad = (state.bad_step < 0) & ~(jnp.isfinite(total) & jnp.isfinite(norm))
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        bad_step=jnp.where(bad, state.step, state.bad_step),
        average=average,
    )
    return new_state, {"loss": total, "gradient_norm": norm}


def _decay(ema: float, step: jax.Array) -> jax.Array:
    """float32 []: little memory while there is little to remember, (1 + t) / (10 + t) until that exceeds `ema`."""
    t = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(ema), (1 + t) / (10 + t))


def by_head(label: Any, heads: int) -> list[Any]:
    """The labels of each head, [..., H, W], of those of all: the same, or [..., H, W, heads]."""
    return [label] if heads == 1 else [label[..., index] for index in range(heads)]


def eval_step(
    params: Any,
    batch: Batch,
    *,
    model: nn.Module,
    heads: Sequence[slice] = (slice(None),),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    refine: bool = False,
) -> dict[str, jax.Array]:
    """Counts of one padded batch: image uint8 [B, H, W, 3], label uint8 [B, H, W], size int32 [B, 2], as train_step.

    With other `scales` than 1, or with `flip`, of the probabilities that multiscale.scores averages; with `refine` of
    those that refine.mean_field aligns with the contours of the image.

    Returns:
      confusion int32 [B, C, C] (of several heads their matrices along the diagonal), loss float32 [heads] (summed over
      labelled pixels), prediction uint8 [B, H, W] as multiscale.classes.
    """

    def score(image: jax.Array, size: jax.Array) -> Any:
        return model.apply({"params": params}, image, size)

    scores = multiscale.scores(score, batch["image"], batch["size"], scales=scales, flip=flip, heads=heads)
    if refine:
        aligned = refine_lib.by_head(batch["image"], multiscale.probabilities(scores, heads), batch["size"], heads)
        scores = multiscale.logarithms(aligned)
    prediction = multiscale.classes(scores, heads)
    found = [by_head(x, len(heads)) for x in (batch["label"], prediction)]
    counts, loss = [], []
    for place, label, predicted in zip(heads, *found, strict=True):
        logits = scores[..., place]
        count = functools.partial(metrics.confusion_matrix, num_classes=logits.shape[-1])
        counts.append(jax.vmap(count)(label, predicted))
        loss.append(losses.cross_entropy(logits, label).sum())
    return {
        "confusion": counts[0] if len(counts) == 1 else jax.vmap(jax.scipy.linalg.block_diag)(*counts),
        "loss": jnp.stack(loss),
        "prediction": prediction,
    }

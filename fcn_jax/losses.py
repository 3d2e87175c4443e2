"""The per-pixel cross-entropy and how it is normalised; and the Jaccard loss, which may be added.

Every normalisation is a weight per pixel that depends on the labels alone, so the cross-entropy of a step is one
weighted sum, whatever the number of devices and of accumulated batches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

CELL = 32  # pixels, the stride of the last map


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of one update.

    Attributes:
      class_weights: of the classes of all heads.
      normalization: as in `pixel_weights`.
      heads: where the classes of each head are in the logits; the losses of several are added.
      sampling: the probability with which a cell counts, as in `sampled`.
      soft: how much soft labels count, where a batch has any; the labels count the rest.
      jaccard: how much `jaccard` counts, which is added.
    """

    class_weights: tuple[float, ...] | jax.Array
    normalization: str
    heads: tuple[slice, ...] = dataclasses.field(default=(slice(None),), hash=False)  # slices have none before 3.12
    sampling: float = 1.0
    soft: float = 0.0
    jaccard: float = 0.0


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy float32 [..., H, W] in nats of logits [..., H, W, C] and label uint8 [..., H, W].

    Zero where the label is void (no class in [0, C)), and no gradient from there.
    """
    valid = label < logits.shape[-1]
    # The label is clamped first: 255 would index nothing, and NaN * 0 is NaN.
    safe = jnp.where(valid, label, 0).astype(jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), safe)
    return jnp.where(valid, loss, 0.0)


def divergence(logits: jax.Array, soft: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence float32 [..., H, W] in nats of logits [..., H, W, C] from probabilities like them.

    Zero where they say the same; its gradient is that of the cross-entropy with soft labels.
    """
    return optax.kl_divergence(jax.nn.log_softmax(logits.astype(jnp.float32)), soft)


def jaccard(logits: jax.Array, label: jax.Array) -> jax.Array:
    """One minus the mean soft IU, float32 [], of logits [B, H, W, C] and label uint8 [B, H, W], all images together.

    The soft IU of a class is that of the confusion matrix of probabilities in place of predictions, as a fraction: its
    probability where it is the label, divided by all of its probability, plus its pixels, minus the same. Void counts
    nowhere. The mean is over the classes that the labels have: 0 if they have none. Up to the smoothing, which is none
    here, it is the soft Jaccard loss of Rahman and Wang (ISVC 2016) for many classes.
    """
    num_classes = logits.shape[-1]
    truth = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)  # void has no class
    found = jnp.where((label < num_classes)[..., None], jax.nn.softmax(logits.astype(jnp.float32)), 0.0)
    axes = tuple(range(label.ndim))
    both, pixels, probability = (x.sum(axes) for x in (truth * found, truth, found))
    there = pixels > 0
    loss = jnp.where(there, 1 - both / jnp.maximum(pixels + probability - both, 1.0), 0.0)
    return loss.sum() / jnp.maximum(there.sum(), 1).astype(jnp.float32)


def pixel_weights(label: jax.Array, normalization: str, class_weights: jax.Array) -> jax.Array:
    """What each pixel's cross-entropy counts in the loss of one step.

    Args:
      label: uint8 [A, B, H, W], all A accumulated batches of B images of the step; 255 and above C is void.
      normalization: `sum`: every labelled pixel counts 1 / A (Caffe divides the gradient by iter_size; Shelhamer's
        solvers use A = 1); `image`: the mean over the images of their means over labelled pixels; `pixel`: the mean
        over all labelled pixels of the step. An image without labelled pixels counts nowhere.
      class_weights: float32 [C], multiplies each pixel by its class's weight; the divisors stay counts of pixels.

    Returns:
      float32 [A, B, H, W], zero at void pixels.
    """
    num_classes = class_weights.shape[0]
    valid = label < num_classes
    weights = jnp.where(valid, class_weights[jnp.where(valid, label, 0).astype(jnp.int32)], 0.0)
    if normalization == "sum":
        return weights / label.shape[0]
    labelled = valid.sum((-2, -1), dtype=jnp.int32)  # [A, B]
    if normalization == "image":
        images = jnp.maximum((labelled > 0).sum(), 1)
        return weights / (jnp.maximum(labelled, 1) * images)[..., None, None].astype(jnp.float32)
    if normalization == "pixel":
        return weights / jnp.maximum(labelled.sum(), 1).astype(jnp.float32)
    raise ValueError(f"loss normalization {normalization!r}: choose from sum, image, pixel")


def sampled(weights: jax.Array, key: jax.Array, keep: float, normalization: str) -> jax.Array:
    """The weights of a random part of the cells: patchwise training as sampling of the loss (CVPR 3.4 and 4.4).

    Each cell of 32 x 32 pixels is kept with probability `keep`, independently. In means what is kept counts 1 / keep,
    so that the expectation of the gradient is the gradient. In `sum` it counts once: there 1 / keep times as many
    images make the gradient of a batch, as in the paper.

    Args:
      weights: float32 [A, B, H, W], of `pixel_weights`.
    """
    rows, columns = (-(-n // CELL) for n in weights.shape[2:])
    kept = jax.random.bernoulli(key, keep, (*weights.shape[:2], rows, columns))
    kept = kept.repeat(CELL, 2).repeat(CELL, 3)[:, :, : weights.shape[2], : weights.shape[3]]
    return jnp.where(kept, weights / (1.0 if normalization == "sum" else keep), 0.0)

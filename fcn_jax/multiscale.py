"""Scoring images at several sizes and mirrored, and averaging the probabilities."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def is_plain(scales: Sequence[float], *, flip: bool) -> bool:
    """Whether each image is scored once, as it is."""
    return tuple(scales) == (1.0,) and not flip


def scores(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    image: jax.Array,
    sizes: jax.Array,
    *,
    scales: Sequence[float],
    flip: bool,
    heads: Sequence[slice] = (slice(None),),
) -> jax.Array:
    """Logarithms float32 [B, H, W, C] of the mean probabilities over all scales, and mirror images if `flip`.

    Where images are scored once, as they are, the logits as they are.

    Args:
      score: gives logits [B, H', W', C] of images float32 [B, H', W', 3] and their sizes int32 [B, 2].
      image: 0..255 [B, H, W, 3]; what lies outside an image's size does not matter.
      sizes: int32 [B, 2], height and width of each image at the top left of its canvas.
      heads: where the classes of each head are in the logits.
      scales: factors of height and width. Resized is bilinearly, each image up to its own edges.
    """
    if is_plain(scales, flip=flip):
        return score(image, sizes)
    canvas = image.shape[1:3]
    total = jnp.float32(0)
    ways = list(itertools.product(scales, (False, True) if flip else (False,)))
    for scale, mirrored in ways:
        # Both in float32, which rounds 0.7 times 345 otherwise than float64: no image is larger than its canvas.
        resized = tuple(max(1, int(n)) for n in np.round(np.array(canvas, np.float32) * np.float32(scale)))
        new_sizes = jnp.maximum(jnp.round(sizes.astype(jnp.float32) * scale).astype(jnp.int32), 1)
        x = _resample(image.astype(jnp.float32), sizes, new_sizes, resized, mirrored)
        logits = score(x, new_sizes).astype(jnp.float32)
        total = total + _resample(probabilities(logits, heads), new_sizes, sizes, canvas, mirrored)
    return logarithms(total / len(ways))


def logarithms(probabilities: jax.Array) -> jax.Array:
    """Finite, float32; also of a probability of 0."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))


def probabilities(scores: jax.Array, heads: Sequence[slice] = (slice(None),)) -> jax.Array:
    """float32 [B, H, W, C] of logits, or of what `scores` gives; over the classes of each head they add up to 1."""
    parts = [jax.nn.softmax(scores[..., place].astype(jnp.float32)) for place in heads]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def classes(scores: jax.Array, heads: Sequence[slice] = (slice(None),)) -> jax.Array:
    """The class of the highest score, uint8 [B, H, W]; of several heads [B, H, W, heads], each from 0 on."""
    found = [jnp.argmax(scores[..., place], -1).astype(jnp.uint8) for place in heads]
    return found[0] if len(found) == 1 else jnp.stack(found, -1)


def _resample(x: jax.Array, old: jax.Array, new: jax.Array, canvas: tuple[int, ...], mirrored: bool) -> jax.Array:
    """Maps [B, H, W, C] of sizes `old` as maps [B, *canvas, C] of sizes `new`, bilinearly."""
    rows = _interpolation(old[:, 0], new[:, 0], x.shape[1], canvas[0])
    columns = _interpolation(old[:, 1], new[:, 1], x.shape[2], canvas[1], mirrored)
    x = jnp.einsum("boh,bhwc->bowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bpw,bowc->bopc", columns, x, precision=lax.Precision.HIGHEST)


def _interpolation(
    old: jax.Array, new: jax.Array, old_canvas: int, new_canvas: int, mirrored: bool = False
) -> jax.Array:
    """float32 [B, new_canvas, old_canvas]: the weights of old pixels in new ones; centres at half, edges repeated."""
    old = old.astype(jnp.float32)[:, None]
    centre = (jnp.arange(new_canvas, dtype=jnp.float32) + 0.5)[None] * (old / new.astype(jnp.float32)[:, None]) - 0.5
    centre = jnp.clip(centre, 0, old - 1)
    centre = old - 1 - centre if mirrored else centre
    return jnp.maximum(1 - jnp.abs(centre[..., None] - jnp.arange(old_canvas, dtype=jnp.float32)[None, None]), 0)

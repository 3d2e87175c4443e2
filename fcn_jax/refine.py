"""Scores aligned with the contours of the image, after the network: a windowed mean field.

A fully connected CRF (Krähenbühl and Koltun 2011, arXiv 1210.5644) whose connections end at a window, as in ConvCRF
(Teichmann and Cipolla 2018, arXiv 1805.04777): pixels nearby that look alike should be of the same class. Its numbers,
and those of a guided filter, which wins less: benchmarks/results/refine.md, by benchmarks/refine.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

REACH = (1, 2, 3, 4, 6)  # pixels along rows and columns at which a pixel looks at others
WEIGHT = 6.0  # of what they say
POSITION = 4.0  # pixels: the standard deviation of nearness
COLOUR = 8.0  # grey values: that of likeness
STEPS = 3
_LEAST = 1e-30  # XLA takes the smallest of float32 for zero when it divides


def by_head(image: jax.Array, scores: jax.Array, sizes: jax.Array, heads: Sequence[slice]) -> jax.Array:
    """mean_field of the classes of each head, whose places in the scores are given."""
    return jnp.concatenate([mean_field(image, scores[..., place], sizes) for place in heads], -1)


def mean_field(
    image: jax.Array, scores: jax.Array, sizes: jax.Array, *, weight: float = WEIGHT, steps: int = STEPS
) -> jax.Array:
    """Probabilities float32 [B, H, W, C] that follow the contours of the images.

    Each step multiplies the network's probabilities by exp(weight * m), where m is the mean of what the others in the
    window say, weighted by nearness and likeness, and normalises.

    Args:
      image: 0..255 [B, H, W, 3]; what lies outside an image's size does not matter.
      scores: probabilities float32 [B, H, W, C] of one head.
      sizes: int32 [B, 2], height and width of each image at the top left of its canvas.
    """
    colours = image.astype(jnp.float32)
    inside = _inside(image.shape, sizes)
    steps_along = jnp.array(sorted({0, *REACH, *(-reach for reach in REACH)}), jnp.int32)
    offsets = jnp.stack(jnp.meshgrid(steps_along, steps_along, indexing="ij"), -1).reshape(-1, 2)
    offsets = jnp.delete(offsets, len(offsets) // 2, axis=0)  # not itself
    unary = jnp.log(jnp.maximum(scores, _LEAST))
    padded_colours, padded_inside = _padded(colours), _padded(inside)

    def likeness(offset: jax.Array) -> jax.Array:
        """float32 [B, H, W, 1]: how much a pixel listens to the one at an offset."""
        difference = _moved(padded_colours, offset, colours.shape) - colours
        far = (offset.astype(jnp.float32) ** 2).sum() / (2 * POSITION**2)
        unlike = (difference**2).sum(-1, keepdims=True) / (2 * COLOUR**2)
        return jnp.exp(-far - unlike) * _moved(padded_inside, offset, inside.shape)

    def step(found: jax.Array, _: None) -> tuple[jax.Array, None]:
        padded = _padded(found)

        def add(sums: tuple[jax.Array, jax.Array], offset: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            said, listened = sums
            share = likeness(offset)
            return (said + share * _moved(padded, offset, found.shape), listened + share), None

        (said, listened), _ = lax.scan(add, (jnp.zeros_like(found), jnp.zeros_like(inside)), offsets)
        return jax.nn.softmax(unary + weight * said / jnp.maximum(listened, _LEAST)), None

    return lax.scan(step, jax.nn.softmax(unary), None, length=steps)[0]


def _inside(shape: tuple[int, ...], sizes: jax.Array) -> jax.Array:
    """float32 [B, H, W, 1]: 1 within each image."""
    rows, columns = jnp.arange(shape[1])[None, :, None], jnp.arange(shape[2])[None, None]
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]
    return ((rows < height) & (columns < width)).astype(jnp.float32)[..., None]


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (max(REACH),) * 2, (max(REACH),) * 2, (0, 0)))


def _moved(padded: jax.Array, offset: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What each pixel sees at an offset (rows, columns)."""
    start = offset + max(REACH)
    return lax.dynamic_slice(padded, (0, start[0], start[1], 0), shape)

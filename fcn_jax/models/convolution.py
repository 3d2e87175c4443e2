"""Convolutions of stride 1, rectification and pooling, in the form that the platform computes fastest.

TPU and GPU take XLA's own. On CPU some of XLA's are slow (measured by benchmarks/kernels.py, in RESULTS.md): the weight
gradients of 3x3 layers of large maps, all of fc6 and fc7, and the gradient of pooling. There the first are sums over
rows, fc6 and fc7 matrix products, and pooling's gradient a comparison. Each form gives the same sums, in another order.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# A function of x [B, H, W, I], kernel [k, k, I, O] and padding; and its gradient, of these and of g [B, H', W', O].
Forward = Callable[[jax.Array, jax.Array, int], jax.Array]
Gradient = Callable[[jax.Array, jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]

# The sums over rows pay from maps of this size and layers of this width on, while they stay in a processor's cache.
_LARGE_MAP = 64 * 64
_WIDE_LAYER = 64
_CACHED = 9 * 512 * 512


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """[B, H, W, I] with a kernel [k, k, I, O] -> [B, H + 2 padding - k + 1, W + 2 padding - k + 1, O].

    float32 means float32: the fast reduced-precision products of TPU and GPU are used with bfloat16 only.
    """
    return _convolve(x, kernel, padding, *_cpu_form(x, kernel))


def _cpu_form(x: jax.Array, kernel: jax.Array) -> tuple[Forward, Gradient]:
    batch, height, width, _ = x.shape
    size, _, _, outputs = kernel.shape
    if isinstance(height, int) and isinstance(width, int) and jnp.finfo(x.dtype).bits >= 32:
        # The copies of the image take no more memory than the kernel.
        if size == 1 or (size > 3 and batch * height * width <= outputs):
            return product, gradient_of(product)
        if size == 3 and height * width >= _LARGE_MAP and outputs >= _WIDE_LAYER and batch * kernel.size <= _CACHED:
            return xla, by_rows
    return xla, gradient_of(xla)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: jax.Array, kernel: jax.Array, padding: int, forward: Forward, gradient: Gradient) -> jax.Array:
    return _on_cpu(forward, xla, padding, x, kernel)


def _convolve_forward(x: jax.Array, kernel: jax.Array, *static: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, *static), (x, kernel)


def _convolve_backward(
    padding: int, forward: Forward, gradient: Gradient, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _on_cpu(gradient, gradient_of(xla), padding, *saved, g)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _on_cpu(cpu: Callable[..., Any], elsewhere: Callable[..., Any], padding: int, *operands: jax.Array) -> Any:
    """cpu(*operands, padding) in what is compiled for CPU, and `elsewhere` of the same for every other platform."""
    if cpu is elsewhere:
        return cpu(*operands, padding)
    return lax.platform_dependent(
        *operands, cpu=lambda *given: cpu(*given, padding), default=lambda *given: elsewhere(*given, padding)
    )


@functools.cache
def gradient_of(forward: Forward) -> Gradient:
    """The gradient that JAX derives."""

    def gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
        pull: Callable[..., Any] = jax.vjp(lambda x, kernel: forward(x, kernel, padding), x, kernel)[1]
        dx, dk = pull(g)
        return dx, dk

    return gradient


def _precision(x: jax.Array) -> lax.Precision:
    return lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else lax.Precision.HIGHEST


def xla(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """The convolution as XLA has it."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_precision(x)
    )


def product(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """The convolution as one matrix product, of the image's windows side by side [B, H', W', k k I]."""
    size, _, inputs, outputs = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    windows = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    matrix = kernel.reshape(size * size * inputs, outputs)
    return jnp.matmul(jnp.concatenate(windows, -1), matrix, precision=_precision(x))


def by_rows(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
    """The gradient, of the kernel as a sum over the rows of x, so that what is multiplied stays in the cache.

    A row with its shifts [B, W', k I] meets the k rows of g that it has been a part of [B, W', k O].
    """
    size, _, inputs, outputs = kernel.shape
    height, width = g.shape[1:3]

    def row_of_g(index: jax.Array) -> jax.Array:
        row = lax.dynamic_index_in_dim(g, jnp.clip(index, 0, height - 1), 1, keepdims=False)
        return jnp.where((index >= 0) & (index < height), row, jnp.zeros((), g.dtype))

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        row = lax.dynamic_index_in_dim(x, index, 1, keepdims=False)
        row = jnp.pad(row, ((0, 0), (padding, padding), (0, 0)))
        shifts = jnp.concatenate([row[:, j : j + width] for j in range(size)], -1)
        rows = jnp.concatenate([row_of_g(index + padding - i) for i in range(size)], -1)
        return total + jnp.einsum("bwi,bwo->bio", shifts, rows, precision=_precision(x)), None

    # A sum for each image, so that devices that share a batch do not have to speak in every row.
    zero = jnp.zeros((x.shape[0], size * inputs, size * outputs), x.dtype)
    total, _ = lax.scan(add, zero, jnp.arange(x.shape[1]))
    by_tap = total.sum(0).reshape(size, inputs, size, outputs)  # [j, I, i, O]
    return gradient_of(xla)(x, kernel, g, padding)[0], by_tap.transpose(2, 0, 1, 3)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0); its gradient is known from the result, which the next layer keeps anyway."""
    return jnp.maximum(x, jnp.zeros((), x.dtype))


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, g: (jnp.where(y > 0, g, jnp.zeros((), g.dtype)),))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling, stride 2, in Caffe's ceil mode: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].

    Of equal values in a window the first in reading order gets the gradient. Kept for it is one byte a window.
    """
    return _max_pool(x, x.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")


def _max_pool_forward(x: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    y = _max_pool(x, size)

    def is_largest(i: int, j: int) -> jax.Array:
        part = x[:, i::2, j::2]
        missing = [(0, n - m) for n, m in zip(y.shape, part.shape, strict=True)]
        return jnp.pad(part, missing, constant_values=-jnp.inf) == y

    first = jnp.where(is_largest(0, 0), 0, jnp.where(is_largest(0, 1), 1, jnp.where(is_largest(1, 0), 2, 3)))
    return y, first.astype(jnp.uint8)


def _max_pool_backward(size: tuple[int, int], first: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = g.shape
    place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    x = jnp.where(first[:, :, None, :, None] == place, g[:, :, None, :, None], jnp.zeros((), g.dtype))
    return (x.reshape(batch, 2 * rows, 2 * columns, channels)[:, : size[0], : size[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)

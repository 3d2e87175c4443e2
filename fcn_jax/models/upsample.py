"""Bilinear upsampling by transposed convolution, kernel 2s or 2s - 1 at stride s (PAMI section 4.3; Caffe's filler).

Both forms give the full transposed convolution, (n - 1) s + kernel from n. `fixed` is two small matrix products, one an
axis. `learned` is a dense kernel computed as one matrix product over 2x2 neighbourhoods and a pixel shuffle: the same
sum, and many times faster than a dilated convolution on CPU (benchmarks/upsampling.py).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.models.grid import stride_of


def bilinear_filter(size: int) -> np.ndarray:
    """The 1-D interpolation filter float32 [size] of the release's surgery.py, for even and odd sizes."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(size) - centre) / factor).astype(np.float32)


def bilinear_kernel(size: int, channels: int) -> np.ndarray:
    """The diagonal transposed-convolution kernel float32 [k, k, C, C] in the scatter convention of `transposed`."""
    kernel = np.zeros((size, size, channels, channels), np.float32)
    weights = bilinear_filter(size)
    kernel[:, :, range(channels), range(channels)] = np.outer(weights, weights)[..., None]
    return kernel


def is_bilinear(kernel: np.ndarray) -> bool:
    """Whether a kernel [k, k, I, O] is the one that `bilinear_kernel` gives, to 1e-6."""
    size, channels = len(kernel), kernel.shape[-1]
    if kernel.shape != (size, size, channels, channels):
        return False
    return np.allclose(kernel, bilinear_kernel(size, channels), rtol=0, atol=1e-6)


def upsampled(n: Any, size: int) -> Any:
    """How many cells a kernel makes of n."""
    return (n - 1) * stride_of(size) + size


def fixed_bilinear(x: jax.Array, size: int) -> jax.Array:
    """Transposed convolution [B, H, W, C] -> [B, (H - 1) s + k, (W - 1) s + k, C] with the diagonal bilinear kernel."""
    rows, columns = (_interpolation_matrix(n, size, x.dtype) for n in x.shape[1:3])
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,bowc->bopc", columns, x, precision=lax.Precision.HIGHEST)


def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution [B, H, W, I] -> [B, (H - 1) s + k, (W - 1) s + k, O] with a kernel [k, k, I, O].

    out[s i + r] += x[i] kernel[r]: PyTorch's ConvTranspose2d weight (I, O, k, k) transposed to (2, 3, 0, 1).
    """
    size = len(kernel)
    stride = stride_of(size)
    if size % 2:  # as 2s with zeros at the end, whose outputs are left out
        even: jax.Array = transposed(x, jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))))
        return even[:, :-1, :-1]
    inputs, outputs = kernel.shape[2:]
    batch, height, width, _ = x.shape
    # Output block i of s rows is reached by rows i - 1 and i of x, with the later and the earlier half of the kernel.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height + 1, j : j + width + 1] for i in (0, 1) for j in (0, 1)]
    halves = kernel.reshape(2, stride, 2, stride, inputs, outputs)[::-1, :, ::-1]
    matrix = halves.transpose(0, 2, 4, 1, 3, 5).reshape(4 * inputs, stride * stride * outputs).astype(x.dtype)
    y = jnp.matmul(jnp.concatenate(shifts, -1), matrix, precision=lax.Precision.HIGHEST)
    y = y.reshape(batch, height + 1, width + 1, stride, stride, outputs).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, (height + 1) * stride, (width + 1) * stride, outputs)


class LearnedUpsample(nn.Module):
    """A transposed convolution whose dense kernel starts bilinear; parameter `kernel` float32 [k, k, C, C]."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def init(_: jax.Array) -> jax.Array:
            return jnp.asarray(bilinear_kernel(self.size, x.shape[-1]))

        return transposed(x, self.param("kernel", init))


def _interpolation_matrix(n: Any, size: int, dtype: Any) -> jax.Array:
    """M [(n - 1) s + k, n] with M[s i + r, i] = filter[r]; n may be a symbolic dimension (jax.export)."""
    stride = stride_of(size)
    row, column = (lax.broadcasted_iota(jnp.int32, (upsampled(n, size), n), axis) for axis in (0, 1))
    # The filter times 2s, in whole numbers, so that nothing is rounded but the quotient.
    distance = jnp.abs(2 * (row - stride * column) - (size - 1))
    return jnp.maximum(0, 2 * stride - distance).astype(dtype) / (2 * stride)

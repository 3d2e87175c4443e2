"""Convolutions, rectification and pooling, in the form that the platform computes fastest.

TPU and GPU take XLA's own convolutions. On CPU some of these are slow: the weight gradients of 3x3 layers, all of fc6
and fc7, and pooling's gradient. There the first are sums over rows or products tap by tap, fc6 and fc7 are matrix
products, and deep 3x3 layers go by Winograd's algorithm. In bfloat16, XLA has fast products alone, so that these layers
go by blocks of rows instead. Each form gives the same sums, in another order; how fast each is on each layer:
benchmarks/kernels.py, benchmarks/results/speed.md.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Form(NamedTuple):
    """One way to compute a convolution of x [B, H, W, I] with a kernel [k, k, I, O], and its gradients.

    forward(x, kernel, padding) -> [B, H', W', O]; to_input and to_kernel(x, kernel, g [B, H', W', O], padding).
    """

    forward: Callable[..., jax.Array]
    to_input: Callable[..., jax.Array]
    to_kernel: Callable[..., jax.Array]


def form_of(forward: Callable[..., jax.Array]) -> Form:
    """With the gradients that JAX derives."""

    def to_input(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
        pull: Callable[..., Any] = jax.vjp(lambda x: forward(x, kernel, padding), x)[1]
        return pull(g)[0]

    def to_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
        pull: Callable[..., Any] = jax.vjp(lambda kernel: forward(x, kernel, padding), kernel)[1]
        return pull(g)[0]

    return Form(forward, to_input, to_kernel)


def _is_half(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


def _precision(x: jax.Array) -> lax.Precision:
    return lax.Precision.DEFAULT if _is_half(x.dtype) else lax.Precision.HIGHEST


def xla(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """The convolution as XLA has it."""
    return _xla(x, kernel, [(padding, padding)] * 2, 1, 1)


def _xla(x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[Any, Any]], stride: int, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=_precision(x),
    )


def product(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """One matrix product of the image's windows [B, H', W', k k I] with the kernel."""
    return _sums("bhwi,io->bhwo", _windows(_bordered(x, padding), len(kernel)), _matrix(kernel)).astype(x.dtype)


def product_to_input(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
    """The gradient of the windows, which are then added up where they overlap."""
    of_windows = _sums("bhwo,io->bhwi", g, _matrix(kernel))
    wide = jax.ShapeDtypeStruct(x.shape, of_windows.dtype)
    add = jax.linear_transpose(lambda x: _windows(_bordered(x, padding), len(kernel)), wide)
    return add(of_windows)[0].astype(x.dtype)


def product_to_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
    """One matrix product of the image's windows with g."""
    windows = _windows(_bordered(x, padding), len(kernel))
    if _is_half(x.dtype):  # XLA's CPU has no product of 16 bits that is turned round afterwards
        return _sums("bhwi,bhwo->io", windows, g).reshape(kernel.shape).astype(kernel.dtype)
    # Faster than the other way about.
    return _sums("bhwo,bhwi->oi", g, windows).T.reshape(kernel.shape).astype(kernel.dtype)


def _bordered(x: jax.Array, border: int) -> jax.Array:
    """With zeros around the image, or without what is within -border of its edge."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (border, border, 0), (border, border, 0), (0, 0, 0)))


def _windows(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', k k C]: the cells of each window side by side."""
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    return jnp.concatenate([x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)], -1)


def _matrix(kernel: jax.Array) -> jax.Array:
    """[k, k, I, O] -> [k k I, O]."""
    return kernel.reshape(-1, kernel.shape[-1])


def _sums(how: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum, in float32 at least."""
    wide = jnp.float32 if _is_half(a.dtype) else a.dtype
    return jnp.einsum(how, a, b, precision=_precision(a), preferred_element_type=wide)


def winograd(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Winograd's F(2x2, 3x3): 16 products for 4 outputs, where the definition has 36 (Lavin and Gray, 2016, 4.1)."""
    size, outputs = len(kernel), kernel.shape[-1]
    height, width = (n + 2 * padding - size + 1 for n in x.shape[1:3])
    tiles = [-(-n // 2) for n in (height, width)]  # of 2x2 outputs, from 4x4 inputs each
    beyond = [2 * n + 2 - m - padding for n, m in zip(tiles, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), (padding, beyond[0]), (padding, beyond[1]), (0, 0)))
    inputs_at = [[x[:, i : i + 2 * tiles[0] : 2, j : j + 2 * tiles[1] : 2] for j in range(4)] for i in range(4)]
    data = _both_ways(inputs_at, lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]))
    taps = [[kernel[i, j] for j in range(3)] for i in range(3)]
    filters = _both_ways(taps, lambda g: (g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]))
    products = [
        [jnp.matmul(d, g, precision=_precision(x)) for d, g in zip(*rows, strict=True)]
        for rows in zip(data, filters, strict=True)
    ]
    outputs_at = _both_ways(products, lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3]))
    y = jnp.stack([jnp.stack(row, 3) for row in outputs_at], 2)  # [B, tiles, 2, tiles, 2, O]
    return y.reshape(x.shape[0], 2 * tiles[0], 2 * tiles[1], outputs)[:, :height, :width]


def _both_ways(
    values: list[list[jax.Array]], change: Callable[[list[jax.Array]], tuple[jax.Array, ...]]
) -> list[list[jax.Array]]:
    """A linear change of every column and then of every row of a matrix of arrays."""
    columns = [change(list(column)) for column in zip(*values, strict=True)]
    return [list(change(list(row))) for row in zip(*columns, strict=True)]


def rows_to_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
    """The gradient of the kernel as a sum over the rows of x, so that what is multiplied stays in the cache.

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
    return total.sum(0).reshape(size, inputs, size, outputs).transpose(2, 0, 1, 3)  # from [j, I, i, O]


def taps_to_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
    """The gradient of the kernel tap by tap: x from the tap's cell on [B, N, I] meets g [B, N, O].

    Both are as wide as the padded x, with zeros beside g, so that all cells of an image are one row.
    """
    size, _, inputs, outputs = kernel.shape
    batch, half = x.shape[0], _is_half(x.dtype)
    x = _bordered(x, padding)
    width = x.shape[2]
    g = jnp.pad(g, ((0, 0), (0, size - 1), (0, size - 1), (0, 0))).reshape(batch, -1, outputs)
    x, last = x.reshape(batch, -1, inputs), (size - 1) * (width + 1)
    g = g[:, : g.shape[1] - last]
    # Products of 16 bits are slow where the left side lies across.
    x = lax.optimization_barrier(lax.optimization_barrier(x).swapaxes(1, 2)) if half else x

    def tap(first: jax.Array) -> jax.Array:
        moved = lax.dynamic_slice_in_dim(x, first, g.shape[1], 2 if half else 1)
        return _sums("bin,bno->bio" if half else "bni,bno->bio", moved, g)

    firsts = jnp.asarray([i * width + j for i in range(size) for j in range(size)])
    taps: jax.Array = lax.map(tap, firsts)
    return taps.sum(1).reshape(kernel.shape).astype(kernel.dtype)


def blocks(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """As `product`, but for some rows after others, so that their windows stay in a processor's cache."""
    size, outputs = len(kernel), kernel.shape[-1]
    batch, x = len(x), _bordered(x, padding)
    height, width = (n - size + 1 for n in x.shape[1:3])
    count = -(-height // max(1, _BLOCK // (batch * width * kernel[..., 0].size * x.dtype.itemsize)))
    rows = -(-height // count)
    # Copied as integers: numbers of 16 bits would be widened on the way.
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    bits = jnp.pad(bits, ((0, 0), (0, count * rows - height), (0, 0), (0, 0)))

    def multiply(block: jax.Array) -> jax.Array:
        windows = lax.optimization_barrier(_windows(block, size))
        return _sums("bhwi,io->bhwo", lax.bitcast_convert_type(windows, x.dtype), _matrix(kernel)).astype(x.dtype)

    y = lax.map(multiply, jnp.stack([bits[:, n * rows : (n + 1) * rows + size - 1] for n in range(count)]))
    return jnp.moveaxis(y, 0, 1).reshape(batch, count * rows, width, outputs)[:, :height]


def blocks_to_input(x: jax.Array, kernel: jax.Array, g: jax.Array, padding: int) -> jax.Array:
    """The convolution of g with the kernel turned round."""
    return blocks(g, kernel[::-1, ::-1].swapaxes(2, 3), len(kernel) - 1 - padding)


XLA, PRODUCT = form_of(xla), Form(product, product_to_input, product_to_kernel)
HALF = Form(blocks, blocks_to_input, taps_to_kernel)

# Products of smaller kernels take no time in any form, and least to trace and to compile in XLA's.
_LARGE_KERNEL = 2**14
# The sums over rows pay from maps of this size and layers of this width on, while they stay in a processor's cache.
_LARGE_MAP, _WIDE_LAYER, _CACHED = 64 * 64, 64, 9 * 512 * 512
# Products tap by tap pay where the sums over rows are too large, and for deep layers from maps of this size on.
_DEEP_LAYER, _SMALL_MAP = 512, 24 * 24
# Of 16 bits products pay for layers of this width; windows of so many bytes stay in the cache.
_HALF_LAYER, _BLOCK = 256, 2**23
# Winograd's algorithm pays for batches with so many cells of deep layers, for which the kernel is worth transforming.
_DEEP_MAP = 16 * 16


def cpu_form(x: jax.Array, kernel: jax.Array) -> Form:
    """What is fastest on CPU for these shapes."""
    batch, height, width, _ = x.shape
    size, _, inputs, outputs = kernel.shape
    if not (isinstance(height, int) and isinstance(width, int)):
        return XLA
    area = height * width
    if size != 3:
        # The copies of the image take no more memory than the kernel.
        small = size == 1 or batch * area <= outputs
        return PRODUCT if small and kernel.size >= _LARGE_KERNEL else XLA
    if _is_half(x.dtype):
        if outputs < _WIDE_LAYER or area < _SMALL_MAP:
            return XLA
        return HALF if outputs >= _HALF_LAYER else XLA._replace(to_kernel=taps_to_kernel)
    form = XLA
    if outputs >= _WIDE_LAYER and area >= _LARGE_MAP:
        cached = batch * kernel.size <= _CACHED
        form = form._replace(to_kernel=rows_to_kernel if cached else taps_to_kernel)
    elif outputs >= _DEEP_LAYER and area >= _SMALL_MAP:
        form = form._replace(to_kernel=taps_to_kernel)
    if batch * area >= _DEEP_MAP and min(inputs, outputs) >= _DEEP_LAYER:
        form = form._replace(forward=winograd)  # its gradients would turn the kernel round first, and lose by it
    return form


def convolve(
    x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[Any, Any]], stride: int = 1, groups: int = 1
) -> jax.Array:
    """[B, H, W, I] with a kernel [k, k, I / groups, O] -> [B, H', W', O], H' = (H + both paddings - k) // stride + 1.

    float32 means float32: the fast reduced-precision products of TPU and GPU are used with bfloat16 only.

    Args:
      pads: zeros before and after the rows and the columns.
    """
    padding = pads[0][0]
    if stride > 1 or groups > 1 or any(pad != padding for pair in pads for pad in pair):
        return _xla(x, kernel, pads, stride, groups)
    form = cpu_form(x, kernel)
    return xla(x, kernel, padding) if form == XLA else _convolve(x, kernel, padding, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, padding: int, form: Form) -> jax.Array:
    return _on_cpu(form.forward, XLA.forward, padding, x, kernel)


def _convolve_forward(
    x: jax.Array, kernel: jax.Array, padding: int, form: Form
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, padding, form), (x, kernel)


def _convolve_backward(
    padding: int, form: Form, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dx = _on_cpu(form.to_input, XLA.to_input, padding, *saved, g)
    return dx, _on_cpu(form.to_kernel, XLA.to_kernel, padding, *saved, g)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _on_cpu(
    cpu: Callable[..., jax.Array], elsewhere: Callable[..., jax.Array], padding: int, *operands: jax.Array
) -> jax.Array:
    """cpu(*operands, padding) in what is compiled for CPU, and `elsewhere` of the same for every other platform."""
    if cpu is elsewhere:
        return cpu(*operands, padding)
    chosen: jax.Array = lax.platform_dependent(
        *operands, cpu=lambda *given: cpu(*given, padding), default=lambda *given: elsewhere(*given, padding)
    )
    return chosen


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

    def part(i: int, j: int) -> jax.Array:
        values = x[:, i::2, j::2]
        missing = [(0, n - m) for n, m in zip(y.shape, values.shape, strict=True)]
        return jnp.pad(values, missing, constant_values=-jnp.inf)

    # Compared with each other, since y may have been rounded where these are not yet (bfloat16 within a fusion).
    a, b, c, d = part(0, 0), part(0, 1), part(1, 0), part(1, 1)
    later = jnp.where((b >= c) & (b >= d), 1, jnp.where(c >= d, 2, 3))
    return y, jnp.where((a >= b) & (a >= c) & (a >= d), 0, later).astype(jnp.uint8)


def _max_pool_backward(size: tuple[int, int], first: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = g.shape
    place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    x = jnp.where(first[:, :, None, :, None] == place, g[:, :, None, :, None], jnp.zeros((), g.dtype))
    return (x.reshape(batch, 2 * rows, 2 * columns, channels)[:, : size[0], : size[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)

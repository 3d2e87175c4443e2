"""Bilinear kernels and transposed convolution, against numbers by hand, tests/reference.py and JAX's own operations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax import lax

from fcn_jax.models import upsample

STRIDES = (2, 8, 16, 32)
# What the 4/2 kernel makes of [[1, 2], [3, 4]]. Along an axis (a, b) becomes
# a/4, 3a/4, (3a + b)/4, (a + 3b)/4, 3b/4, b/4; so the rows become
# (1, 2) -> .25 .75 1.25 1.75 1.5 .5 and (3, 4) -> .75 2.25 3.25 3.75 3 1, and then the same down the columns.
TWO_BY_TWO = [
    [0.0625, 0.1875, 0.3125, 0.4375, 0.375, 0.125],
    [0.1875, 0.5625, 0.9375, 1.3125, 1.125, 0.375],
    [0.375, 1.125, 1.75, 2.25, 1.875, 0.625],
    [0.625, 1.875, 2.75, 3.25, 2.625, 0.875],
    [0.5625, 1.6875, 2.4375, 2.8125, 2.25, 0.75],
    [0.1875, 0.5625, 0.8125, 0.9375, 0.75, 0.25],
]


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def worst(actual: jax.Array, expected: np.ndarray) -> float:
    """The largest error relative to the largest value."""
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (3, [0.5, 1, 0.5]),
        (4, [0.25, 0.75, 0.75, 0.25]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (16, [*np.arange(1, 16, 2) / 16, *np.arange(15, 0, -2) / 16]),
    ],
)
def test_bilinear_filter_has_the_values_computed_by_hand(size: int, expected: list[float]) -> None:
    weights = upsample.bilinear_filter(size)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-7)


@pytest.mark.parametrize("stride", STRIDES)
def test_bilinear_kernel_is_the_reference_one_on_the_diagonal(stride: int) -> None:
    kernel = upsample.bilinear_kernel(2 * stride, 3)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, reference.diagonal_bilinear_kernel(2 * stride, 3), rtol=1e-7)


def test_stride_2_of_a_tiny_map_has_the_values_computed_by_hand() -> None:
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    expected = np.array(TWO_BY_TWO).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(upsample.fixed_bilinear(x, 4), expected)
    np.testing.assert_array_equal(upsample.transposed(x, jnp.asarray(upsample.bilinear_kernel(4, 1))), expected)
    module = upsample.LearnedUpsample(4)
    np.testing.assert_array_equal(module.apply(module.init(jax.random.key(0), x), x), expected)


def test_transposed_scatters_its_kernel_unflipped() -> None:
    # Stride 1: the second pixel, 2, adds its kernel one column further right.
    kernel = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    out = upsample.transposed(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1), kernel)
    np.testing.assert_array_equal(out, np.array([[1, 12, 20], [100, 1200, 2000]]).reshape(1, 2, 3, 1))


@pytest.mark.parametrize("stride", STRIDES)
def test_fixed_bilinear_equals_the_reference(stride: int) -> None:
    x = random(stride, 2, 3, 4, 2)
    kernel = reference.diagonal_bilinear_kernel(2 * stride, 2)
    expected = np.stack([reference.upsample(image, kernel, stride) for image in x])
    assert expected.shape == (2, 4 * stride, 5 * stride, 2)
    assert worst(upsample.fixed_bilinear(jnp.asarray(x), 2 * stride), expected) < 1e-6
    assert (
        worst(upsample.transposed(jnp.asarray(x), jnp.asarray(upsample.bilinear_kernel(2 * stride, 2))), expected)
        < 1e-6
    )


@pytest.mark.parametrize("stride", STRIDES)
def test_transposed_with_a_dense_kernel_equals_the_reference_and_jax(stride: int) -> None:
    x, kernel = random(1, 2, 3, 4, 3), random(2, 2 * stride, 2 * stride, 3, 2)
    out = upsample.transposed(jnp.asarray(x), jnp.asarray(kernel))
    expected = np.stack([reference.upsample(image, kernel, stride) for image in x])
    assert worst(out, expected) < 1e-6
    # lax.conv_transpose correlates with the dilated input: its kernel is this one, turned by 180 degrees.
    turned = jnp.asarray(kernel[::-1, ::-1])
    dimensions = ("NHWC", "HWIO", "NHWC")
    second = lax.conv_transpose(x, turned, (stride, stride), "VALID", dimension_numbers=dimensions)
    assert worst(second, expected) < 1e-5
    module = nn.ConvTranspose(2, (2 * stride, 2 * stride), (stride, stride), padding="VALID", use_bias=False)
    assert worst(module.apply({"params": {"kernel": turned}}, x), expected) < 1e-5


def test_gradient_of_transposed_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        x, kernel, weights = (
            jnp.asarray(random(seed, *shape), jnp.float64)
            for seed, shape in ((1, (1, 2, 3, 2)), (2, (4, 4, 2, 2)), (3, (1, 6, 8, 2)))
        )

        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return (upsample.transposed(x, kernel) * weights).sum()

        # The loss is linear in each argument, so that a step of any length gives its exact slope: here 1.
        def stepped(a: jax.Array) -> jax.Array:
            """A copy of `a` for each of its elements, with 1 added to that element."""
            return a[None] + jnp.eye(a.size, dtype=a.dtype).reshape(-1, *a.shape)

        of_x = jax.vmap(loss, (0, None))(stepped(x), kernel) - loss(x, kernel)
        of_kernel = jax.vmap(loss, (None, 0))(x, stepped(kernel)) - loss(x, kernel)
        gradient_x, gradient_kernel = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
        assert gradient_x.dtype == gradient_kernel.dtype == jnp.float64
        np.testing.assert_allclose(gradient_x.ravel(), of_x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(gradient_kernel.ravel(), of_kernel, rtol=0, atol=1e-12)
        assert np.abs(of_x).min() > 1e-3
        assert np.abs(of_kernel).max() > 1


def test_gradient_of_fixed_bilinear_is_that_of_the_dense_kernel() -> None:
    x, weights = jnp.asarray(random(1, 1, 3, 2, 2)), jnp.asarray(random(2, 1, 32, 24, 2))
    kernel = jnp.asarray(upsample.bilinear_kernel(16, 2))
    fixed = jax.grad(lambda x: (upsample.fixed_bilinear(x, 16) * weights).sum())(x)
    dense = jax.grad(lambda x: (upsample.transposed(x, kernel) * weights).sum())(x)
    # By hand: each pixel collects the 16 x 16 outputs that it was scattered to.
    weights_1d = np.r_[1:16:2, 15:0:-2] / 16
    expected = np.zeros((1, 3, 2, 2))
    for i in range(3):
        for j in range(2):
            window = np.asarray(weights)[0, 8 * i : 8 * i + 16, 8 * j : 8 * j + 16]
            expected[0, i, j] = np.einsum("rsc,r,s->c", window, weights_1d, weights_1d)
    assert worst(fixed, expected) < 1e-6
    assert worst(dense, expected) < 1e-6


def test_learned_upsampling_starts_bilinear_and_uses_its_parameter() -> None:
    x = jnp.asarray(random(3, 1, 2, 3, 2))
    module = upsample.LearnedUpsample(16)
    params = module.init(jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == {
        "params": {"kernel": ((16, 16, 2, 2), jnp.dtype("float32"))}
    }
    np.testing.assert_array_equal(params["params"]["kernel"], upsample.bilinear_kernel(16, 2))
    assert worst(module.apply(params, x), np.asarray(upsample.fixed_bilinear(x, 16))) < 1e-6
    kernel = random(4, 16, 16, 2, 2)
    out = module.apply({"params": {"kernel": kernel}}, x)
    assert worst(out, reference.upsample(np.asarray(x)[0], kernel, 8)[None]) < 1e-6

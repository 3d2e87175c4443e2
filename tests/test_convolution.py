"""The forms of convolutions and pooling: the same sums as XLA's and as loops in NumPy, and each on its platform."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import sharding
from fcn_jax.models import convolution, fcn, layers
from fcn_jax.models.spec import ModelSpec

RNG = np.random.default_rng(0)
# x [B, H, W, I], kernel [k, k, I, O], padding: among them one row, one column, and more padding than image.
CASES = [
    ((1, 5, 7, 3), (3, 3, 3, 4), 1),
    ((3, 4, 9, 2), (3, 3, 2, 5), 0),
    ((2, 1, 6, 3), (3, 3, 3, 2), 1),
    ((1, 6, 1, 4), (3, 3, 4, 1), 1),
    ((1, 3, 4, 3), (3, 3, 3, 2), 9),
    ((2, 8, 9, 3), (7, 7, 3, 5), 0),
    ((1, 2, 3, 4), (7, 7, 4, 3), 3),
    ((2, 5, 4, 6), (1, 1, 6, 3), 0),
]


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch):
    """Forms are chosen however small the kernel is."""
    monkeypatch.setattr(convolution, "_LARGE_KERNEL", 0)


def draw(*shape, dtype=np.float64):
    return RNG.normal(size=shape).astype(dtype)


def loops(x, kernel, padding):
    """The convolution as it is defined."""
    size = len(kernel)
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i, j in itertools.product(range(size), repeat=2):
        y += x[:, i : i + rows, j : j + columns] @ kernel[i, j]
    return y


def loops_gradient(x, kernel, g, padding):
    """Of x and of the kernel, tap by tap."""
    size = len(kernel)
    padded = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    dx, dk = np.zeros_like(padded), np.zeros_like(kernel)
    rows, columns = g.shape[1:3]
    for i, j in itertools.product(range(size), repeat=2):
        dx[:, i : i + rows, j : j + columns] += g @ kernel[i, j].T
        dk[i, j] = np.einsum("bhwi,bhwo->io", padded[:, i : i + rows, j : j + columns], g)
    inside = np.s_[padding : padding + x.shape[1]], np.s_[padding : padding + x.shape[2]]
    return dx[:, inside[0], inside[1]], dk


def convolve(x, kernel, padding):
    return convolution.convolve(x, kernel, ((padding, padding),) * 2)


THREE = convolution.XLA._replace(forward=convolution.winograd, to_kernel=convolution.rows_to_kernel)  # of 3x3 alone
TAPS = convolution.XLA._replace(to_kernel=convolution.taps_to_kernel)
FORMS = {"xla": convolution.XLA, "product": convolution.PRODUCT, "winograd, rows": THREE, "taps": TAPS}


@pytest.mark.parametrize(("x", "kernel", "padding"), CASES)
def test_every_form_gives_the_sums_of_the_definition(x, kernel, padding):
    x, kernel = draw(*x), draw(*kernel)
    expected = loops(x, kernel, padding)
    g = draw(*expected.shape)
    gradient = loops_gradient(x, kernel, g, padding)
    with jax.enable_x64(True):
        given = [*map(jnp.asarray, (x, kernel, g))]
        np.testing.assert_allclose(convolve(*given[:2], padding), expected, atol=1e-12)
        for name, form in FORMS.items():
            if form is THREE and len(kernel) != 3:
                continue
            np.testing.assert_allclose(form.forward(*given[:2], padding), expected, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(form.to_input(*given, padding), gradient[0], atol=1e-12, err_msg=name)
            np.testing.assert_allclose(form.to_kernel(*given, padding), gradient[1], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("block", [1, 600, 2**23])  # bytes: a row, some rows, all of them
@pytest.mark.parametrize(("x", "kernel", "padding"), CASES)
def test_blocks_of_any_size_give_the_sums_of_the_definition(monkeypatch, x, kernel, padding, block):
    monkeypatch.setattr(convolution, "_BLOCK", block)
    x, kernel = draw(*x), draw(*kernel)
    expected = loops(x, kernel, padding)
    g = draw(*expected.shape)
    gradient = loops_gradient(x, kernel, g, padding)
    with jax.enable_x64(True):
        given = [*map(jnp.asarray, (x, kernel, g))]
        np.testing.assert_allclose(convolution.HALF.forward(*given[:2], padding), expected, atol=1e-12)
        np.testing.assert_allclose(convolution.HALF.to_input(*given, padding), gradient[0], atol=1e-12)


# Just enough for each rule of cpu_form: rows, taps, products of 7x7 and of 1x1, and XLA's where a map is small; in
# float32 and in bfloat16.
CHOSEN = [
    ((1, 64, 64, 3), (3, 3, 3, 64), 1, "while", "while"),
    ((1, 63, 64, 3), (3, 3, 3, 64), 1, "convolution", "while"),
    ((1, 64, 64, 3), (3, 3, 3, 63), 1, "convolution", "convolution"),
    ((2, 24, 24, 2), (3, 3, 2, 512), 1, "while", "blocks"),
    ((2, 24, 24, 2), (3, 3, 2, 256), 1, "convolution", "blocks"),
    ((2, 24, 24, 2), (3, 3, 2, 255), 1, "convolution", "while"),
    ((2, 23, 25, 2), (3, 3, 2, 512), 1, "convolution", "convolution"),
    ((1, 7, 8, 2), (7, 7, 2, 56), 0, "dot_general", "dot_general"),
    ((1, 7, 8, 2), (7, 7, 2, 55), 0, "convolution", "convolution"),
    ((1, 9, 8, 2), (1, 1, 2, 3), 0, "dot_general", "dot_general"),
    ((2, 8, 16, 512), (3, 3, 512, 512), 1, "winograd", "convolution"),
    ((1, 15, 17, 512), (3, 3, 512, 512), 1, "convolution", "convolution"),
    ((1, 16, 16, 511), (3, 3, 511, 512), 1, "convolution", "convolution"),
]
OPERATIONS = {
    "convolution": {"convolution": 3},
    "while": {"while": 1, "dot_general": 1, "convolution": 2},
    "dot_general": {"dot_general": 3},
    "winograd": {"dot_general": 16, "convolution": 2},
    "blocks": {"while": 3, "dot_general": 3},
}


def operations(x, kernel, padding, platform, dtype=jnp.float32):
    """{operation: how many} of a convolution with both gradients as it is lowered for a platform."""

    def loss(x, kernel):
        return (convolve(x, kernel, padding) ** 2).sum()

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel)]
    text = jax.jit(jax.grad(loss, (0, 1))).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    return collections.Counter(re.findall(r"stablehlo\.(convolution|while|dot_general)\b", text))


@pytest.mark.parametrize(("x", "kernel", "padding", "form", "half"), CHOSEN)
def test_the_form_is_that_of_the_platform(x, kernel, padding, form, half):
    for dtype, expected in ((jnp.float32, form), (jnp.bfloat16, half)):
        assert operations(x, kernel, padding, "cpu", dtype) == OPERATIONS[expected]
        for platform in ("tpu", "cuda"):
            assert operations(x, kernel, padding, platform, dtype) == OPERATIONS["convolution"]


@pytest.mark.parametrize("form", [convolution.PRODUCT, convolution.HALF])
@pytest.mark.parametrize(
    ("x", "kernel", "padding"),
    [
        ((2, 9, 8, 96), (7, 7, 96, 48), 3),
        ((1, 30, 50, 48), (3, 3, 48, 64), 1),
        ((1, 9, 8, 128), (1, 1, 128, 128), 0),
    ],
)
def test_products_in_bfloat16_are_summed_in_float32(x, kernel, padding, form):
    """Thousands of them, so that what is off is the rounding of the result alone: half of 2^-7 at most.

    Compiled whole, as in training: what is fused around a product decides whether XLA has it in 16 bits.
    """
    x, kernel = (jnp.asarray(draw(*shape), jnp.bfloat16) for shape in (x, kernel))
    g = jnp.asarray(draw(*x.shape[:3], kernel.shape[-1]), jnp.bfloat16)
    given = [np.asarray(array, np.float64) for array in (x, kernel, g)]
    expected = (loops(*given[:2], padding), *loops_gradient(*given, padding))
    found = [jax.jit(functools.partial(form.forward, padding=padding))(x, kernel)]
    found += [jax.jit(functools.partial(of, padding=padding))(x, kernel, g) for of in form[1:]]
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=2**-8, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("x", "kernel", "padding"), [case[:3] for case in CHOSEN if case[3] != "convolution"])
def test_both_platforms_give_the_same_numbers(x, kernel, padding):
    """To 2e-6 of the largest, in float32, against those of TPU and GPU in float64: XLA's own are up to 2e-5 off."""
    x, kernel = draw(*x, dtype=np.float32), draw(*kernel, dtype=np.float32)
    y, pull = jax.vjp(functools.partial(convolve, padding=padding), x, kernel)
    g = draw(*y.shape, dtype=np.float32)
    found = [np.asarray(value) for value in (y, *pull(g))]
    with jax.enable_x64(True):
        exact = [jnp.asarray(array, jnp.float64) for array in (x, kernel, g)]
        expected, pull = jax.vjp(functools.partial(convolution.xla, padding=padding), *exact[:2])
        wanted = [np.asarray(value) for value in (expected, *pull(exact[2]))]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def test_sums_over_rows_stay_in_the_cache():
    """A batch whose sums, one for each image, are too large for that goes tap by tap."""
    kernel = jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)
    of = {n: convolution.cpu_form(jax.ShapeDtypeStruct((n, 64, 64, 256), jnp.float32), kernel) for n in (4, 5)}
    assert of[4].to_kernel is convolution.rows_to_kernel
    assert of[5].to_kernel is convolution.taps_to_kernel


def test_a_layer_that_is_not_trained_costs_no_gradient():
    """Of frozen kernels nothing is computed, nor of an image."""

    def count(arguments):
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 64, 3), (3, 3, 3, 64))]
        loss = jax.grad(lambda x, kernel: (convolve(x, kernel, 1) ** 2).sum(), arguments)
        text = jax.jit(loss).lower(*shapes).compile().as_text()
        return len(re.findall(r" while\(", text)), len(re.findall(r" convolution\(", text))

    assert count(0) == (0, 2)
    assert count(1) == (1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 2), (6, 6), (7, 9)])
def test_pooling_gives_its_gradient_to_the_first_of_the_largest(size):
    """Of few values, so that many are equal; and the same as XLA's own."""
    x = RNG.integers(-1, 2, (2, *size, 3)).astype(np.float32)
    rows, columns = (-(-n // 2) for n in size)
    g = draw(2, rows, columns, 3, dtype=np.float32)
    y, dx = np.zeros_like(g), np.zeros_like(x)
    for index in np.ndindex(g.shape):
        b, i, j, c = index
        window = [(b, r, s, c) for r in (2 * i, 2 * i + 1) for s in (2 * j, 2 * j + 1) if r < size[0] and s < size[1]]
        largest = max(window, key=lambda place: x[place])  # the first of them
        y[index] = x[largest]
        dx[largest] = g[index]
    found, pull = jax.vjp(convolution.max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(pull(jnp.asarray(g))[0], dx)


def test_rectified_are_the_largest_alone():
    """Pooling before relu is pooling after it, also where images end inside a window, in values and gradients."""
    x, g = draw(2, 7, 10, 3, dtype=np.float32), draw(2, 4, 5, 3, dtype=np.float32)
    extent = jnp.array([[7, 10], [4, 3]], jnp.int32)
    caffe = layers.Layers(caffe=True, dtype=jnp.float32)

    def before(x):
        return caffe.relu(caffe.max_pool(layers.Map(x, extent).masked(), "pool", 2)).x

    def after(x):
        return caffe.max_pool(layers.Map(jax.nn.relu(x), extent).masked(), "pool", 2).x

    (found, pull), (expected, pull_after) = jax.vjp(before, x), jax.vjp(after, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(g)[0], pull_after(g)[0])


def test_relu_has_no_gradient_at_zero_and_below():
    x = jnp.array([[[[-1.0, 0.0, 2.0]]]])
    y, pull = jax.vjp(convolution.relu, x)
    np.testing.assert_array_equal(y, [[[[0, 0, 2]]]])
    np.testing.assert_array_equal(pull(jnp.full_like(x, 3))[0], [[[[0, 0, 3]]]])


def test_the_full_network_on_each_platform(monkeypatch):
    """FCN-8s at 160x192: on CPU the four maps of conv1 and conv2 go by rows; TPU and GPU have XLA's alone."""
    spec = ModelSpec("fcn8s", "vgg16", "same", False, "fixed", 64, 4096, ("a", "b"), ((0, 0, 0), (1, 1, 1)))

    def operations(platform):
        def loss(params, image):
            return fcn.FCN(spec).apply({"params": params}, image).sum()

        image = jax.ShapeDtypeStruct((1, 160, 192, 3), jnp.uint8)
        text = jax.jit(jax.grad(loss)).trace(fcn.abstract_params(spec), image).lower(lowering_platforms=(platform,))
        words = re.findall(r"stablehlo\.(\w+)", text.as_text())
        return collections.Counter(word for word in words if word not in ("case", "constant", "return"))

    found = {platform: operations(platform) for platform in ("cpu", "tpu", "cuda")}
    monkeypatch.setattr(convolution, "cpu_form", lambda x, kernel: convolution.XLA)
    assert found["tpu"] == found["cuda"] == operations("tpu") == operations("cpu")
    assert found["tpu"]["while"] == 0
    assert found["cpu"]["while"] == 4
    assert found["cpu"]["convolution"] < found["tpu"]["convolution"]


@pytest.mark.parametrize(
    ("side", "inputs", "outputs", "dtype"),
    [(64, 3, 64, jnp.float32), (24, 2, 512, jnp.float32), (24, 2, 256, jnp.bfloat16)],
)
def test_devices_that_share_a_batch_speak_once_a_layer(monkeypatch, side, inputs, outputs, dtype):
    """Not in every row, tap or block: the sums are of each image, and are added up at the end."""
    monkeypatch.setattr(convolution, "_BLOCK", 1)
    mesh = sharding.make_mesh()
    split, whole = sharding.split_batch(mesh, 0), sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((4, side, side, inputs), dtype, sharding=split)
    kernel = jax.ShapeDtypeStruct((3, 3, inputs, outputs), dtype, sharding=whole)
    step = jax.jit(jax.grad(lambda kernel, x: (convolve(x, kernel, 1) ** 2).sum()), out_shardings=whole)
    text = step.lower(kernel, x).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    assert len(re.findall(r" while\(", entry)) == (2 if dtype == jnp.bfloat16 else 1)  # forward by blocks, too
    assert not re.findall(r" all-gather\(", text)
    assert len(re.findall(r" all-reduce\(", text)) == len(re.findall(r" all-reduce\(", entry)) == 1

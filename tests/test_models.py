"""The networks against tests/reference.py, which runs each image alone at its own size, and against numbers by hand."""

import dataclasses
import functools
import json
import pathlib
import zlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fcn_jax.models import fcn, layers, spec, upsample

NETWORKS = ("fcn32s", "fcn16s", "fcn8s")
CLASSES = 3
WIDTH = 3
FC_WIDTH = 8
CANVAS = 130
# 1 and 2 pixels, both sides of every multiple of a stride that fits, elongated, odd beside even, and all of the canvas.
SIZES = (
    *((1, 1), (1, 2), (2, 1), (2, 3), (1, 130), (130, 1), (2, 129), (127, 3)),
    *((5, 4), (7, 9), (8, 8), (15, 16), (16, 17), (17, 15), (23, 24), (25, 31)),
    *((31, 32), (32, 33), (33, 31), (40, 47), (48, 49), (63, 64), (64, 65), (65, 63)),
    *((97, 61), (61, 97), (95, 96), (128, 129), (129, 127), (130, 130)),
)
GRADIENT_SIZES = ((1, 1), (33, 40), (40, 17), (3, 38))
GRADIENT_CANVAS = (40, 40)


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the tests."""

    geometry: str
    network: str
    at_once: bool = False
    upsampling: str = "fixed"

    def __str__(self) -> str:
        return f"{self.geometry}-{self.network}{'-atonce' * self.at_once}{'-learned' * (self.upsampling == 'learned')}"

    def module(self, dtype: Any = jnp.float32, dropout: float = 0.5) -> fcn.FCN:
        return fcn.FCN(model_spec(self, width=WIDTH), dropout=dropout, dtype=dtype)

    def reference(self, params: Any, image: np.ndarray) -> np.ndarray:
        run = {"caffe": reference.fcn_caffe, "same": reference.fcn_same}[self.geometry]
        return run(params, image, network=self.network, at_once=self.at_once)


CASES = (
    *(Case(geometry, network) for geometry in spec.GEOMETRIES for network in NETWORKS),
    Case("caffe", "fcn16s", upsampling="learned"),
    Case("caffe", "fcn8s", at_once=True, upsampling="learned"),
    Case("same", "fcn32s", upsampling="learned"),
    Case("same", "fcn8s", at_once=True, upsampling="learned"),
    Case("caffe", "fcn4s"),
    Case("same", "fcn4s", at_once=True, upsampling="learned"),
)
GRADIENT_CASES = (
    Case("caffe", "fcn32s"),
    Case("caffe", "fcn16s", upsampling="learned"),
    Case("caffe", "fcn8s"),
    Case("same", "fcn32s"),
    Case("same", "fcn16s"),
    Case("same", "fcn8s", at_once=True, upsampling="learned"),
    Case("caffe", "fcn4s", at_once=True),
)


def random_params(case: Case) -> Any:
    """Random float32 parameters with no bias of zero, and skips that weigh as much at once as without."""
    shapes = jax.eval_shape(case.module().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]
    params: dict[str, dict[str, np.ndarray]] = {}
    for layer, arrays in shapes.items():
        rng = np.random.default_rng(zlib.crc32(layer.encode()))
        kernel = rng.normal(size=arrays["kernel"].shape)
        if layer.startswith("upscore"):
            params[layer] = {"kernel": kernel.astype(np.float32)}
            continue
        kernel *= np.sqrt(2 / np.prod(kernel.shape[:3]))
        if case.at_once and layer.startswith("score_pool"):
            kernel /= reference.AT_ONCE_SCALE[layer.removeprefix("score_")]
        bias = 10 * rng.normal(size=arrays["bias"].shape)
        params[layer] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return params


def random_batch(sizes: Any, canvas: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images that depend on `seed` and their index alone, in a canvas whose padding is filled with other pixels."""
    batch = np.random.default_rng(canvas).integers(0, 256, (len(sizes), *canvas, 3), dtype=np.uint8)
    for index, (height, width) in enumerate(sizes):
        image = np.random.default_rng((seed, index)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        batch[index, :height, :width] = image
    return batch, np.array(sizes, np.int32)


def worst(actual: Any, expected: Any) -> float:
    """The largest error relative to the largest value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    largest = np.abs(expected).max()
    assert largest > 0
    return float(np.abs(actual - expected).max() / largest)


def layer_errors(actual: Any, expected: Any) -> dict[str, float]:
    """`worst` of each parameter."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    errors = jax.tree.map(worst, actual, expected)
    return {f"{layer}/{name}": error for layer, arrays in errors.items() for name, error in arrays.items()}


# Forward


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_image_of_a_mixed_batch_has_the_reference_scores_of_its_own_size(case: Case) -> None:
    params = random_params(case)
    batch, sizes = random_batch(SIZES, (CANVAS, CANVAS))
    out = jax.jit(case.module().apply)({"params": params}, batch, sizes)
    assert out.shape == (len(SIZES), CANVAS, CANVAS, CLASSES)
    assert out.dtype == jnp.float32
    errors = {}
    for index, (height, width) in enumerate(SIZES):
        expected = case.reference(params, batch[index, :height, :width])
        errors[height, width] = worst(out[index, :height, :width], expected)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("size", [(5, 3), (61, 97)])
@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_an_image_alone_without_sizes_has_the_reference_scores(geometry: str, size: tuple[int, int]) -> None:
    case = Case(geometry, "fcn8s")
    params = random_params(case)
    batch, _ = random_batch([size], size)
    out = jax.jit(case.module().apply)({"params": params}, batch)
    assert worst(out[0], case.reference(params, batch[0])) < 1e-5


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_scores_depend_neither_on_the_canvas_nor_on_what_fills_it(geometry: str) -> None:
    module = Case(geometry, "fcn8s").module()
    params = random_params(Case(geometry, "fcn8s"))
    small, sizes = random_batch(GRADIENT_SIZES, GRADIENT_CANVAS)
    large, _ = random_batch(GRADIENT_SIZES, (57, 49))
    other = small.copy()
    for index, (height, width) in enumerate(GRADIENT_SIZES):
        other[index, height:] ^= 255
        other[index, :, width:] ^= 255
    assert (other != small).any()
    apply = jax.jit(module.apply)
    out, out_large, out_other = (apply({"params": params}, batch, sizes) for batch in (small, large, other))
    for index, (height, width) in enumerate(GRADIENT_SIZES):
        assert worst(out_large[index, :height, :width], out[index, :height, :width]) < 1e-5
    np.testing.assert_array_equal(out_other, out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_have_the_size_of_the_image(case: Case) -> None:
    params = jax.eval_shape(lambda: random_params(case))
    for height, width in ((1, 1), (2, 31), (33, 64), (65, 97), (375, 500), (501, 1)):
        image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.uint8)
        out = jax.eval_shape(case.module().apply, {"params": params}, image)
        assert out.shape == (2, height, width, CLASSES)
        assert out.dtype == jnp.float32


@pytest.mark.parametrize("network", NETWORKS)
def test_caffe_crops_start_where_the_release_has_them(network: str) -> None:
    # Only score_fr's bias is not zero, so that every score is 1 and every upsampling shows its ramps. A 1x1 image has
    # one score: 199 -> 100 -> 50 -> 25 -> 13 -> 7 -> 1. Of the 32s' ramp, (0.5 + r) / 32, the crop at 19 shows 19.5/32.
    # 16s: 2x upsampling gives 1/4 3/4 3/4 1/4, and the crop at 27 shows 1/4 * 4.5/16 + 3/4 * 11.5/16 = 19.5/32.
    # 8s: upsampled again, that is .. 3/8 5/8 .. at 2 and 3; the crop at 31 shows 3/8 * 1/16 + 5/8 * 15/16 = 19.5/32.
    case = Case("caffe", network)
    params = jax.tree.map(np.zeros_like, random_params(case))
    params["score_fr"]["bias"][:] = 1, 10, 0
    out = case.module().apply({"params": params}, jnp.zeros((1, 1, 1, 3), jnp.uint8))
    np.testing.assert_allclose(out[0, 0, 0], np.array([1, 10, 0]) * (19.5 / 32) ** 2, rtol=1e-6)
    if network == "fcn32s":
        # 40 pixels have two scores: the ramp has risen at pixel 13 and would fall from pixel 45 on.
        out = case.module().apply({"params": params}, jnp.zeros((1, 40, 1, 3), jnp.uint8))
        ramp = np.minimum(1, (19.5 + np.arange(40)) / 32)
        np.testing.assert_allclose(out[0, :, 0, 0], ramp * 19.5 / 32, rtol=1e-6)


# Layers


@pytest.mark.parametrize("caffe", [True, False])
def test_pooling_has_the_values_computed_by_hand(caffe: bool) -> None:
    pool = functools.partial(layers.Layers(caffe, jnp.float32).max_pool, name="pool", size=2)
    x = jnp.array([[1.0, 5.0, 2.0], [3.0, 4.0, 9.0], [7.0, 6.0, 8.0]]).reshape(1, 3, 3, 1)
    expected = np.array([[5, 9], [7, 8]]).reshape(1, 2, 2, 1)
    alone = pool(layers.Map(x, None))
    np.testing.assert_array_equal(alone.x, expected)
    assert alone.extent is None
    padded = jnp.zeros((1, 6, 5, 1)).at[:, :3, :3].set(x)
    pooled = pool(layers.Map(padded, jnp.array([[3, 3]])))
    np.testing.assert_array_equal(pooled.x[:, :2, :2], expected)
    np.testing.assert_array_equal(pooled.extent, [[2, 2]])
    extents = pool(layers.Map(jnp.zeros((4, 4, 4, 1)), jnp.array([[1, 2], [3, 4], [2, 1], [4, 3]]))).extent
    np.testing.assert_array_equal(extents, [[1, 1], [2, 2], [1, 1], [2, 2]])


def test_masked_keeps_what_is_inside_each_extent() -> None:
    x = jnp.arange(1.0, 13.0).reshape(2, 2, 3, 1)
    masked = layers.Map(x, jnp.array([[1, 2], [2, 3]])).masked()
    np.testing.assert_array_equal(masked.x[..., 0], [[[1, 2, 0], [0, 0, 0]], [[7, 8, 9], [10, 11, 12]]])
    assert layers.Map(x, None).masked().x is x


def seen(*extra: float) -> spec.ModelSpec:
    """A network of RGB and further channels."""
    return dataclasses.replace(model_spec(CASES[0]), mean=(*spec.MEAN_BGR, *extra))


def test_preprocessing_is_bgr_minus_the_mean() -> None:
    image = jnp.array([10, 100, 255], jnp.uint8).reshape(1, 1, 1, 3)
    out = layers.preprocess(image, seen(), "", jnp.float32)
    assert out.dtype == jnp.float32
    # 255 - 104.00699, 100 - 116.66877, 10 - 122.67892
    np.testing.assert_allclose(out.ravel(), [150.99301, -16.66877, -112.67892], rtol=1e-6)


def test_a_fourth_channel_stays_the_fourth_and_has_its_own_mean() -> None:
    image = jnp.array([10, 100, 255, 8]).reshape(1, 1, 1, 4)
    out = layers.preprocess(image, seen(7.844), "", jnp.float32)
    np.testing.assert_allclose(out.ravel(), [150.99301, -16.66877, -112.67892, 0.156], rtol=1e-5)
    with pytest.raises(ValueError, match="the images have 4 channels and the network takes 3"):
        layers.preprocess(image, seen(), "", jnp.float32)


# Gradients


def convolve_backwards(x: np.ndarray, kernel: np.ndarray, pad: int, gradient: np.ndarray) -> tuple[Any, np.ndarray]:
    """Gradients of reference.convolve's {'kernel', 'bias'} and of its input, from that of its output [h, w, O]."""
    height, width, _ = gradient.shape
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    of_kernel, of_padded = np.zeros(kernel.shape), np.zeros(padded.shape)
    for r in range(kernel.shape[0]):
        for c in range(kernel.shape[1]):
            window = np.s_[r : r + height, c : c + width]
            of_kernel[r, c] = np.einsum("hwi,hwo->io", padded[window], gradient)
            of_padded[window] += gradient @ kernel[r, c].T
    of_x = of_padded[pad : pad + x.shape[0], pad : pad + x.shape[1]]
    return {"kernel": of_kernel, "bias": gradient.sum((0, 1))}, of_x


def max_pool_backwards(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The gradient of reference.max_pool's input: that of each window goes to the first of its largest values."""
    out = np.zeros(x.shape)
    waiting = np.ones(gradient.shape, bool)
    pooled = reference.max_pool(x)
    for r in (0, 1):
        for c in (0, 1):
            corner = x[r::2, c::2]
            part = np.s_[: corner.shape[0], : corner.shape[1]]
            taken = waiting[part] & (corner == pooled[part])
            out[r::2, c::2] = np.where(taken, gradient[part], 0)
            waiting[part] &= ~taken
    return out


def upsample_backwards(x: np.ndarray, kernel: np.ndarray, stride: int, gradient: np.ndarray) -> tuple[Any, np.ndarray]:
    """Gradients of reference.upsample's kernel and input, from that of its output."""
    of_kernel, of_x = np.zeros(kernel.shape), np.zeros(x.shape)
    for r in range(kernel.shape[0]):
        for c in range(kernel.shape[1]):
            part = gradient[r::stride, c::stride][: x.shape[0], : x.shape[1]]
            of_kernel[r, c] = np.einsum("hwi,hwo->io", x, part)
            of_x += part @ kernel[r, c].T
    return {"kernel": of_kernel}, of_x


def reference_gradients(case: Case, params: Any, image: np.ndarray, weights: np.ndarray) -> Any:
    """Gradients of sum(weights * logits) with respect to the parameters, float64, of one image [H, W, 3] alone."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    caffe = case.geometry == "caffe"
    scale = reference.AT_ONCE_SCALE if case.at_once else dict.fromkeys(reference.AT_ONCE_SCALE, 1.0)
    # The encoder forwards: each layer's name, padding and input; the name of a pooling layer stands for itself.
    x = reference.preprocess(image)
    inputs, found = [], {}
    for number, block in enumerate((*reference.BLOCKS, ("fc6", "fc7")), start=1):
        for name in block:
            pad = {"conv1_1": 100 if caffe else 1, "fc6": 0 if caffe else 3, "fc7": 0}.get(name, 1)
            inputs.append((name, pad, x))
            x = reference.relu(reference.convolve(x, params[name], pad))
        if number <= 5:
            inputs.append((f"pool{number}", 0, x))
            x = found[f"pool{number}"] = reference.max_pool(x)
    # The decoder forwards.
    fc7 = x
    x = reference.convolve(fc7, params["score_fr"])
    steps = []
    for layer, stride, skip, offset in reference.UPSAMPLING[case.network]:
        kernel = reference.upsampling_kernel(params, layer, stride, CLASSES)
        up = reference.upsample(x, kernel, stride)
        steps.append((layer, stride, skip, offset, kernel, x, up.shape))
        if skip is None:
            break
        scored = reference.score_skip(params, found, skip, case.at_once)
        if caffe:
            x = up + reference.crop(scored, offset, *up.shape[:2])
        else:
            x = up[stride // 2 :, stride // 2 :][: scored.shape[0], : scored.shape[1]] + scored
    # And backwards.
    gradients, of_skips = {}, {}
    gradient = weights.astype(np.float64)
    for layer, stride, skip, offset, kernel, x, shape in reversed(steps):
        of_up = np.zeros(shape)
        if skip is not None:
            of_score = gradient
            if caffe:
                of_score = np.zeros((*found[skip].shape[:2], CLASSES))
                of_score[offset : offset + shape[0], offset : offset + shape[1]] = gradient
            score = f"score_{skip}"
            gradients[score], of_skip = convolve_backwards(
                found[skip] * scale[skip], params[score]["kernel"], 0, of_score
            )
            of_skips[skip] = of_skip * scale[skip]
        # What was cut out of the upsampled map: all of it where a caffe network adds a skip.
        start = (0 if skip else offset) if caffe else stride // 2
        of_up[start : start + gradient.shape[0], start : start + gradient.shape[1]] = gradient
        of_kernel, gradient = upsample_backwards(x, kernel, stride, of_up)
        if layer in params:
            gradients[layer] = of_kernel
    gradients["score_fr"], gradient = convolve_backwards(fc7, params["score_fr"]["kernel"], 0, gradient)
    for name, pad, x in reversed(inputs):
        if name.startswith("pool"):
            gradient = max_pool_backwards(x, gradient + of_skips.get(name, 0))
        else:
            gradient = gradient * (reference.convolve(x, params[name], pad) > 0)
            gradients[name], gradient = convolve_backwards(x, params[name]["kernel"], pad, gradient)
    return gradients


def gradients(case: Case, params: Any, batch: Any, sizes: Any, weights: np.ndarray, dtype: Any) -> tuple[Any, Any]:
    """Gradients of sum(weights * logits), and logits, computed in `dtype`."""

    def loss(params: Any, batch: Any, sizes: Any, weights: Any) -> Any:
        logits = case.module(dtype).apply({"params": params}, batch, sizes)
        return (logits * weights).sum(), logits

    # These small programs take longer to compile than to run; in float64 that is so only with LLVM's optimizations.
    options = {"xla_backend_optimization_level": 0} if dtype == jnp.float32 else None
    function = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    return function(params, batch, sizes, jnp.asarray(weights, dtype))


GRADIENT_TESTS = (
    *((case, "float32") for case in GRADIENT_CASES),
    *((case, "float64") for case in GRADIENT_CASES if case.network == "fcn8s"),
    *(pytest.param(case, "float64", marks=pytest.mark.slow) for case in GRADIENT_CASES if case.network != "fcn8s"),
)


@pytest.mark.parametrize(("case", "dtype"), GRADIENT_TESTS, ids=str)
def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_each_image_alone(case: Case, dtype: str) -> None:
    params = random_params(case)
    batch, sizes = random_batch(GRADIENT_SIZES, GRADIENT_CANVAS)
    weights = np.zeros((*batch.shape[:3], CLASSES), np.float32)
    expected = jax.tree.map(lambda a: np.zeros(a.shape), params)
    for index, (height, width) in enumerate(GRADIENT_SIZES):
        own = np.random.default_rng(index).normal(size=(height, width, CLASSES)).astype(np.float32)
        weights[index, :height, :width] = own
        alone = reference_gradients(case, params, batch[index, :height, :width], own)
        expected = jax.tree.map(np.add, expected, alone)
    with jax.enable_x64(dtype == "float64"):
        found, logits = gradients(case, params, batch, sizes, weights, jnp.dtype(dtype))
    assert {a.dtype for a in jax.tree.leaves((found, logits))} == {np.dtype(dtype)}
    errors = layer_errors(found, expected)
    assert max(errors.values()) < {"float32": 1e-4, "float64": 1e-10}[dtype], errors
    for index, (height, width) in enumerate(GRADIENT_SIZES):
        native = case.reference(params, batch[index, :height, :width])
        assert worst(logits[index, :height, :width], native) < {"float32": 1e-5, "float64": 1e-12}[dtype]


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_gradients_of_an_image_alone_without_sizes_are_the_reference_ones(geometry: str) -> None:
    case = Case(geometry, "fcn8s")
    params = random_params(case)
    batch, _ = random_batch([(33, 18)], (33, 18))
    weights = np.random.default_rng(0).normal(size=(1, 33, 18, CLASSES)).astype(np.float32)
    found, _ = gradients(case, params, batch, None, weights, jnp.float32)
    errors = layer_errors(found, reference_gradients(case, params, batch[0], weights[0]))
    assert max(errors.values()) < 1e-4, errors


# Parameters


def model_spec(case: Case, width: int = 4, fc_width: int = FC_WIDTH, classes: int = CLASSES) -> spec.ModelSpec:
    names = tuple(f"class{index}" for index in range(classes))
    palette = tuple((index, 2 * index, 255 - index) for index in range(classes))
    return spec.ModelSpec(
        **dataclasses.asdict(case), backbone="vgg16", width=width, fc_width=fc_width, class_names=names, palette=palette
    )


# (kernel, inputs, outputs) of VGG16 and of the scores for 21 classes: paper, tables of configuration D.
VGG16 = {
    "conv1_1": (3, 3, 64),
    "conv1_2": (3, 64, 64),
    "conv2_1": (3, 64, 128),
    "conv2_2": (3, 128, 128),
    "conv3_1": (3, 128, 256),
    "conv3_2": (3, 256, 256),
    "conv3_3": (3, 256, 256),
    "conv4_1": (3, 256, 512),
    "conv4_2": (3, 512, 512),
    "conv4_3": (3, 512, 512),
    "conv5_1": (3, 512, 512),
    "conv5_2": (3, 512, 512),
    "conv5_3": (3, 512, 512),
    "fc6": (7, 512, 4096),
    "fc7": (1, 4096, 4096),
    "score_fr": (1, 4096, 21),
}
SCORES = {"score_pool4": (1, 512, 21), "score_pool3": (1, 256, 21), "score_pool2": (1, 128, 21)}
# The encoder has 134,260,544: 14,714,688 in conv1_1 .. conv5_3, 7 * 7 * 512 * 4096 + 4096 = 102,764,544 in fc6 and
# 4096 * 4096 + 4096 = 16,781,312 in fc7. The scores: score_fr 4096 * 21 + 21 = 86,037, score_pool4 512 * 21 + 21 =
# 10,773, score_pool3 256 * 21 + 21 = 5,397, score_pool2 128 * 21 + 21 = 2,709. Learned kernels: (2 s)^2 * 21^2, that is
# 7,056 for s = 2, 28,224 for 4, 112,896 for 8, 451,584 for 16 and 1,806,336 for 32.
COUNTS = {
    # 134,260,544 + 86,037
    ("fcn32s", "fixed"): (134_346_581, {}),
    # + 10,773
    ("fcn16s", "fixed"): (134_357_354, {}),
    # + 5,397
    ("fcn8s", "fixed"): (134_362_751, {}),
    # + 2,709
    ("fcn4s", "fixed"): (134_365_460, {}),
    # fixed + 1,806,336
    ("fcn32s", "learned"): (136_152_917, {"upscore": 64}),
    # fixed + 7,056 + 451,584
    ("fcn16s", "learned"): (134_815_994, {"upscore2": 4, "upscore16": 32}),
    # fixed + 7,056 + 7,056 + 112,896
    ("fcn8s", "learned"): (134_489_759, {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}),
    # fixed + 3 * 7,056 + 28,224
    ("fcn4s", "learned"): (134_414_852, {"upscore2": 4, "upscore_pool4": 4, "upscore_pool3": 4, "upscore4": 8}),
}


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
@pytest.mark.parametrize(("network", "upsampling"), COUNTS)
def test_full_width_networks_have_the_layers_of_the_paper(network: str, upsampling: str, geometry: str) -> None:
    count, upscores = COUNTS[network, upsampling]
    skips = list(SCORES)[: ("fcn32s", "fcn16s", "fcn8s", "fcn4s").index(network)]
    layers = VGG16 | {name: SCORES[name] for name in skips}
    expected: dict[str, Any] = {
        name: {"kernel": (size, size, inputs, outputs), "bias": (outputs,)}
        for name, (size, inputs, outputs) in layers.items()
    }
    expected |= {name: {"kernel": (size, size, 21, 21)} for name, size in upscores.items()}
    case = Case(geometry, network, upsampling=upsampling)
    params = fcn.abstract_params(model_spec(case, width=64, fc_width=4096, classes=21))
    assert jax.tree.map(lambda a: a.shape, params) == expected
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert sum(a.size for a in jax.tree.leaves(params)) == count


@pytest.fixture(scope="module")
def initialise() -> Any:
    """From a key to fresh parameters of a narrow FCN-4s with learned upsampling."""
    return functools.partial(fcn.init, model_spec(Case("caffe", "fcn4s", upsampling="learned")))


def test_initial_state(initialise: Any) -> None:
    strides = {"upscore2": 2, "upscore_pool4": 2, "upscore_pool3": 2, "upscore4": 4}
    initial = initialise(jax.random.key(1))
    assert initial.keys() == VGG16.keys() | SCORES.keys() | strides.keys()
    for layer, arrays in initial.items():
        kernel = np.asarray(arrays["kernel"])
        assert kernel.dtype == np.float32
        if layer in strides:
            np.testing.assert_array_equal(kernel, upsample.bilinear_kernel(2 * strides[layer], CLASSES))
            continue
        assert not np.asarray(arrays["bias"]).any()
        if layer.startswith("score"):
            assert not kernel.any()
        else:
            # He et al.: variance 2 / fan-in, to within the spread of the fewest draws, the 108 of conv1_1.
            assert kernel.std() == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:3])), rel=0.3)


def test_initialisation_depends_on_the_key(initialise: Any) -> None:
    first, again, other = (initialise(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, again, first)
    for layer in VGG16:
        if layer != "score_fr":
            assert (other[layer]["kernel"] != first[layer]["kernel"]).mean() > 0.99


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_learned_upsampling_starts_as_the_fixed_one(geometry: str) -> None:
    fixed, learned = Case(geometry, "fcn8s"), Case(geometry, "fcn8s", upsampling="learned")
    params = random_params(fixed)
    kernels = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}
    more = {name: {"kernel": upsample.bilinear_kernel(2 * stride, CLASSES)} for name, stride in kernels.items()}
    batch, sizes = random_batch(GRADIENT_SIZES, GRADIENT_CANVAS)
    out = jax.jit(fixed.module().apply)({"params": params}, batch, sizes)
    out_learned = jax.jit(learned.module().apply)({"params": params | more}, batch, sizes)
    assert worst(out_learned, out) < 1e-6


# Computation


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_bfloat16_is_close_and_gives_float32_logits(geometry: str) -> None:
    case = Case(geometry, "fcn8s")
    params = random_params(case)
    batch, sizes = random_batch(GRADIENT_SIZES, GRADIENT_CANVAS)
    out = jax.jit(case.module().apply)({"params": params}, batch, sizes)
    module = fcn.FCN(model_spec(case, width=WIDTH), dtype="bfloat16")
    rough = jax.jit(module.apply)({"params": params}, batch, sizes)
    assert rough.dtype == jnp.float32
    # Measured: 0.015. Bfloat16 has 8 bits, and 15 layers follow each other.
    assert 1e-3 < worst(rough, out) < 0.05
    fresh = jax.eval_shape(module.init, jax.random.key(0), batch[:1])["params"]
    assert {a.dtype for a in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_dropout_follows_its_rng_in_training_and_is_off_otherwise() -> None:
    case = Case("same", "fcn32s")
    params = random_params(case)
    batch, _ = random_batch([(40, 40)], (40, 40))

    def run(module: fcn.FCN) -> Any:
        return jax.jit(lambda key: module.apply({"params": params}, batch, train=True, rngs={"dropout": key}))

    dropped = run(case.module())
    first, again, other = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(again, first)
    assert worst(other, first) > 0.01
    evaluate = jax.jit(case.module().apply)
    out = evaluate({"params": params}, batch)
    np.testing.assert_array_equal(evaluate({"params": params}, batch), out)
    assert worst(first, out) > 0.01
    assert worst(run(case.module(dropout=0.0))(jax.random.key(0)), out) < 1e-6
    with pytest.raises(flax.errors.InvalidRngError):
        case.module().apply({"params": params}, batch, train=True)


def test_dropout_keeps_the_mean_of_what_it_drops_from() -> None:
    # With fc7 the identity of a constant fc6 the score is the mean of 8 channels that each are kept twice, half x half
    # of the time, and then weigh four times as much: over 2000 scores 1 with a deviation of sqrt(3 / 8 / 2000) = 0.014.
    case = Case("same", "fcn32s")
    params = jax.tree.map(np.zeros_like, random_params(case))
    params["fc6"]["bias"][:] = 1
    params["fc7"]["kernel"][0, 0] = np.eye(FC_WIDTH)
    params["score_fr"]["kernel"][:] = 1 / FC_WIDTH
    image = jnp.zeros((2000, 1, 1, 3), jnp.uint8)
    apply = jax.jit(functools.partial(case.module().apply, train=True))
    out = np.asarray(apply({"params": params}, image, rngs={"dropout": jax.random.key(0)}))[:, 0, 0, 0]
    # The first pixel of a 32x upsampling of one score, cut at 16, has 16.5/32 of it along each axis.
    scores = out / (16.5 / 32) ** 2
    np.testing.assert_allclose(scores, np.round(2 * scores) / 2, atol=1e-6)
    assert scores.mean() == pytest.approx(1, abs=0.06)
    assert scores.std() == pytest.approx(np.sqrt(3 / 8), abs=0.06)


def test_one_compilation_serves_all_sizes_of_a_canvas() -> None:
    case = Case("same", "fcn8s")
    params = random_params(case)
    traces = []

    @jax.jit
    def apply(batch: jax.Array, sizes: jax.Array) -> jax.Array:
        traces.append(batch.shape)
        return case.module().apply({"params": params}, batch, sizes)

    different = set()
    for height, width in ((1, 1), (2, 40), (39, 3), (17, 32), (40, 40)):
        batch, sizes = random_batch([(height, width), (40, 1)], (40, 40))
        different.add(np.asarray(apply(batch, sizes))[0, 0, 0].tobytes())
    assert len(different) == 5
    assert traces == [(2, 40, 40, 3)]


# model.json


def test_model_spec_round_trip(tmp_path: pathlib.Path) -> None:
    original = model_spec(Case("caffe", "fcn16s", at_once=True, upsampling="learned"))
    data = original.to_json()
    assert data["format_version"] == 1
    path = tmp_path / "model.json"
    path.write_text(json.dumps(data))
    found = spec.read(path)
    assert found == original
    assert hash(found) == hash(original)
    assert found.differences(original) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"depth": 16}, "run/model.json: keys ['depth'] are missing or unknown"),
        ({"width": None}, "run/model.json: keys ['width'] are missing or unknown"),
        ({"width": None, "depth": 16}, "run/model.json: keys ['depth', 'width'] are missing or unknown"),
        ({"format_version": 2}, "run/model.json: format_version 2, but this version of fcn_jax reads 1"),
        ({"format_version": None}, "run/model.json: format_version None, but this version of fcn_jax reads 1"),
    ],
)
def test_model_spec_refuses_what_it_cannot_build(change: dict[str, Any], text: str) -> None:
    data = {**model_spec(Case("same", "fcn8s")).to_json(), **change}
    data = {key: value for key, value in data.items() if value is not None}
    before = dict(data)
    with pytest.raises(ValueError) as raised:
        spec.ModelSpec.from_json(data, "run/model.json")
    assert str(raised.value) == text
    assert data == before


def test_model_spec_names_its_differences() -> None:
    first = model_spec(Case("same", "fcn8s"), classes=1)
    second = dataclasses.replace(first, network="fcn32s", width=16, class_names=("cat",))
    assert first.differences(second) == [
        "network: 'fcn8s' is not 'fcn32s'",
        "width: 4 is not 16",
        "class_names: ('class0',) is not ('cat',)",
    ]

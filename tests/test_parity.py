"""The `caffe` networks against tests/torch_reference.py with the same weights, and both against numbers by hand."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import losses
from fcn_jax.models import fcn, layers, spec, upsample

torch = pytest.importorskip("torch")
import torch_reference  # noqa: E402

torch.set_num_threads(1)  # where layers are this small, threads cost ten times what they save

pytestmark = pytest.mark.needs("torch")
BOUND = 1e-4  # of the largest value, in float32
CLASSES = 5
WIDTH = 4
FC_WIDTH = 16
VOID = 255
# One pixel, two, thin ones, both sides of multiples of every stride; the photographs of VOC and their neighbours.
SMALL = (
    *((1, 1), (1, 2), (2, 1), (3, 7), (5, 1), (4, 5), (1, 129), (129, 2), (8, 9), (15, 16), (16, 15)),
    *(
        (17, 31),
        (31, 33),
        (32, 32),
        (33, 32),
        (47, 49),
        (63, 64),
        (65, 66),
        (96, 95),
        (99, 101),
        (127, 129),
        (128, 128),
    ),
)
LARGE = (
    *((1, 500), (500, 1), (159, 161), (255, 257), (256, 256), (240, 320)),
    *((333, 500), (375, 500), (500, 375), (499, 500), (500, 500)),
)
BATCHES = {"small": (SMALL, (131, 130)), "large": (LARGE, (500, 500))}
GRADIENT_SIZES = ((1, 1), (29, 32), (46, 40))
GRADIENT_CANVAS = (47, 45)
# As they are, without `sizes`, each a compilation of its own.
NATIVE = {"fixed": ((1, 1), (3, 7), (65, 66), (333, 500)), "learned": ((2, 1), (17, 31), (32, 32), (127, 129))}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the tests."""

    network: str
    at_once: bool = False
    upsampling: str = "fixed"

    def __str__(self) -> str:
        return f"{self.network}{'-atonce' * self.at_once}-{self.upsampling}"

    def module(self, classes: int = CLASSES, width: int = WIDTH, fc_width: int = FC_WIDTH) -> fcn.FCN:
        names, palette = tuple(map(str, range(classes))), ((0, 0, 0),) * classes
        return fcn.FCN(
            spec.ModelSpec(
                **dataclasses.asdict(self),
                backbone="vgg16",
                geometry="caffe",
                width=width,
                fc_width=fc_width,
                class_names=names,
                palette=palette,
            )
        )

    def torch_model(self, classes: int = CLASSES, width: int = WIDTH, fc_width: int = FC_WIDTH) -> Any:
        return torch_reference.NETWORKS[self.network](classes, width, fc_width, self.at_once)

    def params(self, model: Any) -> Any:
        return torch_reference.flax_params(model.state_dict(), upsampling=self.upsampling)


NETWORKS = (("fcn32s", False), ("fcn16s", False), ("fcn8s", False), ("fcn8s", True))
CASES = tuple(Case(*network, upsampling) for network in NETWORKS for upsampling in ("fixed", "learned"))
# Every network has every size: the large ones with one way of upsampling, and the small ones with the other.
LARGE_CASES = (Case("fcn32s"), Case("fcn16s", False, "learned"), Case("fcn8s"), Case("fcn8s", True, "learned"))
PADDED = tuple((case, "large" if case in LARGE_CASES else "small") for case in CASES)
# These programs take longer to compile than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_image(height: int, width: int) -> np.ndarray:
    """uint8 RGB, the same for the same size: noise over patches of 20 pixels, so that coarse scores vary, too."""
    rng = np.random.default_rng((height, width))
    patches = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3)).repeat(20, 0).repeat(20, 1)
    return ((patches[:height, :width] + rng.integers(0, 256, (height, width, 3))) // 2).astype(np.uint8)


def random_batch(sizes: Any, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Each size's image in a canvas whose padding is filled with other pixels."""
    batch = np.random.default_rng(canvas).integers(0, 256, (len(sizes), *canvas, 3), dtype=np.uint8)
    for index, (height, width) in enumerate(sizes):
        batch[index, :height, :width] = random_image(height, width)
    return batch, np.array(sizes, np.int32)


def randomise(model: Any, dense: bool, image: np.ndarray) -> Any:
    """Random weights such that each channel has mean 0 and deviation 1 on `image`: nothing dies or explodes on the way.

    A skip of the at-once network gets weights as much larger as it is scaled down, so that it counts as much.
    """
    generator = torch.Generator().manual_seed(0)

    def standardise(layer: Any, inputs: Any, output: Any) -> Any:
        deviation, mean = torch.std_mean(output, (0, 2, 3))
        layer.weight /= deviation[:, None, None, None]
        layer.bias -= mean
        layer.bias /= deviation
        return (output - mean[:, None, None]) / deviation[:, None, None]

    hooks = []
    with torch.no_grad():
        for layer in model.children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
                layer.bias.normal_(generator=generator)
                hooks.append(layer.register_forward_hook(standardise))
            elif dense:  # each output is a sum over the inputs at four positions
                layer.weight.normal_(0, (4 * layer.in_channels) ** -0.5, generator=generator)
        model(torch_reference.preprocess(image))
    for hook in hooks:
        hook.remove()
    return model


@functools.cache
def random_model(case: Case) -> Any:
    return randomise(case.torch_model(), case.upsampling == "learned", random_image(161, 129))


def torch_scores(model: Any, image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] alone -> [H, W, C]."""
    with torch.no_grad():
        return model(torch_reference.preprocess(image))[0].permute(1, 2, 0).numpy()


def scores(case: Case, model: Any, image: np.ndarray) -> np.ndarray:
    """The same from the library."""
    sizes = {"classes": model.score_fr.out_channels, "width": model.conv1_1.out_channels}
    module = case.module(**sizes, fc_width=model.fc7.out_channels)
    return np.asarray(quick_jit(module.apply)({"params": case.params(model)}, image[None])[0])


def worst(actual: Any, expected: Any) -> float:
    """The largest error relative to the largest value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    largest = np.abs(expected).max()
    assert largest > 0
    return float(np.abs(actual - expected).max() / largest)


def check_scores(actual: Any, expected: np.ndarray) -> float:
    """Asserts that they agree and that this says something; the error."""
    height, width, _ = expected.shape
    largest = np.abs(expected).max()
    # Classes differ everywhere, and the scores of a class from place to place where there are several patches.
    assert 0.1 < largest < 100
    assert np.ptp(expected, -1).min() > 1e-3 * largest
    if min(height, width) >= 47:
        assert np.ptp(expected, (0, 1)).min() > 0.1 * largest
        assert len(np.unique(expected.argmax(-1))) > 1
    error = worst(actual, expected)
    assert error <= BOUND
    # Only a tie may fall differently, so below a thousand pixels nothing does.
    assert (np.asarray(actual).argmax(-1) == expected.argmax(-1)).mean() > 0.999
    return error


# Scores


@pytest.mark.parametrize(("case", "batch"), PADDED, ids=str)
def test_each_image_of_a_padded_batch_has_the_scores_of_pytorch(case: Case, batch: str) -> None:
    model = random_model(case)
    images, sizes = random_batch(*BATCHES[batch])
    out = np.asarray(quick_jit(case.module().apply)({"params": case.params(model)}, images, sizes))
    assert out.dtype == np.float32
    for index, (height, width) in enumerate(sizes):
        inside = np.s_[index, :height, :width]
        check_scores(out[inside], torch_scores(model, images[inside]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_as_it_is_has_the_scores_of_pytorch(case: Case) -> None:
    for height, width in NATIVE[case.upsampling]:
        image = random_image(height, width)
        check_scores(scores(case, random_model(case), image), torch_scores(random_model(case), image))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(Case(*network)))
def test_images_of_any_size_have_the_scores_of_pytorch(network: tuple[str, bool]) -> None:
    case = Case(*network)
    drawn = np.random.default_rng(NETWORKS.index(network)).integers(1, 81, (20, 2))
    images, sizes = random_batch(drawn, (80, 80))
    out = np.asarray(quick_jit(case.module().apply)({"params": case.params(random_model(case))}, images, sizes))
    for index, (height, width) in enumerate(sizes):
        inside = np.s_[index, :height, :width]
        check_scores(out[inside], torch_scores(random_model(case), images[inside]))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(Case(*network)))
def test_large_images_of_any_size_are_accepted(network: tuple[str, bool]) -> None:
    case = Case(*network)
    for height, width in np.random.default_rng(0).integers(1, 2049, (10, 2)):
        image = jax.ShapeDtypeStruct((1, int(height), int(width), 3), jnp.uint8)
        out = jax.eval_shape(case.module().apply, {"params": case.params(random_model(case))}, image)
        assert out.shape == (1, height, width, CLASSES)


@pytest.mark.slow
def test_the_network_of_full_width_has_the_scores_of_pytorch() -> None:
    case, image = Case("fcn8s"), random_image(120, 160)
    model = randomise(case.torch_model(21, 64, 4096), dense=False, image=image)
    expected = torch_scores(model, image)
    check_scores(scores(case, model, image), expected)


# Gradients


def layer_errors(actual: Any, expected: Any) -> dict[str, float]:
    """`worst` of each parameter."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    errors = jax.tree.map(worst, actual, expected)
    return {f"{layer}/{name}": error for layer, arrays in errors.items() for name, error in arrays.items()}


def random_label(height: int, width: int) -> np.ndarray:
    """Classes, and void here and there."""
    label = np.random.default_rng((height, width, 1)).integers(0, CLASSES + 1, (height, width), dtype=np.uint8)
    label[0, 0] = 1
    return np.where(label == CLASSES, VOID, label).astype(np.uint8)


def torch_gradients(case: Case, sizes: Any) -> tuple[float, Any]:
    """The cross-entropy summed over the labelled pixels of the images alone, and its gradients as a tree of Flax.

    In float64: a ReLU or a pooling window that float32's rounding tips over changes a gradient by percents, and what
    PyTorch's float32 tips is another one.
    """
    model = copy.deepcopy(random_model(case)).double()
    total = 0.0
    for size in sizes:
        logits = model(torch_reference.preprocess(random_image(*size)).double())
        label = torch.from_numpy(random_label(*size)[None].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=VOID, reduction="sum")
        loss.backward()
        total += loss.item()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return total, torch_reference.flax_params(found, upsampling=case.upsampling)


def check_gradients(
    case: Case, images: np.ndarray, labels: np.ndarray, sizes: Any, expected: tuple[float, Any]
) -> None:
    """Asserts that the library's float32 loss and gradients are the expected ones."""

    def loss(params: Any) -> jax.Array:
        return losses.cross_entropy(case.module().apply({"params": params}, images, sizes), labels).sum()

    total, found = quick_jit(jax.value_and_grad(loss))(case.params(random_model(case)))
    assert total == pytest.approx(expected[0], rel=1e-5)
    assert {array.dtype for array in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    errors = layer_errors(found, expected[1])
    assert max(errors.values()) <= BOUND, errors


GRADIENT_CASES = (Case("fcn32s"), Case("fcn16s", False, "learned"), Case("fcn8s", True, "learned"))


# The sizes are such that every ReLU has inputs further from zero than rounding: by 2e-6 of the largest of its layer.
@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_parameter_gradients_of_a_padded_batch_are_those_of_pytorch(case: Case) -> None:
    images, sizes = random_batch(GRADIENT_SIZES, GRADIENT_CANVAS)
    labels = np.full(images.shape[:3], VOID, np.uint8)
    for index, (height, width) in enumerate(GRADIENT_SIZES):
        labels[index, :height, :width] = random_label(height, width)
    check_gradients(case, images, labels, sizes, torch_gradients(case, GRADIENT_SIZES))


@pytest.mark.parametrize("case", [Case("fcn8s"), Case("fcn32s", upsampling="learned")], ids=str)
def test_parameter_gradients_of_an_image_as_it_is_are_those_of_pytorch(case: Case) -> None:
    size = (50, 54)
    check_gradients(case, random_image(*size)[None], random_label(*size)[None], None, torch_gradients(case, [size]))


# Weights

ENCODER = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1", "conv4_2", "conv4_3"),
    *("conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "score_fr"),
)
DECODERS = {
    "fcn32s": {"upscore"},
    "fcn16s": {"score_pool4", "upscore2", "upscore16"},
    "fcn8s": {"score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"},
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_go_to_flax_and_back(case: Case) -> None:
    model = random_model(case)
    state = model.state_dict()
    names = {*ENCODER, *DECODERS[case.network]}
    weights, biases = {f"{name}.weight" for name in names}, {f"{name}.bias" for name in names if "upscore" not in name}
    assert state.keys() == weights | biases
    params = case.params(model)
    image = jnp.zeros((1, 1, 1, 3), jnp.uint8)
    expected = jax.eval_shape(case.module().init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    other = case.torch_model()
    other.load_state_dict(torch_reference.state_dict(params, other), strict=True)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name


# Pooling, by hand


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            [[1, 5, 2], [3, 4, 9], [7, 6, 8]],
            # 1 5 | 2    7 6 | 8
            # 3 4 | 9
            [[5, 9], [7, 8]],
        ),
        (
            [
                [11, 12, 3, 24, 5],
                [16, 7, 18, 9, 10],
                [1, 2, 23, 14, 15],
                [6, 17, 8, 19, 20],
                [21, 22, 13, 4, 25],
            ],
            # 11 12 |  3 24 |  5     1  2 | 23 14 | 15    21 22 | 13 4 | 25
            # 16  7 | 18  9 | 10     6 17 |  8 19 | 20
            [[16, 24, 10], [17, 23, 20], [22, 13, 25]],
        ),
    ],
    ids=("3x3", "5x5"),
)
def test_the_last_pooling_window_hangs_over_the_edge(values: list[list[int]], expected: list[list[int]]) -> None:
    pool = layers.Layers(caffe=True, dtype=jnp.float32).max_pool
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(torch_reference.pool(torch.from_numpy(x)[None, None])[0, 0], expected)
    np.testing.assert_array_equal(
        pool(layers.Map(jnp.asarray(x)[None, ..., None], None), "pool", 2).x[0, ..., 0], expected
    )


# Crops, by hand


def transparent(case: Case) -> Any:
    """A network whose encoder does nothing but pool red minus its mean, where that is positive; all scores are zero.

    Rows of the image lie at 99 + row behind conv1_1, which pads 100 and takes the middle of its kernel.
    Cell i of pool3 holds rows 8 i - 99 .. 8 i - 92, of pool4 16 i - 99 .. 16 i - 84, of pool5 32 i - 99 .. 32 i - 68.
    fc6 takes the middle of its kernel, too: score i is of cell i + 3 of pool5.
    """
    model = case.torch_model(classes=1, width=1, fc_width=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if name.startswith(("conv", "fc")) and name.endswith("weight"):
                middle = parameter.shape[-1] // 2
                parameter[0, 2 if name.startswith("conv1_1") else 0, middle, middle] = 1
    return model


def check_both(case: Case, model: Any, image: np.ndarray, expected: np.ndarray) -> None:
    """PyTorch and the library give these scores of the only class."""
    np.testing.assert_allclose(torch_scores(model, image)[..., 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores(case, model, image)[..., 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "score", "stride", "centre"),
    [
        # Row 50 is 149 behind conv1_1 and column 20 is 119.
        # 149 // 32 = 4 is rows 29 .. 60, and 119 // 32 = 3 is columns -3 .. 28.
        (Case("fcn32s"), "score_fr", 32, (44.5, 12.5)),
        # 149 // 16 = 9 is rows 45 .. 60, and 119 // 16 = 7 is columns 13 .. 28.
        (Case("fcn16s"), "score_pool4", 16, (52.5, 20.5)),
        # 149 // 8 = 18 is rows 45 .. 52, and 119 // 8 = 14 is columns 13 .. 20.
        (Case("fcn8s"), "score_pool3", 8, (48.5, 16.5)),
    ],
    ids=str,
)
def test_upsampling_centres_each_score_on_the_pixels_it_was_pooled_from(
    case: Case, score: str, stride: int, centre: tuple[float, float]
) -> None:
    model = transparent(case)
    with torch.no_grad():
        model.get_submodule(score).weight[0, 0] = 1
        last = list(DECODERS[case.network] & {"upscore", "upscore16", "upscore8"})
        model.get_submodule(last[0]).weight[:] = torch_reference.bilinear(1, 2 * stride)
    image = np.zeros((70, 45, 3), np.uint8)
    image[50, 20, 0] = 255
    tents = [np.maximum(0, 1 - np.abs(np.arange(n) - c) / stride) for n, c in zip((70, 45), centre, strict=True)]
    check_both(case, model, image, (255 - 122.67892) * np.outer(*tents))


# What an image of one score shows of a dense last kernel, whose value at (r, c) is r + 100 c.
FINAL_CROPS = {
    # The kernel begins at row 0 of 64; the crop begins at row 19: pixel y shows kernel row 19 + y.
    "fcn32s": np.arange(19, 19 + 20),
    # The score goes to row 1 of upscore2's four, so the kernel begins at row 16; the crop at 27: pixel y shows 11 + y.
    "fcn16s": np.arange(11, 11 + 20),
    # From row 1 to 2 * 1 + 2 = 4 of upscore_pool4's: the kernel of 16 begins at row 32, the crop at 31.
    "fcn8s": np.array([-1, *range(16), -1, -1, -1]),
}


@pytest.mark.parametrize("network", FINAL_CROPS)
def test_the_last_crop_begins_where_the_release_has_it(network: str) -> None:
    case = Case(network, upsampling="learned")
    model = transparent(case)
    with torch.no_grad():
        model.score_fr.bias[:] = 1
        if network != "fcn32s":
            model.upscore2.weight[0, 0, 1, 1] = 1
        if network == "fcn8s":
            model.upscore_pool4.weight[0, 0, 2, 2] = 1
        last = {"fcn32s": "upscore", "fcn16s": "upscore16", "fcn8s": "upscore8"}[network]
        weight = model.get_submodule(last).weight[0, 0]
        ramp = torch.arange(len(weight), dtype=torch.float32)
        weight[:] = ramp[:, None] + 100 * ramp
    rows = FINAL_CROPS[network]
    expected = rows[:, None] + 100 * rows
    expected[(rows[:, None] < 0) | (rows < 0)] = 0
    # 20 pixels have one score: 218 -> 109 -> 55 -> 28 -> 14 -> 7 -> 1.
    check_both(case, model, np.zeros((20, 20, 3), np.uint8), expected)


@pytest.mark.parametrize("at_once", [False, True], ids=("staged", "atonce"))
@pytest.mark.parametrize(
    ("network", "skip", "shown"),
    [
        # Upsampling puts score i at row 16 i, which is row 16 i - 27 of the image; there is cell i + 5 of pool4, whose
        # last row is 16 (i + 5) - 84 = 16 i - 4, or the image's last.
        ("fcn16s", "pool4", {5: 28, 21: 44, 37: 47}),
        # At row 2 i of the next and 16 i of the last, which is row 16 i - 31 of the image.
        ("fcn8s", "pool4", {1: 28, 17: 44, 33: 47}),
        # At row 8 i, which is row 8 i - 31 of the image; there is cell i + 9 of pool3, whose last row is
        # 8 (i + 9) - 92 = 8 i - 20.
        ("fcn8s", "pool3", {1: 12, 9: 20, 17: 28, 25: 36, 33: 44, 41: 47}),
    ],
)
def test_skips_are_cropped_where_the_release_has_it_and_scaled_before_their_scores(
    network: str, skip: str, shown: dict[int, int], at_once: bool
) -> None:
    case = Case(network, at_once, "learned")
    model = transparent(case)
    score = model.get_submodule(f"score_{skip}")
    with torch.no_grad():
        score.weight[0, 0] = 1
        score.bias[:] = 3
        for name in DECODERS[network]:
            if name.startswith("upscore"):
                model.get_submodule(name).weight[0, 0, 0, 0] = 1
    row = np.arange(48)
    image = np.zeros((48, 48, 3), np.uint8)
    image[..., 0] = 130 + row[:, None] + row  # the largest of a cell is its last
    scale = {"pool4": 0.01, "pool3": 0.0001}[skip] if at_once else 1
    at, last = np.array(list(shown)), np.array(list(shown.values()))
    expected = np.zeros((48, 48))
    expected[np.ix_(at, at)] = scale * (130 + last[:, None] + last - 122.67892) + 3
    check_both(case, model, image, expected)


# Upsampling, by hand

# The filter is 1 - |t - (s - 1/2)| / s for t = 0 .. 2 s - 1: (2 t + 1) / 2 s up to the middle, and the same back.
FILTERS = {
    2: np.array([1, 3, 3, 1]) / 4,
    8: np.array([1, 3, 5, 7, 9, 11, 13, 15, 15, 13, 11, 9, 7, 5, 3, 1]) / 16,
    16: np.array([*range(1, 32, 2), *range(31, 0, -2)]) / 32,
    32: np.array([*range(1, 64, 2), *range(63, 0, -2)]) / 64,
}
# The rows of the scores (1, 3): the first s rise to 1, the next go from 1 to 3 as 1 (1 - f) + 3 f = 1 + 2 f with
# f = (2 t + 1) / 2 s, and the last fall from 3.
TWO_ROWS = {
    2: np.array([1, 3, 6, 10, 9, 3]) / 4,
    8: np.array([1, 3, 5, 7, 9, 11, 13, 15, 18, 22, 26, 30, 34, 38, 42, 46, 45, 39, 33, 27, 21, 15, 9, 3]) / 16,
    16: np.array([*range(1, 32, 2), *range(34, 98, 4), *range(93, 0, -6)]) / 32,
    32: np.array([*range(1, 64, 2), *range(66, 194, 4), *range(189, 0, -6)]) / 64,
}


@pytest.mark.parametrize("stride", FILTERS)
def test_bilinear_upsampling_has_the_values_computed_by_hand(stride: int) -> None:
    layer = torch_reference.upscore_layer(1, stride)
    fixed, transposed = quick_jit(lambda x: upsample.fixed_bilinear(x, 2 * stride)), quick_jit(upsample.transposed)
    for column, rows in (([2], 2 * FILTERS[stride]), ([1, 3], TWO_ROWS[stride])):
        x = np.array(column, np.float32)[:, None]
        expected = np.outer(rows, FILTERS[stride])
        assert expected.shape == ((len(x) + 1) * stride, 2 * stride)
        x_jax = jnp.asarray(x)[None, ..., None]
        kernel = jnp.asarray(upsample.bilinear_kernel(2 * stride, 1))
        np.testing.assert_allclose(layer(torch.from_numpy(x)[None, None]).detach()[0, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(fixed(x_jax)[0, ..., 0], expected, rtol=1e-6)
        np.testing.assert_allclose(transposed(x_jax, kernel)[0, ..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("stride", FILTERS)
def test_a_learned_kernel_keeps_its_orientation_and_its_channels(stride: int) -> None:
    # From channel 1 to channel 0, in the first row and the last column but one of the kernel; x has 1 and 10 side by
    # side in channel 1, and 7 in channel 0 that goes nowhere.
    layer = torch_reference.upscore_layer(2, stride)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1, 0, 0, 2 * stride - 2] = 5
    x = np.array([[[7, 1], [7, 10]]], np.float32)
    expected = np.zeros((2 * stride, 3 * stride, 2))
    expected[0, 2 * stride - 2, 0] = 5
    expected[0, 3 * stride - 2, 0] = 50
    out = layer(torch.from_numpy(x).permute(2, 0, 1)[None]).detach()[0].permute(1, 2, 0)
    np.testing.assert_array_equal(out, expected)
    kernel = torch_reference.flax_params({"upscore.weight": layer.weight})["upscore"]["kernel"]
    np.testing.assert_array_equal(quick_jit(upsample.transposed)(x[None], kernel)[0], expected)


# AlexNet and GoogLeNet

OTHERS = {
    "alexnet": (lambda: torch_reference.FCNAlexNet(CLASSES, 12, 16), 12),
    "googlenet": (lambda: torch_reference.FCN32sGoogLeNet(CLASSES, 8), 8),
}
OTHER_SIZES = (
    *((1, 1), (2, 3), (1, 140), (150, 1), (7, 5), (15, 16), (17, 18), (31, 33), (32, 32), (33, 31)),
    *((40, 47), (63, 64), (64, 65), (65, 63), (97, 61), (100, 96), (127, 128), (128, 129), (129, 127), (150, 140)),
)


@pytest.mark.parametrize(
    ("backbone", "upsampling"), [("alexnet", "fixed"), ("alexnet", "learned"), ("googlenet", "learned")]
)
def test_other_backbones_score_as_in_pytorch_at_all_sizes_in_one_batch(backbone: str, upsampling: str) -> None:
    torch.manual_seed(0)
    build, width = OTHERS[backbone]
    network = build()
    params = torch_reference.flax_params(network.state_dict(), upsampling=upsampling)
    names, palette = tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES
    model = fcn.FCN(spec.ModelSpec("fcn32s", backbone, "caffe", False, upsampling, width, 16, names, palette))
    batch, sizes = random_batch(OTHER_SIZES, (150, 140))
    found = np.asarray(quick_jit(model.apply)({"params": params}, batch, sizes))
    for size, logits in zip(OTHER_SIZES, found, strict=True):
        with torch.no_grad():
            expected = network(torch_reference.preprocess(random_image(*size)))[0].numpy().transpose(1, 2, 0)
        bound = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(logits[: size[0], : size[1]], expected, rtol=0, atol=bound, err_msg=str(size))

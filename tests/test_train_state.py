"""train_step and eval_step, on a miniature FCN and on models of one layer; on one device and on four."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from fcn_jax import losses, optim, sharding, steps, train_state
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec

CLASSES = 3
PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
SPEC = ModelSpec("fcn8s", "vgg16", "same", False, "fixed", 2, 4, ("ground", "a", "b"), PALETTE)
ONES = jnp.ones(CLASSES, jnp.float32)


@pytest.fixture(scope="module")
def params():
    """Of the miniature FCN, with scores that are not zero, so that a gradient reaches every layer."""
    rng, fresh = np.random.default_rng(0), {}
    for layer, members in fcn.abstract_params(SPEC).items():
        shape = members["kernel"].shape
        deviation = 0.02 if layer.startswith("score_") else np.sqrt(2 / np.prod(shape[:3]))
        fresh[layer] = {
            "kernel": rng.normal(0, deviation, shape).astype(np.float32),
            "bias": rng.uniform(0, 0.1, members["bias"].shape).astype(np.float32),
        }
    return fresh


@pytest.fixture(scope="module")
def batch():
    """[1, 4, 32, 32] with images of different sizes, black and void around them."""
    rng = np.random.default_rng(1)
    size = np.array([[[32, 32], [24, 20], [17, 32], [30, 9]]], np.int32)
    label = rng.integers(0, CLASSES, (1, 4, 32, 32)).astype(np.uint8)
    image = (80 * label[..., None] + rng.integers(0, 90, (1, 4, 32, 32, 3))).astype(np.uint8)
    for b, (height, width) in enumerate(size[0]):
        inside = np.zeros((32, 32), bool)
        inside[:height, :width] = True
        image[0, b, ~inside], label[0, b, ~inside] = 0, 255
    label[0, :, 3:5] = 255
    return {"image": image, "label": label, "size": size}


def reshaped(batch, *lead):
    return {key: value.reshape(*lead, *value.shape[2:]) for key, value in batch.items()}


def make_sgd(params, rate=1.0, frozen=()):
    """w -= rate * gradient: with rate 1 what a step takes off is the gradient."""
    return optim.make_optimizer(params, optim.Solver("sgd", lambda step: rate, 0.0, 0.0), frozen=frozen)


def make_step(optimizer, model=None, *, frozen=(), normalization="pixel", sampling=1.0, jaccard=0.0, seed=0, **average):
    """train_step as a function of (state, batch, class_weights)."""

    def step(state, batch, class_weights):
        loss = losses.Loss(class_weights, normalization, sampling=sampling, jaccard=jaccard)
        update = steps.Update(model or fcn.FCN(SPEC), optimizer, loss, frozen, seed, **average)
        return steps.train_step(state, batch, update)

    return step


def assert_close(found, expected, tolerance):
    """Every array, up to `tolerance` times its largest value."""
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        other = functools.reduce(lambda tree, entry: tree[entry.key], path, found)
        limit = tolerance * np.abs(value).max()
        np.testing.assert_allclose(other, value, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def whole_step(params, batch):
    """The step of all four images at once on one device: (state before, state after, results)."""
    optimizer = make_sgd(params)
    state = train_state.create_train_state(params, optimizer)
    return state, *jax.jit(make_step(optimizer))(state, batch, ONES)


def gradient_of(before, after):
    return jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), before.params, after.params)


def test_the_first_state(params):
    optimizer = make_sgd(params)
    state = train_state.create_train_state(params, optimizer, step=7)
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 7)
    assert (state.bad_step.dtype, int(state.bad_step)) == (jnp.int32, -1)
    assert state.params is params
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(params))


def test_the_loss_of_a_step_is_that_of_the_reference(params, batch, whole_step):
    _, after, results = whole_step
    total = 0.0
    for image, label, (height, width) in zip(*(batch[key][0] for key in ("image", "label", "size")), strict=True):
        logits = reference.fcn_same(params, image[:height, :width], network="fcn8s")
        total += reference.cross_entropy(logits, label[:height, :width]).sum()
    assert float(results["loss"]) == pytest.approx(total / (batch["label"] != 255).sum(), rel=1e-4)
    assert (int(after.step), int(after.bad_step)) == (1, -1)


def test_every_layer_has_a_gradient_and_its_norm_is_told(whole_step):
    before, after, results = whole_step
    gradient = gradient_of(before, after)
    for layer, members in gradient.items():
        assert members["kernel"].any(), layer
    norm = np.sqrt(sum((values.astype(np.float64) ** 2).sum() for values in jax.tree.leaves(gradient)))
    assert float(results["gradient_norm"]) == pytest.approx(norm, rel=1e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch(params, batch, whole_step):
    before, after, results = whole_step
    optimizer = make_sgd(params)
    found, found_results = jax.jit(make_step(optimizer))(before, reshaped(batch, 2, 2), ONES)
    assert float(found_results["loss"]) == pytest.approx(float(results["loss"]), rel=1e-6)
    assert_close(found.params, after.params, 1e-6)
    # The gradients themselves are differences of parameters, which float32 keeps less exactly.
    assert_close(gradient_of(before, found), gradient_of(before, after), 1e-4)


def test_four_devices_give_what_one_gives(params, batch, whole_step):
    before, after, results = whole_step
    mesh = sharding.make_mesh()
    assert mesh.size == 4
    whole = sharding.replicated(mesh)
    optimizer = make_sgd(params)
    state = jax.device_put(train_state.create_train_state(params, optimizer), whole)
    arrays = sharding.to_devices(batch, mesh, 1)
    assert {shard.data.shape for shard in arrays["image"].addressable_shards} == {(1, 1, 32, 32, 3)}
    step = jax.jit(make_step(optimizer), donate_argnums=0, out_shardings=whole)
    found, found_results = step(state, arrays, ONES)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found))
    for key in ("loss", "gradient_norm"):
        assert float(found_results[key]) == pytest.approx(float(results[key]), rel=1e-5)
    assert_close(found.params, after.params, 1e-5)
    assert_close(gradient_of(before, found), gradient_of(before, after), 1e-3)
    for shard in found.params["conv1_1"]["kernel"].addressable_shards:
        np.testing.assert_array_equal(shard.data, found.params["conv1_1"]["kernel"])


def test_overfitting_one_image(params):
    """30 donated steps of AdamW: compiled once, the loss falls, frozen layers stay, all others move."""
    frozen = ("conv1_*",)
    solver = optim.Solver("adamw", optim.make_schedule("constant", 0.01, 30, 0), momentum=0.9, weight_decay=0.0)
    optimizer = optim.make_optimizer(params, solver, frozen=frozen)
    label = np.zeros((1, 1, 32, 32), np.uint8)
    label[..., 16:] = 1
    image = np.where(label[..., None] == 1, np.uint8(220), np.uint8(30)).repeat(3, -1)
    one = {"image": image, "label": label, "size": np.full((1, 1, 2), 32, np.int32)}
    traces = []
    inner = make_step(optimizer, frozen=frozen)

    def counted(*arguments):
        traces.append(1)
        return inner(*arguments)

    # Optax's bias correction raises a float to an integer power.
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(lambda p: train_state.create_train_state(p, optimizer))(params)
        step = jax.jit(counted, donate_argnums=0)
        losses = []
        for _ in range(30):
            donated = state.params["fc7"]["kernel"]
            state, results = step(state, one, ONES)
            losses.append(float(results["loss"]))
            assert donated.is_deleted()
    assert len(traces) == 1
    assert (int(state.step), int(state.bad_step)) == (30, -1)
    assert losses[-1] < 0.3 * losses[0]
    for layer, members in params.items():
        for name, values in members.items():
            same = np.array_equal(state.params[layer][name], values)
            assert same == layer.startswith("conv1_"), f"{layer}/{name}"


def test_eval_step_counts(params, batch):
    images = {key: value[0] for key, value in batch.items()}
    results = jax.jit(functools.partial(steps.eval_step, model=fcn.FCN(SPEC)))(params, images)
    assert results["prediction"].dtype == jnp.uint8
    assert results["prediction"].shape == (4, 32, 32)
    assert results["confusion"].dtype == jnp.int32
    confusion, loss = np.zeros((CLASSES, CLASSES), np.int64), 0.0
    for b, (height, width) in enumerate(images["size"]):
        label = images["label"][b, :height, :width]
        logits = reference.fcn_same(params, images["image"][b, :height, :width], network="fcn8s")
        loss += reference.cross_entropy(logits, label).sum()
        prediction = np.asarray(results["prediction"][b, :height, :width])
        # Where two scores are as good as equal, float32 may decide otherwise.
        ordered = np.sort(logits, -1)
        clear = ordered[..., -1] - ordered[..., -2] > 1e-3 * np.abs(logits).max()
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(prediction[clear], logits.argmax(-1)[clear])
        own = reference.confusion_matrix(label, prediction, CLASSES)
        np.testing.assert_array_equal(results["confusion"][b], own)
        confusion += own
    assert (confusion.sum(0) > 0).sum() > 1  # more than one class is predicted
    assert float(results["loss"][0]) == pytest.approx(loss, rel=1e-4)


class Pixelwise(nn.Module):
    """Two layers of 1x1 convolutions: what takes an image and sizes like an FCN, and compiles at once."""

    @nn.compact
    def __call__(self, image, sizes=None, *, train=False):
        x = nn.Conv(4, (1, 1), name="conv1_1")(image.astype(jnp.float32) / 255)
        return nn.Conv(CLASSES, (1, 1), name="score_fr")(x)


class Noise(nn.Module):
    """Scores that the dropout key alone decides, times a parameter."""

    @nn.compact
    def __call__(self, image, sizes=None, *, train=False):
        scale = self.param("kernel", nn.initializers.ones, ())
        draws = jax.random.normal(self.make_rng("dropout"), (*image.shape[:-1], CLASSES))
        return scale * draws


class Wrapped(nn.Module):
    """Gives the parameter a layer, as every network has it."""

    @nn.compact
    def __call__(self, image, sizes=None, *, train=False):
        assert train
        return Noise(name="noise")(image)


def pixelwise_params():
    rng = np.random.default_rng(3)
    return {
        layer: {"kernel": rng.normal(size=(1, 1, *shape)).astype(np.float32), "bias": np.zeros(shape[1], np.float32)}
        for layer, shape in (("conv1_1", (3, 4)), ("score_fr", (4, CLASSES)))
    }


# `sum` is divided by the number of accumulated batches, as Caffe does.
def test_the_gradient_of_sampled_cells_is_the_gradient_on_average(batch):
    """Of a network that sees each pixel alone, over 600 updates from the same parameters."""
    params = pixelwise_params()
    optimizer = make_sgd(params)
    full, part = (jax.jit(make_step(optimizer, Pixelwise(), sampling=keep)) for keep in (1.0, 0.5))
    state = train_state.create_train_state(params, optimizer)
    expected = gradient_of(state, full(state, batch, ONES)[0])
    gradients = []
    for step in range(600):
        before = train_state.create_train_state(params, optimizer, step)
        gradients.append(gradient_of(before, part(before, batch, ONES)[0]))
    stacked = jax.tree.map(lambda *g: np.stack(g), *gradients)
    for path, wanted in jax.tree_util.tree_leaves_with_path(expected):
        found = functools.reduce(lambda tree, entry: tree[entry.key], path, stacked)
        deviation = found.std(0) / np.sqrt(len(found))
        assert (found.std(0) > 0).any(), "the draws differ"
        assert (np.abs(found.mean(0) - wanted) < 5 * deviation + 1e-6).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize(("normalization", "ratio"), [("sum", 0.5), ("image", 1), ("pixel", 1)])
def test_how_each_normalization_accumulates(batch, normalization, ratio):
    params = pixelwise_params()
    optimizer = make_sgd(params)
    state = train_state.create_train_state(params, optimizer)
    step = jax.jit(make_step(optimizer, Pixelwise(), normalization=normalization))
    class_weights = jnp.array([1, 0.5, 2], jnp.float32)
    once, expected = step(state, batch, class_weights)
    found, results = step(state, reshaped(batch, 2, 2), class_weights)
    for key in ("loss", "gradient_norm"):
        assert float(results[key]) == pytest.approx(ratio * float(expected[key]), rel=1e-5)
    gradient = jax.tree.map(lambda g: ratio * g, gradient_of(state, once))
    assert_close(gradient_of(state, found), gradient, 1e-4)


def test_jaccard_is_added_and_of_accumulated_batches_its_mean(batch):
    params = pixelwise_params()
    optimizer = make_sgd(params)
    state = train_state.create_train_state(params, optimizer)
    logits = Pixelwise().apply({"params": params}, batch["image"])
    plain, added = (jax.jit(make_step(optimizer, Pixelwise(), jaccard=share)) for share in (0.0, 0.5))
    for divided in (batch, reshaped(batch, 2, 2)):
        accumulated = len(divided["image"])
        scores = logits.reshape(*divided["label"].shape, CLASSES)
        expected = sum(losses.jaccard(*pair) for pair in zip(scores, divided["label"], strict=True)) / accumulated
        difference = added(state, divided, ONES)[1]["loss"] - plain(state, divided, ONES)[1]["loss"]
        assert float(difference) == pytest.approx(0.5 * float(expected), rel=1e-4)


def test_frozen_layers_are_not_in_the_gradient_norm(batch):
    params = pixelwise_params()
    state = train_state.create_train_state(params, make_sgd(params))
    after, _ = jax.jit(make_step(make_sgd(params), Pixelwise()))(state, batch, ONES)
    gradient = gradient_of(state, after)
    assert np.abs(gradient["conv1_1"]["kernel"]).max() > 1e-4
    optimizer = make_sgd(params, frozen=("conv1_1",))
    state = train_state.create_train_state(params, optimizer)
    step = jax.jit(make_step(optimizer, Pixelwise(), frozen=("conv1_1",)))
    after, results = step(state, batch, ONES)
    norm = np.sqrt(sum((values**2).sum() for values in gradient["score_fr"].values()))
    assert float(results["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(after.params["conv1_1"][name], params["conv1_1"][name])
        assert (np.asarray(after.params["score_fr"][name]) != params["score_fr"][name]).any()


def test_the_first_bad_step_is_kept(batch):
    params = pixelwise_params()
    optimizer = make_sgd(params, rate=0.1)
    step = jax.jit(make_step(optimizer, Pixelwise()))
    state, found = train_state.create_train_state(params, optimizer, step=10), []
    infinite = jnp.array([1, jnp.inf, 1], jnp.float32)
    for class_weights in (ONES, ONES, infinite, ONES, infinite):
        state, results = step(state, batch, class_weights)
        found.append((int(state.step), int(state.bad_step), bool(np.isfinite(results["loss"]))))
    # The update from step 12 to 13 was the first; what comes after is lost as well, and changes nothing.
    assert found == [(11, -1, True), (12, -1, True), (13, 12, False), (14, 12, False), (15, 12, False)]


def test_a_gradient_that_is_not_finite_is_bad_though_the_loss_is(batch):
    class Rooted(nn.Module):
        """The square root has no slope at zero."""

        @nn.compact
        def __call__(self, image, sizes=None, *, train=False):
            return Pixelwise(name="inner")(image) + jnp.sqrt(0.0 * self.param("kernel", nn.initializers.zeros, ()))

    params = {"inner": pixelwise_params(), "kernel": np.zeros((), np.float32)}
    optimizer = optax.sgd(0.1)

    @jax.jit
    def step(state):
        update = steps.Update(Rooted(), optimizer, losses.Loss(ONES, "pixel"))
        return steps.train_step(state, batch, update)

    state, results = step(train_state.create_train_state(params, optimizer, step=4))
    assert np.isfinite(results["loss"])
    assert not np.isfinite(results["gradient_norm"])
    assert int(state.bad_step) == 4


def test_dropout_depends_on_the_seed_the_step_and_the_batch(batch):
    model = Wrapped()
    params = {"noise": {"kernel": np.float32(1)}}
    optimizer = make_sgd(params)

    @functools.partial(jax.jit, static_argnums=2)
    def loss(step, batch, seed):
        state = train_state.create_train_state(params, optimizer).replace(step=step)
        return make_step(optimizer, model, seed=seed)(state, batch, ONES)[1]["loss"]

    zero, one = jnp.int32(0), jnp.int32(1)
    first = float(loss(zero, batch, 0))
    assert float(loss(zero, batch, 0)) == first
    assert float(loss(one, batch, 0)) != first
    assert float(loss(zero, batch, 1)) != first
    # The same images twice: were the two accumulated batches given the same key, their loss would be that of one.
    twice = {key: np.concatenate([value, value]) for key, value in batch.items()}
    assert float(loss(zero, twice, 0)) != pytest.approx(first, abs=1e-5)


def test_a_step_without_labels_changes_nothing_and_is_not_bad(batch):
    params = pixelwise_params()
    optimizer = make_sgd(params)
    state = train_state.create_train_state(params, optimizer)
    void = {**batch, "label": np.full_like(batch["label"], 255)}
    after, results = jax.jit(make_step(optimizer, Pixelwise()))(state, void, ONES)
    assert (float(results["loss"]), float(results["gradient_norm"])) == (0, 0)
    assert (int(after.step), int(after.bad_step)) == (1, -1)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)


@pytest.mark.parametrize(("size", "remedy"), [(6, "use 4 or 8"), (3, "use 4"), (1, "use 4")])
def test_a_batch_that_the_devices_cannot_share(size, remedy):
    with pytest.raises(
        ValueError,
        match=rf"config\.data\.batch_size={size} is not divisible by the 4 devices: {remedy}, or fewer devices$",
    ):
        sharding.check_divisible("data.batch_size", size, 4)
    sharding.check_divisible("data.batch_size", 8, 4)


def test_the_average_by_hand(batch):
    """Slow to remember at first: (1 + t) / (10 + t), until that exceeds the decay."""
    params = pixelwise_params()
    optimizer = make_sgd(params, rate=0.1)
    step = jax.jit(make_step(optimizer, Pixelwise(), ema=0.2, start=7))
    state = train_state.create_train_state(params, optimizer, step=7, averaged=True)
    plain = train_state.create_train_state(params, optimizer, step=7)
    assert plain.result is plain.params
    expected = params
    for decay in (0.1, 2 / 11, 0.2, 0.2):
        state, _ = step(state, batch, ONES)
        plain, _ = step(plain, batch, ONES)
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
    assert state.result is state.average
    assert_close(state.average, expected, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)  # training itself does not notice
    assert plain.average is None

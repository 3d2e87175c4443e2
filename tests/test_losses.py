"""The loss: the cross-entropy of a pixel against plain NumPy, and every normalisation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fcn_jax import losses

ONES = jnp.ones(3, jnp.float32)
cross_entropy = jax.jit(losses.cross_entropy)
jaccard = jax.jit(losses.jaccard)
pixel_weights = jax.jit(losses.pixel_weights, static_argnums=1)


@jax.jit
def gradient_of_sum(logits, label, weights):
    return jax.grad(lambda x: jnp.sum(weights * losses.cross_entropy(x, label)))(logits)


def random_labels(rng, shape, num_classes):
    """uint8 labels, about a quarter of them void."""
    label = rng.integers(0, num_classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.25] = 255
    return label


def step_loss(logits, label, normalization, class_weights):
    """The loss of one step as the sum that train_step makes."""
    weights = pixel_weights(label, normalization, class_weights)
    return float(np.vdot(weights, cross_entropy(logits, label)))


def test_cross_entropy_by_hand():
    # Scores 0 and log 3 are the probabilities 1/4 and 3/4.
    logits = jnp.array([[[0.0, np.log(3.0)], [0.0, np.log(3.0)], [0.0, np.log(3.0)]]])
    loss = cross_entropy(logits, jnp.array([[0, 1, 255]], jnp.uint8))
    np.testing.assert_allclose(loss, [[np.log(4), np.log(4 / 3), 0]], rtol=1e-6)


def test_jaccard_by_hand():
    # Scores 0 and log 3 are the probabilities 1/4 and 3/4; of three classes the third is nowhere.
    logits = jnp.log(jnp.array([[[[1.0, 3.0, 1e-30], [3.0, 1.0, 1e-30], [3.0, 1.0, 1e-30], [9.0, 1.0, 5.0]]]]))
    label = jnp.array([[[1, 0, 1, 255]]], jnp.uint8)
    # Class 0: 3/4 of 1 + (1/4 + 3/4 + 3/4) - 3/4 = 2. Class 1: 3/4 + 1/4 of 2 + (3/4 + 1/4 + 1/4) - 1 = 9/4.
    np.testing.assert_allclose(jaccard(logits, label), 1 - (0.75 / 2 + 1 / 2.25) / 2, rtol=1e-6)
    assert float(jaccard(logits, jnp.full_like(label, 255))) == 0


def test_jaccard_of_sure_scores_is_one_minus_the_mean_iu():
    rng = np.random.default_rng(7)
    label, predicted = random_labels(rng, (3, 8, 9), 5), rng.integers(0, 5, (3, 8, 9))
    label[label == 4] = 255  # a class that is only predicted counts for the others alone
    confusion = reference.confusion_matrix(label, predicted, 5)
    found = jaccard(50 * jax.nn.one_hot(predicted, 5), label)
    np.testing.assert_allclose(1 - found, reference.scores(confusion)["per_class_iou"][:4].mean(), rtol=1e-6)


def test_a_step_against_the_gradient_of_jaccard_raises_the_iu_and_void_has_none():
    rng = np.random.default_rng(8)
    label, logits = random_labels(rng, (2, 6, 6), 4), rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    gradient = jax.jit(jax.grad(losses.jaccard))(logits, label)
    assert not np.asarray(gradient)[label == 255].any()
    assert np.asarray(gradient)[label != 255].any(-1).all()
    assert float(jaccard(logits - gradient, label)) < float(jaccard(logits, label)) - 0.9 * np.vdot(gradient, gradient)
    assert not np.asarray(jax.grad(losses.jaccard)(logits, np.full_like(label, 255))).any()


@pytest.mark.parametrize(("shape", "num_classes"), [((5, 7), 2), ((2, 3, 4), 21), ((1, 2, 6, 1), 60)])
def test_cross_entropy_equals_the_reference(shape, num_classes):
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(0, 4, (*shape, num_classes)).astype(np.float32)
    label = random_labels(rng, shape, num_classes)
    loss = cross_entropy(logits, label)
    assert loss.shape == shape
    np.testing.assert_allclose(loss, reference.cross_entropy(logits, label), rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_computed_in_float32():
    logits = np.random.default_rng(0).normal(0, 4, (8, 8, 5)).astype(jnp.bfloat16)
    label = random_labels(np.random.default_rng(1), (8, 8), 5)
    loss = cross_entropy(logits, label)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference.cross_entropy(logits, label), rtol=1e-5, atol=1e-6)


def test_gradient_of_cross_entropy_is_softmax_minus_truth_and_zero_at_void():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (6, 5, 4)).astype(np.float32)
    label = random_labels(rng, (6, 5), 4)
    assert 0 < (label == 255).sum() < label.size
    gradient = gradient_of_sum(logits, label, np.ones(label.shape, np.float32))
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(256)[label][..., :4]
    expected[label == 255] = 0
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[label == 255], 0)


def test_cross_entropy_of_extreme_scores_is_finite():
    logits = jnp.array([[1e4, -1e4], [1e4, -1e4], [1e4, -1e4]])
    label = jnp.array([0, 1, 255], jnp.uint8)
    np.testing.assert_array_equal(cross_entropy(logits, label), [0, 2e4, 0])
    gradient = gradient_of_sum(logits, label, np.ones(3, np.float32))
    np.testing.assert_array_equal(gradient, [[0, 0], [1, -1], [0, 0]])


@pytest.mark.parametrize("beyond", [3, 4, 200, 254])
def test_a_label_beyond_the_classes_is_void(beyond):
    logits = np.random.default_rng(3).normal(size=(1, 2, 1, 2, 3)).astype(np.float32)
    label = np.array([0, 1, 2, beyond], np.uint8).reshape(1, 2, 1, 2)
    void = np.where(label == beyond, 255, label).astype(np.uint8)
    loss = cross_entropy(logits, label)
    assert float(loss[0, 1, 0, 1]) == 0
    np.testing.assert_array_equal(loss, cross_entropy(logits, void))
    for normalization in ("sum", "image", "pixel"):
        weights = pixel_weights(label, normalization, ONES)
        np.testing.assert_array_equal(weights, pixel_weights(void, normalization, ONES))
        assert float(weights[0, 1, 0, 1]) == 0


# Two images of four pixels: two labelled pixels in the first, one in the second; the classes weigh 1, 2 and 4.
TWO_IMAGES = [[[0, 1, 255, 255]], [[2, 255, 255, 255]]]
BY_HAND = {
    "sum": [[1, 2, 0, 0], [4, 0, 0, 0]],
    "image": [[1 / 4, 2 / 4, 0, 0], [4 / 2, 0, 0, 0]],
    "pixel": [[1 / 3, 2 / 3, 0, 0], [4 / 3, 0, 0, 0]],
}


@pytest.mark.parametrize(
    ("normalization", "accumulated", "expected"),
    [
        ("sum", 1, BY_HAND["sum"]),
        ("sum", 2, [[0.5, 1, 0, 0], [2, 0, 0, 0]]),  # divided by A, as Caffe divides by iter_size
        ("image", 1, BY_HAND["image"]),
        ("image", 2, BY_HAND["image"]),
        ("pixel", 1, BY_HAND["pixel"]),
        ("pixel", 2, BY_HAND["pixel"]),
    ],
)
def test_pixel_weights_by_hand(normalization, accumulated, expected):
    label = jnp.asarray(np.array(TWO_IMAGES, np.uint8).reshape(accumulated, 2 // accumulated, 1, 4))
    weights = pixel_weights(label, normalization, jnp.array([1.0, 2.0, 4.0]))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, np.reshape(expected, label.shape), rtol=1e-6)


@pytest.mark.parametrize(("normalization", "expected"), [("sum", 1.0), ("image", 1 / 2), ("pixel", 1 / 2)])
def test_an_image_without_labels_counts_nowhere(normalization, expected):
    label = jnp.array([[[[0, 1]], [[255, 255]], [[255, 255]]]], jnp.uint8)
    weights = pixel_weights(label, normalization, ONES)
    np.testing.assert_allclose(weights, [[[[expected, expected]], [[0, 0]], [[0, 0]]]], rtol=1e-6)


@pytest.mark.parametrize("normalization", ["sum", "image", "pixel"])
def test_a_step_without_any_label_has_loss_and_gradient_zero(normalization):
    label = jnp.full((2, 2, 3, 3), 255, jnp.uint8)
    weights = pixel_weights(label, normalization, ONES)
    np.testing.assert_array_equal(weights, np.zeros(label.shape))
    logits = np.random.default_rng(4).normal(size=(2, 2, 3, 3, 3)).astype(np.float32)
    assert step_loss(logits, label, normalization, ONES) == 0
    np.testing.assert_array_equal(gradient_of_sum(logits, label, weights), np.zeros(logits.shape))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 3, 2), (3, 2, 4, 6)])
@pytest.mark.parametrize("num_classes", [1, 7])
def test_pixel_weights_of_random_steps(shape, num_classes):
    ones = np.ones(num_classes, np.float32)
    for seed in range(10):
        label = random_labels(np.random.default_rng(seed), shape, num_classes)
        label[0, 0, 0, 0] = 0  # at least one
        valid = label != 255
        images = valid.any((2, 3))
        weights = {n: np.asarray(pixel_weights(label, n, ones)) for n in ("sum", "image", "pixel")}
        for array in weights.values():
            np.testing.assert_array_equal(array > 0, valid)
        np.testing.assert_allclose(weights["sum"].sum(), valid.sum() / shape[0], rtol=1e-5)
        np.testing.assert_allclose(weights["image"].sum((2, 3)), images / images.sum(), rtol=1e-5)
        np.testing.assert_allclose(weights["pixel"][valid], 1 / valid.sum(), rtol=1e-5)


@pytest.mark.parametrize("normalization", ["sum", "image", "pixel"])
def test_the_loss_of_a_step_is_what_its_definition_says(normalization):
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, (2, 3, 4, 5, 3)).astype(np.float32)
    label = random_labels(rng, (2, 3, 4, 5), 3)
    label[1, 2] = 255
    class_weights = np.array([0.5, 1, 3])
    by_hand = reference.cross_entropy(logits, label) * np.append(class_weights, np.zeros(253))[label]
    valid = label != 255
    labelled = valid.any((2, 3))  # [A, B]
    expected = {
        "sum": by_hand.sum() / 2,
        "image": np.mean([pixels[v].mean() for pixels, v in zip(by_hand[labelled], valid[labelled], strict=True)]),
        "pixel": by_hand[valid].mean(),
    }[normalization]
    found = step_loss(logits, label, normalization, jnp.asarray(class_weights.astype(np.float32)))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("normalization", "ratio"), [("sum", 2), ("image", 1), ("pixel", 1)])
def test_the_loss_of_a_step_and_how_its_images_are_accumulated(normalization, ratio):
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, (1, 4, 6, 5, 3)).astype(np.float32)
    label = random_labels(rng, (1, 4, 6, 5), 3)
    label[0, 1, :5] = 255  # images of unequal weight
    class_weights = jnp.array([1.0, 0.3, 2.0])
    at_once = step_loss(logits, label, normalization, class_weights)
    accumulated = step_loss(logits.reshape(2, 2, 6, 5, 3), label.reshape(2, 2, 6, 5), normalization, class_weights)
    assert at_once == pytest.approx(ratio * accumulated, rel=1e-6)


def test_an_unknown_normalization_names_the_choices():
    with pytest.raises(ValueError, match=r"'mean'.*sum, image, pixel"):
        pixel_weights(jnp.zeros((1, 1, 1, 1), jnp.uint8), "mean", ONES)


# Patchwise training


@pytest.mark.parametrize(("normalization", "factor"), [("sum", 0.25), ("image", 1.0), ("pixel", 1.0)])
def test_sampled_weights_are_those_of_whole_cells_and_right_on_average(normalization, factor):
    """In `sum` a quarter of them counts: four times the images make the gradient of a batch."""
    weights = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, 2, 70, 40)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2000)
    found = np.asarray(jax.vmap(lambda key: losses.sampled(weights, key, 0.25, normalization))(keys))
    kept = found > 0
    for rows in (slice(0, 32), slice(32, 64), slice(64, 70)):
        for columns in (slice(0, 32), slice(32, 40)):
            cell = kept[:, :, :, rows, columns]
            assert (cell == cell[..., :1, :1]).all()
    # Cells are independent of each other.
    assert abs(np.corrcoef(kept[:, 0, 0, 0, 0], kept[:, 0, 0, 32, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(kept[:, 0, 0, 0, 0], kept[:, 0, 1, 0, 0])[0, 1]) < 0.1
    # A mean over 2,000 draws of 0 or 4 with probability 1/4 deviates by 0.04; five times that is allowed.
    np.testing.assert_allclose(found.mean(0) / (factor * np.asarray(weights)), 1, atol=0.2)


def test_divergence_from_a_teacher():
    """By its definition; zero from oneself; its gradient is that of the cross-entropy with soft labels."""
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(size=(3, 5, 4)), jnp.float32)
    soft = jnp.array(rng.dirichlet(np.ones(4), (3, 5)), jnp.float32)
    own = jax.nn.softmax(logits)
    expected = (np.asarray(soft) * (np.log(soft) - np.log(own))).sum(-1)
    np.testing.assert_allclose(losses.divergence(logits, soft), expected, atol=1e-6)
    np.testing.assert_allclose(losses.divergence(logits, own), 0, atol=1e-6)
    gradient = jax.grad(lambda x: losses.divergence(x, soft).sum())(logits)
    np.testing.assert_allclose(gradient, own - soft, atol=1e-6)
    sure = jax.nn.one_hot(jnp.array([0, 3]), 4)  # probabilities of 0 are no NaN
    assert np.isfinite(losses.divergence(jnp.zeros((2, 4)), sure)).all()

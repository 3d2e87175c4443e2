"""The scores: confusion matrices worked out by hand, and random ones against the reference."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fcn_jax import metrics

MEANS = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def confusion(label, prediction, num_classes):
    return metrics.confusion_matrix(jnp.array(label, jnp.uint8), jnp.array(prediction, jnp.uint8), num_classes)


def test_an_absent_class_is_left_out_and_void_does_not_count():
    # The last pixel is void; predicted as class 2, it must not make that class present.
    counts = confusion([[0, 0, 0], [1, 1, 255]], [[0, 0, 1], [1, 0, 2]], 3)
    np.testing.assert_array_equal(counts, [[2, 1, 0], [1, 1, 0], [0, 0, 0]])
    scores = metrics.scores(np.asarray(counts))
    np.testing.assert_allclose(scores["per_class_iou"], [2 / 4, 1 / 3, np.nan])
    assert [scores[name] for name in MEANS] == pytest.approx(
        [3 / 5, (2 / 3 + 1 / 2) / 2, (1 / 2 + 1 / 3) / 2, (3 * 1 / 2 + 2 * 1 / 3) / 5]
    )


def test_a_class_that_is_only_predicted_scores_zero():
    counts = confusion([0, 0, 1, 1], [0, 2, 1, 1], 3)
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 2, 0], [0, 0, 0]])
    scores = metrics.scores(np.asarray(counts))
    np.testing.assert_allclose(scores["per_class_iou"], [1 / 2, 1, 0])
    # Its accuracy is not defined and is left out, its IU counts.
    assert [scores[name] for name in MEANS] == pytest.approx([3 / 4, (1 / 2 + 1) / 2, 1 / 2, (2 * 1 / 2 + 2 * 1) / 4])


def test_the_truth_is_along_the_rows():
    np.testing.assert_array_equal(confusion([1], [0], 2), [[0, 0], [1, 0]])


@pytest.mark.parametrize("beyond", [3, 7, 254, 255])
def test_labels_beyond_the_classes_do_not_count(beyond):
    np.testing.assert_array_equal(confusion([beyond, 2, beyond], [0, 1, 2], 3), [[0, 0, 0], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(("shape", "num_classes"), [((3, 17, 13), 2), ((40,), 5), ((2, 8, 9), 21)])
def test_confusion_and_scores_equal_the_reference(shape, num_classes):
    rng = np.random.default_rng(num_classes)
    for _ in range(3):
        label = rng.integers(0, num_classes, shape).astype(np.uint8)
        label[label == num_classes - 1] = 255
        label[rng.random(shape) < 0.2] = 255
        # Mostly right, so that no score is near zero.
        guess = rng.integers(0, num_classes, shape)
        prediction = np.where((rng.random(shape) < 0.6) & (label < 255), label, guess).astype(np.uint8)
        counts = jax.jit(metrics.confusion_matrix, static_argnums=2)(label, prediction, num_classes)
        assert counts.dtype == jnp.int32
        np.testing.assert_array_equal(counts, reference.confusion_matrix(label, prediction, num_classes))
        found, expected = metrics.scores(np.asarray(counts)), reference.scores(np.asarray(counts))
        np.testing.assert_allclose(found["per_class_iou"], expected["per_class_iou"], rtol=1e-12)
        for name in MEANS:
            assert found[name] == pytest.approx(expected[name], rel=1e-12), name


def test_counts_are_exact_where_float32_is_not():
    pixels = 2**24 + 1  # the first integer that float32 lacks
    counts = confusion(np.ones(pixels), np.zeros(pixels), 2)
    np.testing.assert_array_equal(counts, [[0, 0], [pixels, 0]])


def test_scores_of_a_large_set_are_exact():
    # 2^53 + 2 pixels: no sum in float32 or int32 would keep the two wrong ones.
    counts = np.array([[2**52, 0], [1, 2**40]], np.int64)
    assert metrics.scores(counts)["mean_accuracy"] == pytest.approx((1 + 2**40 / (2**40 + 1)) / 2, rel=1e-15)


def test_without_any_labelled_pixel_all_scores_are_nan():
    scores = metrics.scores(np.zeros((4, 4), np.int64))
    assert scores["per_class_iou"].shape == (4,)
    assert np.isnan(scores["per_class_iou"]).all()
    assert np.isnan([scores[name] for name in MEANS]).all()


def test_a_perfect_prediction_scores_one():
    label = np.random.default_rng(0).integers(0, 5, (30, 30)).astype(np.uint8)
    scores = metrics.scores(np.asarray(confusion(label, label, 5)))
    assert [scores[name] for name in MEANS] == [1, 1, 1, 1]


def test_table_shows_every_number():
    results = {
        "pixel_accuracy": 0.9876,
        "mean_accuracy": 0.5432,
        "mean_iou": 0.4567,
        "frequency_weighted_iou": float("nan"),
        "per_class_iou": {"background": 1.0, "disc": 0.1234, "ring": float("nan")},
    }
    lines = metrics.table(results).splitlines()
    assert [re.sub(r"\s+", " ", line).strip() for line in lines] == [
        "class IU %",
        "background 100.0",
        "disc 12.3",
        "ring -",
        "pixel accuracy 98.8, mean accuracy 54.3, mean iou 45.7, frequency weighted iou -",
    ]
    assert len({len(line) for line in lines[:4]}) == 1  # the columns are aligned

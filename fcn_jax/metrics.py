"""Scores of a whole data set from one confusion matrix (the release's score.py; PAMI section 5)."""

from collections.abc import Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

BOUNDARY = 0.02  # of the diagonal: how wide the boundary of Boundary IoU is


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Counts int32 [C, C] of pixels, rows the truth, columns the prediction, both uint8.

    A label >= C is void and does not count. int32 holds one batch; sums over a set belong in int64 on the host.
    """
    label, prediction = label.ravel().astype(jnp.int32), prediction.ravel().astype(jnp.int32)
    # Void goes to a bin of its own beyond the matrix.
    bins = jnp.where(label < num_classes, label * num_classes + prediction, num_classes**2)
    counts = jnp.bincount(bins, length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def scores(confusion: np.ndarray, unscored: Sequence[int] = ()) -> dict[str, Any]:
    """The four scores of the paper, each 0..1, and `per_class_iou` float64 [C].

    The classes `unscored` are left out of the means over classes, and have no IU of their own. A class absent from
    truth and prediction is NaN and left out of the means; one that is only predicted scores 0.
    Without any labelled pixel all are NaN.
    """
    found = of_counts(counts(confusion), unscored)
    means = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    return {**{name: float(found[name]) for name in means}, "per_class_iou": found["per_class_iou"]}


def of_counts(counts: np.ndarray, unscored: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """As `scores`, of many matrices at once, by what `counts` gives of them [..., 3, C]: float64 [...] and [..., C]."""
    correct, truth, _ = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    per_class = iou(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = correct / truth
        per_class[..., list(unscored)] = accuracy[..., list(unscored)] = np.nan
        counted = (truth > 0) & ~np.isnan(per_class)
        total = truth.sum(-1)
        return {
            "pixel_accuracy": correct.sum(-1) / total,
            "mean_accuracy": mean_of_classes(accuracy),
            "mean_iou": mean_of_classes(per_class),
            "frequency_weighted_iou": np.where(counted, truth * per_class, 0).sum(-1) / total,
            "per_class_iou": per_class,
        }


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """float64 [...] of [..., C], over the classes that are not NaN; NaN without any."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(there, values, 0).sum(-1) / there.sum(-1))


def boundary(label: np.ndarray, distance: int) -> np.ndarray:
    """bool [H, W]: pixels of an id that have another id, or the edge of the image, within `distance` pixels.

    Along rows, columns and diagonals alike, as eroding each mask `distance` times by 3x3 pixels has it.
    """
    # Behind the edge is nothing, which is another id than any.
    padded = np.pad(label.astype(np.int16), 1, constant_values=-1)
    window = np.ones((2 * distance + 1,) * 2, np.uint8)
    lowest, highest = (how(padded, window, borderType=cv2.BORDER_REPLICATE) for how in (cv2.erode, cv2.dilate))
    return np.asarray((lowest != highest)[1:-1, 1:-1])


def counts(confusion: np.ndarray) -> np.ndarray:
    """[..., 3, C] of confusion matrices [..., C, C]: pixels that are right, of the truth, of the prediction."""
    confusion = np.asarray(confusion)
    return np.stack([np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)], -2)


def boundary_counts(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """What Boundary IoU (Cheng et al. 2021, arXiv 2103.16562) is of: int64 [3, C], as `counts`, of boundaries alone.

    Boundaries are as wide as 2 % of the image's diagonal. Void does not count, and ends what it touches in truth and
    prediction alike. Both uint8 [H, W].
    """
    distance = max(1, round(BOUNDARY * float(np.hypot(*label.shape))))
    void = label >= num_classes
    prediction = np.where(void, 255, prediction)
    label = np.where(void, 255, label)
    of_truth, of_prediction = boundary(label, distance), boundary(prediction, distance)
    both = of_truth & of_prediction & (label == prediction)
    parts = [label[both], label[of_truth], prediction[of_prediction]]
    return np.stack([np.bincount(part, minlength=256)[:num_classes] for part in parts]).astype(np.int64)


def iou(counts: np.ndarray) -> np.ndarray:
    """float64 [..., C] of counts [..., 3, C]; NaN for a class that neither truth nor prediction has."""
    both, truth, predicted = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(both / (truth + predicted - both))


def table(results: dict[str, Any]) -> str:
    """The scores in percent for a terminal; `per_class_iou` here is {name: value}."""
    per_class = results["per_class_iou"]
    width = max(len(name) for name in per_class)
    rows = [f"  {name:<{width}}  {_percent(iou)}" for name, iou in per_class.items()]
    names = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    means = [f"{name.replace('_', ' ')} {_percent(results[name]).strip()}" for name in names]
    return "\n".join([f"  {'class':<{width}}   IU %", *rows, ", ".join(means)])


def _percent(value: float) -> str:
    return "    -" if np.isnan(value) else f"{100 * value:5.1f}"

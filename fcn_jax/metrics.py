"""Scores of a whole data set from one confusion matrix (the release's score.py; PAMI section 5)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
    confusion = np.asarray(confusion, np.float64)
    correct, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    total = truth.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = correct / truth
        iou = correct / (truth + predicted - correct)
        accuracy[list(unscored)] = iou[list(unscored)] = np.nan
        pixel_accuracy = correct.sum() / total
        counted = (truth > 0) & ~np.isnan(iou)
        weighted = (truth[counted] * iou[counted]).sum() / total
    return {
        "pixel_accuracy": float(pixel_accuracy),
        "mean_accuracy": _nanmean(accuracy),
        "mean_iou": _nanmean(iou),
        "frequency_weighted_iou": float(weighted),
        "per_class_iou": iou,
    }


def table(results: dict[str, Any]) -> str:
    """The scores in percent for a terminal; `per_class_iou` here is {name: value}."""
    per_class = results["per_class_iou"]
    width = max(len(name) for name in per_class)
    rows = [f"  {name:<{width}}  {_percent(iou)}" for name, iou in per_class.items()]
    names = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    means = [f"{name.replace('_', ' ')} {_percent(results[name]).strip()}" for name in names]
    return "\n".join([f"  {'class':<{width}}   IU %", *rows, ", ".join(means)])


def _nanmean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def _percent(value: float) -> str:
    return "    -" if np.isnan(value) else f"{100 * value:5.1f}"

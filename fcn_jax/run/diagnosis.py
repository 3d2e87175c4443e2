"""When a run does not learn: what its curves and its confusion matrix look like, and the usual causes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax import visualize
from fcn_jax.config import Stage
from fcn_jax.data import images
from fcn_jax.data.datasets import Split
from fcn_jax.data.own import look as look_lib
from fcn_jax.run.context import Run

_SAMPLE = 60  # images whose contours are compared
_SHARE = 0.98  # of the pixels that a constant prediction gives to one class
_ENOUGH = 100  # updates, before which little is expected
_LIKE_CHANCE = 0.95  # of the entropy of the classes, above which a loss has learned nothing
_APART = 2.5  # the loss in evaluation against that in training
_RISE = 5.0  # of the gradient's norm, late against early


def look(run: Run, stage: Stage, step: int, found: Mapping[str, Any]) -> list[str]:
    """What the curves so far and the results of an evaluation say together, a line each; nothing if all is well."""
    head, names = next(iter(found.get("heads", {"": found}).values())), run.train_split.class_names
    names = names[run.train_split.places[0]]
    lines = of_confusion(head["confusion_matrix"], names, step - stage.start)
    points = run.curves.points if run.curves is not None else []
    points = [point for point in points if point["step"] > stage.start and "loss" in point]
    losses = [point["loss"] for point in points]
    lines += of_gradients([point["gradient_norm"] for point in points])
    loss = run.config.loss
    comparable = len(run.train_split.heads) == 1 and loss.class_weights == "none" and loss.sampling == 1
    if loss.normalization != "sum" and comparable:
        lines += of_loss(losses, run.train_split.pixel_counts)
        lines += of_splits(losses, head["loss"])
    if run.train_split.name == "folder" and step == stage.end:
        lines += of_contours(run.train_split)
    return lines


def of_contours(split: Split) -> list[str]:
    """What the contours of a sample of images and labels say: whether these belong to those."""
    found = []
    for index in range(0, len(split.ids), -(-len(split.ids) // _SAMPLE)):
        record = split.source[index]
        key = "image" if "image" in record else "bands"
        image = visualize.visible(images.decode_input(record[key], record["id"], key))
        found.append(look_lib.contours_of(image, images.decode_label(record["label"], record["id"])))
    what = look_lib.misfit(found)
    return [f"{what}: python -m fcn_jax.data check tells more"] if what else []


def of_confusion(confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], step: int) -> list[str]:
    """What a confusion matrix [truth, prediction] of an evaluation after `step` updates says, a line each."""
    counts = np.asarray(confusion, np.float64)
    truth, predicted = counts.sum(1), counts.sum(0)
    total = counts.sum()
    if step < _ENOUGH or not total or len(class_names) < 2:
        return []
    most = int(predicted.argmax())
    if predicted[most] > _SHARE * total and truth[most] < _SHARE * total:
        return [
            f"everything is predicted as {class_names[most]} ({_percent(predicted[most] / total)} of the pixels): the"
            " learning rate may be too high (try a tenth), the encoder random (config.init.weights), the labels not"
            " those of the images (python -m fcn_jax.data check), or the run too short"
        ]
    never = [name for name, there, found in zip(class_names, truth, predicted, strict=True) if there and not found]
    if never:
        few = ", ".join(
            f"{name} ({_percent(truth[class_names.index(name)] / total)} of the labelled pixels)" for name in never
        )
        return [
            f"never predicted: {few}: train longer, set config.loss.class_weights, or enlarge what is thin (data.scale)"
        ]
    return []


def of_loss(losses: Sequence[float], pixel_counts: np.ndarray) -> list[str]:
    """What the losses at the points of a run's curve say, which are means over pixels.

    Args:
      losses: in nats, in order; the last fifth is looked at.
      pixel_counts: integers [N, C] of the training split.
    """
    if len(losses) < 5:
        return []
    late = float(np.mean(losses[-max(1, len(losses) // 5) :]))
    chance = entropy(pixel_counts)
    if late < _LIKE_CHANCE * chance:
        return []
    return [
        f"the loss is {late:.2f}, and {chance:.2f} for who knows nothing but how frequent the classes are: labels may"
        " not be those of the images (shifted, in another order: python -m fcn_jax.data check), or the learning rate"
        " too high or too low"
    ]


def entropy(pixel_counts: np.ndarray) -> float:
    """Of the classes' frequencies in integers [N, C], in nats: the loss of one prediction for all pixels."""
    counts = pixel_counts.sum(0).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def of_gradients(norms: Sequence[float]) -> list[str]:
    """What the gradient's norms at the points of a run's curve say, in order."""
    if len(norms) < 10:
        return []
    fifth = len(norms) // 5
    early, late = float(np.median(norms[1 : 1 + fifth])), float(np.median(norms[-fifth:]))
    if not late > _RISE * early:
        return []
    return [
        f"the gradient's norm rises, from {early:.3g} to {late:.3g}: lower config.learning_rate, or set"
        " config.optim.clip_norm, before the loss follows"
    ]


def of_splits(train: Sequence[float], validation: float) -> list[str]:
    """What the losses of the last updates, and of the evaluation after them, say; both are means over pixels."""
    late = float(np.mean(train[-3:])) if len(train) >= 3 else math.inf
    if not validation > _APART * late + 0.05:
        return []
    return [
        f"the loss is {late:.2f} in training and {validation:.2f} in evaluation: more pictures, stronger augmentation"
        " (config.data.scale, config.data.colour_jitter) or fewer steps; or the splits are of different kinds"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

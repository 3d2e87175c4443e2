"""What a report says of a network on a split: counts of each image, and how sure the scores of them are."""

import dataclasses
import io
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fcn_jax import files, metrics
from fcn_jax.data import canvases, datasets, pipeline
from fcn_jax.predictor import Predictor
from fcn_jax.run import progress

log = logging.getLogger("fcn_jax.report")

SAMPLES = 1000
_LEVEL = 0.95
_FIELDS = ("confusion", "counts", "edges")


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What a pass over a split counted, by the first head.

    Attributes:
      ids: of the N images.
      confusion: int64 [C, C] over the split, rows the truth.
      counts: int64 [N, 3, C], metrics.counts of each image.
      edges: int64 [N, 3, C], metrics.boundary_counts.
      unscored: classes that are left out of means.
    """

    ids: tuple[str, ...]
    confusion: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    unscored: tuple[int, ...] = ()

    def of_images(self) -> np.ndarray:
        """Mean IU of each image, float64 [N], over the classes that it or its prediction has; NaN without any."""
        values = metrics.iou(self.counts)
        values[:, list(self.unscored)] = np.nan
        return metrics.mean_of_classes(values)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score 0..1 and the interval that holds it with a probability of 95 %, over other images of the same kind."""

    value: float
    low: float
    high: float


def examples(
    split: datasets.Split, inputs: Sequence[str], places: Sequence[int], mask: str = ""
) -> Iterator[dict[str, Any]]:
    """{id, image [H, W, C], label [H, W], corrupt} of the images at these places of a split."""
    alone = [canvases.Batch(tuple(split.sizes[place].tolist()), (place,)) for place in places]
    reading = pipeline.Reading(tuple(inputs), "skip")
    for example in pipeline.iterate(
        pipeline.eval_dataset(split, alone, batch_size=1, mask=mask, reading=reading), 0, 2
    ):
        label = example["label"][0]
        label = label if label.ndim == 2 else label[..., 0]
        yield {"id": str(example["id"][0]), "image": example["image"][0], "label": label, "corrupt": example["corrupt"]}


def first_head(mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of what a network finds, of several heads the first."""
    return mask if mask.ndim == 2 else mask[..., 0]


def measure(predictor: Predictor, split: datasets.Split, mask: str = "") -> Measured:
    """One pass over the split, image by image."""
    classes = split.heads[0][2]
    ids, counts, edges = [], [], []
    total = np.zeros((classes, classes), np.int64)
    read = examples(split, predictor.spec.input_names, range(len(split.ids)), mask)
    pairs = ((example, example["image"]) for example in read if not example["corrupt"].any())
    stream = progress.bar(predictor.stream(pairs), f"measuring {split.split}", len(split.ids), "images")
    for example, found in stream:
        if isinstance(found, Exception):
            raise found
        label, prediction = example["label"], first_head(found.mask)
        seen = label < classes
        bins = label[seen].astype(np.int64) * classes + prediction[seen]
        confusion = np.bincount(bins, minlength=classes**2).reshape(classes, classes)
        total += confusion
        ids.append(example["id"])
        counts.append(metrics.counts(confusion))
        edges.append(metrics.boundary_counts(label, prediction, classes))
    unscored = tuple(place for place in split.unscored if place < classes)
    order = np.argsort(np.array(ids))  # images of like sizes come together
    return Measured(
        tuple(ids[place] for place in order), total, np.stack(counts)[order], np.stack(edges)[order], unscored
    )


def remembered(path: pathlib.Path, key: str, make: Callable[[], Measured]) -> Measured:
    """What a file holds if it was made for this key, and else what `make` gives, which is then kept there."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            if str(found["key"]) == key:
                arrays = {name: found[name] for name in _FIELDS}
                return Measured(tuple(found["ids"].tolist()), **arrays, unscored=tuple(found["unscored"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # it is made again
    measured = make()
    buffer = io.BytesIO()
    arrays = {name: getattr(measured, name) for name in _FIELDS}
    unscored = np.array(measured.unscored, np.int64)
    np.savez_compressed(buffer, key=np.array(key), ids=np.array(measured.ids), unscored=unscored, **arrays)
    try:
        files.write_bytes(path, buffer.getvalue())
    except OSError as error:
        log.warning("%s is not kept for the next report: %s", path, error.strerror)
    return measured


def scores(counts: np.ndarray, edges: np.ndarray, unscored: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """metrics.of_counts, with boundary_iou [...] and per_class_boundary_iou [..., C]; both counts are [..., 3, C]."""
    edge = metrics.iou(edges)
    edge[..., list(unscored)] = np.nan
    found = metrics.of_counts(counts, unscored)
    return {**found, "boundary_iou": metrics.mean_of_classes(edge), "per_class_boundary_iou": edge}


def intervals(measured: Measured, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """`scores` of the split, each with its interval: Interval, or of what is per_class a list of them.

    Bootstrap: the images are drawn again with replacement, `samples` times; the percentiles 2.5 and 97.5.
    """
    found = scores(measured.counts.sum(0), measured.edges.sum(0), measured.unscored)
    drawn = scores(*_resampled(measured, samples, seed), measured.unscored)
    return {key: _intervals(found[key], drawn[key]) for key in found}


def differences(first: Measured, second: Measured, samples: int = SAMPLES, seed: int = 0) -> dict[str, Interval]:
    """The means of the second less those of the first, on the same images, drawn together: their luck is shared.

    ValueError if the images are not the same.
    """
    if first.ids != second.ids:
        raise ValueError("only scores on the same images can be compared")
    found, drawn = (
        [scores(*part, m.unscored) for part, m in zip(parts, (first, second), strict=True)]
        for parts in (
            [(m.counts.sum(0), m.edges.sum(0)) for m in (first, second)],
            [_resampled(m, samples, seed) for m in (first, second)],
        )
    )
    keys = [key for key, value in found[0].items() if value.ndim == 0]
    return {key: _intervals(found[1][key] - found[0][key], drawn[1][key] - drawn[0][key]) for key in keys}


def extremes(values: np.ndarray, number: int) -> list[tuple[str, int, float]]:
    """(best, median or worst, place, value) of `number` images by their values [N], NaN left out, each once."""
    order = [int(place) for place in np.argsort(-values, kind="stable") if not np.isnan(values[place])]
    worst, best, median = ((number + rest) // 3 for rest in (2, 1, 0))  # what is left over goes to the worst first
    middle = max(0, (len(order) - median) // 2)
    parts = {
        "worst": order[len(order) - worst :] if worst < len(order) else order,
        "best": order[:best],
        "median": order[middle : middle + median],
    }
    taken: dict[int, str] = {}
    for kind, places in parts.items():
        for place in places:
            taken.setdefault(place, kind)
    return [(taken[place], place, float(values[place])) for place in order if place in taken]


def _resampled(measured: Measured, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges [samples, 3, C], each of as many images as there are, drawn with replacement."""
    number = len(measured.ids)
    times = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), samples).astype(np.float64)
    return tuple(  # type: ignore[return-value]
        (times @ part.reshape(number, -1)).reshape(samples, *part.shape[1:])
        for part in (measured.counts, measured.edges)
    )


def _intervals(values: np.ndarray, drawn: np.ndarray) -> Any:
    tail = (1 - _LEVEL) / 2
    with np.errstate(invalid="ignore"):
        low, high = _quantiles(drawn, (tail, 1 - tail))
    if values.ndim == 0:
        return Interval(float(values), float(low), float(high))
    return [Interval(*map(float, row)) for row in zip(values, low, high, strict=True)]


def _quantiles(drawn: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Over the samples that have the class at all."""
    columns = drawn.reshape(len(drawn), -1).T
    found = [np.quantile(c[~np.isnan(c)], shares) if not np.isnan(c).all() else (np.nan, np.nan) for c in columns]
    return np.array(found).T.reshape(2, *drawn.shape[1:])

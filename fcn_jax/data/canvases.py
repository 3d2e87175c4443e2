"""Which images of a split are batched together: those of like sizes, on as few canvases as pay."""

import dataclasses

import numpy as np

MOST = 4  # canvases of one split, each of which is a compilation
# What a further canvas has to save: this part of the pixels, and as many as a CPU computes while it compiles.
_WORTH_PART, _WORTH_PIXELS = 0.05, 2**24
_MOST_COMPARED = 64


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are computed together."""

    canvas: tuple[int, int]  # height, width
    images: tuple[int, ...]  # their places in the split, ascending; in the last batch of a canvas maybe fewer


def batches(sizes: np.ndarray, batch_size: int) -> list[Batch]:
    """Every image once, by canvas, ordered by the first image of each batch.

    Canvases are merged until there are at most MOST and each one of them pays; what counts are all pixels that are
    computed, the filling of the last batches too. One canvas holds its largest height and its largest width.

    Args:
      sizes: int [N, 2], height and width.
    """
    groups = [np.flatnonzero(group) for group in _alike(sizes)]
    while len(groups) > 1:
        costs = [_pixels(sizes, group, batch_size) for group in groups]
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        merged = [_pixels(sizes, np.concatenate([groups[i], groups[j]]), batch_size) for i, j in pairs]
        added = [pixels - costs[i] - costs[j] for pixels, (i, j) in zip(merged, pairs, strict=True)]
        best = int(np.argmin(added))
        if len(groups) <= MOST and added[best] > max(_WORTH_PART * sum(costs), _WORTH_PIXELS):
            break
        i, j = pairs[best]
        groups[j] = np.sort(np.concatenate([groups[j], groups.pop(i)]))
    made = [
        Batch(_canvas(sizes, group), tuple(group[start : start + batch_size].tolist()))
        for group in groups
        for start in range(0, len(group), batch_size)
    ]
    return sorted(made, key=lambda batch: batch.images[0])


def _alike(sizes: np.ndarray) -> list[np.ndarray]:
    """bool [N] for each kind of size, told apart as finely as few enough kinds allow."""
    step = 1
    while len(kinds := np.unique(-(-sizes // step), axis=0)) > _MOST_COMPARED:
        step *= 2
    return [(-(-sizes // step) == kind).all(1) for kind in kinds]


def _canvas(sizes: np.ndarray, group: np.ndarray) -> tuple[int, int]:
    height, width = sizes[group].max(0).tolist()
    return height, width


def _pixels(sizes: np.ndarray, group: np.ndarray, batch_size: int) -> int:
    height, width = _canvas(sizes, group)
    return -(-len(group) // batch_size) * batch_size * height * width

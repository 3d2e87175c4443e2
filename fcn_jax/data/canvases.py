"""Which images of a split are batched together: those of like sizes, on as few canvases as pay."""

import dataclasses

import numpy as np

MOST = 4  # canvases of one split, each of which is a compilation
# What a further canvas has to save: this part of the pixels, and as many as a CPU computes while it compiles.
_WORTH_PART, _WORTH_PIXELS = 0.04, 2**21
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
    groups = [_Group.of(sizes, np.flatnonzero(alike)) for alike in _alike(sizes)]
    while len(groups) > 1:
        pairs = [(groups[i], groups[j]) for i in range(len(groups)) for j in range(i)]
        added = [_pixels(batch_size, a, b) - _pixels(batch_size, a) - _pixels(batch_size, b) for a, b in pairs]
        best = int(np.argmin(added))
        total = sum(_pixels(batch_size, group) for group in groups)
        if len(groups) <= MOST and added[best] > max(_WORTH_PART * total, _WORTH_PIXELS):
            break
        merged = np.sort(np.concatenate([group.images for group in pairs[best]]))
        groups = [group for group in groups if group not in pairs[best]] + [_Group.of(sizes, merged)]
    made = [
        Batch(group.canvas, tuple(group.images[start : start + batch_size].tolist()))
        for group in groups
        for start in range(0, len(group.images), batch_size)
    ]
    return sorted(made, key=lambda batch: batch.images[0])


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Images that share a canvas."""

    images: np.ndarray
    canvas: tuple[int, int]

    @classmethod
    def of(cls, sizes: np.ndarray, images: np.ndarray) -> "_Group":
        height, width = sizes[images].max(0).tolist()
        return cls(images, (height, width))


def _alike(sizes: np.ndarray) -> list[np.ndarray]:
    """bool [N] for each kind of size, told apart as finely as few enough kinds allow."""
    step = 1
    while len(kinds := np.unique(-(-sizes // step), axis=0)) > _MOST_COMPARED:
        step *= 2
    return [(-(-sizes // step) == kind).all(1) for kind in kinds]


def _pixels(batch_size: int, *groups: _Group) -> int:
    """What the batches of the groups take on one canvas."""
    count = sum(len(group.images) for group in groups)
    height, width = (max(sides) for sides in zip(*(group.canvas for group in groups), strict=True))
    return -(-count // batch_size) * batch_size * height * width

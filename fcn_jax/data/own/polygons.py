"""Polygons to masks and back. A pixel belongs to a polygon that holds its centre; outlines run along pixels' edges.

So a mask that is written as polygons is read again as it was, which a rule that also takes what an edge touches is not.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

_FAR = 1e9  # pixels; nor is anything infinite


class Region(NamedTuple):
    """A connected part of a mask of one class.

    Attributes:
      id: of the class.
      points: float64 [N, 2], x and y of its outline, in pixels from the left and the top edge of the image.
      holds: pixels inside of the outline, holes too.
      inside: bool, whether it does not touch the border of the image.
    """

    id: int
    points: np.ndarray
    holds: int
    inside: bool


def fill(shape: tuple[int, int], points: Any) -> np.ndarray:
    """bool [H, W] of the pixels whose centre is inside of a closed polygon, by the even-odd rule.

    `points` are [N, 2], x and y; with fewer than three nothing is inside. ValueError for what are no such numbers.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if not (np.abs(points) < _FAR).all():
        raise ValueError(f"points are not all within {_FAR:g} pixels")
    height, width = shape
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.5  # so that centres lie at whole numbers
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    first = np.clip(np.ceil(np.minimum(y, y2)), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, y2)), 0, height).astype(np.int64)  # exclusive
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x2 - x) / (y2 - y)
    column = np.clip(np.ceil(x[edge] + (row - y[edge]) * slope[edge]), 0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(crossings, (row, column), 1)
    return np.bitwise_xor.accumulate(crossings, axis=1)[:, :width].astype(bool)


def regions(mask: np.ndarray) -> Iterator[Region]:
    """The connected parts (by edges, not by corners) of uint8 [H, W], those that hold more before those that hold less.

    Painted in this order, each over those before, they give the mask again; what is not inside need not be painted
    where it is of the class that is there anyway.
    """
    found = []
    for value in np.unique(mask).tolist():
        _, parts, boxes, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=4)
        for number, (left, top, width, height, _) in enumerate(boxes[1:].tolist(), 1):
            part = parts[top : top + height, left : left + width] == number
            points, holds = _outline(part)
            inside = top > 0 and top + height < mask.shape[0] and left > 0 and left + width < mask.shape[1]
            found.append(Region(value, points + np.array([left, top], np.float64), holds, inside))
    yield from sorted(found, key=lambda region: -region.holds)


def _outline(part: np.ndarray) -> tuple[np.ndarray, int]:
    """The outer outline [N, 2] of a connected bool [h, w], corners alone, and how many pixels it holds."""
    _, outside_of_it = cv2.connectedComponents(np.pad(~part, 1, constant_values=True).astype(np.uint8), connectivity=4)
    padded = outside_of_it != outside_of_it[0, 0]  # with its holes: what no path by edges leads to from the border
    # Each pixel's edge on the outline as a step from corner to corner with the inside on the right.
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), start, move in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (0, 1), (0, -1)),
    ):
        outside = ~np.roll(padded, (-dy, -dx), (0, 1))
        for y, x in zip(*(index.tolist() for index in np.nonzero(padded & outside)), strict=True):
            steps.setdefault((x - 1 + start[0], y - 1 + start[1]), []).append(move)
    corner = min(steps, key=lambda point: (point[1], point[0]))
    points, at, move = [corner], corner, (0, 0)
    for _ in range(sum(map(len, steps.values()))):
        ways = steps[at]
        # Where two pixels meet at a corner alone, turn right: that stays with the same one.
        following = next((way for way in ways if way == (-move[1], move[0])), ways[0])
        ways.remove(following)
        if following == move:
            points[-1] = (at[0] + following[0], at[1] + following[1])
        else:
            points.append((at[0] + following[0], at[1] + following[1]))
        at, move = (at[0] + following[0], at[1] + following[1]), following
    return np.array(points[:-1], np.float64), int(padded.sum())


def decode_rle(counts: str | Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths as bool [H, W]: how many zeros and ones in turn, column after column; a text packs them.

    Raises:
      ValueError: they are not as many pixels as the image has.
    """
    runs = _unpacked(counts) if isinstance(counts, str) else [int(n) for n in counts]
    if any(n < 0 for n in runs) or sum(runs) != shape[0] * shape[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels, the image has {shape[0]}x{shape[1]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(shape[::-1]).T


def encode_rle(mask: np.ndarray) -> list[int]:
    """The run lengths of bool [H, W] that decode_rle reads, as numbers."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.concatenate([changes, [mask.size]])
    return np.diff(ends, prepend=0).tolist()


def _unpacked(text: str) -> list[int]:
    """COCO's text: five bits a character from 48 on, the sixth says that more follow; from the third on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 50:
            raise ValueError(f"run lengths {text[:20]!r} are not COCO's")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs

"""Motion between frames, and what it is good for: steady masks, and backgrounds that other frames show."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from fcn_jax import fill

MEMORY = 0.7  # of what was found before in what is found now, where motion leads to the same thing
_ALIKE = 24  # grey values: what differs by more is not the same thing
REACH = 24  # frames before and after that show a background
_STRIDE = 3  # of which each third is looked at
_CORNERS = 400
_FEWEST = 8  # of them that a homography is of
_SEEN = 10  # pixels around a corner by which it is followed
_STILL = 0.25  # pixels
_SMALLEST = 32


class Steady:
    """Probabilities of one head smoothed over time, along the motion of what they are of."""

    def __init__(self, memory: float = MEMORY):
        self._memory = memory
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._flow: Any = None

    def __call__(self, image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """float32 [H, W, C] for the next frame, image uint8 [H, W, 3].

        A pixel takes over what was found of what it shows in the frame before. Where that cannot be told, at cuts and
        behind what moves away, only its own scores count.
        """
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if self._before is None or self._before[0].shape != grey.shape:
            result = scores
        else:
            before, found = self._before
            there = self._places(grey, before)
            moved = cv2.remap(before, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            inside = _inside(there)
            same = (np.abs(moved.astype(np.int16) - grey) <= _ALIKE) & inside
            weight = np.where(same, np.float32(self._memory), np.float32(0))[..., None]
            result = (1 - weight) * scores + weight * _remapped(found, there)
            result /= result.sum(-1, keepdims=True)  # OpenCV rounds its weights
        self._before = grey, result
        return result

    def _places(self, grey: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel was in the frame before: x and y, float32 [H, W]."""
        if min(grey.shape) < _SMALLEST:  # what the search for motion needs
            return places(np.zeros((*grey.shape, 2), np.float32))
        if self._flow is None:
            self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        return places(self._flow.calc(grey, before, None))


def places(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y, float32 [H, W], of where a flow [H, W, 2] leads from each pixel."""
    rows, columns = np.indices(flow.shape[:2], np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


def _inside(there: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x, y = there
    height, width = x.shape
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def _remapped(array: np.ndarray, there: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[H, W, C] as seen from elsewhere; OpenCV takes four channels at once."""
    parts = [
        cv2.remap(np.ascontiguousarray(array[..., start : start + 4]), *there, cv2.INTER_LINEAR)
        for start in range(0, array.shape[2], 4)
    ]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], -1)


class Shot(NamedTuple):
    """A frame that waits for its background.

    Attributes:
      key: what belongs to it.
      image: uint8 [H, W, 3].
      hole: bool [H, W].
      step: the homography float64 [3, 3] from the frame before to it, or None at a cut.
    """

    key: Any
    image: np.ndarray
    hole: np.ndarray
    step: np.ndarray | None


class Background:
    """Fills holes with what other frames, at most REACH before and after, show at the same place of the scene.

    The camera may move as far as a homography describes it: turn, zoom, or look at what is flat or far. What no frame
    shows is inpainted. Holds 2 REACH + 1 frames.
    """

    def __init__(self, reach: int = REACH):
        self._reach = reach
        self._shots: collections.deque[Shot] = collections.deque()
        self._next = 0  # of the deque, the shot that is filled next
        self._grey: np.ndarray | None = None
        self._hole: np.ndarray | None = None

    def add(self, key: Any, image: np.ndarray, hole: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
        """Takes a frame; gives (key, image) of those whose backgrounds can be had no better."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        step = None
        if self._grey is not None and self._hole is not None and self._grey.shape == grey.shape:
            step = _homography(self._grey, grey, self._hole)
        self._grey, self._hole = grey, hole
        self._shots.append(Shot(key, image, hole, step))
        while len(self._shots) - 1 - self._next >= self._reach:
            yield self._filled()

    def rest(self) -> Iterator[tuple[Any, np.ndarray]]:
        """The frames that are left at the end."""
        while self._next < len(self._shots):
            yield self._filled()

    def _filled(self) -> tuple[Any, np.ndarray]:
        shot = self._shots[self._next]
        result = self._from_others(shot) if shot.hole.any() else shot.image
        if self._next >= self._reach:
            self._shots.popleft()
        else:
            self._next += 1
        return shot.key, result

    def _from_others(self, shot: Shot) -> np.ndarray:
        left, image = shot.hole.copy(), shot.image.copy()
        for distance in range(1, self._reach + 1):
            if distance > 1 and distance % _STRIDE and distance != self._reach:
                continue
            for place in (self._next - distance, self._next + distance):
                matrix = self._between(place) if 0 <= place < len(self._shots) else None
                if matrix is not None:
                    _take_over(image, left, shot.hole, self._shots[place], matrix)
            if not left.any():
                return image
        return fill.fill(image, left, "inpaint")

    def _between(self, place: int) -> np.ndarray | None:
        """The homography from the shot at a place to the one that is filled; None across a cut."""
        first, last = sorted((place, self._next))
        matrix = np.eye(3)
        for index in range(first + 1, last + 1):
            step = self._shots[index].step
            if step is None:
                return None
            matrix = step @ matrix
        if place < self._next:
            return matrix
        return np.linalg.inv(matrix) if abs(np.linalg.det(matrix)) > 1e-6 else None


def _take_over(image: np.ndarray, left: np.ndarray, hole: np.ndarray, other: Shot, matrix: np.ndarray) -> None:
    """Paints into the image what another shot shows of what is left, as bright as it would be here; changes both."""
    size = image.shape[1::-1]
    seen = cv2.warpPerspective((~other.hole).astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    usable = left & seen
    if not usable.any():
        return
    moved = cv2.warpPerspective(other.image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    around = fill.grown(usable, max(4.0, 0.01 * max(size))) & ~hole & seen
    shift = np.zeros(3)
    if around.any():
        difference = image[around].astype(np.int16) - moved[around].astype(np.int16)
        shift = np.median(difference, axis=0)
        if np.abs(difference - shift).mean() > _ALIKE:
            return  # something else is there by now
    image[usable] = np.clip(moved[usable] + shift, 0, 255).astype(np.uint8)
    left &= ~usable


def _homography(before: np.ndarray, after: np.ndarray, hole: np.ndarray) -> np.ndarray | None:
    """float64 [3, 3] from one grey frame to the next by corners that are followed; None where they do not agree.

    Corners that see the hole of the first frame are left out: it may move otherwise than the scene.
    """
    allowed = (~fill.grown(hole, _SEEN)).astype(np.uint8) * 255
    corners = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 7, mask=allowed)
    if corners is None or len(corners) < _FEWEST:
        return np.eye(3) if np.median(np.abs(before.astype(np.int16) - after)[~hole]) < 3 else None
    found, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.empty_like(corners))
    good = status.ravel() == 1
    if good.sum() < _FEWEST:
        return None
    moved = (found - corners)[good].reshape(-1, 2)
    # One by one corners are followed with errors, which the median over them has not: else a slow pan were none.
    if np.abs(moved).max(-1).mean() < _STILL and np.abs(np.median(moved, axis=0)).max() < _STILL / 10:
        return np.eye(3)
    matrix, inliers = cv2.findHomography(corners[good], found[good], cv2.RANSAC, 1.0)
    if matrix is None or inliers.sum() < max(_FEWEST, 0.3 * good.sum()):
        return None
    return np.asarray(matrix)

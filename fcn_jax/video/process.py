"""From the frames of a video to those of another: segmented, laid over, or with objects removed."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from fcn_jax import fill, visualize
from fcn_jax.models.spec import ModelSpec
from fcn_jax.predictor import Found, Predictor, enlarge, shrink
from fcn_jax.video import motion
from fcn_jax.video.reader import Frame

FILLS = ("background", *fill.FILLS)
log = logging.getLogger("fcn_jax.video")


class Options(NamedTuple):
    """What is made of a video.

    Attributes:
      show: `overlay` or `mask`, where nothing is removed.
      classes: bool [256], the ids that are shown.
      remove: the ids of the classes that are removed, of the first head; empty: nothing is.
      fill: one of FILLS.
      colour: RGB, for `colour`.
      grow: how far what is removed is grown, as a share of the diagonal.
      memory: of what was found before in what is found now, 0..1; motion.Steady.
      side: the original beside the result.
    """

    show: str
    classes: np.ndarray
    remove: tuple[int, ...] = ()
    fill: str = "inpaint"
    colour: tuple[int, int, int] = (128, 128, 128)
    grow: float = 0.01
    memory: float = motion.MEMORY
    side: bool = False

    @property
    def alpha(self) -> bool:
        """Whether the result has transparency."""
        return bool(self.remove) and self.fill == "transparent"


def process(network: Predictor, frames: Iterator[Frame], options: Options) -> Iterator[Frame]:
    """The result of each frame, in order; of [H, W, 4] if options.alpha. Few frames are held at a time.

    Raises:
      ValueError: what the network raises for a frame.
    """
    found = segmented(network, _of_one_size(frames), options)
    if options.remove:
        results = _filled(found, options)
    else:
        results = ((frame, _shown(frame.pixels, of, network.spec, options)) for frame, of in found)
    for frame, pixels in results:
        yield Frame(_beside(frame.pixels, pixels) if options.side else pixels, frame.time)


def segmented(network: Predictor, frames: Iterator[Frame], options: Options) -> Iterator[tuple[Frame, Found]]:
    """Each frame with what the first head finds in it, at the size at which it is segmented; steady over time.

    That is network.side_of.
    """
    scored = bool(options.memory or options.remove)
    steady = motion.Steady(options.memory)
    items = ((frame, shrink(frame.pixels, network.side_of(frame.pixels.shape[:2]))) for frame in frames)
    pairs = (((frame, small), small) for frame, small in items)
    for (frame, small), found in network.stream(pairs, scored=scored, shrunk=True):
        if isinstance(found, Exception):
            raise found
        found = _first_head(found, network.spec)
        if options.memory and found.scores is not None:
            scores = steady(small, found.scores)
            found = Found(np.argmax(scores, -1).astype(np.uint8), scores)
        yield frame, found


def _first_head(found: Found, spec: ModelSpec) -> Found:
    mask = found.mask if found.mask.ndim == 2 else found.mask[..., 0]
    return Found(mask, None if found.scores is None else found.scores[..., spec.outputs[0][1]])


def _of_one_size(frames: Iterator[Frame]) -> Iterator[Frame]:
    """What a stream that changes its size goes on with is resized to what it began with."""
    size: tuple[int, int] | None = None
    told = False
    for frame in frames:
        size = size or frame.pixels.shape[:2]
        if frame.pixels.shape[:2] != size:
            if not told:
                log.warning("the size changes from %s to %s: resized to the first", size, frame.pixels.shape[:2])
            told = True
            resized = Image.fromarray(frame.pixels).resize(size[::-1], Image.Resampling.BILINEAR)
            frame = Frame(np.asarray(resized), frame.time)
        yield frame


def _shown(image: np.ndarray, found: Found, spec: ModelSpec, options: Options) -> np.ndarray:
    mask = enlarge(Found(found.mask), image.shape[:2]).mask
    palette = spec.palette[spec.outputs[0][1]]
    if options.show == "mask":
        return visualize.colorize(np.where(options.classes[mask], mask, np.uint8(255)), palette)
    return visualize.overlay(image, mask, palette, shown=options.classes)


def hole_of(found: Found, size: tuple[int, int], options: Options) -> np.ndarray:
    """bool [H, W]: where the classes that are removed are more likely than not, grown."""
    assert found.scores is not None
    likely = found.scores[..., list(options.remove)].sum(-1)
    whole = np.asarray(Image.fromarray(likely).resize(size[::-1], Image.Resampling.BILINEAR))
    return fill.grown(whole > 0.5, options.grow * float(np.hypot(*size)))


def _filled(found: Iterator[tuple[Frame, Found]], options: Options) -> Iterator[tuple[Frame, np.ndarray]]:
    holes = ((frame, hole_of(of, frame.pixels.shape[:2], options)) for frame, of in found)
    if options.fill != "background":
        yield from ((frame, fill.fill(frame.pixels, hole, options.fill, options.colour)) for frame, hole in holes)
        return
    background = motion.Background()
    for frame, hole in holes:
        yield from background.add(frame, frame.pixels, hole)
    yield from background.rest()


def _beside(original: np.ndarray, result: np.ndarray) -> np.ndarray:
    if result.shape[2] == 4:
        original = np.dstack([original, np.full(original.shape[:2], 255, np.uint8)])
    return np.concatenate([original, result], 1)

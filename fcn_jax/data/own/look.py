"""What one image and its annotation show, and what all of a folder show together: the measurements behind check.py."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.data import images
from fcn_jax.data.own import bands, forms, masks
from fcn_jax.data.own.forms import Form
from fcn_jax.data.own.pairs import Pair

SIDE = 128  # pixels of the square on which contours of image and mask are compared
REACH = SIDE // 8  # of the shifts that are looked for
_HASH = 16  # rows and columns of the hash of a picture
_CLEAR = 3.5  # standard deviations of chance
_ENOUGH = 20  # images, before contours that do not agree mean anything
CHANCE = "contours of images and masks agree no more than chance has it"
TURNS = ("as they are", "mirrored left to right", "mirrored top to bottom", "turned by 180 degrees")


@dataclasses.dataclass(frozen=True)
class Look:
    """What is seen of a pair.

    Attributes:
      pair: it.
      error: why the image, or the annotation, cannot be used; '' if both can.
      which: 'image', 'mask', 'size' or 'values', which the error is about.
      size: height and width of the image, upright; 0, 0 if it cannot be read.
      orientation: how EXIF turns it, 1 for not at all.
      counts: pixels of each class id and of void, int64 [256].
      values: how many values the mask file has; 0 for polygons.
      format: of the mask file.
      digest: of the image's pixels.
      picture: uint64 [4], a hash that like pictures nearly share.
      contours: how well those of image and mask agree; None where there are none.
    """

    pair: Pair
    error: str = ""
    which: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    values: int = 0
    format: str = ""
    digest: str = ""
    picture: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(4, np.uint64))
    contours: "Contours | None" = None


def at(pair: Pair, form: Form | None, annotated: str, *, contours: bool = True) -> Look:
    """Looks at a pair; without a form at the image and at the values of the mask alone.

    `contours` take 10 kB, and a thousandth of a second.
    """
    try:
        data = images.read_file(pair.image)
        image = bands.picture(data, str(pair.image))
    except (ValueError, OSError, MemoryError) as error:
        return Look(pair, str(error), "image")
    grey = np.asarray(Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    found = Look(
        pair,
        size=image.shape[:2],
        orientation=images.orientation(data),
        digest=hashlib.sha256(image.tobytes()).hexdigest()[:16] + f"{image.shape}",
        picture=_hash(grey),
    )
    path = pair.label.paths[0]
    mask = None
    if path.suffix.lower() != ".json":
        try:
            mask = masks.read_values(path)
        except (ValueError, OSError, MemoryError) as error:
            return dataclasses.replace(found, error=str(error), which="mask")
        found = dataclasses.replace(found, values=len(np.unique(mask.values)), format=mask.format)
    if form is None:
        return found
    try:
        label = forms.read(form, pair.label)
    except (ValueError, OSError, MemoryError) as error:
        return dataclasses.replace(found, error=str(error), which="mask" if mask is None else "values")
    if annotated == "stored":
        label = images.turn(label, found.orientation)
    if label.shape != image.shape[:2]:
        return dataclasses.replace(found, error=_sizes(pair, image.shape, label.shape, found.orientation), which="size")
    counts = np.bincount(label.ravel(), minlength=256)
    return dataclasses.replace(found, counts=counts, contours=contours_of(image, label) if contours else None)


def _sizes(pair: Pair, image: Sequence[int], label: Sequence[int], orientation: int) -> str:
    turned = f", turned by EXIF ({orientation})" if orientation != 1 else ""
    return f"{pair.image} is {image[0]}x{image[1]}{turned} and {pair.label} is {label[0]}x{label[1]} (height x width)"


def _hash(grey: np.ndarray) -> np.ndarray:
    """Whether each part of a picture is brighter than the part to its right, uint64 [4]."""
    small = np.asarray(Image.fromarray(grey).resize((_HASH + 1, _HASH), Image.Resampling.BOX)).astype(int)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return np.packbits(bits).view(np.uint64)


class Contours(NamedTuple):
    """How well the contours of an image and of its mask agree.

    Attributes:
      near: float16 [4, 2 REACH + 1, 2 REACH + 1], at each shift, for TURNS.
      anywhere: float16 [N], at shifts of all sizes, which shows what chance does.
    """

    near: np.ndarray
    anywhere: np.ndarray


def contours_of(image: np.ndarray, label: np.ndarray) -> Contours | None:
    """The correlation of the contours of an image uint8 [H, W, 3] with those of its mask, and of its mirror images.

    None where there are none.
    """
    grey = np.asarray(Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    small = np.asarray(Image.fromarray(label).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    edges = np.zeros(small.shape, np.float32)
    edges[:, 1:] += small[:, 1:] != small[:, :-1]
    edges[1:] += small[1:] != small[:-1]
    edges = np.minimum(edges, 1)
    if not 0 < edges.sum() < edges.size / 2:
        return None
    values = grey.astype(np.float32)
    slope = np.zeros_like(values)
    slope[:, 1:] += np.abs(np.diff(values, axis=1))
    slope[1:] += np.abs(np.diff(values, axis=0))
    slope -= slope.mean()
    deviation = slope.std()
    if not deviation > 0:
        return None
    transformed = np.fft.rfft2(slope / deviation)
    turns = np.stack([edges, edges[:, ::-1], edges[::-1], edges[::-1, ::-1]])
    spectra = np.fft.rfft2(turns / np.sqrt(edges.sum()))
    found = np.fft.irfft2(transformed * spectra.conj(), s=grey.shape)
    near = np.arange(-REACH, REACH + 1)
    return Contours(found[:, near[:, None], near].astype(np.float16), found[0, ::8, ::8].ravel().astype(np.float16))


def shift(contours: Sequence[Contours | None]) -> tuple[str, tuple[float, float]]:
    """How masks lie against their images, by the contours of all: how turned, and shifted by which part of the size.

    Returns:
      (one of TURNS, (down, right) as parts of height and width); the first and (0, 0) too where nothing is clear; ''
      for contours that agree at no shift.
    """
    found = [one for one in contours if one is not None]
    if len(found) < 3:
        return TURNS[0], (0.0, 0.0)
    windows = np.stack([one.near for one in found]).mean(0, dtype=np.float64)
    chance = float(np.stack([one.anywhere for one in found]).mean(0, dtype=np.float64).std())
    here = float(windows[0, REACH - 1 : REACH + 2, REACH - 1 : REACH + 2].max())
    turn, down, right = (int(n) for n in np.unravel_index(windows.argmax(), windows.shape))
    best = float(windows[turn, down, right])
    moved = max(abs(down - REACH), abs(right - REACH)) > 1  # a pixel is what contours may differ by
    offset = ((down - REACH) / SIDE, (right - REACH) / SIDE) if moved else (0.0, 0.0)
    # What is right wins by far; what wins by a little says nothing.
    if best > 1.3 * max(here, 0.0) and best - here > _CLEAR * chance and (turn or moved):
        return TURNS[turn], offset
    agree = best > _CLEAR * chance or len(found) < _ENOUGH
    return (TURNS[0] if agree else ""), (0.0, 0.0)


def misfit(contours: Sequence[Contours | None]) -> str:
    """What `shift` finds, in words; '' where nothing is wrong."""
    turn, (down, right) = shift(contours)
    if not turn:
        return CHANCE
    ways = ((down, "down" if down > 0 else "up"), (right, "right" if right > 0 else "left"))
    where = ", ".join(f"{100 * abs(part):.0f} % {way}" for part, way in ways if part)
    parts = (turn if turn != TURNS[0] else "", f"moved {where}" if where else "")
    lies = " and ".join(part for part in parts if part)
    return f"masks fit their images better when they are {lies}, by contours" if lies else ""


def stem(path: pathlib.Path) -> tuple[str, int]:
    """A name without the number at its end, and the number: ('0016E5_', 8550); -1 without one."""
    text = path.stem
    digits = len(text) - len(text.rstrip("0123456789"))
    return (text[: len(text) - digits], int(text[len(text) - digits :])) if digits else (text, -1)

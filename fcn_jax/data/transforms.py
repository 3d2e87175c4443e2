"""Per-example transforms, NumPy in and out. Images are uint8 RGB [H, W, 3], labels uint8 [H, W] with 255 for void.

With further inputs images are uint8 or float32 [H, W, C]; of several heads labels are uint8 [H, W, heads].
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fcn_jax.data.images import VOID

MEAN_RGB = (123, 117, 104)  # of VOC, as the network subtracts it
IDENTITY = np.arange(256, dtype=np.uint8)


def pad(image: np.ndarray, label: np.ndarray, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """Image and label at the top left of a canvas (height, width), beyond them black and void; `size` int32 [2]."""
    height, width = label.shape[:2]
    below, beside = canvas[0] - height, canvas[1] - width
    if below < 0 or beside < 0:
        raise ValueError(f"an image of {height}x{width} does not fit a canvas of {canvas[0]}x{canvas[1]}")
    if below or beside:
        image = np.pad(image, ((0, below), (0, beside), (0, 0)))
        label = np.pad(label, ((0, below), (0, beside), (0, 0))[: label.ndim], constant_values=VOID)
    return {"image": image, "label": label, "size": np.array([height, width], np.int32)}


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes by a random factor, log-uniform in `scale`, and takes a random window of at most `crop_size`.

    The window is cut before it is resized: bilinear for the image, nearest for the label. A resized image smaller than
    the crop is taken whole.
    """
    factor = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))
    boxes = [_window(n, crop, factor, rng) for n, crop in zip(label.shape[:2], crop_size, strict=True)]
    (top, bottom, height), (left, right, width) = boxes
    box = (left, top, right, bottom)
    resized_image = _resized(image, (width, height), Image.Resampling.BILINEAR, box)
    return resized_image, _resized(label, (width, height), Image.Resampling.NEAREST, box)


def flip(
    image: np.ndarray, label: np.ndarray, swaps: Sequence[np.ndarray] = (IDENTITY,)
) -> tuple[np.ndarray, np.ndarray]:
    """The mirror image, left for right; `swaps` are uint8 [256] for each head, what its ids are in it."""
    mirrored = label[:, ::-1]
    if all((swap == IDENTITY).all() for swap in swaps):
        return image[:, ::-1], mirrored
    parts = [mirrored] if label.ndim == 2 else np.moveaxis(mirrored, -1, 0)
    swapped = [swap[part] for swap, part in zip(swaps, parts, strict=True)]
    return image[:, ::-1], swapped[0] if label.ndim == 2 else np.stack(swapped, -1)


def mask(image: np.ndarray, label: np.ndarray, what: str) -> np.ndarray:
    """An image of which a part is the mean colour, to ask what the rest tells (PAMI section 6.2).

    `foreground` or `background` is replaced; `shape` leaves neither: the foreground is the mean, all else is black.
    What is void belongs to neither, and is always replaced.
    """
    foreground = (label != 0) & (label != VOID)
    replaced = {"foreground": label != 0, "background": ~foreground, "shape": foreground}[what]
    rest = np.zeros_like(image) if what == "shape" else image
    return np.where(replaced[..., None], np.array(MEAN_RGB, np.uint8), rest)


def jitter_colour(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation, each times a factor uniform in 1 -/+ `strength` (0..1), in this order."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32)  # in place from here on: new arrays would take twice the time
    x *= brightness
    mean = x.mean()
    x -= mean
    x *= contrast
    x += mean
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    x -= grey
    x *= saturation
    x += grey
    x += 0.5
    return np.clip(x, 0, 255, out=x).astype(np.uint8)


def _resized(
    array: np.ndarray, size: tuple[int, int], how: Image.Resampling, box: tuple[int, int, int, int]
) -> np.ndarray:
    """`box` of an array [H, W] or [H, W, C] as Pillow resizes it: RGB at once, other channels one by one."""
    if array.ndim == 2 or (array.shape[2] == 3 and array.dtype == np.uint8):
        return np.asarray(Image.fromarray(array).resize(size, how, box))
    channels = [np.ascontiguousarray(channel) for channel in np.moveaxis(array, -1, 0)]
    return np.stack([np.asarray(Image.fromarray(channel).resize(size, how, box)) for channel in channels], -1)


def _window(size: int, crop: int, factor: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Start and end of a random window along one side, and its length after resizing."""
    source = min(size, max(1, round(crop / factor)))
    start = int(rng.integers(0, size - source + 1))
    return start, start + source, min(crop, max(1, round(source * factor)))

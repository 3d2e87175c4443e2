"""Per-example transforms, NumPy in and out. Images are uint8 RGB [H, W, 3], labels uint8 [H, W] with 255 for void.

With further inputs images are uint8 or float32 [H, W, C]; of several heads labels are uint8 [H, W, heads].
"""

from collections.abc import Sequence

import cv2
import numpy as np

from fcn_jax.data.images import VOID

MEAN_RGB = (123, 117, 104)  # of VOC, as the network subtracts it
IDENTITY = np.arange(256, dtype=np.uint8)
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601


def pad(image: np.ndarray, label: np.ndarray, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """Image and label at the top left of a canvas (height, width), beyond them black and void; `size` int32 [2]."""
    height, width = label.shape[:2]
    below, beside = canvas[0] - height, canvas[1] - width
    if below < 0 or beside < 0:
        raise ValueError(f"an image of {height}x{width} does not fit a canvas of {canvas[0]}x{canvas[1]}")
    if below or beside:
        image, label = _on(canvas, image, 0), _on(canvas, label, VOID)
    return {"image": image, "label": label, "size": np.array([height, width], np.int32)}


def _on(canvas: tuple[int, int], array: np.ndarray, beyond: int) -> np.ndarray:
    height, width = array.shape[:2]
    whole = np.empty((*canvas, *array.shape[2:]), array.dtype)
    whole[:height, :width], whole[:height, width:], whole[height:] = array, beyond, beyond
    return whole


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes by a random factor, log-uniform in `scale`, and takes a random window of at most `crop_size`.

    The window is cut before it is resized: bilinear for the image, as multiscale.py scores it, nearest for the label.
    Below a half, whole multiples of pixels are averaged first. A resized image smaller than the crop is taken whole.
    """
    factor = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))
    boxes = [_window(n, crop, factor, rng) for n, crop in zip(label.shape[:2], crop_size, strict=True)]
    (top, bottom, height), (left, right, width) = boxes
    image, label = image[top:bottom, left:right], label[top:bottom, left:right]
    multiple = min((bottom - top) // height, (right - left) // width)
    if multiple > 1:
        image = _resized(image, ((right - left) // multiple, (bottom - top) // multiple), cv2.INTER_AREA)
    # OpenCV's exact forms round, and give the same on every machine. Its usual bilinear one is faster, but truncates.
    cropped = _resized(image, (width, height), cv2.INTER_LINEAR_EXACT)
    return cropped, _resized(label, (width, height), cv2.INTER_NEAREST_EXACT)


def flip(
    image: np.ndarray, label: np.ndarray, swaps: Sequence[np.ndarray] = (IDENTITY,)
) -> tuple[np.ndarray, np.ndarray]:
    """The mirror image, left for right; `swaps` are uint8 [256] for each head, what its ids are in it."""
    image, mirrored = (cv2.flip(array, 1).reshape(array.shape) for array in (image, label))
    if all((swap == IDENTITY).all() for swap in swaps):
        return image, mirrored
    parts = [mirrored] if label.ndim == 2 else np.moveaxis(mirrored, -1, 0)
    swapped = [swap[part] for swap, part in zip(swaps, parts, strict=True)]
    return image, swapped[0] if label.ndim == 2 else np.stack(swapped, -1)


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
    """Brightness, contrast and saturation, each times a factor uniform in 1 -/+ `strength` (0..1), in this order.

    Contrast is about the mean of the brightened image, saturation about the grey of each pixel. All three are one
    matrix, which OpenCV rounds to a thousandth: a value may be 1 off.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    image = np.ascontiguousarray(image, np.uint8)
    mean = sum(cv2.mean(image)[:3]) / 3
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * GREY)
    matrix[:, 3] = brightness * (1 - contrast) * mean
    return np.asarray(cv2.transform(image, matrix))


def _resized(array: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """An array [H, W] or [H, W, C] at another size (width, height); OpenCV averages at most four channels at once."""
    if array.ndim == 3 and array.shape[2] > 4:
        parts = [np.ascontiguousarray(array[..., i : i + 4]) for i in range(0, array.shape[2], 4)]
        return np.concatenate([_resized(part, size, how) for part in parts], -1)
    return cv2.resize(array, size, interpolation=how).reshape(*size[::-1], *array.shape[2:])


def _window(size: int, crop: int, factor: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Start and end of a random window along one side, and its length after resizing."""
    source = min(size, max(1, round(crop / factor)))
    start = int(rng.integers(0, size - source + 1))
    return start, start + source, min(crop, max(1, round(source * factor)))

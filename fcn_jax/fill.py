"""What is put in place of removed objects, in one image."""

import cv2
import numpy as np

FILLS = ("inpaint", "blur", "colour", "transparent")
_RADIUS = 5  # pixels around a hole that inpainting looks at
_BLUR = 0.04  # of the diagonal: the standard deviation
_LARGEST = 640  # pixels of the longer side at which holes are inpainted


def fill(image: np.ndarray, hole: np.ndarray, how: str, colour: tuple[int, int, int] = (128, 128, 128)) -> np.ndarray:
    """The image with its hole filled.

    Args:
      image: uint8 [H, W, 3].
      hole: bool [H, W], what is removed.
      how: `inpaint` continues what is around, `blur` makes it unrecognisable, `colour` paints over it, `transparent`
        makes it so.
      colour: RGB, for `colour`.

    Returns:
      uint8 [H, W, 3], or with `transparent` [H, W, 4], alpha last. Outside of the hole the image as it is.

    Raises:
      ValueError: another `how`.
    """
    if how not in FILLS:
        raise ValueError(f"fill {how!r}: choose from {', '.join(FILLS)}")
    if how == "transparent":
        return np.dstack([image, np.where(hole, 0, 255).astype(np.uint8)])
    if not hole.any():
        return image
    if how == "colour":
        return np.where(hole[..., None], np.array(colour, np.uint8), image)
    filled = _inpainted(image, hole) if how == "inpaint" else _blurred(image)
    return np.where(hole[..., None], filled, image)


def grown(hole: np.ndarray, pixels: float) -> np.ndarray:
    """bool [H, W]: the hole and all within a distance of so many pixels."""
    if pixels <= 0 or not hole.any():
        return hole
    return cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= pixels


def _inpainted(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Telea's fast marching, on a smaller image where it is large: its time grows with hole and radius."""
    factor = min(1.0, _LARGEST / max(hole.shape))
    if factor == 1:
        return np.asarray(cv2.inpaint(image, hole.astype(np.uint8), _RADIUS, cv2.INPAINT_TELEA))
    size = max(1, round(hole.shape[1] * factor)), max(1, round(hole.shape[0] * factor))
    # What touches the hole is part of it, so that nothing of the object is mixed into its surroundings.
    small_hole = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.inpaint(small, small_hole.astype(np.uint8), _RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(cv2.resize(small, hole.shape[::-1], interpolation=cv2.INTER_LINEAR))


def _blurred(image: np.ndarray) -> np.ndarray:
    sigma = max(1.0, _BLUR * float(np.hypot(*image.shape[:2])))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))

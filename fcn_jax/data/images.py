"""Image files to arrays and back, strictly: one decoder for preparing, training and prediction."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

VOID = 255


class CorruptError(ValueError):
    """Data that cannot be decoded. `what` says which and why, the message also what to do about it."""

    def __init__(self, what: str, remedy: str = "replace or remove the file"):
        super().__init__(f"{what}: {remedy}")
        self.what = what


# What Pillow raises for files that it cannot read whole.
_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(data: bytes, name: str, *, upright: bool = False) -> np.ndarray:
    """An encoded image as uint8 RGB [H, W, 3]; CorruptError with `name` if it is corrupt, truncated or of 16 bits.

    `upright` turns it as its EXIF orientation says, as viewers do; data sets are annotated as stored.
    """
    try:
        with _open(data) as image:
            mode = image.mode
            rgb = np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    except _UNDECODABLE as error:
        raise _undecodable("image", name, error) from None
    if mode.startswith(("I", "F")):  # Pillow would clip them at 255
        raise CorruptError(f"image {name!r} has values of more than 8 bits (mode {mode})", "convert it to 8 bits")
    return rgb


def decode_label(data: bytes, name: str) -> np.ndarray:
    """An encoded label as uint8 [H, W] of class ids: a palette PNG gives its indices, not its colours.

    CorruptError with `name` if it cannot be decoded, another ValueError if it can and holds no class ids.
    """
    try:
        with _open(data) as image:
            kind, mode, label = image.format, image.mode, np.asarray(image)
    except _UNDECODABLE as error:
        raise _undecodable("label", name, error) from None
    if kind in ("JPEG", "MPO"):
        raise ValueError(f"label {name!r} is a JPEG, whose values are not exact: save class ids as PNG")
    if mode not in ("P", "L"):
        raise ValueError(f"label {name!r} has mode {mode}: class ids need an 8-bit palette or grey image (P or L)")
    return label


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # a PNG's checksums, which decoding does not compare; an image cannot be used after it
    return Image.open(io.BytesIO(data))


def _undecodable(kind: str, name: str, error: Exception) -> CorruptError:
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else error
    return CorruptError(f"{kind} {name!r} cannot be decoded ({reason})")


def encode_png(label: np.ndarray) -> bytes:
    """A label uint8 [H, W] as a grey PNG, the one form that every decoder reads as class ids."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "png")
    return buffer.getvalue()

"""Images that are too large to be decoded whole: read row by row, as tiles ask for them, by libvips.

libvips (extra `huge`, LGPL, in a wheel) decodes PNG, TIFF, JPEG and others from top to bottom in little memory; Pillow
decodes them whole, in 4 bytes a pixel.
"""

import os
import pathlib

import numpy as np
from PIL import Image

from fcn_jax.data import images

LARGE = 2**26  # pixels from which on an image is read by rows
_PREVIEW = 4096  # pixels a side of what is kept to be shown
_EXIF_UPRIGHT = 1


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """Height and width of an image by its header alone; (0, 0) where it has none that is known."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            return image.height, image.width
    except Exception:  # what cannot be decoded says so when it is
        return 0, 0
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class Rows:
    """An image as an array uint8 [H, W, 3] whose parts are read from top to bottom: rows that were passed are gone.

    Attributes:
      preview: uint8 [h, w, 3], every n-th pixel of what was read so far, at most 4,096 a side.
    """

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the file.

        Raises:
          ValueError: pyvips is not installed, the file cannot be decoded, or EXIF turns it.
        """
        try:
            import pyvips
        except (ImportError, OSError):
            raise ValueError(
                f"{str(path)!r} has more than {LARGE} pixels, which are read by libvips: pip install 'fcn_jax[huge]',"
                " or shrink it by --max_side without --tiles"
            ) from None
        self._path, self._errors = str(path), pyvips.Error
        try:
            image = pyvips.Image.new_from_file(self._path, access="sequential", fail_on="error")
            if image.get_typeof("orientation") and image.get("orientation") != _EXIF_UPRIGHT:
                raise ValueError(f"{self._path!r} is turned by EXIF ({image.get('orientation')}): save it upright")
            if image.format != "uchar":
                raise images.CorruptError(f"image {self._path!r} has values of {image.format}", "convert it to 8 bits")
            image = image.colourspace("srgb") if image.interpretation != "srgb" else image
            image = image.flatten() if image.hasalpha() else image
            self._image = image if image.bands == 3 else image.bandjoin([image] * 2)
            self._region = pyvips.Region.new(self._image)
        except pyvips.Error as error:
            raise self._corrupt(error) from None
        self.shape = (self._image.height, self._image.width, 3)
        self._first, self._rows = 0, np.empty((0, *self.shape[1:]), np.uint8)
        self._step = max(1, -(-max(self.shape) // _PREVIEW))
        self.preview = np.zeros((-(-self.shape[0] // self._step), -(-self.shape[1] // self._step), 3), np.uint8)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Rows and columns, which begin no higher than those that were asked for before."""
        rows, columns = part
        if rows.start < self._first:
            raise IndexError(f"row {rows.start} is gone: the first left is {self._first}")
        last = self._first + len(self._rows)
        if rows.stop > last:
            new = self._read(last, rows.stop)
            kept = self._rows[rows.start - self._first :]
            self._first, self._rows = rows.start, np.concatenate([kept, new])
        return self._rows[rows.start - self._first : rows.stop - self._first, columns]

    def _read(self, start: int, stop: int) -> np.ndarray:
        width = self.shape[1]
        try:
            data = self._region.fetch(0, start, width, stop - start)
        except self._errors as error:
            raise self._corrupt(error) from None
        rows: np.ndarray = np.frombuffer(data, np.uint8).reshape(stop - start, width, 3)
        first = -(-start // self._step)
        shown = rows[first * self._step - start :: self._step, :: self._step]
        self.preview[first : first + len(shown)] = shown
        return rows

    def _corrupt(self, error: Exception) -> images.CorruptError:
        reason = " ".join(str(error).split())
        return images.CorruptError(f"image {self._path!r} cannot be decoded ({reason[:120]})")

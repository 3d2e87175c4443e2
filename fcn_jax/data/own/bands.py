"""Images of other than three channels of 8 bits: which they are, and what brings their values to those of colours."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax import visualize
from fcn_jax.data import images

_SAMPLE = 30  # images
_BRIGHT = 99.5  # percentile that becomes 255
_PIXELS = 20_000  # of each image


def picture(data: bytes, name: str) -> np.ndarray:
    """What a person is shown of an encoded image of any kind: uint8 [H, W, 3]."""
    try:
        wide = images.bands_of(data)
    except Exception:  # decode_image says what is wrong with it
        wide = 0
    return visualize.visible(images.decode_bands(data, name)) if wide else images.decode_image(data, name)


class Bands(NamedTuple):
    """The bands of a folder's images.

    Attributes:
      scale: what values are multiplied by, so that the bright ones are 255.
      mean: of each band of the scaled values.
    """

    scale: float
    mean: tuple[float, ...]


def look_at(paths: Sequence[pathlib.Path]) -> Bands | None:
    """Those of some images, from all parts of the list; None for pictures in grey or colour of 8 bits.

    Raises:
      ValueError: images have different numbers of bands.
    """
    if not paths or not images.bands_of(images.read_file(paths[0])):
        return None
    chosen = paths[:: max(1, -(-len(paths) // _SAMPLE))]
    found = [images.decode_bands(images.read_file(path), str(path)) for path in chosen]
    for path, values in zip(chosen, found, strict=True):
        if values.shape[2] != found[0].shape[2]:
            raise ValueError(
                f"{path} has {values.shape[2]} channels and {chosen[0]} has {found[0].shape[2]}: all images of a folder"
                " need as many"
            )
    flat = [values.reshape(-1, values.shape[2]) for values in found]
    pixels = np.concatenate([rows[:: max(1, len(rows) // _PIXELS)] for rows in flat])
    bright = float(np.percentile(np.abs(pixels), _BRIGHT)) or 1.0
    scale = float(np.float32(255 / bright))
    return Bands(scale, tuple((pixels.mean(0, dtype=np.float64) * scale).round(3).tolist()))

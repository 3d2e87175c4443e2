"""Pictures of segmentations: colours, overlays and panels. uint8 in and out."""

import os
from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import Image, ImageDraw

Palette = Sequence[tuple[int, int, int]]
WHITE = (255, 255, 255)
GAP = 4
ROWS = 256  # that are blended at once: real numbers take eight times the memory


def colorize(label: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids uint8 [H, W] as RGB [H, W, 3]; what is no class, such as void, is white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    return table[label]


def visible(image: np.ndarray) -> np.ndarray:
    """What can be shown of an image [H, W, C] of any values: uint8 [H, W, 3], its first three channels, or its first.

    What is no uint8 is stretched from its first to its ninety-ninth percentile.
    """
    part = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if part.dtype == np.uint8:
        return part
    low, high = np.percentile(part, (1, 99))
    stretched: np.ndarray = np.clip(255 * (part - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    return stretched


def overlay(
    image: np.ndarray, label: np.ndarray, palette: Palette, alpha: float = 0.5, shown: np.ndarray | None = None
) -> np.ndarray:
    """The image [H, W, 3] with the colours of classes laid over it.

    `shown` are bool [256], by id; by default all classes but the first (the background), and void.
    """
    table = np.arange(256) > 0 if shown is None else shown
    result = np.array(image)
    for rows in np.array_split(np.arange(len(label)), -(-len(label) // ROWS)):
        part = np.s_[rows[0] : rows[-1] + 1]
        blended = (1 - alpha) * image[part] + alpha * colorize(label[part], palette)
        result[part] = np.where(table[label[part]][..., None], blended.astype(np.uint8), image[part])
    return result


def errors(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """RGB [H, W, 3]: wrong pixels red, right ones grey, unlabelled ones white."""
    picture = np.full((*truth.shape, 3), 200, np.uint8)
    picture[truth != prediction] = (200, 0, 0)
    picture[truth >= num_classes] = WHITE
    return picture


def panel(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, names: Sequence[str], palette: Palette
) -> np.ndarray:
    """Image, truth, prediction and errors side by side, with the colours of the classes that occur underneath."""
    tiles = [image, colorize(truth, palette), colorize(prediction, palette), errors(truth, prediction, len(names))]
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    present = [i for i in range(len(names)) if (truth == i).any() or (prediction == i).any()]
    return np.concatenate([row, legend([names[i] for i in present], [palette[i] for i in present], row.shape[1])])


def legend(names: Sequence[str], palette: Palette, width: int) -> np.ndarray:
    """Names beside squares of their colours, RGB, in as many lines as the width needs."""
    line, square = 16, 10
    positions, x, y = [], GAP, 0
    for name in names:
        needed = square + 3 * GAP + 6 * len(name)
        if x > GAP and x + needed > width:
            x, y = GAP, y + line
        positions.append((x, y))
        x += needed
    picture = Image.new("RGB", (width, y + line), WHITE)
    draw = ImageDraw.Draw(picture)
    for name, colour, (left, top) in zip(names, palette, positions, strict=True):
        draw.rectangle((left, top + 3, left + square, top + 3 + square), fill=colour)
        draw.text((left + square + GAP, top + 2), name, fill=(0, 0, 0))
    return np.asarray(picture)


def save_mask(path: str | os.PathLike[str] | IO[bytes], label: np.ndarray, palette: Palette) -> None:
    """Writes class ids uint8 [H, W] as a palette PNG: the ids are the pixels' values, the colours are for the eye."""
    picture = Image.fromarray(label)
    picture.putpalette(colorize(np.arange(256, dtype=np.uint8), palette).ravel().tolist())
    picture.save(path, "png", bits=8)  # fewer bits would cut ids beyond the palette, such as void

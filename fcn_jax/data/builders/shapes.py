"""`shapes`: a dataset that draws itself, so that everything runs with nothing downloaded.

Five kinds of figure, each with its own texture, on a noisy gradient; colours are random and say nothing of the class.
Images differ in size; a void border separates figure and ground as in PASCAL VOC. Image i of a split depends on the
split and i alone.
"""

import io
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fcn_jax.data.dataset import Dataset, Example, Labels, voc_palette
from fcn_jax.data.images import VOID

MIN_SIDE, MAX_SIDE = 64, 96
NUM_EXAMPLES = {"train": 2048, "val": 128, "tiny": 8}


CLASS_NAMES = ("background", "disc", "square", "triangle", "ring", "cross")


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: train (2048 images), val (128), tiny (8, for tests)."""
    return [Example(f"{split}_{i:04d}") for i in range(NUM_EXAMPLES[split])]


def draw_example(name: str) -> tuple[bytes, np.ndarray]:
    """The PNG and the label of an id."""
    image, label = draw(np.random.default_rng(zlib.crc32(name.encode())))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue(), label


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image uint8 [H, W, 3] and its label uint8 [H, W], sides 64..96."""
    height, width = (int(n) for n in rng.integers(MIN_SIDE, MAX_SIDE + 1, 2))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ground, slope = rng.uniform(40, 215, 3), rng.uniform(-0.6, 0.6, (2, 3))
    image = ground + (y - height / 2)[..., None] * slope[0] + (x - width / 2)[..., None] * slope[1]
    label = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 4)):
        kind = int(rng.integers(1, len(CLASS_NAMES)))
        radius = rng.uniform(11, 20)
        centre_y, centre_x = rng.uniform(8, height - 8), rng.uniform(8, width - 8)
        distance = _distance(kind, y - centre_y, x - centre_x, radius)
        inside = distance < 0
        colours = _contrasting_pair(rng)
        image[inside] = colours[_texture(kind, y, x, int(rng.integers(0, 8)))[inside].astype(int)]
        label[np.abs(distance) < 1] = VOID
        label[distance <= -1] = kind
    image += rng.normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _distance(kind: int, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """About the signed distance in pixels to the outline of a figure, negative inside."""
    if kind == 1:  # disc
        return np.hypot(y, x) - radius
    if kind == 2:  # square
        return np.maximum(abs(y), abs(x)) - 0.9 * radius
    if kind == 3:  # triangle, point upwards
        return np.maximum(y - 0.7 * radius, 0.87 * abs(x) - 0.5 * (y + radius))
    if kind == 4:  # ring
        return abs(np.hypot(y, x) - 0.75 * radius) - 0.35 * radius
    arm = 0.38 * radius  # cross
    return np.maximum(np.minimum(abs(y), abs(x)) - arm, np.maximum(abs(y), abs(x)) - radius)


def _texture(kind: int, y: np.ndarray, x: np.ndarray, phase: int) -> np.ndarray:
    """Which of a figure's two colours each pixel takes, bool [H, W]."""
    y, x = y + phase, x + phase
    if kind == 1:
        return y % 6 < 3  # horizontal stripes
    if kind == 2:
        return (y % 6 < 3) ^ (x % 6 < 3)  # checks
    if kind == 3:
        return x % 6 < 3  # vertical stripes
    if kind == 4:
        return (y % 5 < 2) & (x % 5 < 2)  # dots
    return (x + y) % 6 < 3  # diagonal stripes


def _contrasting_pair(rng: np.random.Generator) -> np.ndarray:
    """Two colours float [2, 3] that differ by at least 90 in brightness."""
    while True:
        colours = rng.uniform(20, 235, (2, 3))
        if abs(colours[0].mean() - colours[1].mean()) >= 90:
            return colours


DATASET = Dataset(
    name="shapes",
    labels=(Labels(CLASS_NAMES, voc_palette(6)),),
    splits=tuple(NUM_EXAMPLES),
    list_examples=list_examples,
    draw=draw_example,
)

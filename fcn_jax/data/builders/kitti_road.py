"""`kitti_road`: road or not, seen from a car.

`raw_dir` holds data_road as the archive unpacks: training/image_2/um_000000.png and training/gt_image_2, where
um_road_000000.png is the label; um_lane_000000.png is of another task. The test images have no public annotation.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from fcn_jax.data import images
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, visible


def read_label(path: pathlib.Path) -> np.ndarray:
    """The colours of an RGB label as one number a pixel, 0xRRGGBB, int64 [H, W]."""
    rgb = images.decode_image(path.read_bytes(), str(path)).astype(np.int64)
    return rgb @ np.array([0x10000, 0x100, 1])


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Split: train (289 images), by name; a part of it, such as 'train[80%:]', is for evaluation."""
    folder = require_folder(raw_dir, "data_road/training/image_2")
    labels = require_folder(raw_dir, "data_road/training/gt_image_2")
    paths = visible(folder, (".png",))
    return check_files([Example(path.stem, path, labels / path.name.replace("_", "_road_", 1)) for path in paths])


DATASET = Dataset(
    name="kitti_road",
    labels=(
        # Red is what is no road, magenta the road, black another road, which the benchmark does not score.
        Labels(
            ("not road", "road"),
            ((255, 0, 0), (255, 0, 255)),
            read=read_label,
            ids={0xFF0000: 0, 0xFF00FF: 1, 0x000000: images.VOID},
        ),
    ),
    splits=("train",),
    list_examples=list_examples,
    terms="register at the KITTI site, unpack data_road.zip",
)

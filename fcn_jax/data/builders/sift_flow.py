"""`sift_flow`: SIFT Flow outdoors, 256x256, of which each pixel has a semantic and a geometric class.

`raw_dir` holds SiftFlowDataset with Images, SemanticLabels and GeoLabels, and in it the lists trainval.txt and test.txt
of github.com/shelhamer/fcn.berkeleyvision.org, data/sift-flow. Mean and labels: siftflow_layers.py there.
"""

import functools
import pathlib
from collections.abc import Sequence

from fcn_jax.data import images, lists
from fcn_jax.data.builders.nyudv2 import read_mat
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, voc_palette

SEMANTIC = (
    "awning",
    "balcony",
    "bird",
    "boat",
    "bridge",
    "building",
    "bus",
    "car",
    "cow",
    "crosswalk",
    "desert",
    "door",
    "fence",
    "field",
    "grass",
    "moon",
    "mountain",
    "person",
    "plant",
    "pole",
    "river",
    "road",
    "rock",
    "sand",
    "sea",
    "sidewalk",
    "sign",
    "sky",
    "staircase",
    "streetlight",
    "sun",
    "tree",
    "window",
)
GEOMETRIC = ("sky", "horizontal", "vertical")
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"

read_label = functools.partial(read_mat, variable="S")


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: trainval (2488 images, those of its list, which leaves out two without annotation), test (200)."""
    folder = require_folder(raw_dir, "SiftFlowDataset")
    ids = [name for _, name in lists.read_lines(folder / f"{split}.txt")]
    return check_files(
        [
            Example(
                i,
                folder / "Images" / SCENES / f"{i}.jpg",
                folder / "SemanticLabels" / SCENES / f"{i}.mat",
                {"geo": folder / "GeoLabels" / SCENES / f"{i}.mat"},
            )
            for i in ids
        ]
    )


DATASET = Dataset(
    name="sift_flow",
    labels=(
        Labels(
            SEMANTIC,
            voc_palette(33),
            name="sem",
            read=read_label,
            ids={0: images.VOID, **{k: k - 1 for k in range(1, 34)}},
            unscored=("cow", "desert", "moon"),  # none in test
        ),
        Labels(
            GEOMETRIC,
            ((70, 130, 180), (128, 64, 128), (107, 142, 35)),
            name="geo",
            read=read_label,
            ids={-1: images.VOID, 0: images.VOID, 1: 0, 2: 1, 3: 2},
        ),
    ),
    splits=("trainval", "test"),
    list_examples=list_examples,
    inputs={"colour": (114.578, 115.294, 108.353)},
    terms="unpack SiftFlowDataset.zip (data/sift-flow/README.md of the paper's release) with its lists beside it",
)

"""`cityscapes`: streets of 50 cities, 19 classes, 1024x2048.

`raw_dir` holds leftImg8bit and gtFine, as the archives of the same names unpack. Classes and colours:
github.com/mcordts/cityscapesScripts, helpers/labels.py.
"""

import pathlib
from collections.abc import Sequence

from fcn_jax.data import images
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder

# Class: labelId and colour.
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: train (2975 images), val (500), by name; test has no public annotation."""
    folder = require_folder(raw_dir, f"leftImg8bit/{split}")
    labels = require_folder(raw_dir, f"gtFine/{split}")
    found = [path for path in sorted(folder.glob(f"*/*{_IMAGE}")) if not path.name.startswith(".")]
    pairs = [(path.name.removesuffix(_IMAGE), path) for path in found]
    return check_files([Example(name, path, labels / path.parent.name / f"{name}{_LABEL}") for name, path in pairs])


DATASET = Dataset(
    name="cityscapes",
    labels=(
        Labels(
            tuple(CLASSES),
            tuple(colour for _, colour in CLASSES.values()),
            ids={number: index for index, (number, _) in enumerate(CLASSES.values())},
            rest=images.VOID,
        ),
    ),
    splits=("train", "val"),
    list_examples=list_examples,
    terms="register at the Cityscapes site, unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
)

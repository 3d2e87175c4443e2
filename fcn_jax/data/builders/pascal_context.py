"""`pascal_context` and `pascal_context_33`: whole scenes of VOC 2010, by 59 or 33 classes and all else as background.

`raw_dir` holds VOCdevkit/VOC2010 (JPEGImages, ImageSets/Main) and pascal-context/trainval with a .mat file an image.
Those have 459 raw classes, of which the 59 are found by name (pascalcontext_layers.py of the paper's release).
"""

import functools
import pathlib
from collections.abc import Sequence

from fcn_jax.data import lists
from fcn_jax.data.builders.nyudv2 import read_mat
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, voc_palette

# Number among the 459 raw classes: data/pascal-context/classes-400.txt and classes-59.txt of the release, in which
# diningtable, bedcloth and clothes are table, bedclothes and cloth.
RAW_IDS = {
    **{"aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34, "bus": 45, "car": 59, "cat": 65},
    **{"chair": 72, "cow": 98, "diningtable": 397, "dog": 113, "horse": 207, "motorbike": 258, "person": 284},
    **{"pottedplant": 308, "sheep": 347, "sofa": 368, "train": 416, "tvmonitor": 427, "bag": 9, "bed": 18},
    **{"bench": 22, "book": 33, "building": 44, "cabinet": 46, "ceiling": 68, "clothes": 80, "computer": 85},
    **{"cup": 104, "door": 115, "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189},
    **{"keyboard": 220, "light": 232, "mountain": 259, "mouse": 260, "curtain": 105, "platform": 296, "sign": 355},
    **{"plate": 295, "road": 324, "rock": 326, "shelves": 349, "sidewalk": 354, "sky": 360, "snow": 366},
    **{"bedcloth": 19, "track": 415, "tree": 420, "truck": 424, "wall": 440, "water": 445, "window": 454, "wood": 458},
}
# The 20 objects of VOC and 13 of the context, as the file 33_labels.txt beside the annotation has them; recalled.
CONTEXT_33 = (
    "sky",
    "grass",
    "ground",
    "road",
    "building",
    "tree",
    "water",
    "mountain",
    "wall",
    "floor",
    "track",
    "keyboard",
    "ceiling",
)
NAMES_33 = (*list(RAW_IDS)[:20], *CONTEXT_33)


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: train (4998 images), val (5105)."""
    voc = require_folder(raw_dir, "VOCdevkit/VOC2010")
    labels = require_folder(raw_dir, "pascal-context/trainval")
    ids = lists.read_ids(voc / "ImageSets" / "Main" / f"{split}.txt", voc / "JPEGImages")
    return check_files([Example(i, voc / "JPEGImages" / f"{i}.jpg", labels / f"{i}.mat") for i in ids])


def _dataset(name: str, classes: Sequence[str]) -> Dataset:
    """What is none of the classes is background, which is trained and scored as they are."""
    ids = {RAW_IDS[class_name]: index for index, class_name in enumerate(classes, 1)}
    return Dataset(
        name=name,
        labels=(
            Labels(
                ("background", *classes),
                voc_palette(len(classes) + 1),
                read=functools.partial(read_mat, variable="LabelMap"),
                ids=ids,
                rest=0,
            ),
        ),
        splits=("train", "val"),
        list_examples=list_examples,
        terms="get VOC 2010 and the annotation of the PASCAL-Context site into VOCdevkit/VOC2010 and pascal-context",
    )


DATASET = _dataset("pascal_context", tuple(RAW_IDS))
DATASET_33 = _dataset("pascal_context_33", NAMES_33)

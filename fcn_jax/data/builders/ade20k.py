"""`ade20k`: the scene parsing benchmark of ADE20K, 150 classes.

`raw_dir` holds ADEChallengeData2016 with images and annotations. Colours are ours.
"""

import pathlib
from collections.abc import Sequence

from fcn_jax.data import images, lists
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, visible, voc_palette

CLASS_NAMES = tuple(name for _, name in lists.read_lines(pathlib.Path(__file__).with_name("ade20k.txt")))
FOLDERS = {"train": "training", "val": "validation"}


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: train (20,210 images), val (2,000), by name."""
    folder = require_folder(raw_dir, f"ADEChallengeData2016/images/{FOLDERS[split]}")
    labels = require_folder(raw_dir, f"ADEChallengeData2016/annotations/{FOLDERS[split]}")
    return check_files([Example(path.stem, path, labels / f"{path.stem}.png") for path in visible(folder, (".jpg",))])


DATASET = Dataset(
    name="ade20k",
    labels=(Labels(CLASS_NAMES, voc_palette(150), ids={0: images.VOID, **{k: k - 1 for k in range(1, 151)}}),),
    splits=tuple(FOLDERS),
    list_examples=list_examples,
    terms="unpack ADEChallengeData2016.zip of the MIT Scene Parsing Benchmark",
)

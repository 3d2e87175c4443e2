"""`nyudv2`: NYU Depth v2, 40 classes indoors, with colour, depth and HHA, in the form of the paper's release.

`raw_dir` holds the folder nyud: data/images, data/depth, data/hha (img_N.png), segmentation/img_N.mat, and the lists of
github.com/shelhamer/fcn.berkeleyvision.org, data/nyud. Means and labels: nyud_layers.py there.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from fcn_jax.data import images, lists, mat_file
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, voc_palette

CLASS_NAMES = (
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor_mat",
    "clothes",
    "ceiling",
    "books",
    "refrigerator",
    "television",
    "paper",
    "towel",
    "shower_curtain",
    "box",
    "whiteboard",
    "person",
    "night_stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "other_structure",
    "other_furniture",
    "other_prop",
)


def read_label(path: pathlib.Path) -> np.ndarray:
    """`segmentation` of the .mat file at `path`: integers [H, W], 0 void, 1 to 40 the classes."""
    return read_mat(path, "segmentation")


def read_mat(path: pathlib.Path, variable: str) -> np.ndarray:
    """A variable of whole numbers [H, W]; CorruptError or ValueError for anything else."""
    try:
        label = mat_file.read_variable(path.read_bytes(), variable)
    except ValueError as error:
        what = f"label {str(path)!r} cannot be read ({error})"
        raise images.CorruptError(what, "replace the file or take it from the list") from None
    whole = label.astype(np.int64)
    if label.ndim != 2 or (whole != label).any():
        raise ValueError(
            f"label {str(path)!r} is {label.dtype} {list(label.shape)}: {variable} is whole numbers [H, W]"
        )
    return whole


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: train (381 images), val (414), trainval (795), test (654)."""
    folder = require_folder(raw_dir, "nyud")
    parts = ("train", "val") if split == "trainval" else (split,)
    ids = [name for part in parts for _, name in lists.read_lines(folder / f"{part}.txt")]
    data = folder / "data"
    return check_files(
        [
            Example(
                f"img_{i}",
                data / "images" / f"img_{i}.png",
                folder / "segmentation" / f"img_{i}.mat",
                {kind: data / kind / f"img_{i}.png" for kind in ("depth", "hha")},
            )
            for i in ids
        ]
    )


DATASET = Dataset(
    name="nyudv2",
    labels=(
        Labels(
            CLASS_NAMES,
            voc_palette(40),
            read=read_label,
            ids={0: images.VOID, **{k: k - 1 for k in range(1, 41)}},
        ),
    ),
    splits=("train", "val", "trainval", "test"),
    list_examples=list_examples,
    inputs={
        "colour": (116.190, 97.203, 92.318),
        "depth": (7.844,),
        "hha": (132.431, 94.076, 118.477),
    },
    terms="unpack nyud.tar.gz (data/nyud/README.md of the paper's release) with its lists in a folder nyud",
)

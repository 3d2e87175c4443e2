"""`voc_segmentation`: PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD), which annotates more of VOC's images.

`raw_dir` holds VOCdevkit/VOC2012 (the folder that VOCtrainval_11-May-2012.tar unpacks to) and, for the splits that use
SBD, benchmark_RELEASE/dataset (from SBD's benchmark.tgz).
"""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from fcn_jax.data import images, lists, mat_file
from fcn_jax.data.builders import base

SPLITS = ("train", "val", "trainval", "seg11valid", "sbd_train", "train_aug")


class VocSegmentation(base.SegmentationBuilder):
    """Splits, with the number of images of the original data:

    train (1464), val (1449), trainval (2913): VOC 2012's own lists and annotations.
    seg11valid (736): VOC 2011 val less SBD train, the evaluation set of the FCN papers.
    sbd_train (8498): SBD's train list and annotations, the training set of the FCN papers. It shares images with VOC
      2012 val, though none with seg11valid.
    train_aug (10582): VOC 2012 train (1464) and all of SBD that is not in VOC 2012 val (6820 from SBD train and 2298
      from SBD val), as used since DeepLab; seg11valid lies within VOC 2012 val and so is left out too. Each image is
      there once, by id, and takes VOC's annotation before SBD's, which has no void border.
    """

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
    PALETTE = base.voc_palette(21)

    @classmethod
    def list_examples(cls, split: str, raw_dir: pathlib.Path) -> Sequence[base.Example]:
        if split not in SPLITS:
            raise ValueError(f"voc_segmentation has no split {split!r}: choose from {', '.join(SPLITS)}")
        return base.check_files(_list_examples(split, raw_dir))

    def read_label(self, path: pathlib.Path) -> np.ndarray:
        return read_mat_label(path) if path.suffix == ".mat" else super().read_label(path)


def seg11valid_ids() -> list[str]:
    """The ids of data/pascal/seg11valid.txt in github.com/shelhamer/fcn.berkeleyvision.org at commit 1305c73."""
    return [name for _, name in lists.read_lines(pathlib.Path(__file__).with_name("seg11valid.txt"))]


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


def _list_examples(split: str, raw_dir: pathlib.Path) -> list[base.Example]:
    if split == "sbd_train":
        return _sbd_examples(raw_dir, _sbd_ids(raw_dir, "train"))
    if split == "train_aug":
        return _train_aug(raw_dir)
    return _voc_examples(raw_dir, seg11valid_ids() if split == "seg11valid" else _voc_ids(raw_dir, split))


def _train_aug(raw_dir: pathlib.Path) -> list[base.Example]:
    held_out = {*_voc_ids(raw_dir, "val"), *seg11valid_ids()}
    voc = {*_voc_ids(raw_dir, "train")} - held_out
    sbd = {*_sbd_ids(raw_dir, "train"), *_sbd_ids(raw_dir, "val")} - held_out - voc
    return sorted(_voc_examples(raw_dir, voc) + _sbd_examples(raw_dir, sbd), key=lambda example: example.id)


def _voc_ids(raw_dir: pathlib.Path, split: str) -> list[str]:
    folder = _voc_folder(raw_dir)
    return lists.read_ids(folder / "ImageSets" / "Segmentation" / f"{split}.txt", folder / "JPEGImages")


def _sbd_ids(raw_dir: pathlib.Path, split: str) -> list[str]:
    folder = _sbd_folder(raw_dir)
    return lists.read_ids(folder / f"{split}.txt", folder / "img")


def _voc_examples(raw_dir: pathlib.Path, ids: Iterable[str]) -> list[base.Example]:
    folder = _voc_folder(raw_dir)
    return [base.Example(i, folder / "JPEGImages" / f"{i}.jpg", folder / "SegmentationClass" / f"{i}.png") for i in ids]


def _sbd_examples(raw_dir: pathlib.Path, ids: Iterable[str]) -> list[base.Example]:
    folder = _sbd_folder(raw_dir)
    return [base.Example(i, folder / "img" / f"{i}.jpg", folder / "cls" / f"{i}.mat") for i in ids]


def _voc_folder(raw_dir: pathlib.Path) -> pathlib.Path:
    return base.require_folder(raw_dir, "VOCdevkit/VOC2012")


def _sbd_folder(raw_dir: pathlib.Path) -> pathlib.Path:
    return base.require_folder(raw_dir, "benchmark_RELEASE/dataset")

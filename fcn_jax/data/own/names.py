"""What the names of folders and files say: which are images, which are annotations, and of which split."""

import dataclasses
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from fcn_jax.data import images

# Words of names, in lower case; of a folder 'gt_image_2' the earliest of these lines that has one of its words counts.
ROLES = {
    "left out": ("object", "instance", "instances", "color", "colour", "overlay", "visualization", "vis", "preview"),
    "label": (
        *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "anno", "ann", "gt", "truth"),
        *("groundtruth", "target", "targets", "segmentation", "segmentations", "segmentationclass", "seg", "segs"),
        *("segmentationclassaug", "segmentationclassraw", "gtfine", "manual", "manual1", "trimap", "trimaps", "json"),
        *("labelids", "labeltrainids", "polygons", "semantic"),
    ),
    "image": (
        *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "rgb", "input"),
        *("inputs", "leftimg8bit", "raw", "original", "originals", "sat", "frame", "frames"),
    ),
}
# Where several folders are of labels and one is called so, it shows where there is anything to label.
REGION = ("fov", "roi", "region", "valid_area", "mask", "masks")
SPLITS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
ANNOTATIONS = (".json",)
# Words at the end of a name that say as much in a folder of images, if the file can hold ids.
_PLAIN = {"mask", "masks", "label", "labels", "annotation", "gt", "groundtruth", "seg", "segmentation"}
_LOSSLESS = (".png", ".gif", ".bmp", ".tif", ".tiff")
SHARE = 0.2  # of the images that become val where nothing says which do
_WORDS = {word: role for role, words in reversed(ROLES.items()) for word in words}
_TAILS = {**_WORDS, "l": "label", "p": "label"}  # CamVid's 0001TP_006690_L.png
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_ENDS = ("images", "masks", "labels", "annotations", "segmentations", "groundtruth")
_MOST_FILES = 1_000_000
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the folder, and what its name says.

    Attributes:
      path: it.
      split: train, val, test or ''.
      role: image, label or ''; left out.
      group: the folders on the way that say neither, and those of its name's words.
      stem: its name without suffix.
      key: the stem without the words that say split or role.
      within: the folder of labels, as it is called, that it lies in; '' without one.
    """

    path: pathlib.Path
    split: str
    role: str
    group: tuple[str, ...]
    stem: str
    key: str
    within: str


def scan(root: pathlib.Path) -> list[File]:
    """All files below a folder that may be images or annotations, by path; hidden ones and __MACOSX are none.

    Raises:
      FileNotFoundError: there is no such folder, or nothing in it.
      ValueError: there are more than a million files.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}: correct config.data.raw_dir")
    suffixes = {*images.suffixes(), *ANNOTATIONS, ".npy"}
    found = []
    for path in _walk(root):
        if path.suffix.lower() in suffixes:
            found.append(_read_name(path, path.relative_to(root)))
            if len(found) > _MOST_FILES:
                raise ValueError(f"{root} has more than {_MOST_FILES} files: name a folder further down")
    if not found:
        raise FileNotFoundError(f"{str(root)!r} has no image: files ending in {', '.join(sorted(suffixes))} are taken")
    return found


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        yield from (pathlib.Path(folder, name) for name in sorted(names) if not name.startswith("."))


def words_of(name: str) -> list[str]:
    """'trainAnnot_v2' -> ['train', 'annot', 'v2']."""
    parts = re.split(r"[\W_]+", unicodedata.normalize("NFC", name))
    return [
        word.lower() for part in parts for word in ([part] if part.lower() in _WORDS else _CAMEL.split(part)) if word
    ]


def _of_folder(name: str) -> tuple[str, str, bool]:
    """(split, role, whether it says nothing else) of a folder; 'trainannot' has both in one word."""
    whole = re.sub(r"[\W_]+", "", name).lower()
    words = [*words_of(name), whole]
    for split, prefix in ((s, w) for s, names in SPLITS.items() for w in names):
        if whole.startswith(prefix) and whole[len(prefix) :] in _WORDS:
            words += [prefix, whole[len(prefix) :]]
            return split, _role(words), True
    split = next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), "")
    role = _role(word for word in words if word not in _TAILS or word in _WORDS)
    return split, role, bool(split or role)


def _role(words: Iterable[str]) -> str:
    found = {role for role in map(_role_of, words) if role}
    return next((role for role in ROLES if role in found), "")


def _role_of(word: str) -> str:
    """Of a word, or of one that ends with it: 'pngimages'."""
    if word in _TAILS:
        return _TAILS[word]
    return next((_WORDS[end] for end in _ENDS if word.endswith(end)), "")


def _read_name(path: pathlib.Path, relative: pathlib.Path) -> File:
    split = role = within = ""
    group = []
    for part in relative.parts[:-1]:
        its_split, its_role, says = _of_folder(part)
        split, role = its_split or split, its_role or role
        within = part if its_role == "label" else within
        if not says:
            group.append(part)
    words = words_of(path.stem)
    # A name alone says less than a folder: a role is told by its first word or the last ones, and what says label in a
    # folder of images can hold ids.
    tail = [word for word in words[1:] if word in _TAILS]
    lossless = path.suffix.lower() in _LOSSLESS
    if role == "image" and {*tail} & _PLAIN and lossless:
        role = "label"
    elif not role and tail:
        role = _role(tail)
    elif not role and len(words) > 1 and (words[0] in _WORDS and (words[0] not in _PLAIN or lossless)):
        role = _WORDS[words[0]]
    if path.suffix.lower() in ANNOTATIONS:
        role = "label"
    elif role == "label" and tail and _role(tail) == "left out":  # gtFine has colours and instances beside the ids
        role = "left out"
    return File(path, split, role, tuple(group), path.stem, _key(path.stem), within)


def _key(stem: str) -> str:
    """The words of a stem that say neither split nor role; all of them if none is left."""
    words = words_of(stem) or [stem]
    return "_".join([word for word in words if word not in _TAILS and word not in _SPLIT_OF] or words)


def split_of(stem: str) -> str:
    """The split that a name says: 'instances_train2017' is of train; '' for none."""
    words = (word.rstrip("0123456789") for word in words_of(stem))
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), "")


def share(names: Iterable[str]) -> set[str]:
    """A fifth of the names, one at least, the same on every machine: those whose SHA-256 is lowest."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest())
    return {*ordered[: max(1, round(SHARE * len(ordered)))]}

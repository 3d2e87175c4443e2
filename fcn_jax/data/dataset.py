"""What a dataset is, as a value: its classes, how its files are laid out, and what their values mean."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.data import images
from fcn_jax.data.downloads import Archive

log = logging.getLogger(__name__)

Palette = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A label that is not one file with nothing but it.

    Attributes:
      paths: its files.
      keys: what each is of, a class say, or which entry of the file it is.
      region: a mask outside of which (where it is 0) all is void.
    """

    paths: tuple[pathlib.Path, ...]
    keys: tuple[str, ...] = ()
    region: pathlib.Path | None = None

    def __str__(self) -> str:
        """As messages call it."""
        return f"{self.paths[0]}{f' ({self.keys[0]})' if self.keys else ''}"


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its annotation before preparation; the paths are None where the dataset draws them itself.

    `more` has the files of further inputs and heads by their names.
    """

    id: str
    image: pathlib.Path | None = None
    label: pathlib.Path | Annotation | None = None
    more: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)

    @property
    def paths(self) -> list[pathlib.Path]:
        """All of its files."""
        labels: tuple[pathlib.Path | None, ...] = (
            (self.label,)
            if not isinstance(self.label, Annotation)
            else (
                *self.label.paths,
                self.label.region,
            )
        )
        return [path for path in (self.image, *labels, *self.more.values()) if path]


def read_png(path: pathlib.Path) -> np.ndarray:
    """A label file as uint8 [H, W]: the indices of a palette PNG, the values of a grey one."""
    return images.decode_label(path.read_bytes(), str(path))


@dataclasses.dataclass(frozen=True)
class Labels:
    """One question that is answered for each pixel, and how its label files answer it.

    Attributes:
      class_names, palette: a name and a colour (R, G, B) for each class.
      name: of the head, where there are several.
      read: gives what a file (or an Annotation) holds, integers [H, W].
      ids: {value of the files: class id, or 255 for void}.
      rest: what the values mean that `ids` lacks; None: themselves.
      unscored: classes that are left out of the means over classes.
      mirrored: pairs of classes, left and right, that a mirror image exchanges.
      form: what else `read` depends on beside the files.
    """

    class_names: tuple[str, ...]
    palette: Palette
    name: str = ""
    read: Callable[[Any], np.ndarray] = read_png
    ids: Mapping[int, int] = dataclasses.field(default_factory=dict)
    rest: int | None = None
    unscored: tuple[str, ...] = ()
    mirrored: tuple[tuple[str, str], ...] = ()
    form: str = ""

    def load(self, path: pathlib.Path | Annotation) -> np.ndarray:
        """The label at `path` as uint8 [H, W] of class ids, 255 = void; ValueError for a value without a meaning."""
        values = self.read(path)
        if not self.ids and values.dtype == np.uint8:
            return values
        found, places = np.unique(values, return_inverse=True)
        means = [self.ids.get(value, value if self.rest is None else self.rest) for value in found.tolist()]
        unknown = next((value for value, mean in zip(found.tolist(), means, strict=True) if not 0 <= mean <= 255), None)
        if unknown is not None:
            raise ValueError(f"label {str(path)!r} has the value {unknown}, which means nothing in this dataset")
        return np.array(means, np.uint8)[places].reshape(values.shape)

    def swap(self) -> np.ndarray:
        """uint8 [256]: what each id is in the mirror image."""
        table = np.arange(256, dtype=np.uint8)
        for pair in self.mirrored:
            left, right = (self.class_names.index(name) for name in pair)
            table[left], table[right] = right, left
        return table

    @property
    def meaning(self) -> str:
        """What prepared labels depend on beside the files."""
        known = (self.name, self.class_names, sorted(self.ids.items()), self.rest)
        return repr((*known, self.form) if self.form else known)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in its official layout.

    Attributes:
      name: what config.data.name calls it.
      labels: one for each head.
      splits: the names of its splits.
      list_examples: (split, raw_dir) -> its examples in the order of its list, every file of which is there.
      inputs: {name: mean of each channel, in the order in which the network takes them} of what an image is made of;
        none for colour: that of VOC.
      scales: {name: what the values of an input are multiplied by} where that is not 1; means are of scaled ones.
      annotated: how labels of images that EXIF turns were drawn, as they are 'stored' or 'upright'.
      archives: {split: what to download for it}, where that is permitted.
      terms: where else to get the files, for a person.
      draw: for a dataset without files: (id) -> encoded image, label uint8 [H, W].
      version: to be raised when `draw` changes.
    """

    name: str
    labels: tuple[Labels, ...]
    splits: tuple[str, ...]
    list_examples: Callable[[str, pathlib.Path], Sequence[Example]]
    inputs: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=lambda: {"colour": ()})
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    annotated: str = "stored"
    archives: Mapping[str, tuple[Archive, ...]] = dataclasses.field(default_factory=dict)
    terms: str = ""
    draw: Callable[[str], tuple[bytes, np.ndarray]] | None = None
    version: int = 1

    def examples(self, split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
        """Those of a split; ValueError for one that the dataset has not."""
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}: choose from {', '.join(self.splits)}")
        return self.list_examples(split, raw_dir)

    def fingerprint(self, examples: Sequence[Example]) -> str:
        """Changes whenever a list, a file or what a value means does, so that a fuller folder is prepared anew."""
        digest = hashlib.sha256()
        for labels in self.labels:
            digest.update(labels.meaning.encode())
        digest.update(f" {self.version}".encode())
        for example in examples:
            digest.update(example.id.encode())
            for path in example.paths:
                stat = path.stat()
                digest.update(f" {path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
            digest.update(b"\n")
        return digest.hexdigest()[:12]


def record_input(name: str) -> str:
    """What records call an input."""
    return "image" if name == "colour" else name


def record_labels(labels: Sequence[Labels]) -> list[tuple[str, Labels]]:
    """What records call the labels of each head: the first one's `label`."""
    return [("label" if index == 0 else head.name, head) for index, head in enumerate(labels)]


def voc_palette(num_classes: int) -> Palette:
    """The PASCAL VOC colours (VOCdevkit's VOClabelcolormap): bits of the class id go to R, G, B in turn, high first."""

    def colour(index: int) -> tuple[int, int, int]:
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        return rgb[0], rgb[1], rgb[2]

    return tuple(colour(i) for i in range(num_classes))


def require_folder(raw_dir: pathlib.Path, name: str) -> pathlib.Path:
    """The folder `name` of `raw_dir`; FileNotFoundError if it is not there."""
    if (raw_dir / name).is_dir():
        return raw_dir / name
    if not raw_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {str(raw_dir)!r}: correct config.data.raw_dir")
    near = [*raw_dir.absolute().parents[:3], *sorted(path for path in raw_dir.iterdir() if path.is_dir())]
    hint = next((f"; --config.data.raw_dir={str(folder)!r} has it" for folder in near if (folder / name).is_dir()), "")
    raise FileNotFoundError(
        f"{str(raw_dir)!r} has no folder {name}: config.data.raw_dir must hold it beside the others that"
        f" the split needs, or be empty to download what may be downloaded{hint}"
    )


def check_files(examples: Sequence[Example]) -> Sequence[Example]:
    """The same examples, or FileNotFoundError that counts and names what is missing."""
    paths = [path for example in examples for path in example.paths]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        alike = [p.name for p in _siblings(missing[0]) if p.name.casefold() == missing[0].name.casefold()]
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} files that the split list names are missing,"
            f" first {str(missing[0])!r}{f' (there is {alike[0]!r})' if alike else ''}: complete the folder"
            " config.data.raw_dir, or correct the list"
        )
    first: dict[str, Example] = {}
    for example in examples:
        other = first.setdefault(example.id, example)
        if other is not example:
            raise ValueError(f"{str(other.image)!r} and {str(example.image)!r} have one name: rename or remove one")
    return examples


def visible(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
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


def _siblings(path: pathlib.Path) -> list[pathlib.Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []

"""What every segmentation dataset shares: reading examples strictly and writing them to array_record by TFDS.

A dataset is a subclass with its class names, its palette and `list_examples`. One builder prepares one split, so that
a split whose files are absent never stands in the way of another.
"""

import abc
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from fcn_jax.data import images
from fcn_jax.data.images import VOID

SKIP_SUFFIX = "-skip"  # of the folder of a split that may lack examples


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its annotation before preparation; the paths are None where the dataset draws them itself."""

    id: str
    image: pathlib.Path | None = None
    label: pathlib.Path | None = None


def voc_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colours (VOCdevkit's VOClabelcolormap): bits of the class id go to R, G, B in turn, high first."""

    def colour(index: int) -> tuple[int, int, int]:
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        return rgb[0], rgb[1], rgb[2]

    return tuple(colour(i) for i in range(num_classes))


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares one split of one dataset.

    Features: `image` (the encoded file as it is), `label` (PNG of class ids, 255 = void), `id`. The metadata holds, in
    the order of the examples, `ids`, `sizes` [height, width] and `pixel_counts` (labelled pixels per class); as
    `corrupt`, the ids that were left out; and as `turned` those whose EXIF orientation is not upright. Images are taken
    upright; labels are turned with them where they were drawn as the image is stored.

    Args:
      split: the name of the split.
      raw_dir: the folder that holds the official files, in the official layout.
      corrupt: at an image or a label that cannot be decoded, 'raise', or 'skip' to leave the example out. A label that
        decodes and has another size or other ids is an error always: it is not damaged, but of other data.
      annotated: how labels were drawn: as images are 'stored', or 'upright', as viewers show them; '' for ANNOTATED.
      data_dir: the folder for prepared data.

    Raises:
      FileNotFoundError: a split list, or a file that it names, is missing.
      ValueError: unknown or empty split; while preparing: an image that does not decode (with skip: none that does), a
        label of another size or with an id that is neither a class nor 255.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.1.0": "Images and labels are upright."}
    ANNOTATED: ClassVar[str] = "stored"
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    PALETTE: ClassVar[tuple[tuple[int, int, int], ...]]

    def __init__(
        self,
        *,
        split: str,
        raw_dir: str | pathlib.Path = "",
        corrupt: str = "raise",
        annotated: str = "",
        **kwargs: Any,
    ):
        self.split, self.corrupt, self.annotated = split, corrupt, annotated or self.ANNOTATED
        self.left_out: list[tuple[str, str]] = []  # ids and reasons, known when the split has been prepared
        self.examples = self.list_examples(split, pathlib.Path(raw_dir).expanduser())
        if not self.examples:
            raise ValueError(f"split {split!r} of {self.name} is empty: its list names no image")
        name = f"{split}-{_fingerprint(self.examples)}{'' if self.annotated == 'stored' else '-upright'}"
        config = tfds.core.BuilderConfig(name=f"{name}{SKIP_SUFFIX}" if corrupt == "skip" else name)
        super().__init__(config=config, file_format="array_record", **kwargs)

    @property
    def whole_path(self) -> pathlib.Path:
        """`data_path` of the same files where nothing may be left out."""
        path = pathlib.Path(self.data_path)
        return path.parent.with_name(path.parent.name.removesuffix(SKIP_SUFFIX)) / path.name

    @classmethod
    @abc.abstractmethod
    def list_examples(cls, split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
        """The examples of `split`, in the order of its list; every file named is there."""

    def load(self, example: Example) -> tuple[bytes, np.ndarray]:
        """The encoded image and the label uint8 [H, W] of one example."""
        assert example.image is not None
        assert example.label is not None
        return example.image.read_bytes(), self.read_label(example.label)

    def read_label(self, path: pathlib.Path) -> np.ndarray:
        """The label file at `path` as uint8 [H, W] of class ids, 255 = void."""
        return images.decode_label(path.read_bytes(), str(path))

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "id": tfds.features.Text(),
            }
        )
        # Examples keep the order of their list: a slice 'train[:100]' is the first hundred of it.
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        ids, sizes, pixel_counts, turned = [], [], [], []
        # The bar shows after 3 s: small splits stay silent.
        progress = tqdm(self.examples, f"preparing {self.name}/{self.split}", unit=" images", delay=3, mininterval=1)
        for index, example in enumerate(progress):
            try:
                image, label = self.load(example)
                orientation = images.orientation(image)
                if self.annotated == "stored":
                    label = images.turn(label, orientation)
                size = check_example(example, image, label, len(self.CLASS_NAMES))
            except images.CorruptError as error:
                if self.corrupt != "skip":
                    raise
                self.left_out.append((example.id, str(error)))
                continue
            if orientation != 1:
                turned.append(example.id)
            ids.append(example.id)
            sizes.append(size)
            pixel_counts.append(np.bincount(label.ravel(), minlength=256)[: len(self.CLASS_NAMES)].tolist())
            yield index, {"image": image, "label": images.encode_png(label), "id": example.id}
        corrupt = [name for name, _ in self.left_out]
        if not ids:
            name = f"{self.name}/{self.split}"
            raise ValueError(f"all {len(corrupt)} examples of {name} are corrupt, the first: {self.left_out[0][1]}")
        self.info.metadata.update(
            ids=ids, sizes=sizes, pixel_counts=pixel_counts, corrupt=corrupt, turned=turned, annotated=self.annotated
        )


def check_example(example: Example, image: bytes, label: np.ndarray, num_classes: int) -> list[int]:
    """Raises ValueError (CorruptError) for an example that cannot be trained on; otherwise its [height, width]."""
    name = example.id
    height, width, _ = images.decode_image(image, name).shape
    if label.shape != (height, width):
        sizes = f"image is {height}x{width} but label is {label.shape[0]}x{label.shape[1]} (height x width)"
        number = images.orientation(image)
        raise ValueError(
            f"{name!r}: {sizes}: they must be equal"
            if number == 1
            else f"{name!r}, turned upright as its EXIF orientation {number} says: {sizes}: if labels were drawn as the"
            " image is stored, set config.data.annotated=stored, else upright"
        )
    counts = np.bincount(label.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if num_classes <= value != VOID]
    if wrong:
        shown = ", ".join(f"{value} at {counts[value]}" for value in wrong[:5])
        more = f" and {len(wrong) - 5} other values" if len(wrong) > 5 else ""
        raise ValueError(
            f"{name!r}: label {shown}{more} pixels, but there are {num_classes} classes (0..{num_classes - 1}) and void"
            f" {VOID}: {_cause(counts, wrong, num_classes)} ({example.label or 'drawn'})"
        )
    return [height, width]


def _cause(counts: np.ndarray, wrong: Sequence[int], num_classes: int) -> str:
    """What most likely happened to a label with the ids `wrong`, and what to do about it."""
    if len(wrong) > 8:
        return "a lossy or smoothly resized mask, or grey levels; save ids as PNG and resize by the nearest"
    if wrong == [num_classes] and not counts[0]:
        return "ids seem to begin at 1; subtract 1"
    if len(wrong) == 1:
        return f"correct the annotation or the class list; if {wrong[0]} is void, change it to {VOID}"
    return "correct the annotation or the class list"


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
    missing = [path for e in examples for path in (e.image, e.label) if path and not path.is_file()]
    if missing:
        alike = [p.name for p in _siblings(missing[0]) if p.name.casefold() == missing[0].name.casefold()]
        raise FileNotFoundError(
            f"{len(missing)} of {2 * len(examples)} files that the split list names are missing,"
            f" first {str(missing[0])!r}{f' (there is {alike[0]!r})' if alike else ''}: complete the folder"
            " config.data.raw_dir, or correct the list"
        )
    first: dict[str, Example] = {}
    for example in examples:
        other = first.setdefault(example.id, example)
        if other is not example:
            raise ValueError(f"{str(other.image)!r} and {str(example.image)!r} have one name: rename or remove one")
    return examples


def _siblings(path: pathlib.Path) -> list[pathlib.Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []


def _fingerprint(examples: Sequence[Example]) -> str:
    """Changes whenever a list or a file does, so that a fuller folder is prepared anew."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.id.encode())
        for path in (example.image, example.label):
            if path:
                stat = path.stat()
                digest.update(f" {path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(b"\n")
    return digest.hexdigest()[:12]

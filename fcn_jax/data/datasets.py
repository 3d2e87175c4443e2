"""The datasets by name, and opening a split of one: prepared on first use, then read by random access."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging as absl_logging

from fcn_jax import download
from fcn_jax.data import downloads, images
from fcn_jax.data.dataset import Dataset, record_labels

log = logging.getLogger(__name__)

# One line per dataset: module and value, imported when it is asked for.
DATASETS = {
    "shapes": "shapes:DATASET",
    "camvid": "camvid:DATASET",
    "voc_segmentation": "voc_segmentation:DATASET",
    "nyudv2": "nyudv2:DATASET",
    "sift_flow": "sift_flow:DATASET",
    "pascal_context": "pascal_context:DATASET",
    "pascal_context_33": "pascal_context:DATASET_33",
    "ade20k": "ade20k:DATASET",
    "cityscapes": "cityscapes:DATASET",
    "kitti_road": "kitti_road:DATASET",
    "oxford_pets": "oxford_pets:DATASET",
    "folder": "folder:read",  # a function of raw_dir: one's own
}

MAX_NAMED = 10  # corrupt examples in a warning; beyond them a count


class Source:
    """The examples of a split by index: {'image': encoded bytes, 'label': bytes of a grey PNG, 'id': str}. Pickles.

    Further inputs and heads lie beside them, by their names.
    """

    def __init__(self, records: Sequence[dict[str, bytes]]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):  # iteration ends by IndexError; the records raise ValueError
            raise IndexError(f"example {index} of {len(self)}")
        record = self._records[index]
        if record["id"] is None:  # what array_record returns where a file was cut at a block of 64 KiB
            raise ValueError(f"record {index} is empty")
        return {**record, "id": record["id"].decode()}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split, or a slice of one, ready to be read. All that has N entries is in the order of `source`.

    Attributes:
      name: the dataset.
      split: the specification that it was opened by, such as 'train[:50%]'.
      class_names, palette: one name and one (R, G, B) per class, those of several heads side by side.
      heads: (what records call its labels, its name, how many classes it has) of each head.
      inputs: {name: mean of each channel, none for VOC's} of what the images are made of.
      unscored: the classes, by their places, that are left out of means over classes.
      swaps: uint8 [256] for each head: what each id is in the mirror image.
      source: the N examples.
      ids: their ids.
      sizes: int32 [N, 2], height and width.
      pixel_counts: int64 [N, C], labelled pixels of each class.
      corrupt: the ids that the whole split lacks, wherever a slice would have had them.
      scales: {name: what the values of an input are multiplied by first} where that is not 1.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    heads: tuple[tuple[str, str, int], ...]
    inputs: Mapping[str, tuple[float, ...]]
    unscored: tuple[int, ...]
    swaps: tuple[np.ndarray, ...]
    source: Source
    ids: list[str]
    sizes: np.ndarray
    pixel_counts: np.ndarray
    corrupt: list[str]
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def places(self) -> list[slice]:
        """Where the classes of each head are among those of all."""
        ends = itertools.accumulate(count for *_, count in self.heads)
        return [slice(end - count, end) for end, (*_, count) in zip(ends, self.heads, strict=True)]


def open_split(
    dataset: str | Dataset,
    split: str,
    *,
    raw_dir: str = "",
    data_dir: str | pathlib.Path,
    corrupt: str = "raise",
    annotated: str = "",
) -> Split:
    """Opens a split, preparing it first where that has not been done for these very files.

    Args:
      dataset: a key of DATASETS, or what `find` gave for it.
      split: the name of a split or a slice of it in TFDS's notation: 'train', 'train[:50%]', 'val[10:20]'.
      raw_dir: the folder with the official files; '' downloads them to `data_dir`/raw where they can be.
      data_dir: the folder for prepared data: `data_dir/<name>/<split>-<fingerprint of lists and files>/1.1.0`.
      corrupt: 'raise', or 'skip' to leave out the examples whose image or label cannot be decoded, which is warned of
        whenever the split is opened. A slice is one of those that are left.
      annotated: 'stored' if the labels were drawn as the images are stored, 'upright' if as viewers show them; '' for
        what the dataset says. Of importance for images that EXIF turns, which are warned of.

    Raises:
      FileNotFoundError: a list or file is missing, or raw_dir is empty and there is no download.
      ValueError: unknown name or split, a malformed or empty slice, or an example that cannot be trained on.
    """
    dataset = find(dataset, raw_dir) if isinstance(dataset, str) else dataset
    name = dataset.name
    match = re.fullmatch(r"(\w+)(\[[^\[\]]*\])?", split)
    if not match:
        raise ValueError(f"split {split!r} is neither a split nor a slice of one: write it as 'train' or 'train[:50%]'")
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    raw = pathlib.Path(raw_dir)
    if not raw_dir:
        archives = dataset.archives.get(match[1], ())
        terms = dataset.terms if match[1] in dataset.splits else ""
        raw = downloads.ensure_raw(name, archives, terms, data_dir / "raw")
    builder = _prepare(dataset, split=match[1], raw_dir=raw, data_dir=data_dir, corrupt=corrupt, annotated=annotated)
    return _open(dataset, builder, split)


def find(name: str, raw_dir: str = "") -> Dataset:
    """The dataset of a name; ValueError for one that is unknown. One's own is read from its folder."""
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is unknown: choose from {', '.join(DATASETS)}")
    module, _, attribute = DATASETS[name].partition(":")
    found = getattr(importlib.import_module(f"fcn_jax.data.builders.{module}"), attribute)
    dataset: Dataset = found(raw_dir) if callable(found) else found
    return dataset


def check_disjoint(train: Split, evaluation: Split) -> None:
    """Raises ValueError if an image is in both splits (by id)."""
    shared = sorted({*train.ids} & {*evaluation.ids})
    if shared:
        raise ValueError(
            f"{len(shared)} images are in both {train.name}/{train.split} and {evaluation.name}/{evaluation.split},"
            f" first {shared[0]!r}: choose another split, or set config.data.overlap"
        )


def median_frequency_weights(pixel_counts: np.ndarray) -> np.ndarray:
    """Class weights median(f) / f_c, f_c = pixels of c / labelled pixels of the images in which c is present.

    Eigen & Fergus 2015 (arXiv 1411.4734). Void pixels count nowhere. SegNet's published CamVid weights
    cannot be had from the published annotations in this way: on CamVid train ten classes come within 20% of them
    (within 11% with void as a twelfth class), sign is 3.85 instead of 9.64.

    Args:
      pixel_counts: integers [N, C], labelled pixels per image and class.

    Returns:
      float32 [C]; 0 for a class that never occurs, which has no part in the median either.
    """
    pixels = pixel_counts.sum(0)
    beside = (pixel_counts.sum(1, keepdims=True) * (pixel_counts > 0)).sum(0)
    occurs = pixels > 0
    frequency = pixels[occurs] / beside[occurs]
    weights = np.zeros(len(pixels), np.float32)
    if frequency.size:
        weights[occurs] = np.median(frequency) / frequency
    return weights


def class_weights(choice: str, split: Split) -> np.ndarray:
    """float32 [C] for a value of config.loss.class_weights.

    Args:
      choice: `none`, `median_frequency` or `sqrt_median_frequency` of the split, or numbers in a row: `1,0.5,2`.

    Raises:
      ValueError: another word, another count than the split has classes, or a weight below 0.
    """
    num_classes = len(split.class_names)
    if choice == "none":
        return np.ones(num_classes, np.float32)
    if choice in ("median_frequency", "sqrt_median_frequency"):
        balanced = median_frequency_weights(split.pixel_counts)
        return np.sqrt(balanced) if choice.startswith("sqrt") else balanced
    try:
        values = np.array([float(value) for value in choice.split(",")], np.float32)
    except ValueError:
        raise ValueError(
            f"config.loss.class_weights={choice!r}: choose none, median_frequency, sqrt_median_frequency,"
            " or numbers such as 1,0.5,2"
        ) from None
    if values.shape != (num_classes,) or (values < 0).any():
        raise ValueError(
            f"config.loss.class_weights has {values.size} numbers, the lowest {values.min()}: {split.name} needs"
            f" {num_classes}, none below 0"
        )
    return values


def _prepare(dataset: Dataset, split: str, data_dir: pathlib.Path, **options: Any) -> Any:
    """The prepared base split, as TFDS's read-only builder: it needs neither the original files nor our class."""
    import tensorflow_datasets as tfds

    from fcn_jax.data.builders import base  # importing TFDS takes a second

    with _quiet():
        builder = base.SegmentationBuilder(dataset, split=split, data_dir=data_dir, **options)
        # Where the split was prepared whole, there is nothing to leave out.
        path = builder.whole_path if builder.whole_path.exists() else builder.data_path
        if not path.exists():
            with download.exclusive(data_dir):
                builder.download_and_prepare()  # does nothing where another process was faster
        prepared = tfds.builder_from_directory(path)
    _warn_of_corrupt(f"{builder.name}/{split}", builder.left_out, prepared.info.metadata)
    _warn_of_turned(f"{builder.name}/{split}", prepared.info.metadata)
    return prepared


def _warn_of_corrupt(name: str, left_out: list[tuple[str, str]], metadata: dict[str, Any]) -> None:
    """Why each was left out, if that was just now, and how many were."""
    for example, reason in left_out[:MAX_NAMED]:
        log.warning("%s leaves out %s: %s", name, example, reason)
    if len(left_out) > MAX_NAMED:
        log.warning("%s leaves out %d more", name, len(left_out) - MAX_NAMED)
    corrupt = metadata.get("corrupt", [])  # prepared by an earlier version: nothing was left out
    if corrupt:
        names = ", ".join(corrupt[:MAX_NAMED])
        more = f" and {len(corrupt) - MAX_NAMED} more" if len(corrupt) > MAX_NAMED else ""
        total = len(metadata["ids"]) + len(corrupt)
        log.warning("%d of %d images of %s are corrupt and left out: %s%s", len(corrupt), total, name, names, more)


def _warn_of_turned(name: str, metadata: dict[str, Any]) -> None:
    """How labels of images that EXIF turns were taken, which nothing in the files tells."""
    turned = metadata["turned"]
    if turned:
        stored = metadata["annotated"] == "stored"
        log.warning(
            "%d images of %s are turned upright by EXIF, first %s; labels are taken as drawn %s: if that is wrong, set"
            " config.data.annotated=%s",
            len(turned),
            name,
            turned[0],
            "on the images as they are stored" if stored else "on upright images",
            "upright" if stored else "stored",
        )


def _open(dataset: Dataset, builder: Any, split: str) -> Split:
    import tensorflow_datasets as tfds

    name, heads = dataset.name, record_labels(dataset.labels)
    num_examples = sum(info.num_examples for info in builder.info.splits.values())
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
        (absolute,) = instruction.to_absolute(builder.info.splits)
    except (AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"split {split!r} of {name} is no slice of its {num_examples} images ({reason}):"
            " write it as '[:50%]' or '[10:20]' and within them"
        ) from None
    begin, end = absolute.from_ or 0, num_examples if absolute.to is None else absolute.to
    if begin >= end:
        raise ValueError(f"split {split!r} of {name} is empty: choose a slice within its {num_examples} images")
    # Bytes as they are: the pipeline decodes, and only the images that it draws.
    decoders = {key: tfds.decode.SkipDecoding() for key in builder.info.features if key != "id"}
    metadata = builder.info.metadata
    unscored = [class_name in head.unscored for _, head in heads for class_name in head.class_names]
    found = Split(
        name=name,
        split=split,
        class_names=tuple(class_name for _, head in heads for class_name in head.class_names),
        palette=tuple(colour for _, head in heads for colour in head.palette),
        heads=tuple((key, head.name, len(head.class_names)) for key, head in heads),
        inputs=dataset.inputs,
        scales=dataset.scales,
        unscored=tuple(index for index, is_so in enumerate(unscored) if is_so),
        swaps=tuple(head.swap() for _, head in heads),
        source=Source(builder.as_data_source(split=instruction, decoders=decoders)),
        ids=list(metadata["ids"][begin:end]),
        sizes=np.asarray(metadata["sizes"][begin:end], np.int32),
        pixel_counts=np.asarray(metadata["pixel_counts"][begin:end], np.int64),
        corrupt=list(metadata.get("corrupt", [])),
    )
    for place in found.places:
        pixel_counts = [counts[place] for counts in metadata["pixel_counts"]]
        title = f"{name}/{split.partition('[')[0]}"
        _check_labels(title, found.class_names[place], {**metadata, "pixel_counts": pixel_counts})
    return found


def _check_labels(name: str, class_names: Sequence[str], metadata: dict[str, Any]) -> None:
    """Looks at the labels of a whole split: warns of classes that it lacks.

    Raises:
      ValueError: nothing is labelled, or nothing but one class beside void.
    """
    pixels = np.asarray(metadata["pixel_counts"], np.int64).sum(0)
    void = int(np.asarray(metadata["sizes"], np.int64).prod(1).sum() - pixels.sum())
    number, first = len(metadata["ids"]), metadata["ids"][0]
    present = [class_name for class_name, count in zip(class_names, pixels, strict=True) if count]
    if not present:
        raise ValueError(
            f"no pixel of {name} is labelled: all {void} of its {number} labels are {images.VOID} (void), first"
            f" {first!r}: write class ids, 0 to {len(class_names) - 1}"
        )
    if len(present) == 1 and void and len(class_names) > 1:
        raise ValueError(
            f"the {number} labels of {name} have nothing but {present[0]!r} ({pixels.sum()} pixels) and"
            f" {images.VOID} ({void} pixels), which is void and left out, first {first!r}: if {images.VOID} marks a"
            " class, write its id instead"
        )
    absent = [class_name for class_name in class_names if class_name not in present]
    if absent:
        hint = "; do the ids begin at 1?" if absent == [class_names[0]] else ""
        log.warning("no image of %s has %s%s", name, ", ".join(absent), hint)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what TFDS warns of and prints; errors pass. The builders have their own progress bar, with an ETA."""
    import tensorflow_datasets as tfds

    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()

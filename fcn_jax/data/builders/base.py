"""Reading the examples of a dataset strictly and writing them to array_record by TFDS.

One builder prepares one split, so that a split whose files are absent never stands in the way of another.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from fcn_jax.data import images
from fcn_jax.data.dataset import Dataset, Example, Labels, record_input, record_labels
from fcn_jax.data.images import VOID

SKIP_SUFFIX = "-skip"  # of the folder of a split that may lack examples


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares one split of one dataset.

    Features: `image` (the encoded file as it is), `label` (PNG of class ids, 255 = void) and `id`; of datasets with
    further inputs or heads, theirs by name. The metadata holds, in the order of the examples, `ids`, `sizes`
    [height, width] and `pixel_counts` (labelled pixels per class, those of several heads side by side); as `corrupt`,
    the ids that were left out; and as `turned` those whose EXIF orientation is not upright. Images are taken upright;
    labels are turned with them where they were drawn as the image is stored.

    Args:
      dataset: whose.
      split: the name of the split.
      raw_dir: the folder that holds the official files, in the official layout.
      corrupt: at an image or a label that cannot be decoded, 'raise', or 'skip' to leave the example out. A label that
        decodes and has another size or other ids is an error always: it is not damaged, but of other data.
      annotated: how labels were drawn: as images are 'stored', or 'upright', as viewers show them; '' for what the
        dataset says.
      data_dir: the folder for prepared data.

    Raises:
      FileNotFoundError: a split list, or a file that it names, is missing.
      ValueError: unknown or empty split; while preparing: an image that does not decode (with skip: none that does), a
        label of another size or with an id that is neither a class nor 255.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.1.0": "Images and labels are upright."}

    def __init__(
        self,
        dataset: Dataset,
        *,
        split: str,
        raw_dir: str | pathlib.Path = "",
        corrupt: str = "raise",
        annotated: str = "",
        **kwargs: Any,
    ):
        self.dataset, self.split, self.corrupt = dataset, split, corrupt
        self.annotated = annotated or dataset.annotated
        self.name = dataset.name
        self.left_out: list[tuple[str, str]] = []  # ids and reasons, known when the split has been prepared
        self.examples = dataset.examples(split, pathlib.Path(raw_dir).expanduser())
        if not self.examples:
            raise ValueError(f"split {split!r} of {self.name} is empty: its list names no image")
        name = f"{split}-{dataset.fingerprint(self.examples)}{'' if self.annotated == 'stored' else '-upright'}"
        config = tfds.core.BuilderConfig(name=f"{name}{SKIP_SUFFIX}" if corrupt == "skip" else name)
        super().__init__(config=config, file_format="array_record", **kwargs)

    @property
    def whole_path(self) -> pathlib.Path:
        """`data_path` of the same files where nothing may be left out."""
        path = pathlib.Path(self.data_path)
        return path.parent.with_name(path.parent.name.removesuffix(SKIP_SUFFIX)) / path.name

    def load(self, example: Example) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
        """The encoded inputs and the labels uint8 [H, W] of one example, by the names that records have."""
        if self.dataset.draw:
            image, label = self.dataset.draw(example.id)
            return {"image": image}, {"label": label}
        assert example.image is not None
        assert example.label is not None
        files: dict[str, Any] = {"image": example.image, "label": example.label, **example.more}
        inputs = {record_input(name): files[record_input(name)].read_bytes() for name in self.dataset.inputs}
        return inputs, {key: labels.load(files[key]) for key, labels in record_labels(self.dataset.labels)}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            **{record_input(name): tfds.features.Image(shape=(None, None, 3)) for name in self.dataset.inputs},
            **{
                key: tfds.features.Image(shape=(None, None, 1), encoding_format="png")
                for key, _ in record_labels(self.dataset.labels)
            },
            "id": tfds.features.Text(),
        }
        # Examples keep the order of their list: a slice 'train[:100]' is the first hundred of it.
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        ids, sizes, pixel_counts, turned = [], [], [], []
        # The bar shows after 3 s: small splits stay silent.
        progress = tqdm(self.examples, f"preparing {self.name}/{self.split}", unit=" images", delay=3, mininterval=1)
        for index, example in enumerate(progress):
            try:
                inputs, labels = self.load(example)
                orientation = images.orientation(inputs["image"]) if "image" in inputs else 1
                if self.annotated == "stored":
                    labels = {key: images.turn(label, orientation) for key, label in labels.items()}
                size = check_example(example, inputs, labels, self.dataset.labels)
            except images.CorruptError as error:
                if self.corrupt != "skip":
                    raise
                self.left_out.append((example.id, str(error)))
                continue
            if orientation != 1:
                turned.append(example.id)
            ids.append(example.id)
            sizes.append(size)
            pixel_counts.append(
                [count for key, head in record_labels(self.dataset.labels) for count in _counts(labels[key], head)]
            )
            yield index, {**inputs, **{k: images.encode_png(label) for k, label in labels.items()}, "id": example.id}
        corrupt = [name for name, _ in self.left_out]
        if not ids:
            name = f"{self.name}/{self.split}"
            raise ValueError(f"all {len(corrupt)} examples of {name} are corrupt, the first: {self.left_out[0][1]}")
        self.info.metadata.update(
            ids=ids, sizes=sizes, pixel_counts=pixel_counts, corrupt=corrupt, turned=turned, annotated=self.annotated
        )


def check_example(
    example: Example, inputs: dict[str, bytes], labels: dict[str, np.ndarray], heads: Sequence[Labels]
) -> list[int]:
    """Raises ValueError (CorruptError) for an example that cannot be trained on; otherwise its [height, width]."""
    name = example.id
    shapes = {key: images.decode_input(data, name, key).shape[:2] for key, data in inputs.items()}
    (first, (height, width)), *others = shapes.items()
    for key, shape in [*others, *((key, label.shape) for key, label in labels.items())]:
        if shape != (height, width):
            sizes = f"{first} is {height}x{width} but {key} is {shape[0]}x{shape[1]} (height x width)"
            number = images.orientation(inputs[first])
            raise ValueError(
                f"{name!r}: {sizes}: they must be equal"
                if number == 1
                else f"{name!r}, turned upright as its EXIF orientation {number} says: {sizes}: if labels were drawn as"
                " the image is stored, set config.data.annotated=stored, else upright"
            )
    for key, head in record_labels(heads):
        _check_ids(example, key, labels[key], len(head.class_names))
    return [height, width]


def _check_ids(example: Example, key: str, label: np.ndarray, num_classes: int) -> None:
    counts = np.bincount(label.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if num_classes <= value != VOID]
    if wrong:
        shown = ", ".join(f"{value} at {counts[value]}" for value in wrong[:5])
        more = f" and {len(wrong) - 5} other values" if len(wrong) > 5 else ""
        raise ValueError(
            f"{example.id!r}: {key} {shown}{more} pixels, but there are {num_classes} classes (0..{num_classes - 1})"
            f" and void {VOID}: {_cause(counts, wrong, num_classes)} ({example.label or 'drawn'})"
        )


def _counts(label: np.ndarray, head: Labels) -> list[int]:
    """Labelled pixels of each class."""
    counts: list[int] = np.bincount(label.ravel(), minlength=256)[: len(head.class_names)].tolist()
    return counts


def _cause(counts: np.ndarray, wrong: Sequence[int], num_classes: int) -> str:
    """What most likely happened to a label with the ids `wrong`, and what to do about it."""
    if len(wrong) > 8:
        return "a lossy or smoothly resized mask, or grey levels; save ids as PNG and resize by the nearest"
    if wrong == [num_classes] and not counts[0]:
        return "ids seem to begin at 1; subtract 1"
    if len(wrong) == 1:
        return f"correct the annotation or the class list; if {wrong[0]} is void, change it to {VOID}"
    return "correct the annotation or the class list"

"""From a split to batches, by Grain.

The global batch of step t depends on the seed and on t alone: examples are shuffled and augmented by their place in
the global order, then batched, and only then divided among the processes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from fcn_jax.data import canvases, images, transforms
from fcn_jax.data.dataset import record_input
from fcn_jax.data.datasets import Split


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training examples are made; the defaults take whole images as they are."""

    canvas: tuple[int, int]  # height, width of the batch; crops where crop is True
    crop: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    colour_jitter: float = 0.0
    mask: str = ""  # what of the image is replaced, by its label: foreground, background or shape


COLOUR = ("colour",)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How examples are read, and which of the processes of a run reads them.

    Attributes:
      inputs: the names of those that images are made of, in this order.
      corrupt: at a record that cannot be decoded, `raise` a ValueError with its id; `skip`: it is an empty image (size
        1, all void) that keeps its id and is marked in `corrupt`, and the others of its batch are what they would be.
    """

    inputs: tuple[str, ...] = COLOUR
    corrupt: str = "raise"
    process_index: int = 0
    process_count: int = 1


PLAIN = Reading()
WIDE = ("depth", "bands")  # inputs whose values do not fit into 8 bits


def place_of(name: str, inputs: Sequence[str], split: Split) -> slice:
    """Where the channels of one of the inputs are in the image."""
    start = sum(_channels(before, split) for before in inputs[: inputs.index(name)])
    return slice(start, start + _channels(name, split))


def _channels(name: str, split: Split) -> int:
    return len(split.inputs[name]) or 3


class _Decode(grain.transforms.Map):
    """The index of an example -> image uint8 [H, W, 3], label uint8 [H, W], id, corrupt (bool).

    The channels of several inputs are side by side, in float32 if depth or bands are among them; the labels of several
    heads are [H, W, heads].

    A damaged record is an error or, where `corrupt` is skip, an empty image.
    """

    def __init__(self, split: Split, reading: Reading):
        self._split, self._inputs, self._corrupt = split, reading.inputs, reading.corrupt
        self._dtype = np.dtype(np.float32 if {*WIDE} & {*reading.inputs} else np.uint8)

    def empty(self) -> dict[str, np.ndarray]:
        """Of one pixel, all void."""
        channels, heads = sum(_channels(name, self._split) for name in self._inputs), len(self._split.heads)
        label = np.full((1, 1) if heads == 1 else (1, 1, heads), images.VOID, np.uint8)
        return {"image": np.zeros((1, 1, channels), self._dtype), "label": label}

    def map(self, index: int) -> dict[str, Any]:
        name = self._split.ids[int(index)]
        try:
            return {**self._read(int(index), f"{_full_name(self._split)}:{name}"), **_marks(name)}
        except images.CorruptError as error:
            if self._corrupt == "skip":
                return {**self.empty(), **_marks(name, corrupt=True)}
            raise images.CorruptError(error.what, _remedy(self._split)) from None

    def _read(self, index: int, name: str) -> dict[str, np.ndarray]:
        try:
            record = self._split.source[index]
            if record["id"] != self._split.ids[index]:
                raise ValueError(f"it is of {record['id']!r}")
        except (RuntimeError, OSError, ValueError) as error:  # array_record raises the first for all that it finds
            reason = " ".join(str(error).split())
            raise images.CorruptError(f"record {name!r} cannot be read ({reason})") from None
        parts = [self._channels(record, key, name) for key in self._inputs]
        labels = [images.decode_label(record[key], name) for key, *_ in self._split.heads]
        return {
            "image": parts[0] if len(parts) == 1 else np.concatenate(parts, -1),
            "label": labels[0] if len(labels) == 1 else np.stack(labels, -1),
        }

    def _channels(self, record: dict[str, Any], key: str, name: str) -> np.ndarray:
        """The channels of one input."""
        stored = record_input(key)
        values = images.decode_input(record[stored], name, stored)
        wanted = _channels(key, self._split)
        if values.shape[2] != wanted or (self._dtype == np.uint8 and values.dtype != np.uint8):
            kind = "of any kind" if self._dtype == np.float32 else "of 8 bits"
            raise ValueError(
                f"{key} of {name!r} is {values.dtype} with {values.shape[2]} channels, wanted {wanted} {kind}"
            )
        return values.astype(self._dtype, copy=False)


class _Augment(grain.transforms.RandomMap):
    def __init__(self, options: Augmentation, split: Split, inputs: Sequence[str]):
        self._options, self._swaps = options, split.swaps
        self._colour = place_of("colour", inputs, split) if "colour" in inputs else None

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image, label, options = element["image"], element["label"], self._options
        if element["corrupt"]:  # stays empty; `rng` is this example's own, so that no other one changes
            return _on_canvas(element, options.canvas)
        if options.mask:
            image = transforms.mask(image, label, options.mask)
        if options.crop:
            image, label = transforms.random_crop(image, label, rng, crop_size=options.canvas, scale=options.scale)
        if options.flip and rng.random() < 0.5:
            image, label = transforms.flip(image, label, self._swaps)
        if options.colour_jitter and self._colour is not None:
            jittered = transforms.jitter_colour(image[..., self._colour], rng, options.colour_jitter)
            parts = (image[..., : self._colour.start], jittered, image[..., self._colour.stop :])
            image = jittered if image.shape[2] == 3 else np.concatenate(parts, -1, dtype=image.dtype)
        return _on_canvas({**element, "image": image, "label": label}, options.canvas)


class _Draw(grain.transforms.RandomMap):
    """Any index -> one drawn with replacement."""

    def __init__(self, size: int):
        self._size = size

    def random_map(self, element: int, rng: np.random.Generator) -> int:
        return int(rng.integers(self._size))


def train_dataset(
    split: Split,
    augmentation: Augmentation,
    *,
    seed: int,
    batch_size: int,
    accumulate: int = 1,
    replacement: bool = False,
    reading: Reading = PLAIN,
) -> grain.MapDataset:
    """Element t is this process's share of the batches of step t, of `accumulate` global batches of `batch_size`.

    image uint8 [A, B, H, W, 3], label uint8 [A, B, H, W], size int32 [A, B, 2], id [A, B], corrupt bool [A, B], B =
    batch_size / process_count. Endless: every epoch is shuffled anew.
    """
    indices = grain.MapDataset.range(len(split.ids)).seed(seed)
    indices = indices.repeat(None).random_map(_Draw(len(split.ids))) if replacement else indices.shuffle().repeat(None)
    decode = _decoder(split, reading)
    examples = indices.map(decode).random_map(_Augment(augmentation, split, reading.inputs))
    # Nothing is dropped from an endless stream; without drop_remainder Grain overflows on batches of one.
    batches = examples.batch(batch_size // reading.process_count, drop_remainder=True)
    shares = batches[reading.process_index :: reading.process_count]
    if accumulate == 1:  # batch would copy all of it once more
        return shares.map(lambda batch: {key: array[None] for key, array in batch.items()})
    return shares.batch(accumulate, drop_remainder=True)


def iterate(dataset: grain.MapDataset, start: int, num_threads: int) -> Iterator[dict[str, np.ndarray]]:
    """Elements start, start + 1, ... of `dataset`, read ahead by threads."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset[start:].to_iter_dataset(options))


def eval_dataset(
    split: Split,
    batches: Sequence[canvases.Batch],
    *,
    batch_size: int,
    mask: str = "",
    reading: Reading = PLAIN,
) -> grain.MapDataset:
    """The images of the batches, whole, in order; what is not full is filled up with empty images (size 1, all void).

    Elements: image uint8 [B, H, W, 3], label uint8 [B, H, W], size int32 [B, 2], id [B] ('' for filling), corrupt
    bool [B], B = batch_size / process_count; every process has the same number of them. H and W are those of the
    batch's canvas. `mask` as in Augmentation.
    """
    decode = _decoder(split, reading)

    def example(index: int) -> dict[str, Any]:
        batch, place = batches[index // batch_size], index % batch_size
        read = decode.map(batch.images[place]) if place < len(batch.images) else {**decode.empty(), **_marks("")}
        if mask:
            read = {**read, "image": transforms.mask(read["image"], read["label"], mask)}
        return _on_canvas(read, batch.canvas)

    shares = grain.MapDataset.range(len(batches) * batch_size).map(example).batch(batch_size // reading.process_count)
    return shares[reading.process_index :: reading.process_count]


def largest_size(split: Split) -> tuple[int, int]:
    """The height and the width that hold every image of the split."""
    height, width = split.sizes.max(0).tolist()
    return height, width


def _decoder(split: Split, reading: Reading) -> _Decode:
    """ValueError where skipping would leave nothing; it reads up to the first example that can be read.

    And for inputs that the dataset has not.
    """
    missing = [name for name in reading.inputs if name not in split.inputs]
    if missing:
        raise ValueError(f"{split.name} has no {missing[0]}: config.inputs may have {', '.join(split.inputs)}")
    decode = _Decode(split, reading)
    if reading.corrupt == "skip" and all(decode.map(index)["corrupt"] for index in range(len(split.ids))):
        raise ValueError(f"all {len(split.ids)} records of {_full_name(split)} are damaged: {_remedy(split)}")
    return decode


def _marks(name: str, *, corrupt: bool = False) -> dict[str, np.ndarray]:
    return {"id": np.array(name), "corrupt": np.array(corrupt)}


def _on_canvas(element: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
    return {**element, **transforms.pad(element["image"], element["label"], canvas)}


def _full_name(split: Split) -> str:
    return f"{split.name}/{split.split}"


def _remedy(split: Split) -> str:
    folders = f"{split.name}/{split.split.partition('[')[0]}-*"
    return f"delete {folders} below config.data.data_dir, so that it is prepared anew"

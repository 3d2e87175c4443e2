"""Masks as files: ids, palettes, colours, two values, one file a class."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.data import images
from fcn_jax.data.dataset import Annotation, Palette, voc_palette
from fcn_jax.data.images import VOID
from fcn_jax.data.own.description import FILE, Class, Description

_COUNTS = 3  # different numbers of things in masks, beside which these may be classes
_CLEAR = 0.97  # of the pixels, near 0 or 255 in masks of two values that were smoothed
_BETWEEN = 8  # values between the two, which no ids would have
_MOST_IDS = 64  # more values than so, without a list of classes, are no ids


@dataclasses.dataclass(frozen=True)
class Seen:
    """What some masks hold.

    Attributes:
      kind: `values` or `colours`.
      first: {value, or colour as 0xRRGGBB: a mask that has it}.
      palette: the colours of the values, where the masks have palettes that agree.
      formats: the formats of the files.
      extremes: the share of pixels within 32 of 0 or of 255.
      instances: whether the values of each mask are 0, 1, 2, ... without a gap, and more in some than in others, as
        where things are numbered.
    """

    kind: str
    first: Mapping[int, pathlib.Path]
    palette: Palette = ()
    formats: tuple[str, ...] = ()
    extremes: float = 0.0
    instances: bool = False

    @property
    def values(self) -> list[int]:
        """In order."""
        return sorted(self.first)


def read_values(path: pathlib.Path) -> images.Mask:
    """The values of a mask file, colours as one number 0xRRGGBB, int32 or uint8 [H, W]; grey in colour is grey."""
    mask = images.decode_mask(images.read_file(path), str(path))
    values = mask.values
    if values.ndim == 3:
        first = values[..., 0]
        if (values == first[..., None]).all():
            return mask._replace(values=np.ascontiguousarray(first))
        packed = values.astype(np.int32) @ np.array([0x10000, 0x100, 1], np.int32)
        return mask._replace(values=packed, colours=True)
    return mask


class _One(NamedTuple):
    """What one mask holds, without its pixels."""

    path: pathlib.Path
    values: tuple[int, ...]
    colours: bool
    extremes: float
    palette: Palette
    format: str


def look_at(paths: Iterable[pathlib.Path]) -> Seen:
    """What these masks hold, together; one is in memory at a time. Where some are in colour, grey ones are too."""
    found = [_one(path) for path in paths]
    colours = any(one.colours for one in found)
    first: dict[int, pathlib.Path] = {}
    for one in found:
        for value in one.values:
            key = value * 0x10101 if colours and not one.colours else value
            first.setdefault(key, one.path)
    palettes = {one.palette for one in found}
    tops = {one.values[-1] for one in found}
    gapless = all(len(one.values) == one.values[-1] + 1 for one in found)
    return Seen(
        kind="colours" if colours else "values",
        first=first,
        palette=palettes.pop() if len(palettes) == 1 else (),
        formats=tuple(sorted({one.format for one in found})),
        extremes=float(np.mean([one.extremes for one in found])) if found else 0.0,
        instances=not colours and gapless and len(tops) >= _COUNTS and max(tops) > _COUNTS,
    )


def _one(path: pathlib.Path) -> _One:
    mask = read_values(path)
    near = ((mask.values <= 32) | ((mask.values >= 223) & (mask.values <= VOID))).mean()
    values = tuple(np.unique(mask.values).tolist())
    return _One(path, values, mask.colours, float(near), mask.palette, mask.format)


@dataclasses.dataclass(frozen=True)
class Table:
    """What the values of masks mean.

    Attributes:
      class_names, palette: of the classes, in the order of their ids.
      ids: {value or colour: id, or 255}.
      colours: whether they are colours.
      nearest: that other values are of what is nearest.
      said: how this was found, for people.
    """

    class_names: tuple[str, ...]
    palette: Palette
    ids: Mapping[int, int]
    colours: bool = False
    nearest: bool = False
    said: str = ""

    def read(self, label: Annotation) -> np.ndarray:
        """uint8 [H, W] of class ids; ValueError for a value that is not in the table."""
        mask = read_values(label.paths[0])
        values = mask.values
        if self.colours and not mask.colours:
            values = values.astype(np.int32) * 0x10101
        found, places = np.unique(values, return_inverse=True)
        means = np.array([self._id(value, label) for value in found.tolist()], np.uint8)
        return means[places].reshape(values.shape)

    def _id(self, value: int, label: Annotation) -> int:
        if value in self.ids:
            return self.ids[value]
        if self.nearest:
            return self.ids[min(self.ids, key=lambda known: _distance(known, value, colours=self.colours))]
        what = f"the colour {shown(value)}" if self.colours else f"the value {value}"
        raise ValueError(
            f"{label} has {what}, which is of no class: add it to {FILE}, or look at all masks with python -m"
            " fcn_jax.data check"
        )


def shown(colour: int) -> str:
    """0x804000 as #804000."""
    return f"#{colour:06x}"


def _distance(a: int, b: int, *, colours: bool) -> int:
    if not colours:
        return abs(a - b)
    return sum(((a >> shift & 255) - (b >> shift & 255)) ** 2 for shift in (0, 8, 16))


def table(seen: Seen, description: Description, *, voc: tuple[str, ...] = ()) -> Table:
    """What the values of masks mean, by the description, or deduced where that is safe.

    Args:
      voc: the names of VOC's classes, where the folder is laid out as VOC's.

    Raises:
      ValueError: they may mean several things; says what to write where.
    """
    made = _in_colour(seen, description) if seen.kind == "colours" else _of_values(seen, description, voc)
    return dataclasses.replace(made, nearest=description.nearest or made.nearest)


def _in_colour(seen: Seen, description: Description) -> Table:
    known: dict[int, int] = {_packed(colour): VOID for colour in description.void_colours}
    for index, each in enumerate(description.classes):
        for colour in (*((each.colour,) if each.colour else ()), *each.colours):
            known[_packed(colour)] = index
    if known:
        names = description.class_names
        said = f"masks in colour, by {description.source}"
        return Table(names, description.palette, known, colours=True, said=said)
    colours = seen.values
    if len(colours) > _MOST_IDS:
        raise ValueError(
            f"masks are in {len(colours)} colours, first {seen.first[colours[0]]}: they were smoothed or are"
            f" JPEG, or no masks: give the colours of the classes in {FILE}, with nearest = true"
        )
    lines = ", ".join(f"{{name = '{_colour_name(colour)}', colour = '{shown(colour)}'}}" for colour in colours)
    raise ValueError(
        f"masks are in colour and nothing says which colour is what: write a file {FILE} with classes = [{lines}] and"
        " change the names"
    )


def _colour_name(colour: int) -> str:
    return "background" if colour == 0 else f"class {shown(colour)}"


def _packed(colour: Sequence[int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _of_values(seen: Seen, description: Description, voc: tuple[str, ...]) -> Table:
    classes, values = description.classes, seen.values
    void = {VOID, *description.void}
    if any(each.values for each in classes):
        ids = dict.fromkeys(void, VOID)
        for index, each in enumerate(classes):
            ids |= dict.fromkeys(each.values or (index,), index)
        names = description.class_names
        return Table(names, description.palette, ids, said=f"values by {description.source}")
    if _by_palette(seen, description):
        return _in_palette(seen, description)
    two = _two_values(values, description)
    if two:
        names, palette = _two_classes(description)
        return Table(names, palette, dict(zip(two, (0, 1), strict=True)), said=f"two classes: {two[0]} and {two[1]}")
    between = [value for value in values if 32 < value < 223]
    if len(between) >= _BETWEEN and len(classes) <= 2 and seen.extremes >= _CLEAR and values[-1] <= VOID:
        names, palette = _two_classes(description)
        said = "two classes: 0 and 255, of which the nearest is taken, since masks were smoothed or are JPEG"
        return Table(names, palette, {0: 0, VOID: 1}, nearest=True, said=said)
    used = [value for value in values if value not in void]
    if seen.instances and not classes:
        numbers = ", ".join(map(str, range(1, used[-1] + 1)))
        raise ValueError(
            f"masks seem to number things instead of classes, 0 to {used[-1]} (first {seen.first[used[-1]]}): write"
            f" {FILE} with classes = [{{name = 'background', value = 0}}, {{name = 'thing', values = [{numbers}]}}],"
            " or, if they are classes, list these in classes.txt"
        )
    if classes:
        return _of_listed(used, void, description, seen)
    if len(used) > _MOST_IDS or (used and used[-1] > VOID):
        first = seen.first[used[-1]]
        raise ValueError(
            f"masks have {len(used)} values up to {used[-1]}, first {first}: they were smoothed, are JPEG or grey"
            f" pictures, or have ids of things: list the classes in classes.txt, or in {FILE} with nearest = true"
        )
    if voc and seen.palette[: len(voc)] == voc_palette(len(voc)) and used[-1:] < [len(voc)]:
        return Table(
            voc, voc_palette(len(voc)), _identity(len(voc), void), said="VOC's classes, by folders and colours"
        )
    if not used or used[0] != 0 or len(used) < 2 or used[-1] >= 2 * len(used):
        raise ValueError(
            f"masks have the values {', '.join(map(str, values))}, first {seen.first[values[0]]}: which of them are"
            f" classes is not clear; list these in classes.txt, or with their values in {FILE}"
        )
    number = used[-1] + 1
    names = tuple(f"class {index}" for index in range(number))
    palette = seen.palette[:number] if len(seen.palette) >= number else voc_palette(number)
    return Table(names, palette, _identity(number, void), said=f"values are ids, 0 to {number - 1}")


def _by_palette(seen: Seen, description: Description) -> bool:
    """Whether the colours of palettes are those of the classes, and the values are not their ids."""
    colours = {_packed(each.colour) for each in description.classes if each.colour}
    colours |= {_packed(colour) for colour in description.void_colours}
    if not seen.palette or not colours or len(seen.palette) <= max(seen.values):
        return False
    return {_packed(seen.palette[value]) for value in seen.values} <= colours


def _in_palette(seen: Seen, description: Description) -> Table:
    by_colour = _in_colour(seen, description).ids
    ids = {v: by_colour[_packed(c)] for v, c in enumerate(seen.palette) if _packed(c) in by_colour}
    names = description.class_names
    return Table(names, description.palette, ids, said=f"palettes, by the colours of {description.source}")


def _two_values(values: Sequence[int], description: Description) -> tuple[int, int] | None:
    """0 and 255 are background and foreground, unless three classes or more are listed, or 255 is void."""
    if len(description.classes) > 2 or VOID in description.void:
        return None
    return (values[0], values[1]) if list(values) == [0, VOID] else None


def _two_classes(description: Description) -> tuple[tuple[str, ...], Palette]:
    if len(description.classes) < 2:
        description = description.background_first()
    if len(description.classes) < 2:
        description = dataclasses.replace(description, classes=(*description.classes, Class("foreground")))
    return description.class_names, description.palette


def _of_listed(used: Sequence[int], void: set[int], description: Description, seen: Seen) -> Table:
    names = description.class_names
    number, source = len(names), description.source
    if not used or used[-1] < number:
        return Table(names, description.palette, _identity(number, void), said=f"values are the places in {source}")
    if used[0] == 1 and used[-1] == number:
        ids = {value + 1: value for value in range(number)} | dict.fromkeys(void, VOID)
        return Table(names, description.palette, ids, said=f"values begin at 1, the first class of {source}")
    if used[-1] == number and names[0].lower() != "background":
        raise ValueError(
            f"masks have the values 0 to {number}, first {seen.first[number]}, and {source} has {number} classes: if 0"
            f" is background, add it as the first class; if 0 is void, write {FILE} with void = [0] and the values 1 to"
            f" {number} of the classes"
        )
    if number == 1 and names[0].lower() != "background":
        return _of_listed(used, void, description.background_first(), seen)
    raise ValueError(
        f"masks have the value {used[-1]}, first {seen.first[used[-1]]}, and {source} has {number} classes, 0 to"
        f" {number - 1}: complete it, or give values in {FILE}"
    )


def _identity(number: int, void: set[int]) -> dict[int, int]:
    return {**dict.fromkeys(void, VOID), **{value: value for value in range(number) if value not in void}}


@dataclasses.dataclass(frozen=True)
class PerClass:
    """One mask for each class of an image; what is not 0 in several is of the last of them in the order of classes."""

    class_names: tuple[str, ...]
    palette: Palette
    said: str = ""

    def read(self, label: Annotation) -> np.ndarray:
        """uint8 [H, W]; what is 0 in all of them is background."""
        parts = dict(zip(label.keys, label.paths, strict=True))
        unknown = sorted(parts.keys() - {*self.class_names})
        if unknown:
            raise ValueError(f"{parts[unknown[0]]} is of the class {unknown[0]!r}, which is not in the list: add it")
        found: np.ndarray | None = None
        for index, name in enumerate(self.class_names):
            if name not in parts:
                continue
            values = read_values(parts[name]).values
            found = np.zeros(values.shape, np.uint8) if found is None else found
            if values.shape != found.shape:
                raise ValueError(
                    f"{parts[name]} has another size than the other masks of the image: they must be equal"
                )
            found[values != 0] = index
        assert found is not None
        return found


def per_class(names: Sequence[str], description: Description) -> PerClass:
    """Of the classes that have masks, background first, in the order of the description if there is one."""
    if not description.classes:
        description = Description(tuple(Class(name) for name in names))
    description = description.background_first()
    ordered = description.class_names
    return PerClass(ordered, description.palette, said=f"a mask for each class, {', '.join(ordered)}")


@functools.lru_cache(1)
def voc_names() -> tuple[str, ...]:
    """Of VOC's classes."""
    from fcn_jax.data.builders import voc_segmentation

    return voc_segmentation.DATASET.labels[0].class_names

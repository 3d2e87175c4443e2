"""Polygons in JSON files: labelme's and Cityscapes', a file an image, and COCO's, a file for all."""

import base64
import binascii
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fcn_jax.data import images
from fcn_jax.data.dataset import Annotation, Palette, voc_palette
from fcn_jax.data.images import VOID
from fcn_jax.data.own import polygons
from fcn_jax.data.own.description import NAMED_VOID, Colour, Description

BACKGROUND, IGNORE = "_background_", "__ignore__"
# What reading JSON raises that has other values than it should.
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
_LINE, _POINT = 10, 5  # pixels, width of a line and radius of a point, as labelme's own converter has them


def load(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file, whatever its size; ValueError in one line where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise images.CorruptError(f"{path} is no JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(value, dict):
        raise images.CorruptError(f"{path} holds no JSON object")
    return value


def kind_of(value: Mapping[str, Any]) -> str:
    """labelme, cityscapes, coco, or '' for none of them."""
    if isinstance(value.get("shapes"), list):
        return "labelme"
    if isinstance(value.get("objects"), list):
        return "cityscapes"
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return "coco"
    return ""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Shapes of labelme or polygons of Cityscapes: later ones lie over earlier ones.

    Attributes:
      class_names, palette: the classes, in the order of their ids.
      ids: {label of a shape: class id, or 255}.
      rest: what is in no shape: class id, or 255.
      said: how this was found, for people.
    """

    class_names: tuple[str, ...]
    palette: Palette
    ids: Mapping[str, int]
    rest: int
    said: str = ""

    def read(self, label: Annotation) -> np.ndarray:
        """uint8 [H, W] of class ids; ValueError for a label that is of no class."""
        path = label.paths[0]
        value = load(path)
        try:
            if kind_of(value) == "labelme":
                size = int(value["imageHeight"]), int(value["imageWidth"])
                drawn = [(shape["label"], _shape(shape, size)) for shape in value["shapes"]]
            else:
                size = int(value["imgHeight"]), int(value["imgWidth"])
                drawn = [
                    (entry["label"], polygons.fill(size, entry["polygon"]))
                    for entry in value["objects"]
                    if not entry.get("deleted")
                ]
        except _MALFORMED as error:
            raise images.CorruptError(
                f"{path} has a shape that cannot be drawn ({error!r:.100})", "correct it"
            ) from None
        mask = np.full(size, self.rest, np.uint8)
        for name, inside in drawn:
            if not isinstance(name, str) or name not in self.ids:
                shown = f"{str(name)[:80]!r}, which is of no class"
                raise ValueError(f"{path} has the label {shown}: add it to the list of classes")
            mask[inside] = self.ids[name]
        return mask


def _shape(shape: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of a shape of labelme."""
    kind, points = shape.get("shape_type") or "polygon", np.asarray(shape["points"], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 10 * images.MAX_PIXELS:
        raise ValueError(f"points {points.tolist()!r:.60}")
    if kind == "polygon":
        return polygons.fill(size, points)
    if kind == "rectangle":
        (left, top), (right, bottom) = points[0], points[-1]
        return polygons.fill(size, [(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "circle":
        (x, y), (x2, y2) = points
        rows, columns = np.ogrid[: size[0], : size[1]]
        inside: np.ndarray = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= (x2 - x) ** 2 + (y2 - y) ** 2
        return inside
    if kind == "mask":
        return _pasted(shape["mask"], points, size)
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    if kind in ("line", "linestrip"):
        draw.line([tuple(point) for point in points], fill=1, width=_LINE)
    elif kind in ("point", "points"):
        for x, y in points:
            draw.ellipse((x - _POINT, y - _POINT, x + _POINT, y + _POINT), fill=1)
    else:
        raise ValueError(f"shape_type {kind!r}")
    return np.asarray(canvas)


def _pasted(data: str, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask within the box of two points, both of which it holds."""
    try:
        part = images.decode_mask(base64.b64decode(data, validate=True), "a mask").values != 0
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    left, top = (math.floor(value) for value in points.min(0))
    canvas = np.zeros(size, bool)
    window = canvas[max(top, 0) : top + part.shape[0], max(left, 0) : left + part.shape[1]]
    window[...] = part[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]]
    return canvas


def drawn(paths: Iterable[pathlib.Path], description: Description) -> Drawn:
    """The classes of shapes: those of the description, or all labels that the files have, by name.

    What is in no shape is background in labelme's files, and void in those of Cityscapes.
    """
    labels: dict[str, int] = {}
    kinds = set()
    for path in paths:
        value = load(path)
        kind = kind_of(value)
        if kind not in ("labelme", "cityscapes"):
            raise ValueError(f"{path} holds neither shapes (labelme) nor objects (Cityscapes): move it away")
        kinds.add(kind)
        for entry in value["shapes" if kind == "labelme" else "objects"]:
            if isinstance(entry, dict) and isinstance(entry.get("label"), str):
                labels[entry["label"]] = labels.get(entry["label"], 0) + 1
    background = "labelme" in kinds
    special = {**dict.fromkeys(NAMED_VOID, VOID), BACKGROUND: 0 if background else VOID}
    if description.classes:
        description = description.background_first() if background else description
        names, palette, source = description.class_names, description.palette, description.source
        known = description.ids
    else:
        found = sorted(labels.keys() - special.keys() - ({"background"} if background else set()))
        names = ("background", *found) if background else tuple(found)
        palette, known = voc_palette(len(names)), {name: index for index, name in enumerate(names)}
        source = "the labels that there are"
    if len(names) < 2:
        raise ValueError(f"shapes have the labels {', '.join(labels) or 'none'}: two classes are needed at least")
    ids = {**special, **known}
    tool = "labelme's shapes" if background else "Cityscapes' polygons"
    return Drawn(names, palette, ids, 0 if background else VOID, said=f"{tool}, classes by {source}")


@dataclasses.dataclass(frozen=True)
class Coco:
    """What is in a COCO file: things (polygons or run lengths, the smaller over the larger), or a panoptic list.

    Attributes:
      class_names, palette: of things background and the categories; of a panoptic list the categories.
      ids: {category of the file: class id}.
      panoptic: whether PNGs of segments, R + 256 G + 65536 B, hold the pixels; what no segment has is void.
      said: how this was found, for people.
    """

    class_names: tuple[str, ...]
    palette: Palette
    ids: Mapping[int, int]
    panoptic: bool = False
    said: str = ""

    def read(self, label: Annotation) -> np.ndarray:
        """uint8 [H, W] of class ids."""
        path, (name, *_) = label.paths[0], label.keys
        file = read_coco(path)
        entry, size = file.entries[name], file.sizes[name]
        try:
            return self._segments(entry[0], label) if self.panoptic else self._things(entry, size)
        except _MALFORMED as error:
            raise images.CorruptError(
                f"{label} has a segment that cannot be drawn ({error!r:.100})", "correct it"
            ) from None

    def _things(self, entry: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
        parts = [(self.ids[thing["category_id"]], _thing(thing["segmentation"], size)) for thing in entry]
        mask = np.zeros(size, np.uint8)
        for index, inside in sorted(parts, key=lambda part: -int(part[1].sum())):
            mask[inside] = index
        return mask

    def _segments(self, entry: Mapping[str, Any], label: Annotation) -> np.ndarray:
        rgb = images.decode_image(images.read_file(label.paths[1]), str(label.paths[1])).astype(np.int32)
        found, places = np.unique(rgb @ np.array([1, 256, 65536], np.int32), return_inverse=True)
        ids = {segment["id"]: self.ids[segment["category_id"]] for segment in entry["segments_info"]}
        return np.array([ids.get(value, VOID) for value in found.tolist()], np.uint8)[places].reshape(rgb.shape[:2])


def _thing(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"size {segmentation['size']}")
        return polygons.decode_rle(segmentation["counts"], size)
    inside = np.zeros(size, bool)
    for polygon in segmentation:
        inside |= polygons.fill(size, polygon)
    return inside


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """A COCO file by the names of its images.

    Attributes:
      sizes: {name: (height, width)}.
      entries: {name: its annotations}.
      categories: {id: (name, colour or None)}.
      panoptic: as in Coco.
    """

    sizes: Mapping[str, tuple[int, int]]
    entries: Mapping[str, list[dict[str, Any]]]
    categories: Mapping[int, tuple[str, Colour | None]]
    panoptic: bool


def read_coco(path: pathlib.Path) -> CocoFile:
    """A COCO file; ValueError if it is none, or names what it has not. The last one is kept."""
    return _read_coco(path, path.stat().st_mtime_ns)


@functools.lru_cache(4)
def _read_coco(path: pathlib.Path, _: int) -> CocoFile:
    value = load(path)
    try:
        names = {image["id"]: str(image["file_name"]) for image in value["images"]}
        if not all(isinstance(category["id"], int) for category in value["categories"]):
            raise ValueError("ids of categories are not all whole numbers")
        sizes = {names[image["id"]]: (int(image["height"]), int(image["width"])) for image in value["images"]}
        entries: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        for entry in value["annotations"]:
            if "segments_info" in entry or entry.get("segmentation"):
                entries[names[entry["image_id"]]].append(entry)
        categories = {c["id"]: (str(c["name"]), _colour(c)) for c in value["categories"]}
    except _MALFORMED as error:
        raise images.CorruptError(f"{path} is no COCO file ({error!r:.100})", "export it again") from None
    panoptic = any("segments_info" in parts[0] for parts in entries.values() if parts)
    for name, parts in entries.items():
        files = [part.get("file_name") for part in parts] if panoptic else []
        if any(("segments_info" in part) != panoptic for part in parts) or not all(isinstance(f, str) for f in files):
            raise images.CorruptError(f"{path} has things and segments, or segments without a file ({name[:80]!r})")
    if panoptic:  # an image without segments has no pixels to read
        entries = {name: parts for name, parts in entries.items() if parts}
    return CocoFile(sizes, entries, categories, panoptic)


def _colour(category: Mapping[str, Any]) -> Colour | None:
    colour = category.get("color")
    if isinstance(colour, list) and len(colour) == 3 and all(isinstance(n, int) and 0 <= n < 256 for n in colour):
        return colour[0], colour[1], colour[2]
    return None


def coco(paths: Sequence[pathlib.Path], description: Description) -> Coco:
    """The classes of COCO files, which must agree: categories by id, or those that the description has by name."""
    files = [read_coco(path) for path in paths]
    categories: dict[int, tuple[str, Colour | None]] = {}
    for path, file in zip(paths, files, strict=True):
        for number, category in file.categories.items():
            if categories.setdefault(number, category)[0] != category[0]:
                raise ValueError(
                    f"{path} calls category {number} {category[0]!r}, and another file does not: export anew"
                )
    panoptic = files[0].panoptic
    if any(file.panoptic != panoptic for file in files):
        raise ValueError(f"{paths[0]} and others are of things and panoptic at once: leave one kind")
    first = 0 if panoptic else 1
    if description.classes:
        description = description if panoptic else description.background_first()
        by_name = description.ids
        missing = sorted(name for name, _ in categories.values() if name not in by_name)
        if missing:
            raise ValueError(
                f"{paths[0]} has the category {missing[0][:80]!r}, which {description.source} has not: add it"
            )
        ids = {number: by_name[name] for number, (name, _) in categories.items()}
        said = f"COCO{', panoptic' if panoptic else ''}, classes by {description.source}"
        return Coco(description.class_names, description.palette, ids, panoptic, said)
    ordered = sorted(categories)
    names = (*("background",) * first, *(categories[number][0] for number in ordered))
    usual = voc_palette(len(names))
    colours = [categories[number][1] or usual[first + index] for index, number in enumerate(ordered)]
    ids = {number: first + index for index, number in enumerate(ordered)}
    return Coco(names, (*usual[:first], *colours), ids, panoptic, said=f"COCO{', panoptic' if panoptic else ''}")

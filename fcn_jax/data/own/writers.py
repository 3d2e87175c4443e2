"""Masks in the forms that annotation tools read: labelme, CVAT, COCO, and plain ids; forms.py reads them all back."""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax import visualize
from fcn_jax.data.dataset import Palette
from fcn_jax.data.images import VOID
from fcn_jax.data.own import polygons
from fcn_jax.data.own.shapes import BACKGROUND, IGNORE

_LABELME = "5.0.0"  # whose layout it is; later ones read it


def write_text(path: pathlib.Path, text: str) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def labelme(mask: np.ndarray, class_names: Sequence[str], image_path: str) -> str:
    """labelme's JSON of a mask uint8 [H, W]: polygons along pixels' edges, the larger first, since later ones lie over.

    Background (the first class, if it is called so) is drawn where something else surrounds it alone; what is void is
    drawn as `__ignore__`. Drawn in this order, the polygons are the mask again.
    """
    height, width = mask.shape
    rest = 0 if class_names[0].lower() in ("background", BACKGROUND) else None
    drawn = []
    for region in polygons.regions(mask):
        if region.id == rest and not region.inside:
            continue
        name = IGNORE if region.id == VOID else BACKGROUND if region.id == rest else class_names[region.id]
        drawn.append(
            {"label": name, "points": region.points.tolist(), "group_id": None, "shape_type": "polygon", "flags": {}}
        )
    content = {
        "version": _LABELME,
        "flags": {},
        "shapes": drawn,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(content, indent=1) + "\n"


def labelmap(class_names: Sequence[str], palette: Palette) -> str:
    """CVAT's labelmap.txt, with a line for void."""
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(class_names, palette, strict=True)]
    return (
        "\n".join(["# label:color_rgb:parts:actions", *lines, f"void:{','.join(map(str, visualize.WHITE))}::"]) + "\n"
    )


class Cvat:
    """A zip in CVAT's form Segmentation mask 1.1, of class masks alone, as CVAT imports it.

    The file is there when the context is left, and not if an error leaves it.
    """

    def __init__(self, path: pathlib.Path, class_names: Sequence[str], palette: Palette):
        if len({*palette, visualize.WHITE}) <= len(palette):
            raise ValueError("two classes have one colour, or white, which is void: CVAT tells classes by colours")
        self._path, self._names, self._palette = path, class_names, palette
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._zip = zipfile.ZipFile(self._partial, "w")
        self._ids: list[str] = []

    def add(self, name: str, mask: np.ndarray) -> None:
        """The mask uint8 [H, W] of the image that is called `name` without its ending."""
        buffer = io.BytesIO()
        Image.fromarray(visualize.colorize(mask, self._palette)).save(buffer, "png")
        self._zip.writestr(f"SegmentationClass/{name}.png", buffer.getvalue())
        self._ids.append(name)

    def __enter__(self) -> "Cvat":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._zip.writestr("labelmap.txt", labelmap(self._names, self._palette))
            self._zip.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in self._ids))
        self._zip.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


def coco(entries: Mapping[str, np.ndarray], class_names: Sequence[str], palette: Palette) -> str:
    """COCO's JSON of masks {file name: uint8 [H, W]}: run lengths, one a class and image.

    The first class is background. What is void is annotated as nothing, since COCO has no word for it.
    """
    found: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for index, (name, colour) in enumerate(zip(class_names, palette, strict=True)):
        if index:
            found["categories"].append({"id": index, "name": name, "color": list(colour)})
    for number, (name, mask) in enumerate(entries.items(), 1):
        height, width = mask.shape
        found["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for value in np.unique(mask).tolist():
            if value in (0, VOID):
                continue
            inside = mask == value
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            found["annotations"].append(
                {
                    "id": len(found["annotations"]) + 1,
                    "image_id": number,
                    "category_id": value,
                    "segmentation": {"size": [height, width], "counts": polygons.encode_rle(inside)},
                    "area": int(inside.sum()),
                    "bbox": [int(n) for n in box],
                    "iscrowd": 1,
                }
            )
    return json.dumps(found) + "\n"


def class_list(class_names: Sequence[str], palette: Palette) -> str:
    """classes.txt: a name and a colour a line."""
    return "".join(f"{name} #{r:02x}{g:02x}{b:02x}\n" for name, (r, g, b) in zip(class_names, palette, strict=True))

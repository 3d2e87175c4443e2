"""In which form annotations are, and so what reads them."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fcn_jax.data.dataset import Annotation, Palette
from fcn_jax.data.images import VOID
from fcn_jax.data.own import masks, shapes
from fcn_jax.data.own.description import Description
from fcn_jax.data.own.pairs import Pairing

SAMPLE = 500  # masks that are looked at to tell what they are; the others are held to it when they are prepared


class Form(Protocol):
    """What reads annotations, with the classes that they have."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their ids."""

    @property
    def palette(self) -> Palette:
        """Their colours."""

    @property
    def said(self) -> str:
        """What it was told by, for people."""

    def read(self, label: Annotation) -> np.ndarray:
        """uint8 [H, W] of class ids, 255 = void; ValueError for what has no meaning."""


def of(pairing: Pairing, description: Description, root: pathlib.Path) -> Form:
    """The form of the annotations; ValueError where they may mean several things, with what to write where."""
    if pairing.coco:
        return shapes.coco(pairing.coco, description)
    if pairing.per_class:
        return masks.per_class(pairing.per_class, description)
    paths = [pair.label.paths[0] for pair in pairing.pairs]
    json = [path for path in paths if path.suffix.lower() == ".json"]
    if json and len(json) < len(paths):
        raise ValueError(
            f"{len(json)} annotations are JSON, first {json[0]}, and {len(paths) - len(json)} are masks: say by labels"
            " = 'FOLDER' in dataset.toml which to take"
        )
    if json:
        return shapes.drawn(json, description)
    voc = masks.voc_names() if any("SegmentationClass" in path.parts[-2] for path in paths) else ()
    return masks.table(masks.look_at(sample(paths)), description, voc=voc)


def annotated(form: Form | None, description: Description) -> str:
    """`upright` or `stored`, as config.data.annotated: tools draw shapes upon images as EXIF turns them."""
    return description.annotated or ("upright" if isinstance(form, shapes.Drawn) else "stored")


def sample(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """At most SAMPLE of them, by the hash of their names: every n-th would miss what comes with n."""
    if len(paths) <= SAMPLE:
        return list(paths)
    return sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())[:SAMPLE]


def read(form: Form, label: Annotation) -> np.ndarray:
    """What a form reads, void outside of the region."""
    found = form.read(label)
    if label.region is None:
        return found
    inside = masks.read_values(label.region).values
    if inside.shape != found.shape:
        raise ValueError(f"{label.region} is {inside.shape}, and its label is {found.shape}: they must be equal")
    return np.where(inside != 0, found, np.uint8(VOID))

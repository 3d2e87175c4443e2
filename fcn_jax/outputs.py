"""What fcn_jax.predict writes of an image: masks, pictures, scores, and files that annotation tools read."""

import contextlib
import csv
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fcn_jax import visualize
from fcn_jax.data.own import writers
from fcn_jax.models.spec import ModelSpec
from fcn_jax.predictor import Found

VOID = 255
MANIFEST = ".fcn_jax_predict.txt"  # the files of a folder that fcn_jax.predict has written


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
      kinds: of KINDS and TABLES.
      classes: names of the classes that are wanted; none for all. What is of others is the first class in masks, if it
        is called background, and void (255) else.
    """

    spec: ModelSpec
    kinds: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in (*KINDS, *TABLES)]
        if unknown or not self.kinds:
            raise ValueError(f"--write={','.join(self.kinds)}: choose from {', '.join((*KINDS, *TABLES))}")
        names = self.spec.class_names
        unknown = [name for name in self.classes if name not in names]
        if unknown:
            raise ValueError(f"--classes has {unknown[0]!r}, which the network has not: choose from {', '.join(names)}")
        if "probability" in self.kinds and not self.classes:
            raise ValueError("--write=probability is of single classes: name them, --classes=person,car")

    @property
    def scored(self) -> bool:
        """Whether probabilities are needed."""
        return bool({"scores", "probability"} & {*self.kinds})

    def targets(self, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
        """The files of an image that is called `name`."""
        kinds = [KINDS[kind] for kind in self.kinds if kind in KINDS]
        suffixes = [head.suffix for head, _ in self.spec.outputs]
        return [folder / part for _, names in kinds for suffix in suffixes for part in names(f"{name}{suffix}", self)]

    def tables(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """The files that are of all images."""
        return [folder / TABLES[kind] for kind in self.kinds if kind in TABLES]

    def chosen(self, mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The mask uint8 [H, W] of a head with these classes, without those that are not wanted."""
        if not self.classes:
            return mask
        table = np.full(256, 0 if names[0].lower() == "background" else VOID, np.uint8)
        table[[index for index, name in enumerate(names) if name in self.classes]] = [
            index for index, name in enumerate(names) if name in self.classes
        ]
        return table[mask]

    def shown(self, names: Sequence[str]) -> np.ndarray:
        """bool [256]: the ids of a head's classes that are wanted; without a wish all but the first one."""
        table = np.zeros(256, bool)
        table[: len(names)] = [name in self.classes if self.classes else index > 0 for index, name in enumerate(names)]
        return table


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one head finds in an image."""

    image: np.ndarray
    path: pathlib.Path
    mask: np.ndarray
    scores: np.ndarray | None
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


def _mask(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    visualize.save_mask(targets[0], wanted.chosen(part.mask, part.names), part.palette)


def _overlay(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    mask = _as_shown(part)
    picture = visualize.overlay(part.image, mask, part.palette, shown=wanted.shown(part.names))
    Image.fromarray(picture).save(targets[0], quality=95)


def _cutout(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    """What is wanted of the image, all else transparent."""
    alpha = np.where(wanted.shown(part.names)[_as_shown(part)], np.uint8(255), np.uint8(0))
    Image.fromarray(np.dstack([part.image, alpha])).save(targets[0])


def _as_shown(part: _Part) -> np.ndarray:
    """The mask at the size at which the image was read."""
    size = part.image.shape[1::-1]
    if part.mask.shape[::-1] == size:
        return part.mask
    return np.asarray(Image.fromarray(part.mask).resize(size, Image.Resampling.NEAREST))


def _scores(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    """`scores` float32 [H, W, C], and `classes`, the names of the C."""
    assert part.scores is not None
    places = [index for index, name in enumerate(part.names) if not wanted.classes or name in wanted.classes]
    np.savez_compressed(targets[0], scores=part.scores[..., places], classes=np.array([part.names[i] for i in places]))


def _probability(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    """A grey PNG of 16 bits for each class: 65,535 is a probability of 1."""
    assert part.scores is not None
    names = [name for name in wanted.classes if name in part.names]
    for name, target in zip(names, targets, strict=True):
        grey = np.round(part.scores[..., part.names.index(name)] * 65535).astype(np.uint16)
        Image.fromarray(grey).save(target)


def _labelme(part: _Part, wanted: Wanted, targets: Sequence[pathlib.Path]) -> None:
    image = os.path.relpath(part.path.absolute(), targets[0].parent.absolute())
    writers.write_text(targets[0], writers.labelme(wanted.chosen(part.mask, part.names), part.names, image))


def _of_classes(name: str, wanted: Wanted) -> list[str]:
    return [f"{name}_{each.replace('/', '_')}.png" for each in wanted.classes]


# What is written of each image: the function, and what its files are called.
KINDS: dict[str, tuple[Callable[[_Part, Wanted, Sequence[pathlib.Path]], None], Callable[[str, Wanted], list[str]]]] = {
    "mask": (_mask, lambda name, _: [f"{name}.png"]),
    "overlay": (_overlay, lambda name, _: [f"{name}_overlay.jpg"]),
    "cutout": (_cutout, lambda name, _: [f"{name}_cutout.png"]),
    "scores": (_scores, lambda name, _: [f"{name}_scores.npz"]),
    "probability": (_probability, _of_classes),
    "labelme": (_labelme, lambda name, _: [f"{name}.json"]),
}
# And of all images together.
TABLES = {"areas": "areas.csv", "cvat": "cvat.zip"}


def write(found: Found, image: np.ndarray, path: pathlib.Path, wanted: Wanted, folder: pathlib.Path, name: str) -> None:
    """All files of an image or, if one cannot be written, none.

    Args:
      found: at the size of the image's file.
      image: uint8 [H', W', 3], as it is shown; maybe smaller.
      path: of the image.
    """
    spec = wanted.spec
    masks = [found.mask] if found.mask.ndim == 2 else np.moveaxis(found.mask, -1, 0)
    try:
        for (head, place), mask in zip(spec.outputs, masks, strict=True):
            scores = None if found.scores is None else found.scores[..., place]
            part = _Part(image, path, mask, scores, spec.class_names[place], spec.palette[place])
            for kind in wanted.kinds:
                if kind in KINDS:
                    function, names = KINDS[kind]
                    function(part, wanted, [folder / each for each in names(f"{name}{head.suffix}", wanted)])
    except BaseException:
        for target in wanted.targets(folder, name):
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        raise


class Tables:
    """What is written of all images together; it is there when the context is left, even by an error."""

    def __init__(self, wanted: Wanted, folder: pathlib.Path):
        self._wanted, self._folder = wanted, folder
        self._names = wanted.spec.class_names[wanted.spec.outputs[0][1]]
        self._palette = wanted.spec.palette[wanted.spec.outputs[0][1]]
        self._areas: dict[str, np.ndarray] = {}
        self._cvat = (
            writers.Cvat(folder / TABLES["cvat"], self._names, self._palette) if "cvat" in wanted.kinds else None
        )

    def add(self, name: str, found: Found) -> None:
        """An image; of several heads the first."""
        if not self._wanted.tables(self._folder):
            return
        mask = self._wanted.chosen(found.mask if found.mask.ndim == 2 else found.mask[..., 0], self._names)
        # By rows, since counting takes eight bytes a pixel.
        self._areas[name] = np.sum([np.bincount(row, minlength=256) for row in mask], axis=0)
        if self._cvat is not None:
            self._cvat.add(name, mask)

    def __enter__(self) -> "Tables":
        return self

    def __exit__(self, *_: object) -> None:
        if self._cvat is not None:
            self._cvat.__exit__(None)
        if "areas" in self._wanted.kinds:
            self._write_areas()

    def _write_areas(self) -> None:
        """A line an image: pixels, and of each class its share of them in percent."""
        names = [name for name in self._names if not self._wanted.classes or name in self._wanted.classes]
        places = [self._names.index(name) for name in names]
        path = self._folder / TABLES["areas"]
        partial = path.with_name(f".{path.name}.part")
        with open(partial, "w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", "pixels", *names])
            for name, counts in self._areas.items():
                total = int(counts.sum())
                table.writerow([name, total, *(f"{100 * counts[place] / total:.4f}" for place in places)])
        partial.replace(path)


def claim(folder: pathlib.Path, targets: Sequence[pathlib.Path]) -> None:
    """Makes the folder and notes what will be written there.

    Raises:
      ValueError: a target is there, and no earlier call of this has noted it: it is somebody's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    known = {*manifest.read_text("utf-8").splitlines()} if manifest.exists() else set()
    foreign = [target for target in targets if os.path.lexists(target) and target.name not in known]
    if foreign:
        raise ValueError(
            f"{str(foreign[0])!r} and {len(foreign) - 1} more are there and not written by this command: name another"
            " --output, or move them away"
        )
    names = known | {target.name for target in targets}
    writers.write_text(manifest, "".join(f"{name}\n" for name in sorted(names)))

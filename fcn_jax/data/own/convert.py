"""A folder of one's own in another form: plain ids, or what labelme, CVAT or COCO read."""

import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fcn_jax import visualize
from fcn_jax.data import images
from fcn_jax.data.own import forms, writers
from fcn_jax.data.own.check import Checked
from fcn_jax.data.own.pairs import Pair

FORMS = ("ids", "labelme", "cvat", "coco")


def convert(
    checked: Checked,
    output: pathlib.Path,
    form: str,
    progress: Callable[[Iterable[Pair], int], Iterable[Pair]] = lambda items, _: items,
) -> int:
    """Writes what can be used of a folder into the empty or new folder `output`; the number of images.

    `ids`: images/, masks/ (palette PNG of ids, 255 void), classes.txt and a list a split. `labelme`: each image beside
    its JSON, below a folder a split. `cvat`: images/ and a zip a split. `coco`: images/ and annotations/SPLIT.json.

    Raises:
      ValueError: `output` holds something, an unknown form, or it is not clear what annotations mean.
    """
    if form not in FORMS:
        raise ValueError(f"--form={form!r}: choose from {', '.join(FORMS)}")
    if checked.form is None:
        raise ValueError(
            f"{checked.root}: it is not clear what annotations mean: python -m fcn_jax.data check tells more"
        )
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output={str(output)!r} is not empty: name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    good = {found.pair.image: found for found in checked.looks if not found.error}
    pairs = [pair for pair in checked.pairing.pairs if pair.image in good]
    write = {"ids": _ids, "labelme": _labelme, "cvat": _cvat, "coco": _coco}[form]

    def items() -> Iterator[tuple[Pair, str, np.ndarray]]:
        for pair in progress(pairs, len(pairs)):
            mask = forms.read(checked.form, pair.label)  # type: ignore[arg-type]
            if checked.annotated == "stored":
                mask = images.turn(mask, good[pair.image].orientation)
            yield pair, pair.id.replace("/", "_"), mask

    write(items(), output, checked)
    return len(pairs)


def _copy(pair: Pair, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pair.image, target)


def _ids(items: Iterator[tuple[Pair, str, np.ndarray]], output: pathlib.Path, checked: Checked) -> None:
    assert checked.form is not None
    listed: dict[str, list[str]] = {}
    (output / "masks").mkdir()
    for pair, name, mask in items:
        _copy(pair, output / "images" / f"{name}{pair.image.suffix}")
        visualize.save_mask(output / "masks" / f"{name}.png", mask, checked.form.palette)
        listed.setdefault(pair.split, []).append(name)
    for split, names in listed.items():
        writers.write_text(output / f"{split}.txt", "".join(f"{name}\n" for name in names))
    writers.write_text(output / "classes.txt", writers.class_list(checked.form.class_names, checked.form.palette))


def _labelme(items: Iterator[tuple[Pair, str, np.ndarray]], output: pathlib.Path, checked: Checked) -> None:
    assert checked.form is not None
    for pair, name, mask in items:
        image = output / pair.split / f"{name}{pair.image.suffix}"
        _copy(pair, image)
        text = writers.labelme(mask, checked.form.class_names, image.name)
        writers.write_text(image.with_suffix(".json"), text)
    writers.write_text(output / "classes.txt", writers.class_list(checked.form.class_names, checked.form.palette))


def _cvat(items: Iterator[tuple[Pair, str, np.ndarray]], output: pathlib.Path, checked: Checked) -> None:
    assert checked.form is not None
    by_split: dict[str, writers.Cvat] = {}
    for pair, name, mask in items:
        _copy(pair, output / "images" / pair.split / f"{name}{pair.image.suffix}")
        if pair.split not in by_split:
            path = output / f"{pair.split}.zip"
            by_split[pair.split] = writers.Cvat(path, checked.form.class_names, checked.form.palette)
        by_split[pair.split].add(name, mask)
    for archive in by_split.values():
        with archive:
            pass


def _coco(items: Iterator[tuple[Pair, str, np.ndarray]], output: pathlib.Path, checked: Checked) -> None:
    assert checked.form is not None
    by_split: dict[str, dict[str, np.ndarray]] = {}
    for pair, name, mask in items:
        image = f"{name}{pair.image.suffix}"
        _copy(pair, output / "images" / image)
        by_split.setdefault(pair.split, {})[image] = mask
    (output / "annotations").mkdir()
    for split, entries in by_split.items():
        text = writers.coco(entries, checked.form.class_names, checked.form.palette)
        writers.write_text(output / "annotations" / f"instances_{split}.json", text)

"""What a folder says of itself: dataset.toml, or the class lists that tools write."""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from fcn_jax.data import lists
from fcn_jax.data.dataset import Palette, voc_palette

FILE = "dataset.toml"
Colour = tuple[int, int, int]
_KEYS = {
    "classes": list,
    "images": str | list,
    "labels": str | list,
    "region": str | list,
    "void": list,
    "void_colours": list,
    "annotated": str,
    "nearest": bool,
    "splits": dict,
    "mirrored": list,
}
_CLASS_KEYS = {"name": str, "colour": str | list, "value": int, "values": list, "colours": list, "labels": list}
_BACKGROUND = ("background", "_background_")
NAMED_VOID = ("void", "__ignore__", "ignore", "unlabelled", "unlabeled", "out of roi")


@dataclasses.dataclass(frozen=True)
class Class:
    """A class of one's own.

    Attributes:
      name: it.
      colour: what it is shown in, and what masks in colour have; None where nothing says it.
      values: those of masks of ids; empty for its place in the list.
      colours: further ones of masks in colour.
      labels: further names that polygons have.
    """

    name: str
    colour: Colour | None = None
    values: tuple[int, ...] = ()
    colours: tuple[Colour, ...] = ()
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Description:
    """What is said; what is empty is left to the folder.

    Attributes:
      classes: in the order of their ids.
      source: the file that says them, for people.
      images, labels, region: folders or globs; `region` are masks outside of which nothing is labelled.
      void: values of masks of ids that are left out, 255 beside them.
      void_colours: colours that are left out.
      annotated: as config.data.annotated.
      nearest: each pixel is of the class whose colour or value is nearest: for masks that were smoothed or are JPEG.
      splits: {train, val or test: its list}.
      mirrored: pairs of classes that a mirror image exchanges.
    """

    classes: tuple[Class, ...] = ()
    source: str = ""
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    void: tuple[int, ...] = ()
    void_colours: tuple[Colour, ...] = ()
    annotated: str = ""
    nearest: bool = False
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mirrored: tuple[tuple[str, str], ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their ids."""
        return tuple(each.name for each in self.classes)

    @property
    def ids(self) -> dict[str, int]:
        """{name of a class, or label of its polygons: class id}."""
        return {label: index for index, each in enumerate(self.classes) for label in (each.name, *each.labels)}

    @property
    def palette(self) -> Palette:
        """A colour for each class: its own, or that of VOC for its id."""
        return tuple(
            each.colour or usual for each, usual in zip(self.classes, voc_palette(len(self.classes)), strict=True)
        )

    def background_first(self) -> "Description":
        """With background as the first class, added where it is not listed: for annotations that draw things alone."""
        rest = [each for each in self.classes if each.name.lower() not in _BACKGROUND]
        listed = [each for each in self.classes if each.name.lower() in _BACKGROUND]
        return dataclasses.replace(self, classes=(*(listed or [Class("background")]), *rest))


def read(root: pathlib.Path) -> Description:
    """Of dataset.toml, labelmap.txt, classes.txt or data.yaml in a folder, the first that there is; else nothing.

    Raises:
      ValueError: it cannot be read, or says what cannot be; names file and remedy.
    """
    for name, reader in _READERS.items():
        path = next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()), None)
        if path is not None:
            try:
                found = reader(path)
            except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): correct it") from None
            _check(found, path)
            return dataclasses.replace(found, source=found.source or name)
    return Description()


def _check(found: Description, path: pathlib.Path) -> None:
    names = [each.name for each in found.classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has the class {twice!r} twice: name each once")
    if len(names) > 255:
        raise ValueError(f"{path} has {len(names)} classes: at most 255 fit beside void")
    for pair in found.mirrored:
        for name in pair:
            if name not in names:
                raise ValueError(f"{path}: mirrored has {name!r}, which is no class: choose from {', '.join(names)}")


def _toml(path: pathlib.Path) -> Description:
    given = tomllib.loads(path.read_text("utf-8-sig"))
    _check_keys(path, given, _KEYS, "")
    classes = []
    for number, entry in enumerate(given.get("classes", [])):
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f"{path}: class {number} is {entry!r}: write {{name = 'road', value = {number}}}")
        _check_keys(path, entry, _CLASS_KEYS, f"class {number}: ")
        values = (entry["value"],) if "value" in entry else tuple(entry.get("values", ()))
        colour = colour_of(entry["colour"], path) if "colour" in entry else None
        more = tuple(colour_of(each, path) for each in entry.get("colours", ()))
        labels = tuple(map(str, entry.get("labels", ())))
        classes.append(Class(entry["name"], colour, _values(values, path), more, labels))
    return Description(
        classes=tuple(classes),
        images=_texts(given.get("images", ())),
        labels=_texts(given.get("labels", ())),
        region=_texts(given.get("region", ())),
        void=_values(given.get("void", ()), path),
        void_colours=tuple(colour_of(each, path) for each in given.get("void_colours", ())),
        annotated=given.get("annotated", ""),
        nearest=given.get("nearest", False),
        splits={str(key): str(value) for key, value in given.get("splits", {}).items()},
        mirrored=tuple((str(left), str(right)) for left, right in given.get("mirrored", ())),
    )


def _check_keys(path: pathlib.Path, given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{path}: {where}unknown key {key!r}: choose from {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise ValueError(f"{path}: {where}{key} is {value!r}: another kind of value belongs there")


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _values(values: Sequence[Any], path: pathlib.Path) -> tuple[int, ...]:
    wrong = next((value for value in values if not isinstance(value, int) or not 0 <= value < 65536), None)
    if wrong is not None:
        raise ValueError(f"{path} has the value {wrong!r}: masks have whole numbers from 0 to 65535")
    return tuple(values)


def colour_of(value: Any, path: pathlib.Path) -> Colour:
    """'#804000' or [128, 64, 0]; ValueError for anything else."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(n, int) and 0 <= n <= 255 for n in value):
        return value[0], value[1], value[2]
    raise ValueError(f"{path} has the colour {value!r}: write '#804000' or [128, 64, 0]")


def _labelmap(path: pathlib.Path) -> Description:
    """CVAT's: 'name:R,G,B:parts:actions' a line; of the class background the id is 0, as in VOC."""
    classes, void = [], []
    for number, line in lists.read_lines(path):
        name, *rest = line.split(":")
        try:
            colour = colour_of([int(n) for n in rest[0].split(",")], path) if rest and rest[0] else None
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {number} ({line[:80]!r}): write name:R,G,B::") from None
        if name.lower() in NAMED_VOID and colour:
            void.append(colour)
        else:
            classes.append(Class(name, colour))
    classes.sort(key=lambda each: each.name != "background")
    return Description(tuple(classes), void_colours=tuple(void))


def _class_list(path: pathlib.Path) -> Description:
    """A class a line: 'road', 'road 128 64 128', '128 64 128 road', 'road #804080', '0: road' or '0 road'."""
    classes, void = [], []
    for _, line in lists.read_lines(path):
        each = _class_of(line, path)
        if each.name == "__ignore__" or (each.name.lower() in NAMED_VOID and each.colour):
            void += [each.colour] if each.colour else []
        else:
            classes.append(dataclasses.replace(each, name="background") if each.name == "_background_" else each)
    values = [each.values for each in classes]
    if sorted(values) == [(index,) for index in range(len(values))]:  # numbered as they would be anyway
        classes = [dataclasses.replace(each, values=()) for each in sorted(classes, key=lambda each: each.values)]
    return Description(tuple(classes), void_colours=tuple(void))


def _table(path: pathlib.Path) -> Description:
    """Roboflow's _classes.csv: 'Pixel Value, Class' and a line a class."""
    lines = [line.split(",", 1) for _, line in lists.read_lines(path)]
    classes = [
        Class(name[0].strip(), values=(int(value),)) for value, *name in lines if name and value.strip().isdecimal()
    ]
    return Description(tuple(classes))


def _class_of(line: str, path: pathlib.Path) -> Class:
    number = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
    if match := re.fullmatch(rf"(.+?)[\s,;:]+\(?{number}\)?", line):
        return Class(match[1].strip(), colour_of([int(n) for n in match.groups()[1:]], path))
    if match := re.fullmatch(rf"{number}[\s,;]+(.+)", line):
        return Class(match[4].strip(), colour_of([int(n) for n in match.groups()[:3]], path))
    if match := re.fullmatch(r"(.+?)[\s,;:]+(#[0-9a-fA-F]{6})", line):
        return Class(match[1].strip(), colour_of(match[2], path))
    if match := re.fullmatch(r"(\d{1,5})\s*[:=,;\s]\s*(\D.*)", line):
        return Class(match[2].strip(), values=(int(match[1]),))
    return Class(line)


def _yaml(path: pathlib.Path) -> Description:
    """Ultralytics' data.yaml: names, and the value of each in masks."""
    given = yaml.safe_load(path.read_text("utf-8-sig"))
    names = given.get("names") if isinstance(given, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        raise ValueError(f"{path} has no names: write names: {{0: road, 1: car}}")
    folder = given.get("masks_dir")
    classes = tuple(Class(str(name), values=_values([key], path)) for key, name in sorted(names.items()))
    return Description(classes, labels=(str(folder),) if folder else ())


_READERS: dict[str, Callable[[pathlib.Path], Description]] = {
    FILE: _toml,
    "labelmap.txt": _labelmap,
    "classes.txt": _class_list,
    "label_colors.txt": _class_list,
    "labels.txt": _class_list,
    "_classes.csv": _table,
    "data.yaml": _yaml,
}

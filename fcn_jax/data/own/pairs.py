"""Which image belongs to which annotation, and to which split."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fcn_jax.data import lists
from fcn_jax.data.dataset import Annotation
from fcn_jax.data.own import masks as masks_lib
from fcn_jax.data.own import names, shapes
from fcn_jax.data.own.description import Description
from fcn_jax.data.own.names import File

_LISTS = ("ImageSets/Segmentation", "ImageSets", "splits", "lists", ".")
_MOST_SHOWN = 3
_MOST_COCO = 50  # files
UNLISTED = "unlisted"  # the split of an image that no list names


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image with its annotation.

    Attributes:
      id: its stem, or its path below the folder where several have that stem.
      split: train, val or test.
      label: where its annotation is.
    """

    id: str
    image: pathlib.Path
    label: Annotation
    split: str


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What a folder holds.

    Attributes:
      pairs: in the order of their paths.
      images, labels: those that are left alone, for want of the other.
      left_out: files that are neither, such as the colours beside ids.
      per_class: the classes, where each has a mask of its own; empty else.
      coco: the files, where the annotations are in COCO's.
      said: what was taken for what, a line each.
    """

    pairs: tuple[Pair, ...]
    images: tuple[pathlib.Path, ...] = ()
    labels: tuple[pathlib.Path, ...] = ()
    left_out: tuple[pathlib.Path, ...] = ()
    per_class: tuple[str, ...] = ()
    coco: tuple[pathlib.Path, ...] = ()
    said: tuple[str, ...] = ()

    def of(self, split: str) -> list[Pair]:
        """The pairs of a split."""
        return [pair for pair in self.pairs if pair.split == split]


def pair(root: pathlib.Path, description: Description) -> Pairing:
    """Images and annotations below `root`, by their names or as the description says.

    Raises:
      FileNotFoundError: there is no such folder, no image, or no annotation.
      ValueError: an image may have one of several annotations.
    """
    found = [_as_described(file, root, description) for file in names.scan(root)]
    masks = [file for file in found if file.role == "label"]
    pictures = [file for file in found if file.role in ("image", "") and file.path.suffix != ".json"]
    if not masks:
        masks, pictures = _side_by_side(pictures)
    if not masks:
        raise FileNotFoundError(
            f"{str(root)!r} has {len(pictures)} images and no annotation: put masks of the same names into a folder"
            " masks, or say where they are in dataset.toml"
        )
    said: list[str] = []
    coco = _coco_files(masks, pictures)
    if coco:
        return _pair_coco(root, coco, pictures, description)
    masks, regions = _regions(masks, description, said)
    by_image = _match(pictures, masks)
    if not by_image:
        such = f"first {masks[0].path}; images are such as {pictures[0].path}" if pictures else "and there is no image"
        raise FileNotFoundError(
            f"none of the {len(masks)} annotations below {root} fits one image by its name, {such}: name them alike, or"
            " say by images = 'FOLDER', labels = 'FOLDER' in dataset.toml where they are"
        )
    per_class = _per_class(by_image)
    chosen = {image: parts if per_class else (_one(image, parts),) for image, parts in by_image.items()}
    shown = {image: region[0] for image, region in _match(list(chosen), regions).items()} if regions else {}
    splits = _splits(root, list(chosen), description, said)
    ids = _ids(list(chosen), root)
    pairs = [
        Pair(
            ids[image.path],
            image.path,
            Annotation(
                tuple(part.path for part in parts),
                tuple(_class_of(image, part) for part in parts) if per_class else (),
                shown[image].path if image in shown else None,
            ),
            splits[image.path],
        )
        for image, parts in chosen.items()
    ]
    taken = {part for parts in by_image.values() for part in parts}
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda found: found.image)),
        images=tuple(file.path for file in pictures if file not in chosen),
        labels=tuple(file.path for file in masks if file not in taken),
        left_out=tuple(file.path for file in found if file.role == "left out"),
        per_class=per_class,
        said=tuple(said),
    )


def _coco_files(masks: Sequence[File], pictures: Sequence[File]) -> list[File]:
    """The JSON files that are COCO's: those that no image has the name of are looked into, where they are few."""
    stems = {file.stem for file in pictures}
    alone = [file for file in masks if file.path.suffix == ".json" and file.stem not in stems]
    if len(alone) > _MOST_COCO:
        return []
    return [file for file in alone if shapes.kind_of(shapes.load(file.path)) == "coco"]


def _pair_coco(
    root: pathlib.Path, files: Sequence[File], pictures: Sequence[File], description: Description
) -> Pairing:
    """The images that COCO files name, by name or by the end of their path."""
    by_name: dict[str, list[File]] = collections.defaultdict(list)
    for file in pictures:
        parts = file.path.relative_to(root).parts
        for start in range(len(parts)):
            by_name["/".join(parts[start:])].append(file)
    pairs, missing, said = [], [], [f"annotations in COCO's {', '.join(str(f.path.relative_to(root)) for f in files)}"]
    found: dict[File, Annotation] = {}
    splits = {}
    for file in files:
        content, split = shapes.read_coco(file.path), file.split or names.split_of(file.stem)
        for name, entry in content.entries.items():
            images = [image for image in by_name[name] if not split or image.split in ("", split)]
            if len(images) != 1:
                missing.append(file.path.parent / name)
                continue
            segments = (_segments(file, entry[0]["file_name"], by_name),) if content.panoptic else ()
            found[images[0]] = Annotation((file.path, *segments), (name,))
            splits[images[0].path] = split or images[0].split
    if not found:
        raise FileNotFoundError(f"none of the {len(missing)} images that {files[0].path} names is below {root}")
    if any(splits.values()):
        said.append("splits by COCO's files: " + ", ".join(sorted({split for split in splits.values() if split})))
    splits = {path: split or "train" for path, split in splits.items()}
    splits |= _val_of_train(splits, root, said)
    ids = _ids(list(found), root)
    pairs = [Pair(ids[file.path], file.path, label, splits[file.path]) for file, label in found.items()]
    used = {path for label in found.values() for path in label.paths}
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.image)),
        images=tuple(file.path for file in pictures if file not in found and file.path not in used),
        labels=tuple(missing),
        coco=tuple(file.path for file in files),
        said=tuple(said),
    )


def _segments(file: File, name: str, by_name: Mapping[str, Sequence[File]]) -> pathlib.Path:
    """The PNG of a panoptic entry: in the folder that is called as its JSON file, or anywhere below."""
    beside = file.path.with_suffix("") / name
    if beside.is_file() or len(by_name.get(name, ())) != 1:
        return beside
    return by_name[name][0].path


def _as_described(file: File, root: pathlib.Path, description: Description) -> File:
    """With the role that dataset.toml gives it, by folder or glob."""
    relative = file.path.relative_to(root)
    for role, patterns in (
        ("label", description.labels),
        ("image", description.images),
        ("region", description.region),
    ):
        if any(relative.match(pattern) or _below(relative, pattern) for pattern in patterns):
            return dataclasses.replace(file, role=role)
    stated = {"label": description.labels, "image": description.images, "": description.images}.get(file.role)
    return dataclasses.replace(file, role="left out") if stated else file


def _below(relative: pathlib.Path, folder: str) -> bool:
    parts = pathlib.PurePath(folder).parts
    return any(relative.parts[i : i + len(parts)] == parts for i in range(len(relative.parts) - 1))


def _side_by_side(pictures: Sequence[File]) -> tuple[list[File], list[File]]:
    """a.jpg and a.png in one folder: what is no JPEG is the mask of what is."""
    photographs = {
        (file.path.parent, file.stem)
        for file in pictures
        if file.path.suffix.lower() in (".jpg", ".jpeg", ".jfif", ".jpe")
    }
    masks = [
        file
        for file in pictures
        if file.path.suffix.lower() in (".png", ".gif", ".bmp", ".tif", ".tiff")
        and (file.path.parent, file.stem) in photographs
    ]
    taken = {*masks}
    return masks, [file for file in pictures if file not in taken]


def _regions(masks: Sequence[File], description: Description, said: list[str]) -> tuple[list[File], list[File]]:
    """Labels, and the masks that only say where anything is labelled: those of a folder `mask` beside another one."""
    folders = {file.within for file in masks if file.within}
    if description.region or description.labels:
        return [file for file in masks if file.role == "label"], [file for file in masks if file.role == "region"]
    regions = {folder for folder in folders if folder.lower() in names.REGION}
    others = folders - regions
    if not regions or not others or any("class" in folder.lower() for folder in others):
        return list(masks), []
    sample = [file.path for file in masks if file.within in regions][:_MOST_SHOWN]
    drawn = any(file.path.suffix.lower() == ".json" for file in masks if file.within in others)
    if drawn or not all(_has_two_values(path) for path in sample):  # both are annotations
        return list(masks), []
    said.append(f"{', '.join(sorted(regions))} shows where {', '.join(sorted(others))} is labelled; outside is void")
    return [file for file in masks if file.within in others], [file for file in masks if file.within in regions]


def _has_two_values(path: pathlib.Path) -> bool:
    try:
        return len(np.unique(masks_lib.read_values(path).values)) <= 2
    except (ValueError, OSError):  # which is said where it is read
        return False


def _match(pictures: Sequence[File], masks: Iterable[File]) -> dict[File, tuple[File, ...]]:
    """The masks of each image that has any, by what the names share: as much as possible, and of one image alone."""
    ways: list[Callable[[File], tuple[object, ...]]] = [
        lambda f: (f.split, f.group, f.stem),
        lambda f: (f.split, f.group, f.key),
        lambda f: (f.group, f.stem),
        lambda f: (f.group, f.key),
        lambda f: (f.split, f.stem),
        lambda f: (f.stem,),
        lambda f: (f.split, f.key),
        lambda f: (f.key,),
        lambda f: (f.split, f.group[-1:]),  # masks/a/person.png of a.jpg
    ]
    tables = []
    for number, way in enumerate(ways):
        table = collections.defaultdict(list)
        for image in pictures:
            table[(image.split, (image.stem,)) if number == len(ways) - 1 else way(image)].append(image)
        tables.append((way, table))
    found: dict[File, list[File]] = collections.defaultdict(list)
    for mask in masks:
        images = next((table[way(mask)] for way, table in tables if len(table.get(way(mask), ())) == 1), None)
        if images:
            found[images[0]].append(mask)
    return {image: tuple(found[image]) for image in pictures if image in found}


def _class_of(image: File, mask: File) -> str:
    """masks/person/a.png, masks/a/person.png."""
    return mask.stem if mask.group and mask.group[-1] == image.stem else mask.group[-1] if mask.group else ""


def _per_class(by_image: Mapping[File, Sequence[File]]) -> tuple[str, ...]:
    """The classes if each has a mask of its own for an image: a folder of a class's name, or a file."""
    several = [(image, parts) for image, parts in by_image.items() if len(parts) > 1 or _class_of(image, parts[0])]
    classes = [[_class_of(image, part) for part in parts] for image, parts in several]
    extra = any(len(parts) > 1 for parts in by_image.values())
    if not extra or not all(all(of) and len({*of}) == len(of) for of in classes):
        return ()
    return tuple(sorted({name for of in classes for name in of}))


def _one(image: File, parts: Sequence[File]) -> File:
    """The annotation of an image that has several: ids before all else, masks before polygons."""
    if len(parts) == 1:
        return parts[0]
    for wanted in ("labelids", "labeltrainids"):
        found = [part for part in parts if wanted in names.words_of(part.stem) or part.stem.lower().endswith(wanted)]
        if len(found) == 1:
            return found[0]
    if any(part.path.suffix.lower() != ".npy" for part in parts):  # labelme's converter writes both
        parts = [part for part in parts if part.path.suffix.lower() != ".npy"]
    aug = [part for part in parts if part.within.lower().endswith("aug")]
    masks = aug if len(aug) == 1 else [part for part in parts if part.path.suffix.lower() != ".json"]
    if len(masks) == 1:
        return masks[0]
    shown = ", ".join(str(part.path) for part in parts[:_MOST_SHOWN])
    raise ValueError(
        f"{str(image.path)!r} has {len(parts)} annotations ({shown}): say which ones to take by labels = 'FOLDER' in"
        " dataset.toml"
    )


def _splits(
    root: pathlib.Path, pictures: Sequence[File], description: Description, said: list[str]
) -> dict[pathlib.Path, str]:
    """The split of each image: by lists, by folders, and for what neither says by the hash of its name."""
    found = {file.path: file.split for file in pictures}
    listed = _listed(root, pictures, description)
    if listed:
        said.append("splits by " + ", ".join(str(path.relative_to(root)) for path, _ in listed.values()))
        found = dict.fromkeys(found, UNLISTED)
        for split, (_, paths) in listed.items():
            found |= dict.fromkeys(paths, split)
    elif any(found.values()):
        said.append("splits by folders: " + ", ".join(sorted({split for split in found.values() if split})))
    found = {path: split or "train" for path, split in found.items()}
    return found | _val_of_train(found, root, said)


def _val_of_train(found: Mapping[pathlib.Path, str], root: pathlib.Path, said: list[str]) -> dict[pathlib.Path, str]:
    """What of train becomes val where there is none."""
    if "val" in found.values():
        return {}
    shared = [path for path, split in found.items() if split == "train"]
    if len(shared) < 2:
        return dict.fromkeys(shared, "train")
    by_name = {path.relative_to(root).as_posix(): path for path in shared}
    chosen = names.share(by_name)
    said.append(f"val is {len(chosen)} of the {len(shared)} images of train, by a hash of their names")
    return {path: "val" if name in chosen else "train" for name, path in by_name.items()}


def _listed(
    root: pathlib.Path, pictures: Sequence[File], description: Description
) -> dict[str, tuple[pathlib.Path, list[pathlib.Path]]]:
    """{split: its list and the images that it names}."""
    stems: dict[str, pathlib.Path] = {}
    for file in pictures:
        stems[file.stem] = file.path
        stems[file.path.relative_to(root).with_suffix("").as_posix()] = file.path
    given = {split: root / path for split, path in description.splits.items()}
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for folder in [folder / name for folder in folders for name in _LISTS] if not given else ():
        texts = sorted(folder.glob("*.txt"))
        by_name = {split: path for path in texts for split, words in names.SPLITS.items() if path.stem.lower() in words}
        if "train" in by_name:
            given = by_name
            break
    found = {}
    for split, path in given.items():
        ids = lists.read_ids(path, stems)
        found[split] = (path, [stems[name] for name in ids if name in stems])
    return {split: entry for split, entry in found.items() if entry[1]}


def _ids(pictures: Sequence[File], root: pathlib.Path) -> dict[pathlib.Path, str]:
    counts = collections.Counter(file.stem for file in pictures)
    return {
        file.path: file.stem if counts[file.stem] == 1 else file.path.relative_to(root).with_suffix("").as_posix()
        for file in pictures
    }

"""What a folder of one's own holds, and what is wrong with it, before anything is trained on it."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fcn_jax.data.images import VOID
from fcn_jax.data.own import description as description_lib
from fcn_jax.data.own import forms, look, masks, pairs
from fcn_jax.data.own.description import Description
from fcn_jax.data.own.forms import Form
from fcn_jax.data.own.look import Look
from fcn_jax.data.own.pairs import UNLISTED, Pairing

ERROR, WARNING = "error", "warning"
_ALIKE = 12  # bits of 256 in which the hashes of like pictures may differ
_CONTOURS = 2000  # pairs whose contours are compared, at most
_MOST_MEANINGS = 40
_FRAMES = 5  # of a video, at least
_FEW = 0.001  # of the labelled pixels, below which a class is rare
_LOSSY = ("JPEG", "MPO", "WEBP")
_SMOOTH = 16  # values of a mask, beside which few classes are given


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
      level: `error`, which training would stop at or suffer from, or `warning`.
      what: it, without number.
      count: of how many files.
      first: of these.
      remedy: what to do.
    """

    level: str
    what: str
    count: int
    first: str
    remedy: str

    def __str__(self) -> str:
        """A line."""
        return f"{self.level}: {self.what}: {self.count}, first {self.first}: {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes:
      form: what annotations are; None where that is not clear, which is an error among the findings.
      looks: at each pair.
    """

    root: pathlib.Path
    pairing: Pairing
    form: Form | None
    annotated: str
    looks: tuple[Look, ...]
    findings: tuple[Finding, ...]

    @property
    def fine(self) -> bool:
        """Whether it can be trained on."""
        return all(finding.level != ERROR for finding in self.findings)

    def lines(self) -> list[str]:
        """All of it for people, the verdict last."""
        return [*_inventory(self), *(str(finding) for finding in self.findings), _verdict(self)]


def check(
    root: pathlib.Path, progress: Callable[[Iterable[Look], int], Iterable[Look]] = lambda items, _: items
) -> Checked:
    """Looks at all images and annotations of a folder.

    Args:
      progress: is handed what is looked at and how much there is, and hands it on.

    Raises:
      FileNotFoundError: there is no such folder, no image, or no annotation.
      ValueError: an image may have one of several annotations, or dataset.toml cannot be read.
    """
    description = description_lib.read(root)
    pairing = pairs.pair(root, description)
    findings: list[Finding] = []
    form: Form | None = None
    try:
        form = forms.of(pairing, description, root)
    except ValueError as error:
        first = str(pairing.pairs[0].label) if pairing.pairs else "none"
        what, _, remedy = str(error).partition(": ")
        what = f"it is not clear what annotations mean: {what}"
        findings.append(Finding(ERROR, what, len(pairing.pairs), first, remedy))
    annotated = forms.annotated(form, description)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        step = -(-len(pairing.pairs) // _CONTOURS) or 1
        looked = pool.map(
            lambda item: look.at(item[1], form, annotated, contours=item[0] % step == 0), enumerate(pairing.pairs)
        )
        looks = tuple(progress(looked, len(pairing.pairs)))
    findings += _of_names(pairing) + _of_files(looks) + _of_masks(looks, form, description)
    if form is not None:
        findings += _of_classes(looks, form) + _of_contours(looks)
    findings += _of_splits(looks)
    order = {ERROR: 0, WARNING: 1}
    return Checked(
        root, pairing, form, annotated, looks, tuple(sorted(findings, key=lambda finding: order[finding.level]))
    )


def _some(level: str, what: str, files: Sequence[object], remedy: str) -> list[Finding]:
    return [Finding(level, what, len(files), str(files[0]), remedy)] if files else []


def _of_names(pairing: Pairing) -> list[Finding]:
    unlisted = [pair.image for pair in pairing.pairs if pair.split == UNLISTED]
    return [
        *_some(WARNING, "images without annotation", pairing.images, "annotate them, or leave them out"),
        *_some(WARNING, "annotations without image", pairing.labels, "add the images, or correct the names"),
        *_some(WARNING, "images that no list of a split names", unlisted, "add them to a list, or leave them out"),
    ]


def _of_files(looks: Sequence[Look]) -> list[Finding]:
    def failed(which: str) -> list[Look]:
        return [found for found in looks if found.which == which]

    images, sizes, broken, values = (failed(which) for which in ("image", "size", "mask", "values"))
    turned = [found for found in sizes if found.orientation > 4]
    others = [found for found in sizes if found.orientation <= 4]
    exif = [found.pair.image for found in looks if found.orientation != 1]
    return [
        *_some(ERROR, "images that cannot be read", _reasons(images), "replace or remove them"),
        *_some(ERROR, "masks that cannot be read", _reasons(broken), "replace or remove them"),
        *_some(ERROR, "masks of another size than their images", _reasons(others), "save them at the images' size"),
        *_some(
            ERROR,
            "masks that do not fit images that EXIF turns",
            _reasons(turned),
            "say by annotated = 'upright' or 'stored' in dataset.toml how they were drawn",
        ),
        *_some(ERROR, "masks with values of no class", _reasons(values), "correct them, or the list of classes"),
        *_some(
            WARNING,
            "images that EXIF turns",
            exif,
            "look at some (--report): if masks lie turned, set annotated in dataset.toml",
        ),
    ]


def _reasons(looks: Sequence[Look]) -> list[str]:
    return [f"{found.pair.image} ({found.error})" for found in looks]


def _of_masks(looks: Sequence[Look], form: Form | None, description: Description) -> list[Finding]:
    handled = description.nearest or getattr(form, "nearest", False)
    nearest = " and set nearest = true in dataset.toml" if not handled else ""
    remedy = f"save masks as PNG and resize them by the nearest; or list the classes{nearest}"
    most = max(_SMOOTH, 2 * len(form.class_names) if form is not None else 0)
    jpeg = [found.pair.label for found in looks if found.format in _LOSSY]
    smooth = [found.pair.label for found in looks if found.values > most and found.format not in _LOSSY]
    level = WARNING if handled else ERROR
    return [
        *_some(level, "masks that are JPEG, whose values are not exact", jpeg, remedy),
        *_some(level, "masks with many more values than classes, as smoothing leaves them", smooth, remedy),
    ]


def _of_classes(looks: Sequence[Look], form: Form) -> list[Finding]:
    names = form.class_names
    good = [found for found in looks if not found.error]
    if not good:
        return []
    found: list[Finding] = []
    by_split: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(256, np.int64))
    for one in good:
        by_split[one.pair.split] += one.counts
    total = np.sum(list(by_split.values()), axis=0)
    first = str(good[0].pair.label)
    if not total[: len(names)].any():
        return [Finding(ERROR, "nothing is labelled: all is void", len(good), first, "write class ids")]
    if total[VOID] and np.count_nonzero(total[: len(names)]) == 1:
        one_class = names[int(total[: len(names)].argmax())]
        what = f"masks have nothing but {one_class} and void (255)"
        found.append(Finding(ERROR, what, len(good), first, "if 255 marks a class, list two classes in classes.txt"))
    for split, counts in by_split.items():
        there = by_split["train"] if split != "train" and "train" in by_split else total
        absent = [name for index, name in enumerate(names) if there[index] and not counts[index]]
        if absent:
            number = sum(one.pair.split == split for one in good)
            what = f"classes that {split} lacks ({', '.join(absent)})"
            found.append(Finding(WARNING, what, number, f"of {number} images of {split}", "move images that have them"))
    nowhere = [name for index, name in enumerate(names) if not total[index]]
    if nowhere:
        what = f"classes that no mask has ({', '.join(nowhere)})"
        hint = "ids may begin at 1" if nowhere == [names[0]] else "correct the list, or leave it"
        found.append(Finding(WARNING, what, len(good), first, hint))
    labelled = total[: len(names)].sum()
    rare = [name for index, name in enumerate(names) if 0 < total[index] < _FEW * labelled]
    if rare:
        what = f"classes with less than {100 * _FEW:g} % of the labelled pixels ({', '.join(rare)})"
        remedy = "expect little of them; config.loss.class_weights=sqrt_median_frequency helps"
        found.append(Finding(WARNING, what, len(good), first, remedy))
    empty = [one.pair.label for one in good if not one.counts[: len(names)].any()]
    alone = [one.pair.label for one in good if one.counts[0] and not one.counts[1 : len(names)].any()]
    found += _some(WARNING, "masks that are void everywhere", empty, "annotate them, or leave them out")
    found += _some(WARNING, f"masks with nothing but {names[0]}", alone, "right, if there is nothing else to see")
    return found


def _of_contours(looks: Sequence[Look]) -> list[Finding]:
    good = [found for found in looks if not found.error]
    what = look.misfit([found.contours for found in good])
    if not what:
        return []
    first = str(good[0].pair.label)
    if what == look.CHANCE:
        return [Finding(WARNING, what, len(good), first, "look at some (--report): were they put in another order?")]
    remedy = "look at some (--report): were images or masks turned, mirrored, cut or put in another order?"
    return [Finding(ERROR, what, len(good), first, remedy)]


def _of_splits(looks: Sequence[Look]) -> list[Finding]:
    found: list[Finding] = []
    by_digest = collections.defaultdict(list)
    for one in looks:
        if one.digest:
            by_digest[one.digest].append(one)
    across = [same for same in by_digest.values() if len({one.pair.split for one in same}) > 1]
    within = [same for same in by_digest.values() if len(same) > 1 and len({one.pair.split for one in same}) == 1]
    shown = [f"{same[0].pair.image} and {same[1].pair.image}" for same in (*across, *within)]
    remedy = "leave them out of one split, since scores on it would flatter"
    found += _some(ERROR, "images that two splits have", shown[: len(across)], remedy)
    found += _some(WARNING, "images that are there twice", shown[len(across) :], "leave one out")
    train = [one for one in looks if one.digest and one.pair.split == "train"]
    held_out = [one for one in looks if one.digest and one.pair.split in ("val", "test")]
    frames = _frames(train, held_out)
    if frames:
        shown = [f"{a.pair.image} beside {b.pair.image}" for a, b in frames]
        what = "images of val or test with names as frames of a video that train has, too"
        split = "split by videos (lists, or folders train and val): frames of one video are alike, and flatter"
        found += _some(WARNING, what, shown, split)
    digests = {one.digest for one in train}
    alike = [(a, b) for a, b in _near(train, held_out) if a.digest not in digests]
    shown = [f"{a.pair.image} and {b.pair.image}" for a, b in alike]
    return found + _some(WARNING, "images of val or test that look like one of train", shown, remedy)


def _near(train: Sequence[Look], held_out: Sequence[Look]) -> list[tuple[Look, Look]]:
    """Those of held_out that have one in train whose hash is nearly the same."""
    if not train or not held_out:
        return []
    hashes = np.stack([one.picture for one in train])
    found = []
    for one in held_out:
        differences = np.bitwise_count(hashes ^ one.picture).sum(1)
        place, bits = int(differences.argmin()), int(np.bitwise_count(one.picture).sum())
        # A hash of a picture without contrast says nothing.
        if differences[place] <= _ALIKE and 32 < bits < 224:
            found.append((one, train[place]))
    return found


def _frames(train: Sequence[Look], held_out: Sequence[Look]) -> list[tuple[Look, Look]]:
    """(image, the one of train with the next number) where names are as of frames of videos: 0016E5_08550.

    What the pictures of two frames share, no hash shows: a second later every contour is elsewhere.
    """
    by_prefix = collections.defaultdict(list)
    for one in train:
        prefix, number = look.stem(one.pair.image)
        if number >= 0 and any(letter.isalpha() for letter in prefix):
            by_prefix[prefix].append((number, one))
    if len(by_prefix) < 2 or len(train) < _FRAMES * len(by_prefix):
        return []
    found = []
    for one in held_out:
        prefix, number = look.stem(one.pair.image)
        if prefix in by_prefix:
            _, beside = min(by_prefix[prefix], key=lambda entry: abs(entry[0] - number))
            found.append((one, beside))
    return found if len(found) >= _FRAMES else []


def _inventory(checked: Checked) -> list[str]:
    pairing = checked.pairing
    splits = collections.Counter(pair.split for pair in pairing.pairs)
    sizes = collections.Counter(found.size for found in checked.looks if found.size != (0, 0))
    formats = collections.Counter(pair.image.suffix.lower() for pair in pairing.pairs)
    shown = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(3))
    lines = [
        f"{len(pairing.pairs)} images with annotations: {', '.join(f'{n} {split}' for split, n in splits.items())}",
        f"images: {', '.join(f'{n} {suffix}' for suffix, n in formats.most_common())}; sizes (height x width): {shown}"
        f"{f' and {len(sizes) - 3} more' if len(sizes) > 3 else ''}",
        *pairing.said,
    ]
    if len(pairing.left_out):
        lines.append(f"{len(pairing.left_out)} files are no annotations and left alone, first {pairing.left_out[0]}")
    if checked.form is None:
        return lines
    lines += [checked.form.said, *_meanings(checked.form)]
    width = max(len(name) for name in checked.form.class_names)
    for name, value, share, number in class_rows(checked):
        lines.append(f"  {value:>3} {name:<{width}} {100 * share:7.3f} % of pixels  {number:>6} images")
    return lines


def _meanings(form: Form) -> list[str]:
    """What values, colours or labels were taken for, in a line."""
    ids = getattr(form, "ids", {})
    names = {**dict(enumerate(form.class_names)), VOID: "void"}
    words = [
        f"{masks.shown(value) if getattr(form, 'colours', False) else value} = {names[index]}"
        for value, index in ids.items()
        if names.get(index) != value
    ]
    more = f" and {len(words) - _MOST_MEANINGS} more" if len(words) > _MOST_MEANINGS else ""
    return [f"taken for: {', '.join(words[:_MOST_MEANINGS])}{more}"] if words else []


def class_rows(checked: Checked) -> list[tuple[str, int, float, int]]:
    """(name, id, share of all pixels, images that have it) of each class, and of void where there is any."""
    assert checked.form is not None
    counts = np.array([found.counts for found in checked.looks if not found.error]).reshape(-1, 256)
    total, images = counts.sum(0), (counts > 0).sum(0)
    names = {**dict(enumerate(checked.form.class_names)), **({VOID: "void"} if total[VOID] else {})}
    return [(name, v, float(total[v] / max(1, total.sum())), int(images[v])) for v, name in names.items()]


def _verdict(checked: Checked) -> str:
    errors = sum(finding.level == ERROR for finding in checked.findings)
    warnings = len(checked.findings) - errors
    if errors:
        return f"{checked.root} cannot be trained on as it is: {errors} errors, {warnings} warnings"
    if warnings:
        return f"{checked.root} can be trained on; {warnings} warnings are worth a look"
    return f"{checked.root} is fine"

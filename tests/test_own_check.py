"""The checker finds what is wrong with a folder, each kind by a folder that has it and no other."""

import re
import subprocess
import sys

import numpy as np
import own
import pytest
from PIL import Image

from fcn_jax.data.own import check, look, page

COLUMNS = np.arange(own.SIZE[1])


def sound(root, *, number=12):
    """Images and masks without anything to find: `number` of them, other ones than the six of own.py."""
    for index in range(number):
        image, mask = own.example(100 + index)
        own.save(root / "images" / f"p{index:02d}.png", image)
        own.save(root / "masks" / f"p{index:02d}.png", mask)
    own.class_list(root)


def masks_of(root):
    return sorted((root / "masks").glob("*"))


def change_all(root, change):
    for path in masks_of(root):
        own.save(path, change(np.asarray(Image.open(path))))


def change_some(root, change, number=3):
    for path in masks_of(root)[:number]:
        own.save(path, change(np.asarray(Image.open(path))))


def as_jpeg(root):
    table = [f"{{name = '{n}', colour = {list(c)}}}" for n, c in zip(own.CLASSES, own.COLOURS, strict=True)]
    own.text(root / "dataset.toml", f"classes = [{', '.join(table)}]\n")
    for path in masks_of(root):
        Image.fromarray(own.coloured(np.asarray(Image.open(path)))).save(path.with_suffix(".jpg"), quality=70)
        path.unlink()


def smoothed(root):
    for path in masks_of(root)[:4]:
        mask = Image.fromarray(100 * np.asarray(Image.open(path)))
        small = mask.resize((20, 16), Image.Resampling.BILINEAR)
        small.resize(mask.size, Image.Resampling.BICUBIC).save(path)
    classes = "classes = ['background', {name = 'cell', value = 100}, {name = 'nucleus', value = 200}]"
    own.text(root / "dataset.toml", classes)
    for path in masks_of(root)[4:]:
        own.save(path, 100 * np.asarray(Image.open(path)))


def turned_by_exif(root):
    for path in sorted((root / "images").glob("*"))[:2]:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
    own.text(root / "dataset.toml", "annotated = 'upright'\nclasses = ['background', 'cell', 'nucleus']\n")


def rolled(root):
    change_all(root, lambda mask: np.roll(mask, 6, 1))


def split_by_lists(root, names=("p00", "p01", "p02")):
    stems = [path.stem for path in masks_of(root)]
    own.text(root / "val.txt", "\n".join(names))
    own.text(root / "train.txt", "\n".join(stem for stem in stems if stem not in names))


def copied_across(root):
    own.save(root / "images/p11.png", np.asarray(Image.open(root / "images/p00.png")))
    split_by_lists(root)


def nearly_copied_across(root):
    for path in (root / "images").glob("*"):  # pictures with more to tell them apart
        rng = np.random.default_rng(int(path.stem[1:]))
        large = Image.fromarray(rng.integers(0, 255, (5, 7, 3)).astype(np.uint8)).resize((520, 400), 3)
        large.save(path)
        mask = Image.open(root / "masks" / path.name)
        mask.resize((520, 400), Image.Resampling.NEAREST).save(root / "masks" / path.name)
    image = np.asarray(Image.open(root / "images/p00.png")).astype(int)
    own.save(root / "images/p11.png", np.clip(image + 3, 0, 255).astype(np.uint8))
    split_by_lists(root)


def frames(root):
    for index, path in enumerate(masks_of(root)):
        name = f"cam{index // 6}x_{30 * (index % 6):05d}.png"
        (root / "images" / path.name).rename(root / "images" / name)
        path.rename(path.with_name(name))
    for index in range(12, 30):
        image, mask = own.example(100 + index)
        name = f"cam{index % 2}x_{1000 + index:05d}.png"
        own.save(root / "images" / name, image)
        own.save(root / "masks" / name, mask)
    split_by_lists(root, [path.stem for path in masks_of(root)][::5])


def without(root):
    (root / "images/p03.png").unlink()
    (root / "masks/p04.png").unlink()


# What is done to a sound folder, and what is found: level and text.
CASES = {
    "unpaired": (without, ("warning", "images without annotation: 1, first .*p04.png")),
    "no image": (without, ("warning", "annotations without image: 1, first .*p03.png")),
    "another size": (
        lambda root: change_some(root, lambda mask: mask[1:]),
        ("error", r"masks of another size than their images: 3, first .*is 40x52 and .* is 39x52 \(height x width\)"),
    ),
    "corrupt image": (
        lambda root: (root / "images/p05.png").write_bytes(b"\x89PNG nothing"),
        ("error", "images that cannot be read: 1, first .*p05.png"),
    ),
    "corrupt mask": (
        lambda root: (root / "masks/p05.png").write_bytes(b""),
        ("error", "masks that cannot be read: 1, first .*p05.png"),
    ),
    "a value of no class": (
        lambda root: change_some(root, lambda mask: np.where(mask == 2, 7, mask).astype(np.uint8), 1),
        ("error", "not clear what annotations mean: masks have the value 7, first .*p00.png, and classes.txt has 3"),
    ),
    "0 and 255": (
        lambda root: change_all(root, lambda mask: np.uint8(255) * (mask > 0)),
        ("error", r"masks have nothing but background and void \(255\): 12"),
    ),
    "JPEG": (as_jpeg, ("error", "masks that are JPEG, whose values are not exact: 12")),
    "smoothed": (smoothed, ("error", "masks with many more values than classes, as smoothing leaves them: 4")),
    "colours": (
        lambda root: (change_all(root, own.coloured), (root / "classes.txt").unlink()),
        ("error", r"masks are in colour and nothing says which colour is what: 12, first .*write a file dataset.toml"),
    ),
    "a colour that is not in the table": (
        lambda root: (change_all(root, own.coloured), own.text(root / "classes.txt", "a 0 0 0\nb 200 30 40\n")),
        ("error", "masks with values of no class: 12, first .*the colour #1478e6"),
    ),
    "EXIF": (
        turned_by_exif,
        ("error", "masks that do not fit images that EXIF turns: 2, .*annotated = 'upright'"),
    ),
    "EXIF alone": (turned_by_exif, ("warning", "images that EXIF turns: 2")),
    "shifted": (rolled, ("error", "fit their images better when they are moved .* left, by contours")),
    "mirrored": (
        lambda root: change_all(root, lambda mask: mask[:, ::-1]),
        ("error", "fit their images better when they are mirrored left to right, by contours"),
    ),
    "empty": (
        lambda root: change_some(root, lambda mask: np.full_like(mask, 255), 2),
        ("warning", "masks that are void everywhere: 2, first .*p00.png"),
    ),
    "nothing but background": (
        lambda root: change_some(root, np.zeros_like, 2),
        ("warning", "masks with nothing but background: 2, first .*p00.png"),
    ),
    "a class that val lacks": (
        lambda root: (
            split_by_lists(root),
            change_some(root, lambda mask: np.where(mask == 2, 1, mask).astype(np.uint8)),
        ),
        ("warning", r"classes that val lacks \(nucleus\): 3"),
    ),
    "a class that nothing has": (
        lambda root: own.text(root / "classes.txt", "background\ncell\nnucleus\nwall\n"),
        ("warning", r"classes that no mask has \(wall\)"),
    ),
    "rare": (
        lambda root: change_all(
            root, lambda mask: np.where((mask == 2) & (np.arange(52) != 20), 1, mask).astype(np.uint8)
        ),
        ("warning", r"classes with less than 0.1 % of the labelled pixels \(nucleus\)"),
    ),
    "a copy in another split": (
        copied_across,
        ("error", "images that two splits have: 1, .*p00.png and .*p11"),
    ),
    "nearly a copy": (
        nearly_copied_across,
        ("warning", "images of val or test that look like one of train: 1, .*p00"),
    ),
    "frames of a video": (frames, ("warning", "with names as frames of a video that train has, too: 6")),
    "unlisted": (
        lambda root: (split_by_lists(root), own.text(root / "train.txt", "p05\np06\n")),
        ("warning", "images that no list of a split names: 7"),
    ),
}


def test_a_sound_folder_is_fine(tmp_path):
    sound(tmp_path)
    checked = check.check(tmp_path)
    assert checked.findings == ()
    lines = checked.lines()
    assert lines[-1] == f"{tmp_path} is fine"
    assert lines[0] == "12 images with annotations: 10 train, 2 val"
    assert "taken for: 255 = void, 0 = background, 1 = cell, 2 = nucleus" in lines
    rows = {name: (value, images) for name, value, _, images in check.class_rows(checked)}
    assert rows == {"background": (0, 12), "cell": (1, 12), "nucleus": (2, 12)}
    assert sum(share for *_, share, _ in check.class_rows(checked)) == pytest.approx(1)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found(tmp_path, case):
    spoil, (level, text) = CASES[case]
    sound(tmp_path)
    spoil(tmp_path)
    checked = check.check(tmp_path)
    found = [str(finding) for finding in checked.findings]
    assert any(re.match(f"{level}: .*{text}", line) for line in found), "\n".join(found)
    assert checked.fine == all(finding.level != "error" for finding in checked.findings)
    if level == "error":
        assert not checked.fine
    page.write(tmp_path / "report.html", checked, most=4)
    written = (tmp_path / "report.html").read_text()
    assert checked.lines()[-1] in written
    assert "http" not in written


def test_shifts_are_told_from_chance():
    """Neither what is right nor noise is called shifted."""
    rng = np.random.default_rng(0)

    def seen(make):
        looks = []
        for number in range(30):
            image, mask = own.example(number)
            looks.append(look.contours_of(image, make(mask)))
        return look.shift(looks)

    assert seen(lambda mask: mask) == (look.TURNS[0], (0, 0))
    assert seen(lambda mask: rng.permutation(mask.ravel()).reshape(mask.shape))[0] in ("", look.TURNS[0])
    turn, (down, right) = seen(lambda mask: np.roll(mask, (-4, 5), (0, 1)))
    assert turn == look.TURNS[0]
    assert down == pytest.approx(4 / 40, abs=0.02)
    assert right == pytest.approx(-5 / 52, abs=0.02)
    assert seen(lambda mask: mask[::-1, ::-1])[0] == look.TURNS[3]


def run(*arguments):
    command = (sys.executable, "-m", "fcn_jax.data", *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command(tmp_path):
    """The verdict is the last line and the exit code; a report; pictures; another form, checked in its turn."""
    sound(tmp_path / "a")
    done = run("check", tmp_path / "a", f"--report={tmp_path}/report.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/a is fine"
    assert (tmp_path / "report.html").stat().st_size > 10_000
    done = run("show", tmp_path / "a", f"--output={tmp_path}/shown", "--number=3")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "shown").glob("*.jpg"))) == 3
    done = run("convert", tmp_path / "a", f"--output={tmp_path}/labelme", "--form=labelme")
    assert done.returncode == 0, done.stderr
    again = check.check(tmp_path / "labelme")
    assert again.fine
    assert [len(again.pairing.of(split)) for split in ("train", "val")] == [10, 2]
    done = run("convert", tmp_path / "a", f"--output={tmp_path}/labelme")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"ValueError: --output='{tmp_path}/labelme' is not empty: name a new folder"]
    change_some(tmp_path / "a", lambda mask: mask[1:])
    done = run("check", tmp_path / "a")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("cannot be trained on as it is: 1 errors, 0 warnings")


@pytest.mark.parametrize("arguments", [(), ("check",), ("chek", "x"), ("check", "a", "b")])
def test_a_command_that_is_mistyped(arguments):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ValueError: give one of check, show, convert and a folder: python -m fcn_jax.data check DIR"
    ]


@pytest.mark.parametrize("form", ["ids", "labelme", "cvat", "coco"])
def test_converted_folders_have_the_same_ids(tmp_path, form):
    from fcn_jax.data.own import convert, forms

    sound(tmp_path / "a", number=6)
    split_by_lists(tmp_path / "a", ("p01", "p04"))
    before = check.check(tmp_path / "a")
    convert.convert(before, tmp_path / "b", form)
    if form == "cvat":
        import zipfile

        for path in (tmp_path / "b").glob("*.zip"):
            zipfile.ZipFile(path).extractall(tmp_path / "b")
    after = check.check(tmp_path / "b")
    expected = {pair.id: forms.read(before.form, pair.label) for pair in before.pairing.pairs}
    found = {pair.id: forms.read(after.form, pair.label) for pair in after.pairing.pairs}
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)
    if form != "cvat":  # whose own lists are of one task each
        assert {pair.id: pair.split for pair in after.pairing.pairs} == {p.id: p.split for p in before.pairing.pairs}

"""Corrupt images in the middle of the data, among the official files and in prepared records: raised, or left out."""

import functools
import itertools
import json
import logging
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from layouts import (
    HEIGHT,
    WIDTH,
    make_label,
    voc_list,
    write_camvid,
    write_image,
    write_palette_png,
    write_sbd,
    write_voc,
)
from PIL import Image

from fcn_jax import config as config_lib
from fcn_jax.data import canvases, datasets, images, pipeline
from fcn_jax.data.builders import base

IDS = ["a", "b", "c", "d", "e"]


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def belie(path):
    """Makes the checksum of a PNG's pixels differ from them: other than that, some other pixels decode as well."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IEND") - 8] ^= 1
    path.write_bytes(data)


@pytest.fixture
def voc(tmp_path):
    """A VOC folder with the train list a to e, to be damaged, and open_split for it."""
    write_voc(tmp_path, {name: make_label(k) for k, name in enumerate(IDS)})
    voc_list(tmp_path, "train", IDS)
    opened = functools.partial(
        datasets.open_split, "voc_segmentation", raw_dir=str(tmp_path), data_dir=tmp_path / "prepared"
    )
    return tmp_path / "VOCdevkit" / "VOC2012", opened


@pytest.fixture
def warnings(caplog):
    """A function: the warnings since it was last called."""
    caplog.set_level(logging.WARNING, "fcn_jax")

    def since():
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("fcn_jax")]
        caplog.clear()
        return messages

    return since


# Official files


DAMAGE = [
    ("JPEGImages/c.jpg", truncate, "image 'c' cannot be decoded"),
    ("JPEGImages/c.jpg", lambda path: path.write_bytes(b""), "image 'c' cannot be decoded (it is empty)"),
    ("JPEGImages/c.jpg", lambda path: path.write_text("text"), "image 'c' cannot be decoded (not an image file)"),
    ("SegmentationClass/c.png", truncate, "label '{path}' cannot be decoded"),
    ("SegmentationClass/c.png", lambda path: path.write_bytes(b""), "label '{path}' cannot be decoded"),
    ("SegmentationClass/c.png", belie, "label '{path}' cannot be decoded (broken PNG file"),
]
DAMAGE_NAMES = ["truncated image", "empty image", "text", "truncated label", "empty label", "checksum of a label"]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE, ids=DAMAGE_NAMES)
def test_a_corrupt_file_is_raised(voc, file, damage, message):
    folder, opened = voc
    damage(folder / file)
    for _ in range(2):  # the second run must not take what the first left for prepared data
        with pytest.raises(ValueError) as error:
            opened("train")
        assert str(error.value).startswith(message.format(path=folder / file))
        assert str(error.value).endswith(": replace or remove the file")
        assert "\n" not in str(error.value)
    assert not list((folder.parents[1] / "prepared").rglob("*.array_record*"))


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE, ids=DAMAGE_NAMES)
def test_a_corrupt_file_is_left_out_named_and_counted(voc, warnings, file, damage, message):
    folder, opened = voc
    damage(folder / file)
    split = opened("train", corrupt="skip")
    left = ["a", "b", "d", "e"]
    assert (split.ids, split.corrupt) == (left, ["c"])
    assert [example["id"] for example in split.source] == left
    assert len(split.sizes) == len(split.pixel_counts) == 4
    for example, counts, seed in zip(split.source, split.pixel_counts, (0, 1, 3, 4), strict=True):
        np.testing.assert_array_equal(images.decode_label(example["label"], ""), make_label(seed))
        assert counts.sum() == (make_label(seed) != 255).sum()
    first, second = warnings()
    assert first.startswith(f"voc_segmentation/train leaves out c: {message.format(path=folder / file)}")
    assert second == "1 of 5 images of voc_segmentation/train are corrupt and left out: c"


def test_a_split_that_was_prepared_is_not_prepared_again_and_warned_of_again(voc, warnings, monkeypatch):
    folder, opened = voc
    truncate(folder / "JPEGImages" / "b.jpg")
    truncate(folder / "SegmentationClass" / "d.png")
    assert opened("train", corrupt="skip").corrupt == ["b", "d"]
    assert len(warnings()) == 3
    monkeypatch.setattr(base.SegmentationBuilder, "load", None)  # a second preparation would call it
    split = opened("train", corrupt="skip")
    assert (split.ids, split.corrupt) == (["a", "c", "e"], ["b", "d"])
    assert warnings() == ["2 of 5 images of voc_segmentation/train are corrupt and left out: b, d"]


def test_slices_are_of_what_is_left(voc):
    folder, opened = voc
    truncate(folder / "JPEGImages" / "b.jpg")
    for spec, ids in {"train[:50%]": ["a", "c"], "train[1:]": ["c", "d", "e"], "train[-1:]": ["e"]}.items():
        split = opened(spec, corrupt="skip")
        assert (split.ids, split.corrupt) == (ids, ["b"])
        assert [example["id"] for example in split.source] == ids
    with pytest.raises(ValueError, match="is no slice of its 4 images"):
        opened("train[:5]", corrupt="skip")


def test_what_was_prepared_with_skip_is_never_taken_for_the_whole(voc):
    folder, opened = voc
    image = folder / "JPEGImages" / "c.jpg"
    whole = image.read_bytes()
    truncate(image)
    assert opened("train", corrupt="skip").ids == ["a", "b", "d", "e"]
    with pytest.raises(ValueError, match="image 'c' cannot be decoded"):
        opened("train")
    image.write_bytes(whole)
    for corrupt in ("skip", "raise"):
        split = opened("train", corrupt=corrupt)
        assert (split.ids, split.corrupt) == (IDS, [])


def test_a_split_that_was_prepared_whole_serves_skip_too(voc, warnings, monkeypatch):
    _, opened = voc
    whole = opened("train")
    monkeypatch.setattr(base.SegmentationBuilder, "load", None)  # a second preparation would call it
    split = opened("train", corrupt="skip")
    assert (whole.corrupt, split.ids, split.corrupt) == ([], IDS, [])
    assert warnings() == []


def test_the_folders_of_both_differ(voc):
    folder, opened = voc
    opened("train", corrupt="skip")
    opened("train")
    names = sorted(path.name for path in (folder.parents[1] / "prepared" / "voc_segmentation").iterdir())
    assert len(names) == 2
    assert names[1] == names[0] + base.SKIP_SUFFIX


def test_many_are_counted_and_the_first_named(tmp_path, warnings):
    write_camvid(tmp_path, "train", [f"i{k:02}" for k in range(15)], ".jpg")
    for k in range(1, 14):
        truncate(tmp_path / "CamVid" / "train" / f"i{k:02}.jpg")
    split = datasets.open_split("camvid", "train", raw_dir=str(tmp_path), data_dir=tmp_path, corrupt="skip")
    assert split.ids == ["i00", "i14"]
    assert split.corrupt == [f"i{k:02}" for k in range(1, 14)]
    *each, rest, total = warnings()
    assert [line.split(":")[0] for line in each] == [f"camvid/train leaves out i{k:02}" for k in range(1, 11)]
    assert rest == "camvid/train leaves out 3 more"
    names = ", ".join(f"i{k:02}" for k in range(1, 11))
    assert total == f"13 of 15 images of camvid/train are corrupt and left out: {names} and 3 more"


def test_nothing_left_is_an_error(voc):
    folder, opened = voc
    for name in IDS:
        truncate(folder / "JPEGImages" / f"{name}.jpg")
    message = "^all 5 examples of voc_segmentation/train are corrupt, the first: image 'a' cannot be decoded"
    for _ in range(2):
        with pytest.raises(ValueError, match=message) as error:
            opened("train", corrupt="skip")
        assert "\n" not in str(error.value)


def test_a_corrupt_mat_is_left_out(tmp_path):
    write_sbd(tmp_path, {name: make_label(0) for name in IDS}, train=IDS, val=[])
    truncate(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "d.mat")
    opened = functools.partial(
        datasets.open_split, "voc_segmentation", "sbd_train", raw_dir=str(tmp_path), data_dir=tmp_path
    )
    with pytest.raises(ValueError, match=r"label '.*d\.mat' cannot be read .*: replace the file or take it from"):
        opened()
    split = opened(corrupt="skip")
    assert (split.ids, split.corrupt) == (["a", "b", "c", "e"], ["d"])


@pytest.mark.parametrize(
    ("file", "write", "message"),
    [
        (
            "SegmentationClass/c.png",
            lambda path: write_palette_png(path, np.full((HEIGHT, WIDTH), 21, np.uint8)),
            "'c': label 21 at 48 pixels",
        ),
        ("JPEGImages/c.jpg", lambda path: write_image(path, (HEIGHT, WIDTH + 1)), "'c': image is 6x9 but label is 6x8"),
        (
            "SegmentationClass/c.png",
            lambda path: Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path),
            "has mode RGB",
        ),
        ("SegmentationClass/c.png", lambda path: path.unlink(), "1 of 10 files"),
    ],
    ids=["ids", "size", "colours", "missing"],
)
def test_what_is_wrong_and_not_corrupt_is_raised_always(voc, file, write, message):
    folder, opened = voc
    write(folder / file)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened("train", corrupt="skip")


# Prepared records

CANVAS = (64, 80)
AUGMENTED = pipeline.Augmentation((48, 40), crop=True, scale=(0.5, 2.0), flip=True, colour_jitter=0.3)
NAMES = [f"i{k}" for k in range(6)]
HIT = "i3"


@pytest.fixture(scope="module", params=[1, 2], ids=["one file", "two files"])
def made(request, tmp_path_factory):
    """A folder with camvid/train of six images, and with it prepared, in one or two record files."""
    root = tmp_path_factory.mktemp("made")
    for k, name in enumerate(NAMES):
        write_image(root / "CamVid" / "train" / f"{name}.jpg", CANVAS, k)
        path = root / "CamVid" / "trainannot" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 12, CANVAS, np.uint8)).save(path)
    shards = tfds.download.DownloadConfig(num_shards=request.param)
    prepare = functools.partialmethod(base.SegmentationBuilder.download_and_prepare, download_config=shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.SegmentationBuilder, "download_and_prepare", prepare)
        datasets.open_split("camvid", "train", raw_dir=str(root), data_dir=root / "prepared")
    assert len(list((root / "prepared").rglob("*.array_record*"))) == request.param
    return root


@pytest.fixture(scope="module")
def intact(made):
    """The elements of TRAINING and of the evaluation, before any damage."""
    split = datasets.open_split("camvid", "train", raw_dir=str(made), data_dir=made / "prepared")
    return [train_elements(split, "raise", options) for options in TRAINING], eval_elements(split, "raise")


@pytest.fixture
def prepared(made, tmp_path):
    """open_split for a copy of the prepared data that is to be damaged, and its record files."""
    shutil.copytree(made / "prepared", tmp_path / "prepared")
    opened = functools.partial(
        datasets.open_split, "camvid", "train", raw_dir=str(made), data_dir=tmp_path / "prepared"
    )
    return opened, sorted((tmp_path / "prepared").rglob("*.array_record*"))


def overwrite(prepared, part):
    """Zeros in the middle of the image of HIT, as it lies on the disk: the first piece of it that is there once."""
    opened, files = prepared
    encoded = opened().source[NAMES.index(HIT)]["image"]
    pieces = [encoded[at : at + 16] for at in range(len(encoded) // 2, len(encoded) - 16, 16)]
    contents = {file: file.read_bytes() for file in files}
    piece = next(piece for piece in pieces if sum(data.count(piece) for data in contents.values()) == 1)
    for file, data in contents.items():
        file.write_bytes(data.replace(piece, bytes(16)))


def rewrite(prepared, part):
    """The record of HIT with a damaged image or label and checksums that agree with it."""
    opened, files = prepared
    encoded = opened().source[NAMES.index(HIT)][part]
    for file in files:
        reader = array_record_module.ArrayRecordReader(str(file))
        records = [reader.read([k])[0] for k in range(reader.num_records())]
        reader.close()
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(record.replace(encoded, encoded[:99] + bytes(len(encoded) - 99)))
        writer.close()


DAMAGED_RECORD = pytest.mark.parametrize(
    ("damage", "part", "what"),
    [
        (overwrite, "image", r"record 'camvid/train:i3' cannot be read \(Corrupted Riegeli.*\)"),
        (rewrite, "image", r"image 'camvid/train:i3' cannot be decoded \(.*\)"),
        (rewrite, "label", r"label 'camvid/train:i3' cannot be decoded \(.*\)"),
    ],
    ids=["chunk", "image", "label"],
)
TRAINING = [
    {"batch_size": 4},
    {"batch_size": 3, "accumulate": 2},
    {"batch_size": 4, "replacement": True},
    {"batch_size": 2, "process_index": 1, "process_count": 2},
]


def train_elements(split, corrupt, options, threads=0):
    process = {key: value for key, value in options.items() if key.startswith("process_")}
    others = {key: value for key, value in options.items() if key not in process}
    reading = pipeline.Reading(corrupt=corrupt, **process)
    dataset = pipeline.train_dataset(split, AUGMENTED, seed=3, **others, reading=reading)
    if not threads:
        return [dataset[step] for step in range(1, 7)]
    return list(itertools.islice(pipeline.iterate(dataset, 1, threads), 6))


def eval_elements(split, corrupt, threads=2):
    everything = tuple(range(len(split.ids)))
    batches = [canvases.Batch(CANVAS, everything[start : start + 4]) for start in range(0, len(everything), 4)]
    dataset = pipeline.eval_dataset(split, batches, batch_size=4, reading=pipeline.Reading(corrupt=corrupt))
    return list(pipeline.iterate(dataset, 0, threads))


def rows(elements):
    """The examples of all batches one by one, in their order."""
    for element in elements:
        flat = {key: value.reshape(-1, *value.shape[element["id"].ndim :]) for key, value in element.items()}
        for k in range(len(flat["id"])):
            yield {key: value[k] for key, value in flat.items()}


def assert_empty_where_damaged(found, intact, damaged):
    """The same batches, but for `damaged`, which are empty and marked; returns how often they are there."""
    hits = 0
    for a, b in zip(rows(found), rows(intact), strict=True):
        hit = str(b["id"]) in damaged
        hits += hit
        assert a.keys() == b.keys()
        assert (a["id"], bool(a["corrupt"]), bool(b["corrupt"])) == (b["id"], hit, False)
        if hit:
            assert a["size"].tolist() == [1, 1]
            assert not a["image"].any()
            assert (a["label"] == images.VOID).all()
        else:
            for key in ("image", "label", "size"):
                np.testing.assert_array_equal(a[key], b[key], key)
    return hits


@DAMAGED_RECORD
def test_a_damaged_record_is_raised_in_one_line(prepared, damage, part, what):
    damage(prepared, part)
    split = prepared[0]()
    remedy = r": delete camvid/train-\* below config\.data\.data_dir, so that it is prepared anew"
    for threads in (1, 2):
        for elements in (functools.partial(train_elements, options={"batch_size": 3}), eval_elements):
            with pytest.raises(ValueError) as error:
                elements(split, "raise", threads=threads)
            assert re.fullmatch(what + remedy, str(error.value))  # not `match`, which reads the notes that Grain adds


@DAMAGED_RECORD
def test_a_damaged_record_is_empty_and_marked_and_changes_no_other(prepared, intact, damage, part, what):
    damage(prepared, part)
    split = prepared[0](corrupt="skip")
    assert split.ids == NAMES
    for options, elements in zip(TRAINING, intact[0], strict=True):
        found = train_elements(split, "skip", options)
        assert assert_empty_where_damaged(found, elements, {HIT}) >= 1
    found = train_elements(split, "skip", TRAINING[0], threads=2)
    assert assert_empty_where_damaged(found, intact[0][0], {HIT}) >= 4  # six steps are four epochs
    assert assert_empty_where_damaged(eval_elements(split, "skip"), intact[1], {HIT}) == 1


def test_marks_of_healthy_data_and_of_filling(prepared):
    split = prepared[0]()
    for corrupt in ("raise", "skip"):
        element = train_elements(split, corrupt, {"batch_size": 3, "accumulate": 2})[0]
        assert element["corrupt"].dtype == bool
        assert element["corrupt"].tolist() == [[False] * 3] * 2
        last = eval_elements(split, corrupt)[-1]
        assert last["corrupt"].dtype == bool
        assert last["corrupt"].tolist() == [False] * 4
        assert last["id"].tolist() == ["i4", "i5", "", ""]


@pytest.mark.parametrize("kept", [0, 65536, 70000])  # array_record pads to multiples of 64 KiB
def test_a_truncated_record_file(prepared, intact, kept):
    """All records of that file are lost; where there is no other file, skipping would leave nothing."""
    opened, files = prepared
    files[0].write_bytes(files[0].read_bytes()[:kept])
    split = opened(corrupt="skip")
    with pytest.raises(ValueError, match=r"^record 'camvid/train:i\d' cannot be read \(.*\): delete camvid/train-\*"):
        train_elements(split, "raise", {"batch_size": 4})
    if len(files) == 1:
        for elements in (functools.partial(train_elements, options={"batch_size": 4}), eval_elements):
            message = r"^all 6 records of camvid/train are damaged: delete camvid/train-\* below"
            with pytest.raises(ValueError, match=message):
                elements(split, "skip")
        return
    lost = set(NAMES[:3])
    assert assert_empty_where_damaged(train_elements(split, "skip", TRAINING[0]), intact[0][0], lost) >= 9
    assert assert_empty_where_damaged(eval_elements(split, "skip"), intact[1], lost) == 3


# Config


def test_the_key():
    config = config_lib.default()
    assert config.data.corrupt == "raise"
    before = json.loads(config_lib.to_json(config))
    config.data.corrupt = "skip"
    config_lib.validate(config)
    assert config_lib.changes(before, config) == ["data.corrupt: 'raise' -> 'skip'"]
    config.data.corrupt = "ignore"
    with pytest.raises(ValueError, match=r"config\.data\.corrupt='ignore': choose from raise, skip"):
        config_lib.validate(config)

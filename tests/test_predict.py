"""Folders of photographs: what is taken, what masks are called, and that one image does not keep from the others."""

import pathlib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from layouts import write_image
from PIL import Image
from test_damage import SPEC, params

from fcn_jax import checkpoint, predict


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
    for name in ("a.png", "c.png", "huge.png", "z.png"):
        write_image(source / name, (20, 30))
    (source / "b.jpg").write_bytes(b"no image")
    (source / "gone.jpg").symlink_to("nowhere")
    write_image(source / ("n" * 245 + ".png"), (20, 30))  # for whose overlay no name is left
    segment = predict.segment

    def failing(predictor, image, max_side):
        if "huge" in str(paths.pop(0)):
            raise predict.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return segment(predictor, image, max_side)

    paths = [path for path in predict.find_images(source) if path.name not in ("b.jpg", "gone.jpg")]
    monkeypatch.setattr(predict, "segment", failing)
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

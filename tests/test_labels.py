"""The ways in which labels lie: what is found is said, with values, counts and the first file."""

import numpy as np
import pytest
from layouts import voc_list, write_image, write_voc
from PIL import Image

from fcn_jax.data import datasets

VALUES = np.arange(48).reshape(6, 8)
GOOD = (VALUES % 21).astype(np.uint8)


def opened(tmp_path, *labels, split="train"):
    """A VOC split with these labels, prepared and opened."""
    named = {f"im{k}": np.asarray(label, np.uint8) for k, label in enumerate(labels)}
    write_voc(tmp_path, named)
    voc_list(tmp_path, "train", named)
    return datasets.open_split("voc_segmentation", split, raw_dir=str(tmp_path), data_dir=tmp_path / "data")


def of(*values):
    """A label of 6x8 pixels with these values in turn."""
    return np.resize(np.array(values, np.uint8), (6, 8))


def test_a_good_split_is_silent(tmp_path, caplog):
    opened(tmp_path, GOOD, of(0, 255))
    assert not caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [of(0, 255), of(255)],
            r"the 2 labels of voc_segmentation/train have nothing but 'background' \(24 pixels\) and 255 \(72 pixels\),"
            r" which is void and left out, first 'im0': if 255 marks a class, write its id instead",
        ),
        ([of(15, 255)], r"have nothing but 'person' \(24 pixels\) and 255 \(24 pixels\)"),
        (
            [of(255), of(255)],
            r"no pixel of voc_segmentation/train is labelled: all 96 of its 2 labels are 255 \(void\), first 'im0':"
            r" write class ids, 0 to 20",
        ),
        (
            [GOOD, of(0, 254)],
            r"'im1': label 254 at 24 pixels, but there are 21 classes \(0\.\.20\) and void 255: correct the annotation"
            r" or the class list; if 254 is void, change it to 255 \(.*im1\.png\)",
        ),
        ([of(1, 2, 21)], r"'im0': label 21 at 16 pixels, .*: ids seem to begin at 1; subtract 1"),
        ([of(0, 21, 22)], r"'im0': label 21 at 16, 22 at 16 pixels, .*: correct the annotation or the class list \("),
        (
            [5 * VALUES],
            r"label 25 at 1, .* 45 at 1 and 38 other values pixels, .*: a lossy or smoothly resized mask",
        ),
    ],
)
def test_labels_that_lie_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, *labels)
    assert "\n" not in str(error.value)


def test_classes_that_no_image_has_are_told(tmp_path, caplog):
    opened(tmp_path, of(*range(3, 21), 0, 2), of(255))
    assert "no image of voc_segmentation/train has aeroplane\n" in caplog.text


def test_ids_that_may_begin_at_1(tmp_path, caplog):
    opened(tmp_path, of(*range(1, 21)))
    assert "no image of voc_segmentation/train has background; do the ids begin at 1?" in caplog.text


def test_a_slice_may_have_one_class(tmp_path):
    assert len(opened(tmp_path, of(0, 255), GOOD, split="train[:1]").ids) == 1


def test_one_class_without_void_is_a_class(tmp_path, caplog):
    opened(tmp_path, of(0))
    assert "no image of voc_segmentation/train has aeroplane, bicycle" in caplog.text


def test_a_jpeg_is_no_label(tmp_path):
    opened(tmp_path, GOOD)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(
        tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "im0.png", format="jpeg"
    )
    with pytest.raises(ValueError, match=r"im0\.png' is a JPEG, whose values are not exact: save class ids as PNG"):
        opened_again(tmp_path)


@pytest.mark.parametrize(("mode", "remedy"), [("RGB", "class ids"), ("RGBA", "class ids"), ("1", "class ids")])
def test_modes_that_hold_no_ids(tmp_path, mode, remedy):
    opened(tmp_path, GOOD)
    write_image(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        image.convert(mode).save(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "im0.png")
    with pytest.raises(ValueError, match=rf"im0\.png' has mode {mode}: {remedy} need an 8-bit palette or grey image"):
        opened_again(tmp_path)


def opened_again(tmp_path):
    return datasets.open_split("voc_segmentation", "train", raw_dir=str(tmp_path), data_dir=tmp_path / "data")

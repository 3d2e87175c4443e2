"""Pictures, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from fcn_jax import visualize
from fcn_jax.data import dataset, images

PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
WHITE = (255, 255, 255)


def test_colorize():
    label = np.array([[0, 1], [2, 255], [3, 1]], np.uint8)
    picture = visualize.colorize(label, PALETTE)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[PALETTE[0], PALETTE[1]], [PALETTE[2], WHITE], [WHITE, PALETTE[1]]])


def test_overlay():
    image = np.array([[[10, 20, 30], [10, 20, 30], [200, 100, 0]]], np.uint8)
    label = np.array([[0, 1, 2]], np.uint8)
    picture = visualize.overlay(image, label, PALETTE)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[[10, 20, 30], [69, 10, 15], [100, 114, 0]]])
    np.testing.assert_array_equal(visualize.overlay(image, label, PALETTE, alpha=0.0), image)
    opaque = visualize.overlay(image, label, PALETTE, alpha=1.0)
    np.testing.assert_array_equal(opaque, [[[10, 20, 30], PALETTE[1], PALETTE[2]]])


def test_overlay_leaves_the_background_alone():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    label = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    palette = ((9, 99, 199), *PALETTE[1:])  # a background with a colour, which is not to be seen
    before = image.copy()
    picture = visualize.overlay(image, label, palette)
    np.testing.assert_array_equal(picture[label == 0], image[label == 0])
    assert (picture != image).any(-1)[label > 0].mean() > 0.99
    np.testing.assert_array_equal(image, before)


def test_errors():
    truth = np.array([[0, 1, 2, 255, 255, 3]], np.uint8)
    prediction = np.array([[0, 2, 2, 0, 255, 3]], np.uint8)
    red, grey = (200, 0, 0), (200, 200, 200)
    picture = visualize.errors(truth, prediction, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[grey, red, grey, WHITE, WHITE, WHITE]])


def test_panel():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    truth, prediction = np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)
    truth[10:20], truth[0, 0], prediction[:, 30:] = 2, 255, 3
    names, palette = ("background", "absent", "missed", "invented"), (*PALETTE, (128, 128, 0))
    picture = visualize.panel(image, truth, prediction, names, palette)
    assert picture.dtype == np.uint8
    gap = visualize.GAP
    assert picture.shape[1] == 4 * 50 + 3 * gap
    tiles = [
        image,
        visualize.colorize(truth, palette),
        visualize.colorize(prediction, palette),
        visualize.errors(truth, prediction, 4),
    ]
    for index, tile in enumerate(tiles):
        left = index * (50 + gap)
        np.testing.assert_array_equal(picture[:40, left : left + 50], tile)
        np.testing.assert_array_equal(picture[:40, left + 50 : left + 50 + gap], 255)
    # The legend names the classes that occur, if only in one of the two.
    present = [0, 2, 3]
    legend = visualize.legend([names[i] for i in present], [palette[i] for i in present], picture.shape[1])
    np.testing.assert_array_equal(picture[40:], legend)
    assert [(legend == colour).all(-1).any() for colour in palette] == [True, False, True, True]


def squares(picture, colours):
    """The top left corner of the square of each colour, [y, x]."""
    return [np.argwhere((picture == colour).all(-1)).min(0).tolist() for colour in colours]


def test_legend_wraps():
    colours = [(200, 10 * i, 0) for i in range(6)]
    names = ["name"] * 6  # of 24 pixels, 46 with the square and what is between
    heights = {}
    for width in (60, 100, 150, 400):
        picture = visualize.legend(names, colours, width)
        assert picture.dtype == np.uint8
        assert picture.shape[1] == width
        heights[width] = picture.shape[0]
        corners = squares(picture, colours)
        assert corners == sorted(corners)
        for colour, (y, x) in zip(colours, corners, strict=True):
            np.testing.assert_array_equal(picture[y : y + 11, x : x + 11], np.full((11, 11, 3), colour))
            text = picture[y : y + 11, x + 12 : x + 46]
            assert (text < 100).all(-1).any()  # the name beside it
    line = heights[400]
    assert heights == {60: 6 * line, 100: 3 * line, 150: 2 * line, 400: line}


def test_legend_of_a_name_wider_than_the_picture():
    picture = visualize.legend(["background", "b"], [(200, 0, 0), (0, 200, 0)], 30)
    first, second = squares(picture, [(200, 0, 0), (0, 200, 0)])
    assert first[0] < second[0]
    assert first[1] == second[1]


@pytest.mark.parametrize("num_classes", [2, 6, 11, 21, 256])
def test_save_mask_keeps_the_ids_as_pixels(tmp_path, num_classes):
    palette = dataset.voc_palette(num_classes)
    label = np.random.default_rng(2).integers(0, num_classes, (9, 13)).astype(np.uint8)
    label[0, 0] = num_classes - 1
    visualize.save_mask(tmp_path / "mask.png", label, palette)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), label)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.array(palette, np.uint8)[label])
    np.testing.assert_array_equal(images.decode_label((tmp_path / "mask.png").read_bytes(), "mask"), label)


def test_save_mask_writes_png_whatever_the_name(tmp_path):
    visualize.save_mask(tmp_path / "mask", np.zeros((2, 2), np.uint8), PALETTE)
    assert Image.open(io.BytesIO((tmp_path / "mask").read_bytes())).format == "PNG"


def test_a_mask_keeps_ids_beyond_the_palette(tmp_path):
    """With few colours Pillow would write fewer bits, and void 255 as 15."""
    label = np.array([[0, 5, 17, 255]], np.uint8)
    visualize.save_mask(tmp_path / "mask.png", label, dataset.voc_palette(6))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), label)

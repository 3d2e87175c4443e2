"""Per-example transforms: exact small cases, and what holds for every random draw."""

import numpy as np
import pytest

from fcn_jax.data import transforms


def example(height, width, seed=0):
    """Noise uint8 [H, W, 3] and labels uint8 [H, W] of 0, 3, 20 and void."""
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array([0, 3, 20, 255], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8), label


def draws(count=100):
    return (np.random.default_rng(seed) for seed in range(count))


def test_pad():
    image, label = example(2, 3)
    padded = transforms.pad(image, label, (4, 5))
    assert {key: (value.shape, value.dtype) for key, value in padded.items()} == {
        "image": ((4, 5, 3), np.uint8),
        "label": ((4, 5), np.uint8),
        "size": ((2,), np.int32),
    }
    np.testing.assert_array_equal(padded["size"], [2, 3])
    np.testing.assert_array_equal(padded["image"][:2, :3], image)
    np.testing.assert_array_equal(padded["label"][:2, :3], label)
    outside = np.ones((4, 5), bool)
    outside[:2, :3] = False
    np.testing.assert_array_equal(padded["image"][outside], 0)
    np.testing.assert_array_equal(padded["label"][outside], 255)


def test_pad_to_the_same_size_changes_nothing():
    image, label = example(7, 4)
    padded = transforms.pad(image, label, (7, 4))
    np.testing.assert_array_equal(padded["image"], image)
    np.testing.assert_array_equal(padded["label"], label)


@pytest.mark.parametrize("canvas", [(6, 9), (7, 3), (6, 3)])
def test_pad_refuses_what_does_not_fit(canvas):
    with pytest.raises(ValueError, match=f"7x4 does not fit a canvas of {canvas[0]}x{canvas[1]}"):
        transforms.pad(*example(7, 4), canvas)


def test_crop_of_the_whole_image_at_factor_one_is_the_image():
    image, label = example(13, 17)
    for rng in draws(5):
        cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=(13, 17), scale=(1.0, 1.0))
        np.testing.assert_array_equal(cropped, image)
        np.testing.assert_array_equal(cropped_label, label)


def test_crop_at_factor_one_is_a_window_anywhere():
    # The label numbers the pixels, so that it tells where a window came from.
    label = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
    image = example(12, 20)[0]
    places = set()
    for rng in draws(300):
        cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=(10, 15), scale=(1.0, 1.0))
        top, left = divmod(int(cropped_label[0, 0]), 20)
        np.testing.assert_array_equal(cropped_label, label[top : top + 10, left : left + 15])
        np.testing.assert_array_equal(cropped, image[top : top + 10, left : left + 15])
        places.add((top, left))
    assert places == {(top, left) for top in range(3) for left in range(6)}


def test_crop_of_a_small_image_takes_all_of_it():
    image, label = example(9, 11)
    for rng in draws(5):
        cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=(32, 10), scale=(1.0, 1.0))
        assert cropped_label.shape == (9, 10)
        left = next(x for x in (0, 1) if (cropped_label == label[:, x : x + 10]).all())
        np.testing.assert_array_equal(cropped, image[:, left : left + 10])


def test_crop_resizes_a_small_image_as_a_whole():
    image, label = example(10, 6)
    for scale, shape in ((2.0, (20, 12)), (0.5, (5, 3))):
        rng = np.random.default_rng(0)
        cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=(32, 32), scale=(scale, scale))
        assert (cropped.shape, cropped_label.shape) == ((*shape, 3), shape)
    doubled = transforms.random_crop(image, label, rng, crop_size=(32, 32), scale=(2.0, 2.0))[1]
    np.testing.assert_array_equal(doubled, label.repeat(2, 0).repeat(2, 1))


def test_crops_of_random_sizes():
    for rng in draws(200):
        height, width, crop_height, crop_width = (int(n) for n in rng.integers(1, 60, 4))
        scale = (0.4, 2.5)
        image, label = example(height, width, seed=int(rng.integers(1000)))
        crop = (crop_height, crop_width)
        cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=crop, scale=scale)
        assert (cropped.dtype, cropped_label.dtype) == (np.uint8, np.uint8)
        assert cropped.shape == (*cropped_label.shape, 3)
        for side, source, limit in zip(cropped_label.shape, (height, width), crop, strict=True):
            # All of the crop where the image fills it even at the smallest factor; else no more than the largest gives.
            assert 1 <= side <= min(limit, round(2.5 * source) or 1)
            # Rounding the window to whole pixels of the source can lose up to half of one, times the factor.
            assert side >= min(limit - 1.25, np.floor(0.4 * source))
        assert set(np.unique(cropped_label)) <= set(np.unique(label))
        assert image.min() <= cropped.min()
        assert cropped.max() <= image.max()
        transforms.pad(cropped, cropped_label, crop)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.4, 2.5)])
def test_image_and_label_stay_aligned(low, high):
    # Both hold the coordinate of the pixel, one along the columns and one along the rows.
    for axis in (0, 1):
        label = np.broadcast_to(np.expand_dims(np.arange(150, dtype=np.uint8), 1 - axis), (150, 150))
        image = np.ascontiguousarray(np.broadcast_to(label[..., None], (150, 150, 3)))
        label = np.ascontiguousarray(label)
        means = []
        for rng in draws(40):
            cropped, cropped_label = transforms.random_crop(image, label, rng, crop_size=(64, 48), scale=(low, high))
            difference = cropped[..., 0].astype(int) - cropped_label
            # Nearest is half a pixel off at most, the image's rounding and its filter at the border add up to as much.
            assert abs(difference).max() <= 1
            assert cropped_label.std() > 3  # there was something to compare
            means.append(difference.mean())
        assert abs(np.mean(means)) < 0.1  # nor is one shifted by a part of a pixel


def interpolated(array, size):
    """`array` float64 [H, W] at another size, bilinearly: centres of pixels at half, edges repeated."""
    for axis, length in enumerate(size):
        centres = np.clip((np.arange(length) + 0.5) * array.shape[axis] / length - 0.5, 0, array.shape[axis] - 1)
        below = np.floor(centres).astype(int)
        above, share = np.minimum(below + 1, array.shape[axis] - 1), centres - below
        share = np.expand_dims(share, 1 - axis)
        array = (1 - share) * array.take(below, axis) + share * array.take(above, axis)
    return array


@pytest.mark.parametrize("factor", [0.51, 0.7, 1.0, 1.3, 2.0, 3.1])
def test_the_image_is_interpolated_as_it_is_scored_at_other_sizes(factor):
    """As multiscale.py does it; OpenCV rounds its weights to 8 bits and then the result."""
    image, label = example(37, 52)
    cropped, cropped_label = transforms.random_crop(
        image, label, np.random.default_rng(0), crop_size=(200, 200), scale=(factor, factor)
    )
    assert cropped_label.shape == (round(37 * factor), round(52 * factor))
    for channel in range(3):
        expected = interpolated(image[..., channel].astype(np.float64), cropped_label.shape)
        assert np.abs(cropped[..., channel] - expected).max() <= 1.25
        assert abs((cropped[..., channel] - expected).mean()) < 0.05  # halves are rounded up


def test_what_is_shrunk_to_less_than_half_is_averaged_first():
    """A fine chequerboard becomes grey: each two pixels alone could be black or white."""
    board = ((np.add.outer(np.arange(120), np.arange(160)) % 2) * 254).astype(np.uint8)
    image = np.repeat(board[..., None], 3, 2)
    for factor in (0.25, 0.3, 0.11):
        draw = np.random.default_rng(0)
        shrunk = transforms.random_crop(image, board, draw, crop_size=(99, 99), scale=(factor, factor))[0]
        assert shrunk.shape == (round(120 * factor), round(160 * factor), 3)
        assert np.abs(shrunk.astype(int) - 127).max() <= 32, factor
        assert abs(shrunk.mean() - 127) < 4


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("scale", [0.3, 0.8, 1.7])
def test_each_channel_and_each_head_is_cropped_as_it_is_alone(channels, scale):
    rng = np.random.default_rng(0)
    image = rng.normal(0, 100, (40, 50, channels)).astype(np.float32)
    label = rng.integers(0, 256, (40, 50, channels), np.uint8)

    def crop(image, label):
        draw = np.random.default_rng(1)
        return transforms.random_crop(image, label, draw, crop_size=(24, 20), scale=(scale, scale))

    whole, labels = crop(image, label)
    assert (whole.dtype, labels.dtype, whole.shape) == (np.float32, np.uint8, labels.shape)
    for k in range(channels):
        one, one_label = crop(image[..., k : k + 1], label[..., k])
        np.testing.assert_allclose(whole[..., k : k + 1], one, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(labels[..., k], one_label)


def test_scale_is_log_uniform():
    # A crop as large as the enlarged image shows the factor: half of the draws below 1, a quarter below 1/2.
    image, label = example(40, 40)
    rng = np.random.default_rng(0)
    crops = [transforms.random_crop(image, label, rng, crop_size=(160, 160), scale=(0.25, 4.0)) for _ in range(500)]
    sides = np.array([len(cropped_label) for _, cropped_label in crops])
    assert 10 <= sides.min() < 12
    assert 140 < sides.max() <= 160
    quarters = np.quantile(sides, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.log2(quarters / 40), [-1, 0, 1], atol=0.25)


def test_flip():
    image, label = example(4, 5)
    flipped, flipped_label = transforms.flip(image, label)
    for column in range(5):
        np.testing.assert_array_equal(flipped[:, column], image[:, 4 - column])
        np.testing.assert_array_equal(flipped_label[:, column], label[:, 4 - column])
    again = transforms.flip(flipped, flipped_label)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], label)


def test_jitter_of_strength_zero_is_the_image():
    image = example(50, 60)[0]
    image[0, 0] = (0, 128, 255)
    for rng in draws(5):
        np.testing.assert_array_equal(transforms.jitter_colour(image, rng, 0.0), image)


def test_jitter_by_hand():
    class Factors:
        """A generator whose draws are given: brightness, contrast, saturation."""

        def __init__(self, *factors):
            self.factors = factors

        def uniform(self, low, high, count):
            assert (low, high, count) == (0.5, 1.5, 3)
            return np.array(self.factors)

    image = np.array([[[100, 100, 100], [200, 200, 200]]], np.uint8)
    colour = np.array([[[200, 100, 0]]], np.uint8)  # grey 0.299 * 200 + 0.587 * 100 = 118.5, mean 100
    for factors, before, after in (
        ((1.5, 1, 1), image, [[[150] * 3, [255] * 3]]),
        ((0.5, 1, 1), image, [[[50] * 3, [100] * 3]]),
        ((1, 0.5, 1), image, [[[125] * 3, [175] * 3]]),
        ((1, 1.5, 1), image, [[[75] * 3, [225] * 3]]),
        ((1, 1, 0.5), image, image),
        ((1, 1, 0.5), colour, [[[159, 109, 59]]]),
        ((1, 1, 1.25), colour, [[[220, 95, 0]]]),
        ((1.2, 0.5, 1), image, [[[150] * 3, [210] * 3]]),  # contrast about the brightened mean, 180
    ):
        np.testing.assert_array_equal(transforms.jitter_colour(before, Factors(*factors), 0.5), after)


def test_masks_by_hand():
    """Void is never left, so that its border does not tell the shape."""
    label = np.array([[0, 3, 255]], np.uint8)
    image = np.full((1, 3, 3), 9, np.uint8)
    mean = list(transforms.MEAN_RGB)
    assert transforms.mask(image, label, "foreground").tolist() == [[[9] * 3, mean, mean]]
    assert transforms.mask(image, label, "background").tolist() == [[mean, [9] * 3, mean]]
    assert transforms.mask(image, label, "shape").tolist() == [[[0] * 3, mean, [0] * 3]]


def test_jitter_stays_in_range_and_varies():
    image = example(20, 30)[0]
    seen = [transforms.jitter_colour(image, rng, 1.0) for rng in draws(30)]
    for jittered in seen:
        assert (jittered.dtype, jittered.shape) == (np.uint8, image.shape)
    means = [jittered.mean() for jittered in seen]
    assert min(means) < 0.5 * image.mean() < 1.2 * image.mean() < max(means)
    # A weak jitter stays near, and does not wrap around at the ends of the range.
    extremes = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    for rng in draws(30):
        weak = transforms.jitter_colour(extremes, rng, 0.1).astype(int)
        assert abs(weak - extremes).max() <= 50

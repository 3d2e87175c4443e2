"""HHA of planes, whose disparity, height and angle are known."""

import numpy as np
import pytest

from fcn_jax.data import hha

CAMERA = (60.0, 60.0, 39.5, 29.5)
SIZE = (60, 80)


def scene(tilt=0.0, height=1.0, distance=4.0):
    """Depth of a level floor `height` below the camera and a wall in front of it, seen by a camera that looks down."""
    rays = hha._rays(SIZE, CAMERA)
    tilt = np.radians(tilt)
    up = np.array([0, -np.cos(tilt), -np.sin(tilt)])
    forward = np.array([0, -np.sin(tilt), np.cos(tilt)])
    with np.errstate(divide="ignore"):
        floor = np.where(rays @ up < 0, -height / (rays @ up), np.inf)
        wall = np.where(rays @ forward > 0, distance / (rays @ forward), np.inf)
    return np.minimum(floor, wall), floor < wall, rays


@pytest.mark.parametrize("tilt", [0, 12, 25])
def test_a_floor_and_a_wall(tilt):
    depth, floor, rays = scene(tilt)
    image = hha.hha(depth, CAMERA).astype(float)
    np.testing.assert_allclose(image[..., 0], np.minimum(310 / np.maximum(depth, 1), 255), atol=0.51)
    inner = np.zeros(SIZE, bool)
    inner[:-4] = floor[:-4] == floor[4:]
    inner[4:] &= floor[4:] == floor[:-4]
    inner[:4] = inner[-4:] = False  # away from where the two meet
    assert inner[floor].sum() > 400
    assert inner[~floor].sum() > 400
    np.testing.assert_allclose(image[inner & floor][:, 1], 0, atol=2)  # pixels at the edge turn gravity by 0.3 degrees
    np.testing.assert_allclose(image[inner & floor][:, 2], 38, atol=1)
    np.testing.assert_allclose(image[inner & ~floor][:, 2], 128, atol=1)
    up = np.array([0, -np.cos(np.radians(tilt)), -np.sin(np.radians(tilt))])
    above = 100 * ((depth[..., None] * rays) @ up + 1.0)
    np.testing.assert_allclose(image[~floor & inner][:, 1], above[~floor & inner].clip(0, 255), atol=2)


def test_without_a_floor_it_is_130_cm_below():
    depth, _, _ = scene(height=9.0, distance=2.0)  # a wall alone
    image = hha.hha(depth[:40], CAMERA)
    assert np.abs(image[29:31, :, 1].astype(float) - 130).max() < 4
    assert set(np.unique(image[..., 0])) == {155}


def test_what_was_not_measured_is_zero_and_changes_nothing_else():
    depth, _, _ = scene()
    holes = depth.copy()
    holes[10:12, 20:30] = 0
    image, expected = hha.hha(holes, CAMERA), hha.hha(depth, CAMERA)
    assert not image[10:12, 20:30].any()
    kept = np.abs(image.astype(int) - expected).max(-1)
    kept[10:12, 20:30] = 0
    assert kept.max() <= 1


@pytest.mark.parametrize("depth", [np.zeros((4, 4)), np.ones((4, 4, 1))])
def test_what_is_no_depth(depth):
    with pytest.raises(ValueError, match="depth is float64"):
        hha.hha(depth, CAMERA)

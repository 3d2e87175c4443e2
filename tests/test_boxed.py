"""The networks that come along: small, with a card, and finding in docs/NAME.jpg what is shown there."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, networks, visualize

ROOT = pathlib.Path(__file__).parents[1]
LARGEST = 6_000_000  # bytes


@pytest.fixture(scope="module")
def network(request):
    """One of them."""
    return fcn_jax.load(request.param)


def test_there_is_one():
    assert "camvid-small" in networks.boxed()


@pytest.mark.parametrize("name", networks.boxed())
def test_it_is_small_and_its_card_has_the_scores_that_are_recorded(name):
    assert (networks.BOXED / f"{name}.safetensors").stat().st_size <= LARGEST
    card = (networks.BOXED / f"{name}.md").read_text()
    recorded = json.loads((ROOT / "benchmarks" / "recorded" / f"{name.replace('-', '_')}.json").read_text())
    for split in ("val", "test"):
        found = recorded["evaluations"][split]
        for key in ("pixel_accuracy", "mean_accuracy", "mean_iou"):
            assert f"{found[key]:.1f}" in card, (split, key)
    ious = " | ".join(f"{value:.1f}" for value in recorded["evaluations"]["test"]["per_class_iou"].values())
    assert ious in card
    for heading in ("Data and licence", "Scores", "Limits"):
        assert re.search(f"^## {heading}$", card, re.MULTILINE)


@pytest.mark.parametrize(("network", "name"), [(name, name) for name in networks.boxed()], indirect=["network"])
def test_as_a_checkpoint_it_is_the_same(network, name, tmp_path):
    params, spec = checkpoint.load_params(networks.locate(name, str(tmp_path)))
    assert spec == network.spec
    jax.tree.map(np.testing.assert_array_equal, params, network.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype(np.float32)}


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("camvid-small").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        fcn_jax.load("camvid-small")


@pytest.mark.parametrize(("network", "name"), [(name, name) for name in networks.boxed()], indirect=["network"])
def test_it_finds_what_the_picture_shows(network, name):
    """The photographs above, and below them what was found; JPEG has changed both a little."""
    palette = network.spec.palette
    picture = np.asarray(Image.open(ROOT / "docs" / f"{name}.jpg"))
    height, width = 360, 480
    for left in range(0, picture.shape[1], width):
        photograph, shown = (picture[top : top + height, left : left + width] for top in (0, height))
        mask = network(photograph)
        assert len(np.unique(mask)) >= 5
        again = visualize.overlay(photograph, mask, palette, shown=np.arange(256) < len(palette))
        alike = np.abs(again.astype(int) - shown).max(-1) < 40
        assert alike.mean() > 0.95

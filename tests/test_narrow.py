"""benchmarks/narrow.py on networks of a few channels: what is kept whole stays, what is left out is made up for."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest
import reference

from fcn_jax.models import fcn
from fcn_jax.models.spec import VGG16_BLOCKS, configured

WIDTH = 4
LAYERS = [f"conv{block}_{i + 1}" for block, number, _ in VGG16_BLOCKS for i in range(number)]
MODEL = {"backbone": "vgg16", "geometry": "same", "at_once": False, "upsampling": "fixed", "fc_width": 4}


@pytest.fixture(scope="module")
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module("narrow")


@pytest.fixture(scope="module")
def wide():
    """Random convolutions {layer/name: array}, and photographs float32 [N, H, W, 3], smooth and BGR minus the mean."""
    rng = np.random.default_rng(0)
    spec = configured("fcn32s", {**MODEL, "width": WIDTH}, class_names=("a",), palette=((0, 0, 0),))
    params = jax.tree.map(np.asarray, fcn.init(spec, jax.random.key(0)))
    arrays = {f"{layer}/{name}": params[layer][name] for layer in LAYERS for name in ("kernel", "bias")}
    arrays |= {f"{layer}/bias": rng.normal(0, 1, arrays[f"{layer}/bias"].shape).astype(np.float32) for layer in LAYERS}
    return arrays, rng.normal(0, 60, (8, 12, 16, 3)).repeat(4, 1).repeat(4, 2).astype(np.float32)


def pool5(arrays, image):
    """The encoder's last map of one photograph, by the reference."""
    found = image.astype(np.float64)
    for block, number, _ in VGG16_BLOCKS:
        for i in range(number):
            layer = {name: arrays[f"conv{block}_{i + 1}/{name}"] for name in ("kernel", "bias")}
            found = reference.relu(reference.convolve(found, layer, 1))
        found = reference.max_pool(found)
    return found


def test_of_the_same_width_it_computes_the_same(narrow, wide):
    arrays, images = wide
    same = narrow.narrowed(arrays, images, WIDTH, np.random.default_rng(1))
    assert {name: array.shape for name, array in same.items()} == {name: a.shape for name, a in arrays.items()}
    expected = pool5(arrays, images[0])
    assert np.abs(pool5(same, images[0]) - expected).max() < 0.02 * expected.max()


def test_kernels_that_are_solved_for_lose_less_than_those_that_are_cut(narrow, wide):
    """The first layers at half the width; what is cut keeps the same channels and has no other kernels."""
    arrays, images = wide
    kernel, bias = arrays["conv1_2/kernel"], arrays["conv1_2/bias"]
    seen = np.maximum(np.asarray(narrow.convolved(images, arrays["conv1_1/kernel"], arrays["conv1_1/bias"])), 0)
    wanted, half = np.asarray(narrow.convolved(seen, kernel, bias)), seen[..., : WIDTH // 2]
    found, shift, error = narrow.solved(half, wanted, np.random.default_rng(2))
    solved, cut = (
        np.square(np.asarray(narrow.convolved(half, *pair)) - wanted).mean() / wanted.var((0, 1, 2)).mean()
        for pair in ((found, shift), (kernel[:, :, : WIDTH // 2], bias))
    )
    assert solved == pytest.approx(error, rel=0.3)  # of all positions, and of those that were drawn
    assert solved < 0.7 * cut


def test_it_writes_what_a_run_starts_from(narrow, wide, tmp_path, monkeypatch, capsys):
    arrays, images = wide
    np.savez(tmp_path / "wide.npz", **arrays)
    for index, image in enumerate(images):
        narrow.Image.fromarray(np.clip(image + 120, 0, 255).astype(np.uint8)).save(tmp_path / f"{index}.png")
    output = tmp_path / "narrow.npz"
    monkeypatch.setattr(narrow, "SIZE", images.shape[1:3])
    options = (f"--images={tmp_path}", "--width=2", f"--source={tmp_path / 'wide.npz'}", f"--output={output}")
    monkeypatch.setattr(sys, "argv", ["narrow.py", *options])
    narrow.main()
    assert capsys.readouterr().out.startswith("conv1_1: 2 of 4 channels; ")
    found = narrow.weights.read(str(output), tmp_path)
    assert found.convention == narrow.common.OURS
    assert {name: array.shape[-1] for name, array in found.arrays.items()} == {
        name: array.shape[-1] // 2 for name, array in arrays.items()
    }

"""Images of like sizes are evaluated together: on few canvases, each once, with the results of one canvas for all."""

import itertools

import numpy as np
import pytest
from test_train import tiny_config

from fcn_jax import evaluate, sharding, steps
from fcn_jax.data import canvases, datasets
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec


@pytest.fixture
def free(monkeypatch):
    """Every canvas that saves a pixel is worth it."""
    monkeypatch.setattr(canvases, "_WORTH_PART", 0)
    monkeypatch.setattr(canvases, "_WORTH_PIXELS", 0)


LYING, STANDING = (3000, 4000), (4000, 3000)
LYING_SMALL, STANDING_SMALL = (300, 400), (400, 300)


def test_lying_and_standing_photographs_are_kept_apart():
    sizes = np.array([LYING, STANDING, LYING, LYING, STANDING])
    assert canvases.batches(sizes, 2) == [
        canvases.Batch(LYING, (0, 2)),
        canvases.Batch(STANDING, (1, 4)),
        canvases.Batch(LYING, (3,)),
    ]


def test_a_canvas_has_to_pay():
    """One standing photograph would fill a batch of four for itself: 48 megapixels, where 16 more do on the other."""
    sizes = np.array([LYING] * 3 + [STANDING])
    assert canvases.batches(sizes, 4) == [canvases.Batch((4000, 4000), (0, 1, 2, 3))]
    small = sizes // 10  # thousands of times cheaper than a compilation
    assert {batch.canvas for batch in canvases.batches(small, 1)} == {(400, 400)}
    assert {batch.canvas for batch in canvases.batches(np.tile(small, (200, 1)), 1)} == {LYING_SMALL, STANDING_SMALL}


def test_sizes_that_hardly_differ_share_a_canvas():
    sizes = np.array([(500, 375), (499, 374), (500, 370)] * 200)
    assert {batch.canvas for batch in canvases.batches(sizes, 4)} == {(500, 375)}


@pytest.mark.parametrize("seed", range(8))
def test_every_image_once_on_a_canvas_that_holds_it(free, seed):
    """Of up to 300 images of any sizes, on at most four canvases, for no more pixels than one canvas would take."""
    rng = np.random.default_rng(seed)
    count, batch_size = int(rng.integers(1, 300)), int(rng.integers(1, 9))
    sizes = rng.integers(1, 2 ** rng.integers(2, 11), (count, 2))
    found = canvases.batches(sizes, batch_size)
    assert sorted(itertools.chain.from_iterable(batch.images for batch in found)) == list(range(count))
    assert len({batch.canvas for batch in found}) <= canvases.MOST
    for batch in found:
        assert 0 < len(batch.images) <= batch_size
        assert list(batch.images) == sorted(batch.images)
        assert (sizes[list(batch.images)] <= batch.canvas).all()
    assert [batch.images[0] for batch in found] == sorted(batch.images[0] for batch in found)
    pixels = sum(batch_size * batch.canvas[0] * batch.canvas[1] for batch in found)
    assert pixels <= -(-count // batch_size) * batch_size * int(sizes.max(0).prod())


def test_the_results_are_those_of_one_canvas(free, data_dir, monkeypatch):
    """To the last count, image by image, with the pictures of the first images; compiled are as many as canvases."""
    split = datasets.open_split("shapes", "val[:20]", data_dir=data_dir)
    spec = ModelSpec("fcn8s", "vgg16", "same", False, "fixed", 2, 8, tuple(split.class_names), tuple(split.palette))
    params = {
        layer: {name: np.random.default_rng(i).normal(0, 0.3, x.shape).astype(np.float32) for name, x in values.items()}
        for i, (layer, values) in enumerate(fcn.abstract_params(spec).items())
    }
    mesh = sharding.make_mesh()
    config = tiny_config(data_dir, **{"eval.batch_size": 4, "eval.pictures": 5, "data.num_threads": 1})
    compiled = []
    step = steps.eval_step
    monkeypatch.setattr(steps, "eval_step", lambda *a, **k: compiled.append(1) or step(*a, **k))

    def results():
        compiled.clear()
        evaluator = evaluate.compiled(spec, sharding.replicated(mesh), mesh, split, config)
        assert len(compiled) == len(evaluator.steps)
        found = evaluator(params)
        assert len(compiled) == len(evaluator.steps)
        return (*found, evaluator.steps)

    found, panels, several = results()
    monkeypatch.setattr(canvases, "MOST", 1)
    expected, expected_panels, one = results()
    assert 1 == len(one) < len(several) <= 4
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["per_image"] == expected["per_image"]
    assert [row["id"] for row in found["per_image"]] == split.ids
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert len(panels) == len(expected_panels) == 5
    for panel, wanted in zip(panels, expected_panels, strict=True):
        np.testing.assert_array_equal(panel, wanted)

"""The mean field: against plain loops, on canvases, and on what it is for."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy import special

import fcn_jax
from fcn_jax import checkpoint, refine, steps


def scene(seed, height=9, width=11, classes=3):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    return image, rng.dirichlet(np.ones(classes), (height, width)).astype(np.float32)


def by_loops(image, scores, weight, steps):
    """The same from its definition, in float64."""
    height, width = image.shape[:2]
    along = sorted({0, *refine.REACH, *(-r for r in refine.REACH)})
    image, unary = image.astype(float), np.log(scores.astype(float))
    found = special.softmax(unary, -1)
    for _ in range(steps):
        new = np.empty_like(found)
        for y in range(height):
            for x in range(width):
                said, listened = np.zeros(scores.shape[-1]), 0.0
                for dy in along:
                    for dx in along:
                        v, u = y + dy, x + dx
                        if (dy, dx) == (0, 0) or not (0 <= v < height and 0 <= u < width):
                            continue
                        unlike = ((image[v, u] - image[y, x]) ** 2).sum() / (2 * refine.COLOUR**2)
                        share = np.exp(-(dy**2 + dx**2) / (2 * refine.POSITION**2) - unlike)
                        said, listened = said + share * found[v, u], listened + share
                new[y, x] = special.softmax(unary[y, x] + weight * said / max(listened, 1e-38))
        found = new
    return found


def field(image, scores, size=None, **options):
    size = image.shape[:2] if size is None else size
    return np.asarray(refine.mean_field(image[None], scores[None], np.array([size], np.int32), **options)[0])


@pytest.mark.parametrize("seed", range(3))
def test_it_is_its_definition(seed):
    image, scores = scene(seed)
    np.testing.assert_allclose(field(image, scores, weight=4.0, steps=2), by_loops(image, scores, 4, 2), atol=2e-5)


def test_the_canvas_does_not_matter():
    image, scores = scene(1)
    alone = field(image, scores)
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (17, 20, 3)).astype(np.uint8)
    wide = rng.dirichlet(np.ones(3), (17, 20)).astype(np.float32)
    canvas[:9, :11], wide[:9, :11] = image, scores
    np.testing.assert_allclose(field(canvas, wide, (9, 11))[:9, :11], alone, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2)])
def test_small_images(size):
    image, scores = scene(2, *size)
    found = field(image, scores)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    if size == (1, 1):
        np.testing.assert_allclose(found, scores, atol=1e-5)  # nobody to listen to


def test_what_is_sure_stays():
    """Probabilities of 1 and 0 are finite, and kept where the image agrees."""
    image = np.full((12, 12, 3), 90, np.uint8)
    scores = np.zeros((12, 12, 2), np.float32)
    scores[..., 1] = 1
    np.testing.assert_array_equal(field(image, scores).argmax(-1), 1)


def test_a_mask_moves_to_the_contour():
    """An edge between two colours that the network has two pixels too far to the right, and not surely."""
    image = np.full((40, 40, 3), 60, np.uint8)
    image[:, 20:] = 180
    image += np.random.default_rng(0).integers(0, 4, image.shape).astype(np.uint8)
    right = special.expit((np.arange(40) - 21.5) / 2)
    scores = np.repeat(np.stack([1 - right, right], -1)[None], 40, 0).astype(np.float32)
    truth = np.arange(40) >= 20
    before = (scores.argmax(-1) != truth).mean()
    after = (field(image, scores).argmax(-1) != truth).mean()
    assert before == 2 / 40
    assert after == 0


def test_each_head_by_itself(tmp_path):
    """Two heads on one trunk: each is refined as if it were alone."""
    from test_outputs import network, params, picture

    from fcn_jax.models.spec import Head

    spec = network(heads=(Head("_a", 1), Head("_b", 2)))
    checkpoint.save_params(tmp_path / "weights", params(spec), spec)
    plain, refined = (fcn_jax.load(tmp_path / "weights", refine=value) for value in (False, True))
    image = picture(40, 52)
    scores, found = plain.scores(image), refined.scores(image)
    np.testing.assert_allclose(found[..., 1:], field(image, scores[..., 1:]), atol=2e-5)
    assert refined(image).shape == (40, 52, 2)


def test_evaluation_counts_what_is_aligned():
    """Of two heads on a canvas: each is refined by itself, and the loss is of what is refined."""
    rng = np.random.default_rng(5)
    image = rng.integers(0, 60, (2, 12, 14, 3)).astype(np.uint8)
    logits = rng.normal(0, 2, (2, 12, 14, 5)).astype(np.float32)
    sizes, heads = np.array([(12, 14), (9, 11)], np.int32), (slice(0, 2), slice(2, 5))
    label = np.full((2, 12, 14, 2), 255, np.uint8)
    for k, (height, width) in enumerate(sizes):
        label[k, :height, :width] = rng.integers(0, (2, 3), (height, width, 2))

    class Constant(nn.Module):
        @nn.compact
        def __call__(self, image, sizes):
            return self.param("logits", nn.initializers.zeros, logits.shape)

    batch = {"image": image, "label": label, "size": sizes}
    step = functools.partial(steps.eval_step, model=Constant(), heads=heads, refine=True)
    found = jax.jit(step)({"logits": logits}, batch)
    for h, place in enumerate(heads):
        loss = 0.0
        for k, (height, width) in enumerate(sizes):
            part = np.s_[:height, :width]
            expected = by_loops(image[k][part], special.softmax(logits[k][part][..., place], -1), refine.WEIGHT, 3)
            np.testing.assert_array_equal(found["prediction"][k, :height, :width, h], expected.argmax(-1))
            truth = label[k][part][..., h]
            loss -= np.log(np.take_along_axis(expected, truth[..., None].astype(int), -1)).sum()
        np.testing.assert_allclose(found["loss"][h], loss, rtol=1e-4)


def test_in_a_network(tmp_path):
    """load(refine=True) is the network and then the mean field, for masks and scores, on canvases too."""
    from test_outputs import network, params, picture

    spec = network()
    checkpoint.save_params(tmp_path / "weights", params(spec), spec)
    plain, refined = (fcn_jax.load(tmp_path / "weights", refine=value) for value in (False, True))
    for size in [(40, 52), (33, 64)]:
        image = picture(*size)
        expected = field(image, plain.scores(image))
        np.testing.assert_allclose(refined.scores(image), expected, atol=2e-5)
        sure = np.sort(expected, -1)
        sure = sure[..., -1] - sure[..., -2] > 1e-4
        np.testing.assert_array_equal(refined(image)[sure], expected.argmax(-1)[sure])
    with pytest.raises(ValueError, match="in tiles"):
        fcn_jax.load(tmp_path / "weights", refine=True, tiles=True)

"""Several sizes and mirror images: against jax.image.resize, by hand, and without regard to padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import multiscale, steps
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec

RNG = np.random.default_rng(0)


def identity(image, sizes):
    return image


def full(image):
    return jnp.array([image.shape[1:3]] * len(image), jnp.int32)


@pytest.mark.parametrize("new", [(5, 7), (10, 14), (3, 4), (9, 2), (1, 1)])
def test_resampling_is_jax_image_resize(new):
    image = jnp.asarray(RNG.uniform(0, 255, (2, 5, 7, 3)), jnp.float32)
    sizes = jnp.array([new] * 2, jnp.int32)
    found = multiscale._resample(image, full(image), sizes, new, False)
    expected = jax.image.resize(image, (2, *new, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    mirrored = multiscale._resample(image[:, :, ::-1], full(image), sizes, new, True)
    np.testing.assert_allclose(mirrored, expected, atol=1e-4)


def test_once_as_it_is_changes_nothing():
    image = jnp.asarray(RNG.normal(0, 3, (2, 6, 5, 4)), jnp.float32)
    found = multiscale.scores(identity, image, full(image), scales=(1.0,), flip=False)
    np.testing.assert_array_equal(found, image)
    twice = multiscale.scores(identity, image, full(image), scales=(1.0, 1.0), flip=False)
    np.testing.assert_allclose(twice, jax.nn.log_softmax(image), atol=1e-5)


def test_mirror_images_by_hand():
    """A network that finds class 1 in the left column, whatever it sees: mirrored it finds it in the right one."""

    def left(image, sizes):
        return jnp.zeros((1, 2, 3, 2)).at[:, :, 0, 1].set(jnp.log(3.0))

    image = jnp.zeros((1, 2, 3, 3), jnp.uint8)
    found = jnp.exp(multiscale.scores(left, image, full(image), scales=(1.0,), flip=True))
    np.testing.assert_allclose(found[0, :, :, 1], [[0.625, 0.5, 0.625]] * 2, atol=1e-6)


def test_scales_by_hand():
    """Twice as wide, the score of an image is the number of its columns: probabilities of both are averaged."""

    def columns(image, sizes):
        width = sizes[:, 1].astype(jnp.float32)[:, None, None, None]
        return jnp.concatenate(
            [jnp.log(width) * jnp.ones((1, *image.shape[1:3], 1)), jnp.zeros((1, *image.shape[1:3], 1))], -1
        )

    image = jnp.zeros((1, 2, 3, 3), jnp.uint8)
    found = jnp.exp(multiscale.scores(columns, image, full(image), scales=(1.0, 2.0), flip=False))
    np.testing.assert_allclose(found[..., 0], (3 / 4 + 6 / 7) / 2, atol=1e-6)


@pytest.mark.parametrize("size", [45, 85, 165])
def test_every_pixel_is_scored(size):
    """float32 rounds 0.7 times these up, float64 down."""
    image = jnp.ones((1, size, 3, 3), jnp.float32)
    found = jnp.exp(multiscale.scores(identity, image, full(image), scales=(0.7,), flip=False))
    np.testing.assert_allclose(found, 1 / 3, atol=1e-6)


@pytest.mark.parametrize("size", [45, 85, 165])
def test_the_size_of_the_canvas_does_not_matter(size):
    """Nor for those sizes, of which 0.7 times could be rounded in two ways."""
    image = jnp.asarray(RNG.uniform(0, 9, (1, size, 2, 3)), jnp.float32)
    alone = multiscale.scores(identity, image, full(image), scales=(0.7,), flip=False)
    padded = jnp.pad(image, ((0, 0), (0, 30), (0, 3), (0, 0)))
    among = multiscale.scores(identity, padded, full(image), scales=(0.7,), flip=False)
    np.testing.assert_allclose(among[:, :size, :2], alone, atol=1e-5)


def test_padding_does_not_matter():
    """Each image of a batch has the scores that it has alone; what lies beside it is never looked at."""
    palette = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    spec = ModelSpec("fcn8s", "vgg16", "same", False, "fixed", 2, 8, ("a", "b", "c"), palette)
    params = jax.tree.map(lambda x: jnp.asarray(RNG.normal(0, 0.2, x.shape), jnp.float32), fcn.abstract_params(spec))
    model = fcn.FCN(spec)

    def score(image, sizes):
        return model.apply({"params": params}, image, sizes)

    images = RNG.integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    sizes = np.array([(48, 64), (33, 40)], np.int32)
    options = {"scales": (0.75, 1.25), "flip": True}
    scores = jax.jit(functools.partial(multiscale.scores, score, **options))
    found = scores(jnp.asarray(images), jnp.asarray(sizes))
    alone = jnp.asarray(images[1:, :33, :40])
    expected = scores(alone, full(alone))
    np.testing.assert_allclose(np.exp(found[1:, :33, :40]), np.exp(expected), atol=1e-5)
    # The counts of an evaluation are those of these scores.
    label = RNG.integers(0, 3, (2, 48, 64)).astype(np.uint8)
    batch = {"image": images, "label": label, "size": sizes}
    step = functools.partial(steps.eval_step, model=model)
    counts = jax.jit(functools.partial(step, **options))(params, batch)
    np.testing.assert_array_equal(counts["prediction"], np.argmax(found, -1))
    plain = jax.jit(step)(params, batch)
    assert (np.asarray(plain["prediction"]) != np.asarray(counts["prediction"])).any()

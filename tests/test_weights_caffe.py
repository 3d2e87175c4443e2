"""fcn_jax.weights.caffe: files written byte for byte here, and once more by protobuf where it is installed."""

import gzip
import mmap
import pickle
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models import upsample
from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import caffe, common, convert

# Protobuf's wire format and the field numbers of caffe.proto.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
V1_KINDS = {"Data": 5, "Convolution": 4, "InnerProduct": 14, "ReLU": 18, "Pooling": 17, "Deconvolution": 39}


def varint(value):
    value %= 2**64  # negative numbers are ten bytes
    groups = []
    while True:
        value, group = divmod(value, 128)
        groups.append(group + 128 if value else group)
        if not value:
            return bytes(groups)


def number(field, value):
    return varint(field * 8 + VARINT) + varint(value)


def message(field, *parts):
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(field * 8 + LENGTH) + varint(len(content)) + content


def packed(field, array, dtype="<f4"):
    return message(field, np.asarray(array, dtype).tobytes())


def blob_shape(*dims):
    return message(7, message(1, *map(varint, dims)))


def legacy_shape(*dims):
    return b"".join(number(field, dim) for field, dim in enumerate(dims, start=1))


def blob(array):
    """A BlobProto as Caffe has written it since 2015: data, then shape."""
    return packed(5, array) + blob_shape(*array.shape)


def legacy_blob(array):
    """As it was before: num, channels, height, width, of which the first are 1."""
    return legacy_shape(*(1,) * (4 - array.ndim), *array.shape) + packed(5, array)


# What a layer carries besides: param, phase, include, transform_param, loss_param and convolution_param.
PARAM = message(6, varint(3 * 8 + FIXED32), struct.pack("<f", 2))
AFTER_BLOBS = (
    message(8, number(1, 1))
    + number(10, 1)
    + message(100, message(5, struct.pack("<3f", 104, 117, 123)))
    + message(101, number(1, 255))
    + message(106, number(1, 2), number(4, 3), varint(99 * 8 + FIXED64), bytes(8))
)


def layer(name, kind="ReLU", *blobs, after=AFTER_BLOBS):
    """A LayerParameter of NetParameter; `blobs` are BlobProtos."""
    wiring = message(3, "below") + message(4, "above")
    return message(100, message(1, name), message(2, kind), wiring, PARAM, *(message(7, b) for b in blobs), after)


def v1_layer(name, kind, *blobs):
    rates = varint(7 * 8 + FIXED32) + struct.pack("<f", 1) + number(9, 1)
    wiring = message(2, "below") + message(3, "above")
    kind = number(5, V1_KINDS[kind])
    return message(2, wiring, message(4, name), kind, *(message(6, b) for b in blobs), rates, message(10, number(1, 2)))


def write(tmp_path, *parts):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"".join(parts))
    return path


def ramp(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def conv1_1(outputs=1):
    return layer("conv1_1", "Convolution", blob(ramp(outputs, 3, 1, 1)), blob(ramp(outputs)))


def read(tmp_path, *parts):
    """`parts` after a smallest conv1_1."""
    return caffe.read(write(tmp_path, conv1_1(), *parts))


def failure(path):
    """The message that reading a file fails with: one line that begins with the path."""
    with pytest.raises(ValueError) as error:
        caffe.read(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(str(path))


# Arrays, by hand.


def test_convolution_is_transposed(tmp_path):
    """Output 0, input 1 of a 2x2 kernel is 5 6 / 7 8."""
    weight = layer("conv1_1", "Convolution", blob(ramp(2, 3, 2, 2)), blob(np.array([0.5, -1], np.float32)))
    arrays = caffe.read(write(tmp_path, weight)).arrays
    assert list(arrays) == ["conv1_1/kernel", "conv1_1/bias"]
    kernel = arrays["conv1_1/kernel"]
    assert kernel.shape == (2, 2, 3, 2)
    assert kernel.dtype == np.float32
    assert kernel[:, :, 1, 0].tolist() == [[5, 6], [7, 8]]
    assert kernel[:, :, 0, 1].tolist() == [[13, 14], [15, 16]]
    assert arrays["conv1_1/bias"].tolist() == [0.5, -1]


@pytest.mark.parametrize("version", [1, 2])
def test_fully_connected_flattens_channels_first(tmp_path, version):
    rng = np.random.default_rng(0)
    weights = {"fc6": (5, 2 * 49), "fc7": (4, 5), "fc8": (3, 4)}
    weights = {name: rng.integers(-9, 9, shape).astype(np.float32) for name, shape in weights.items()}
    if version == 1:
        layers = [v1_layer(n, "InnerProduct", legacy_blob(w), legacy_blob(w[:, 0])) for n, w in weights.items()]
    else:
        layers = [layer(n, "InnerProduct", blob(w), blob(w[:, 0])) for n, w in weights.items()]
    got = read(tmp_path, *layers)
    pool5 = rng.integers(-9, 9, (2, 7, 7))
    assert got.arrays["fc6/kernel"].shape == (7, 7, 2, 5)
    convolved = np.einsum("chw,hwco->o", pool5, got.arrays["fc6/kernel"])
    np.testing.assert_array_equal(convolved, weights["fc6"] @ pool5.reshape(-1))
    np.testing.assert_array_equal(got.arrays["fc6/kernel"][2, 3, 1], weights["fc6"][:, 49 + 2 * 7 + 3])
    for name in ("fc7", "fc8"):
        np.testing.assert_array_equal(got.arrays[f"{name}/kernel"], weights[name].T[None, None])
    for name in weights:
        np.testing.assert_array_equal(got.arrays[f"{name}/bias"], weights[name][:, 0])
    sizes = {"fc6": "5x98", "fc7": "4x5", "fc8": "3x4"}
    assert got.notes == {f"{name}/kernel": f"reshaped from {size}" for name, size in sizes.items()}


def caffe_deconvolution(x, weight, stride):
    """Caffe's, without padding: x [I, H, W] and weight [I, O, kh, kw] to [O, ...]; each input scatters its filter."""
    (inputs, height, width), (outputs, size) = x.shape, weight.shape[1:3]
    y = np.zeros((outputs, (height - 1) * stride + size, (width - 1) * stride + size))
    for c in range(inputs):
        for i in range(height):
            for j in range(width):
                rows, columns = slice(stride * i, stride * i + size), slice(stride * j, stride * j + size)
                y[:, rows, columns] += x[c, i, j] * weight[c]
    return y


def test_deconvolution_is_oriented_as_ours(tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.integers(-9, 9, (3, 3, 4, 4)).astype(np.float32)  # neither symmetric nor diagonal
    got = read(tmp_path, layer("upscore2", "Deconvolution", blob(weight)))
    kernel = got.arrays["upscore2/kernel"]
    assert kernel[1, 3, 0, 2] == weight[0, 2, 1, 3]
    x = rng.integers(-9, 9, (3, 2, 5)).astype(np.float32)
    ours = upsample.transposed(jnp.asarray(x.transpose(1, 2, 0)[None]), jnp.asarray(kernel))[0]
    np.testing.assert_array_equal(np.transpose(ours, (2, 0, 1)), caffe_deconvolution(x, weight, 2))
    assert not got.notes


def test_grouped_deconvolution_is_made_dense(tmp_path):
    rng = np.random.default_rng(2)
    weight = rng.integers(-9, 9, (3, 1, 4, 4)).astype(np.float32)
    got = read(tmp_path, layer("upscore2", "Deconvolution", blob(weight)))
    kernel = got.arrays["upscore2/kernel"]
    assert kernel.shape == (4, 4, 3, 3)
    for i in range(3):
        for o in range(3):
            np.testing.assert_array_equal(kernel[:, :, i, o], weight[i, 0] if i == o else np.zeros((4, 4)))
    assert got.notes == {"upscore2/kernel": "made dense from 3x1x4x4"}


def test_deconvolution_of_one_class(tmp_path):
    got = read(tmp_path, layer("upscore", "Deconvolution", blob(ramp(1, 1, 2, 2))))
    assert got.arrays["upscore/kernel"][..., 0, 0].tolist() == [[1, 2], [3, 4]]
    assert not got.notes


def test_scale(tmp_path):
    one = layer("scale_pool4", "Scale", blob(np.full(4, 0.01, np.float32)))
    two = layer("scale_pool3", "Scale", blob(ramp(2)), blob(ramp(2) + 5))
    arrays = read(tmp_path, one, two).arrays
    assert list(arrays)[2:] == ["scale_pool4/scale", "scale_pool3/scale", "scale_pool3/bias"]
    np.testing.assert_array_equal(arrays["scale_pool4/scale"], np.full(4, 0.01, np.float32))
    assert arrays["scale_pool3/bias"].tolist() == [6, 7]


# The same numbers, written in other ways.

SHAPE = (2, 3, 1, 2)
VALUES = ramp(*SHAPE)
BYTES = VALUES.astype("<f4").tobytes()
UNPACKED = b"".join(varint(5 * 8 + FIXED32) + BYTES[i : i + 4] for i in range(0, 48, 4))
UNPACKED_DOUBLES = b"".join(varint(8 * 8 + FIXED64) + struct.pack("<d", value) for value in VALUES.flat)
UNKNOWN = (
    number(20, 2**63)
    + message(21, "what")
    + (varint(22 * 8 + FIXED64) + bytes(8))
    + (varint(5000 * 8 + FIXED32) + bytes(4))
)
UNPACKED_DIMS = message(7, *(number(1, dim) for dim in SHAPE))
ENCODINGS = {
    "legacy shape": legacy_shape(*SHAPE) + packed(5, VALUES),
    "legacy shape before shape": legacy_shape(*SHAPE) + packed(5, VALUES) + blob_shape(1),
    "shape first": blob_shape(*SHAPE) + packed(5, VALUES),
    "double_data": packed(8, VALUES, "<f8") + blob_shape(*SHAPE),
    "double_data before data": packed(5, [7]) + packed(8, VALUES, "<f8") + blob_shape(*SHAPE),
    "unpacked double_data": UNPACKED_DOUBLES + blob_shape(*SHAPE),
    "chunks": message(5, BYTES[:4]) + blob_shape(*SHAPE) + message(5) + message(5, BYTES[4:]),
    "unpacked": UNPACKED + blob_shape(*SHAPE),
    "packed and not": message(5, BYTES[:8]) + UNPACKED[10:] + blob_shape(*SHAPE),
    "unpacked dims": packed(5, VALUES) + UNPACKED_DIMS,
    "shape in parts": message(7, number(1, 2)) + packed(5, VALUES) + message(7, message(1, b"\3\1\2")),
    "diff": packed(5, VALUES) + packed(6, -VALUES) + blob_shape(*SHAPE) + packed(9, VALUES, "<f8"),
    "unknown fields": UNKNOWN + blob(VALUES) + UNKNOWN,
    "long varint": packed(5, VALUES) + message(7, message(1, b"\x82\x80\x00", b"\3\1\2")),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    weight = layer("conv1_1", "Convolution", ENCODINGS[encoding], blob(ramp(2)))
    kernel = caffe.read(write(tmp_path, weight)).arrays["conv1_1/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, VALUES.transpose(2, 3, 1, 0))


def test_doubles_are_rounded(tmp_path):
    doubles = packed(8, [0.1, 1e300, 3], "<f8") + blob_shape(1, 3, 1, 1)
    kernel = caffe.read(write(tmp_path, layer("conv1_1", "Convolution", doubles, blob(ramp(1))))).arrays
    assert kernel["conv1_1/kernel"].ravel().tolist() == [np.float32(0.1), np.inf, 3]


def test_arrays_are_views_that_outlive_the_file(tmp_path):
    """Wherever in the file they are: protobuf aligns nothing."""
    for shift in range(4):
        path = write(tmp_path, message(1, "n" * shift), conv1_1(5))
        arrays = caffe.read(path).arrays
        path.unlink()
        for array in arrays.values():
            while isinstance(array, np.ndarray):
                array = array.base
            assert isinstance(array.obj, mmap.mmap)
        expected = ramp(5, 3, 1, 1).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(arrays["conv1_1/kernel"], expected)
        np.testing.assert_array_equal(jnp.asarray(arrays["conv1_1/kernel"]), expected)


# Whole networks, narrow.

WIDTHS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 5}  # of the blocks
FC = 6


def vgg_weights(rng):
    """Convolutions by name, each [O, I, kh, kw] and [O]."""
    weights, inputs = {}, 3
    for name in BACKBONES["vgg16"].convolutions:
        outputs = WIDTHS[int(name[4])]
        weights[name] = (rng.normal(size=(outputs, inputs, 3, 3)), rng.normal(size=outputs))
        inputs = outputs
    return {name: tuple(part.astype(np.float32) for part in parts) for name, parts in weights.items()}


def released(network, classes, at_once=False):
    """A NetParameter as the release saved it, with an empty name and all layers of its net.py, and the blobs in it."""
    rng = np.random.default_rng(3)
    weights = vgg_weights(rng)

    def convolution(name, inputs, outputs, size=1):
        shape = (outputs, inputs, size, size)
        weights[name] = (rng.normal(size=shape).astype(np.float32), rng.normal(size=outputs).astype(np.float32))

    def upscore(name, stride):
        weights[name] = (rng.normal(size=(classes, classes, 2 * stride, 2 * stride)).astype(np.float32),)

    def skip(level):
        if at_once:
            weights[f"scale_pool{level}"] = (np.full(WIDTHS[level], 0.01, np.float32),)
        convolution(f"score_pool{level}", WIDTHS[level], classes)

    convolution("fc6", WIDTHS[5], FC, 7)
    convolution("fc7", FC, FC)
    convolution("score_fr", FC, classes)
    if network != "32s":
        upscore("upscore2", 2)
        skip(4)
    if network == "8s":
        upscore("upscore_pool4", 2)
        skip(3)
    upscore({"32s": "upscore", "16s": "upscore16", "8s": "upscore8"}[network], int(network[:-1]))
    kinds = {"upscore": "Deconvolution", "scale": "Scale"}
    layers = [layer("data", "Python"), layer("data_data_0_split", "Split")]
    for name, parts in weights.items():
        kind = kinds.get(name.split("_")[0].rstrip("0123456789"), "Convolution")
        layers += [layer(name, kind, *map(blob, parts)), layer(f"relu_{name}")]
    layers += [layer("score", "Crop"), layer("loss", "SoftmaxWithLoss")]
    return message(1) + b"".join(layers), weights


LAYOUTS = {
    "voc-fcn32s": ("32s", 21, False, common.OURS),
    "voc-fcn16s": ("16s", 21, False, common.OURS),
    "voc-fcn8s": ("8s", 21, False, common.OURS),
    "voc-fcn8s-atonce": ("8s", 21, True, common.OURS),
    "pascalcontext-fcn8s": ("8s", 60, False, common.OURS),
    "nyud-fcn32s-color": ("32s", 40, False, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_released_networks(tmp_path, name):
    network, classes, at_once, convention = LAYOUTS[name]
    content, weights = released(network, classes, at_once)
    got = caffe.read(write(tmp_path, content))
    expected = {}
    for layer_name, parts in weights.items():
        if layer_name.startswith("scale"):
            expected[f"{layer_name}/scale"] = parts[0]
        elif layer_name.startswith("upscore"):
            expected[f"{layer_name}/kernel"] = np.moveaxis(parts[0], (0, 1), (2, 3))
        else:
            expected[f"{layer_name}/kernel"] = np.moveaxis(parts[0], (0, 1), (3, 2))
            expected[f"{layer_name}/bias"] = parts[1]
    assert list(got.arrays) == list(expected)
    assert ("scale_pool3/scale" in expected) == at_once
    for key, array in expected.items():
        np.testing.assert_array_equal(got.arrays[key], array)
    assert got.arrays["fc6/kernel"].shape == (7, 7, WIDTHS[5], FC)
    assert got.convention == convention
    assert (got.notes, got.model) == ({}, None)


def test_imagenet_vgg16(tmp_path):
    """VGG_ILSVRC_16_layers.caffemodel: V1 layers, shapes of four numbers, fully connected layers."""
    rng = np.random.default_rng(4)
    weights = vgg_weights(rng)
    layers = [v1_layer("data", "Data")]
    for name, parts in weights.items():
        layers += [v1_layer(name, "Convolution", *map(legacy_blob, parts)), v1_layer(f"relu{name[4:]}", "ReLU")]
    for name, shape in {"fc6": (FC, 49 * WIDTHS[5]), "fc7": (FC, FC), "fc8": (10, FC)}.items():
        weights[name] = (ramp(*shape), ramp(shape[0]))
        layers.append(v1_layer(name, "InnerProduct", *map(legacy_blob, weights[name])))
    path = write(tmp_path, message(1, "VGG_ILSVRC_16_layers"), *layers)
    got = caffe.read(path)
    assert list(got.arrays) == [f"{name}/{part}" for name in weights for part in ("kernel", "bias")]
    for name in BACKBONES["vgg16"].convolutions:
        np.testing.assert_array_equal(got.arrays[f"{name}/kernel"], weights[name][0].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(got.arrays[f"{name}/bias"], weights[name][1])
    assert [got.arrays[f"fc{i}/kernel"].shape for i in (6, 7, 8)] == [(7, 7, 5, 6), (1, 1, 6, 6), (1, 1, 6, 10)]
    assert got.notes["fc6/kernel"] == "reshaped from 6x245"
    assert got.convention == common.VGG


@pytest.mark.parametrize(("classes", "convention"), [(21, common.OURS), (40, None)])
def test_a_renamed_score_layer_counts(tmp_path, classes, convention):
    score = layer("score_fr_mine", "Convolution", blob(ramp(classes, 2, 1, 1)), blob(ramp(classes)))
    assert read(tmp_path, score).convention == convention


# What is refused.


def convolution(name, shape=(1, 2, 1, 1)):
    return layer(name, "Convolution", blob(ramp(*shape)), blob(ramp(shape[0])))


ONLY = "; only VGG16, CaffeNet, GoogLeNet, FCNs on them and the release's networks of several streams or heads are read"
UNFIT = {
    "other streams": (["conv1_1color", "conv1_1depth"], "it has conv1_1color, conv1_1depth" + ONLY),
    "other heads": (["conv1_1", "score_fr_sem", "score_fr_x"], "it has score_fr_sem, score_fr_x" + ONLY),
    "lenet": (["conv1", "conv2", "conv3", "ip1"], "it has no conv1_1 but conv1, conv2, conv3" + ONLY),
    "nothing": ([], "it has no conv1_1 but no weights at all" + ONLY),
    "duplicates": (["conv1_1", "fc6", "fc7", "fc6"], "several layers are called fc6; get a file as Caffe saves it"),
}


def of_the_release(heads, channels=3, streams=("",)):
    """The bytes of the layers of a network of several streams or heads, with one filter each."""
    layers, name = [], {3: "conv1_1", 4: "conv1_1_bgrd"}[channels]
    for stream in streams:
        layers.append((name + stream, (2, channels, 3, 3)))
        layers += [(f"{layer}{stream}", (1, 1, 3, 3)) for layer in BACKBONES["vgg16"].convolutions[1:]]
        layers += [(f"fc6{stream}", (1, 1, 7, 7)), (f"fc7{stream}", (1, 1, 1, 1))]
        layers += [(f"score_fr{stream}{head}", (classes, 1, 1, 1)) for head, classes in heads.items()]
    return [convolution(name, shape) for name, shape in layers]


def test_colour_and_depth_of_the_release(tmp_path):
    found = caffe.read(write(tmp_path, *of_the_release({"": 40}, channels=4)))
    inputs = [(given.name, given.channels, given.stream) for given in found.inputs]
    assert inputs == [("colour", 3, ""), ("depth", 1, "")]
    assert found.arrays["conv1_1/kernel"].shape == (3, 3, 4, 2)
    assert found.convention.mean == (116.190, 97.203, 92.318, 7.844)
    spec = convert.spec_for(found, class_names=[str(k) for k in range(40)], palette=[(0, 0, 0)] * 40)
    assert (spec.network, spec.mean, spec.width) == ("fcn32s", found.convention.mean, 2)
    assert spec.inputs == found.inputs
    assert convert.described_input(spec) == "BGR minus (116.19, 97.203, 92.318) and log depth minus (7.844)"


def test_colour_and_hha_of_the_release(tmp_path):
    found = caffe.read(write(tmp_path, *of_the_release({"": 40}, streams=("color", "hha"))))
    assert [(given.name, given.stream) for given in found.inputs] == [("colour", "color"), ("hha", "hha")]
    assert [head.classes for head in found.heads()] == [40]
    spec = convert.spec_for(found, class_names=[str(k) for k in range(40)], palette=[(0, 0, 0)] * 40)
    assert spec.mean == (116.190, 97.203, 92.318, 132.431, 94.076, 118.477)
    assert list(spec.streams) == ["color", "hha"]
    assert spec.fc_width == 1


def test_two_heads_of_the_release(tmp_path):
    found = caffe.read(write(tmp_path, *of_the_release({"_sem": 33, "_geo": 3})))
    spec = convert.spec_for(found, class_names=[str(k) for k in range(36)], palette=[(0, 0, 0)] * 36)
    assert [(head.name, head.classes) for head, _ in spec.outputs] == [("sem", 33), ("geo", 3)]
    assert spec.mean == (114.578, 115.294, 108.353)
    with pytest.raises(ValueError, match="score_fr has 36 classes, but 21 are named"):
        convert.spec_for(found, class_names=["x"] * 21, palette=[(0, 0, 0)] * 21)


@pytest.mark.parametrize("case", UNFIT)
def test_other_networks(tmp_path, case):
    names, expected = UNFIT[case]
    assert failure(write(tmp_path, layer("data"), *map(convolution, names))) == f": {expected}"


def test_layers_without_blobs_may_share_a_name(tmp_path):
    arrays = read(tmp_path, layer("data"), layer("data"), layer("conv1_1")).arrays
    assert list(arrays) == ["conv1_1/kernel", "conv1_1/bias"]


BAD_LAYERS = {
    "segnet": (layer("conv1_1_bn", "BN", blob(ramp(2)), blob(ramp(2))), "layer 'conv1_1_bn' (BN) has weights"),
    "kind": (
        layer("bn1", "BatchNorm", blob(ramp(2)), blob(ramp(2)), blob(ramp(1))),
        "layer 'bn1' (BatchNorm) has weights, and an FCN has them in Convolution, InnerProduct, Deconvolution",
    ),
    "V1 kind": (
        message(2, message(4, "x"), number(5, 35), message(6, blob(ramp(1)))),
        "layer 'x' (V1 type 35) has weights",
    ),
    "no kind": (message(100, message(1, "x"), message(7, blob(ramp(1)))), "layer 'x' (no type) has"),
    "no bias": (
        layer("conv1_2", "Convolution", blob(ramp(1, 1, 1, 1))),
        "layer 'conv1_2' (Convolution) has 1 blob(s), wanted 2",
    ),
    "third blob": (layer("s", "Scale", *[blob(ramp(1))] * 3), "layer 's' (Scale) has 3 blob(s), wanted 1 or 2"),
    "deconvolution with bias": (
        layer("upscore", "Deconvolution", blob(ramp(2, 2, 4, 4)), blob(ramp(2))),
        "layer 'upscore' (Deconvolution) has 2 blob(s), wanted 1",
    ),
    "axes": (
        layer("conv1_2", "Convolution", blob(ramp(2, 2)), blob(ramp(2))),
        "layer 'conv1_2' (Convolution): its weight is 2x2, wanted 4 axes",
    ),
    "fully connected axes": (
        layer("fc7", "InnerProduct", blob(ramp(2, 1, 2, 2)), blob(ramp(2))),
        "layer 'fc7' (InnerProduct): its weight is 2x1x2x2, wanted 2 axes",
    ),
    "no 7x7": (
        layer("fc6", "InnerProduct", blob(ramp(2, 50)), blob(ramp(2))),
        "layer 'fc6' (InnerProduct): 2x50 is no 7x7 convolution: 50 is not a multiple of 49",
    ),
    "bias": (
        layer("conv1_2", "Convolution", blob(ramp(2, 1, 1, 1)), blob(ramp(3))),
        "layer 'conv1_2' (Convolution): a blob is 3, wanted 2",
    ),
    "bias axes": (
        layer("conv1_2", "Convolution", blob(ramp(2, 1, 1, 1)), blob(ramp(2, 2))),
        "layer 'conv1_2' (Convolution): a blob is 2x2, wanted 2",
    ),
    "scalar bias": (
        layer("conv1_2", "Convolution", blob(ramp(1, 1, 1, 1)), packed(5, [1])),
        "layer 'conv1_2' (Convolution): a blob is (), wanted 1",
    ),
    "half grouped": (
        layer("upscore", "Deconvolution", blob(ramp(4, 2, 2, 2))),
        "(Deconvolution): its weight is 4x2x2x2, wanted CxCxHxW, or Cx1xHxW of at most 2 GiB when dense",
    ),
    "huge when dense": (
        layer("upscore", "Deconvolution", blob(ramp(30000, 1, 1, 1))),
        "(Deconvolution): its weight is 30000x1x1x1, wanted",
    ),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_layers_that_do_not_fit(tmp_path, case):
    content, expected = BAD_LAYERS[case]
    assert expected in failure(write(tmp_path, conv1_1(), content))


def test_channels(tmp_path):
    path = write(tmp_path, convolution("conv1_1", (2, 4, 3, 3)))
    assert failure(path) == ": layer 'conv1_1' takes 4 channels, and 3 are known by their names"


def bad_blob(content):
    return layer("fc9", "Scale", content)


DAMAGED = {
    "text": (b"name: 'VGG'\nlayers { }\n", "field 13 of wire type 6"),
    "field 0": (bytes(100), "field 0 of wire type 0"),
    "group": (varint(9 * 8 + 3), "field 9 of wire type 3"),
    "endless number": (b"\x20" + b"\xff" * 50, "a number runs on for more than ten bytes"),
    "endless tag": (b"\xff" * 50, "a number runs on for more than ten bytes"),
    "within a number": (b"\x20\x80", "a message ends within a number"),
    "layer beyond the end": (
        varint(802) + varint(2**31) + bytes(180),
        "field 100 claims 2147483648 bytes where 180 are",
    ),
    "layer of 2**64": (varint(802) + b"\xff" * 9 + b"\1" + bytes(9), "claims 18446744073709551615 bytes where 9"),
    "blob beyond its layer": (
        message(100, message(1, "x"), b"\x3a\x50", bytes(9)) + bytes(90),
        "field 7 claims 80 bytes",
    ),
    "data beyond its blob": (
        bad_blob(b"\x2a\x08" + bytes(4)),
        "layer 'fc9' (Scale): field 5 claims 8 bytes where 4 are left",
    ),
    "half a fixed number": (bad_blob(b"\x2d\0\0"), "layer 'fc9' (Scale): field 5 claims 4 bytes where 2 are left"),
    "half a float": (bad_blob(message(5, bytes(6))), "layer 'fc9' (Scale): 6 bytes of numbers of 4 bytes"),
    "half a double": (bad_blob(message(8, bytes(12))), "layer 'fc9' (Scale): 12 bytes of numbers of 8 bytes"),
    "too few": (bad_blob(packed(5, ramp(5)) + blob_shape(6)), "layer 'fc9' (Scale): a blob of shape 6 with 5 values"),
    "too many": (bad_blob(packed(5, ramp(7)) + blob_shape(2, 3)), "a blob of shape 2x3 with 7 values"),
    "no data": (bad_blob(blob_shape(2**16, 2**15)), "a blob of shape 65536x32768 with 0 values"),
    "no shape": (bad_blob(packed(5, ramp(2))), "a blob of shape () with 2 values"),
    "absurd": (bad_blob(packed(5, ramp(1)) + blob_shape(2**62, 2**62)), "shape 4611686018427387904x46116"),
    "negative": (bad_blob(packed(5, ramp(6)) + blob_shape(-2, -3)), "a blob of shape -2x-3 with 6 values"),
    "negative legacy": (bad_blob(legacy_shape(1, 1, -1, -6) + packed(5, ramp(6))), "a blob of shape 1x1x-1x-6 with"),
    "zero": (bad_blob(blob_shape(0)), "a blob of shape 0 with 0 values"),
    "legacy in part": (bad_blob(number(1, 2) + packed(5, ramp(2))), "a blob of shape 2x0x0x0 with 2 values"),
    "product wraps": (bad_blob(packed(5, ramp(1)) + blob_shape(2**32 + 1, 1)), "a blob of shape 4294967297x1 with 1"),
    "axes": (bad_blob(packed(5, ramp(1)) + blob_shape(*[1] * 33)), "a blob of more than 32 axes"),
    "many axes": (bad_blob(message(7, number(1, 1) * 99)), "a blob of more than 32 axes"),
    "shape as a number": (bad_blob(number(7, 1)), "field 7 is of wire type 0, wanted 2"),
    "num as a string": (bad_blob(message(1, "x")), "field 1 is of wire type 2, wanted 0"),
    "layer as a number": (number(100, 5), "field 100 is of wire type 0, wanted 2"),
    "nameless": (message(100, message(2, "Scale"), message(7, blob(ramp(1)))), "a layer with weights has no name"),
    "name of two lines": (layer("a\nb", "Scale", blob(ramp(1))), "field 1 of 3 bytes is no name"),
    "long name": (layer("a" * 2000), "field 1 of 2000 bytes is no name"),
    "binary name": (layer(b"\xff\xfe"), "field 1 is no UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path, case):
    content, expected = DAMAGED[case]
    path = write(tmp_path, conv1_1(), content)
    tracemalloc.start()
    text = failure(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.startswith(" is truncated or damaged (")
    assert expected in text
    assert text.endswith("); get it again")
    assert peak < 2**20  # whatever a length or a shape claims


def test_empty_file(tmp_path):
    assert failure(write(tmp_path)).startswith(": it has no conv1_1 but no weights at all")


def small_file():
    """A name, two layers with weights, and some without: where each field ends, and the bytes."""
    fc7 = layer("fc7", "Convolution", blob(ramp(1, 2, 1, 1)), blob(ramp(1)), after=number(10, 1))
    fields = [message(1, "tiny"), layer("data"), conv1_1(), layer("relu", after=b""), fc7, layer("loss", after=b"")]
    return list(np.cumsum([len(field) for field in fields])), b"".join(fields)


def test_truncated_at_every_byte(tmp_path):
    """Between two fields a file is a shorter network, which only its missing layers tell."""
    ends, content = small_file()
    for size in range(len(content)):
        path = write(tmp_path, content[:size])
        if size in ends[2:]:
            has_fc7 = "fc7/kernel" in caffe.read(path).arrays
            assert has_fc7 == (size >= ends[4])
        elif size in (0, *ends[:2]):
            assert failure(path).startswith(": it has no conv1_1")
        else:
            assert failure(path).startswith(" is truncated or damaged")


def test_changed_bytes(tmp_path):
    """Any byte changed: another file, or ValueError."""
    _, content = small_file()
    messages = []
    for at in range(len(content)):
        for mask in (1, 128, 255):
            path = write(tmp_path, content[:at], bytes([content[at] ^ mask]), content[at + 1 :])
            try:
                caffe.read(path)
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > len(content) / 2
    assert all(text.startswith(str(path)) and "\n" not in text for text in messages)


def test_garbage(tmp_path):
    rng = np.random.default_rng(5)
    for seed in range(100):
        content = rng.bytes(int(rng.integers(1, 600)))
        assert failure(write(tmp_path, content)), seed
        assert not caffe.recognises(content[:512])


# Recognition.


@pytest.mark.parametrize(
    "content",
    [
        message(1, "VGG_ILSVRC_16_layers") + v1_layer("conv1_1", "Convolution"),
        message(1, "VGG") + message(2, message(4, "conv1_1"), number(5, 4)),
        message(1, "VGG") + message(2, message(3, "data"), message(4, "data"), number(5, 5)),
        message(1) + layer("data", "Python"),
        layer("conv1_1", "Convolution", blob(ramp(99, 3, 3, 3))),
        layer("x" * 600),
        v1_layer("conv1_1", "Convolution", legacy_blob(ramp(99, 3, 3, 3))),
        message(1, "a" * 300) + message(3, "data") + number(4, 1) + number(4, 3) + number(5, 0) + layer("data"),
        message(3, "data") + message(4, b"\1\3") + message(6, number(1, 0)) + number(7, 0) + message(8) + layer("data"),
        released("8s", 21)[0],
        message(1, "Netz für Straßen") + layer("data"),
    ],
)
def test_recognised(content):
    assert caffe.recognises(content[:512])


NOT_CAFFE = {
    "empty": b"",
    "newline": b"\n",
    "prototxt": b'name: "VGG_ILSVRC_16_layers"\nlayers {\n  bottom: "data"\n}\n' * 9,
    "text": b"\n" + b"a line of words with nothing else in it, and on it goes\n" * 9,
    "html": b"<!DOCTYPE html><html>",
    "json": b'{"a": 1}',
    "utf-16": "name".encode("utf-16"),
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "zip": b"PK\x03\x04\x14\0\0\0",
    "hdf5": b"\x89HDF\r\n\x1a\n\0\0\0\0",
    "gzip": gzip.compress(b"something"),
    "numpy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', }",
    **{f"pickle {i}": pickle.dumps({"conv1_1": np.ones(3)}, protocol=i) for i in range(6)},
    "onnx": number(1, 8) + message(2, "pytorch") + message(7, "graph"),
    "graphdef": message(1, message(1, "input"), message(2, "Placeholder")) * 3,
    "mean.binaryproto": legacy_shape(1, 3, 2, 2) + packed(5, ramp(12)),
    "solverstate": number(1, 100000) + message(2, "snapshot.caffemodel") + message(3, blob(ramp(2))),
    "name alone": message(1, "VGG"),
    "name and more": message(1, "VGG") + message(9, "VGG"),
    "name of several lines": message(1, "a\nb") + layer("data"),
    "layer as a number": number(100, 1),
    "empty layer": message(100),
    "layer of something": message(100, number(1, 1)),
    "layer of bytes": message(2, message(1, b"\0\1")),
    "cut before the layer": message(1, "VGG") + b"\xa2",
    "zeros": bytes(512),
}


@pytest.mark.parametrize("case", NOT_CAFFE)
def test_not_recognised(case):
    assert not caffe.recognises(NOT_CAFFE[case][:512])


def test_safetensors_is_not_recognised():
    for size in (*range(2000), *range(2000, 70000, 8)):
        assert not caffe.recognises(struct.pack("<Q", size) + b'{"conv1_1.weight":{"dtype":"F32","shape"')


# The wire format, against protobuf's own.


@pytest.fixture(scope="module")
def net_parameter():
    """The class NetParameter of as much of caffe.proto as is read."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = {"string": 9, "int32": 5, "int64": 3, "float": 2, "double": 1}
    messages = {
        "BlobShape": ["repeated int64 dim 1 packed"],
        "BlobProto": [
            *(f"optional int32 {name} {i}" for i, name in enumerate(("num", "channels", "height", "width"), start=1)),
            *("repeated float data 5 packed", "repeated float diff 6 packed", "optional BlobShape shape 7"),
            "repeated double double_data 8 packed",
        ],
        "LayerParameter": [
            *("optional string name 1", "optional string type 2", "repeated string bottom 3", "repeated string top 4"),
            *("repeated BlobProto blobs 7", "optional int32 phase 10"),
        ],
        "V1LayerParameter": [
            *("repeated string bottom 2", "repeated string top 3", "optional string name 4", "optional int32 type 5"),
            *("repeated BlobProto blobs 6", "repeated float blobs_lr 7"),
        ],
        "NetParameter": [
            *("optional string name 1", "repeated V1LayerParameter layers 2", "repeated string input 3"),
            *("repeated int32 input_dim 4", "repeated LayerParameter layer 100"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for field in fields:
            label, kind, field_name, field_number, *is_packed = field.split()
            label = {"optional": 1, "repeated": 3}[label]
            added = described.field.add(name=field_name, number=int(field_number), label=label)
            if kind in kinds:
                added.type = kinds[kind]
            else:
                added.type, added.type_name = 11, f".caffe.{kind}"
            if is_packed:
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def fill(blob_proto, array, doubles=False, legacy=False):
    if legacy:
        dims = (1,) * (4 - array.ndim) + array.shape
        blob_proto.num, blob_proto.channels, blob_proto.height, blob_proto.width = dims
    else:
        blob_proto.shape.dim.extend(array.shape)
    (blob_proto.double_data if doubles else blob_proto.data).extend(array.ravel().tolist())
    if not doubles:
        blob_proto.diff.extend([9] * array.size)


@pytest.mark.parametrize("name", ["", "VGG", None])
@pytest.mark.parametrize("doubles", [False, True])
def test_written_by_protobuf(tmp_path, net_parameter, name, doubles):
    weights = {"conv1_1": ("Convolution", ramp(70, 3, 2, 3)), "fc6": ("InnerProduct", ramp(3, 98))}
    net = net_parameter() if name is None else net_parameter(name=name)
    net.layer.add(name="data", type="Python", top=["data", "label"], phase=1)
    for layer_name, (kind, array) in weights.items():
        added = net.layer.add(name=layer_name, type=kind, bottom=["below"], phase=0)
        fill(added.blobs.add(), array, doubles)
        fill(added.blobs.add(), np.full(len(array), -1e-3, np.float32), doubles)
    fill(net.layer.add(name="scale_pool4", type="Scale").blobs.add(), ramp(5) / 3, doubles)
    content = net.SerializeToString()
    assert caffe.recognises(content[:512])
    got = caffe.read(write(tmp_path, content)).arrays
    np.testing.assert_array_equal(got["conv1_1/kernel"], ramp(70, 3, 2, 3).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got["fc6/kernel"], ramp(3, 2, 7, 7).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got["fc6/bias"], np.full(3, -1e-3, np.float32))
    np.testing.assert_array_equal(got["scale_pool4/scale"], ramp(5) / 3)


def test_written_by_protobuf_in_v1(tmp_path, net_parameter):
    net = net_parameter(name="VGG", input=["data"], input_dim=[10, 3, 224, 224])
    for layer_name, kind, array in (("conv1_1", 4, ramp(2, 3, 1, 1)), ("fc7", 14, ramp(2, 5))):
        added = net.layers.add(name=layer_name, type=kind, blobs_lr=[1, 2])
        fill(added.blobs.add(), array, legacy=True)
        fill(added.blobs.add(), ramp(2), legacy=True)
    content = net.SerializeToString()
    assert caffe.recognises(content[:512])
    got = caffe.read(write(tmp_path, content))
    np.testing.assert_array_equal(got.arrays["conv1_1/kernel"], ramp(2, 3, 1, 1).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got.arrays["fc7/kernel"], ramp(2, 5).T[None, None])
    assert got.convention == common.VGG


def test_protobuf_reads_what_is_written_here(net_parameter):
    """So the files of the other tests are of the format."""
    net = net_parameter.FromString(released("8s", 3, at_once=True)[0])
    assert [entry.name for entry in net.layer][:3] == ["data", "data_data_0_split", "conv1_1"]
    blobs = next(entry for entry in net.layer if entry.name == "conv1_2").blobs
    assert [list(blob.shape.dim) for blob in blobs] == [[2, 2, 3, 3], [2]]
    expected = released("8s", 3)[1]["conv1_2"][0]
    np.testing.assert_array_equal(np.array(blobs[0].data, np.float32), expected.ravel())
    v1 = net_parameter.FromString(v1_layer("fc6", "InnerProduct", legacy_blob(ramp(2, 3)), legacy_blob(ramp(2))))
    assert (v1.layers[0].name, v1.layers[0].type, v1.layers[0].blobs[0].height) == ("fc6", 14, 2)
    for name, encoding in ENCODINGS.items():
        content = message(100, message(1, "conv1_1"), message(7, encoding))
        parsed = net_parameter.FromString(content).layer[0].blobs[0]
        assert list(parsed.double_data or parsed.data) == VALUES.ravel().tolist(), name

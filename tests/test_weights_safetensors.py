"""fcn_jax.weights.safetensors_file: files written byte for byte here, and by the safetensors library."""

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, safetensors_file

KINDS = {"<f4": "F32", "<f8": "F64", "<f2": "F16", "<i8": "I64", "|b1": "BOOL"}


def header_of(state, metadata=None):
    header, at = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, values in state.items():
        kind = "BF16" if values.dtype == ml_dtypes.bfloat16 else KINDS[values.dtype.str]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    return header


def write(path, state, metadata=None, **changes):
    """The format: the length of the header, the header in JSON, the data."""
    header = json.dumps({**header_of(state, metadata), **changes}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(v.tobytes() for v in state.values()))
    return path


def read(path):
    with open(path, "rb") as file:
        assert safetensors_file.recognises(file.read(512))
    return safetensors_file.read(path)


def timm(width=2):
    """vgg16.tv_in1k, narrow: fully connected layers are convolutions, but for the last."""
    rng = np.random.default_rng(0)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    shapes = {f"features.{n}": (width, width if n else 3, 3, 3) for n in numbers}
    shapes |= {"pre_logits.fc1": (5, width, 7, 7), "pre_logits.fc2": (4, 5, 1, 1), "head.fc": (3, 4)}
    state = {}
    for layer, shape in shapes.items():
        state[f"{layer}.weight"] = rng.normal(size=shape).astype("<f4")
        state[f"{layer}.bias"] = rng.normal(size=shape[0]).astype("<f4")
    return state


def paper(**more):
    return {"conv1_1.weight": np.arange(54, dtype="<f4").reshape(2, 3, 3, 3), "conv1_1.bias": np.ones(2, "<f4"), **more}


def test_timm(tmp_path):
    state = timm()
    got = read(write(tmp_path / "any.name", state, {"format": "pt"}))
    assert (got.convention, got.model, got.at_once) == (common.TORCHVISION, None, None)
    layers = [*BACKBONES["vgg16"].convolutions, "fc6", "fc7", "fc8"]
    assert set(got.arrays) == {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    assert got.notes == {"fc8/kernel": "reshaped from 3x4"}
    np.testing.assert_array_equal(got.arrays["conv3_2/kernel"], state["features.12.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got.arrays["fc6/kernel"], state["pre_logits.fc1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got.arrays["fc8/kernel"][0, 0], state["head.fc.weight"].T)
    np.testing.assert_array_equal(got.arrays["fc8/bias"], state["head.fc.bias"])


def test_model(tmp_path):
    model = {"network": "fcn8s", "at_once": True, "mean": [1.0, 2.0, 3.0, 4.0]}
    got = read(write(tmp_path / "w", paper(), {"fcn_jax": json.dumps(model)}))
    assert (got.model, got.at_once) == (model, True)
    assert got.convention == common.Convention("BGR", 1.0, (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0, 1.0))
    got = read(write(tmp_path / "w", paper(), {"fcn_jax": "{}"}))
    assert (got.model, got.at_once, got.convention) == ({}, None, common.OURS)
    assert read(write(tmp_path / "w", paper())).convention == common.VGG


@pytest.mark.parametrize("dtype", ["<f8", "<f2", ml_dtypes.bfloat16, "<i8", "|b1"])
def test_dtypes(tmp_path, dtype):
    values = np.array([1, 2.5, -300]).astype(np.float32).astype(dtype)
    got = read(write(tmp_path / "w", paper(**{"fc7.bias": values, "bn.num_batches_tracked": values[0]})))
    assert got.arrays["fc7/bias"].dtype == np.float32
    np.testing.assert_array_equal(got.arrays["fc7/bias"], values.astype(np.float32))
    assert got.arrays["bn/num_batches_tracked"] == values[0].astype(np.float32)
    assert got.notes["fc7/bias"] == f"cast from {values.dtype}"


def test_recognises():
    assert safetensors_file.recognises(struct.pack("<Q", 2) + b"{}")
    for head in (
        b"",
        b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x02}",
        b"PK\x03\x04",
    ):
        assert not safetensors_file.recognises(head)


def refused(path, message):
    """Refused in one line that names the file, at once."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            safetensors_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**31]},
        {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 216]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 216]},
        {"dtype": "F32", "shape": [-54], "data_offsets": [0, 216]},
        {"dtype": "F32", "shape": [54], "data_offsets": [100, 316]},
        {"dtype": "F33", "shape": [54], "data_offsets": [0, 216]},
        {},
    ],
)
def test_entries_that_lie(tmp_path, entry):
    refused(write(tmp_path / "w", paper(), **{"conv1_1.weight": entry}), "w is truncated or damaged")


def test_dtype_without_numbers_in_numpy(tmp_path):
    entry = {"dtype": "C64", "shape": [27], "data_offsets": [0, 216]}
    refused(write(tmp_path / "w", paper(), **{"conv1_1.weight": entry}), "array of complex64 does not hold numbers")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "w is truncated or damaged"),
        ("[1]", "metadata fcn_jax is no model.json"),
        ('{"mean": 3}', "its model.json has the mean 3, wanted numbers"),
        ('{"mean": "blue"}', "its model.json has the mean blue, wanted numbers"),
    ],
)
def test_metadata(tmp_path, metadata, message):
    refused(write(tmp_path / "w", paper(), {"fcn_jax": metadata}), message)


def test_other_networks(tmp_path):
    refused(write(tmp_path / "w", {"stem.weight": np.zeros(2, "<f4")}), "has stem.weight; wanted a VGG16 or AlexNet")
    refused(write(tmp_path / "w", {}), "has nothing; wanted a VGG16")


def test_truncated(tmp_path):
    path = write(tmp_path / "w", paper())
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        refused(path, "w is truncated or damaged")


def test_damaged(tmp_path):
    """Any three bytes of the header changed: weights, or ValueError in one line."""
    path = write(tmp_path / "w", paper(), {"fcn_jax": '{"mean": [1, 2, 3]}'})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = np.frombuffer(content, np.uint8).copy()
        changed[rng.integers(len(changed) - 224, size=3)] = rng.integers(256, size=3)
        path.write_bytes(changed.tobytes())
        message = ""
        try:
            safetensors_file.read(path)
        except ValueError as error:
            message = str(error)
        assert not message or (str(path) in message and "\n" not in message)


def test_file_of_the_library(tmp_path):
    from safetensors import numpy

    state = timm()
    numpy.save_file(state, tmp_path / "w", metadata={"format": "pt"})
    got = read(tmp_path / "w")
    np.testing.assert_array_equal(got.arrays["conv5_3/kernel"], state["features.28.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got.arrays["fc7/bias"], state["pre_logits.fc2.bias"])


@pytest.mark.needs("torch")
def test_file_of_pytorch(tmp_path):
    import torch
    from safetensors.torch import save_file

    state = {name: torch.from_numpy(values) for name, values in timm().items()}
    state["head.fc.weight"] = state["head.fc.weight"].bfloat16()
    state["features.0.bias"] = state["features.0.bias"].half()
    state["pre_logits.fc1.weight"] = torch.nn.Parameter(state["pre_logits.fc1.weight"].transpose(2, 3).contiguous())
    save_file(state, tmp_path / "w")
    got = read(tmp_path / "w")
    assert got.notes["fc8/kernel"] == "cast from bfloat16, reshaped from 3x4"
    assert got.notes["conv1_1/bias"] == "cast from float16"
    np.testing.assert_array_equal(got.arrays["fc8/kernel"][0, 0], state["head.fc.weight"].float().numpy().T)
    kernel = state["pre_logits.fc1.weight"].detach().numpy()
    np.testing.assert_array_equal(got.arrays["fc6/kernel"], kernel.transpose(2, 3, 1, 0))

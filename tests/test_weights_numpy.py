"""fcn_jax.weights.numpy_file: files of NumPy, and those of Python 2 written opcode for opcode here."""

import io
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from fcn_jax.weights import common, numpy_file, pickles


def narrow(width=2):
    """Two convolutions and the fully connected layers [in, out], as TensorFlow has them: {layer: (kernel, bias)}."""
    rng = np.random.default_rng(0)
    shapes = {"conv1_1": (3, 3, 3, width), "conv5_3": (3, 3, width, width)}
    shapes |= {"fc6": (49 * width, 5), "fc7": (5, 4), "fc8": (4, 3)}
    return {
        layer: (rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[-1]).astype(np.float32))
        for layer, shape in shapes.items()
    }


def common_form(**more):
    layers = {layer: pair for layer, pair in narrow().items() if layer.startswith("conv")}
    parts = ("kernel", "bias")
    return {
        **{f"{layer}/{part}": a for layer, pair in layers.items() for part, a in zip(parts, pair, strict=True)},
        **more,
    }


def frossard():
    return {f"{layer}_{part}": a for layer, pair in narrow().items() for part, a in zip("Wb", pair, strict=True)}


def read(path):
    with open(path, "rb") as file:
        assert numpy_file.recognises(file.read(512))
    return numpy_file.read(path)


def check_tensorflow(got):
    """Every array of `narrow`, and fc6 as the layer on the map flattened in the order H, W, C."""
    layers = narrow()
    assert set(got.arrays) == {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    assert {array.dtype for array in got.arrays.values()} == {np.dtype("float32")}
    assert got.notes == {
        "fc6/kernel": "reshaped from 98x5",
        "fc7/kernel": "reshaped from 5x4",
        "fc8/kernel": "reshaped from 4x3",
    }
    for layer, (kernel, bias) in layers.items():
        found = got.arrays[f"{layer}/kernel"]
        np.testing.assert_array_equal(found if layer[:2] == "co" else found.reshape(-1, found.shape[-1]), kernel)
        np.testing.assert_array_equal(got.arrays[f"{layer}/bias"], bias)
    pool5 = np.random.default_rng(1).normal(size=(7, 7, 2))
    dense = pool5.reshape(-1) @ layers["fc6"][0].astype(np.float64)
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", pool5, got.arrays["fc6/kernel"]), dense, rtol=1e-12)
    assert got.arrays["fc7/kernel"].shape == (1, 1, 5, 4)


# .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_common_form(tmp_path, save):
    arrays = common_form(
        **{"fc6/kernel": np.asfortranarray(np.ones((7, 7, 2, 5), np.float32)), "fc9/kernel": np.ones((4, 3))}
    )
    with open(tmp_path / "any.name", "wb") as file:
        save(file, **arrays)
    got = read(tmp_path / "any.name")
    assert (got.convention, got.model, got.at_once) == (common.OURS, None, None)
    assert got.notes == {"fc9/kernel": "cast from float64"}
    assert list(got.arrays) == list(arrays)
    for name, array in arrays.items():
        assert got.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(got.arrays[name], array)


def test_uncompressed_arrays_are_views_of_the_file(tmp_path):
    np.savez(tmp_path / "w.npz", **common_form())
    assert not any(array.flags.writeable for array in read(tmp_path / "w.npz").arrays.values())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_frossard(tmp_path, save):
    save(tmp_path / "w.npz", **frossard())
    got = read(tmp_path / "w.npz")
    assert got.convention == common.Convention("RGB", 1.0, (123.68, 116.779, 103.939))
    check_tensorflow(got)


def test_half_and_swapped_bytes(tmp_path):
    half, swapped = np.array([1, 2.5], np.float16), np.array([1, 2.5], ">f4")
    np.savez(tmp_path / "w.npz", **common_form(**{"fc7/bias": half, "fc8/bias": swapped}))
    got = read(tmp_path / "w.npz")
    assert got.notes == {"fc7/bias": "cast from float16", "fc8/bias": "cast from >f4"}
    assert got.arrays["fc7/bias"].tolist() == got.arrays["fc8/bias"].tolist() == [1, 2.5]


def npy_header(descr, shape, fortran=False):
    """A header of version 1.0; `shape` as it stands there."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def write_npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_header_of_python_2(tmp_path):
    values = np.arange(54, dtype="<f4")
    header = npy_header("<f4", "(3L, 3L, 3L, 2L)")
    got = read(write_npz(tmp_path / "w", {"conv1_1/kernel": header + values.tobytes()}))
    np.testing.assert_array_equal(got.arrays["conv1_1/kernel"].ravel(), values)


def test_recognises():
    member = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 12, 0)
    assert numpy_file.recognises(member + b"conv/a_b.npy")
    assert not numpy_file.recognises(member + b"net/data.pkl")
    assert numpy_file.recognises(b"\x93NUMPY\x01\x00")
    for head in (b"", b"PK\x03\x04 a zip.npy", b"\x89HDF\r\n\x1a\n"):
        assert not numpy_file.recognises(head)


# .npy


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensorflow_vgg(tmp_path, protocol):
    tree = {layer: list(pair) for layer, pair in narrow().items()}
    with open(tmp_path / "w", "wb") as file:
        file.write(npy_header("|O", "()"))
        pickle.dump(np.array(tree, object), file, protocol=protocol)
    got = read(tmp_path / "w")
    assert got.convention == common.VGG
    check_tensorflow(got)


def test_file_of_numpy(tmp_path):
    np.save(tmp_path / "w.npy", np.array({layer: list(pair) for layer, pair in narrow().items()}, object))
    check_tensorflow(read(tmp_path / "w.npy"))


def string(value):
    """A string of Python 2, BINSTRING."""
    value = value if isinstance(value, bytes) else value.encode()
    return b"T" + struct.pack("<I", len(value)) + value


def python_2_array(shape, code, order, data):
    """What Python 2's NumPy pickles an array as, protocol 2."""
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(code) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    sizes = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in shape) + b"t"
    return new + b"(K\x01" + sizes + dtype + b"\x89" + data + b"tb"


def python_2_file(layers):
    items = b""
    for layer, pair in layers.items():
        arrays = b"".join(python_2_array(a.shape, "f4", "<", string(a.tobytes())) for a in pair)
        items += string(layer) + b"](" + arrays + b"e"
    tree = python_2_array((), "O8", "|", b"](}(" + items + b"ue")
    return npy_header("|O", "()") + b"\x80\x02" + tree + b"."


def test_file_of_python_2(tmp_path):
    """machrisaa's vgg16.npy."""
    (tmp_path / "w").write_bytes(python_2_file(narrow()))
    check_tensorflow(read(tmp_path / "w"))


# Pickles.


def loaded(content, **options):
    return pickles.load(io.BytesIO(content), "a file", **options)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(protocol):
    arrays = [np.arange(6).astype(dtype).reshape(2, 3) for dtype in ("<f4", ">f8", "i2", "?", "<u8")]
    arrays += [np.asfortranarray(arrays[0]), np.array(2.5), np.zeros((0, 3)), arrays[0][:, ::2]]
    tree = {"arrays": arrays, "numbers": [np.float64(0.5), np.int32(3), 1, True, None], "bytes": b"\xff\x00"}
    got = loaded(pickle.dumps(tree, protocol=protocol))
    assert got["numbers"] == tree["numbers"]
    assert got["bytes"] == tree["bytes"]
    for array, found in zip(arrays, got["arrays"], strict=True):
        assert (found.dtype.newbyteorder("="), found.shape) == (array.dtype.newbyteorder("="), array.shape)
        np.testing.assert_array_equal(found, array)


def test_pickles_in_a_row():
    file = io.BytesIO(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest")
    assert [pickles.load(file, "f"), pickles.load(file, "f"), file.read()] == [[1], {"a": 2}, b"rest"]


class Forbidden:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("touched"),)


@pytest.mark.parametrize(
    "value",
    [
        *(
            np.array(["text"]),
            np.zeros(1, "f4,f4"),
            np.zeros(1, "M8[s]"),
            np.zeros(1, complex),
            np.random.default_rng(0),
        ),
        *(Forbidden(), np.array([Forbidden()], object), len, pickle.Unpickler),
    ],
)
def test_forbidden(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", np.array({"conv1_1": [value]}, object))
    refused(
        tmp_path / "w.npy", r"it (asks for|holds an array of) .*, and nothing but (NumPy arrays|numbers) is admitted$"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["w.npy"]


def test_arrays_that_lie():
    data = string(bytes(24))
    assert loaded(b"\x80\x02" + python_2_array((2, 3), "f4", "<", data) + b".").shape == (2, 3)
    for shape, code in (((2, 4), "f4"), ((-2, -3), "f4"), ((2, 3), "f8"), ((2**30, 2**30), "f4"), ((24,), "O8")):
        with pytest.raises(ValueError, match=r"cannot read the pickle in a file: .* truncated or damaged"):
            loaded(b"\x80\x02" + python_2_array(shape, code, "<", data) + b".")
    state = python_2_array((6,), "f4", "<", data)
    again = b"(K\x01(K\x01t" + state[state.rindex(b"cnumpy\ndtype") :]
    with pytest.raises(ValueError, match="an array with two states"):
        loaded(b"\x80\x02" + state + again + b".")


def test_numbers_of_objects():
    for put in (b"r\xff\xff\xff\x7f", b"p999999999\n", b"q\xff"):
        with pytest.raises(ValueError, match="object 2 has the number"):
            loaded(b"\x80\x02]" + put + b".")


# What is refused.


def refused(path, message):
    """Refused in one line that names the file, at once."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            numpy_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_array_without_names(tmp_path):
    np.save(tmp_path / "w.npy", np.ones((3, 3)))
    refused(tmp_path / "w.npy", "holds one array without names; give a .npz, or a .npy with a dict of them")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], r"holds no dict; wanted a dict \{'conv1_1'"),
        ({}, "has nothing; wanted a dict"),
        ({"fc6": [np.ones(1), np.ones(1)]}, "has fc6; wanted a dict"),
        ({"conv1_1": [np.ones(1)]}, "conv1_1 is no pair of arrays; wanted a dict"),
        ({"conv1_1": {"weights": np.ones(1), "biases": np.ones(1)}}, "conv1_1 is no pair of arrays"),
        ({"conv1_1": [1, 2]}, "conv1_1 is no pair of arrays"),
        ({"a\nb": [np.ones(1), np.ones(1)]}, r"has a layer 'a\\nb'; wanted a dict"),
        ({1: [np.ones(1), np.ones(1)]}, "has a layer '1'; wanted a dict"),
        ({"conv1_1": "ab"}, "conv1_1 is no pair of arrays"),
        (
            {"conv1_1": [np.ones(1), np.ones(1)], "fc6": [np.ones((50, 2)), np.ones(2)]},
            "fc6/kernel: 2x50 is no 7x7 conv",
        ),
        ({"conv1_1": [np.array([None]), np.ones(1)]}, "conv1_1/kernel: an array of object does not hold numbers"),
    ],
)
def test_other_trees(tmp_path, tree, message):
    np.save(tmp_path / "w.npy", np.array(tree, object))
    refused(tmp_path / "w.npy", message)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a\nb": np.ones(2)}, r"truncated or damaged \(it has a member 'a\\nb.npy'\)"),
        (
            {"arr_0": np.ones(2)},
            r"has arr_0; wanted an FCN or its encoder, with conv1_1/kernel, conv1_1_W or conv1/kernel",
        ),
        ({"conv1_1/kernel": np.array([None])}, "conv1_1/kernel.npy holds Python objects"),
        ({"conv1_1/kernel": np.array(["a"])}, "conv1_1/kernel: an array of <U1 does not hold numbers"),
        ({"conv1_1/kernel": np.zeros(1, "f4,f4")}, "does not hold numbers"),
        ({"conv1_1_W": np.ones((3, 3, 3, 2)), "fc6_W": np.ones((50, 2))}, "fc6/kernel: 2x50 is no 7x7 convolution"),
    ],
)
def test_other_archives(tmp_path, arrays, message):
    np.savez(tmp_path / "w.npz", **arrays)
    refused(tmp_path / "w.npz", message)


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        *(("(536870912,)", "<f4"), ("(1099511627776, 1099511627776)", "<f4"), ("(-6,)", "<f4"), ("(-2, -3)", "<f4")),
        *(("(6,)", "<f8"), ("(6.0,)", "<f4"), ("(6", "<f4"), ("6", "<f4"), ("(6,)", "<f5"), ("(6,)", "V" + "9" * 12)),
        ("(6,), 'more': 1", "<f4"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_lie(tmp_path, shape, descr, compression):
    path = write_npz(tmp_path / "w", {"conv1_1/kernel": npy_header(descr, shape) + bytes(24)}, compression)
    refused(path, r"w is truncated or damaged \(conv1_1/kernel.npy.*\); get it again")


def test_claims_of_gigabytes(tmp_path):
    path = tmp_path / "w"
    content = npy_header("<f4", "(6,)") + bytes(24)
    for entry in (struct.pack("<II", 2**31, 2**31), struct.pack("<II", len(content), 2**31)):
        write_npz(path, {"conv1_1/kernel": content})
        before = path.read_bytes()
        sizes = struct.pack("<II", len(content), len(content))
        at = before.rindex(sizes)
        path.write_bytes(before[:at] + entry + before[at + 8 :])
        refused(path, "does not lie where the directory says")
    (tmp_path / "w").write_bytes(npy_header("|O", "()") + b"\x80\x02T\xff\xff\xff\x7f" + bytes(24))
    refused(path, "cannot read the pickle")


def test_zip_bomb(tmp_path):
    content = npy_header("<f4", "(10000000,)") + bytes(4 * 10**7)
    path = write_npz(tmp_path / "w", {"conv1_1/kernel": content}, zipfile.ZIP_DEFLATED)
    refused(path, r"truncated or damaged \(its members claim 4\d{7} bytes\)")


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])
def test_truncated_and_damaged(tmp_path, kind):
    """Cut anywhere: ValueError in one line. Any three bytes changed: that, or weights."""
    path = tmp_path / "w"
    if kind == "npy":
        path.write_bytes(python_2_file({"conv1_1": narrow()["conv1_1"]}))
    else:
        with open(path, "wb") as file:
            (np.savez if kind == "npz" else np.savez_compressed)(file, **common_form())
    content = path.read_bytes()
    for size in range(20, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=str(path)) as error:
            numpy_file.read(path)
        assert "\n" not in str(error.value)
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = np.frombuffer(content, np.uint8).copy()
        changed[rng.integers(len(changed), size=3)] = rng.integers(256, size=3)
        path.write_bytes(changed.tobytes())
        message = ""
        try:
            numpy_file.read(path)
        except ValueError as error:
            message = str(error)
        assert not message or (str(path) in message and "\n" not in message)

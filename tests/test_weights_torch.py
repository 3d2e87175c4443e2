"""fcn_jax.weights.torch_file: both formats written opcode for opcode here, and by PyTorch where it is installed."""

import collections
import itertools
import pickle
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fcn_jax.models import upsample
from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, torch_file, torch_names

# Pickle's opcodes, as torch.save writes them (protocol 2).

KINDS = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "<i8": "Long", "|u1": "Byte"}
MAGIC = 0x1950A86A20F9469CFC6C


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def text2(value):
    """A string of Python 2."""
    return b"T" + struct.pack("<I", len(value)) + value.encode("latin1")


def number(value):
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def array(*parts):
    return b"(" + b"".join(parts) + b"t"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(function, *arguments):
    return function + array(*arguments) + b"R"


def mapping(items, key=text, empty=b"}"):
    return empty + b"(" + b"".join(key(name) + value for name, value in items.items()) + b"u"


def ordered(items, key=text):
    return mapping(items, key, call(named("collections", "OrderedDict")))


def whole(body):
    return b"\x80\x02" + body + b"."


def storage(key, kind="FloatStorage", elements=6, *view, module="torch"):
    return array(text("storage"), named(module, kind), text(key), text("cpu"), number(elements), *view) + b"Q"


def tensor(of, shape, strides, offset=0, rebuild="_rebuild_tensor_v2"):
    sizes = [number(offset), array(*map(number, shape)), array(*map(number, strides))]
    more = [b"\x89", ordered({})] if rebuild.endswith("v2") else []
    return call(named("torch._utils", rebuild), of, *sizes, *more)


def tensors(state, *view, rebuild="_rebuild_tensor_v2"):
    """({name: opcodes}, {key: data}): every array in a storage of its own."""
    items, data = {}, {}
    for key, (name, values) in enumerate(state.items()):
        strides = [stride // values.itemsize for stride in values.strides]
        kind = "BFloat16" if values.dtype == ml_dtypes.bfloat16 else KINDS[values.dtype.str]
        of = storage(str(key), f"{kind}Storage", values.size, *view)
        items[name] = tensor(of, values.shape, strides, rebuild=rebuild)
        data[str(key)] = values.tobytes("A")
    return items, data


# The formats.


def write_zip(path, body, data, compression=zipfile.ZIP_STORED, byteorder=b"little", align=64):
    with zipfile.ZipFile(path, "w", compression) as archive:
        members = {"net/data.pkl": whole(body), "net/byteorder": byteorder}
        members |= {f"net/data/{key}": content for key, content in data.items()}
        for name, content in {**members, "net/version": b"3\n"}.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = compression
            # PyTorch aligns the data by an extra field, of id FB, in the local header alone.
            padding = -(archive.fp.tell() + 30 + len(name) + 4) % align
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(entry, content)
    return path


def legacy_bytes(body, data, sizes, little=b"\x88"):
    system = mapping({"protocol_version": number(1001), "little_endian": little})
    keys = b"](" + b"".join(map(text, data)) + b"e"
    head = b"".join(map(whole, (number(MAGIC), number(1001), system, body, keys)))
    return head + b"".join(struct.pack("<q", len(data[key]) // sizes.get(key, 4)) + data[key] for key in data)


def write_legacy(path, body, data, sizes=None, **options):
    path.write_bytes(legacy_bytes(body, data, sizes or {}, **options))
    return path


def write(kind, path, state, wrap=ordered):
    """A file of kind 'zip' or 'legacy' with the arrays of `state`."""
    if kind == "zip":
        items, data = tensors(state)
        return write_zip(path, wrap(items), data)
    items, data = tensors(state, b"N")
    return write_legacy(path, wrap(items), data, {str(i): a.itemsize for i, a in enumerate(state.values())})


def read(path):
    with open(path, "rb") as file:
        assert torch_file.recognises(file.read(512))
    return torch_file.read(path)


def fcn8s(classes=3, width=2):
    """A narrow FCN-8s as pytorch-fcn names it, every layer's channels distinct where they can be."""
    rng = np.random.default_rng(0)
    shapes = {layer: (width, width if i else 3, 3, 3) for i, layer in enumerate(BACKBONES["vgg16"].convolutions)}
    shapes |= {"fc6": (5, width, 7, 7), "fc7": (4, 5, 1, 1), "score_fr": (classes, 4, 1, 1)}
    shapes |= {"score_pool3": (classes, width, 1, 1), "score_pool4": (classes, width, 1, 1)}
    state = {}
    for layer, shape in shapes.items():
        state[f"{layer}.weight"] = rng.normal(size=shape).astype("<f4")
        state[f"{layer}.bias"] = rng.normal(size=shape[0]).astype("<f4")
    for layer, size in (("upscore2", 4), ("upscore8", 16), ("upscore_pool4", 4)):
        state[f"{layer}.weight"] = rng.normal(size=(classes, classes, size, size)).astype("<f4")
    return state


def torchvision(width=2, fc=(5, 4, 3)):
    state = fcn8s(width=width)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    renamed = {
        f"features.{n}.{part}": state[f"{layer}.{part}"]
        for n, layer in zip(numbers, BACKBONES["vgg16"].convolutions, strict=True)
        for part in ("weight", "bias")
    }
    rng = np.random.default_rng(1)
    for n, inputs, outputs in zip((0, 3, 6), (width * 49, *fc), fc, strict=False):
        renamed[f"classifier.{n}.weight"] = rng.normal(size=(outputs, inputs)).astype("<f4")
        renamed[f"classifier.{n}.bias"] = rng.normal(size=outputs).astype("<f4")
    return renamed


def small(**more):
    """The least that is read."""
    return {"conv1_1.weight": np.arange(27, dtype="<f4").reshape(1, 3, 3, 3), **more}


# What is read.


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_fcn8s(tmp_path, kind):
    state = fcn8s()
    got = read(write(kind, tmp_path / "any.name", state))
    assert (got.convention, got.model, got.at_once, got.notes) == (common.OURS, None, None, {})
    assert list(got.arrays) == [name.replace(".weight", "/kernel").replace(".bias", "/bias") for name in state]
    for name, values in state.items():
        found = got.arrays[name.replace(".weight", "/kernel").replace(".bias", "/bias")]
        assert found.dtype == np.float32
        assert not found.flags.writeable  # a view of the file
        order = {4: (2, 3, 0, 1) if name.startswith("upscore") else (2, 3, 1, 0), 1: (0,)}[values.ndim]
        np.testing.assert_array_equal(found, values.transpose(order))


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_torchvision(tmp_path, kind):
    state = torchvision()
    got = read(write(kind, tmp_path / "w", state))
    assert got.convention == common.TORCHVISION
    layers = [*BACKBONES["vgg16"].convolutions, "fc6", "fc7", "fc8"]
    assert list(got.arrays) == [f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")]
    assert got.notes == {
        "fc6/kernel": "reshaped from 5x98",
        "fc7/kernel": "reshaped from 4x5",
        "fc8/kernel": "reshaped from 3x4",
    }
    np.testing.assert_array_equal(got.arrays["conv5_3/kernel"], state["features.28.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(got.arrays["fc7/kernel"][0, 0], state["classifier.3.weight"].T)
    # The layer on the flattened map, C x H x W, is the convolution over the map.
    pool5 = np.random.default_rng(2).normal(size=(7, 7, 2))
    expected = state["classifier.0.weight"].astype(np.float64) @ pool5.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", pool5, got.arrays["fc6/kernel"]), expected, rtol=1e-12)


def test_fc6_as_a_matrix_by_the_papers_names(tmp_path):
    state = fcn8s()
    matrix = {**state, "fc6.weight": state["fc6.weight"].reshape(5, -1)}
    got = read(write("zip", tmp_path / "w", matrix))
    assert got.notes == {"fc6/kernel": "reshaped from 5x98"}
    np.testing.assert_array_equal(got.arrays["fc6/kernel"], state["fc6.weight"].transpose(2, 3, 1, 0))


def test_upscore_scatters_as_conv_transpose_does(tmp_path):
    kernel = np.random.default_rng(3).normal(size=(3, 3, 4, 4)).astype("<f4")
    got = read(write("legacy", tmp_path / "w", small(**{"upscore2.weight": kernel})))
    x = np.random.default_rng(4).normal(size=(2, 5, 3)).astype(np.float32)
    expected = np.zeros((6, 12, 3))
    for i, j, source, target in itertools.product(range(2), range(5), range(3), range(3)):
        expected[2 * i : 2 * i + 4, 2 * j : 2 * j + 4, target] += x[i, j, source] * kernel[source, target]
    y = upsample.transposed(jnp.asarray(x[None]), jnp.asarray(got.arrays["upscore2/kernel"]))
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-5)


def test_strides_offsets_and_shared_storages(tmp_path):
    values = np.arange(40, dtype="<f4")
    view = array(text("view"), number(4), number(30))
    items = {
        "conv1_1.weight": tensor(storage("7", elements=40), (1, 3, 3, 3), (27, 9, 3, 1), offset=1),
        "x.transposed": tensor(storage("7", elements=40), (3, 2), (1, 5), offset=2),
        "x.scalar": tensor(storage("7", elements=40, module="torch.cuda"), (), (), offset=39),
        "x.empty": tensor(storage("7", elements=40), (0, 4), (4, 1)),
    }
    body = ordered(items)
    for path in (
        write_zip(tmp_path / "zip", body, {"7": values.tobytes()}),
        write_legacy(
            tmp_path / "legacy",
            ordered({**items, "x.part": tensor(storage("7", "FloatStorage", 40, view), (30,), (1,))}),
            {"7": values.tobytes()},
        ),
    ):
        arrays = read(path).arrays
        np.testing.assert_array_equal(arrays["conv1_1/kernel"].transpose(3, 2, 0, 1).ravel(), values[1:28])
        np.testing.assert_array_equal(arrays["x/transposed"], [[2, 7], [3, 8], [4, 9]])
        assert arrays["x/scalar"] == 39
        assert arrays["x/empty"].shape == (0, 4)
    np.testing.assert_array_equal(arrays["x/part"], values[4:34])


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["<f8", "<f2", ml_dtypes.bfloat16, "<i8", "|u1"])
def test_dtypes(tmp_path, kind, dtype):
    values = np.array([1, 2.5, 300, -4]).astype(np.float32).astype(dtype)
    got = read(write(kind, tmp_path / "w", small(**{"fc7.bias": values, "bn.num_batches_tracked": values[0]})))
    expected = values.astype(np.float32)
    assert got.arrays["fc7/bias"].dtype == np.float32
    np.testing.assert_array_equal(got.arrays["fc7/bias"], expected)
    assert got.arrays["bn/num_batches_tracked"] == expected[0]
    assert got.notes["fc7/bias"] == f"cast from {values.dtype}"


def test_beyond_float32_is_infinite(tmp_path):
    got = read(write("zip", tmp_path / "w", small(**{"fc7.bias": np.array([1e300], "<f8")})))
    assert got.arrays["fc7/bias"].tolist() == [np.inf]


def test_unknown_layers_keep_their_names(tmp_path):
    extra = {"extra.block.weight": np.zeros((2, 3, 1, 1), "<f4"), "extra.gamma": np.zeros(2, "<f4")}
    extra |= {"head.weight": np.zeros((2, 3), "<f4"), "x.step": np.zeros((), "<i8")}
    got = read(write("zip", tmp_path / "w", small(**extra)))
    shapes = {name: values.shape for name, values in got.arrays.items()}
    assert shapes["extra.block/kernel"] == (1, 1, 3, 2)
    assert (shapes["extra/gamma"], shapes["head/kernel"], shapes["x/step"]) == ((2,), (2, 3), ())


@pytest.mark.parametrize("arch", ["FCN8s", "FCN8sAtOnce", "FCN32s", "Other"])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_checkpoint_of_pytorch_fcn(tmp_path, kind, arch):
    """The trainer's, saved by Python 3: numbers of NumPy carry bytes, which protocol 2 spells _codecs.encode."""
    code = call(named("numpy", "dtype"), text("f8"), number(0), number(1))
    code += array(number(3), text("<"), b"NNN", number(-1), number(-1), number(0)) + b"b"
    raw = call(named("_codecs", "encode"), text(struct.pack("<d", 0.5).decode("latin1")), text("latin1"))

    def wrap(items):
        return mapping(
            {
                "epoch": number(3),
                "arch": text(arch),
                "optim_state_dict": mapping({"state": mapping({"conv1_1": items["momentum"]}), "param_groups": b"]"}),
                "model_state_dict": ordered({name: items[name] for name in items if name != "momentum"}),
                "best_mean_iu": call(named("numpy.core.multiarray", "scalar"), code, raw),
            }
        )

    got = read(write(kind, tmp_path / "w", {**fcn8s(), "momentum": np.ones(3, "<f4")}, wrap))
    assert set(got.arrays) == {name.replace(".weight", "/kernel").replace(".bias", "/bias") for name in fcn8s()}
    assert got.at_once == {"FCN8s": False, "FCN8sAtOnce": True}.get(arch)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_nested_and_parallel(tmp_path, key):
    def wrap(items):
        metadata = mapping({"_metadata": mapping({"version": number(1)})})
        nested = ordered({f"module.module.{name}": value for name, value in items.items()}) + metadata + b"b"
        device = call(named("torch", "device"), text("cuda"), number(0))
        size = call(named("torch", "Size"), array(number(2), number(3)))
        return mapping({key: nested, "device": device, "size": size})

    got = read(write("zip", tmp_path / "w", small(), wrap))
    assert list(got.arrays) == ["conv1_1/kernel"]


def test_file_of_python_2(tmp_path):
    """Strings are bytes, an OrderedDict is called with its items, and _rebuild_tensor was the only function."""
    items, data = tensors(fcn8s(), b"N", rebuild="_rebuild_tensor")
    pairs = b"](" + b"".join(b"](" + text2(name) + value + b"e" for name, value in items.items()) + b"e"
    body = call(named("collections", "OrderedDict"), pairs).replace(text("storage"), text2("storage"))
    got = read(write_legacy(tmp_path / "w", body, data))
    np.testing.assert_array_equal(got.arrays["fc7/kernel"][0, 0], fcn8s()["fc7.weight"][..., 0, 0].T)
    assert len(got.arrays) == len(items)


def test_parameters(tmp_path):
    items, data = tensors(small())
    wrapped = {name: call(named("torch._utils", "_rebuild_parameter"), t, b"\x88", b"N") for name, t in items.items()}
    got = read(write_zip(tmp_path / "w", ordered(wrapped), data))
    np.testing.assert_array_equal(got.arrays["conv1_1/kernel"].transpose(3, 2, 0, 1).ravel(), np.arange(27))


def test_compressed_zip(tmp_path):
    items, data = tensors(fcn8s())
    got = read(write_zip(tmp_path / "w", ordered(items), data, zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(got.arrays["fc6/bias"], fcn8s()["fc6.bias"])


def test_papers_names_without_scores_are_imagenets(tmp_path):
    state = {name: values for name, values in fcn8s().items() if not name.startswith(("score", "upscore"))}
    assert read(write("zip", tmp_path / "w", state)).convention == common.VGG


@pytest.mark.parametrize(("tap", "convention"), [(0.42947057, common.VGG), (0.4800154, torch_names.VGG_RGB)])
def test_the_vggs_own_weights_under_torchvisions_names(tmp_path, tap, convention):
    """vgg16_from_caffe.pth: its input is told by the published first values."""
    state = torchvision(width=4)
    state["features.0.bias"] = np.array([0.73429835, 0.093403675, 0.06775674, 0.8862966], "<f4")
    state["features.0.weight"][0, 0, 0, 0] = tap
    assert read(write("legacy", tmp_path / "w", state)).convention == convention
    state["features.0.bias"][3] = 0.9
    assert read(write("legacy", tmp_path / "w", state)).convention == common.TORCHVISION


def test_recognises():
    named_member = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 12, 0)
    assert torch_file.recognises(named_member + b"net/data.pkl")
    assert not torch_file.recognises(named_member + b"conv/a_b.npy")
    assert not torch_file.recognises(named_member + b"metadata.jso")
    assert torch_file.recognises(pickle.dumps(MAGIC, protocol=2))
    assert torch_file.recognises(pickle.dumps(MAGIC, protocol=4))
    for head in (b"", b"PK\x03\x04 a zip", pickle.dumps({"a": 1}, protocol=2), b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"):
        assert not torch_file.recognises(head)


# What is refused.


def refused(path, message):
    """Refused in one line that names the file, at once."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            torch_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def state_of(of):
    return ordered({"conv1_1.weight": of})


ONE = {"0": bytes(24)}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("posix", "system")),
        *(("torch._utils", "_rebuild_qtensor"), ("torch", "load"), ("torchfcn.models.fcn8s", "FCN8s")),
        *(("numpy", "load"), ("numpy.core.multiarray", "fromfile"), ("_codecs", "decode"), ("collections", "Counter")),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_forbidden(tmp_path, monkeypatch, kind, module, name):
    monkeypatch.chdir(tmp_path)
    body = ordered({"conv1_1.weight": call(named(module, name), text("touch touched"))})
    path = (write_zip if kind == "zip" else write_legacy)(tmp_path / "w", body, {})
    message = rf"holds a dict of 'conv1_1.weight' \({module}\.{name}\), wanted tensors by name; save it with"
    refused(path, message)
    assert [file.name for file in tmp_path.iterdir()] == ["w"]


def test_forbidden_by_the_newer_opcode(tmp_path):
    body = text("os") + text("sys\ntem") + b"\x93" + array(text("touch touched")) + b"R"
    refused(write_zip(tmp_path / "w", body, {}), r"holds a 'os.sys\\ntem', wanted tensors by name")


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (array(text("module"), text("FCN8s"), text("a.py"), text("code")) + b"Q", "which is no storage"),
        (array(text("thing"), text("0")) + b"Q", r"refers to \('thing', '0'\), which is no storage"),
        (text("0") + b"Q", "refers to '0', which is no storage"),
        (b"P0\n", "refers to '0', which is no storage"),
        (storage("0", elements=-1), "which is no storage"),
        (array(text("storage"), text("ComplexStorage"), text("0"), text("cpu"), number(6)) + b"Q", "is no storage"),
        (storage("0", "FloatStorage", 6, array(text("v"), number(4), number(3))), "a view .* of a storage of 6"),
        (text("no storage"), "cannot read the pickle"),
    ],
)
def test_references(tmp_path, of, message):
    refused(write_zip(tmp_path / "w", state_of(tensor(of, (2, 3), (3, 1))), ONE), message)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        *(((2, 3), (3, 1), 1), ((2, 3), (4, 1), 0), ((7,), (1,), 0), ((7,), (0,), 0), ((1,), (1,), 6), ((), (), 6)),
        *(((0, 2**70), (0, 0), 0), ((0, 2**40, 2**40), (1, 1, 1), 0)),
        *(((-2, -3), (3, 1), 0), ((2,), (-1,), 5), ((2,), (1,), -1), ((2**40, 2**40), (0, 0), 0), ((6,), (), 0)),
        ((2**31,), (1,), 0),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_outside_of_the_storage(tmp_path, kind, shape, strides, offset):
    view = [b"N"] if kind == "legacy" else []
    body = state_of(tensor(storage("0", "FloatStorage", 6, *view), shape, strides, offset))
    path = (write_zip if kind == "zip" else write_legacy)(tmp_path / "w", body, ONE)
    refused(path, "does not fit into its storage of 6|of sizes that are none|truncated or damaged|conv1_1.weight")


def test_sizes_that_are_no_numbers(tmp_path):
    for shape in (array(text("a"), number(10**9)), text("ab"), b"N", array(array())):
        of = call(named("torch._utils", "_rebuild_tensor"), storage("0"), number(0), shape, shape)
        refused(write_zip(tmp_path / "w", state_of(of), ONE), "truncated or damaged")


def test_storages(tmp_path):
    good = tensor(storage("0"), (6,), (1,))
    refused(write_zip(tmp_path / "w", state_of(good), {}), "'conv1_1.weight' is of a storage with 0 bytes, wanted 24")
    refused(write_zip(tmp_path / "w", state_of(good), {"0": bytes(20)}), "with 20 bytes, wanted 24")
    refused(write_zip(tmp_path / "w", state_of(good), {"0": bytes(28)}), "with 28 bytes, wanted 24")
    refused(write_legacy(tmp_path / "w", state_of(good), {}), "with 0 bytes, wanted 24")
    refused(write_legacy(tmp_path / "w", state_of(good), {**ONE, "1": b""}), "it lists storages that no tensor has")
    refused(write_legacy(tmp_path / "w", state_of(good), {"0": bytes(20)}), "with 20 bytes, wanted 24")
    two = ordered({"a": good, "b": tensor(storage("0", "DoubleStorage", 3), (3,), (1,))})
    refused(write_zip(tmp_path / "w", two, ONE), "storage '0' is of two kinds or sizes")


def test_claims_of_gigabytes(tmp_path):
    big = 2**29
    body = state_of(tensor(storage("0", elements=big), (big,), (1,)))
    refused(write_zip(tmp_path / "w", body, ONE), "a storage with 24 bytes, wanted 2147483648")
    content = legacy_bytes(body, ONE, {})
    path = tmp_path / "w"
    path.write_bytes(content[:-32] + struct.pack("<q", big) + bytes(24))
    refused(path, "is truncated .a storage has 2147483648 bytes, and 24 are left")
    path.write_bytes(content[:-32] + struct.pack("<q", -1) + bytes(24))
    refused(path, "is truncated")
    for claim in (b"B\0\0\0\x80", b"\x8e" + struct.pack("<Q", 2**62), b"\x96" + struct.pack("<Q", 2**31)):
        refused(write_zip(path, ordered({}) + claim + bytes(24), {}), "cannot read the pickle")
        refused(write_legacy(path, ordered({}) + claim + bytes(24), {}), "cannot read the pickle")


def test_memo_of_gigabytes(tmp_path):
    body = ordered({}) + b"r" + struct.pack("<I", 2**31 - 1)
    refused(write_zip(tmp_path / "w", body, {}), "has the number 2147483647")


def test_zip_bomb(tmp_path):
    body = state_of(tensor(storage("0", elements=10**7), (10**7,), (1,)))
    path = write_zip(tmp_path / "w", body, {"0": bytes(4 * 10**7)}, zipfile.ZIP_DEFLATED)
    refused(path, r"truncated or damaged \(its members claim 4\d{7} bytes\)")


def patched(path, old, new, last=False):
    content = path.read_bytes()
    at = content.rindex(old) if last else content.index(old)
    path.write_bytes(content[:at] + new + content[at + len(old) :])
    return path


def test_zip_members_that_lie(tmp_path):
    def fresh():
        return write("zip", tmp_path / "w", small())

    # The sizes in the directory's entry of the storage: 108, twice.
    entry, sizes, lies = b"PK\x01\x02", struct.pack("<II", 108, 108), struct.pack("<II", 2**31, 2**31)
    refused(patched(fresh(), sizes, lies, last=True), "does not lie where the directory says")
    lies = struct.pack("<II", 108, 8)
    refused(patched(fresh(), sizes, lies, last=True), r"does not lie where|truncated or damaged")
    path = fresh()
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("net/data/0").header_offset
    content = bytearray(path.read_bytes())
    content[at] = 0
    path.write_bytes(content)
    refused(path, "net/data/0 does not lie where the directory says")
    path = fresh()
    content = bytearray(path.read_bytes())
    content[content.index(entry) + 8] |= 1  # encrypted
    path.write_bytes(content)
    refused(path, "encrypted")
    fresh()
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 26.0))] ^= 1  # a wrong checksum is no matter
    path.write_bytes(content)
    assert read(path).arrays["conv1_1/kernel"].shape == (3, 3, 3, 1)


def test_big_endian(tmp_path):
    items, data = tensors(small())
    refused(write_zip(tmp_path / "w", ordered(items), data, byteorder=b"big"), "on a big-endian machine")
    refused(write_legacy(tmp_path / "w", ordered(items), data, little=b"\x89"), "on a big-endian machine")


def test_another_protocol(tmp_path):
    path = write_legacy(tmp_path / "w", ordered({}), {})
    refused(patched(path, number(1001), number(1002)), "is of another protocol of torch.save than 1001")


SIX = tensor(storage("0"), (6,), (1,))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"]", "holds a list, wanted tensors by name; save it with torch.save"),
        (ordered({}), "holds a dict, wanted"),
        (mapping({"epoch": number(3), "net": ordered({})}), r"holds a dict of 'epoch' \(int\), 'net' \(dict\), wanted"),
        (ordered({"conv1_1.weight": SIX, "fc6.bias": text("y")}), "'fc6.bias' is a str, and no tensor; save the tens"),
        (ordered({1: SIX}, number), r"holds a dict of '1' \(tensor\), wanted tensors by name"),
        (ordered({"a\nb.weight": SIX}), r"has the name 'a\\nb.weight'"),
        (ordered({"0.weight": SIX}), r"has 0.weight; wanted a VGG16"),
        (mapping({"model": call(named("torch", "Size"), array())}), "holds a dict of 'model'"),
    ],
)
def test_no_state_dict(tmp_path, body, message):
    refused(write_zip(tmp_path / "w", body, ONE), message)


@pytest.mark.parametrize(
    ("numbers", "listed"),
    [
        ((0, 1, 3, 4, 7), "0, 1, 3, 4, 7"),
        ((0, 2, 5, 7, 10, 12, 14, 16), "0, 2, .*, 14, 16"),
        ((0, 3), "0, 3"),
    ],
)
def test_other_vggs(tmp_path, numbers, listed):
    state = {f"features.{n}.{part}": np.zeros(2, "<f4") for n in numbers for part in ("weight", "bias")}
    message = rf"has features {listed}, and VGG16 has 0, 2, 5, .*, 28; vgg16_bn, vgg19 and others are not read"
    refused(write("zip", tmp_path / "w", state), message)


def test_other_networks(tmp_path):
    state = {name: np.zeros(2, "<f4") for name in ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight")}
    message = "has conv1.weight, bn1.weight, layer1.0.conv1.weight, ...; wanted a VGG16 or AlexNet, or an FCN on it"
    refused(write("zip", tmp_path / "w", state), message)


def test_layers_that_do_not_fit(tmp_path):
    state = {**torchvision(), "classifier.0.weight": np.zeros((5, 100), "<f4")}
    refused(write("zip", tmp_path / "w", state), "classifier.0.weight: 5x100 is no 7x7 convolution")
    state = {**torchvision(), "pre_logits.fc1.bias": np.zeros(5, "<f4")}
    refused(write("zip", tmp_path / "w", state), "has fc6/bias twice, once as pre_logits.fc1.bias")


def test_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("folder/other", b"")
    refused(tmp_path / "w", "is a zip file without data.pkl")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_truncated(tmp_path, kind):
    path = write(kind, tmp_path / "w", small(**{"fc7.bias": np.ones(3, "<f4")}))
    content = path.read_bytes()
    for size in range(20, len(content), 3):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"truncated|damaged") as error:
            torch_file.read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_damaged(tmp_path, kind):
    """Any three bytes changed: weights, or ValueError in one line."""
    path = write(kind, tmp_path / "w", small(**{"fc7.bias": np.ones(3, "<f4")}))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = np.frombuffer(content, np.uint8).copy()
        changed[rng.integers(len(changed), size=3)] = rng.integers(256, size=3)
        path.write_bytes(changed.tobytes())
        message = ""
        try:
            torch_file.read(path)
        except ValueError as error:
            message = str(error)
        assert not message or (str(path) in message and "\n" not in message)


def test_empty(tmp_path):
    (tmp_path / "w").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        torch_file.read(tmp_path / "w")


# PyTorch's own files.


@pytest.mark.needs("torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_real_files(tmp_path, zipped):
    import torch

    state = {name: torch.from_numpy(values.copy()) for name, values in fcn8s().items()}
    state["fc6.weight"] = torch.nn.Parameter(state["fc6.weight"])
    state["conv1_2.weight"] = state["conv1_2.weight"].to(memory_format=torch.channels_last)
    state["conv2_2.weight"] = state["conv2_2.weight"].transpose(0, 1)
    state["conv3_1.bias"] = torch.arange(10.0)[3:9:3]
    state["conv3_2.bias"] = state["conv3_1.bias"]
    state["fc7.weight"] = state["fc7.weight"].double()
    state["fc7.bias"] = state["fc7.bias"].half()
    state["fc6.bias"] = state["fc6.bias"].bfloat16()
    state["bn.num_batches_tracked"] = torch.tensor(7)
    for wrapped in (state, collections.OrderedDict(state), {"epoch": 1, "model_state_dict": state, "arch": "FCN8s"}):
        torch.save(wrapped, tmp_path / "w", _use_new_zipfile_serialization=zipped)
        got = read(tmp_path / "w")
        assert len(got.arrays) == len(state)
        for name, values in state.items():
            array = values.detach().float().numpy()
            order = {4: (2, 3, 0, 1) if name.startswith("upscore") else (2, 3, 1, 0)}.get(array.ndim)
            found = got.arrays[name.replace(".weight", "/kernel").replace(".bias", "/bias").replace("bn.", "bn/")]
            np.testing.assert_array_equal(found, array.transpose(order))
        assert got.notes == {
            "fc7/kernel": "cast from float64",
            "fc7/bias": "cast from float16",
            "fc6/bias": "cast from bfloat16",
            "bn/num_batches_tracked": "cast from int64",
        }


@pytest.mark.needs("torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_real_checkpoint(tmp_path, zipped):
    import torch

    layers = {"conv1_1": torch.nn.Conv2d(3, 2, 3), "score_fr": torch.nn.Conv2d(2, 2, 1)}
    network = torch.nn.Sequential(collections.OrderedDict(layers))
    momentum = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 1e-10, "params": [0]}]}
    checkpoint = {"epoch": 2, "arch": "FCN8sAtOnce", "best_mean_iu": np.float64(0.5), "scores": np.ones((2, 3))}
    checkpoint |= {"optim_state_dict": momentum, "model_state_dict": network.state_dict()}
    torch.save(checkpoint, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    got = read(tmp_path / "w")
    assert (got.at_once, got.convention) == (True, common.OURS)
    weight = network.conv1_1.weight.detach().numpy()
    np.testing.assert_array_equal(got.arrays["conv1_1/kernel"], weight.transpose(2, 3, 1, 0))


@pytest.mark.needs("torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_real_network_is_refused(tmp_path, zipped):
    import torch

    torch.save(torch.nn.Conv2d(3, 2, 3), tmp_path / "w", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w", r"holds a torch.nn.modules.conv.Conv2d, .* save it with torch.save\(network.state_dict")


@pytest.mark.needs("torch")
def test_layers_against_pytorch(tmp_path):
    import torch

    transposed = torch.nn.ConvTranspose2d(3, 3, 4, stride=2, bias=False)
    linear = torch.nn.Linear(49 * 2, 5)
    state = {**small(), **{f"upscore2.{n}": t for n, t in transposed.state_dict().items()}}
    state |= {f"fc6.{n}": t for n, t in linear.state_dict().items()}
    torch.save({n: t if isinstance(t, torch.Tensor) else torch.from_numpy(t) for n, t in state.items()}, tmp_path / "w")
    arrays = read(tmp_path / "w").arrays
    x = np.random.default_rng(5).normal(size=(1, 5, 6, 3)).astype(np.float32)
    with torch.no_grad():
        expected = transposed(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
        y = upsample.transposed(jnp.asarray(x), jnp.asarray(arrays["upscore2/kernel"]))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        pool5 = np.random.default_rng(6).normal(size=(7, 7, 2)).astype(np.float32)
        expected = linear(torch.from_numpy(pool5.transpose(2, 0, 1)).flatten()).numpy()
    np.testing.assert_allclose(
        np.einsum("hwc,hwco->o", pool5, arrays["fc6/kernel"]) + arrays["fc6/bias"], expected, rtol=0, atol=1e-5
    )

"""Weight files as people have them: what trainers, wrappers and Keras 3 leave around tensors, and failed downloads."""

import io
import itertools
import logging
import pathlib
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from test_weights_torch import (
    array,
    call,
    fcn8s,
    mapping,
    named,
    number,
    ordered,
    storage,
    tensor,
    tensors,
    text,
    torchvision,
    write,
    write_legacy,
    write_zip,
)

from fcn_jax import weights
from fcn_jax.models.spec import BACKBONES
from fcn_jax.weights import common, convert, merge, pickles, torch_names

FCN_ARRAYS = {name.replace(".weight", "/kernel").replace(".bias", "/bias") for name in fcn8s()}
VGG_ARRAYS = {
    f"{layer}/{part}"
    for layer in (*BACKBONES["vgg16"].convolutions, "fc6", "fc7", "fc8")
    for part in ("kernel", "bias")
}


def prefixed(prefix, state):
    return {f"{prefix}{name}": values for name, values in state.items()}


def fitting():
    """Torchvision's names, and shapes that a network of width 1 has."""
    widths = [2 ** min(int(layer[4]) - 1, 3) for layer in BACKBONES["vgg16"].convolutions]
    state = torchvision(width=8, fc=(5, 5, 3))
    for index, inputs, outputs in zip(torch_names._FEATURES["vgg16"], [3, *widths], widths, strict=False):
        state[f"features.{index}.weight"] = np.ones((outputs, inputs, 3, 3), "<f4")
        state[f"features.{index}.bias"] = np.ones(outputs, "<f4")
    return state


def refused(path, *phrases):
    """Refused in one line, shorter than a screen, that names the file and has the phrases."""
    with pytest.raises(ValueError) as error:
        weights.read_file(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1000
    for phrase in phrases:
        assert phrase in message


# Beside the state dict.


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize(
    "key", ["net", "model_state", "weights", "params", "ema_state_dict", "model_ema", "network", "state_dict", "mine"]
)
def test_a_state_dict_under_any_name_beside_tensors(tmp_path, kind, key):
    """imagenet/main.py's best_prec1 is a tensor, and so is the state of a generator."""
    beside = {"best_prec1": np.ones((), "<f4"), "rng": np.arange(4, dtype="|u1")}

    def wrap(items):
        others = {name: items.pop(name) for name in beside}
        momentum = mapping({"momentum": ordered({"conv1_1.weight": items["conv1_1.weight"]})})
        return mapping({"epoch": number(3), **others, "optimizer": momentum, key: ordered(items)})

    got = weights.read_file(write(kind, tmp_path / "w.pth.tar", {**fcn8s(), **beside}, wrap))
    assert got.arrays.keys() == FCN_ARRAYS
    np.testing.assert_array_equal(got.arrays["fc6/bias"], fcn8s()["fc6.bias"])
    passed = "passed over: epoch (int), best_prec1 (tensor), rng (tensor), optimizer (dict)"
    assert got.remarks == (f"read from: {key}", passed)


def test_two_deep_and_in_a_tuple(tmp_path):
    def deep(items):
        return mapping({"trainer": mapping({"model": mapping({"net": ordered(items)})})})

    assert weights.read_file(write("zip", tmp_path / "w", fcn8s(), deep)).remarks == ("read from: trainer.model.net",)
    got = weights.read_file(write("zip", tmp_path / "w", fcn8s(), lambda items: array(ordered(items), number(3))))
    assert (got.arrays.keys(), got.remarks) == (FCN_ARRAYS, ("read from: 0", "passed over: 1 (int)"))


def test_what_is_of_no_layer_is_passed_over(tmp_path):
    state = {**fcn8s(), "module.step": np.ones((), "<i8")}
    got = weights.read_file(
        write("zip", tmp_path / "w", state, lambda items: ordered({**items, "epoch": number(3), "note": text("x")}))
    )
    assert got.arrays.keys() == FCN_ARRAYS
    expected = ("stripped from names: module.", "passed over: step (tensor)", "passed over: epoch (int), note (str)")
    assert got.remarks == expected


def both(first, second):
    """A file that has fcn8s() under one key, and the same plus one under another."""

    def wrap(items):
        halves = [{k.removeprefix(p): v for k, v in items.items() if k.startswith(p)} for p in ("a/", "b/")]
        return mapping(dict(zip((first, second), map(ordered, halves), strict=True)))

    plus = {name: values + 1 for name, values in fcn8s().items()}
    return {**prefixed("a/", fcn8s()), **prefixed("b/", plus)}, wrap


@pytest.mark.parametrize("average", ["ema_state_dict", "model_ema", "swa", "averaged_model"])
def test_the_plain_network_is_read_beside_its_average(tmp_path, average):
    got = weights.read_file(write("zip", tmp_path / "w", *both("state_dict", average)))
    np.testing.assert_array_equal(got.arrays["fc6/bias"], fcn8s()["fc6.bias"])
    assert got.remarks == ("read from: state_dict", f"passed over: {average} (dict)")
    state = {**prefixed(f"{average}.", both("", "")[0]), **prefixed("net.", fcn8s())}
    state = {name.replace("/", "."): values for name, values in state.items() if "b/" not in name}
    got = weights.read_file(write("zip", tmp_path / "w", state))
    assert got.remarks == ("stripped from names: net.", f"passed over: {average}.a.* (another network)")
    assert got.arrays.keys() == FCN_ARRAYS


def test_two_networks_are_refused_by_name(tmp_path):
    for names in (("generator", "critic"), ("student", "teacher"), ("ema_1", "ema_2")):
        wanted = f"holds 2 networks: {names[0]}, {names[1]}; save the one that is meant to a file of its own"
        refused(write("zip", tmp_path / "w", *both(*names)), wanted)
    state = {**prefixed("a.", fcn8s()), **fcn8s()}
    refused(write("zip", tmp_path / "w", state), "holds 2 networks: a., one without a prefix;")
    state = {"module.fc6.bias": np.ones(1, "<f4"), **fcn8s()}
    refused(write("zip", tmp_path / "w", state), "has 'fc6.bias' twice")


# Names.


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        *(("_orig_mod.", "_orig_mod."), ("module._orig_mod.", "_orig_mod., module."), ("model.", "model.")),
        *(("net.", "net."), ("module.model.", "module., model."), ("model._orig_mod.", "_orig_mod., model.")),
        *(("encoder.", "encoder."), ("backbone.vgg.", "backbone.vgg."), ("a.b.c.", "a.b.c.")),
    ],
)
@pytest.mark.parametrize("state", [fcn8s, torchvision])
def test_prefixes(tmp_path, prefix, stripped, state):
    plain = weights.read_file(write("zip", tmp_path / "plain", state()))
    got = weights.read_file(write("legacy", tmp_path / "w", prefixed(prefix, state())))
    assert got.remarks == (f"stripped from names: {stripped}",)
    assert got.convention == plain.convention
    assert got.arrays.keys() == plain.arrays.keys()
    for name, values in plain.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], values)


def test_data_parallel_in_the_middle(tmp_path):
    state = {name.replace("features.", "features.module."): values for name, values in torchvision().items()}
    got = weights.read_file(write("zip", tmp_path / "w", state))
    assert (got.arrays.keys(), got.remarks) == (VGG_ARRAYS, ("stripped from names: module.",))


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_features_alone(tmp_path, prefix):
    """state_dict() of vgg16().features, or of a network that has it as its encoder."""
    features = {k: v for k, v in torchvision().items() if k.startswith("features")}
    state = {name.replace("features.", prefix): values for name, values in features.items()}
    got = weights.read_file(write("zip", tmp_path / "w", state))
    assert got.arrays.keys() == {name for name in VGG_ARRAYS if name.startswith("conv")}
    np.testing.assert_array_equal(got.arrays["conv5_3/kernel"], features["features.28.weight"].transpose(2, 3, 1, 0))
    state[f"{prefix}30.weight"] = np.ones(2, "<f4")  # then it is another network
    refused(write("zip", tmp_path / "w", state), "wanted a VGG16 or AlexNet, or an FCN on it")


def test_a_decoder_beside_the_encoder_is_not_dropped(tmp_path):
    state = {**prefixed("encoder.", fitting()), "decoder.0.weight": np.ones((2, 2, 1, 1), "<f4")}
    found = weights.read_file(write("zip", tmp_path / "w", state))
    assert found.arrays.keys() == {*VGG_ARRAYS, "decoder.0/kernel"}
    spec = convert.spec_for(found, class_names=["a", "b"], palette=[(0, 0, 0), (1, 1, 1)])
    with pytest.raises(ValueError, match=r"hold what the network has not: decoder.0/kernel; .* --allow: decoder.0"):
        convert.fit(found, spec)
    convert.fit(found, spec, allow=["decoder.*"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_jcjohnsons_vgg16(tmp_path, prefix):
    """Caffe's weights, BGR, in a classifier that begins with dropout."""
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    state = torchvision(width=4)
    state["features.0.bias"] = np.array(torch_names._RELEASED_BIASES, "<f4")
    state["features.0.weight"][0, 0, 0, 0] = torch_names._RELEASED_BLUE
    renamed = {
        f"{prefix}{moved.get(name.rpartition('.')[0], name.rpartition('.')[0])}.{name.rpartition('.')[2]}": values
        for name, values in state.items()
    }
    assert f"{prefix}classifier.4.bias" in renamed
    got = weights.read_file(write("legacy", tmp_path / "vgg16-00b39a1b.pth", renamed))
    assert (got.arrays.keys(), got.convention) == (VGG_ARRAYS, common.VGG)
    plain = weights.read_file(write("legacy", tmp_path / "updated", state))
    np.testing.assert_array_equal(got.arrays["fc6/kernel"], plain.arrays["fc6/kernel"])
    np.testing.assert_array_equal(got.arrays["fc7/bias"], state["classifier.3.bias"])


def test_a_head_of_ones_own_keeps_its_name(tmp_path):
    """Dropout and one linear layer on pooled features: no fc6."""
    state = {k: v for k, v in torchvision().items() if k.startswith("features")}
    got = weights.read_file(write("zip", tmp_path / "w", {**state, "classifier.1.weight": np.ones((3, 2), "<f4")}))
    assert got.arrays["classifier.1/kernel"].shape == (3, 2)


def test_prefixes_of_safetensors_and_numpy(tmp_path):
    import safetensors.numpy

    safetensors.numpy.save_file(prefixed("model.encoder.", torchvision()), tmp_path / "W.SAFETENSORS")
    got = weights.read_file(tmp_path / "W.SAFETENSORS")
    assert (got.arrays.keys(), got.remarks) == (VGG_ARRAYS, ("stripped from names: model.encoder.",))
    kernel = np.ones((3, 3, 3, 2), "<f4")
    np.savez(tmp_path / "w", **{"params/conv1_1/kernel": kernel, "opt/conv1_1/kernel": kernel, "step": np.ones(1)})
    got = weights.read_file(tmp_path / "w.npz")
    assert (list(got.arrays), got.remarks) == (
        ["conv1_1/kernel"],
        ("stripped from names: params/", "passed over: opt/conv1_1/kernel, step"),
    )


def test_the_report_has_the_remarks(tmp_path, caplog):
    state = prefixed("model.", fitting())
    found = weights.read_file(write("zip", tmp_path / "w", state, lambda items: mapping({"net": ordered(items)})))
    spec = convert.spec_for(found, class_names=["a", "b"], palette=[(0, 0, 0), (1, 1, 1)])
    with caplog.at_level(logging.INFO, logger=merge.__name__):
        convert.fit(found, spec)
    assert caplog.messages[0].splitlines()[-2:] == ["stripped from names: model.", "read from: net"]


# Objects beside the tensors.

TOUCH = text("touch touched")
OBJECTS = {
    "args": named("argparse", "Namespace")
    + b")\x81"
    + mapping({"lr": number(1), "net": named("models", "Net")})
    + b"b",
    "when": call(named("datetime", "datetime"), call(named("_codecs", "encode"), text("\x07"), text("latin1"))),
    "path": call(named("pathlib", "PosixPath"), text("/"), text("data")),
    "score": call(named("numpy._core.multiarray", "scalar"), call(named("numpy", "dtype"), text("U1")), text("a")),
    "list": named("omegaconf", "ListConfig") + b")\x81(" + number(1) + number(2) + b"e",
    "dict": named("easydict", "EasyDict") + b")\x81(" + text("a") + number(2) + b"u",
    "ids": call(named("builtins", "set"), b"](" + number(1) + b"e"),
    "system": call(named("os", "system"), TOUCH),
    "eval": call(named("builtins", "eval"), text("open('touched', 'w')")),
    "built": named("pathlib", "Path") + b")\x81" + mapping({"x": TOUCH}) + b"b",
    "getattr": call(call(named("builtins", "getattr"), named("os", "path"), text("join")), TOUCH),
    "class": named("torch", "float32"),
    "newer": text("os") + text("system") + b"\x93" + array(TOUCH) + b"R",
    "keywords": named("subprocess", "Popen") + b")" + mapping({"args": TOUCH}) + b"\x92",
    "network": array(text("module"), named("models", "Net"), text("a.py"), text("code")) + b"Q" + b")\x81",
    "odd": tensor(
        array(text("storage"), named("torch", "OddStorage"), text("0"), text("cpu"), b"K\1") + b"Q", (1,), (1,)
    ),
}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_read_past_and_nothing_runs(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    path = write(kind, tmp_path / "w", fcn8s(), lambda items: mapping({name: OBJECTS[name], "model": ordered(items)}))
    got = weights.read_file(path)
    assert got.arrays.keys() == FCN_ARRAYS
    np.testing.assert_array_equal(got.arrays["fc6/bias"], fcn8s()["fc6.bias"])
    assert got.remarks[0] == "read from: model"
    assert got.remarks[1].startswith(f"passed over: {name} (")
    assert got.remarks[2].startswith("objects that were not built: ")
    assert [file.name for file in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_in_the_place_of_a_tensor_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    def wrap(items):
        return ordered({**items, "fc6.weight": OBJECTS[name]})

    refused(write("zip", tmp_path / "w", fcn8s(), wrap), "'fc6.weight' is a ", "and no tensor; save the tensors of")
    assert [file.name for file in tmp_path.iterdir()] == ["w"]


def test_remarks_are_bounded(tmp_path):
    odd = {f"k{i}\n" + "x" * 500: call(named("m" * 500, f"c{i}")) for i in range(100)}
    got = weights.read_file(write("zip", tmp_path / "w", fcn8s(), lambda items: mapping({**odd, "m": ordered(items)})))
    assert max(map(len, got.remarks)) < 600
    assert not any("\n" in remark for remark in got.remarks)
    many = b"".join(named("m", f"c{i}") + b"0" for i in range(1001))
    refused(write_zip(tmp_path / "w", many + ordered({}), {}), "asks for more than 1000 classes")


def test_references_that_grow_are_not_written_out(tmp_path):
    """Lists of lists of lists, a thousand bytes that would print as 10^30."""
    bomb = b"]q\0" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(30)
    )
    refused(write_zip(tmp_path / "w", bomb + b"Q", {}), "cannot read the pickle")


def test_other_callers_read_nothing_past(tmp_path):
    with pytest.raises(ValueError, match=r"it asks for os\.getcwd, and nothing but NumPy arrays is admitted"):
        pickles.load(io.BytesIO(b"\x80\x02" + call(named("os", "getcwd")) + b"."), "w")


# Other things that torch.save writes.


@pytest.mark.parametrize(
    ("body", "phrases"),
    [
        (named("models", "Net") + b")\x81" + mapping({"x": number(1)}) + b"b", ["holds a models.Net, wanted tensors"]),
        (named("__torch__.models", "Net") + b")\x81", ["torch.save(torch.jit.load(PATH).state_dict(), NEW)"]),
        (mapping({"model": named("models", "Net") + b")\x81"}), ["'model' (models.Net)", "network.state_dict()"]),
        (call(named("os", "system"), TOUCH), ["holds a os.system, wanted tensors by name"]),
        (b"]" + b"(" + tensor(storage("0"), (6,), (1,)) + b"e", ["holds a list, wanted tensors by name"]),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_no_state_dict_is_refused_with_the_remedy(tmp_path, monkeypatch, kind, body, phrases):
    monkeypatch.chdir(tmp_path)
    refused(
        (write_zip if kind == "zip" else write_legacy)(
            tmp_path / "w", body, {"0": bytes(24)} if b"torch\n" in body else {}
        ),
        *phrases,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["w"]


def test_a_parameter_with_attributes(tmp_path):
    items, data = tensors(fcn8s())
    kept = call(named("torch._utils", "_rebuild_parameter_with_state"), items["fc6.bias"], b"\x88", b"N", b"}")
    rebuild = array(storage("own", elements=5), number(0), array(number(5)), array(number(1)), b"\x89", ordered({}))
    own = call(
        named("torch._tensor", "_rebuild_from_type_v2"),
        named("torch._utils", "_rebuild_tensor_v2"),
        named("m", "T"),
        rebuild,
        b"}",
    )
    for one in (kept, own):
        path = write_zip(
            tmp_path / "w",
            ordered({**items, "fc6.bias": one}),
            {**data, "own": np.arange(5, dtype="<f4").tobytes()} if one is own else data,
        )
        assert weights.read_file(path).arrays["fc6/bias"].shape == (5,)


# Keras.


def vgg(width=2, top=True):
    rng = np.random.default_rng(0)
    shapes = [(3, 3, width if i else 3, width) for i in range(13)] + [(49 * width, 5), (5, 4), (4, 3)] * top
    return [(rng.normal(size=s).astype("f4"), rng.normal(size=s[-1]).astype("f4")) for s in shapes]


KERAS = [*(f"block{c[4]}_conv{c[6]}" for c in BACKBONES["vgg16"].convolutions), "fc1", "fc2", "predictions"]


def write_keras3(file, layers, parent="layers"):
    """As Model.save_weights: by class and number; newer versions note the layer's name in an attribute."""
    counts = {kind: itertools.count() for kind in ("conv2d", "dense")}
    with h5py.File(file, "w") as root:
        for name, arrays in zip(KERAS, layers, strict=False):
            kind = "conv2d" if "conv" in name else "dense"
            at = next(counts[kind])
            group = root.create_group(f"{parent}/{kind}{f'_{at}' if at else ''}/vars")
            group.attrs["name"] = name
            for i, values in enumerate(arrays):
                group[str(i)] = values
        root.create_group(f"{parent}/max_pooling2d/vars")
        root["optimizer/vars/1"] = np.ones(2, "f4")
        root["layers/random_flip/seed_generator/vars/0"] = np.ones(2, "u4")


def write_whole(file, layers, parent="model_weights", ending=""):
    """As Model.save("w.h5")."""
    with h5py.File(file, "w") as root:
        for name, arrays in zip(KERAS, layers, strict=False):
            below = f"{name}/{name}" if parent == "model_weights" else name
            for part, values in zip(("kernel", "bias"), arrays, strict=True):
                root[f"{parent}/{below}/{part}{ending}"] = values
        root["optimizer_weights/adam/block1_conv1/kernel"] = np.ones(2, "f4")
        root.create_group("model_weights/top_level_model_weights")


def as_keras_zip(path, content, member="model.weights.h5"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in {"metadata.json": b"{}", "config.json": b"{}", member: content}.items():
            archive.writestr(name, part)
    return path


def check_keras(got, layers, top=True):
    assert got.convention == common.VGG
    assert got.arrays.keys() == {name for name in VGG_ARRAYS if top or name.startswith("conv")}
    for layer, (kernel, bias) in zip([*BACKBONES["vgg16"].convolutions, "fc6", "fc7", "fc8"], layers, strict=False):
        found = got.arrays[f"{layer}/kernel"]
        np.testing.assert_array_equal(found.reshape(kernel.shape) if layer.startswith("fc") else found, kernel)
        np.testing.assert_array_equal(got.arrays[f"{layer}/bias"], bias)


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("parent", ["layers", "layers/functional/layers", "_layer_checkpoint_dependencies"])
def test_keras_3(tmp_path, top, parent):
    write_keras3(tmp_path / "vgg.weights.h5", vgg(top=top), parent)
    passed = "passed over: layers/random_flip/seed_generator/vars/0, optimizer"
    zipped = as_keras_zip(tmp_path / "vgg.keras", (tmp_path / "vgg.weights.h5").read_bytes())
    for path in (tmp_path / "vgg.weights.h5", zipped):
        got = weights.read_file(path)
        check_keras(got, vgg(top=top), top)
        assert got.remarks == ("layers told by their order, as the file does not name them", passed)


@pytest.mark.parametrize("ending", ["", ":0"])
@pytest.mark.parametrize("parent", ["model_weights", "model_weights/vgg16"])
def test_whole_keras_model(tmp_path, ending, parent):
    write_whole(tmp_path / "model.h5", vgg(), parent, ending)
    got = weights.read_file(tmp_path / "model.h5")
    check_keras(got, vgg())
    assert got.remarks == ("passed over: optimizer_weights",)


def test_a_head_of_ones_own_in_keras(tmp_path):
    write_keras3(tmp_path / "w", vgg(top=False))
    with h5py.File(tmp_path / "w", "a") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.ones((2, 3), "f4"), np.ones(3, "f4")
    assert weights.read_file(tmp_path / "w").arrays["layers/dense/kernel"].shape == (2, 3)


def test_other_networks_of_keras(tmp_path):
    path = tmp_path / "w"
    write_keras3(path, vgg()[:12])
    refused(path, "has no block1_conv1, nor 13 convolutions in a row (12 conv2d; conv2d, ", "of Keras' VGG16")
    swapped = vgg()
    swapped[4] = (np.ones((3, 3, 7, 2), "f4"), np.ones(2, "f4"))
    write_keras3(path, swapped)
    refused(path, "nor 13 convolutions in a row")
    swapped[4] = (np.ones((1, 1, 2, 2), "f4"), np.ones(2, "f4"))
    write_keras3(path, swapped)
    refused(path, "nor 13 convolutions in a row")
    write_whole(path, vgg())
    with h5py.File(path, "a") as file:
        file.copy("model_weights/block1_conv1", "model_weights/other/block1_conv1")
    refused(path, "has conv1_1/bias twice")


def test_hdf5_takes_no_more_than_is_in_it(tmp_path):
    path = tmp_path / "w"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 2**30), "f4", chunks=(3, 3, 3, 1024))
    refused(path, "layers/conv2d/vars/0 claims 115964116992 bytes that are not in it")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(216)))
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 2), "f4", external=[(str(secret), 0, 216)])
    refused(path, "that are not in it")
    with h5py.File(path, "w") as file:
        file["layers"] = h5py.ExternalLink(str(secret), "/")
    refused(path, "has no block1_conv1")


def test_keras_zips_that_lie(tmp_path):
    path = as_keras_zip(tmp_path / "w.keras", b"")
    refused(path, "truncated or damaged")
    refused(as_keras_zip(path, b"", "../../model.weights.h5"), "is a zip file without model.weights.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["w.keras"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", b"{}")
        archive.writestr("model.weights.h5", bytes(10**7))
    refused(path, "truncated or damaged (its members claim 10000002 bytes)")


# No weights at all.


def test_files_that_are_no_weights_say_what_to_do(tmp_path):
    path = tmp_path / "w.pth"
    for content, phrase in {
        b"": "(0 bytes) is in no known format: it is empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 553433881\n": "Git LFS, run git lfs pull",
        b"\n<!DOCTYPE html><html>": "it is a web page, as a failed download leaves, get the file itself",
        b"BZh91AY": "it is an archive, unpack it",
        b"\xfd7zXZ\0": "it is an archive, unpack it",
    }.items():
        path.write_bytes(content)
        refused(path, phrase)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("vgg16.pth"))
    refused(path, "it is an archive, unpack it")
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("vgg16.pth"))
    refused(path, "unpack any other archive")
    for member, phrase in (
        ("vgg16.pth", "it is an archive, unpack it"),
        ("folder/vgg16.pth", "unpack any other archive"),
    ):
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(member, b"")
        refused(path, phrase)


# PyTorch's own files.


@pytest.mark.needs("torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_real_objects(tmp_path, zipped):
    import argparse
    import datetime

    import torch

    layer = torch.nn.Conv2d(1, 1, 1)
    state = {f"model._orig_mod.{name}": torch.from_numpy(values) for name, values in fcn8s().items()}
    saved = {"args": argparse.Namespace(path=pathlib.PurePosixPath("a"), best=np.float64(1), dtype=torch.float32)}
    saved |= {"when": datetime.datetime.now(datetime.UTC), "layer": layer, "rng": torch.get_rng_state()}
    saved |= {"eight": torch.ones(2).to(torch.float8_e4m3fn), "complex": torch.ones(2, dtype=torch.complex64)}
    saved |= {"model_state": state, "best_prec1": torch.tensor(71.5)}
    torch.save(saved, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    got = weights.read_file(tmp_path / "w")
    assert got.arrays.keys() == FCN_ARRAYS
    np.testing.assert_array_equal(got.arrays["upscore2/kernel"], fcn8s()["upscore2.weight"].transpose(2, 3, 0, 1))
    assert got.remarks[:2] == ("stripped from names: _orig_mod., model.", "read from: model_state")

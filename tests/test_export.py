"""Each exported file, run by a runtime that knows nothing of the project, gives the library's own logits."""

import dataclasses
import json
import os
import subprocess
import sys

import flags
import jax
import numpy as np
import pytest

from fcn_jax import export, weights
from fcn_jax.models import fcn
from fcn_jax.models.spec import Head, Input, ModelSpec

BOUND = 1e-5  # of the largest logit
# One pixel, tiny, thin, odd, and the canvas of all: no two sides of any size agree.
SIZES = ((1, 1), (2, 3), (29, 7), (33, 32), (65, 47))
CANVAS = (65, 47)


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the tests."""

    network: str
    geometry: str
    upsampling: str
    at_once: bool = False
    mean: tuple[float, ...] = (104.00699, 116.66877, 122.67892)
    inputs: tuple[Input, ...] = ()
    heads: tuple[Head, ...] = ()

    def __str__(self):
        at_once, extra = "atonce" * self.at_once, f"{len(self.mean)}ch" * (len(self.mean) > 3)
        return "-".join(filter(None, (self.network, at_once, self.geometry, self.upsampling, extra)))

    def spec(self, width=4, fc_width=16, classes=3):
        return ModelSpec(
            **vars(self),
            backbone="vgg16",
            width=width,
            fc_width=fc_width,
            class_names=tuple(f"class {i}" for i in range(classes)),
            palette=tuple((i, 2 * i, 3 * i) for i in range(classes)),
        )


NETWORKS = (("fcn32s", False), ("fcn16s", False), ("fcn8s", False), ("fcn8s", True))
CASES = (
    *(
        Case(network, geometry, upsampling, at_once)
        for network, at_once in NETWORKS
        for geometry in ("caffe", "same")
        for upsampling in ("fixed", "learned")
    ),
    Case("fcn4s", "caffe", "learned"),
    Case("fcn4s", "same", "fixed"),
)
# Every network, geometry and upsampling: for the runtimes that compile for each size.
FEW = (
    Case("fcn32s", "caffe", "learned"),
    Case("fcn16s", "same", "learned"),
    Case("fcn8s", "same", "fixed"),
    Case("fcn8s", "caffe", "fixed", at_once=True),
)
DEPTH = Case("fcn8s", "same", "fixed", mean=(104.0, 116.7, 122.7, 7.8))
# Two streams, of which one sees colour and depth, and two heads.
STREAMS = Case(
    "fcn8s",
    "caffe",
    "learned",
    at_once=True,
    mean=(*DEPTH.mean, 132.4, 94.1, 118.5),
    inputs=(Input("colour", 3, "cd"), Input("depth", 1, "cd"), Input("hha", 3, "hha")),
    heads=(Head("sem", 2), Head("geo", 1)),
)


def random_params(spec, seed=0):
    """NumPy parameters with which every layer counts, scores as well: nothing dies or explodes on the way."""
    rng = np.random.default_rng(seed)

    def draw(keys, array):
        layer, name = (key.key for key in keys)
        if name == "bias":
            deviation = 1.0
        elif layer in spec.upsampling_kernels:
            deviation = (4 * array.shape[2]) ** -0.5  # an output is a sum over the inputs at four positions
        else:
            deviation = (2 / np.prod(array.shape[:-1])) ** 0.5
        scale = (
            {"score_pool4": 100, "score_pool3": 10000}.get(layer[:11], 1) if spec.at_once and name == "kernel" else 1
        )
        return (scale * deviation * rng.normal(size=array.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, fcn.abstract_params(spec))


def random_images(channels=3):
    """{name: [B, H, W, C]}: one of each size, and three of the canvas' size; uint8, float32 with further channels."""
    rng = np.random.default_rng(channels)
    batches = {"x".join(map(str, size)): (1, *size) for size in SIZES} | {"batch": (3, *CANVAS)}
    dtype = np.uint8 if channels == 3 else np.float32
    return {name: rng.integers(0, 256, (*shape, channels)).astype(dtype) for name, shape in batches.items()}


def library_logits(case):
    """{name: logits} of `random_images`, in one padded batch, since a compilation for each size takes long."""
    images = random_images(len(case.mean))
    alone = [image for batch in images.values() for image in batch]
    sizes = np.array([image.shape[:2] for image in alone], np.int32)
    canvas = np.zeros((len(alone), *CANVAS, len(case.mean)), alone[0].dtype)
    for row, image in zip(canvas, alone, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    apply = jax.jit(fcn.FCN(case.spec()).apply, compiler_options={"xla_backend_optimization_level": 0})
    rows = iter(np.asarray(apply({"params": random_params(case.spec())}, canvas, sizes)))
    return {name: np.stack([next(rows)[: b.shape[1], : b.shape[2]] for _ in b]) for name, b in images.items()}


@pytest.fixture(scope="module")
def expected():
    """Case -> `library_logits`, computed when asked for first."""
    known = {}

    def logits(case):
        if case not in known:
            known[case] = library_logits(case)
        return known[case]

    return logits


def check(actual, expected, name=""):
    assert actual.dtype == np.float32, name
    assert actual.shape == expected.shape, name
    largest = np.abs(expected).max()
    assert 1e-3 < largest < 1e4, name
    assert np.abs(actual - expected).max() <= BOUND * largest, name


def write(case, format, folder):
    """The exported file of a case."""
    path = folder / f"{case}.{format}"
    export.write(random_params(case.spec()), case.spec(), format, path)
    return path


def is_model_json(text, case):
    assert ModelSpec.from_json(json.loads(text), "here") == case.spec()


def run_alone(script, folder, *arguments, xla_flags):
    """Runs Python code in a process of its own, in a folder away from the project."""
    environment = {**os.environ, "XLA_FLAGS": xla_flags, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr


# Runs each program given on the images of images.npz that are named, and writes <program>.npz.
STABLEHLO = """
import sys
import numpy as np
from jax import export
images = np.load("images.npz")
names, *paths = sys.argv[1:]
for path in paths:
    program = export.deserialize(open(path, "rb").read())
    np.savez(path + ".npz", **{name: program.call(images[name]) for name in names.split()})
assert not any(name.startswith(("fcn_jax", "flax")) for name in sys.modules)
"""


def check_alone(script, format, cases, names, expected, folder):
    """Exports the cases, runs them by the script and compares."""
    images = random_images(len(cases[0].mean))
    np.savez(folder / "images.npz", **images)
    paths = [write(case, format, folder) for case in cases]
    # TensorFlow's XLA is an older one and ends at a flag that it does not know.
    run_alone(script, folder, " ".join(names), *paths, xla_flags=flags.LLVM if format == "savedmodel" else flags.QUICK)
    for case, path in zip(cases, paths, strict=True):
        with np.load(f"{path}.npz") as outputs:
            for name in names:
                check(outputs[name], expected(case)[name], f"{case} {name}")


def test_stablehlo_runs_on_jax_alone(expected, tmp_path):
    check_alone(STABLEHLO, "stablehlo", FEW, ("batch",), expected, tmp_path)


@pytest.mark.slow
def test_stablehlo_runs_on_jax_alone_at_all_sizes(expected, tmp_path):
    """A program is compiled for each size: two networks at all of them, the others at one."""
    check_alone(STABLEHLO, "stablehlo", FEW[2:], tuple(random_images()), expected, tmp_path)
    others = [case for case in CASES if case not in FEW[2:]]
    check_alone(STABLEHLO, "stablehlo", others, ("29x7",), expected, tmp_path)


def test_stablehlo_of_a_network_with_depth(expected, tmp_path):
    check_alone(STABLEHLO, "stablehlo", [DEPTH], ("1x1", "29x7"), expected, tmp_path)


def test_stablehlo_of_two_streams_and_two_heads(expected, tmp_path):
    check_alone(STABLEHLO, "stablehlo", [STREAMS], ("29x7",), expected, tmp_path)


def test_stablehlo_holds_for_three_platforms_and_names_no_folder(tmp_path):
    path = write(FEW[0], "stablehlo", tmp_path)
    program = jax.export.deserialize(path.read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]) == "uint8[batch,height,width,3]"
    assert str(program.out_avals[0]) == "float32[batch,height,width,3]"
    assert os.path.dirname(export.__file__).encode() not in path.read_bytes()
    is_model_json((tmp_path / f"{path.name}.json").read_text(), FEW[0])


SAVEDMODEL = """
import sys
import numpy as np
import tensorflow as tf
images = np.load("images.npz")
names, *paths = sys.argv[1:]
for path in paths:
    serve = tf.saved_model.load(path).signatures["serving_default"]
    outputs = {name: serve(image=tf.constant(images[name]))["logits"].numpy() for name in names.split()}
    np.savez(path + ".npz", **outputs)
assert not any(name.startswith(("fcn_jax", "flax")) for name in sys.modules)
"""


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("cases", [FEW, (DEPTH,), (STREAMS,)], ids=("colour", "depth", "streams"))
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_savedmodel_runs_on_tensorflow_alone(cases, expected, tmp_path):
    check_alone(SAVEDMODEL, "savedmodel", cases, ("1x1", "batch"), expected, tmp_path)
    is_model_json((tmp_path / f"{cases[0]}.savedmodel" / "assets.extra" / "model.json").read_text(), cases[0])


@pytest.mark.needs("tensorflow")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_savedmodel_runs_on_tensorflow_alone_at_all_sizes(expected, tmp_path):
    check_alone(SAVEDMODEL, "savedmodel", CASES, tuple(random_images()), expected, tmp_path)


@pytest.mark.needs("onnx", "onnxruntime")
@pytest.mark.parametrize("case", [*CASES, DEPTH, STREAMS], ids=str)
def test_onnx_runs_on_onnxruntime(case, expected, tmp_path):
    import onnx
    import onnxruntime

    path = write(case, "onnx", tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    is_model_json(session.get_modelmeta().custom_metadata_map["fcn_jax"], case)
    for name, images in random_images(len(case.mean)).items():
        (logits,) = session.run(None, {"image": images})
        check(logits, expected(case)[name])


@pytest.mark.needs("onnx")
def test_onnx_has_the_names_and_shapes_of_the_release(tmp_path):
    import onnx

    case = Case("fcn8s", "caffe", "fixed", True)
    model = onnx.load(write(case, "onnx", tmp_path))
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    initializers = {value.name: tuple(value.dims) for value in model.graph.initializer}
    assert initializers["conv1_1.weight"] == (4, 3, 3, 3)
    assert initializers["fc6.weight"] == (16, 32, 7, 7)
    assert initializers["upscore8.weight"] == (3, 1, 16, 16)
    nodes = {node.name: node.op_type for node in model.graph.node}
    assert all(node.output == [node.name] for node in model.graph.node)
    release = {
        **{"conv1_1": "Conv", "relu1_1": "Relu", "pool5": "MaxPool", "fc7": "Conv", "score_fr": "Conv"},
        **{"upscore2": "ConvTranspose", "scale_pool4": "Mul", "score_pool4c": "Slice", "fuse_pool4": "Add"},
        **{"upscore_pool4": "ConvTranspose", "fuse_pool3": "Add", "upscore8": "ConvTranspose", "score": "Slice"},
    }
    assert release.items() <= nodes.items()
    assert {node.domain for node in model.graph.node} == {""}


def torch_model(case, state, **sizes):
    """tests/torch_reference.py's network with a state dict, loaded strictly."""
    import torch_reference

    spec = case.spec(**sizes)
    model = torch_reference.NETWORKS[case.network](len(spec.class_names), spec.width, spec.fc_width, case.at_once)
    model.load_state_dict(state)
    return model


def torch_logits(model, images):
    """uint8 [B, H, W, 3] -> [B, H, W, classes]."""
    import torch
    import torch_reference

    torch.set_num_threads(1)  # where layers are this small, threads cost ten times what they save
    with torch.no_grad():
        rows = [model(torch_reference.preprocess(image))[0].permute(1, 2, 0).numpy() for image in images]
    return np.stack(rows)


CAFFE = tuple(case for case in CASES if case.geometry == "caffe")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("case", CAFFE, ids=str)
def test_torchfcn_runs_on_pytorch(case, expected, tmp_path):
    import torch

    path = tmp_path / "network.pth"
    export.torchfcn.write(path, random_params(case.spec()), case.spec())  # narrow, which `check` refuses
    assert path.read_bytes()[:2] != b"PK", "the zip file that PyTorch before 1.6 does not read"
    state = torch.load(path, weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    model = torch_model(case, state)
    for name in ("1x1", "33x32", "batch"):
        check(torch_logits(model, random_images()[name]), expected(case)[name])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("case", CAFFE, ids=str)
def test_safetensors_run_on_pytorch(case, expected, tmp_path):
    from safetensors.torch import load_file

    model = torch_model(case, load_file(write(case, "safetensors", tmp_path)))
    for name in ("2x3", "29x7", "65x47"):
        check(torch_logits(model, random_images()[name]), expected(case)[name])


@pytest.mark.parametrize("case", [*CASES, DEPTH, STREAMS], ids=str)
def test_safetensors_are_read_back(case, tmp_path):
    found = weights.read(str(write(case, "safetensors", tmp_path)), tmp_path / "cache")
    assert ModelSpec.from_json(found.model, "here") == case.spec()
    params = random_params(case.spec())
    for layer, arrays in params.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.arrays[f"{layer}/{name}"], array)
    added = found.arrays.keys() - {f"{layer}/{name}" for layer, arrays in params.items() for name in arrays}
    upscores = {f"{layer}/kernel" for layer in case.spec().upsampling_kernels}
    assert added == (upscores if case.upsampling == "fixed" else set())


def test_safetensors_have_the_layouts_of_pytorch(tmp_path):
    import safetensors

    with safetensors.safe_open(write(CAFFE[0], "safetensors", tmp_path), "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"F32"}
        assert file.metadata()["format"] == "pt"
    assert shapes["conv1_2.weight"] == (4, 4, 3, 3)
    assert shapes["conv1_2.bias"] == (4,)
    assert shapes["fc6.weight"] == (16, 32, 7, 7)
    assert shapes["upscore.weight"] == (3, 3, 64, 64)


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_torchfcn_of_full_width(tmp_path):
    import torch

    case, sizes = Case("fcn8s", "caffe", "fixed"), {"width": 64, "fc_width": 4096, "classes": 21}
    spec, path = case.spec(**sizes), tmp_path / "fcn8s.pth"
    params = random_params(spec)
    export.write(params, spec, "torchfcn", path)
    assert ModelSpec.from_json(json.loads((tmp_path / "fcn8s.pth.json").read_text()), "here") == spec
    model = torch_model(case, torch.load(path, weights_only=True), **sizes)
    images = random_images()["29x7"]
    expected = np.asarray(jax.jit(fcn.FCN(spec).apply)({"params": params}, images))
    check(torch_logits(model, images), expected)

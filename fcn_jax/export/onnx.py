"""An ONNX file, opset 13 and IR version 7: what runtimes since ONNX 1.8 (end of 2020) read.

Nodes and initializers carry the release's names: conv1_1, relu1_1, pool1, score_fr, upscore2, score_pool4c, fuse_pool4.
Fixed upsampling is a grouped transposed convolution, a bilinear filter for each class.
"""

import pathlib
from typing import Any

import numpy as np

from fcn_jax.export import common
from fcn_jax.models import fcn, upsample, vgg
from fcn_jax.models.spec import ModelSpec

CARRIES_MODEL_JSON = True
OPSET = 13
IR_VERSION = 7


def check(spec: ModelSpec) -> None:
    """ValueError for a backbone that is not VGG16, and if the package onnx is missing."""
    if spec.backbone not in _ENCODERS:
        raise ValueError(f"--format=onnx has no backbone {spec.backbone!r}: --format=stablehlo has every one")
    _onnx()


def write(path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """Raises ValueError if the parameters take more than 2 GiB."""
    common.refuse_larger_than_2_gib(params, "onnx")
    path.write_bytes(_model(params, spec).SerializeToString())


def usage(path: pathlib.Path, spec: ModelSpec) -> str:
    """How to run it."""
    return f"import onnxruntime; logits, = onnxruntime.InferenceSession({str(path)!r}).run(None, {{'image': image}})"


class _Graph:
    """Nodes and initializers, in order. A node has one output, which bears the node's name."""

    def __init__(self, params: Any, spec: ModelSpec):
        self.onnx, self.params, self.spec = _onnx(), params, spec
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node; returns its name."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer; returns its name."""
        self.initializers.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def integers(self, name: str, *values: int) -> str:
        """Adds an initializer int64 [n]; returns its name."""
        return self.constant(name, np.array(values, np.int64))

    def conv(self, x: str, name: str, padding: int = 0) -> str:
        """The convolution `name` with bias, stride 1."""
        kernel, bias = self.params[name]["kernel"], self.params[name]["bias"]
        weight = self.constant(f"{name}.weight", common.torch_kernel(kernel))
        inputs = [x, weight, self.constant(f"{name}.bias", np.array(bias))]
        return self.node("Conv", inputs, name, kernel_shape=kernel.shape[:2], pads=[padding] * 4)

    def crop(self, x: str, name: str, offset: int, like: str, axes: str = "height_width") -> str:
        """x from `offset` on, of the height and width of `like`, which are its dimensions `axes`."""
        start = self.integers(f"{name}_start", offset, offset)
        shape = self.node("Shape", [like], f"{name}_shape")
        size = self.node("Gather", [shape, axes], f"{name}_size")
        end = self.node("Add", [size, start], f"{name}_end")
        return self.node("Slice", [x, start, end, "height_width"], name)


def _model(params: Any, spec: ModelSpec) -> Any:
    """The ModelProto."""
    graph = _Graph(params, spec)
    graph.integers("height_width", 2, 3)
    graph.integers("image_height_width", 1, 2)
    maps = _ENCODERS[spec.backbone](graph, _preprocess(graph))
    x = graph.conv(maps["fc7"], "score_fr")
    for skip in fcn.SKIPS[spec.network]:
        x = _fuse(graph, x, maps[skip], skip)
    x = _upsample(graph, x, fcn.FINAL_NAME[spec.network])
    offset = fcn.FINAL_OFFSET[spec.network] if spec.geometry == "caffe" else 0
    x = graph.crop(x, "score", offset, "image", "image_height_width")
    graph.node("Transpose", [x], "logits", perm=(0, 2, 3, 1))
    return _finished(graph)


def _finished(graph: _Graph) -> Any:
    """The ModelProto of `image` -> `logits`."""
    spec, helper, sizes = graph.spec, graph.onnx.helper, ["batch", "height", "width"]
    dtype = helper.np_dtype_to_tensor_dtype(common.image_dtype(spec))
    image = helper.make_tensor_value_info("image", dtype, [*sizes, len(spec.mean)])
    logits = helper.make_tensor_value_info("logits", graph.onnx.TensorProto.FLOAT, [*sizes, len(spec.class_names)])
    body = helper.make_graph(graph.nodes, spec.network, [image], [logits], graph.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, producer_name="fcn_jax", ir_version=IR_VERSION, opset_imports=opsets)
    helper.set_model_props(model, {common.MODEL_KEY: common.model_json(spec)})
    return model


def _preprocess(graph: _Graph) -> str:
    """`image` as BGR minus the mean, NCHW."""
    mean = np.array(graph.spec.mean, np.float32)
    order = graph.integers("bgr_order", 2, 1, 0, *range(3, len(mean)))
    x = graph.node("Gather", ["image", order], "bgr", axis=3)
    x = graph.node("Cast", [x], "float", to=graph.onnx.TensorProto.FLOAT)
    x = graph.node("Sub", [x, graph.constant("mean", mean)], "data")
    return graph.node("Transpose", [x], "data_nchw", perm=(0, 3, 1, 2))


def _encode_vgg16(graph: _Graph, x: str) -> dict[str, str]:
    """As `vgg.encode`: {'pool3', 'pool4', 'fc7': value}."""
    caffe = graph.spec.geometry == "caffe"
    maps = {}
    for block, convolutions, _ in vgg.BLOCKS:
        for index in range(1, convolutions + 1):
            name = f"{block}_{index}"
            x = graph.conv(x, f"conv{name}", vgg.BORDER if caffe and name == "1_1" else 1)
            x = graph.node("Relu", [x], f"relu{name}")
        x = graph.node("MaxPool", [x], f"pool{block}", kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1)
        maps[x] = x
    for name, padding in (("6", 0 if caffe else 3), ("7", 0)):
        x = graph.node("Relu", [graph.conv(x, f"fc{name}", padding)], f"relu{name}")
    return {"pool3": maps["pool3"], "pool4": maps["pool4"], "fc7": x}


_ENCODERS = {"vgg16": _encode_vgg16}


def _fuse(graph: _Graph, x: str, feature: str, skip: str) -> str:
    """As `FCN._fuse`: scores, upsampled by two, plus the scores of a finer level."""
    if graph.spec.at_once:
        scale = graph.constant(f"scale_{skip}.weight", np.array(fcn.AT_ONCE_SCALE[skip], np.float32))
        feature = graph.node("Mul", [feature, scale], f"scale_{skip}")
    score = graph.conv(feature, f"score_{skip}")
    up = _upsample(graph, x, fcn.SKIP_UPSCORE[skip])
    if graph.spec.geometry == "caffe":
        score = graph.crop(score, f"score_{skip}c", fcn.SKIP_OFFSET[skip], up)
    else:
        up = graph.crop(up, f"{up}c", 0, score)
    return graph.node("Add", [up, score], f"fuse_{skip}")


def _upsample(graph: _Graph, x: str, name: str) -> str:
    """(n + 1) s in `caffe` geometry; in `same` the s n in the middle."""
    stride, classes = common.upsampling_strides(graph.spec)[name], len(graph.spec.class_names)
    fixed = graph.spec.upsampling == "fixed"
    if fixed:
        kernel = np.repeat(upsample.bilinear_kernel(stride, 1).transpose(2, 3, 0, 1), classes, 0)
    else:
        kernel = common.torch_kernel(graph.params[name]["kernel"], transposed=True)
    return graph.node(
        "ConvTranspose",
        [x, graph.constant(f"{name}.weight", kernel)],
        name,
        group=classes if fixed else 1,
        kernel_shape=(2 * stride, 2 * stride),
        strides=(stride, stride),
        pads=[0 if graph.spec.geometry == "caffe" else stride // 2] * 4,
    )


def _onnx() -> Any:
    return common.require("onnx", "onnx", "pip install 'fcn_jax[export]'")

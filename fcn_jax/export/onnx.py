"""An ONNX file, opset 13 and IR version 7: what runtimes since ONNX 1.8 (end of 2020) read.

Nodes and initializers carry the release's names: conv1_1, relu1_1, pool1, score_fr, upscore2, score_pool4c, fuse_pool4.
Fixed upsampling is a grouped transposed convolution, a bilinear filter for each class.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcn_jax.export import common
from fcn_jax.models import fcn, upsample
from fcn_jax.models.grid import Grid, stride_of
from fcn_jax.models.layers import Layers, Map
from fcn_jax.models.spec import ModelSpec

CARRIES_MODEL_JSON = True
OPSET = 13
IR_VERSION = 7


def check(spec: ModelSpec) -> None:
    """ValueError if the package onnx is missing."""
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

    def crop(self, x: str, name: str, offset: int, like: str, axes: str = "height_width") -> str:
        """x from `offset` on, of the height and width of `like`, which are its dimensions `axes`."""
        start = self.integers(f"{name}_start", offset, offset)
        shape = self.node("Shape", [like], f"{name}_shape")
        size = self.node("Gather", [shape, axes], f"{name}_size")
        end = self.node("Add", [size, start], f"{name}_end")
        return self.node("Slice", [x, start, end, "height_width"], name)


@dataclasses.dataclass(frozen=True)
class _Layers(Layers):
    """Layers that add nodes instead of computing: what their maps hold is the name of a value."""

    graph: _Graph = dataclasses.field(kw_only=True)

    def conv(
        self,
        m: Map,
        name: str,
        features: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        zero: bool = False,
    ) -> Map:
        kernel, bias = self.graph.params[name]["kernel"], self.graph.params[name]["bias"]
        weight = self.graph.constant(f"{name}.weight", common.torch_kernel(kernel))
        inputs = [m.x, weight, self.graph.constant(f"{name}.bias", np.array(bias))]
        window = _window(size, stride, self.pads(size, padding))
        x = self.graph.node("Conv", inputs, name, group=groups, **window)
        return Map(x, None, m.grid.windows(size, stride, padding))

    def relu(self, m: Map) -> Map:
        release = str(m.x).replace("conv", "relu").replace("fc", "relu")
        return m.with_cells(self.graph.node("Relu", [m.x], release if release != m.x else f"relu_{m.x}"))

    def max_pool(self, m: Map, name: str, size: int, *, stride: int = 2, padding: int = 0) -> Map:
        window = _window(size, stride, self.pads(size, padding, beyond=stride - 1))
        x = self.graph.node("MaxPool", [m.x], name, **window)
        return Map(x, None, m.grid.windows(size, stride, padding))

    def concatenate(self, maps: Sequence[Map], name: str) -> Map:
        return maps[0].with_cells(self.graph.node("Concat", [m.x for m in maps], name, axis=1))

    def local_response_norm(self, m: Map, name: str) -> Map:
        return m.with_cells(self.graph.node("LRN", [m.x], name, size=5, alpha=1e-4, beta=0.75))

    def drop(self, m: Map) -> Map:
        return m


def _window(size: int, stride: int, pads: tuple[int, int]) -> dict[str, Any]:
    """The attributes of a square window."""
    before, after = pads
    return {"kernel_shape": (size, size), "strides": (stride, stride), "pads": (before, before, after, after)}


def _model(params: Any, spec: ModelSpec) -> Any:
    """The ModelProto; as FCN.__call__."""
    graph = _Graph(params, spec)
    graph.integers("height_width", 2, 3)
    graph.integers("image_height_width", 1, 2)
    layers = _Layers(spec.geometry == "caffe", np.float32, graph=graph)
    maps = fcn.ENCODERS[spec.backbone](Map(_preprocess(graph), None), layers, spec.width, spec.fc_width)
    m = layers.conv(maps[spec.last], "score_fr", len(spec.class_names), 1)
    *between, last = spec.upsampling_kernels.items()
    for (name, size), skip in zip(between, spec.skips, strict=True):
        m = _fuse(graph, _upsample(graph, m, name, size), _scored(layers, maps[skip], skip), skip)
    m = _upsample(graph, m, *last)
    score = graph.crop(m.x, "score", m.grid.offset(Grid()), "image", "image_height_width")
    graph.node("Transpose", [score], "logits", perm=(0, 2, 3, 1))
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


def _scored(layers: _Layers, m: Map, skip: str) -> Map:
    graph = layers.graph
    if graph.spec.at_once:
        scale = graph.constant(f"scale_{skip}.weight", np.array(graph.spec.scale(skip), np.float32))
        m = m.with_cells(graph.node("Mul", [m.x, scale], f"scale_{skip}"))
    return layers.conv(m, f"score_{skip}", len(graph.spec.class_names), 1)


def _fuse(graph: _Graph, a: Map, b: Map, skip: str) -> Map:
    """As layers.add."""
    larger, smaller = (a, b) if a.grid.start <= b.grid.start else (b, a)
    cropped = graph.crop(larger.x, f"{larger.x}c", larger.grid.offset(smaller.grid), smaller.x)
    return smaller.with_cells(graph.node("Add", [cropped, smaller.x], f"fuse_{skip}"))


def _upsample(graph: _Graph, m: Map, name: str, size: int) -> Map:
    stride, classes = stride_of(size), len(graph.spec.class_names)
    fixed = graph.spec.upsampling == "fixed"
    if fixed:
        kernel = np.repeat(upsample.bilinear_kernel(size, 1).transpose(2, 3, 0, 1), classes, 0)
    else:
        kernel = common.torch_kernel(graph.params[name]["kernel"], transposed=True)
    x = graph.node(
        "ConvTranspose",
        [m.x, graph.constant(f"{name}.weight", kernel)],
        name,
        group=classes if fixed else 1,
        kernel_shape=(size, size),
        strides=(stride, stride),
    )
    return Map(x, None, m.grid.upsampled(size))


def _onnx() -> Any:
    return common.require("onnx", "onnx", "pip install 'fcn_jax[export]'")

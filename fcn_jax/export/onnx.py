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
from fcn_jax.models.spec import Head, ModelSpec

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
    ) -> Map:
        name += self.suffix
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
        x = self.graph.node("MaxPool", [m.x], name + self.suffix, **window)
        return Map(x, None, m.grid.windows(size, stride, padding))

    def concatenate(self, maps: Sequence[Map], name: str) -> Map:
        return maps[0].with_cells(self.graph.node("Concat", [m.x for m in maps], name + self.suffix, axis=1))

    def local_response_norm(self, m: Map, name: str) -> Map:
        return m.with_cells(self.graph.node("LRN", [m.x], name + self.suffix, size=5, alpha=1e-4, beta=0.75))

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
    streams = {}
    for stream in spec.streams:
        layers = _Layers(spec.geometry == "caffe", np.float32, suffix=stream, graph=graph)
        data = Map(_preprocess(graph, stream), None)
        streams[stream] = fcn.ENCODERS[spec.backbone](data, layers, spec.width, spec.fc_width)
    scores = [_decode(graph, streams, head) for head, _ in spec.outputs]
    whole = graph.node("Concat", scores, "score", axis=1) if len(scores) > 1 else scores[0]
    graph.node("Transpose", [whole], "logits", perm=(0, 2, 3, 1))
    return _finished(graph)


def _decode(graph: _Graph, streams: dict[str, dict[str, Map]], head: Head) -> str:
    """The scores of one head."""
    spec, suffix = graph.spec, head.suffix
    m = _score(graph, streams, "score_fr", spec.last, head)
    *between, last = spec.kernels(head).items()
    for (name, size), skip in zip(between, spec.skips, strict=True):
        score = _score(graph, streams, f"score_{skip}", skip, head, spec.scale(skip))
        m = _fuse(graph, _upsample(graph, m, name, size, head), score, f"fuse_{skip}{suffix}")
    m = _upsample(graph, m, *last, head)
    return graph.crop(m.x, f"score{suffix}", m.grid.offset(Grid()), "image", "image_height_width")


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


def _preprocess(graph: _Graph, stream: str) -> str:
    """What a stream sees of `image`, NCHW; as layers.preprocess."""
    parts = []
    for given, place in graph.spec.streams[stream]:
        name = f"{given.name}{stream}"
        channels = list(range(place.start, place.stop))
        if given.name == "colour":
            channels.reverse()
        x = graph.node("Gather", ["image", graph.integers(f"{name}_channels", *channels)], name, axis=3)
        x = graph.node("Cast", [x], f"{name}_float", to=graph.onnx.TensorProto.FLOAT)
        if given.name == "depth":
            x = graph.node("Max", [x, graph.constant(f"{name}_least", np.ones(1, np.float32))], f"{name}_max")
            x = graph.node("Log", [x], f"{name}_log")
        if given.scale != 1:
            scale = graph.constant(f"{name}_scale", np.array([given.scale], np.float32))
            x = graph.node("Mul", [x, scale], f"{name}_scaled")
        mean = graph.constant(f"{name}_mean", np.array(graph.spec.mean[place], np.float32))
        parts.append(graph.node("Sub", [x, mean], f"{name}_data"))
    x = graph.node("Concat", parts, f"data{stream}", axis=3) if len(parts) > 1 else parts[0]
    return graph.node("Transpose", [x], f"data{stream}_nchw", perm=(0, 3, 1, 2))


def _score(
    graph: _Graph, streams: dict[str, dict[str, Map]], name: str, of: str, head: Head, scale: float = 1.0
) -> Map:
    """As FCN._score."""
    maps = []
    for stream, encoded in streams.items():
        m, suffix = encoded[of], stream + head.suffix
        if scale != 1:
            factor = graph.constant(f"scale_{of}{suffix}.weight", np.array(scale, np.float32))
            m = m.with_cells(graph.node("Mul", [m.x, factor], f"scale_{of}{suffix}"))
        layers = _Layers(graph.spec.geometry == "caffe", np.float32, suffix=suffix, graph=graph)
        maps.append(layers.conv(m, name, head.classes, 1))
    if len(maps) == 1:
        return maps[0]
    fused = f"{name}_fused{head.suffix}"
    return maps[0].with_cells(graph.node("Mean", [m.x for m in maps], fused))


def _fuse(graph: _Graph, a: Map, b: Map, name: str) -> Map:
    """As layers.add."""
    larger, smaller = (a, b) if a.grid.start <= b.grid.start else (b, a)
    cropped = graph.crop(larger.x, f"{larger.x}c", larger.grid.offset(smaller.grid), smaller.x)
    return smaller.with_cells(graph.node("Add", [cropped, smaller.x], name))


def _upsample(graph: _Graph, m: Map, name: str, size: int, head: Head) -> Map:
    stride, classes = stride_of(size), head.classes
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

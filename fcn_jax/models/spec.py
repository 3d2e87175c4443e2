"""What a network is, as data: the choices, what they mean, and model.json, which carries them.

Evaluation, prediction and export need nothing else to build a network around its parameters.
"""

import dataclasses
import itertools
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcn_jax import json_file

FORMAT_VERSION = 1
# BGR mean of PASCAL VOC's training images, as in the release's data layers.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What an encoder is to the rest.

    Attributes:
      first: the layer that sees the image.
      skips: its maps of stride 16, 8 and 4, which FCN-16s, FCN-8s and FCN-4s score too.
      fc6: size of the map that fc6 saw when it was fully connected, 0 without it.
      last: its map of stride 32.
      odd_kernels: cells lie at whole pixels, so that bilinear kernels of 2s - 1 and not of 2s make whole crops.
      multiple: of what `width` must be.
      convolutions: of the classifier, in order, where weight files number them.
    """

    first: str
    skips: tuple[str, ...]
    fc6: int
    last: str = "fc7"
    odd_kernels: bool = False
    multiple: int = 1
    convolutions: tuple[str, ...] = ()


# The convolutions of VGG16, block after block: its number, how many, and their channels as a multiple of `width`.
VGG16_BLOCKS = ((1, 2, 1), (2, 2, 2), (3, 3, 4), (4, 3, 8), (5, 3, 8))
_VGG16 = tuple(f"conv{block}_{index + 1}" for block, count, _ in VGG16_BLOCKS for index in range(count))
_ALEXNET = tuple(f"conv{index}" for index in range(1, 6))

BACKBONES = {
    "vgg16": Backbone("conv1_1", ("pool4", "pool3", "pool2"), fc6=7, convolutions=_VGG16),
    "alexnet": Backbone("conv1", (), fc6=6, odd_kernels=True, multiple=2, convolutions=_ALEXNET),
    "alexnet_torchvision": Backbone("conv1", (), fc6=6, odd_kernels=True, convolutions=_ALEXNET),
    "googlenet": Backbone("conv1_7x7_s2", ("inception_4e", "inception_3b"), 0, "inception_5b", odd_kernels=True),
}


def initialised(layer: str) -> str:
    """How a layer starts, which its name tells: `bilinear`, `zero` (scores) or `random`."""
    if layer.startswith("upscore"):
        return "bilinear"
    return "zero" if layer.startswith("score") else "random"


@dataclasses.dataclass(frozen=True)
class Input:
    """Some of an image's channels, in a row.

    Attributes:
      name: what they show. The network takes `colour`, which is RGB, as BGR, and of `depth` the logarithm.
      channels: how many they are.
      stream: suffix of the layers that see them. Inputs of one stream are seen together (early fusion); the scores of
        several streams are averaged (late fusion).
      scale: what values are multiplied by before the mean is subtracted, so that they are of the size of colours.
    """

    name: str
    channels: int
    stream: str = ""
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Head:
    """Some of the classes, in a row, of which each pixel has one; its layers are score_fr_<name> and so on.

    Attributes:
      name: empty where it is the only one, whose layers have no suffix.
      classes: how many they are.
    """

    name: str
    classes: int

    @property
    def suffix(self) -> str:
        """Of its layers."""
        return f"_{self.name}" if self.name else ""


# And how many skips they fuse, from the deepest on. FCN-4s is not in the paper, which found no gain beyond FCN-8s.
NETWORKS = {"fcn32s": 0, "fcn16s": 1, "fcn8s": 2, "fcn4s": 3}
GEOMETRIES = ("caffe", "same")
UPSAMPLINGS = ("fixed", "learned")
# voc-fcn8s-atonce scales the skips down before they are scored, so that they start small; the third goes on like it.
AT_ONCE_SCALES = (0.01, 0.0001, 1e-6)

CHOICES = {
    "network": tuple(NETWORKS),
    "backbone": tuple(BACKBONES),
    "geometry": GEOMETRIES,
    "upsampling": UPSAMPLINGS,
}


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_whole(part, 0, 255) for part in value)


def _is_channel(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= 255 and all(map(check, value))


def _is_input(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    value = {"scale": 1.0, **value}
    named = _is_record(value, Input) and _is_name(value["name"]) and _is_name(value["stream"], least=0)
    return named and _is_channel(value["scale"]) and value["scale"] > 0


def _is_head(value: Any) -> bool:
    return _is_record(value, Head) and _is_name(value["name"])


def _is_record(value: Any, kind: type) -> bool:
    """Of text, and of one whole number from 1 to 255."""
    names = {field.name: field.type for field in dataclasses.fields(kind)}
    return (
        isinstance(value, dict)
        and value.keys() == names.keys()
        and all(_is_whole(value[name], 1, 255) for name, type_ in names.items() if type_ is int)
    )


def _is_name(value: Any, least: int = 1) -> bool:
    return isinstance(value, str) and least <= len(value) <= 100 and re.fullmatch(r"[a-z0-9_]*", value) is not None


def _sums_to(parts: Sequence[int], whole: int) -> bool:
    return not parts or sum(parts) == whole


_WIDTH = (lambda value: _is_whole(value, 1, 2**16), "a whole number from 1 to 65536")
# What the others must be, and how that is said; 255 is void.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "at_once": (lambda value: isinstance(value, bool), "true or false"),
    "width": _WIDTH,
    "fc_width": _WIDTH,
    "class_names": (_list_of(lambda name: isinstance(name, str) and name.isprintable()), "1 to 255 printable names"),
    "palette": (_list_of(_is_colour), "1 to 255 colours of three whole numbers from 0 to 255"),
    "mean": (_list_of(_is_channel), "one number per input channel"),
    "inputs": (lambda value: value in ((), []) or _list_of(_is_input)(value), "a list of name, channels and stream"),
    "heads": (lambda value: value in ((), []) or _list_of(_is_head)(value), "a list of name and classes"),
}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """All that shapes the parameters of a network or its output, and what its classes are called.

    Attributes:
      network: a key of NETWORKS.
      backbone: a key of BACKBONES.
      geometry: `caffe` or `same`.
      at_once: scale the skips as the at-once network does.
      upsampling: `fixed` (bilinear, no parameters) or `learned` (dense kernels that start bilinear).
      width, fc_width: channels of the first layer and of fc6 and fc7; 64 and 4096 are VGG16.
      class_names, palette: name and colour (RGB 0..255) of each class, those of several heads side by side.
      mean: (B, G, R), subtracted from the image; each further value is the mean of a further channel.
      inputs: what the channels are; empty: RGB, and further channels as they are, in one stream.
      heads: how the classes are divided; empty: into one head of all.
    """

    network: str
    backbone: str
    geometry: str
    at_once: bool
    upsampling: str
    width: int
    fc_width: int
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...] = MEAN_BGR
    inputs: tuple[Input, ...] = ()
    heads: tuple[Head, ...] = ()

    @property
    def streams(self) -> dict[str, list[tuple[Input, slice]]]:
        """{stream: its inputs, and where their channels are in the image}."""
        extra = len(self.mean) - 3
        inputs = self.inputs or (Input("colour", 3), *([Input("more", extra)] if extra > 0 else []))
        result: dict[str, list[tuple[Input, slice]]] = {}
        for given, place in zip(inputs, _places([given.channels for given in inputs]), strict=True):
            result.setdefault(given.stream, []).append((given, place))
        return result

    @property
    def input_names(self) -> tuple[str, ...]:
        """What images are made of, in the order of their channels."""
        return tuple(given.name for stream in self.streams.values() for given, _ in stream)

    @property
    def outputs(self) -> list[tuple[Head, slice]]:
        """The heads, and where their classes are in the logits."""
        heads = self.heads or (Head("", len(self.class_names)),)
        return list(zip(heads, _places([head.classes for head in heads]), strict=True))

    @property
    def skips(self) -> tuple[str, ...]:
        """The maps that are scored beside the last one, from the deepest on."""
        return BACKBONES[self.backbone].skips[: NETWORKS[self.network]]

    @property
    def last(self) -> str:
        """The map of stride 32."""
        return BACKBONES[self.backbone].last

    def scale(self, skip: str) -> float:
        """What a skip is multiplied by before it is scored."""
        return AT_ONCE_SCALES[self.skips.index(skip)] if self.at_once else 1.0

    def kernels(self, head: Head) -> dict[str, int]:
        """{layer of a head: size of its upsampling kernel} in order: by 2 to each skip, and the rest."""
        skips, odd = self.skips, BACKBONES[self.backbone].odd_kernels
        stride = 32 >> len(skips)
        names = ("upscore2", *(f"upscore_{skip}" for skip in skips[:-1]))[: len(skips)]
        last = f"upscore{stride}" if skips else "upscore"
        sizes = {**dict.fromkeys(names, 4 - odd), last: 2 * stride - odd}
        return {f"{name}{head.suffix}": size for name, size in sizes.items()}

    @property
    def upsampling_kernels(self) -> dict[str, int]:
        """The same of all heads; they are parameters where upsampling is learned."""
        return {name: size for head, _ in self.outputs for name, size in self.kernels(head).items()}

    def to_json(self) -> dict[str, Any]:
        """What model.json holds: of a network with one input and one head no word of either."""
        fields = dataclasses.asdict(self)
        for given in fields["inputs"]:
            if given["scale"] == 1:  # as it was before there were scales
                del given["scale"]
        optional = ("inputs", "heads")
        return {"format_version": FORMAT_VERSION, **{k: v for k, v in fields.items() if v or k not in optional}}

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> "ModelSpec":
        """Raises ValueError naming `where` if the data are not those of a model that this version can build."""
        fields = {field.name for field in dataclasses.fields(cls)}
        data = dict(data)
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            found = reprlib.repr(version)
            raise ValueError(f"{where}: format_version {found}, but this version of fcn_jax reads {FORMAT_VERSION}")
        data = {"mean": MEAN_BGR, "inputs": [], "heads": [], **data}  # model.json does not always have them
        if data.keys() != fields:
            raise ValueError(f"{where}: keys {reprlib.repr(sorted(data.keys() ^ fields))} are missing or unknown")
        for key, choices in CHOICES.items():
            if data[key] not in choices:
                found = reprlib.repr(data[key])
                raise ValueError(f"{where}: {key} {found} is unknown, choose from {', '.join(choices)}")
        for key, (holds, wanted) in _RULES.items():
            if not holds(data[key]):
                raise ValueError(f"{where}: {key} is {reprlib.repr(data[key])}, wanted {wanted}")
        classes, colours = len(data["class_names"]), len(data["palette"])
        if classes != colours:
            raise ValueError(f"{where}: there are {classes} class_names but {colours} colours in the palette")
        data["inputs"] = tuple(Input(**item) for item in data["inputs"])
        data["heads"] = tuple(Head(**item) for item in data["heads"])
        for key, parts, whole in (
            ("inputs", [item.channels for item in data["inputs"]], len(data["mean"])),
            ("heads", [item.classes for item in data["heads"]], classes),
        ):
            if not _sums_to(parts, whole):
                raise ValueError(f"{where}: {key} have {sum(parts)} parts, and there are {whole}")
        reason = misfit(data["network"], data["backbone"], data["width"])
        if reason:
            raise ValueError(f"{where}: {reason}")
        data["mean"] = tuple(data["mean"])
        data["class_names"] = tuple(data["class_names"])
        data["palette"] = tuple(tuple(colour) for colour in data["palette"])
        return cls(**data)

    def differences(self, other: "ModelSpec") -> list[str]:
        """'width: 8 is not 16' for each attribute that differs."""
        pairs = zip(dataclasses.asdict(self).items(), dataclasses.asdict(other).values(), strict=True)
        return [f"{key}: {mine!r} is not {theirs!r}" for (key, mine), theirs in pairs if mine != theirs]


def _places(lengths: Sequence[int]) -> list[slice]:
    """Where parts of such lengths are, side by side."""
    ends = list(itertools.accumulate(lengths))
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def misfit(network: str, backbone: str, width: int) -> str:
    """Why there is no such network on a backbone, empty if there is."""
    found = BACKBONES[backbone]
    if NETWORKS[network] > len(found.skips):
        names = [name for name, skips in NETWORKS.items() if skips <= len(found.skips)]
        return f"network {network!r} needs skips that {backbone} has not, choose from {', '.join(names)}"
    if width % found.multiple:
        return f"width {width} must be a multiple of {found.multiple} for {backbone}"
    return ""


def parse_inputs(
    text: str, means: Mapping[str, Sequence[float]], scales: Mapping[str, float] | None = None
) -> tuple[tuple[Input, ...], tuple[float, ...]]:
    """What `colour`, `colour+depth` (one stream that sees both) or `colour/hha` (two streams) describe.

    Args:
      means: {name: mean of each channel} of the inputs that there are; empty for those of VOC's colour.
      scales: {name: scale} of inputs that have one other than 1.

    Returns:
      (inputs, mean), the inputs empty for colour alone. The streams of several are named by their inputs; `colour` is
      `color` in the names of layers, as the release has them.

    Raises:
      ValueError: no such input, or one twice.
    """
    inputs: list[Input] = []
    mean: list[float] = []
    streams = [stream.split("+") for stream in text.split("/")]
    for names in streams:
        suffix = "_".join(names).replace("colour", "color") if len(streams) > 1 else ""
        for name in names:
            if name not in means or any(given.name == name for given in inputs):
                raise ValueError(
                    f"config.inputs has {text!r}: give each of {', '.join(means)} at most once, + between those of one"
                    " stream and / between streams"
                )
            found = tuple(means[name]) or MEAN_BGR
            inputs.append(Input(name, len(found), suffix, (scales or {}).get(name, 1.0)))
            mean += found
    return () if text == "colour" else tuple(inputs), tuple(mean)


# Inputs whose values do not fit into 8 bits: batches that have one are float32.
WIDE_INPUTS = ("depth", "bands")

# What of it a config chooses; the network is the stage's, the classes are the dataset's.
ARCHITECTURE = ("backbone", "geometry", "at_once", "upsampling", "width", "fc_width")


def configured(network: str, model: Mapping[str, Any], **others: Any) -> ModelSpec:
    """The spec of a stage's network, with ARCHITECTURE of `model`, which may hold other keys too, and `others`."""
    return ModelSpec(network, **{key: model[key] for key in ARCHITECTURE}, **others)


def read(path: Any) -> ModelSpec:
    """The spec in the model.json at `path`; ValueError that names the file for anything else."""
    return ModelSpec.from_json(json_file.read(path), str(path))

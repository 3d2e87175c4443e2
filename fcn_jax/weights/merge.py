"""Putting pretrained arrays into a network, strictly: nothing stays random, or unused, unasked."""

import dataclasses
import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from fcn_jax.models import fcn, upsample
from fcn_jax.models.spec import ModelSpec, initialised
from fcn_jax.weights import surgery
from fcn_jax.weights.common import Convention, Weights, backbone, first_layer
from fcn_jax.weights.fold import fold

log = logging.getLogger(__name__)

# What messages call the means to accept a layer that would start random, and one that has no place.
FLAGS = ("config.init.random", "config.init.skip")


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is asked for, or accepted, otherwise than by rule.

    Attributes:
      random: globs of layers ('fc6', 'conv*') that start as initialised, whatever the weights hold.
      skip: globs of layers of the weights that are left out, as if they did not hold them.
      allow: globs of layers that may be missing or left over.
      classes: as in `surgery.parse_classes`, empty for none; scores and upsampling are rearranged by it.
      flags: what messages call `random` and `skip`.
    """

    random: Sequence[str] = ()
    skip: Sequence[str] = ()
    allow: Sequence[str] = ()
    classes: str = ""
    flags: tuple[str, str] = FLAGS


NONE = Wishes()


class Row(NamedTuple):
    """What became of one array.

    Attributes:
      name: 'conv1_1/kernel'.
      shape: of the network's array, or, if `how` is 'left over', of the file's.
      how: 'taken' from the weights, 'missing' there, 'left over' there, or 'does not fit'.
      note: what was done to it, how it starts, why it is not wanted, or its shape; may be empty.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    note: str = ""


def merge(
    spec: ModelSpec,
    weights: Weights,
    wishes: Wishes = NONE,
    *,
    initial: Callable[[], Mapping[str, Any]],
) -> tuple[dict[str, Any], list[Row]]:
    """The parameters of `spec` with what the weights have, made to fit: input convention, channels, at-once scales.

    Missing layers: scores start zero and upsampling bilinear; any other layer starts random, if a wish
    names it, and is an error else. Left over by rule: ImageNet's fc8, bilinear kernels that a network with fixed
    upsampling computes, and upsampling layers of another network (a 32s' upscore, when a 16s starts from it).

    Args:
      spec: the network.
      weights: what a reader gave.
      wishes: what is wanted otherwise.
      initial: makes initial parameters, {layer: {name: array}}; called once, if a layer starts random.

    Returns:
      ({layer: {name: float32 NumPy array}}, a row per array in the order of the network and then of the weights). The
      report is logged, also where an error follows.

    Raises:
      ValueError: a layer would start random, an array has no place in the network or another shape there, or a glob
        matches nothing.
    """
    flat = traverse_util.flatten_dict(fcn.abstract_params(spec), sep="/")
    if len(spec.streams) > 1 and first_layer(weights.arrays):
        weights = join(spec, dict.fromkeys(spec.streams, weights))
    _check_globs(wishes.random, list(flat), wishes.flags[0])
    _check_globs(wishes.allow, [*flat, *weights.arrays], wishes.flags[0])
    usable = {
        name: array
        for name, array in weights.arrays.items()
        if not _matches(name, wishes.skip) and not (name in flat and _matches(name, wishes.random))
    }
    fitted = _fit(spec, weights._replace(arrays=usable), wishes.classes)
    report = [_place(name, abstract.shape, fitted) for name, abstract in flat.items()]
    report += [
        Row(name, array.shape, "left over", "" if name in flat else _why_left_over(name, array, spec))
        for name, array in weights.arrays.items()
        if name not in flat or name not in usable
    ]
    log.info("%s", "\n".join([format_report(report), *weights.remarks]))
    starting_random = [row.name for row in report if row.how == "missing" and initialised(row.name) == "random"]
    _check_shapes([row for row in report if row.how == "does not fit"], wishes.flags)
    left_over = [row.name for row in report if row.how == "left over" and not row.note]
    _check_left_over(left_over, (*wishes.skip, *wishes.allow, *wishes.random), wishes.flags)
    _check_missing(starting_random, (*wishes.random, *wishes.allow), wishes.flags)
    made = traverse_util.flatten_dict(initial(), sep="/") if starting_random else {}
    made = {name: made[name] for name in starting_random}
    params = {
        name: fitted.arrays[name] if name in fitted.arrays else made.get(name, _start(name, abstract))
        for name, abstract in flat.items()
    }
    params = {name: np.asarray(array, np.float32) for name, array in params.items()}
    return traverse_util.unflatten_dict(params, sep="/"), report


def format_report(report: Sequence[Row]) -> str:
    """A line per array, name, shape and what became of it, and a line of counts."""
    width = max((len(row.name) for row in report), default=0)
    shapes = ["x".join(map(str, row.shape)) for row in report]
    shape_width = max(map(len, shapes), default=0)
    lines = [
        f"{row.name:<{width}}  {shape:>{shape_width}}  {row.how}{', ' if row.note else ''}{row.note}"
        for row, shape in zip(report, shapes, strict=True)
    ]
    hows = [row.how for row in report]
    return "\n".join([*lines, ", ".join(f"{hows.count(how)} {how}" for how in dict.fromkeys(hows))])


def _fit(spec: ModelSpec, weights: Weights, classes: str) -> Weights:
    """The weights for the network's input, scales and classes."""
    weights = surgery.match_scales(weights, spec.at_once)
    if first_layer(weights.arrays):
        (stream,) = spec.streams
        weights = _for_input(spec, stream, weights)
    if classes and len(spec.outputs) > 1:
        raise ValueError("config.init.classes is for networks with one head: leave it empty")
    if classes:
        chosen = surgery.parse_classes(classes, weights, len(spec.class_names))
        weights = surgery.expand_score(weights, chosen)
    return weights


def join(spec: ModelSpec, by_stream: Mapping[str, Weights]) -> Weights:
    """Weights of one stream each as those of a network's streams; upsampling is shared, and starts bilinear."""
    fitted = {stream: _for_input(spec, stream, weights) for stream, weights in by_stream.items()}
    arrays, notes = {}, {}
    for stream, weights in fitted.items():
        for name, array in weights.arrays.items():
            layer, _, part = name.rpartition("/")
            if layer.startswith("upscore"):
                continue
            head = next((h.suffix for h, _ in spec.outputs if h.suffix and layer.endswith(h.suffix)), "")
            renamed = f"{layer.removesuffix(head)}{stream}{head}/{part}"
            arrays[renamed] = array
            if name in weights.notes:
                notes[renamed] = weights.notes[name]
    (one, *_) = fitted.values()
    return one._replace(arrays=arrays, notes=notes, convention=None, model=None)


def _for_input(spec: ModelSpec, stream: str, weights: Weights) -> Weights:
    """The first layer for what a stream sees: folded for its mean, and expanded to its channels.

    Of what is no colour, HHA say, the kernels are taken as they are, as in the release, which starts its HHA network
    from VGG16: only their scale and order are folded.
    """
    first, inputs = first_layer(weights.arrays), spec.streams[stream]
    if not first:
        return weights
    if backbone(weights.arrays) != spec.backbone:
        raise ValueError(
            f"the weights are those of {backbone(weights.arrays)}, another network than {spec.backbone}, the backbone"
            " in config.model.backbone: give others, or change the backbone"
        )
    if f"{first}/bias" not in weights.arrays:
        return weights
    mean = [value for _, place in inputs for value in spec.mean[place]]
    channels = weights.arrays[f"{first}/kernel"].shape[-2]
    if channels > len(mean):  # it does not fit, which is found when it is taken
        return weights
    source = weights.convention
    target = tuple(mean[:channels])
    if source is not None and inputs[0][0].name not in ("colour", "more"):
        own = [value / source.scale for value in source.mean]
        target = tuple(own if source.order == "BGR" else own[::-1])
    weights = fold(weights, Convention("BGR", 1.0, target, (1.0,) * channels))
    return surgery.expand_input(weights, len(mean)) if channels < len(mean) else weights


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def _layers(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(map(_layer, names)))


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(_layer(name), glob) for glob in globs)


def _start(name: str, abstract: Any) -> np.ndarray:
    """The array that a missing layer starts with, if it is not a random one."""
    if initialised(name) == "bilinear":
        return upsample.bilinear_kernel(abstract.shape[0], abstract.shape[-1])
    return np.zeros(abstract.shape, np.float32)


def _place(name: str, shape: tuple[int, ...], fitted: Weights) -> Row:
    """The row of an array of the network."""
    if name not in fitted.arrays:
        return Row(name, shape, "missing", f"starts {initialised(name)}")
    found = fitted.arrays[name].shape
    if found != shape:
        return Row(name, shape, "does not fit", f"it is {'x'.join(map(str, found))} in the weights")
    return Row(name, shape, "taken", fitted.notes.get(name, ""))


def _why_left_over(name: str, array: np.ndarray, spec: ModelSpec) -> str:
    """The rule by which an array without a place in the network may be left over, empty for none."""
    layer = _layer(name)
    for stream in spec.streams:
        layer = layer.removesuffix(stream)
    if layer == "fc8" or layer.startswith("loss"):  # GoogLeNet's three classifiers
        return "ImageNet's classes"
    if layer in surgery.SCALES:
        return "the at-once scale, which needs no parameter"
    if not layer.startswith("upscore"):
        return ""
    if layer not in spec.upsampling_kernels:
        return "of another network"
    return "bilinear, as the network computes it" if upsample.is_bilinear(array) else ""


def _check_globs(globs: Sequence[str], names: Sequence[str], flag: str) -> None:
    for glob in globs:
        if not any(_matches(name, [glob]) for name in names):
            raise ValueError(f"{flag}: {glob!r} matches no layer; there are {_layers(names)}")


def _check_shapes(rows: Sequence[Row], flags: tuple[str, str]) -> None:
    for row in rows:
        layer = _layer(row.name)
        remedy = f"leave the layer as initialised with {flags[0]} {layer!r}"
        if layer.startswith(("score", "upscore")):
            remedy = f"say by config.init.classes which class is which, or {remedy}"
        shape = "x".join(map(str, row.shape))
        raise ValueError(f"{row.name} is {shape} in the network, but {row.note}: change the network, or {remedy}")


def _check_left_over(names: Sequence[str], accepted: Sequence[str], flags: tuple[str, str]) -> None:
    names = [name for name in names if not _matches(name, accepted)]
    if names and all(name.startswith("upscore") for name in names):
        raise ValueError(
            f"the weights' {_layers(names)} is not bilinear: use learned upsampling, or leave it out by {flags[1]}"
        )
    if names:
        raise ValueError(
            f"the weights hold what the network has not: {', '.join(names)}; if that is meant, name the layers in"
            f" {flags[1]}: {_layers(names)}"
        )


def _check_missing(names: Sequence[str], accepted: Sequence[str], flags: tuple[str, str]) -> None:
    names = [name for name in names if not _matches(name, accepted)]
    if names:
        pronoun = "it" if len(set(map(_layer, names))) == 1 else "them"
        raise ValueError(
            f"{_layers(names)} would start random: name {pronoun} in {flags[0]}, or give weights that have {pronoun}"
        )

"""Pretrained weights as a checkpoint of their own: parameters and model.json, which every command accepts."""

import functools
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fcn_jax.models import fcn, upsample
from fcn_jax.models.spec import BACKBONES, MEAN_BGR, NETWORKS, ModelSpec
from fcn_jax.weights import merge
from fcn_jax.weights.common import Arrays, Weights, backbone

# The networks by the release's names: (network, at_once).
MODELS = {**{name: (name, False) for name in NETWORKS}, **{f"{n}_atonce": (n, True) for n in ("fcn8s", "fcn4s")}}


def spec_for(
    weights: Weights,
    *,
    model: str = "",
    geometry: str = "",
    class_names: Sequence[str] = (),
    palette: Sequence[tuple[int, int, int]] = (),
    extra_means: Sequence[float] = (),
) -> ModelSpec:
    """The network that the weights are of.

    Args:
      weights: what a reader gave; where it carries a model.json, that counts for all that is not given here.
      model: a key of MODELS; empty: told by the score layers, an FCN-8s where there are none.
      geometry: as in ModelSpec; empty: the model.json's, else `caffe`.
      class_names, palette: one for each class; the number must be that of score_fr, where the weights have it.
      extra_means: the means of input channels that are to be added to three.

    Returns:
      the spec. Its mean is the weights' own where they expect BGR minus a mean, so that nothing has to be folded.

    Raises:
      ValueError: it cannot be told, or the weights say otherwise.
    """
    given: dict[str, Any] = {}
    arrays = weights.arrays
    if weights.model is not None:
        given = dict(vars(ModelSpec.from_json(weights.model, "the weights' model.json")))
    if model or not given:
        given["network"], given["at_once"] = MODELS[model] if model else _told_by(weights)
    heads = weights.heads()
    scores = sum(head.classes for head in heads)
    if class_names or not given.get("class_names"):
        given["class_names"], given["palette"] = tuple(class_names), tuple(palette)
    if weights.model is None:
        given["inputs"], given["heads"] = weights.inputs, tuple(heads) if len(heads) > 1 else ()
    if heads and scores != len(given["class_names"]):
        raise ValueError(
            f"score_fr has {scores} classes, but {len(given['class_names'])} are named: give --class_names, with"
            " commas between"
        )
    given["geometry"] = geometry or given.get("geometry", "caffe")
    given.setdefault("backbone", backbone(arrays))
    for key, layer, default in (("width", BACKBONES[given["backbone"]].first, 64), ("fc_width", "fc6", 4096)):
        given.setdefault(key, len(arrays.get(f"{layer}{weights.streams[0]}/bias", np.empty(default))))
    given.setdefault("upsampling", "fixed" if _bilinear(arrays) else "learned")
    given["mean"] = (*given.get("mean", _mean(weights)), *extra_means)
    return ModelSpec(**given)


def fit(weights: Weights, spec: ModelSpec, *, allow: Sequence[str] = ()) -> Any:
    """The parameters of `spec` with what the weights have, as `merge.merge`.

    Args:
      allow: globs of layers that may be missing, which then start random (seed 0), or left over.
    """
    initial = functools.partial(fcn.init, spec, jax.random.key(0))
    params, _ = merge.merge(spec, weights, merge.Wishes(allow=allow, flags=("--allow", "--allow")), initial=initial)
    return params


def exactly(weights: Weights, spec: ModelSpec) -> Any:
    """The parameters of `spec`, all of which the weights have as they are to be; what else they have is left out."""
    wanted = traverse_util.flatten_dict(fcn.abstract_params(spec), sep="/")
    return traverse_util.unflatten_dict({name: weights.arrays[name] for name in wanted}, sep="/")


def write(output: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """Writes a parameters-only checkpoint to a folder that does not exist yet: it appears whole or not at all."""
    from fcn_jax import checkpoint  # as in weights.read_checkpoint

    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    part.mkdir()
    try:
        checkpoint.save_params(part / "converted", params, spec)
        (part / "converted").rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def describe(spec: ModelSpec) -> str:
    """A line for a person."""
    at_once = ", at-once" if spec.at_once else ""
    classes = " + ".join(str(head.classes) for head, _ in spec.outputs)
    return (
        f"{spec.network}{at_once} on {spec.backbone}, {spec.geometry} geometry, {spec.upsampling} upsampling, width"
        f" {spec.width}, fc {spec.fc_width}, {classes} classes, input {described_input(spec)}"
    )


def described_input(spec: ModelSpec) -> str:
    """'BGR minus (104.007, 116.669, 122.679)', and likewise for further inputs."""
    words = {"colour": "BGR", "depth": "log depth"}
    parts = []
    for given, place in (part for stream in spec.streams.values() for part in stream):
        mean = ", ".join(f"{value:g}" for value in spec.mean[place])
        parts.append(f"{words.get(given.name, given.name)} minus ({mean})")
    return (" and " if len(spec.streams) == 1 else " beside ").join(parts)


def _told_by(weights: Weights) -> tuple[str, bool]:
    """Network and at_once by the skips that have score layers."""
    arrays = weights.arrays
    skips = BACKBONES[backbone(arrays)].skips
    scored = sum(any(name.startswith(f"score_{skip}") for name in arrays) for skip in skips)
    network = next(name for name, count in NETWORKS.items() if count == scored)
    if scored >= 2 and weights.at_once is None:
        raise ValueError(
            f"the weights do not say whether {' and '.join(skips[:scored])} are scaled down (at-once) or not: give"
            f" --model={network} or --model={network}_atonce"
        )
    if not scored and not weights.heads():
        return ("fcn8s" if skips else "fcn32s"), False
    return network, scored > 0 and bool(weights.at_once)


def _bilinear(arrays: Arrays) -> bool:
    """Whether all upsampling kernels are, or there are none."""
    kernels = [array for name, array in arrays.items() if name.startswith("upscore")]
    return all(upsample.is_bilinear(kernel) for kernel in kernels)


def _mean(weights: Weights) -> tuple[float, ...]:
    """The mean (B, G, R) that the network subtracts: the weights' own, if that is all that they expect."""
    convention = weights.convention
    if convention is not None and convention.order == "BGR" and convention.scale == 1 and set(convention.std) == {1.0}:
        return convention.mean
    return MEAN_BGR

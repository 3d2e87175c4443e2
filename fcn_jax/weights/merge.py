"""Putting pretrained arrays into a freshly initialised network, strictly: nothing stays random, or unused, unasked."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from fcn_jax.weights.fold import Arrays


class Row(NamedTuple):
    """What became of one array.

    Attributes:
      name: 'conv1_1/kernel'.
      shape: of the network's array, or, if `how` is 'left out', of the file's.
      how: 'taken' from the file; 'random', 'zero' or 'bilinear' as initialised; 'left out' of the network.
    """

    name: str
    shape: tuple[int, ...]
    how: str


def merge(
    params: Mapping[str, Any], arrays: Arrays, *, random: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Row]]:
    """Replaces the initial parameters by the pretrained arrays of the same names and shapes.

    Score layers (zero) and upsampling layers (bilinear) may be missing from the file; any other layer only if `random`
    names it.

    Args:
      params: nested, {'conv1_1': {'kernel': ..., 'bias': ...}, ...}, as initialised; not changed.
      arrays: flat, {'conv1_1/kernel': ...}; {} for training from scratch.
      random: globs of layers ('fc6', 'conv*') that keep their initial values, whatever the file holds.
      skip: globs of layers in the file that are left out, as if it did not hold them.

    Returns:
      params, where what is taken is NumPy in the parameter's dtype and the rest the object given; one row per array, in
      the order of the network and then of the file.

    Raises:
      ValueError: a layer would start random, an array has no place in the network or another shape there, or a glob in
        `random` matches no layer of the network.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_globs(random, flat)
    offered = {
        name: array
        for name, array in arrays.items()
        if not _matches(name, skip) and not (name in flat and _matches(name, random))
    }
    _check_left_over([name for name in offered if name not in flat])
    merged: dict[str, Any] = {}
    report: list[Row] = []
    missing: list[str] = []
    for name, initial in flat.items():
        if name in offered:
            merged[name] = _take(name, offered[name], initial)
            how = "taken"
        else:
            merged[name] = initial
            how = _initialised(name)
            if how == "random" and not _matches(name, random):
                missing.append(name)
        report.append(Row(name, tuple(initial.shape), how))
    _check_missing(missing)
    report += [Row(name, array.shape, "left out") for name, array in arrays.items() if name not in offered]
    return traverse_util.unflatten_dict(merged, sep="/"), report


def format_report(report: Sequence[Row]) -> str:
    """A line per array, name, shape and what became of it, and a line of counts."""
    width = max((len(row.name) for row in report), default=0)
    shapes = ["x".join(map(str, row.shape)) for row in report]
    shape_width = max(map(len, shapes), default=0)
    lines = [f"{row.name:<{width}}  {s:>{shape_width}}  {row.how}" for row, s in zip(report, shapes, strict=True)]
    hows = [row.how for row in report]
    return "\n".join([*lines, ", ".join(f"{hows.count(how)} {how}" for how in dict.fromkeys(hows))])


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def _layers(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(map(_layer, names)))


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(_layer(name), glob) for glob in globs)


def _initialised(name: str) -> str:
    """How the models initialise a layer, which its name tells."""
    layer = _layer(name).rpartition("/")[2]
    if layer.startswith("upscore"):
        return "bilinear"
    return "zero" if layer.startswith("score") else "random"


def _take(name: str, array: np.ndarray, initial: Any) -> np.ndarray:
    if array.shape != tuple(initial.shape):
        raise ValueError(
            f"{name} is {array.shape} in the weights and {tuple(initial.shape)} in the network; change the network, or "
            f"leave the layer as initialised with config.init.random {_layer(name)!r}"
        )
    return np.asarray(array, dtype=initial.dtype)


def _check_globs(random: Sequence[str], flat: Mapping[str, Any]) -> None:
    for glob in random:
        if not any(_matches(name, [glob]) for name in flat):
            raise ValueError(f"config.init.random: {glob!r} matches no layer; the network has {_layers(list(flat))}")


def _check_left_over(names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"the weights hold what the network has not: {', '.join(names)}; if that is meant, name the layers in "
            f"config.init.skip: {_layers(names)}"
        )


def _check_missing(names: Sequence[str]) -> None:
    if names:
        pronoun = "it" if len(set(map(_layer, names))) == 1 else "them"
        raise ValueError(
            f"{_layers(names)} would start random: name {pronoun} in config.init.random, or give config.init.weights "
            f"that have {pronoun}"
        )

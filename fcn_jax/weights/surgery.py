"""Changes to pretrained arrays so that they fit another network (surgery.py and the NYUD nets of the release)."""

from collections.abc import Sequence

import numpy as np

from fcn_jax.models import upsample
from fcn_jax.models.spec import AT_ONCE_SCALES, BACKBONES
from fcn_jax.weights.common import Arrays, Weights, first_layer

# The at-once release's Scale layers, whose constants never learn.
_POOLS = {pool: scale for found in BACKBONES.values() for pool, scale in zip(found.skips, AT_ONCE_SCALES, strict=False)}
SCALES = {f"scale_{pool}": scale for pool, scale in _POOLS.items()}


def match_scales(weights: Weights, at_once: bool) -> Weights:
    """Score layers of the skips for a network that scales pool4 and pool3 (`at_once`) or does not.

    A kernel that expects scaled pools is multiplied by the scale to expect them unscaled, and the other way round;
    where nothing tells which the weights expect, they are left as they are. The release's Scale layers are dropped.

    Raises:
      ValueError: a Scale layer does not hold the release's constant.
    """
    arrays, notes = dict(weights.arrays), dict(weights.notes)
    for pool, scale in _POOLS.items():
        found = arrays.pop(f"scale_{pool}/scale", None)
        if found is not None and not np.allclose(found, scale, rtol=1e-5):
            raise ValueError(f"scale_{pool} holds values from {found.min():g} to {found.max():g}, wanted {scale}")
        # Of several streams and heads the layers are called score_pool4color, score_pool4_sem and so on.
        for name in [n for n in arrays if n.startswith(f"score_{pool}") and n.endswith("/kernel")]:
            if weights.at_once not in (None, at_once):
                factor = scale if weights.at_once else 1 / scale
                arrays[name] = arrays[name] * np.float32(factor)
                notes[name] = f"multiplied by {factor:g}, the scale of {pool}"
    return weights._replace(arrays=arrays, notes=notes, at_once=at_once)


def expand_score(weights: Weights, classes: Sequence[int | None]) -> Weights:
    """Score and upsampling layers for other classes, to fine-tune a trained network on one's own.

    Args:
      classes: for each new class the old one whose scores it starts with, or None: it starts with zero, and with
        bilinear upsampling.

    Raises:
      ValueError: there is no such old class.
    """
    old = num_classes(weights.arrays)
    beyond = [c for c in classes if c is not None and not 0 <= c < old]
    if beyond:
        raise ValueError(f"there is no class {beyond[0]} among the weights' {old} classes, 0 to {old - 1}")
    arrays, notes = dict(weights.arrays), dict(weights.notes)
    new = [i for i, c in enumerate(classes) if c is not None]
    kept = [c for c in classes if c is not None]
    for name, array in weights.arrays.items():
        if name.startswith(("score", "upscore")) and array.shape[-1] != old:
            raise ValueError(f"{name} is {array.shape}, but score_fr has {old} classes")
        if name.startswith("score"):
            arrays[name] = np.zeros((*array.shape[:-1], len(classes)), np.float32)
            arrays[name][..., new] = array[..., kept]
        elif name.startswith("upscore"):
            arrays[name] = upsample.bilinear_kernel(len(array), len(classes))
            arrays[name][:, :, np.array(new, int)[:, None], new] = array[:, :, np.array(kept, int)[:, None], kept]
        else:
            continue
        notes[name] = f"{len(kept)} of {old} classes"
    return weights._replace(arrays=arrays, notes=notes)


def expand_input(weights: Weights, channels: int) -> Weights:
    """The first layer for further input channels: each starts as the mean of B, G and R (NYUD color-d)."""
    name = f"{first_layer(weights.arrays)}/kernel"
    kernel = weights.arrays[name]
    mean = kernel.mean(2, keepdims=True)
    arrays: Arrays = {name: np.concatenate([kernel, *[mean] * (channels - kernel.shape[2])], 2)}
    note = f"expanded from {kernel.shape[2]} input channels"
    return weights._replace(arrays={**weights.arrays, **arrays}, notes={**weights.notes, name: note})


def parse_classes(text: str, weights: Weights, wanted: int) -> list[int | None]:
    """The old class of each new one.

    Args:
      text: 'all': the old classes come first, in their order. Otherwise a word for each new class: the old one's number
        or, where the weights carry names, its name; '-' for a class that starts from zero.
      wanted: how many classes the network has.

    Raises:
      ValueError: a word that is no class, or not `wanted` of them.
    """
    old = num_classes(weights.arrays)
    if text == "all":
        if old > wanted:
            raise ValueError(f"config.init.classes=all: the weights have {old} classes, the network only {wanted}")
        return [*range(old), *[None] * (wanted - old)]
    words = [word.strip() for word in text.split(",")]
    if len(words) != wanted:
        raise ValueError(f"config.init.classes={text!r} has {len(words)} words, but the network has {wanted} classes")
    names = list((weights.model or {}).get("class_names", []))
    result: list[int | None] = []
    for word in words:
        if word == "-":
            result.append(None)
        elif word in names:
            result.append(names.index(word))
        elif word.isdecimal():
            result.append(int(word))
        else:
            known = f"one of {', '.join(names)}, " if names else ""
            raise ValueError(f"config.init.classes has {word!r}: give {known}a number from 0 to {old - 1}, or -")
    return result


def by_name(weights: Weights, wanted: Sequence[str]) -> str:
    """Which old class each of these starts from by its name, as `parse_classes` reads it; '' where they are the same.

    Also '' where the weights have no names, or no classes.
    """
    names = list((weights.model or {}).get("class_names", []))
    if not names or names == list(wanted) or "score_fr/bias" not in weights.arrays:
        return ""
    return ",".join(str(names.index(name)) if name in names else "-" for name in wanted)


def num_classes(arrays: Arrays) -> int:
    """Raises ValueError if there is no score_fr to tell it."""
    if "score_fr/bias" not in arrays:
        raise ValueError(
            "the weights have no score_fr, and so no classes to begin with: leave config.init.classes empty"
        )
    return len(arrays["score_fr/bias"])

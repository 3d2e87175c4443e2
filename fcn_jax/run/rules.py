"""What a config leaves to the data (-1, auto), chosen by rules; each choice is told with its reason.

The rules are of what was measured (benchmarks/RESULTS.md and its pages): on two cores a step of four crops of 256x256
with the first two blocks frozen takes about 1.2 seconds, thin things need enlarged images, and AdamW learns unscaled
skips.
"""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fcn_jax import config as config_lib
from fcn_jax import json_file
from fcn_jax.data import images
from fcn_jax.data.datasets import Split

log = logging.getLogger(__name__)

_SAMPLE = 40  # labels whose shapes are looked at
_THIN = 8  # pixels: the finest stride, below which a class is enlarged
_LARGE = 768  # pixels: the longer side of larger images is shrunk to this
_RARE = 0.01  # of the labelled pixels


class Facts(NamedTuple):
    """What the rules know.

    Attributes:
      images: how many there are to train on.
      height, width: of the median image, in pixels.
      rarest, share: the class with the fewest pixels of those that occur, and its share of the labelled ones.
      thinnest, width_of: the class with the thinnest parts, and how wide they are, in pixels.
      accelerator: whether there is a GPU or a TPU.
      inputs: what images are made of.
    """

    images: int
    height: int
    width: int
    rarest: str
    share: float
    thinnest: str
    width_of: float
    accelerator: bool
    inputs: tuple[str, ...] = ("colour",)


def recorded(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The config with what an earlier start of the run in `workdir` chose."""
    path = workdir / "config.json"
    if not path.exists() or not config_lib.left_open(config):
        return config
    return config_lib.closed(config, config_lib.completed(json_file.read(path)))


def completed(config: ConfigDict, split: Split) -> ConfigDict:
    """The config with what the rules choose for the training split; says each with its reason."""
    keys = config_lib.left_open(config)
    if not keys:
        return config
    facts = look_at(split)
    chosen: dict[str, Any] = {}
    for key in _RULES:  # later ones may ask for earlier ones
        value, reason = _RULES[key](facts, {**config_lib.flatten(config), **chosen})
        if key in keys:
            chosen[key] = value
            log.info("config.%s=%s: %s", key, _shown(value), reason)
    return config_lib.closed(config, chosen)


def look_at(split: Split) -> Facts:
    """The facts of a training split; of its labels a sample is decoded."""
    height, width = np.median(split.sizes, axis=0).astype(int).tolist()
    counts = split.pixel_counts.sum(0)
    present = np.flatnonzero(counts)
    rarest = int(present[counts[present].argmin()])
    widths = _widths(split)
    thinnest = min(widths, key=lambda index: widths[index]) if widths else rarest
    return Facts(
        images=len(split.ids),
        height=height,
        width=width,
        rarest=split.class_names[rarest],
        share=float(counts[rarest] / counts.sum()),
        thinnest=split.class_names[thinnest],
        width_of=widths.get(thinnest, float(min(height, width))),
        accelerator=jax.default_backend() != "cpu",
        inputs=tuple(split.inputs),
    )


def _widths(split: Split) -> dict[int, float]:
    """How wide the parts of each class are, in pixels: of a long strip, twice its area by its outline."""
    areas, outlines = np.zeros(256), np.zeros(256)
    for index in range(0, len(split.ids), -(-len(split.ids) // _SAMPLE)):
        record = split.source[index]
        label = images.decode_label(record["label"], record["id"])
        beside = np.zeros(label.shape, np.uint8)
        for axis in (0, 1):
            change = np.diff(label, axis=axis) != 0
            first = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
            second = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
            beside[first] += change
            beside[second] += change
        areas += np.bincount(label.ravel(), minlength=256)
        outlines += np.bincount(label.ravel(), beside.ravel(), minlength=256)
    classes = split.heads[0][2]
    return {c: float(2 * areas[c] / outlines[c]) for c in range(classes) if outlines[c] > 0}


def _inputs(facts: Facts, _: dict[str, Any]) -> tuple[Any, str]:
    return facts.inputs[0], f"images have {', '.join(facts.inputs)}"


def _enlarged(facts: Facts, _: dict[str, Any]) -> tuple[float, str]:
    """The scale at which images are seen: thin classes twice their size, large photographs smaller."""
    longer = max(facts.height, facts.width)
    if longer > _LARGE and facts.width_of * _LARGE / longer >= _THIN:
        factor = max(1 / 8, round(8 * _LARGE / longer) / 8)
        return factor, f"images are {facts.height}x{facts.width}, and the thinnest class is {facts.width_of:.0f} wide"
    if facts.width_of < _THIN:
        factor = min(3.0, max(1.5, round(2 * _THIN / facts.width_of) / 2))
        return (
            factor,
            f"{facts.thinnest} is {facts.width_of:.1f} pixels wide, and the network's finest stride is {_THIN}",
        )
    if longer < 320:
        return 1.5, f"images are small, {facts.height}x{facts.width}"
    return 1.0, f"images are {facts.height}x{facts.width}"


def _scales(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    factor, reason = _enlarged(facts, values)
    return (factor,), reason


def _scale(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    (factor, *_) = values["eval.scales"]
    return (round(0.75 * factor, 3), round(1.5 * factor, 3)), "around the scale at which images are scored"


def _crop(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    (factor, *_) = values["eval.scales"]
    most = 512 if facts.accelerator else 256
    sides = tuple(min(most, -(-int(side * factor) // 32) * 32) for side in (facts.height, facts.width))
    return sides, f"at most {most}x{most} on {'an accelerator' if facts.accelerator else 'a CPU'}"


def _batch(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    height, width = values["data.crop_size"] or (facts.height, facts.width)
    pixels = height * width
    needed = pixels * 4e3  # bytes: 0.26 GB an image of 256x256, whose maps the backward pass needs
    fits = int(0.5 * _memory() // needed)
    devices = jax.device_count()
    wanted = (8 if facts.accelerator else 4) * devices
    batch = max(devices, min(wanted, fits // devices * devices))
    return batch, f"{devices} device{'s' * (devices > 1)}, about {(needed * batch + 0.6e9) / 1e9:.1f} GB"


def _eval_batch(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    return values["data.batch_size"], "as in training"


def _steps(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    least, passes, most = (4000, 120, 40_000) if facts.accelerator else (900, 24, 6000)
    steps = min(most, max(least, passes * facts.images // values["data.batch_size"]))
    steps = -(-steps // 100) * 100
    return (steps,), f"{facts.images} images, {passes} passes, at least {least} steps"


def _weights(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    share = f"{facts.rarest} has {100 * facts.share:.2g} % of the labelled pixels"
    return ("sqrt_median_frequency", share) if facts.share < _RARE else ("none", f"{share}, the fewest")


def _every(facts: Facts, values: dict[str, Any]) -> tuple[Any, str]:
    return max(50, sum(values["steps"]) // 4), "four times a run"


# In the order in which they are asked: later ones may ask for earlier ones.
_RULES: dict[str, Callable[[Facts, dict[str, Any]], tuple[Any, str]]] = {
    "inputs": _inputs,
    "eval.scales": _scales,
    "data.scale": _scale,
    "data.crop_size": _crop,
    "data.batch_size": _batch,
    "eval.batch_size": _eval_batch,
    "steps": _steps,
    "loss.class_weights": _weights,
    "eval.every": _every,
}


def _memory() -> float:
    """Bytes that a device has, as far as it is known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 8e9  # what a small machine has


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

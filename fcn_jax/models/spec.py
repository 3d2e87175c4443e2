"""model.json: all that evaluation, prediction and export must know to build a network around its parameters."""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax import json_file
from fcn_jax.models import fcn
from fcn_jax.models.layers import MEAN_BGR

FORMAT_VERSION = 1
_CHOICES = {
    "network": tuple(fcn.SKIPS),
    "backbone": tuple(fcn.BACKBONES),
    "geometry": fcn.GEOMETRIES,
    "upsampling": fcn.UPSAMPLINGS,
}


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_whole(part, 0, 255) for part in value)


def _is_channel(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= 255 and all(map(check, value))


_WIDTH = (lambda value: _is_whole(value, 1, 2**16), "a whole number from 1 to 65536")
# What the others must be, and how that is said; 255 is void.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "at_once": (lambda value: isinstance(value, bool), "true or false"),
    "width": _WIDTH,
    "fc_width": _WIDTH,
    "class_names": (_list_of(lambda name: isinstance(name, str) and name.isprintable()), "1 to 255 printable names"),
    "palette": (_list_of(_is_colour), "1 to 255 colours of three whole numbers from 0 to 255"),
    "mean": (_list_of(_is_channel), "one number per input channel"),
}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The attributes of fcn.FCN that shape its parameters or its output, and what its classes are called."""

    network: str
    backbone: str
    geometry: str
    at_once: bool
    upsampling: str
    width: int
    fc_width: int
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB 0..255, one per class
    mean: tuple[float, ...] = MEAN_BGR  # (B, G, R); a fourth value adds a fourth input channel

    def build(self, *, dropout: float = 0.0, dtype: str = "float32") -> fcn.FCN:
        """The Flax module."""
        return fcn.FCN(
            num_classes=len(self.class_names),
            network=self.network,
            backbone=self.backbone,
            geometry=self.geometry,
            at_once=self.at_once,
            upsampling=self.upsampling,
            mean=self.mean,
            width=self.width,
            fc_width=self.fc_width,
            dropout=dropout,
            dtype=jnp.dtype(dtype),
        )

    @property
    def upsampling_layers(self) -> tuple[str, ...]:
        """Names of the upsampling layers; they have parameters where `upsampling` is learned."""
        return (*(fcn.SKIP_UPSCORE[skip] for skip in fcn.SKIPS[self.network]), fcn.FINAL_NAME[self.network])

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters {layer: {name: float32 array}}; they do not depend on the size of any image."""
        image = jnp.zeros((1, 32, 32, len(self.mean)), jnp.uint8)
        return self.build().init(key, image)["params"]

    def abstract_params(self) -> Any:
        """The same tree of jax.ShapeDtypeStruct, without computing anything."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def to_json(self) -> dict[str, Any]:
        """What model.json holds."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> "ModelSpec":
        """Raises ValueError naming `where` if the data are not those of a model that this version can build."""
        fields = {field.name for field in dataclasses.fields(cls)}
        data = dict(data)
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            found = reprlib.repr(version)
            raise ValueError(f"{where}: format_version {found}, but this version of fcn_jax reads {FORMAT_VERSION}")
        data.setdefault("mean", MEAN_BGR)  # model.json did not always have it
        if data.keys() != fields:
            raise ValueError(f"{where}: keys {reprlib.repr(sorted(data.keys() ^ fields))} are missing or unknown")
        for key, choices in _CHOICES.items():
            if data[key] not in choices:
                found = reprlib.repr(data[key])
                raise ValueError(f"{where}: {key} {found} is unknown, choose from {', '.join(choices)}")
        for key, (holds, wanted) in _RULES.items():
            if not holds(data[key]):
                raise ValueError(f"{where}: {key} is {reprlib.repr(data[key])}, wanted {wanted}")
        classes, colours = len(data["class_names"]), len(data["palette"])
        if classes != colours:
            raise ValueError(f"{where}: there are {classes} class_names but {colours} colours in the palette")
        data["mean"] = tuple(data["mean"])
        data["class_names"] = tuple(data["class_names"])
        data["palette"] = tuple(tuple(colour) for colour in data["palette"])
        return cls(**data)

    def differences(self, other: "ModelSpec") -> list[str]:
        """'width: 8 is not 16' for each attribute that differs."""
        pairs = zip(dataclasses.asdict(self).items(), dataclasses.asdict(other).values(), strict=True)
        return [f"{key}: {mine!r} is not {theirs!r}" for (key, mine), theirs in pairs if mine != theirs]


def read(path: Any) -> ModelSpec:
    """The spec in the model.json at `path`; ValueError that names the file for anything else."""
    return ModelSpec.from_json(json_file.read(path), str(path))

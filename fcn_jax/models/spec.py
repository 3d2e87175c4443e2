"""model.json: all that evaluation, prediction and export must know to build a network around its parameters."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.models import fcn
from fcn_jax.models.layers import MEAN_BGR

FORMAT_VERSION = 1
_CHOICES = {
    "network": tuple(fcn.SKIPS),
    "backbone": tuple(fcn.BACKBONES),
    "geometry": fcn.GEOMETRIES,
    "upsampling": fcn.UPSAMPLINGS,
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
            raise ValueError(f"{where}: format_version {version!r}, but this version of fcn_jax reads {FORMAT_VERSION}")
        data.setdefault("mean", MEAN_BGR)  # model.json did not always have it
        if data.keys() != fields:
            raise ValueError(f"{where}: keys {sorted(data.keys() ^ fields)} are missing or unknown")
        for key, choices in _CHOICES.items():
            if data[key] not in choices:
                raise ValueError(f"{where}: {key} {data[key]!r} is unknown, choose from {', '.join(choices)}")
        data["mean"] = tuple(data["mean"])
        data["class_names"] = tuple(data["class_names"])
        data["palette"] = tuple(tuple(colour) for colour in data["palette"])
        return cls(**data)

    def differences(self, other: "ModelSpec") -> list[str]:
        """'width: 8 is not 16' for each attribute that differs."""
        pairs = zip(dataclasses.asdict(self).items(), dataclasses.asdict(other).values(), strict=True)
        return [f"{key}: {mine!r} is not {theirs!r}" for (key, mine), theirs in pairs if mine != theirs]


def read(path: Any) -> ModelSpec:
    """The spec in the model.json at `path`."""
    with open(path) as file:
        return ModelSpec.from_json(json.load(file), str(path))

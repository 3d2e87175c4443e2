"""One file of jax.export, with the parameters inside. Programs of one JAX run on it and on newer ones."""

import pathlib
from typing import Any

from fcn_jax.export import common
from fcn_jax.models.spec import ModelSpec

CARRIES_MODEL_JSON = False


def check(spec: ModelSpec) -> None:
    """Takes every network."""


def write(path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """Raises ValueError if the parameters take more than 2 GiB."""
    common.refuse_larger_than_2_gib(params, "stablehlo")
    logits = common.function(spec)
    path.write_bytes(common.exported(lambda image: logits(params, image), spec).serialize())


def usage(path: pathlib.Path, spec: ModelSpec) -> str:
    """How to run it."""
    return f"from jax import export; logits = export.deserialize(open({str(path)!r}, 'rb').read()).call(image)"

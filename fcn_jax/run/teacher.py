"""Distillation: a trained network tells a smaller one what it finds in each batch (Hinton et al., arXiv 1503.02531)."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax import checkpoint, multiscale, networks, sharding
from fcn_jax import config as config_lib
from fcn_jax.integrity import MODEL_JSON
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.models.spec import read as read_spec
from fcn_jax.run.context import Run

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raises what `asked` would at any stage, before the first one."""
    source = run.config.distill.teacher
    if source:
        knows = read_spec(checkpoint.find(networks.locate(source)) / MODEL_JSON)
        for stage in config_lib.stages(run.config):
            _check_alike(source, knows, run.spec(stage))


def _check_alike(source: str, knows: ModelSpec, spec: ModelSpec) -> None:
    for what, theirs, ours in (
        ("classes", knows.class_names, spec.class_names),
        ("inputs", knows.input_names, spec.input_names),
    ):
        if theirs != ours:
            raise ValueError(f"config.distill.teacher={source!r} has other {what}: {', '.join(theirs)}")


def asked(run: Run, spec: ModelSpec) -> Callable[[Any], Any]:
    """What adds to the arrays of a batch the probabilities of config.distill.teacher: `soft` [A, B, H, W, C].

    Without a teacher the arrays stay as they are. The teacher sees the very crops that the network sees, once and as
    they are, with or without labels.

    Raises:
      FileNotFoundError: there is no such network.
      ValueError: it has other classes or other inputs.
    """
    source = run.config.distill.teacher
    if not source:
        return lambda arrays: arrays
    whole, divided = sharding.replicated(run.mesh), sharding.split_batch(run.mesh, 1)
    params, knows = checkpoint.load_params(checkpoint.find(networks.locate(source)), whole)
    _check_alike(source, knows, spec)
    model, heads = fcn.FCN(knows, dtype=run.config.model.dtype), [place for _, place in knows.outputs]

    def probabilities(params: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
        found = []
        for image, size in zip(images, sizes, strict=True):
            logits: Any = model.apply({"params": params}, image, size)
            found.append(multiscale.probabilities(logits, heads))
        return jnp.stack(found)

    program = jax.jit(probabilities, out_shardings=divided)
    log.info("taught by %s, which counts %g", source, run.config.distill.weight)
    return lambda arrays: {**arrays, "soft": program(params, arrays["image"], arrays["size"])}

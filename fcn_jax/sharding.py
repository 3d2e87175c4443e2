"""Where arrays live: a 1-D mesh `data` over all devices, batches split along it, state on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of them. (jax.make_mesh would give Explicit axes.)"""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int) -> NamedSharding:
    """The dimension `axis` divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), "data"))


def to_devices(batch: dict[str, Any], mesh: Mesh, axis: int) -> dict[str, jax.Array]:
    """This process's share of a global batch, as global arrays divided along `axis`."""
    sharding = split_batch(mesh, axis)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def check_divisible(key: str, batch_size: int, devices: int) -> None:
    """Raises ValueError unless every device gets the same number of images."""
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, (batch_size // devices + 1) * devices
        remedy = f"use {lower} or {upper}" if lower else f"use {upper}"
        raise ValueError(f"config.{key}={batch_size} is not divisible by the {devices} devices: {remedy}")

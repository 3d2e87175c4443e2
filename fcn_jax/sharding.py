"""Where arrays live, a 1-D mesh `data` with batches split along it and the state on every device; and if they fit."""

import os
import pathlib
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
        raise ValueError(
            f"config.{key}={batch_size} is not divisible by the {devices} devices: {remedy}, or fewer devices"
        )


def check_memory(key: str, analysis: Any, fixed: Any, batch_size: int, mesh: Mesh, available: int | None = None) -> int:
    """The bytes per device that a compiled step needs; ValueError with what would fit if there are not so many.

    Args:
      key: what batch_size is called in the config.
      analysis: of the compiled step, its memory_analysis().
      fixed: shapes of what does not shrink with the batch: the state, and gradients of its size.
    """
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    available = _device_memory(mesh) if available is None else available
    if needed <= available:
        return needed
    # All else than `fixed` is taken to be proportional to the batch.
    constant = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(fixed))
    fits = int((available - constant) / max(needed - constant, 1) * batch_size / mesh.size) * mesh.size
    remedy = (
        f"{key}={fits} should fit"
        if fits > 0
        else "no batch fits: lower data.crop_size, model.fc_width or model.width, or use model.dtype=bfloat16"
    )
    raise ValueError(
        f"out of memory: a step with {key}={batch_size} needs {needed / 1e9:.2f} GB per device, of which"
        f" there are {available / 1e9:.2f} GB: {remedy}"
    )


def _device_memory(mesh: Mesh) -> int:
    """Bytes of memory of each device; of the machine, divided by the devices, where these are CPUs."""
    stats = mesh.devices.flat[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = pathlib.Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    return min(machine, int(limit) if limit.isdigit() else machine) // len(mesh.local_devices)

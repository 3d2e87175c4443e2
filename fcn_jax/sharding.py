"""Where arrays live: a 1-D mesh `data` with batches split along it, the state whole or divided too; and if they fit."""

import contextlib
import ctypes
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_WORTH_DIVIDING = 2**14  # elements; smaller arrays cost more to gather than they save


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of them. (jax.make_mesh would give Explicit axes.)"""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int) -> NamedSharding:
    """The dimension `axis` divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), "data"))


def place(tree: Any, mesh: Mesh, *, divided: bool) -> Any:
    """Where each array of a state lives: whole on every device, or, if `divided`, a part on each.

    Divided is the largest dimension that the number of devices divides, of arrays of `_WORTH_DIVIDING` elements on; the
    rule knows shapes alone, so that a parameter and its moments lie alike.
    """

    def sharding(x: Any) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if not divided or not fitting or math.prod(x.shape) < _WORTH_DIVIDING:
            return replicated(mesh)
        return split_batch(mesh, max(fitting, key=lambda axis: x.shape[axis]))

    return jax.tree.map(sharding, tree)


def gather(params: Any, whole: NamedSharding, parts: Any) -> Any:
    """Divided parameters, whole on every device for the time of a computation; their gradients come back divided."""

    @jax.custom_vjp
    def on_every_device(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    def forward(params: Any) -> tuple[Any, None]:
        return on_every_device(params), None

    def backward(_: None, gradient: Any) -> tuple[Any]:
        return (jax.lax.with_sharding_constraint(gradient, parts),)

    on_every_device.defvjp(forward, backward)
    return on_every_device(params)


def to_host(tree: Any, mesh: Mesh) -> Any:
    """The arrays, wherever they live, as NumPy arrays on every host."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree))


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


def release_host_memory() -> None:
    """Gives the system back what compiling has left free, about 0.4 GB of a large network; glibc alone keeps it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _device_memory(mesh: Mesh) -> int:
    """Bytes of memory of each device; of the machine, divided by the devices, where these are CPUs."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = pathlib.Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    return min(machine, int(limit) if limit.isdigit() else machine) // len(mesh.local_devices)

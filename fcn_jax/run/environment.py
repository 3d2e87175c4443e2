"""On what a run was computed: a line of starts.jsonl for each start of its command."""

import importlib.metadata
import json
import os
import pathlib
import platform
import time
from typing import Any

import jax

_PACKAGES = ("fcn_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """{python, platform, cpu, cores, devices, processes, versions {package: version}}, in words and numbers."""
    listing = pathlib.Path("/proc/cpuinfo")  # Linux; ARM's names no model
    lines = listing.read_text(errors="replace").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str:
    """'' of what is not installed, such as a clone that is only on Python's path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def note(workdir: pathlib.Path, step: int) -> None:
    """Adds a line to starts.jsonl: this start, from a step on."""
    with open(workdir / "starts.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "time": round(time.time(), 1), **describe()}) + "\n")


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The starts of a run in their order; runs of earlier versions have none. Lines that are cut short are left out."""
    path = workdir / "starts.jsonl"
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found

"""Time and memory of converting a full-width FCN-8s (134 million parameters) from each format, in fresh processes.

    python benchmarks/convert.py [--format=caffemodel,pth,safetensors,npz]

Writes a file of random weights, runs `python -m fcn_jax.weights FILE --output=DIR` on it, and prints a row of Markdown:
size, seconds, peak memory, and memory as a multiple of the size. `pth` needs torch. Needs 3 GB of disk.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.models.upsample import bilinear_kernel

SPEC = ModelSpec("fcn8s", "vgg16", "caffe", False, "fixed", 64, 4096, ("",) * 21, ((0, 0, 0),) * 21)
STRIDES = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}


def torch_arrays() -> dict[str, np.ndarray]:
    """Random weights in PyTorch's and Caffe's layout, {'conv1_1.weight': [O, I, h, w], ...}."""
    rng = np.random.default_rng(0)
    arrays = {}
    for layer, parts in fcn.abstract_params(SPEC).items():
        for part, shape in ((part, array.shape) for part, array in parts.items()):
            array = rng.standard_normal(shape, np.float32)
            arrays[f"{layer}.{'weight' if part == 'kernel' else 'bias'}"] = (
                np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if part == "kernel" else array
            )
    for layer, stride in STRIDES.items():
        arrays[f"{layer}.weight"] = np.ascontiguousarray(bilinear_kernel(2 * stride, 21).transpose(2, 3, 0, 1))
    return arrays


def write(path: pathlib.Path, kind: str) -> None:
    """Writes the weights in one of FORMATS."""
    FORMATS[kind](path, torch_arrays())


def _write_caffemodel(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """NetParameter with a LayerParameter for each layer: name 1, type 2, blobs 7 (data 5, shape 7)."""
    with open(path, "wb") as file:
        for layer in dict.fromkeys(name.partition(".")[0] for name in arrays):
            kind = "Deconvolution" if layer in STRIDES else "Convolution"
            content = _field(1, layer.encode()) + _field(2, kind.encode())
            for part in ("weight", "bias"):
                array = arrays.get(f"{layer}.{part}")
                if array is not None:
                    shape = _field(1, b"".join(map(_varint, array.shape)))
                    content += _field(7, _field(5, array.tobytes()) + _field(7, shape))
            file.write(_field(100, content))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _write_pth(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(arrays, path)


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    ours = {
        name.replace(".weight", "/kernel").replace(".bias", "/bias"): array.transpose(2, 3, 1, 0)
        if array.ndim == 4
        else array
        for name, array in arrays.items()
        if name.partition(".")[0] not in STRIDES
    }
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **ours)


FORMATS = {
    "caffemodel": _write_caffemodel,
    "pth": _write_pth,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}


def measure(path: pathlib.Path, output: pathlib.Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of a conversion."""
    command = [sys.executable, "-m", "fcn_jax.weights", str(path), f"--output={output}", "--model=fcn8s"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default=",".join(FORMATS), help="with commas between")
    kinds = parser.parse_args().format.split(",")
    print("| format | MB | seconds | peak memory, MB | times the size |\n|---|---|---|---|---|")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "weights")
            # Written by a process of its own, so that this one's memory is not inherited.
            subprocess.run([sys.executable, __file__, "--write", str(path), kind], check=True)
            size = path.stat().st_size
            seconds, peak = measure(path, pathlib.Path(folder, "converted"))
            print(f"| {kind} | {size / 1e6:.0f} | {seconds:.1f} | {peak / 1e6:.0f} | {peak / size:.1f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        main()

"""VGG16 of Keras applications: conv1_1 to conv5_3 and, in the full file, fc6, fc7 and ImageNet's fc8.

HDF5 with one group per layer, block1_conv1 .. block5_conv3, fc1, fc2, predictions, which hold a kernel (HWIO, or
[in, out]) and a bias: block1_conv1/block1_conv1_W_1:0 and ..._b_1:0 in Keras' own files,
block1_conv1/block1_conv1/kernel:0 and .../bias:0 in those that Model.save_weights writes.
"""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax.weights import common

if TYPE_CHECKING:
    import h5py

_KERNELS = ("_W_1:0", "kernel:0")
_BIASES = ("_b_1:0", "bias:0")
_LAYERS = {
    **{
        f"block{block}_conv{i + 1}": f"conv{block}_{i + 1}"
        for block, count in enumerate((2, 2, 3, 3, 3), start=1)
        for i in range(count)
    },
    "fc1": "fc6",
    "fc2": "fc7",
    "predictions": "fc8",
}


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is HDF5."""
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def read(path: pathlib.Path) -> common.Weights:
    """Reads 'conv1_1/kernel' [3, 3, 3, 64] ... 'fc6/kernel' [7, 7, 512, 4096], 'fc7/kernel' [1, 1, 4096, 4096].

    Raises:
      ValueError: truncated, damaged, or not the weights of Keras' VGG16.
    """
    import h5py  # takes a while, and only this format needs it

    arrays: common.Arrays = {}
    notes: dict[str, str] = {}
    try:
        with h5py.File(path, "r") as file:
            for name, group in file.items():
                if isinstance(group, h5py.Group) and len(group):  # pooling layers are empty
                    _read_layer(name, group, path, arrays, notes)
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises for damage, by where it is
        raise ValueError(f"{path} is truncated or damaged ({error}); download it again") from error
    if "conv1_1/kernel" not in arrays:
        raise ValueError(f"{path} has no block1_conv1; expected the weights of Keras' VGG16")
    return common.Weights(arrays, notes, common.VGG)


def _read_layer(
    name: str, group: "h5py.Group", path: pathlib.Path, arrays: common.Arrays, notes: dict[str, str]
) -> None:
    """Adds a layer's arrays under the paper's names, and what was done to them."""
    if name not in _LAYERS:
        raise ValueError(f"{path} has a layer {name!r}, which Keras' VGG16 has not; it has {', '.join(_LAYERS)}")
    found = {}

    def visit(dataset: str, item: object) -> None:
        for part, endings in (("kernel", _KERNELS), ("bias", _BIASES)):
            if dataset.endswith(endings):
                found[part] = np.asarray(item, np.float32)

    group.visititems(visit)
    if len(found) < 2:
        raise ValueError(f"{path}: {name} lacks a kernel {' or '.join(_KERNELS)} or a bias {' or '.join(_BIASES)}")
    layer = _LAYERS[name]
    if layer.startswith("fc"):
        notes[f"{layer}/kernel"] = f"reshaped from {'x'.join(map(str, found['kernel'].shape))}"
        found["kernel"] = _as_convolution(found["kernel"], name, path)
    arrays |= {f"{layer}/{part}": array for part, array in found.items()}


def _as_convolution(kernel: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    """[in, out] to HWIO. Keras flattens pool5 in the order H, W, C, so fc1's rows are 7 x 7 x 512 in that order."""
    size = 7 if name == "fc1" else 1
    if kernel.ndim != 2 or (name == "fc1" and len(kernel) != 25088):
        wanted = "(25088, n)" if name == "fc1" else "(m, n)"
        raise ValueError(f"{path}: the kernel of {name} is {kernel.shape}, wanted {wanted} as for 224 x 224 images")
    return common.fully_connected(kernel.T, size, "HWC")

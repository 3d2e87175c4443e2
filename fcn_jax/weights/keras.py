"""VGG16 of Keras applications: conv1_1 to conv5_3 and, in the full file, fc6 and fc7.

HDF5 with one group per layer, block1_conv1 .. block5_conv3, fc1, fc2, predictions, which hold a kernel (HWIO, or
[in, out]) and a bias: block1_conv1/block1_conv1_W_1:0 and ..._b_1:0 in Keras' own files,
block1_conv1/block1_conv1/kernel:0 and .../bias:0 in those that Model.save_weights writes.
"""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax import download
from fcn_jax.weights import fold

if TYPE_CHECKING:
    import h5py

# From keras/src/applications/vgg16.py; the md5 sums are the ones that Keras publishes there and the sizes the ones that
# its progress bar prints, not measured here.
_URL = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
_FULL = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
_NOTOP = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"

_KERNELS = ("_W_1:0", "kernel:0")
_BIASES = ("_b_1:0", "bias:0")
_DROPPED = ("predictions",)  # the 1000 ImageNet classes, of no use in another task
_LAYERS = {
    **{
        f"block{block}_conv{i + 1}": f"conv{block}_{i + 1}"
        for block, count in enumerate((2, 2, 3, 3, 3), start=1)
        for i in range(count)
    },
    "fc1": "fc6",
    "fc2": "fc7",
}


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is HDF5."""
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def obtain(cache_dir: pathlib.Path) -> pathlib.Path:
    """Downloads the full file, 553 MB; errors as in `download.fetch`."""
    return download.fetch(_URL + _FULL, cache_dir / _FULL, size=553467096, md5="64373286793e3c8b2b4e3219cbf3544b")


def obtain_notop(cache_dir: pathlib.Path) -> pathlib.Path:
    """Downloads the file without fc6 and fc7, 59 MB; errors as in `download.fetch`."""
    return download.fetch(_URL + _NOTOP, cache_dir / _NOTOP, size=58889256, md5="6d6bbae143d832006294945121d1f1fc")


def read(path: pathlib.Path) -> fold.Arrays:
    """Reads 'conv1_1/kernel' [3, 3, 3, 64] ... 'fc6/kernel' [7, 7, 512, 4096], 'fc7/kernel' [1, 1, 4096, 4096].

    They are in our input convention; `predictions` is dropped.

    Raises:
      ValueError: truncated, damaged, or not the weights of Keras' VGG16.
    """
    import h5py  # takes a while, and only this format needs it

    arrays: fold.Arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for name, group in file.items():
                if isinstance(group, h5py.Group) and len(group) and name not in _DROPPED:  # pooling layers are empty
                    arrays |= _read_layer(name, group, path)
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises for damage, by where it is
        raise ValueError(f"{path} is truncated or damaged ({error}); download it again") from error
    if "conv1_1/kernel" not in arrays:
        raise ValueError(f"{path} has no block1_conv1; expected the weights of Keras' VGG16")
    return fold.fold(arrays, fold.KERAS)


def _read_layer(name: str, group: "h5py.Group", path: pathlib.Path) -> fold.Arrays:
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
    if name in ("fc1", "fc2"):
        found["kernel"] = _as_convolution(found["kernel"], name, path)
    return {f"{_LAYERS[name]}/{part}": array for part, array in found.items()}


def _as_convolution(kernel: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    """[in, out] to HWIO. Keras flattens pool5 in the order H, W, C, so fc1's rows are 7 x 7 x 512 in that order."""
    size = 7 if name == "fc1" else 1
    if kernel.ndim != 2 or (name == "fc1" and len(kernel) != 25088):
        wanted = "(25088, n)" if name == "fc1" else "(m, n)"
        raise ValueError(f"{path}: the kernel of {name} is {kernel.shape}, wanted {wanted} as for 224 x 224 images")
    return kernel.reshape(size, size, -1, kernel.shape[1])

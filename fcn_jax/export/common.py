"""What the formats share: the function that is exported, arrays in PyTorch's layouts, optional packages."""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import export

from fcn_jax.models import fcn, upsample
from fcn_jax.models.spec import ModelSpec

MODEL_KEY = "fcn_jax"  # of model.json, in formats with metadata
PLATFORMS = ("cpu", "cuda", "tpu")
# Protocol buffers and flatbuffers end at 2 GiB; a megabyte is for all but the parameters.
_LARGEST = 2**31 - 2**20


def model_json(spec: ModelSpec) -> str:
    """What model.json holds."""
    return json.dumps(spec.to_json())


def image_dtype(spec: ModelSpec) -> np.dtype:
    """uint8; float32 for networks with other channels than colour and HHA, since depth does not fit into 8 bits."""
    names = {given.name for parts in spec.streams.values() for given, _ in parts}
    return np.dtype(np.uint8 if names <= {"colour", "hha"} else np.float32)


def function(spec: ModelSpec) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, image [B, H, W, C]) -> logits float32 [B, H, W, num_classes]."""
    model = fcn.FCN(spec)

    def logits(params: Any, image: jax.Array) -> jax.Array:
        out: Any = model.apply({"params": params}, image)
        return out

    return logits


def exported(function: Callable[..., jax.Array], spec: ModelSpec, *params: Any) -> export.Exported:
    """StableHLO of function(*params, image) with symbolic batch, height and width, for CPU, CUDA and TPU.

    The sizes stay free without padding or masks: pooling, crops and interpolation matrices are written in terms of the
    symbolic ones, so that the program does for each size just what the library does for it.
    """
    shape = export.symbolic_shape(f"batch, height, width, {len(spec.mean)}")
    image = jax.ShapeDtypeStruct(shape, image_dtype(spec))
    with _without_folders():
        return export.export(jax.jit(function, keep_unused=True), platforms=PLATFORMS)(*params, image)


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """Keeps the folders of this machine's source files out of programs that are traced meanwhile."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*/")
    try:
        yield
    finally:
        jax.config.update(option, before)


def torch_kernel(kernel: np.ndarray, transposed: bool = False) -> np.ndarray:
    """[h, w, in, out] -> a contiguous copy [out, in, h, w], or [in, out, h, w] for a transposed convolution."""
    order = (2, 3, 0, 1) if transposed else (3, 2, 0, 1)
    return np.array(kernel.transpose(order), np.float32, order="C")


def torch_arrays(params: Any, spec: ModelSpec) -> dict[str, np.ndarray]:
    """All parameters as PyTorch has them, which a module with these layers loads strictly.

    Args:
      params: {layer: {'kernel': [h, w, in, out], 'bias': [out]}}.
      spec: of the network; where its upsampling is fixed, the bilinear kernels are written out.

    Returns:
      {'conv1_1.weight': [out, in, h, w], 'conv1_1.bias': [out], ..., 'upscore2.weight': [in, out, 4, 4]}, float32,
      contiguous, in memory of their own.
    """
    kernels = spec.upsampling_kernels
    arrays = {}
    for layer, values in params.items():
        arrays[f"{layer}.weight"] = torch_kernel(values["kernel"], layer in kernels)
        if "bias" in values:
            arrays[f"{layer}.bias"] = np.array(values["bias"], np.float32)
    if spec.upsampling == "fixed":
        for head, _ in spec.outputs:
            for layer, size in spec.kernels(head).items():
                kernel = upsample.bilinear_kernel(size, head.classes)
                arrays[f"{layer}.weight"] = torch_kernel(kernel, transposed=True)
    return arrays


def torch_input(spec: ModelSpec) -> str:
    """What a network with `torch_arrays` must be given, for a person."""
    mean = ", ".join(f"{value:g}" for value in spec.mean)
    return f"its input: float32 [B, {len(spec.mean)}, H, W], BGR in 0..255 minus ({mean})"


def require(package: str, format: str, remedy: str) -> Any:
    """Imports an optional package; ValueError with how to install it if it is not there."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(f"--format={format} needs the package {package}: {remedy}") from error


def refuse_larger_than_2_gib(params: Any, format: str) -> None:
    """ValueError if the parameters do not fit into one file of a format that ends there."""
    size = sum(array.nbytes for array in jax.tree.leaves(params))
    if size > _LARGEST:
        raise ValueError(
            f"the parameters take {size / 2**30:.1f} GiB, and --format={format} ends at 2: take --format=safetensors"
        )

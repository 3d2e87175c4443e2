""".safetensors files of VGG16 or of an FCN on it: PyTorch layouts under the paper's, torchvision's or timm's names."""

import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16, which safetensors asks NumPy for by name)
import safetensors

from fcn_jax.weights import common, torch_names

# The limit of the format's own reader.
_MAX_HEADER = 100_000_000


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` has the length of a header, and a header that is JSON."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_HEADER


def read(path: pathlib.Path) -> common.Weights:
    """Reads all tensors; the file's metadata 'fcn_jax', a model.json, becomes `model`.

    Raises:
      ValueError: truncated or damaged, or not VGG16 nor an FCN on it.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            model = _model(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (safetensors.SafetensorError, AttributeError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is truncated or damaged ({reason}); get it again") from error
    return torch_names.convert(tensors, path, model, None if model is None else model.get("at_once"))


def _model(metadata: dict[str, str]) -> dict[str, Any] | None:
    if "fcn_jax" not in metadata:
        return None
    model = json.loads(metadata["fcn_jax"])
    if not isinstance(model, dict):
        raise ValueError("its metadata fcn_jax is no model.json")
    return model

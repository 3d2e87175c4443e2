"""A safetensors file of all parameters, in PyTorch's layouts and under the paper's names."""

import pathlib
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from fcn_jax.export import common
from fcn_jax.models.spec import ModelSpec

CARRIES_MODEL_JSON = True


def check(spec: ModelSpec) -> None:
    """Takes every network."""


def write(path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """`common.torch_arrays`, with metadata 'fcn_jax' (model.json) and 'format', which Hugging Face's readers want.

    Raises:
      OSError: it cannot be written.
    """
    metadata = {common.MODEL_KEY: common.model_json(spec), "format": "pt"}
    path.touch()
    mode = path.stat().st_mode  # what the umask says; the library's own is the owner's alone
    try:
        save_file(common.torch_arrays(params, spec), path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)


def usage(path: pathlib.Path, spec: ModelSpec) -> str:
    """How to read it."""
    load = f"from safetensors.torch import load_file; model.load_state_dict(load_file({str(path)!r}))"
    return f"{load}  # {common.torch_input(spec)}"

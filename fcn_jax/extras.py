"""Packages that not everybody needs: they come with an extra, such as pip install 'fcn_jax[video]'."""

import importlib
from typing import Any


def need(package: str, extra: str) -> Any:
    """The package of an extra, imported.

    Raises:
      ValueError: it is not installed, or does not work on this machine; with how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != root:
            raise
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not work here ({error})"
        raise ValueError(
            f"the package {root} {reason}: pip install 'fcn_jax[{extra}]', in a clone '.[{extra}]'"
        ) from None

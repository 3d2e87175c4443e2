"""JSON files, which anyone may have edited and any disk may have cut short."""

import json
import os
import pathlib
from typing import Any

_DEPTH = 50  # of values in values; what is read needs a handful


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in the file at `path`, in UTF-8, 16 or 32.

    Raises:
      ValueError: in one line that names the file: damaged, no object, or nested more than 50 deep.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON ({error}): put a copy of it back") from None
    if not isinstance(value, dict) or _is_deep(value):
        raise ValueError(f"{path} holds no JSON object of at most {_DEPTH} levels: put a copy of it back")
    return value


def _is_deep(value: Any) -> bool:
    """Whether there are values more than `_DEPTH` levels in; by level, since recursion has its own limit."""
    level = [value]
    for _ in range(_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [child for part in parts for child in part]
    return bool(level)

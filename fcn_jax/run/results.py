"""What an evaluation leaves in a run's folder: scores, a table of images, pictures."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fcn_jax import files, multiscale


def scoring(config: ConfigDict, inputs: str = "colour") -> dict[str, Any]:
    """What else than the weights the scores depend on: {scales, flip}, and the unusual of inputs, mask and refine."""
    found = {"scales": list(config.eval.scales), "flip": config.eval.flip}
    unusual = {"inputs": inputs if inputs != "colour" else "", "mask": config.eval.mask, "refine": config.eval.refine}
    return {**found, **{key: value for key, value in unusual.items() if value}}


def name_of(split: str, scales: Sequence[float], *, flip: bool, mask: str = "", refine: bool = False) -> str:
    """What files of results are called: `val`, 'train[:50%]' as train_-50pct, scored otherwise val_x0.75_x1_flip."""
    name = split.replace("[", "_").replace("]", "").replace(":", "-").replace("%", "pct")
    if not multiscale.is_plain(scales, flip=flip):
        name += "".join(f"_x{scale:g}" for scale in scales) + ("_flip" if flip else "")
    return name + ("_refined" if refine else "") + (f"_without_{mask}" if mask else "")


def write(workdir: pathlib.Path, results: dict[str, Any], panels: Sequence[np.ndarray]) -> None:
    """Writes eval_<name>.json, eval_<name>.csv (a line an image) and pictures/<name>_<k>.png, named by name_of.

    NaN becomes null in the one, and nothing in the other.
    """
    more = {key: results[key] for key in ("mask", "refine") if key in results}
    name = name_of(results["split"], results["scales"], flip=results["flip"], **more)
    rows = results["per_image"]
    readable = _null_if_nan({key: value for key, value in results.items() if key != "per_image"})
    files.write(workdir / f"eval_{name}.csv", _csv(rows))
    (workdir / "pictures").mkdir(exist_ok=True)
    for index, picture in enumerate(panels):
        Image.fromarray(picture).save(workdir / "pictures" / f"{name}_{index}.png")
    files.write(workdir / f"eval_{name}.json", json.dumps(readable, indent=2) + "\n")  # last: all is there


def _csv(rows: list[dict[str, Any]]) -> str:
    """The worst image first; those without a labelled pixel last."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: (np.isnan(row["mean_iou"]), row["mean_iou"])):
        writer.writerow({key: _readable(value) for key, value in row.items()})
    return file.getvalue()


def _readable(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return value


def _null_if_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_if_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

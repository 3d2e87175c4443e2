"""Whether a checkpoint is as it was written: by its digests, or, where an earlier version wrote none, by reading it."""

import pathlib
from collections.abc import Sequence

import tensorstore

from fcn_jax import digests, json_file
from fcn_jax.models import spec as model_spec

MODEL_JSON = "model/model.json"
ITEMS = ("params", "train")  # of arrays; converted weights have the first alone


def flaw(directory: pathlib.Path, items: Sequence[str] = ITEMS) -> str:
    """Why a checkpoint cannot be read, empty if it can; of its arrays those of `items` are looked at."""
    try:
        if (directory / digests.NAME).exists():
            damage = digests.damage(directory, skip=[item for item in ITEMS if item not in items])
            if damage:
                return damage
        else:
            _read(directory, items)
        for path in directory.glob("metrics/metrics"):
            json_file.read(path)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:  # by which byte is missing
        lines = str(error).splitlines() or [type(error).__name__]
        return lines[0].replace(f"{directory}/", "")[:100]
    return ""


def _read(directory: pathlib.Path, items: Sequence[str]) -> None:
    """Reads one after the other what Orbax reads all at once: where that fails, its threads print tracebacks."""
    model_spec.read(directory / MODEL_JSON)
    for path in directory.glob("*/array_metadatas/*"):
        json_file.read(path)
    for item in items:
        saved = json_file.read(directory / item / "_METADATA")
        driver = "zarr3" if saved["use_zarr3"] else "zarr"
        folder = {"driver": "file", "path": f"{directory / item}/"}
        for leaf in saved["tree_metadata"].values():
            value = leaf["value_metadata"]
            if value["value_type"] == "None" or value["skip_deserialize"]:
                continue
            name = ".".join(str(part["key"]) for part in leaf["key_metadata"] if part["key_type"])
            store = {"driver": "ocdbt", "base": folder, "path": name}
            tensorstore.open({"driver": driver, "kvstore": store}, read=True).result().read().result()

"""Networks by name, which are converted once, and are then checkpoints like any other.

Small ones come along in boxed/, each with a model card; those that others publish are downloaded.
"""

import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fcn_jax.models.spec import ModelSpec

log = logging.getLogger(__name__)

CACHE = "~/.cache/fcn_jax"
# Of weights.SOURCES those that are whole networks, and which they are.
PUBLISHED = {
    "caffe-fcn8s": "fcn8s",
    "caffe-fcn32s": "fcn32s",
    "pytorch-fcn32s": "fcn32s",
    "pytorch-fcn16s": "fcn16s",
    "pytorch-fcn8s": "fcn8s",
    "pytorch-fcn8s-atonce": "fcn8s_atonce",
}
BOXED = pathlib.Path(__file__).parent / "boxed"  # NAME.safetensors of 16 bits, NAME.md
# Whose classes networks without names have, by how many each head has.
_RELEASED = {(21,): "voc_segmentation", (40,): "nyudv2", (33, 3): "sift_flow", (60,): "pascal_context"}


def locate(source: str | os.PathLike[str], cache_dir: str = CACHE) -> pathlib.Path:
    """The path of a checkpoint: `source`, or for the name of a network what it is converted to, in the cache.

    Names are those of PUBLISHED and of `boxed`.

    Raises:
      OSError: the download failed.
      ValueError: what was downloaded is not what was published, or the name is of a classifier.
    """
    name, path = str(source), pathlib.Path(source).expanduser()
    if path.exists() or path.name != name:
        return path
    from fcn_jax import download, weights
    from fcn_jax.weights import convert

    cache = pathlib.Path(cache_dir).expanduser().absolute()
    if name in boxed():
        return _unboxed(name, cache)
    if name not in PUBLISHED:
        if name in weights.SOURCES:
            raise ValueError(
                f"{name} is a classifier, to start training from: a network is a run, converted weights, or one of"
                f" {', '.join((*boxed(), *PUBLISHED))}"
            )
        return path
    converted = cache / "networks" / name
    with download.exclusive(cache / "networks"):
        if not converted.exists():
            found = weights.read(name, cache / "weights")
            heads = [head.classes for head in found.heads()]
            class_names, palette = classes_of(found.model, heads)
            spec = convert.spec_for(found, model=PUBLISHED[name], class_names=class_names, palette=palette)
            log.info("converting %s once: %s", name, convert.describe(spec))
            convert.write(converted, convert.fit(found, spec), spec)
    return converted


def boxed() -> list[str]:
    """The names of the networks that come along."""
    return sorted(path.stem for path in BOXED.glob("*.safetensors"))


def unpacked(source: str | os.PathLike[str]) -> tuple[Any, ModelSpec] | None:
    """Parameters (NumPy, float32) and network of one of `boxed`, without the cache; None for anything else."""
    path = pathlib.Path(source).expanduser()
    return None if path.exists() or str(source) not in boxed() else _read(BOXED / f"{source}.safetensors")


def _read(path: pathlib.Path) -> tuple[Any, ModelSpec]:
    from fcn_jax import weights
    from fcn_jax.weights import convert

    found = weights.read_file(path)
    spec = convert.spec_for(found)
    return convert.exactly(found, spec), spec


def _unboxed(name: str, cache: pathlib.Path) -> pathlib.Path:
    """By its digest, since a later version may bring another network of that name."""
    from fcn_jax import download
    from fcn_jax.weights import convert

    path = BOXED / f"{name}.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    converted = cache / "networks" / f"{name}-{digest[:12]}"
    with download.exclusive(cache / "networks"):
        if not converted.exists():
            convert.write(converted, *_read(path))
    return converted


def classes_of(model: dict[str, Any] | None, heads: Sequence[int]) -> tuple[Sequence[str], Sequence[Any]]:
    """(names, colours) of a network with so many classes a head: its own, those of its dataset, or numbers."""
    from fcn_jax.data import datasets
    from fcn_jax.data.dataset import voc_palette

    if model is not None:
        return model["class_names"], model["palette"]
    name = _RELEASED.get(tuple(heads))
    labels = datasets.find(name).labels if name else ()
    names = [name for each in labels for name in each.class_names]
    palette = [colour for each in labels for colour in each.palette]
    return names or [str(index) for index in range(sum(heads))], palette or voc_palette(sum(heads))

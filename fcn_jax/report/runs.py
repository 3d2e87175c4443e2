"""A run as a report needs it: its config, its curves, its evaluations, and what is measured of its network."""

import dataclasses
import hashlib
import logging
import pathlib
from typing import Any

import jax

from fcn_jax import checkpoint, json_file, metrics, predictor
from fcn_jax import config as config_lib
from fcn_jax.data import datasets
from fcn_jax.models.spec import ModelSpec
from fcn_jax.report import measure
from fcn_jax.run import curves, environment, results

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What is known of a run.

    Attributes:
      name: what it is called in the report: of its folder.
      settings: {key: value} of config.json, flat, with defaults for keys that are newer.
      points: of curves.jsonl.
      starts: of starts.jsonl.
      recorded: {name: eval_<name>.json} of all evaluations.
      step: of the checkpoint.
      measured: None where the split cannot be opened, for which `reason` tells why.
      pictures: of some images.
    """

    name: str
    workdir: pathlib.Path
    settings: dict[str, Any]
    points: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    recorded: dict[str, dict[str, Any]]
    step: int
    spec: ModelSpec
    parameters: int
    split: datasets.Split | None
    measured: measure.Measured | None
    pictures: list["Picture"]
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image [H, W, C] with its truth and prediction uint8 [H, W], and why it is shown."""

    kind: str
    id: str
    mean_iou: float
    image: Any
    truth: Any
    prediction: Any


def open_run(workdir: pathlib.Path, *, which: str, split: str, number: int, name: str) -> Run:
    """Reads a run and measures its network on a split ('' for that of its config), with pictures of `number` images.

    Raises:
      FileNotFoundError: there is no run, or no checkpoint in it.
      ValueError: its files are damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{str(workdir)!r} is no run: it has no config.json; give the --workdir of a training")
    config = config_lib.completed(json_file.read(path))
    directory = checkpoint.find(workdir, which)
    network = predictor.load(directory, max_side=0)
    opened, measured, pictures, reason = None, None, [], ""
    try:
        opened = _open(config, split or config["data.eval_split"])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        log.warning("%s: only what the run has recorded is shown: %s", workdir, reason)
    if opened is not None:
        measured = _measured(workdir, directory, network, opened, config)
        pictures = _pictures(network, opened, measured, config["eval.mask"], number)
    return Run(
        name=name,
        workdir=workdir,
        settings=config,
        points=curves.read(workdir),
        starts=environment.read(workdir),
        recorded={p.stem.removeprefix("eval_"): json_file.read(p) for p in sorted(workdir.glob("eval_*.json"))},
        step=int(directory.name),
        spec=network.spec,
        parameters=sum(array.size for array in jax.tree.leaves(network.params)),
        split=opened,
        measured=measured,
        pictures=pictures,
        reason=reason,
    )


def _open(config: dict[str, Any], split: str) -> datasets.Split:
    keys = ("raw_dir", "data_dir", "corrupt", "annotated")
    return datasets.open_split(config["data.name"], split, **{key: config[f"data.{key}"] for key in keys})


def _measured(
    workdir: pathlib.Path,
    directory: pathlib.Path,
    network: predictor.Predictor,
    split: datasets.Split,
    config: dict[str, Any],
) -> measure.Measured:
    """Kept in the run's folder, since a pass takes minutes."""
    scales, flip, refine, mask = (config[f"eval.{key}"] for key in ("scales", "flip", "refine", "mask"))
    digests = directory / "SHA256SUMS"
    weights = digests.read_text() if digests.exists() else str(directory.stat().st_mtime_ns)
    key = repr((weights, split.name, split.split, _digest(split), scales, flip, refine, mask, metrics.BOUNDARY))
    name = results.name_of(split.split, scales, flip=flip, mask=mask, refine=refine)
    path = workdir / f"report_{name}_{directory.name}.npz"
    return measure.remembered(path, key, lambda: measure.measure(network, split, mask))


def _digest(split: datasets.Split) -> str:
    """Of all that the examples are made of: a label that is mended is another one."""
    found = hashlib.sha256()
    for index in range(len(split.ids)):
        for name, value in sorted(split.source[index].items()):
            found.update(name.encode())
            found.update(value if isinstance(value, bytes) else repr(value).encode())
    return found.hexdigest()


def _pictures(
    network: predictor.Predictor, split: datasets.Split, measured: measure.Measured, mask: str, number: int
) -> list[Picture]:
    """The best, the median and the worst images, a third each."""
    chosen = measure.extremes(measured.of_images(), number)
    kinds = {measured.ids[place]: (kind, value) for kind, place, value in chosen}
    places = [split.ids.index(name) for name in kinds]
    found = []
    for example in measure.examples(split, network.spec.input_names, places, mask):
        prediction = measure.first_head(network(example["image"]))
        found.append(Picture(*_of(kinds, example["id"]), example["image"], example["label"], prediction))
    return found


def _of(kinds: dict[str, tuple[str, float]], name: str) -> tuple[str, str, float]:
    kind, value = kinds[name]
    return kind, name, value

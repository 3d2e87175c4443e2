"""One pass over a split: one confusion matrix, every image once."""

import csv
import functools
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from fcn_jax import checkpoint, distributed, metrics, multiscale, progress, sharding, steps, visualize
from fcn_jax import config as config_lib
from fcn_jax import workdir as workdir_lib
from fcn_jax.data import canvases, datasets, pipeline
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec

# An evaluation step for each canvas (height, width) of a split.
Steps = Mapping[tuple[int, int], Callable[..., Any]]


def input_names(spec: ModelSpec) -> tuple[str, ...]:
    """What the images of a network are made of, in the order of their channels."""
    return tuple(given.name for stream in spec.streams.values() for given, _ in stream)


def compile_eval_steps(spec: ModelSpec, places: Any, mesh: Mesh, split: datasets.Split, config: ConfigDict) -> Steps:
    """steps.eval_step of one network on the batches of one split, compiled over the mesh, by canvas.

    `places` are the shardings of the parameters (one for all will do). The counts come back whole on every device.
    ValueError with what would fit if the memory does not suffice.
    """
    used = {batch.canvas for batch in canvases.batches(split.sizes, config.eval.batch_size)}
    # The largest first, since it shows whether the memory suffices.
    return {
        canvas: _compile_eval_step(spec, places, mesh, canvas, config)
        for canvas in sorted(used, key=lambda canvas: -canvas[0] * canvas[1])
    }


def _compile_eval_step(
    spec: ModelSpec, places: Any, mesh: Mesh, canvas: tuple[int, int], config: ConfigDict
) -> Callable[..., Any]:
    batch_size = config.eval.batch_size
    step = functools.partial(
        steps.eval_step,
        model=fcn.FCN(spec, dtype=config.model.dtype),
        heads=[place for _, place in spec.outputs],
        scales=tuple(config.eval.scales),
        flip=config.eval.flip,
    )
    whole, divided = sharding.replicated(mesh), sharding.split_batch(mesh, 0)
    batch = batch_shapes(spec, (batch_size,), canvas, divided)
    params = checkpoint.with_sharding(fcn.abstract_params(spec), places)
    outputs = {"confusion": whole, "loss": whole, "prediction": divided}
    compiled = jax.jit(step, out_shardings=outputs).lower(params, batch).compile()
    sharding.check_memory("eval.batch_size", compiled.memory_analysis(), params, batch_size, mesh)
    return compiled


def batch_shapes(
    spec: ModelSpec, lead: tuple[int, ...], canvas: tuple[int, int], place: jax.sharding.Sharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a network is given, of such leading axes: image, label and size."""
    dtype = jnp.float32 if "depth" in input_names(spec) else jnp.uint8
    heads = () if len(spec.outputs) == 1 else (len(spec.outputs),)
    return {
        "image": jax.ShapeDtypeStruct((*lead, *canvas, len(spec.mean)), dtype, sharding=place),
        "label": jax.ShapeDtypeStruct((*lead, *canvas, *heads), jnp.uint8, sharding=place),
        "size": jax.ShapeDtypeStruct((*lead, 2), jnp.int32, sharding=place),
    }


def evaluate(
    steps: Steps,
    params: Any,
    split: datasets.Split,
    mesh: Mesh,
    *,
    batch_size: int,
    num_threads: int,
    pictures: int = 0,
    corrupt: str = "raise",
    inputs: Sequence[str] = pipeline.COLOUR,
    mask: str = "",
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The results of `params` on a split, and panels of its first images; `inputs` are those of the network.

    Returns:
      ({per_image: [{id, labelled (pixels), pixel_accuracy, mean_iou}], split, num_examples (that were read),
      num_corrupt (that were not, or were left out when the split was prepared), loss (mean per labelled pixel), the
      four scores, per_class_iou {name: value}, confusion_matrix}, panels RGB [H', W', 3]). Of a dataset with several
      heads these are the scores of the first one, and `heads` has those of each, by its name; its panels have a row for
      each.
    """
    plan = canvases.batches(split.sizes, batch_size)
    dataset = pipeline.eval_dataset(
        split,
        plan,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        corrupt=corrupt,
        inputs=inputs,
        mask=mask,
    )
    skipped = 0
    confusion = np.zeros((len(split.class_names),) * 2, np.int64)
    loss = np.zeros(len(split.heads))
    rows: dict[int, dict[str, Any]] = {}
    panels: dict[int, np.ndarray] = {}
    pending: list[tuple[canvases.Batch, dict[str, jax.Array]]] = []

    def add(planned: canvases.Batch, counts: dict[str, jax.Array]) -> None:
        nonlocal confusion, loss
        per_image = jax.device_get(counts["confusion"])
        rows.update((index, _row(split, index, c)) for index, c in zip(planned.images, per_image, strict=False))
        confusion, loss = confusion + per_image.sum(0, dtype=np.int64), loss + jax.device_get(counts["loss"])

    batches = zip(plan, pipeline.iterate(dataset, 0, num_threads), strict=True)
    for planned, batch in progress.bar(batches, f"evaluating {split.split}", len(dataset), "batches"):
        arrays = {key: batch[key] for key in ("image", "label", "size")}
        skipped += int(batch["corrupt"].sum())
        counts = steps[planned.canvas](params, sharding.to_devices(arrays, mesh, 0))
        share = batch_size // jax.process_count()
        places = planned.images[jax.process_index() * share :][:share]
        _add_panels(panels, pictures, places, batch, counts["prediction"], split, inputs)
        pending.append((planned, counts))
        # Counts are fetched one batch late, so that the devices never wait for the host.
        if len(pending) > 1:
            add(*pending.pop(0))
    for last in pending:
        add(*last)
    skipped = distributed.total(skipped)
    heads = _scores_by_head(split, confusion, loss)
    results = {
        "per_image": [rows[index] for index in sorted(rows)],
        "split": split.split,
        "num_examples": len(split.ids) - skipped,
        "num_corrupt": skipped + len(split.corrupt),
        **next(iter(heads.values())),
    }
    return {**results, **({"heads": heads} if len(heads) > 1 else {})}, [panels[index] for index in sorted(panels)]


def _scores_by_head(split: datasets.Split, confusion: np.ndarray, loss: np.ndarray) -> dict[str, dict[str, Any]]:
    """Loss, scores and confusion matrix of each head by its name."""
    found: dict[str, dict[str, Any]] = {}
    for (_, name, _), place, total in zip(split.heads, split.places, loss.tolist(), strict=True):
        part, class_names = confusion[place, place], split.class_names[place]
        unscored = [index - place.start for index in split.unscored if place.start <= index < place.stop]
        scores = metrics.scores(part, unscored)
        scores["per_class_iou"] = dict(zip(class_names, scores["per_class_iou"].tolist(), strict=True))
        found[name] = {"loss": total / max(int(part.sum()), 1), **scores, "confusion_matrix": part.tolist()}
    return found


def evaluate_checkpoint(config: ConfigDict, workdir: pathlib.Path, *, split: str, which: str) -> dict[str, Any]:
    """--mode=eval: a checkpoint of a run, or any checkpoint directory, on a split; writes its results."""
    config_lib.validate(config)
    mesh = sharding.make_mesh()
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size)
    directory = checkpoint.find(workdir, which)
    whole = sharding.replicated(mesh)
    params, spec = checkpoint.load_params(directory, whole)
    data = datasets.open_split(
        config.data.name,
        split,
        raw_dir=config.data.raw_dir,
        data_dir=config.data.data_dir,
        corrupt=config.data.corrupt,
        annotated=config.data.annotated,
    )
    if not data.inputs.keys() >= {*input_names(spec)}:
        takes, has = " and ".join(input_names(spec)), ", ".join(data.inputs)
        raise ValueError(f"the network takes {takes}, and the images of {config.data.name} have {has}")
    if tuple(data.class_names) != spec.class_names:
        raise ValueError(
            f"the checkpoint knows {len(spec.class_names)} classes ({', '.join(spec.class_names)}),"
            f" but {config.data.name} has {len(data.class_names)} ({', '.join(data.class_names)}):"
            " evaluate it on its own dataset"
        )
    results, panels = evaluate(
        compile_eval_steps(spec, whole, mesh, data, config),
        params,
        data,
        mesh,
        batch_size=config.eval.batch_size,
        num_threads=config.data.num_threads,
        pictures=config.eval.pictures,
        corrupt=config.data.corrupt,
        inputs=input_names(spec),
        mask=config.eval.mask,
    )
    results = {"step": int(directory.name) if directory.name.isdigit() else 0, **scoring(config), **results}
    if distributed.is_main():
        write_results(workdir, results, data, panels)
    return results


def scoring(config: ConfigDict, inputs: str = "colour") -> dict[str, Any]:
    """What else than the weights the scores depend on: {scales, flip}; inputs and a mask where they are unusual."""
    found = {"scales": list(config.eval.scales), "flip": config.eval.flip}
    unusual = {"inputs": inputs if inputs != "colour" else "", "mask": config.eval.mask}
    return {**found, **{key: value for key, value in unusual.items() if value}}


def results_name(split: str, scales: Sequence[float], *, flip: bool, mask: str = "") -> str:
    """What files of results are called: `val`, 'train[:50%]' as train_-50pct, scored otherwise val_x0.75_x1_flip."""
    name = split.replace("[", "_").replace("]", "").replace(":", "-").replace("%", "pct")
    if not multiscale.is_plain(scales, flip=flip):
        name += "".join(f"_x{scale:g}" for scale in scales) + ("_flip" if flip else "")
    return name + (f"_without_{mask}" if mask else "")


def write_results(
    workdir: pathlib.Path, results: dict[str, Any], split: datasets.Split, panels: list[np.ndarray]
) -> None:
    """Writes eval_<name>.json, eval_<name>.csv (a line an image) and pictures/<name>_<k>.png, named by results_name.

    NaN becomes null in the one, and nothing in the other.
    """
    name = results_name(split.split, results["scales"], flip=results["flip"], mask=results.get("mask", ""))
    rows = results["per_image"]
    readable = _null_if_nan({key: value for key, value in results.items() if key != "per_image"})
    workdir_lib.write(workdir / f"eval_{name}.csv", _csv(rows))
    (workdir / "pictures").mkdir(exist_ok=True)
    for index, picture in enumerate(panels):
        Image.fromarray(picture).save(workdir / "pictures" / f"{name}_{index}.png")
    workdir_lib.write(workdir / f"eval_{name}.json", json.dumps(readable, indent=2) + "\n")  # last: all is there


def _row(split: datasets.Split, index: int, confusion: np.ndarray) -> dict[str, Any]:
    """The scores of one image, by the first head; the mean IU is over classes that it or its prediction has."""
    first = split.places[0]
    confusion = confusion[first, first]
    scores = metrics.scores(confusion, [place for place in split.unscored if place < first.stop])
    kept = {key: scores[key] for key in ("pixel_accuracy", "mean_iou")}
    return {"id": split.ids[index], "labelled": int(confusion.sum()), **kept}


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


def _add_panels(
    panels: dict[int, np.ndarray],
    most: int,
    places: Sequence[int],
    batch: dict[str, np.ndarray],
    prediction: jax.Array,
    split: datasets.Split,
    inputs: Sequence[str],
) -> None:
    """Keeps those of the first images of the split, by their places, that this process has been given."""
    limit = max(panels) if len(panels) >= most > 0 else len(split.ids)
    wanted = [k for k, place in enumerate(places) if place < limit and not batch["corrupt"][k]]
    if not most or not wanted:
        return
    local = np.concatenate([jax.device_get(shard.data) for shard in prediction.addressable_shards])
    for k in wanted:
        part = tuple(slice(n) for n in batch["size"][k])
        shown, heads = _colour(batch["image"][k][part], inputs), len(split.heads)
        labels, found = (steps.by_head(x[k][part], heads) for x in (batch["label"], local))
        rows = [
            visualize.panel(shown, label, predicted, split.class_names[place], split.palette[place])
            for label, predicted, place in zip(labels, found, split.places, strict=True)
        ]
        panels[places[k]] = np.concatenate(rows)
    for place in sorted(panels)[most:]:
        del panels[place]


def _colour(image: np.ndarray, inputs: Sequence[str]) -> np.ndarray:
    """What a person is shown of an image [H, W, C]: its colour, or its first input; uint8 [H, W, 3]."""
    shown = "colour" if "colour" in inputs else inputs[0]
    part = image[..., pipeline.place_of(shown, inputs)]
    if part.shape[2] == 1:
        part = np.repeat(255 * part / max(part.max(), 1), 3, axis=2)
    return part.astype(np.uint8)


def _null_if_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_if_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

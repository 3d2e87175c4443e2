"""One pass over a split: one confusion matrix, every image once."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import checkpoint, metrics, sharding, steps, visualize
from fcn_jax import config as config_lib
from fcn_jax.data import canvases, datasets, pipeline
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run import distributed, progress, results, rules


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The pass of one network over one split, compiled over the mesh: a step for each canvas (height, width)."""

    spec: ModelSpec
    split: datasets.Split
    mesh: Mesh
    config: ConfigDict
    steps: Mapping[tuple[int, int], Callable[..., Any]]

    def __call__(self, params: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The results of `params`, and panels of the first images.

        Returns:
          ({per_image: [{id, labelled (pixels), pixel_accuracy, mean_iou}], split, num_examples (that were read),
          num_corrupt (that were not, or were left out when the split was prepared), loss (mean per labelled pixel), the
          four scores, per_class_iou {name: value}, confusion_matrix}, panels RGB [H', W', 3]). Of a dataset with
          several heads these are the scores of the first one, and `heads` has those of each, by its name; its panels
          have a row for each.
        """
        split, skipped = self.split, 0
        totals, panels = _Totals(split), _Panels(split, self.spec.input_names, self.config.eval.pictures)
        pending: list[tuple[canvases.Batch, dict[str, jax.Array]]] = []
        for planned, batch in self._batches():
            arrays = {key: batch[key] for key in ("image", "label", "size")}
            skipped += int(batch["corrupt"].sum())
            counts = self.steps[planned.canvas](params, sharding.to_devices(arrays, self.mesh, 0))
            panels.add(self._share(planned), batch, counts["prediction"])
            pending.append((planned, counts))
            # Counts are fetched one batch late, so that the devices never wait for the host.
            if len(pending) > 1:
                totals.add(*pending.pop(0))
        for last in pending:
            totals.add(*last)
        skipped = distributed.total(skipped)
        heads = totals.by_head()
        found = {
            "per_image": [totals.rows[index] for index in sorted(totals.rows)],
            "split": split.split,
            "num_examples": len(split.ids) - skipped,
            "num_corrupt": skipped + len(split.corrupt),
            **next(iter(heads.values())),
        }
        return {**found, **({"heads": heads} if len(heads) > 1 else {})}, panels.in_order()

    def _batches(self) -> Any:
        """What is planned of each batch, and this process's share of it."""
        config = self.config
        plan = canvases.batches(self.split.sizes, config.eval.batch_size)
        dataset = pipeline.eval_dataset(
            self.split,
            plan,
            batch_size=config.eval.batch_size,
            mask=config.eval.mask,
            reading=pipeline.Reading(
                self.spec.input_names, config.data.corrupt, jax.process_index(), jax.process_count()
            ),
        )
        batches = zip(plan, pipeline.iterate(dataset, 0, config.data.num_threads), strict=True)
        return progress.bar(batches, f"evaluating {self.split.split}", len(dataset), "batches")

    def _share(self, planned: canvases.Batch) -> Sequence[int]:
        """The images of a batch that this process is given."""
        share = self.config.eval.batch_size // jax.process_count()
        return planned.images[jax.process_index() * share :][:share]


def compiled(spec: ModelSpec, places: Any, mesh: Mesh, split: datasets.Split, config: ConfigDict) -> Evaluator:
    """The evaluator of a network on the batches of a split.

    `places` are the shardings of the parameters (one for all will do). ValueError with what would fit if the memory
    does not suffice.
    """
    used = {batch.canvas for batch in canvases.batches(split.sizes, config.eval.batch_size)}
    # The largest first, since it shows whether the memory suffices.
    by_canvas = {
        canvas: _compile_step(spec, places, mesh, canvas, config)
        for canvas in sorted(used, key=lambda canvas: -canvas[0] * canvas[1])
    }
    return Evaluator(spec, split, mesh, config, by_canvas)


def _compile_step(
    spec: ModelSpec, places: Any, mesh: Mesh, canvas: tuple[int, int], config: ConfigDict
) -> Callable[..., Any]:
    """steps.eval_step; the counts come back whole on every device."""
    batch_size = config.eval.batch_size
    step = _step(spec, config.model.dtype, tuple(config.eval.scales), config.eval.flip, config.eval.refine)
    whole, divided = sharding.replicated(mesh), sharding.split_batch(mesh, 0)
    batch = steps.batch_shapes(spec, (batch_size,), canvas, divided)
    params = checkpoint.with_sharding(fcn.abstract_params(spec), places)
    outputs = {"confusion": whole, "loss": whole, "prediction": divided}
    program = jax.jit(step, out_shardings=outputs).lower(params, batch).compile()
    sharding.check_memory("eval.batch_size", program.memory_analysis(), params, batch_size, mesh)
    return program


@functools.lru_cache(16)  # equal steps are one, so that they share a program
def _step(spec: ModelSpec, dtype: str, scales: tuple[float, ...], flip: bool, refine: bool) -> Callable[..., Any]:
    model, heads = fcn.FCN(spec, dtype=dtype), [place for _, place in spec.outputs]
    return functools.partial(steps.eval_step, model=model, heads=heads, scales=scales, flip=flip, refine=refine)


def evaluate_checkpoint(config: ConfigDict, workdir: pathlib.Path, *, split: str, which: str) -> dict[str, Any]:
    """--mode=eval: a checkpoint of a run, or any checkpoint directory, on a split; writes its results."""
    config = config_lib.filled(rules.recorded(config, workdir))
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
    _check_fits(spec, data)
    found, panels = compiled(spec, whole, mesh, data, config)(params)
    step = int(directory.name) if directory.name.isdigit() else 0
    found = {"step": step, **results.scoring(config), **found}
    if distributed.is_main():
        results.write(workdir, found, panels)
    return found


def _check_fits(spec: ModelSpec, data: datasets.Split) -> None:
    """Raises ValueError where a network and a split do not go together."""
    if not data.inputs.keys() >= {*spec.input_names}:
        takes, has = " and ".join(spec.input_names), ", ".join(data.inputs)
        raise ValueError(f"the network takes {takes}, and the images of {data.name} have {has}")
    if tuple(data.class_names) != spec.class_names:
        raise ValueError(
            f"the checkpoint knows {len(spec.class_names)} classes ({', '.join(spec.class_names)}),"
            f" but {data.name} has {len(data.class_names)} ({', '.join(data.class_names)}):"
            " evaluate it on its own dataset"
        )


class _Totals:
    """What the counts of the batches add up to."""

    def __init__(self, split: datasets.Split):
        self.rows: dict[int, dict[str, Any]] = {}
        self._split = split
        self._confusion = np.zeros((len(split.class_names),) * 2, np.int64)
        self._loss = np.zeros(len(split.heads))

    def add(self, planned: canvases.Batch, counts: dict[str, jax.Array]) -> None:
        """Those of steps.eval_step; what fills a batch up counts nothing."""
        per_image = jax.device_get(counts["confusion"])
        self.rows.update((index, self._row(index, c)) for index, c in zip(planned.images, per_image, strict=False))
        self._confusion = self._confusion + per_image.sum(0, dtype=np.int64)
        self._loss = self._loss + jax.device_get(counts["loss"])

    def by_head(self) -> dict[str, dict[str, Any]]:
        """Loss, scores and confusion matrix of each head by its name."""
        found: dict[str, dict[str, Any]] = {}
        split = self._split
        for (_, name, _), place, total in zip(split.heads, split.places, self._loss.tolist(), strict=True):
            part, class_names = self._confusion[place, place], split.class_names[place]
            unscored = [index - place.start for index in split.unscored if place.start <= index < place.stop]
            scores = metrics.scores(part, unscored)
            scores["per_class_iou"] = dict(zip(class_names, scores["per_class_iou"].tolist(), strict=True))
            found[name] = {"loss": total / max(int(part.sum()), 1), **scores, "confusion_matrix": part.tolist()}
        return found

    def _row(self, index: int, confusion: np.ndarray) -> dict[str, Any]:
        """The scores of one image, by the first head; the mean IU is over classes that it or its prediction has."""
        first = self._split.places[0]
        confusion = confusion[first, first]
        scores = metrics.scores(confusion, [place for place in self._split.unscored if place < first.stop])
        kept = {key: scores[key] for key in ("pixel_accuracy", "mean_iou")}
        return {"id": self._split.ids[index], "labelled": int(confusion.sum()), **kept}


class _Panels:
    """Pictures of the first `most` images of a split, of those that this process is given."""

    def __init__(self, split: datasets.Split, inputs: Sequence[str], most: int):
        self._split, self._inputs, self._most = split, inputs, most
        self._found: dict[int, np.ndarray] = {}

    def add(self, places: Sequence[int], batch: dict[str, np.ndarray], prediction: jax.Array) -> None:
        """Those of a batch, whose images are at `places` of the split."""
        limit = max(self._found) if len(self._found) >= self._most > 0 else len(self._split.ids)
        wanted = [k for k, place in enumerate(places) if place < limit and not batch["corrupt"][k]]
        if not self._most or not wanted:
            return
        local = np.concatenate([jax.device_get(shard.data) for shard in prediction.addressable_shards])
        for k in wanted:
            part = tuple(slice(n) for n in batch["size"][k])
            self._found[places[k]] = self._panel(batch["image"][k][part], batch["label"][k][part], local[k][part])
        for place in sorted(self._found)[self._most :]:
            del self._found[place]

    def in_order(self) -> list[np.ndarray]:
        """Of the split."""
        return [self._found[index] for index in sorted(self._found)]

    def _panel(self, image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        split = self._split
        shown = _colour(image, self._inputs, split)
        labels, found = (steps.by_head(x, len(split.heads)) for x in (label, prediction))
        rows = [
            visualize.panel(shown, truth, predicted, split.class_names[place], split.palette[place])
            for truth, predicted, place in zip(labels, found, split.places, strict=True)
        ]
        return np.concatenate(rows)


def _colour(image: np.ndarray, inputs: Sequence[str], split: datasets.Split) -> np.ndarray:
    """What a person is shown of an image [H, W, C]: its colour, or of its first input three channels at most."""
    shown = "colour" if "colour" in inputs else inputs[0]
    return visualize.visible(image[..., pipeline.place_of(shown, inputs, split)])

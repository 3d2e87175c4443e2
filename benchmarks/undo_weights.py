"""What the class weights of the loss do to the scores: a trained run, scored with them taken back.

    python benchmarks/undo_weights.py RUN --split=val

A network that is trained with weights w tells probabilities that are proportional to w times those of the data. Taking
a * log(w) from its scores (at the sizes of config.eval), before the class is chosen, gives them back: with a = 0 it is
as it was trained, with a = 1 all is undone.
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fcn_jax import checkpoint, metrics, multiscale
from fcn_jax.data import canvases, datasets, pipeline
from fcn_jax.models import fcn
from fcn_jax.run import progress

PARTS = (0, 0.25, 0.5, 0.75, 1)


def main():
    """Prints a row of Markdown for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    config = ml_collections.ConfigDict(json.loads((options.run / "config.json").read_text()))
    where = {"raw_dir": config.data.raw_dir, "data_dir": config.data.data_dir}
    weights = datasets.class_weights(
        config.loss.class_weights, datasets.open_split(config.data.name, config.data.train_split, **where)
    )
    split = datasets.open_split(config.data.name, options.split, **where)
    if not weights.all() or (weights == weights[0]).all():
        sys.exit(f"config.loss.class_weights={config.loss.class_weights} of {options.run}: nothing can be taken back")
    params, spec = checkpoint.load_params(checkpoint.find(options.run, "latest"))
    model = fcn.FCN(spec)

    @jax.jit
    def counts(params, batch):
        logits = multiscale.scores(
            lambda image, size: model.apply({"params": params}, image, size),
            batch["image"],
            batch["size"],
            scales=tuple(config.eval.scales),
            flip=config.eval.flip,
        )
        shifts = jnp.array(PARTS)[:, None] * jnp.log(weights)
        predictions = [jnp.argmax(logits - shift, -1).astype(jnp.uint8) for shift in shifts]
        return [metrics.confusion_matrix(batch["label"], found, len(weights)) for found in predictions]

    confusions = np.zeros((len(PARTS), len(weights), len(weights)), np.int64)
    batches = pipeline.eval_dataset(split, canvases.batches(split.sizes, 4), batch_size=4)
    for batch in progress.bar(batches, options.split, len(batches), "batches"):
        confusions += np.array(counts(params, {key: batch[key] for key in ("image", "label", "size")}))
    print("| a | pixel acc. | mean acc. | mean IU | " + " | ".join(split.class_names) + " |")
    print("|---" * (4 + len(weights)) + "|")
    for part, confusion in zip(PARTS, confusions, strict=True):
        scores = metrics.scores(confusion)
        means = (scores[key] for key in ("pixel_accuracy", "mean_accuracy", "mean_iou"))
        cells = [f"{100 * value:.1f}" for value in (*means, *scores["per_class_iou"])]
        print(f"| {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

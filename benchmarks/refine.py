"""What aligning masks with contours is worth: mean IU and Boundary IoU of a run, before and after.

    python benchmarks/refine.py RUN [--split=val] [--every=1]

The mean field of fcn_jax.refine with several weights, and a guided filter (He, Sun and Tang 2010) on colour, which
smooths probabilities where the image is smooth. Times are per image, on whatever else the machine does.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fcn_jax
from fcn_jax import metrics, refine
from fcn_jax.data import datasets
from fcn_jax.report import measure


def box(x, radius):
    """Means over windows that end at the edges, [B, H, W, C]."""
    count = 1
    for axis in (1, 2):
        window = tuple(2 * radius + 1 if place == axis else 1 for place in range(4))
        x = lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
        along = np.convolve(np.ones(x.shape[axis], np.float32), np.ones(2 * radius + 1), "same").astype(np.float32)
        count = count * along.reshape([-1 if place == axis else 1 for place in range(4)])
    return x / count


def guided(image, scores, sizes, *, radius, epsilon):
    """Probabilities float32 [B, H, W, C]; each is locally linear in the colours."""
    del sizes  # images come alone here
    guide = image.astype(jnp.float32) / 255
    size, classes = guide.shape[:3], scores.shape[-1]

    def products(x, y):
        both = x[..., :, None] * y[..., None, :]
        return box(both.reshape(*size, -1), radius).reshape(both.shape)

    mean, mean_scores = box(guide, radius), box(scores, radius)
    variance = products(guide, guide) - mean[..., :, None] * mean[..., None, :]
    covariance = products(guide, scores) - mean[..., :, None] * mean_scores[..., None, :]
    slope = jnp.linalg.solve(variance + epsilon * jnp.eye(3), covariance)
    offset = mean_scores - jnp.einsum("bhwi,bhwic->bhwc", mean, slope)
    slope = box(slope.reshape(*size, -1), radius).reshape(*size, 3, classes)
    found = jnp.maximum(jnp.einsum("bhwi,bhwic->bhwc", guide, slope) + box(offset, radius), 1e-6)
    return found / found.sum(-1, keepdims=True)


WAYS = {
    "as the network has it": lambda image, scores, sizes: scores,
    "mean field, weight 3": functools.partial(refine.mean_field, weight=3.0),
    "mean field, weight 6 (fcn_jax.refine)": refine.mean_field,
    "mean field, weight 12": functools.partial(refine.mean_field, weight=12.0),
    "guided filter, radius 4": functools.partial(guided, radius=4, epsilon=1e-3),
    "guided filter, radius 8": functools.partial(guided, radius=8, epsilon=1e-3),
    "guided filter, radius 8, finer": functools.partial(guided, radius=8, epsilon=1e-4),
}


def main():
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=1, help="each how many-th image")
    options = parser.parse_args()
    network = fcn_jax.load(options.run, which="latest", max_side=0, refine=False)
    config = json.loads((options.run / "config.json").read_text())["data"]
    split = datasets.open_split(config["name"], options.split, raw_dir=config["raw_dir"], data_dir=config["data_dir"])
    classes = len(split.class_names)
    programs = {name: jax.jit(way) for name, way in WAYS.items()}
    counts = {name: np.zeros((2, 3, classes), np.int64) for name in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    places = range(0, len(split.ids), options.every)
    for example in measure.examples(split, network.spec.input_names, places):
        image, label = example["image"], example["label"]
        arguments = image[None], network.scores(image)[None], np.array([image.shape[:2]], np.int32)
        for name, program in programs.items():
            began = time.perf_counter()
            mask = np.asarray(program(*arguments)[0]).argmax(-1).astype(np.uint8)
            seconds[name] += time.perf_counter() - began
            bins = label.astype(int) * classes + mask
            confusion = np.bincount(bins[label < classes], minlength=classes**2).reshape(classes, classes)
            counts[name] += np.stack([metrics.counts(confusion), metrics.boundary_counts(label, mask, classes)])
    print(f"{len(places)} images of {split.name} {options.split}\n")
    print("| | mean IU | Boundary IoU | s an image |\n|---|---|---|---|")
    for name, (whole, edge) in counts.items():
        found = measure.scores(whole, edge, split.unscored)
        cost = f"{seconds[name] / len(places):.2f}"
        print(f"| {name} | {100 * found['mean_iou']:.2f} | {100 * found['boundary_iou']:.2f} | {cost} |")


if __name__ == "__main__":
    main()

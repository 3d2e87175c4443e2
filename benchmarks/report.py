"""A run's results as a section of RESULTS.md, and its pictures as one.

    python benchmarks/report.py runs/voc_laptop --results=val --picture=docs/voc_laptop.jpg --curves=docs/voc_laptop.png

--picture shows the first images, --extremes the best, the median and the worst by their own mean IU. --curves needs
matplotlib, which is not a dependency of fcn_jax: pip install matplotlib.
"""

import argparse
import csv
import datetime
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, visualize
from fcn_jax.data import canvases, datasets, pipeline

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def git(*arguments):
    """What git answers, or nothing outside of a checkout."""
    here = pathlib.Path(__file__).parent
    result = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def hardware():
    """Devices, cores and versions in words."""
    listing = pathlib.Path("/proc/cpuinfo")  # Linux; ARM's names no model
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return f"{devices}, {os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, jax {jax.__version__}"


def stack(pictures, target, width_limit=1200):
    """The pictures under each other, white where one is narrower, as one file of at most 1200 px width."""
    pictures = list(pictures)
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 8), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    picture = Image.fromarray(np.concatenate(padded))
    picture.thumbnail((width_limit, picture.height))
    picture.save(target, quality=88)


def extremes(path, number=2):
    """The rows of the best, the middle and the worst images."""
    with open(path) as file:
        rows = [row for row in csv.DictReader(file) if row["mean_iou"]]
    rows.sort(key=lambda row: -float(row["mean_iou"]))
    middle = (len(rows) - number) // 2
    return [*rows[:number], *rows[middle : middle + number], *rows[-number:]]


def panels(run, results, ids):
    """Image, truth, prediction and errors of each, by the latest checkpoint, scored as in the results."""
    config = json.loads((run / "config.json").read_text())["data"]
    where = {"raw_dir": config["raw_dir"], "data_dir": config["data_dir"]}
    data = datasets.open_split(config["name"], results["split"], **where)
    alone = [canvases.Batch(tuple(size), (index,)) for index, size in enumerate(data.sizes.tolist())]
    examples = pipeline.eval_dataset(data, alone, batch_size=1)
    predict = fcn_jax.load(run, which="latest", scales=results["scales"], flip=results["flip"])
    for name in ids:
        example = examples[data.ids.index(name)]
        height, width = example["size"][0]
        image, truth = (example[key][0, :height, :width] for key in ("image", "label"))
        yield visualize.panel(image, truth, predict(image), data.class_names, data.palette)


def minutes(rows, pause=600):
    """Time between the rows of curves.jsonl; a gap of more than `pause` seconds is a pause."""
    times = [row["time"] for row in rows if "time" in row]
    return sum(b - a for a, b in itertools.pairwise(times) if b - a < pause) / 60


def plot_curves(rows, path):
    """Training loss, and mean IU of the evaluations on the way, against the step."""
    import matplotlib  # not a dependency of fcn_jax

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, key, factor, label in (
        (left, "loss", 1, "training loss"),
        (right, "eval/mean_iou", 100, "mean IU on the eval split, %"),
    ):
        points = [(row["step"], factor * row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), color="#1f77b4", marker="o" if len(points) < 30 else None, markersize=4)
        axis.set(xlabel="step", ylabel=label, xlim=(0, None), ylim=(0, 1.05 * max(y for _, y in points)))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main():
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--results", default="val", help="eval_NAME.json; default val")
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument("--extremes", type=pathlib.Path)
    parser.add_argument("--curves", type=pathlib.Path)
    options = parser.parse_args()
    results = json.loads((options.run / f"eval_{options.results}.json").read_text())
    steps = [json.loads(line) for line in (options.run / "curves.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in steps if "loss" in row}
    first, last = min(losses), max(losses)
    print(f"- commit {git('describe', '--always', '--dirty')}, {datetime.date.today()}, {hardware()}")
    print(f"- {minutes(steps):.0f} minutes of training and evaluation, pauses between sessions left out")
    which = f"{results['num_examples']} images of {results['split']}"
    print(f"- {which} at step {results['step']}, loss {results['loss']:.3f}")
    print(f"- training loss {losses[first]:.3f} (step {first}) to {losses[last]:.3f} (step {last})\n")
    print("| " + " | ".join(name.replace("_", " ") for name in SCORES) + " |\n" + "|---" * len(SCORES) + "|")
    print("| " + " | ".join(f"{100 * results[name]:.1f}" for name in SCORES) + " |\n")
    per_class = results["per_class_iou"]
    print("| " + " | ".join(per_class) + " |\n" + "|---" * len(per_class) + "|")
    print("| " + " | ".join("-" if v is None else f"{100 * v:.1f}" for v in per_class.values()) + " |")
    if options.curves:
        plot_curves(steps, options.curves)
    if options.picture:
        paths = sorted((options.run / "pictures").glob(f"{options.results}_[0-9]*.png"))
        stack([np.asarray(Image.open(path)) for path in paths], options.picture)
    if options.extremes:
        if results["step"] != (last := checkpoint.saved_steps(options.run)[-1]):
            sys.exit(f"{options.results} is of step {results['step']}, the pictures would be of {last}: --which=latest")
        chosen = extremes(options.run / f"eval_{options.results}.csv")
        print("\n" + ", ".join(f"{row['id']} {100 * float(row['mean_iou']):.1f}" for row in chosen))
        stack(panels(options.run, results, [row["id"] for row in chosen]), options.extremes)


if __name__ == "__main__":
    main()

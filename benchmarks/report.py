"""A run's results as a section for a page of benchmarks/results, and its pictures as one.

    python benchmarks/report.py runs/voc_laptop --results=val --picture=docs/voc_laptop.jpg --curves=docs/voc_laptop.png

--picture shows the first images, --extremes the best, the median and the worst by their own mean IU. --curves needs
matplotlib: pip install -e '.[report]'.
"""

import argparse
import csv
import datetime
import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, visualize
from fcn_jax.data import datasets
from fcn_jax.report import figures, measure
from fcn_jax.run import curves, environment

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def git(*arguments):
    """What git answers, or nothing outside of a checkout."""
    here = pathlib.Path(__file__).parent
    result = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def hardware():
    """Devices, cores and versions in words."""
    found = environment.describe()
    cpu, jax = f"{found['cores']} cores of {found['cpu']}", found["versions"]["jax"]
    return f"{found['devices']}, {cpu}, Python {found['python']}, jax {jax}"


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
    how = {"scales": results["scales"], "flip": results["flip"], "refine": results.get("refine", False)}
    predict = fcn_jax.load(run, which="latest", max_side=0, **how)
    for example in measure.examples(data, predict.spec.input_names, [data.ids.index(name) for name in ids]):
        image, truth = example["image"], example["label"]
        yield visualize.panel(image, truth, predict(image), data.class_names, data.palette)


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
    print(f"- {curves.minutes(steps):.0f} minutes of training and evaluation, pauses between sessions left out")
    which = f"{results['num_examples']} images of {results['split']}"
    print(f"- {which} at step {results['step']}, loss {results['loss']:.3f}")
    print(f"- training loss {losses[first]:.3f} (step {first}) to {losses[last]:.3f} (step {last})\n")
    print("| " + " | ".join(name.replace("_", " ") for name in SCORES) + " |\n" + "|---" * len(SCORES) + "|")
    print("| " + " | ".join(f"{100 * results[name]:.1f}" for name in SCORES) + " |\n")
    per_class = results["per_class_iou"]
    print("| " + " | ".join(per_class) + " |\n" + "|---" * len(per_class) + "|")
    print("| " + " | ".join("-" if v is None else f"{100 * v:.1f}" for v in per_class.values()) + " |")
    if options.curves:
        figures.curves({options.run.name: steps}).savefig(options.curves, dpi=110)
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

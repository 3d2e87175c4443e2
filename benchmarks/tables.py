"""What benchmarks/recorded has, as the tables of the pages in benchmarks/results.

python benchmarks/tables.py
"""

import json
import pathlib
import statistics

RECORDED = pathlib.Path(__file__).parent / "recorded"
SCORES = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iou": "mean IU",
    "frequency_weighted_iou": "f.w. IU",
}
# Test, from the tables of FC-DenseNet (arXiv 1611.09326).
FCN8S = {
    "sky": 88.7,
    "building": 77.8,
    "pole": 19.9,
    "road": 91.2,
    "sidewalk": 72.7,
    "tree": 71.0,
    "sign": 32.7,
    "fence": 24.4,
    "car": 76.1,
    "pedestrian": 41.7,
    "cyclist": 31.0,
}


def table(header, rows):
    """Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |\n" for row in (header, *rows)]
    return "".join((lines[0], f"|{'---|' * len(header)}\n", *lines[1:]))


def percent(value):
    """With one decimal; a class that does not occur has none."""
    return "-" if value is None else f"{value:.1f}"


def scores(records):
    """A row for each evaluation of each run."""
    rows = [
        (name, evaluation, found["num_examples"], *(percent(found[key]) for key in SCORES), f"{record['minutes']:.0f}")
        for name, record in records.items()
        for evaluation, found in record["evaluations"].items()
    ]
    return table(("run", "scored on", "images", *SCORES.values(), "minutes"), rows)


def by_variant(records):
    """{variant: {seed: its one evaluation}}."""
    variants = {}
    for name, record in records.items():
        variant, _, seed = name.rpartition("_seed")
        (variants.setdefault(variant, {})[int(seed)],) = record["evaluations"].values()
    return variants


def seeds(records, base="matters_8s"):
    """The mean over the seeds of each variant, the lowest and the highest mean IU, and that above `base` by seed."""
    variants = by_variant(records)
    rows = []
    for name, found in variants.items():
        ious = {seed: evaluation["mean_iou"] for seed, evaluation in found.items()}
        means = (percent(statistics.mean(evaluation[key] for evaluation in found.values())) for key in SCORES)
        above = ", ".join(f"{iou - variants[base][seed]['mean_iou']:+.1f}" for seed, iou in sorted(ious.items()))
        span = f"{percent(min(ious.values()))} to {percent(max(ious.values()))}"
        rows.append((name, len(found), *means, span, "" if name == base else above))
    return table(("run", "seeds", *SCORES.values(), "mean IU from, to", f"above {base}, by seed"), rows)


def seed_classes(records):
    """The IU of each class, the mean over the seeds of each variant."""
    names = next(iter(records.values()))["evaluations"]["val"]["per_class_iou"]
    rows = [
        (variant, *(percent(statistics.mean(e["per_class_iou"][key] for e in found.values())) for key in names))
        for variant, found in by_variant(records).items()
    ]
    return table(("", *names), rows)


def camvid_classes(records):
    """The test IU of each class beside the published one."""
    published = ("published FCN-8s", *map(percent, FCN8S.values()), percent(sum(FCN8S.values()) / len(FCN8S)))
    return table(("", *FCN8S, "mean"), (published, *classes(records, "test", FCN8S)))


def camvid_spread(records):
    """Mean and standard deviation over the seeds of a recipe, for each evaluation that all of them have."""
    recipes = {}
    for name, record in records.items():
        recipe, _, seed = name.rpartition("_seed")
        if seed.isdigit():
            recipes.setdefault(recipe, []).append(record["evaluations"])
    rows = []
    for recipe, runs in recipes.items():
        for evaluation in runs[0] if len(runs) > 1 else ():
            if all(evaluation in run for run in runs):
                found = [run[evaluation] for run in runs]
                scores_of = [[one[key] for one in found] for key in ("pixel_accuracy", "mean_iou")]
                classes_of = [[one["per_class_iou"][key] for one in found] for key in FCN8S]
                rows.append((f"{recipe}, {evaluation}", len(found), *map(spread, scores_of + classes_of)))
    return table(("", "seeds", SCORES["pixel_accuracy"], SCORES["mean_iou"], *FCN8S), rows)


def spread(values):
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def voc_classes(records):
    """The IU of each class on val."""
    names = next(iter(records.values()))["evaluations"]["val"]["per_class_iou"]
    return table(("", *names, "mean"), classes(records, "val", names))


def classes(records, split, names):
    """A row of IUs, and their mean, for each evaluation on the split."""
    for name, record in records.items():
        for evaluation, found in record["evaluations"].items():
            if evaluation.startswith(split):
                ious = (percent(found["per_class_iou"][key]) for key in names)
                yield (f"{name}, {evaluation}", *ious, percent(found["mean_iou"]))


def read(group):
    """{name: record} of the rows whose names start so."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RECORDED.glob(f"{group}*.json"))}


# What the rows' names start with, which is the page's name in benchmarks/results, too; and the page's tables of them.
GROUPS = {
    "shapes": (scores,),
    "camvid": (scores, camvid_classes, camvid_spread),
    "voc": (scores, voc_classes),
    "matters": (seeds, seed_classes),
}


def main():
    """Prints them, a page a section."""
    for group, tables in GROUPS.items():
        records = read(group)
        print(group, *(tabulate(records) for tabulate in tables), sep="\n\n")


if __name__ == "__main__":
    main()

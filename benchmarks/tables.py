"""What benchmarks/recorded has, as the tables of the pages in benchmarks/results.

python benchmarks/tables.py
"""

import json
import pathlib

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


def seeds(records):
    """The mean over the seeds of each variant, and the lowest and the highest mean IU."""
    variants = {}
    for name, record in records.items():
        variants.setdefault(name.rpartition("_seed")[0], []).append(record)
    rows = []
    for name, found in variants.items():
        evaluations = [evaluation for record in found for evaluation in record["evaluations"].values()]
        ious = [evaluation["mean_iou"] for evaluation in evaluations]
        means = (percent(sum(e[key] for e in evaluations) / len(evaluations)) for key in SCORES)
        minutes = sum(record["minutes"] for record in found) / len(found)
        rows.append((name, len(found), *means, f"{percent(min(ious))} to {percent(max(ious))}", f"{minutes:.0f}"))
    return table(("run", "seeds", *SCORES.values(), "mean IU from, to", "minutes"), rows)


def camvid_classes(records):
    """The test IU of each class beside the published one."""
    published = ("published FCN-8s", *map(percent, FCN8S.values()), percent(sum(FCN8S.values()) / len(FCN8S)))
    return table(("", *FCN8S, "mean"), (published, *classes(records, "test", FCN8S)))


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


# What the rows' names start with, which is the page's name in benchmarks/results, too; and the table of their classes.
GROUPS = {"shapes": None, "camvid": camvid_classes, "voc": voc_classes}


def main():
    """Prints them, a data set a section."""
    print(f"matters\n\n{seeds(read('matters'))}")
    for group, by_class in GROUPS.items():
        records = read(group)
        print(f"{group}\n\n{scores(records)}")
        if by_class:
            print(by_class(records))


if __name__ == "__main__":
    main()

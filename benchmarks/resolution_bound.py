"""The best mean IU that coarse predictions allow: the ground truth itself, reduced by a factor and enlarged again.

    python benchmarks/resolution_bound.py --raw_dir=DIR_WITH_VOCdevkit --split=val

The paper gives such a row for a subset of VOC 2011 val and does not say how it resampled. Two ways here: `nearest`
keeps the middle pixel of each cell and repeats it; `bilinear` averages one-hot labels over each cell, enlarges them
bilinearly and takes the largest, which is what a network's coarse scores can at best be.
"""

import argparse

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcn_jax import metrics
from fcn_jax.data import datasets, images

PUBLISHED = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}


def nearest(label, factor, num_classes):
    """The label uint8 [H, W] with each cell replaced by its middle pixel."""
    rows, columns = (np.minimum(np.arange(n) // factor * factor + factor // 2, n - 1) for n in label.shape)
    return label[np.ix_(rows, columns)]


def bilinear(label, factor, num_classes):
    """The label after averaging one-hot maps over cells and enlarging them bilinearly; void takes no part."""
    height, width = label.shape
    small = (-(-width // factor), -(-height // factor))
    best, result = np.full(label.shape, -1.0, np.float32), np.zeros_like(label)
    for index in np.unique(label[label < num_classes]):
        share = Image.fromarray((label == index).astype(np.float32))
        score = np.asarray(share.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BILINEAR))
        better = score > best
        best[better], result[better] = score[better], index
    return result


def main():
    """Prints a Markdown table beside the published row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="voc_segmentation")
    parser.add_argument("--split", default="val")
    parser.add_argument("--raw_dir", default="")
    parser.add_argument("--data_dir", default="~/.cache/fcn_jax/data")
    options = parser.parse_args()
    split = datasets.open_split(options.dataset, options.split, raw_dir=options.raw_dir, data_dir=options.data_dir)
    num_classes = len(split.class_names)
    ways = {"nearest": nearest, "bilinear": bilinear}
    counts = {(name, factor): np.zeros((num_classes,) * 2, np.int64) for name in ways for factor in PUBLISHED}
    for index in tqdm(range(len(split.ids)), unit="image"):
        label = images.decode_label(split.source[index]["label"], split.ids[index])
        labelled = label < num_classes
        for (name, factor), confusion in counts.items():
            guess = ways[name](label, factor, num_classes)
            # The middle of a cell may be void: that counts as background, as a network must answer something.
            guess = np.where(guess < num_classes, guess, 0)[labelled].astype(np.int64)
            bins = label[labelled].astype(np.int64) * num_classes + guess
            confusion += np.bincount(bins, minlength=num_classes**2).reshape(num_classes, num_classes)
    print(f"| mean IU %, {len(split.ids)} images of {options.split} | " + " | ".join(map(str, PUBLISHED)) + " |")
    print("|---" * (len(PUBLISHED) + 1) + "|")
    for name in ways:
        values = [100 * metrics.scores(counts[name, factor])["mean_iou"] for factor in PUBLISHED]
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    print("| published (subset of VOC 2011 val) | " + " | ".join(map(str, PUBLISHED.values())) + " |")


if __name__ == "__main__":
    main()

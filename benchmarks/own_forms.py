"""One dataset in four forms: person against the rest of VOC as ids, in colour, as labelme's polygons, as COCO's file.

    python benchmarks/own_forms.py --raw_dir=DIR --workdir=runs/own_forms

DIR holds VOCdevkit. What benchmarks/voc_subset lists of it is written in each form (void counts as the rest, since COCO
has no word for it), checked, and trained on with configs/folder.py as it stands but for fewer steps. The table has the
losses and the scores on val of each form; forms that mean the same give the same numbers to the last digit.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image

from fcn_jax.data import images
from fcn_jax.data.own import writers

ROOT = pathlib.Path(__file__).parents[1]
PERSON = 15
NAMES, PALETTE = ("rest", "person"), ((0, 0, 0), (192, 128, 128))
FORMS = ("ids", "colours", "labelme", "coco")


def examples(raw_dir, most):
    """(split, path of the image, mask uint8 [H, W]) of every person's image, and of as many others."""
    folder = raw_dir / "VOCdevkit/VOC2012"
    for split in ("train", "val"):
        taken = {True: 0, False: 0}
        for name in (ROOT / f"benchmarks/voc_subset/{split}.txt").read_text().split():
            label = images.decode_label((folder / f"SegmentationClass/{name}.png").read_bytes(), name)
            mask = (label == PERSON).astype(np.uint8)
            if taken[bool(mask.any())] < most:
                taken[bool(mask.any())] += 1
                yield split, folder / f"JPEGImages/{name}.jpg", mask


def write(form, root, given):
    """The folder in one of the forms."""
    entries = {"train": {}, "val": {}}
    for split, image, mask in given:
        below = root / split if form == "labelme" else root / "images" / split
        below.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, below / image.name)
        if form == "labelme":
            text = writers.labelme(mask, ("background", "person"), image.name)
            (below / f"{image.stem}.json").write_text(text)
        elif form == "coco":
            entries[split][image.name] = mask
        else:
            masks = root / "masks" / split
            masks.mkdir(parents=True, exist_ok=True)
            shown = mask if form == "ids" else np.array(PALETTE, np.uint8)[mask]
            Image.fromarray(shown).save(masks / f"{image.stem}.png")
    if form == "coco":
        (root / "annotations").mkdir()
        for split, masks in entries.items():
            (root / "annotations" / f"instances_{split}.json").write_text(writers.coco(masks, NAMES, PALETTE))
    elif form != "labelme":
        lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(NAMES, PALETTE, strict=True)]
        (root / "classes.txt").write_text("\n".join(lines if form == "colours" else NAMES) + "\n")


def measure(root, workdir, steps):
    """(losses, results on val) of a run of configs/folder.py."""
    subprocess.run((sys.executable, "-m", "fcn_jax.data", "check", root), check=True, stdout=subprocess.DEVNULL)
    arguments = (f"--config.data.raw_dir={root}", f"--workdir={workdir}", f"--config.steps=({steps},)")
    command = (sys.executable, "-m", "fcn_jax.main", f"--config={ROOT}/configs/folder.py", *arguments)
    subprocess.run((*command, "--config.log.every=5", "--config.eval.scales=(1.0,)"), check=True)
    points = [json.loads(line) for line in (workdir / "curves.jsonl").read_text().splitlines()]
    losses = [point["loss"] for point in points if "loss" in point]
    return losses, json.loads((workdir / "eval_val.json").read_text())


def main():
    """Writes, checks, trains; prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/own_forms"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=50, help="with a person, and without, of each split")
    options = parser.parse_args()
    given = list(examples(options.raw_dir, options.images))
    print("| form | files | loss at first | at last | IU of person | mean IU |\n|---|---|---|---|---|---|")
    for form in FORMS:
        root = options.workdir / f"{form}_folder"
        shutil.rmtree(root, ignore_errors=True)
        write(form, root, given)
        losses, found = measure(root, options.workdir / form, options.steps)
        iu = list(found["per_class_iou"].values())[1]
        files = sum(path.is_file() for path in root.rglob("*"))
        scores = f"{100 * iu:.2f} | {100 * found['mean_iou']:.2f}"
        print(f"| {form} | {files} | {losses[0]:.6f} | {losses[-1]:.6f} | {scores} |", flush=True)


if __name__ == "__main__":
    main()

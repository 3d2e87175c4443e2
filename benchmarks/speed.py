"""How fast FCN-8s trains, predicts, reads its data and starts on this machine, side by side with PyTorch.

    python benchmarks/speed.py                                  # CPU: float32, 375x500 and 500x500, batch 1
    python benchmarks/speed.py --dtypes=bfloat16,float32 --sizes=512x512 --batches=1,2,4,8,16,32    # one GPU

PyTorch takes part where torch is installed and --torchfcn names pytorch-fcn (`pip download torchfcn --no-deps
--no-binary :all:`, unpacked); it is pytorch-fcn's own module, with AMP and channels_last where the dtype is bfloat16.
Every figure is from a process of its own; those that are compared take turns, and medians over the rounds count.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import speed_cases
from PIL import Image

from fcn_jax.data import canvases

ROOT = pathlib.Path(__file__).parents[1]


def main():
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="step,forward,predict,recipes,input,start")
    parser.add_argument("--geometries", default="caffe,same")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--sizes", default="375x500,500x500")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4, help="of a step in one process")
    parser.add_argument("--images", type=int, default=200, help="of the folder that is predicted")
    parser.add_argument("--torchfcn", default="", help="folder of pytorch-fcn's source distribution")
    parser.add_argument("--against", default="", help="another checkout of fcn_jax, whose updates are timed as well")
    parser.add_argument("--photographs", default="", help="folder of JPEGs, whose canvases are counted")
    options = parser.parse_args()
    print(heading())
    for part in options.parts.split(","):
        TABLES[part](options)


def heading():
    """Date, commit, device and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    device = run(what="device")
    torch = importlib.util.find_spec("torch") and importlib.import_module("torch").__version__
    return (
        f"{datetime.date.today()}, commit {commit.strip()}, {device['kind']}, {os.cpu_count()} CPU cores,"
        f" jax {device['jax']}, torch {torch}"
    )


def run(code=ROOT, **case):
    """The figures of one case, from a process of its own with the package of `code`; None if it fails."""
    command = [sys.executable, ROOT / "benchmarks" / "speed_cases.py", json.dumps(case)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{case}: {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(options, *cases):
    """The medians of each case's figures over the rounds; None where it fails."""
    found = [[] for _ in cases]
    for _ in range(options.rounds):
        for case, results in zip(cases, found, strict=True):
            results.append(run(**case))
    return [
        None if None in results else {key: statistics.median(r[key] for r in results) for key in results[0]}
        for results in found
    ]


def cases_of(options, what):
    """(title, our cases by geometry, PyTorch's case or None) of every dtype, size and batch."""
    for dtype in options.dtypes.split(","):
        for size in options.sizes.split(","):
            for batch in map(int, options.batches.split(",")):
                height, width = map(int, size.split("x"))
                common = {"height": height, "width": width, "batch": batch, "dtype": dtype, "repeats": options.repeats}
                ours = [{"what": what, "geometry": g, **common} for g in options.geometries.split(",")]
                torch = {"what": f"torch_{what}", "folder": options.torchfcn, **common} if options.torchfcn else None
                yield f"{dtype} {size} x{batch}", ours, torch


def table_of_steps(options, what):
    """Images a second and memory of each geometry, and the ratios to PyTorch's caffe network in the same run."""
    columns = ("images/s", "of PyTorch", "memory GB", "of PyTorch", "planned by XLA GB", "TFLOP/s")
    print(f"\n| {what} | {' | '.join(columns)} |\n|---|---|---|---|---|---|---|")
    for title, ours, torch in cases_of(options, what):
        *found, reference = in_turns(options, *ours, torch) if torch else [*in_turns(options, *ours), None]
        if reference:
            rate = ours[0]["batch"] / reference["seconds"]
            print(f"| {title} pytorch-fcn | {rate:.2f} | 1.00 | {reference['memory']:.2f} | 1.00 | | |")
        for case, figures in zip(ours, found, strict=True):
            if not figures:
                continue
            faster, smaller = "", ""
            if reference:
                faster = f"{reference['seconds'] / figures['seconds']:.2f}"
                smaller = f"{figures['memory'] / reference['memory']:.2f}"
            cells = [f"{case['batch'] / figures['seconds']:.2f}", faster, f"{figures['memory']:.2f}", smaller]
            cells += [f"{figures['planned']:.2f}", f"{figures['flops'] / figures['seconds'] / 1e12:.2f}"]
            print(f"| {title} fcn_jax {case['geometry']} | {' | '.join(cells)} |", flush=True)


def table_step(options):
    """A training step: gradient and update by SGD with momentum; and what a product of matrices reaches."""
    table_of_steps(options, "step")
    for dtype in options.dtypes.split(","):
        if rate := run(what="matmul", dtype=dtype):
            print(f"\nA product of two matrices in {dtype}: {rate['flops_per_second'] / 1e12:.2f} TFLOP/s")


def table_forward(options):
    """Scores and classes of an image."""
    table_of_steps(options, "forward")


def table_predict(options):
    """A folder of photographs, from files to classes; ours writes masks and overlays, too."""
    with tempfile.TemporaryDirectory() as folder:
        speed_cases.write_photographs(folder, options.images)
        cases = [{"what": "predict", "folder": folder, "geometry": g} for g in options.geometries.split(",")]
        if options.torchfcn:
            cases.append({"what": "torch_predict", "folder": folder, "torchfcn": options.torchfcn})
        found = in_turns(options, *cases)
        reference = found[-1] if options.torchfcn else None
        print(f"\n| predict {options.images} photographs | images/s | of pytorch-fcn |\n|---|---|---|")
        for case, figures in zip(cases, found, strict=True):
            if figures:
                ratio = f"{figures['rate'] / reference['rate']:.2f}" if reference else ""
                print(f"| {case.get('geometry', 'pytorch-fcn')} | {figures['rate']:.2f} | {ratio} |", flush=True)


def table_recipes(options):
    """Updates of whole configs, each with its own crops, batches and frozen layers."""
    print("\n| update of | images/s | of the other checkout |\n|---|---|---|")
    for name, variant in (("fcn8s_atonce", ""), ("fcn8s", "demo"), ("camvid_fcn8s", ""), ("voc_laptop", "")):
        case = {"what": "recipe", "name": name, "variant": variant, "repeats": options.repeats}
        cases = [case, {**case, "code": options.against}] if options.against else [case]
        found = in_turns(options, *cases)
        ratio = f"{found[0]['rate'] / found[1]['rate']:.2f}" if options.against and None not in found else ""
        if found[0]:
            print(f"| {name}.py{':' + variant if variant else ''} | {found[0]['rate']:.1f} | {ratio} |", flush=True)


def table_input(options):
    """Decoding, decoding and augmenting, and how long a consumer of some speed waits."""
    found = run(what="input")
    print("\n| input pipeline, 375x500 JPEG | |\n|---|---|")
    print(f"| decoding alone, images/s a core | {found['decode']:.0f} |")
    print(f"| decoding, cropping, mirroring, colours, images/s a core | {found['augment']:.0f} |")
    print(f"| their ratio | {found['augment'] / found['decode']:.2f} |")
    for share, waited in found["waited"].items():
        print(f"| a consumer of {share} of what the cores augment waits this part of its time | {waited:.3f} |")


def table_start(options):
    """From the command to the first step of the demo, and from Python to the first mask of camvid-small."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [run(what="start", folder=folder)["seconds"] for _ in range(2)]
    print("\n| from the command to the first step of fcn8s.py:demo | seconds |\n|---|---|")
    for name, value in zip(("compiled anew", "compiled before"), seconds, strict=True):
        print(f"| {name} | {value:.1f} |")
    masks = [run(what="mask") for _ in range(3)]
    print("\n| from `import fcn_jax` to a mask of 360x480 by camvid-small | seconds |\n|---|---|")
    print(f"| the first image | {statistics.median(mask['first'] for mask in masks):.1f} |")
    print(f"| a second image | {statistics.median(mask['second'] for mask in masks):.2f} |")


def table_canvases(options):
    """Pixels that an evaluation in batches of four computes, in terms of those that the images have."""
    sizes = []
    for path in sorted(pathlib.Path(options.photographs).glob("*.jpg")):
        with Image.open(path) as image:
            sizes.append(image.size[::-1])
    sizes = np.array(sizes)
    batches = canvases.batches(sizes, 4)
    one = -(-len(sizes) // 4) * 4 * sizes.max(0).prod() / sizes.prod(1).sum()
    several = sum(4 * batch.canvas[0] * batch.canvas[1] for batch in batches) / sizes.prod(1).sum()
    print(f"\n| {len(sizes)} images of {len(np.unique(sizes, axis=0))} sizes on | pixels computed |\n|---|---|")
    print(f"| one canvas | {one:.2f} |\n| {len({batch.canvas for batch in batches})} canvases | {several:.2f} |")


TABLES = {
    "step": table_step,
    "forward": table_forward,
    "predict": table_predict,
    "recipes": table_recipes,
    "input": table_input,
    "start": table_start,
    "canvases": table_canvases,
}

if __name__ == "__main__":
    main()

"""Memory and time of an image that is too large to be decoded whole, segmented exactly in tiles.

    python benchmarks/huge.py --side=20000 --width=8

Writes a PNG of so many pixels a side, of photographs' statistics (noise at all scales), and segments it by
`fcn_jax.predict --tiles --max_side=0` with an FCN-8s in `same` geometry with random weights; prints the peak of the
process' memory, the seconds, and the size of the mask.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pyvips

from fcn_jax import checkpoint
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec


def main():
    """Prints a line of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--format", choices=("png", "tif"), default="png")
    options = parser.parse_args()
    spec = ModelSpec("fcn8s", "vgg16", "same", False, "fixed", options.width, 64, ("a", "b"), ((0, 0, 0), (255, 0, 0)))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        checkpoint.save_params(root / "net", fcn.init(spec, jax.random.key(0)), spec)
        tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        image = pyvips.Image.new_from_array(tile).resize(8).replicate(options.side // 512 + 1, options.side // 512 + 1)
        image = image.crop(0, 0, options.side, options.side).cast("uchar").copy(interpretation="srgb")
        path = root / f"large.{options.format}"
        image.write_to_file(str(path), compression=1) if options.format == "png" else image.tiffsave(
            str(path), compression="deflate", bigtiff=True
        )
        print(f"{path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
        paths = (f"--checkpoint={root}/net", f"--input={path}", f"--output={root}/out", "--write=mask")
        began = time.perf_counter()
        command = (sys.executable, "-m", "fcn_jax.predict", *paths, "--tiles", "--max_side=0")
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        size = (root / "out/large.png").stat().st_size / 1e6
    what = f"{options.format} | {options.side}x{options.side} | {options.width}"
    print(f"| {what} | {peak:.2f} GB | {seconds:.0f} s | {size:.1f} MB |")


if __name__ == "__main__":
    main()

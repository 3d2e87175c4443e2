"""Puts a trained network into the package: python benchmarks/box.py RUN NAME [--which=latest]

Writes fcn_jax/boxed/NAME.safetensors in 16 bits, without what can be computed, and says how far its scores are from
those of 32 bits. NAME.md beside it, the model card, is written by hand.
"""

import argparse
import pathlib

import numpy as np
from safetensors.numpy import save_file

import fcn_jax
from fcn_jax import checkpoint
from fcn_jax.export import common

BOXED = pathlib.Path(fcn_jax.__file__).parent / "boxed"
LARGEST = 6_000_000  # bytes


def half(array):
    """float16; ValueError for what it cannot hold."""
    found = array.astype(np.float16)
    if not np.isfinite(found).all():
        raise ValueError(f"values up to {np.abs(array).max():g}: float16 ends at 65504")
    return found


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--which", default="latest")
    options = parser.parse_args()
    params, spec = checkpoint.load_params(checkpoint.find(options.run, options.which))
    arrays = {name: half(array) for name, array in common.torch_arrays(params, spec).items()}
    BOXED.mkdir(exist_ok=True)
    path = BOXED / f"{options.name}.safetensors"
    save_file(arrays, path, {common.MODEL_KEY: common.model_json(spec), "format": "pt"})
    size = path.stat().st_size
    if size > LARGEST:
        path.unlink()
        raise ValueError(f"{size / 1e6:.1f} MB, of at most {LARGEST / 1e6:g}: train a narrower network")
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    found, expected = (
        fcn_jax.load(source, which=options.which).scores(image) for source in (options.name, options.run)
    )
    print(f"{path}: {size / 1e6:.2f} MB; probabilities at most {np.abs(found - expected).max():.1e} off")


if __name__ == "__main__":
    main()

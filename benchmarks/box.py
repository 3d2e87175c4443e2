"""Puts a trained network into the package: python benchmarks/box.py RUN NAME --which=latest --photographs=A.jpg,B.jpg

Writes fcn_jax/boxed/NAME.safetensors in 16 bits, without what can be computed, and says how far its scores are from
those of 32 bits. docs/NAME.jpg shows what it finds in photographs. NAME.md, the model card, is written by hand.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

import fcn_jax
from fcn_jax import checkpoint, visualize
from fcn_jax.data import images as images_lib
from fcn_jax.export import common

BOXED = pathlib.Path(fcn_jax.__file__).parent / "boxed"
DOCS = pathlib.Path(__file__).parents[1] / "docs"
LARGEST = 6_000_000  # bytes


def half(array):
    """float16; ValueError for what it cannot hold."""
    found = array.astype(np.float16)
    if not np.isfinite(found).all():
        raise ValueError(f"values up to {np.abs(array).max():g}: float16 ends at 65504")
    return found


def picture(name, photographs):
    """Photographs of one size uint8 [2 H, N W, 3], side by side, and below each of them what the network finds."""
    network = fcn_jax.load(name)
    images = [images_lib.decode_image(images_lib.read_file(pathlib.Path(path)), path) for path in photographs]
    palette = network.spec.palette
    shown = np.arange(256) < len(palette)
    found = [visualize.overlay(image, network(image), palette, shown=shown) for image in images]
    rows = np.concatenate([np.concatenate(row, 1) for row in (images, found)])
    return np.concatenate([rows, visualize.legend(network.spec.class_names, palette, rows.shape[1])])


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--which", default="latest")
    parser.add_argument("--photographs", default="", help="that it has not seen, with commas between")
    options = parser.parse_args()
    params, spec = checkpoint.load_params(checkpoint.find(options.run, options.which))
    computed = spec.upsampling_kernels if spec.upsampling == "fixed" else ()
    arrays = {
        name: half(array)
        for name, array in common.torch_arrays(params, spec).items()
        if name.removesuffix(".weight") not in computed
    }
    BOXED.mkdir(exist_ok=True)
    path = BOXED / f"{options.name}.safetensors"
    save_file(arrays, path, {common.MODEL_KEY: common.model_json(spec), "format": "pt"})
    path.chmod(0o644)  # the library's own is the owner's alone
    size = path.stat().st_size
    if size > LARGEST:
        path.unlink()
        raise ValueError(f"{size / 1e6:.1f} MB, of at most {LARGEST / 1e6:g}: train a narrower network")
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    found, expected = (
        fcn_jax.load(source, which=options.which).scores(image) for source in (options.name, options.run)
    )
    if options.photographs:
        shown = Image.fromarray(picture(options.name, options.photographs.split(",")))
        shown.save(DOCS / f"{options.name}.jpg", quality=90)
    print(f"{path}: {size / 1e6:.2f} MB; probabilities at most {np.abs(found - expected).max():.1e} off")


if __name__ == "__main__":
    main()

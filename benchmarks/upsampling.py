"""Cost of the ways to upsample scores by 8 to 500x500x21, forward and gradient, side by side.

    python benchmarks/upsampling.py

Rows: two small matrix products (`fixed`), one over 2x2 neighbourhoods with pixel shuffle (`learned`), and XLA's
dilated convolution with the same dense kernel (jax.lax.conv_transpose).
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import upsample


def seconds(function, *args, repeats):
    """The median time of a jitted call."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main():
    """Prints a Markdown table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    stride, classes = options.stride, 21
    side = -(-500 // stride)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, side, side, classes)), jnp.float32)
    kernel = jnp.asarray(upsample.bilinear_kernel(2 * stride, classes))

    def dilated(x, kernel):
        return jax.lax.conv_transpose(
            x, kernel.transpose(0, 1, 3, 2), (stride, stride), "VALID", transpose_kernel=True, precision="highest"
        )

    ways = {
        "fixed: two matrix products": lambda x, kernel: upsample.fixed_bilinear(x, 2 * stride),
        "learned: one matrix product, pixel shuffle": upsample.transposed,
        "dilated convolution": dilated,
    }
    expected = np.asarray(ways["dilated convolution"](x, kernel))
    rows = []
    for name, way in ways.items():
        np.testing.assert_allclose(np.asarray(way(x, kernel)), expected, atol=1e-4)
        forward = seconds(jax.jit(way), x, kernel, repeats=options.repeats)
        gradient = jax.jit(jax.grad(lambda x, kernel, way=way: (way(x, kernel) ** 2).sum(), (0, 1)))
        rows.append((name, forward, seconds(gradient, x, kernel, repeats=options.repeats)))
    print(f"| stride {stride}, {jax.devices()[0].device_kind} | forward | forward and gradient |\n|---|---|---|")
    for name, forward, both in rows:
        print(f"| {name} | {forward / rows[0][1]:.1f} | {both / rows[0][2]:.1f} |")


if __name__ == "__main__":
    main()

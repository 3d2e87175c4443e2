"""PREDICTS, measures nothing: how data-parallel training would scale to 256 TPU or GPU chips.

    python benchmarks/scaling.py --plot=docs/scaling.png --tables=benchmarks/results/scaling_tables.md

Compiles the real train step (fcn_jax.train, networks of configs/fcn8s.py) for meshes of 1..256 CPU devices that need
not exist, each in a process of its own, and runs none of it. Flops, bytes of memory traffic, bytes of collectives and
memory per device are read from the compiled programs; a roofline with published peak rates makes times of them.
docs/SCALING_PREDICTION.md has what follows, the assumptions and their limits. Without --tables the tables are printed.
--cache keeps a JSON file a program, so that a second run takes seconds. --plot needs matplotlib, which is not a
dependency of fcn_jax: pip install matplotlib.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from spmd_programs import CLASSES, DEVICES, STRONG, WEAK, WIDTH, Case, cases, check, measure, total

from fcn_jax.models import fcn
from fcn_jax.models.spec import GEOMETRIES, ModelSpec

# --- the same numbers by hand -----------------------------------------------------------------------------------------


@functools.cache
def convolutions(geometry, side=500, width=64, fc_width=4096):
    """[(layer, input shape, kernel shape, output shape)] of one image."""
    names, palette = tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES
    model = fcn.FCN(ModelSpec("fcn8s", "vgg16", geometry, False, "fixed", width, fc_width, names, palette))
    found = []

    def note(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            k, inputs = context.module.kernel_size, args[0].shape[-1]
            found.append((context.module.name, args[0].shape[1:], (*k, inputs, y.shape[-1]), y.shape[1:]))
        return y

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3), jnp.uint8))
    return found


@functools.cache
def parameters():
    """Their number in FCN-8s, kernels and biases."""
    return sum(math.prod(kernel) + kernel[-1] for _, _, kernel, _ in convolutions("caffe"))


def by_hand(geometry, dtype):
    """Of the convolutions of one image: (flops, bytes of maps, bytes of parameters) of an update, at the least.

    Forward, gradient to the input (not of the first layer) and to the kernel: three products of 2 h w |kernel| flops,
    padding included. Each reads two of input, output and kernel once and writes the third; the optimizer reads
    gradient, parameter and momentum and writes the last two.
    """
    layers = convolutions(geometry)
    flops = maps = kernels = 0
    for index, (_, x, kernel, y) in enumerate(layers):
        times = 3 if index else 2
        flops += times * 2 * y[0] * y[1] * math.prod(kernel)
        maps += times * (math.prod(x) + math.prod(y))
        kernels += math.prod(kernel)
    return flops, maps * WIDTH[{"float32": "f32", "bfloat16": "bf16"}[dtype]], (3 + 5) * 4 * kernels


# --- chips ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peak rates, per chip: flops a second, bytes a second, bytes."""

    name: str
    bfloat16: float
    float32: float  # at Precision.HIGHEST, which models/layers.conv asks for
    bandwidth: float
    memory: float
    all_reduce: Callable[[int, float], float]  # seconds for (devices, bytes) at the published rates of the links


def ring(devices, size, bandwidth):
    """Seconds of an all-reduce of `size` bytes: each device sends 2 (n - 1) / n of them."""
    return 2 * (devices - 1) / devices * size / bandwidth


V5E = {2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
V5P = {2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8)}
V5P |= {256: (4, 8, 8)}


def torus(slices, link, wraps, devices, size):
    """A ring over each axis of a slice at once; an axis that wraps around has two links a chip, another one."""
    if devices == 1:
        return 0.0
    axes = [n for n in slices[devices] if n > 1]
    return ring(devices, size, sum(2 if wraps(n, devices) else 1 for n in axes) * link)


def nodes(inside, between, devices, size, node=8):
    """Reduce-scatter in each node, all-reduce of the parts between nodes, all-gather in each node: in turn."""
    first = ring(min(devices, node), size, inside)
    return first if devices <= node else first + ring(devices / node, size / node, between)


# Sources, as read on 2026-11-20 (docs/SCALING_PREDICTION.md says which could be read):
# v5e  https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s bfloat16, 16 GB, 819 GB/s, 2-D torus, ICI 400 GB/s both
#      ways together, which older versions call 1600 Gbit/s; 4 ports.
# v5p  https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s bfloat16, 95 GiB, 2765 GB/s, ICI 1200 GB/s both ways
#      together, which older versions call 4800 Gbit/s; 3-D torus, so 6 ports; a full torus from 4x4x4 on.
#      https://jax-ml.github.io/scaling-book/tpus: v5e's axes of 16 wrap around, no shorter ones; v5p's in whole cubes.
# H100 https://www.nvidia.com/en-us/data-center/h100/: SXM, bfloat16 1979 TFLOP/s with sparsity, so 989 dense; float32
#      67 TFLOP/s, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways together.
# H200 https://www.nvidia.com/en-us/data-center/h200/: the same with 141 GB and 4.8 TB/s.
# node https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-enterprise-ai/latest/
#      core-components.html: 8 GPUs and 8 ConnectX-7 of up to 400 Gbit/s in DGX H100 and H200, one a GPU.
# slow https://cloud.google.com/compute/docs/gpus/gpu-network-bandwidth: A3 High, 8 H100, up to 1000 Gbit/s; here 800.
# HIGHEST https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision: 6 bfloat16 passes on TPU, float32 on GPU.
GPU = {"bfloat16": 989e12, "float32": 67e12}
INFINIBAND = functools.partial(nodes, 450e9, 50e9)
CHIPS = (
    Chip(
        "TPU v5e",
        197e12,
        197e12 / 6,
        819e9,
        16e9,
        functools.partial(torus, V5E, 50e9, lambda axis, devices: axis == 16),
    ),
    Chip(
        "TPU v5p",
        459e12,
        459e12 / 6,
        2765e9,
        95e9,
        functools.partial(torus, V5P, 100e9, lambda axis, devices: devices >= 64),
    ),
    Chip("H100", **GPU, bandwidth=3.35e12, memory=80e9, all_reduce=INFINIBAND),
    Chip("H200", **GPU, bandwidth=4.8e12, memory=141e9, all_reduce=INFINIBAND),
)
ETHERNET = Chip(
    "H100, 100 Gbit/s", **GPU, bandwidth=3.35e12, memory=80e9, all_reduce=functools.partial(nodes, 450e9, 12.5e9)
)

# --- the model --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Fractions of the published peaks that are reached: of the matrix units, of the links; memory's is 1.

    traffic: `bytes`, of the program that XLA compiled for CPU, or `least`, counted by hand.
    """

    compute: float = 0.4
    links: float = 0.8
    traffic: str = "bytes"


LOW, HIGH = Assumed(0.2, 1.0), Assumed(0.6, 0.5, "least")  # least and most limited by links
# Of an all-reduce's traffic, since an all-reduce is a reduce-scatter and an all-gather.
SHARE = {"all-reduce": 1.0, "all-gather": 0.5, "reduce-scatter": 0.5}


@dataclasses.dataclass(frozen=True)
class Program:
    """A device's share of a step: constant + slope x images, of flops, bytes and memory; and what is communicated."""

    dtype: str
    flops: tuple[float, float]
    bytes: tuple[float, float]
    least: tuple[float, float]
    memory: tuple[float, float]
    collectives: tuple[tuple[str, float], ...]  # operation, bytes

    def at(self, what, images):
        """Of `flops`, `bytes`, `least` or `memory`."""
        constant, slope = getattr(self, what)
        return constant + slope * images


def program(records, dtype="float32", partitioned=()):
    """The line through [(case, record)] of one geometry and placement, all float32, with `least` by hand.

    XLA:CPU widens bfloat16, so its bytes and memory say nothing of it: the part that grows with the images, which are
    maps, is taken to halve, and the rest, parameters in float32, to stay. Collectives are those of `partitioned`.
    """
    images = [case.images for case, _ in records]

    def line(what):
        slope, constant = np.polyfit(images, [record[what] for _, record in records], 1, w=1 / np.asarray(images))
        return float(constant), float(slope)

    half = 0.5 if dtype == "bfloat16" else 1.0
    traffic, memory = line("bytes"), line("memory")
    _, maps, kernels = by_hand(records[0][0].geometry, dtype)
    by_op = {r["op"]: total(partitioned, r["op"]) for r in partitioned}
    return Program(
        dtype,
        line("flops"),
        (traffic[0], half * traffic[1]),
        (kernels, maps),
        (memory[0], half * memory[1]),
        tuple(sorted(by_op.items())),
    )


def compute_seconds(program, chip, images, assumed):
    """Without communication: matrix units or memory, whichever takes longer."""
    arithmetic = program.at("flops", images) / (getattr(chip, program.dtype) * assumed.compute)
    return max(arithmetic, program.at(assumed.traffic, images) / chip.bandwidth)


def link_seconds(program, chip, devices, assumed):
    """Of all collectives of a step."""
    parts = (SHARE[op] * chip.all_reduce(devices, size) for op, size in program.collectives)
    return sum(parts) / assumed.links


def step_seconds(program, chip, devices, images, assumed, overlap):
    """Of a step with `images` a device; overlap 0: links after compute, 1: both at once."""
    compute = compute_seconds(program, chip, images, assumed)
    links = link_seconds(program, chip, devices, assumed)
    return compute + links - overlap * min(compute, links)


def weak_efficiency(program, chip, devices, assumed, overlap, images=WEAK):
    """One device's time over that of `devices`, each with the same images."""
    alone = compute_seconds(program, chip, images, assumed)
    return alone / step_seconds(program, chip, devices, images, assumed, overlap)


def strong_efficiency(program, chip, devices, assumed, overlap, batch=STRONG):
    """Time of one device with all images, as if its memory held them, over the devices' time together."""
    alone = compute_seconds(program, chip, batch, assumed)
    return alone / (devices * step_seconds(program, chip, devices, batch / devices, assumed, overlap))


def crossover(program, chip, devices, assumed, fraction=1.0):
    """Images a device below which the links need more than `fraction` of the time of compute; 0: nowhere."""
    seconds = link_seconds(program, chip, devices, assumed) / fraction
    traffic = getattr(program, assumed.traffic)
    rates = ((program.flops, getattr(chip, program.dtype) * assumed.compute), (traffic, chip.bandwidth))
    return max(0.0, min((seconds * rate - constant) / slope for (constant, slope), rate in rates))


def fits(program, chip):
    """The most images a chip holds."""
    constant, slope = program.memory
    return max(0, math.floor((chip.memory - constant) / slope))


# --- what is shown ----------------------------------------------------------------------------------------------------


def programs(results):
    """{(geometry, dtype): Program} with whole parameters."""
    found = {}
    for geometry in GEOMETRIES:
        whole = [
            (case, record)
            for case, record in results.items()
            if case == Case(case.devices, case.images, geometry) and case.devices > 1
        ]
        found[geometry, "float32"] = program(whole, "float32", results[Case(8, WEAK, geometry)]["partitioned"])
        bfloat16 = results[Case(8, WEAK, geometry, "bfloat16")]["partitioned"]
        found[geometry, "bfloat16"] = program(whole, "bfloat16", bfloat16)
    return found


def table(header, rows):
    """Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |\n" for row in (header, *rows)]
    return "".join((lines[0], f"|{'---|' * len(header)}\n", *lines[1:]))


def milliseconds(value):
    """Seconds as milliseconds of three digits."""
    return f"{1e3 * value:.0f}" if value >= 0.1 else f"{1e3 * value:.3g}"


def _compiled_table(results):
    """Strong scaling; weak scaling's programs are all the one of 64 devices, see same_program."""
    rows = []
    for n in DEVICES:
        row = [n, STRONG // n]
        both = [results[Case(n, STRONG // n, geometry)] for geometry in GEOMETRIES]
        row += [f"{r['flops'] / 1e12:.3f}" for r in both]
        row += [f"{r['bytes'] / 1e9:.1f}" for r in both]
        row += [f"{total(r['collectives'], 'all-reduce') / 1e6:.2f}" for r in both[:1]]
        rows.append(row + [f"{r['memory'] / 1e9:.2f}" for r in both])
    header = ("devices", "images a device")
    header += tuple(f"{what}, {g}" for what in ("TFLOP", "GB traffic") for g in GEOMETRIES)
    return table((*header, "MB all-reduce", *(f"GB memory, {g}" for g in GEOMETRIES)), rows)


def _divided_memory_table(results):
    rows = []
    for n in (1, 2, 8, 64, 256):
        r = results[Case(n, WEAK, divided=True)]
        parts = [f"{total(r['collectives'], op) / 1e6:.1f}" for op in ("all-reduce", "all-gather")]
        memory = [results[Case(n, WEAK, g, divided=d)]["memory"] for g in GEOMETRIES for d in (False, True)]
        rows.append((n, *parts, f"{r['state'] / 1e9:.3f}", *(f"{m / 1e9:.2f}" for m in memory)))
    header = ("devices", "MB all-reduce", "MB all-gather", "GB state and batch")
    return table((*header, *(f"GB, {g}, {w}" for g in GEOMETRIES for w in ("whole", "divided"))), rows)


def _others_table(results):
    """What 8 devices show: types, optimizers, accumulation."""
    rows = []
    for case, r in results.items():
        if case.devices == 8 and case.images == WEAK and case.geometry == "caffe":
            row = [case.dtype, case.optimizer, case.accumulate, "divided" if case.divided else "whole"]
            for stage in ("partitioned", "collectives"):
                sums = [
                    f"{total(r[stage], op, dtype) / 1e6:.1f} {op} {dtype}"
                    for op, dtype in sorted({(x["op"], x["dtype"]) for x in r[stage] or ()})
                ]
                row.append(", ".join(sums) or "not read")
            rows.append((*row, f"{r['memory'] / 1e9:.2f}"))
    header = (
        "computes in",
        "optimizer",
        "accumulate",
        "parameters",
        "MB as partitioned",
        "MB as compiled for CPU",
        "GB",
    )
    return table(header, rows)


def _hand_table(found):
    rows = []
    for geometry in GEOMETRIES:
        p = found[geometry, "float32"]
        flops, maps, kernels = by_hand(geometry, "float32")
        pairs = ((p.flops[1] / 1e12, flops / 1e12), (p.bytes[1] / 1e9, maps / 1e9), (p.bytes[0] / 1e9, kernels / 1e9))
        row = [f"{value:.3f}" if index < 2 else f"{value:.1f}" for index, value in enumerate(sum(pairs, ()))]
        rows.append((geometry, *row, *(f"{value / 1e9:.2f}" for value in reversed(p.memory))))
    header = ("geometry", "TFLOP an image: compiled", "by hand", "GB traffic an image: compiled", "by hand")
    header += ("GB traffic besides: compiled", "by hand", "GB memory an image", "besides")
    return table(header, rows)


def _times_table(found, geometry, assumed, strong):
    columns = (8, 32, 64, 128, 256) if strong else (1, 8, 16, 64, 256)
    efficiency = strong_efficiency if strong else weak_efficiency
    rows = []
    for chip in CHIPS:
        for dtype in ("bfloat16", "float32"):
            p, row = found[geometry, dtype], [chip.name, dtype]
            for n in columns:
                images = STRONG / n if strong else WEAK
                slow, fast = (milliseconds(step_seconds(p, chip, n, images, assumed, o)) for o in (0, 1))
                low, high = (f"{100 * efficiency(p, chip, n, assumed, o):.0f}" for o in (0, 1))
                cell = f"{fast} ms" if fast == slow else f"{fast} to {slow} ms, {low} to {high} %"
                row.append(cell if images <= fits(p, chip) else f"({cell})")
            rows.append(row)
    return table(("chip", "computes in", *map(str, columns)), rows)


def _crossover_table(found, assumed):
    rows = []
    hand = dataclasses.replace(assumed, traffic="least")
    for (geometry, dtype), p in found.items():
        wide = dataclasses.replace(p, collectives=(("all-reduce", 4 * parameters()),))
        ways = {dtype: p, "bfloat16, float32 gradients": wide} if dtype == "bfloat16" else {dtype: p}
        for chip in (*CHIPS, ETHERNET):
            for name, way in ways.items():
                compute = (milliseconds(compute_seconds(way, chip, 1, a)) for a in (hand, assumed))
                reached = [n for n in DEVICES[1:] if crossover(way, chip, n, hand) >= STRONG / n]
                row = [geometry, chip.name, name, fits(way, chip), " to ".join(dict.fromkeys(compute))]
                row += [milliseconds(link_seconds(way, chip, n, assumed)) for n in (8, 256)]
                row += [f"{crossover(way, chip, 256, a):.2f}" for a in (LOW, assumed, hand, HIGH)]
                row += [reached[0] if reached else "above 256", f"{crossover(way, chip, 256, hand, 0.1):.1f}"]
                rows.append(row)
    header = ("geometry", "chip", "computes in", "images that fit", "ms of compute, 1 image", "ms of links, 8 chips")
    header += ("256 chips", "equal at: least", "assumed", "traffic by hand", "most")
    return table((*header, f"chips at {STRONG} images", "a tenth at"), rows)


def _gradients_table(found, assumed, geometry="caffe"):
    """Step at 256 chips without overlap, by what the all-reduce carries."""
    rows = []
    for chip in (*CHIPS, ETHERNET):
        for dtype in ("bfloat16", "float32"):
            row = [chip.name, dtype]
            for images in (1, WEAK):
                carried = (((("all-reduce", size * parameters()),)) for size in (4, 2))
                ways = (dataclasses.replace(found[geometry, dtype], collectives=c) for c in carried)
                wide, narrow = (step_seconds(p, chip, 256, images, assumed, 0) for p in ways)
                row += [milliseconds(wide), milliseconds(narrow), f"{100 * (1 - narrow / wide):.0f} %"]
            rows.append(row)
    header = ("chip", "computes in", "1 image: ms with 537 MB", "268 MB", "saved", f"{WEAK} images: 537 MB", "268 MB")
    return table((*header, "saved"), rows)


def _divided_table(results, found, assumed, n=256):
    """What dividing the parameters would send."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        whole, parts = (results[Case(8, WEAK, "caffe", dtype, d)]["partitioned"] for d in (False, True))
        gradient, gathered = total(whole, "all-reduce"), total(parts, "all-gather")
        ways = {
            "whole": (("all-reduce", gradient),),
            "divided, all-reduce as partitioned": (("all-reduce", gradient), ("all-gather", gathered)),
            "divided, reduce-scatter": (("reduce-scatter", gradient), ("all-gather", gathered)),
        }
        if dtype == "bfloat16":
            halved = (("reduce-scatter", gradient), ("all-gather", gathered / 2))
            ways["divided, reduce-scatter, gathered in bfloat16"] = halved
        for name, carried in ways.items():
            p = dataclasses.replace(found["caffe", dtype], collectives=carried)
            sent = sum(2 * SHARE[op] * size for op, size in carried) * (n - 1) / n
            times = (milliseconds(link_seconds(p, chip, n, assumed)) for chip in CHIPS)
            rows.append((dtype, name, f"{sent / 1e6:.0f}", *times))
    header = ("computes in", "parameters", f"MB sent a chip, {n} chips")
    return table((*header, *(f"ms on {chip.name}" for chip in CHIPS)), rows)


def plot(found, path, assumed, geometry="caffe"):
    """Efficiency against chips: rows are the types computed in, columns weak and strong scaling."""
    import matplotlib  # not a dependency of fcn_jax

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
    styles = (("#1f77b4", "o", 5), ("#2ca02c", "s", 5), ("#d62728", "^", 9), ("#9467bd", "v", 5))
    for row, dtype in zip(axes, ("bfloat16", "float32"), strict=True):
        p = found[geometry, dtype]
        for axis, efficiency, strong in ((row[0], weak_efficiency, False), (row[1], strong_efficiency, True)):
            for chip, (colour, marker, size) in zip(CHIPS, styles, strict=True):
                held = [n for n in DEVICES if (STRONG / n if strong else WEAK) <= fits(p, chip)]
                low, high = ([efficiency(p, chip, n, assumed, overlap) for n in held] for overlap in (0, 1))
                axis.plot(held, low, color=colour, marker=marker, markersize=size, fillstyle="none", label=chip.name)
                axis.plot(held, high, color=colour, linestyle="--", linewidth=1)
            what = f"strong: {STRONG} images in all" if strong else f"weak: {WEAK} images a chip"
            axis.set(title=f"computed in {dtype}, {what}", xscale="log", ylim=(0, 1.05))
            axis.set_xticks(DEVICES, [str(n) for n in DEVICES])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("chips")
    for axis in axes[:, 0]:
        axis.set_ylabel("efficiency")
    axes[0, 0].legend(loc="lower left")
    figure.suptitle(
        f"PREDICTION, not measured: FCN-8s, {geometry} geometry, images of 500x500. Assumed: {assumed.compute:.0%} of"
        f" peak flops, {assumed.links:.0%} of the links' peak.\nSolid: communication after computation; dashed: both at"
        " once. Lines begin where the images fit into the chips' memory.",
        fontsize=10,
    )
    figure.savefig(path, dpi=100)


def same_program(results, geometry, divided=False):
    """Whether flops, bytes, memory and collectives of a device are equal for all numbers of devices from 2 on."""
    records = [results[Case(n, WEAK, geometry, divided=divided)] for n in DEVICES[1:]]
    arrays = {tuple((r["op"], r["dtype"], r["bytes"]) for r in record["collectives"]) for record in records}
    numbers = {tuple(record[key] for key in ("flops", "bytes", "memory", "state")) for record in records}
    return len(arrays) == len(numbers) == 1


def deviation(results, found):
    """The largest relative difference of a program's flops, traffic or memory from the line through them."""
    worst = 0.0
    for case, record in results.items():
        if case == Case(case.devices, case.images, case.geometry) and case.devices > 1:
            for what in ("flops", "bytes", "memory"):
                fitted = found[case.geometry, "float32"].at(what, case.images)
                worst = max(worst, abs(fitted / record[what] - 1))
    return worst


# The texts of the tables' page, so that whoever makes it anew has them, too.
PAGE = """\
# PREDICTION: tables of training on 1 to 256 chips

Nothing here was measured on a TPU or GPU. [SCALING_PREDICTION.md](../../docs/SCALING_PREDICTION.md) says what follows
from the tables, what the model assumes and where its limits are. Made by
`python benchmarks/scaling.py --tables=benchmarks/results/scaling_tables.md`."""
PROGRAMS = """\
FCN-8s as in configs/fcn8s.py (VGG16's widths, 21 classes, 500x500, SGD), compiled for a mesh of n CPU devices. Numbers
are a device's. `caffe` is the released geometry, `same` has no border."""
OTHERS = """\
All are in `caffe` geometry, as XLA's partitioner wrote them for any backend, and after XLA:CPU's own passes. Where
`accumulate` is 2, a device computes two such batches."""
BY_HAND = """\
Flops by hand: three products for each convolution, padding included, which XLA leaves out. Traffic by hand: each
product reads its two operands and writes its result once, and everything else is fused. Compiled: the lines through
the programs of 2 to 256 devices."""
TIMES = """\
Step with full overlap of communication and computation to step with none; efficiency with none to full. Columns are
numbers of chips. In parentheses: the images of a chip do not fit into its memory (XLA:CPU's count), so they would need
`data.accumulate`, which the time does not include.

Efficiency of strong scaling is against one chip with unlimited memory. What is lost even with full overlap is traffic
of parameters, by XLA:CPU's count, that more chips do not share."""
LIMIT = """\
- "equal at": images a chip, at 256 chips, for which the links take as long as computing. With fewer images the
  all-reduce is the limit, even with full overlap. 0: the links are faster than the traffic that does not depend on the
  images.
- "assumed": with the model's assumptions. "traffic by hand": with the least traffic. "least": 0.2 of the peak flops
  and all of the links' bandwidth. "most": 0.6, half of the links' bandwidth and the least traffic.
- "chips at 256 images": a batch of B images reaches the limit at about B / "equal at" chips. This is for B = 256,
  among powers of two, traffic by hand.
- "a tenth at": images a chip for which the links take a tenth of computing, traffic by hand.
- "float32 gradients": what 537 MB would do where the program now sends 268."""
GRADIENTS = """\
Step in ms at 256 chips, no overlap, `caffe`. With `model.dtype=bfloat16` the column of 268 MB is what the program does
now; with float32 it would be new."""
DIVIDED = """\
`config.sharding.params=True`. Compiled, float32, SGD, 4 images a device; memory is what XLA:CPU's program needs:"""


def show(results, assumed, file=None):
    """All tables, in Markdown, to an open file or to the standard output."""
    write = functools.partial(print, file=file)
    found = programs(results)
    write(f"{PAGE}\n\nAssumed: {assumed.compute} of the peak flops, {assumed.links} of the links' bandwidth.\n")
    write(f"## Programs\n\n{PROGRAMS}\n\n{STRONG} images in all:\n\n{_compiled_table(results)}")
    same = [same_program(results, geometry) for geometry in GEOMETRIES]
    write(f"{WEAK} images a device on 2 to 256 devices: the same program {same}; {parameters():,} parameters.\n")
    write(f"Other programs, of 8 devices with {WEAK} images each:\n\n{OTHERS}\n\n{_others_table(results)}")
    write(f"## By hand\n\n{BY_HAND}\n\n{_hand_table(found)}")
    write(f"Largest distance of a program from the lines: {100 * deviation(results, found):.1f} %\n")
    write(f"## Times\n\n{TIMES}\n")
    for geometry in GEOMETRIES:
        weak, strong = (_times_table(found, geometry, assumed, strong=strong) for strong in (False, True))
        write(f"### Weak scaling, {WEAK} images a chip, {geometry}\n\n{weak}")
        write(f"### Strong scaling, {STRONG} images in all, {geometry}\n\n{strong}")
    write(f"## Where links limit\n\n{LIMIT}\n\n{_crossover_table(found, assumed)}")
    write(f"## Gradients\n\n{GRADIENTS}\n\n{_gradients_table(found, assumed)}")
    write(f"## Divided parameters\n\n{DIVIDED}\n\n{_divided_memory_table(results)}")
    write(f"Sent by a chip, and its time on the links:\n\n{_divided_table(results, found, assumed)}", end="")


def main():
    """Compiles what the cache has not, writes or prints the tables, draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("~/.cache/fcn_jax/scaling").expanduser())
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--tables", type=pathlib.Path, help="the Markdown file of the tables; printed without it")
    parser.add_argument("--compute", type=float, default=Assumed.compute, help="fraction of the peak flops")
    parser.add_argument("--links", type=float, default=Assumed.links, help="fraction of the links' bandwidth")
    options = parser.parse_args()
    results = {case: measure(case, options.cache) for case in cases()}
    for case, record in results.items():
        check(case, record, parameters())
    assumed = Assumed(options.compute, options.links)
    if options.tables:
        with open(options.tables, "w") as file:
            show(results, assumed, file)
    else:
        show(results, assumed)
    if options.plot:
        plot(programs(results), options.plot, assumed)


if __name__ == "__main__":
    main()

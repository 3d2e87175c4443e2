"""How fast FCN-8s trains, predicts, reads its data and starts on this machine, side by side with PyTorch.

    python benchmarks/speed.py                                  # CPU: float32, 375x500 and 500x500, batch 1
    python benchmarks/speed.py --dtypes=bfloat16,float32 --sizes=512x512 --batches=1,2,4,8,16,32    # one GPU

PyTorch takes part where torch is installed and --torchfcn names pytorch-fcn (`pip download torchfcn --no-deps
--no-binary :all:`, unpacked); it is pytorch-fcn's own module, with AMP and channels_last where the dtype is bfloat16.
Every figure is from a process of its own; those that are compared take turns, and medians over the rounds count.
"""

import argparse
import datetime
import functools
import importlib.util
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import speed_torchfcn

CLASSES = 21
ROOT = pathlib.Path(__file__).parents[1]


def main():
    """Prints Markdown tables, or in a process of its own the figures of one case as JSON."""
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
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(globals()[f"measure_{case.pop('what')}"](**case)))
        return
    print(heading())
    for part in options.parts.split(","):
        globals()[f"table_{part}"](options)


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
    command = [sys.executable, __file__, f"--case={json.dumps(case)}"]
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
    print(f"\n| {what} | images/s | of PyTorch | memory GB | of PyTorch | TFLOP/s |\n|---|---|---|---|---|---|")
    for title, ours, torch in cases_of(options, what):
        *found, reference = in_turns(options, *ours, torch) if torch else [*in_turns(options, *ours), None]
        if reference:
            rate = ours[0]["batch"] / reference["seconds"]
            print(f"| {title} pytorch-fcn | {rate:.2f} | 1.00 | {reference['memory']:.2f} | 1.00 | |")
        for case, figures in zip(ours, found, strict=True):
            if not figures:
                continue
            faster, smaller = "", ""
            if reference:
                faster = f"{reference['seconds'] / figures['seconds']:.2f}"
                smaller = f"{figures['memory'] / reference['memory']:.2f}"
            rate, speed = case["batch"] / figures["seconds"], figures["flops"] / figures["seconds"] / 1e12
            name = f"{title} fcn_jax {case['geometry']}"
            print(f"| {name} | {rate:.2f} | {faster} | {figures['memory']:.2f} | {smaller} | {speed:.2f} |", flush=True)


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
        write_photographs(folder, options.images)
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
    """Updates of the configs that are made for a CPU, each with its own crops, batches and frozen layers."""
    print("\n| update of | images/s | of the other checkout |\n|---|---|---|")
    for name, variant in (("fcn8s", "demo"), ("camvid_fcn8s", ""), ("voc_laptop", "")):
        case = {"what": "recipe", "name": name, "variant": variant, "repeats": 5 * options.repeats}
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
    """From the command to the first step of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [run(what="start", folder=folder)["seconds"] for _ in range(2)]
    print("\n| from the command to the first step of fcn8s.py:demo | seconds |\n|---|---|")
    for name, value in zip(("compiled anew", "compiled before"), seconds, strict=True):
        print(f"| {name} | {value:.1f} |")


# --- what runs in a process of its own -----------------------------------------------------------------------------


def measure_device():
    """The accelerator and JAX."""
    import jax

    return {"kind": jax.devices()[0].device_kind, "jax": jax.__version__}


def network(geometry):
    """FCN-8s of full width for 21 classes, with random parameters of the size that layers have before training."""
    import jax

    from fcn_jax.models.spec import ModelSpec

    names, palette = tuple(map(str, range(CLASSES))), tuple((i, i, i) for i in range(CLASSES))
    spec = ModelSpec("fcn8s", "vgg16", geometry, False, "fixed", 64, 4096, names, palette)
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0
        return (deviation * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)

    return spec, jax.tree.map(draw, spec.abstract_params())


def photographs(batch, height, width):
    """A batch as the pipeline makes it."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        "label": rng.integers(0, CLASSES, (batch, height, width), np.uint8),
        "size": np.full((batch, 2), (height, width), np.int32),
    }


def seconds(call, repeats):
    """The median time of a call, after one that does not count; the memory of this process starts anew there."""
    call()
    forget_peak()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def forget_peak():
    """The largest memory of this process is counted from now on (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak():
    """The largest memory of this process in GB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def device_peak():
    """The largest memory of the accelerator in GB; of this process, where that is the CPU."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e9 if stats else peak()


def counted(function, *arguments):
    """Floating-point operations by XLA's count; as for TPU, since loops on CPU are counted once."""
    import jax

    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def measure_step(geometry, height, width, batch, dtype, repeats):
    """train_step as train.py compiles it, with the solver of the release."""
    import jax
    import jax.numpy as jnp

    from fcn_jax import optim, sharding, train_state

    spec, params = network(geometry)
    solver = {"momentum": 0.99, "weight_decay": 5e-4, "bias_multiplier": 2.0, "clip_norm": 0.0, "frozen": ()}
    optimizer = optim.make_optimizer(params, name="sgd", schedule=lambda step: 1e-10, **solver)
    step = functools.partial(
        train_state.train_step,
        model=spec.build(dropout=0.5, dtype=dtype),
        optimizer=optimizer,
        groups=optim.parameter_groups(params, ()),
        class_weights=jnp.ones(CLASSES),
        normalization="sum",
        seed=0,
    )
    state = jax.jit(functools.partial(train_state.create_train_state, optimizer=optimizer))(params)
    del params
    data = jax.device_put({key: value[None] for key, value in photographs(batch, height, width).items()})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, data))
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    sharding.release_host_memory()

    def call():
        nonlocal state
        state, results = compiled(state, data)
        jax.block_until_ready((state, results))

    return {"seconds": seconds(call, repeats), "memory": device_peak(), "flops": counted(step, *shapes)}


def measure_forward(geometry, height, width, batch, dtype, repeats):
    """From uint8 images to classes."""
    import jax
    import jax.numpy as jnp

    from fcn_jax import sharding

    spec, params = network(geometry)
    model = spec.build(dtype=dtype)

    def classes(params, image, size):
        return jnp.argmax(model.apply({"params": params}, image, size), -1).astype(jnp.uint8)

    data = photographs(batch, height, width)
    given = jax.device_put((params, data["image"], data["size"]))
    del params
    compiled = jax.jit(classes).lower(*given).compile()
    sharding.release_host_memory()
    taken = seconds(lambda: jax.block_until_ready(compiled(*given)), repeats)
    return {"seconds": taken, "memory": device_peak(), "flops": counted(classes, *given)}


def measure_recipe(name, variant, repeats):
    """Images a second of one update as the config has it; parameters and images are noise."""
    import cost
    import jax

    config = cost.load(ROOT / "configs" / f"{name}.py", *filter(None, [variant]))
    step, state, batch = cost.update(config, config.network)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if np.issubdtype(leaf.dtype, np.floating):
            return 0.01 * rng.standard_normal(leaf.shape, np.float32)
        return np.zeros(leaf.shape, leaf.dtype)

    state = jax.device_put(jax.tree.map(draw, state))
    state = state.replace(opt_state=jax.tree.map(abs, state.opt_state))  # of AdamW no square is below zero
    data = photographs(int(np.prod(batch["label"].shape[:2])), *batch["label"].shape[2:])
    data = {key: data[key].reshape(value.shape) for key, value in batch.items()}
    compiled = jax.jit(step, donate_argnums=0).lower(state, data).compile()

    def call():
        nonlocal state
        state, results = compiled(state, data)
        jax.block_until_ready((state, results))

    return {"rate": len(data["size"]) * data["size"].shape[1] / seconds(call, repeats)}


def measure_matmul(dtype, size=8192):
    """What the device reaches in one product [size, size] x [size, size]; on CPU of a quarter of the size."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() == "cpu":
        size //= 4
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision="default" if dtype == "bfloat16" else "highest"))
    return {"flops_per_second": 2 * size**3 / seconds(lambda: jax.block_until_ready(product(x, x)), 7)}


def write_photographs(folder, count):
    """JPEGs of VOC's commonest sizes: 375x500, and every fourth 500x375 or 333x500."""
    rng = np.random.default_rng(0)
    for index in range(count):
        size = {1: (500, 375), 3: (333, 500)}.get(index % 8, (375, 500))
        pathlib.Path(folder, f"{index:05d}.jpg").write_bytes(photograph(rng, size))


def photograph(rng, size):
    """A JPEG of 375x500 pixels has about 90 kB, as those of VOC have: soft colours with some noise."""
    from PIL import Image

    colours = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    noisy = np.asarray(colours) + rng.normal(0, 12, (*size, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure_predict(folder, geometry):
    """The command's own loop over the folder, after one image of each size."""
    from absl import flags

    from fcn_jax import predict
    from fcn_jax.predictor import Predictor

    flags.FLAGS.mark_as_parsed()
    spec, params = network(geometry)
    predictor = Predictor(params, spec)
    paths = predict.find_images(pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as output:
        pairs = [
            (pathlib.Path(output) / f"{path.stem}.png", pathlib.Path(output) / f"{path.stem}.jpg") for path in paths
        ]
        jobs = [predict.Job(path, *pair) for path, pair in zip(paths, pairs, strict=True)]
        list(predict.run(predictor, jobs[:4]))
        began = time.perf_counter()
        done = list(predict.run(predictor, jobs))
        taken = time.perf_counter() - began
    assert not [error for _, error in done if error]
    return {"rate": len(jobs) / taken}


def measure_input(count=64, size=(375, 500), crop=(320, 320)):
    """The pipeline on JPEGs in memory: one thread for the rates, all cores for the consumer."""
    from PIL import Image

    from fcn_jax.data import datasets, images, pipeline

    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        label = Image.fromarray(rng.integers(0, CLASSES, (6, 8), np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        file = io.BytesIO()
        label.save(file, "PNG")
        records.append({"id": str(index).encode(), "image": photograph(rng, size), "label": file.getvalue()})
    split = datasets.Split(
        name="photographs",
        split="all",
        class_names=tuple(map(str, range(CLASSES))),
        palette=((0, 0, 0),) * CLASSES,
        source=datasets.Source(records),
        ids=[record["id"].decode() for record in records],
        sizes=np.tile(np.array(size, np.int32), (count, 1)),
        pixel_counts=np.ones((count, CLASSES), np.int64),
        corrupt=[],
    )
    augmentation = pipeline.Augmentation(crop, crop=True, scale=(0.5, 2.0), flip=True, colour_jitter=0.2)
    dataset = pipeline.train_dataset(split, augmentation, seed=0, batch_size=8)

    def decode():
        for record in records:
            images.decode_image(record["image"], "x")
            images.decode_label(record["label"], "x")

    def augment():
        for step in range(count // 8):
            dataset[step]

    calls = {"decode": decode, "augment": augment}
    rounds = [{name: seconds(call, 1) for name, call in calls.items()} for _ in range(7)]  # in turns
    rates = {name: count / statistics.median(times[name] for times in rounds) for name in calls}
    everything = rates["augment"] * os.cpu_count()
    return {**rates, "waited": {share: waiting(dataset, 8 / (share * everything)) for share in (0.5, 0.8)}}


def waiting(dataset, pause, steps=100):
    """The part of its time that a consumer waits who is busy for `pause` seconds with each batch, as with a GPU."""
    from fcn_jax.data import pipeline

    batches = pipeline.iterate(dataset, 0, 2 * os.cpu_count())
    next(batches)
    waited = 0.0
    for _ in range(steps):
        time.sleep(pause)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (waited + steps * pause)


def measure_start(folder):
    """From the command to its first step; programs that were compiled lie in the folder."""
    command = [sys.executable, "-m", "fcn_jax.main", f"--config={ROOT}/configs/fcn8s.py:demo"]
    options = [
        "--config.log.every=1",
        "--config.optim.warmup_steps=0",
        f"--config.data.data_dir={folder}/data",
        f"--workdir={folder}/{time.time()}",
    ]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if not pathlib.Path(folder, "data").exists():  # data are prepared, which happens once
        subprocess.run([*command, *options[:3], f"--workdir={folder}/first", "--config.steps=1,"], cwd=ROOT, check=True)
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    taken = time.perf_counter() - began
    process.kill()
    process.wait()
    return {"seconds": taken}


measure_torch_step = functools.partial(speed_torchfcn.step, photographs, seconds, peak)
measure_torch_forward = functools.partial(speed_torchfcn.forward, photographs, seconds, peak)
measure_torch_predict = speed_torchfcn.predict

if __name__ == "__main__":
    main()

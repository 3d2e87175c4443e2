"""What speed.py measures, each in a process of its own: python benchmarks/speed_cases.py CASE, a case as JSON."""

import functools
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


def measure_device():
    """The accelerator and JAX."""
    import jax

    return {"kind": jax.devices()[0].device_kind, "jax": jax.__version__}


def network(geometry):
    """FCN-8s of full width for 21 classes, with random parameters of the size that layers have before training."""
    import jax

    from fcn_jax.models import fcn
    from fcn_jax.models.spec import ModelSpec

    names, palette = tuple(map(str, range(CLASSES))), tuple((i, i, i) for i in range(CLASSES))
    spec = ModelSpec("fcn8s", "vgg16", geometry, False, "fixed", 64, 4096, names, palette)
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0
        return (deviation * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)

    return spec, jax.tree.map(draw, fcn.abstract_params(spec))


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


def planned(compiled):
    """The memory that XLA has planned for a program, in GB, with all that it is given."""
    analysis = compiled.memory_analysis()
    kept = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + kept) / 1e9


def counted(function, *arguments):
    """Floating-point operations by XLA's count; as for TPU, since loops on CPU are counted once."""
    import jax

    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def measure_step(geometry, height, width, batch, dtype, repeats):
    """train_step as train.py compiles it, with the solver of the release."""
    import jax

    from fcn_jax import losses, optim, sharding, steps, train_state
    from fcn_jax.models import fcn

    spec, params = network(geometry)
    solver = optim.Solver("sgd", lambda step: 1e-10, momentum=0.99, weight_decay=5e-4, bias_multiplier=2.0)
    optimizer = optim.make_optimizer(params, solver)
    update = steps.Update(fcn.FCN(spec, dropout=0.5, dtype=dtype), optimizer, losses.Loss((1.0,) * CLASSES, "sum"))
    step = functools.partial(steps.train_step, update=update)
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

    return {
        "seconds": seconds(call, repeats),
        "memory": device_peak(),
        "planned": planned(compiled),
        "flops": counted(step, *shapes),
    }


def measure_forward(geometry, height, width, batch, dtype, repeats):
    """From uint8 images to classes."""
    import jax
    import jax.numpy as jnp

    from fcn_jax import sharding
    from fcn_jax.models import fcn

    spec, params = network(geometry)
    model = fcn.FCN(spec, dtype=dtype)

    def classes(params, image, size):
        return jnp.argmax(model.apply({"params": params}, image, size), -1).astype(jnp.uint8)

    data = photographs(batch, height, width)
    given = jax.device_put((params, data["image"], data["size"]))
    del params
    compiled = jax.jit(classes).lower(*given).compile()
    sharding.release_host_memory()
    taken = seconds(lambda: jax.block_until_ready(compiled(*given)), repeats)
    memory = {"memory": device_peak(), "planned": planned(compiled)}
    return {"seconds": taken, **memory, "flops": counted(classes, *given)}


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

    from fcn_jax import outputs, predict
    from fcn_jax.predictor import Predictor

    flags.FLAGS.mark_as_parsed()
    spec, params = network(geometry)
    predictor = Predictor(params, spec)
    paths = predict.find_images(pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as output:
        jobs, wanted = [predict.Job(path, path.stem) for path in paths], outputs.Wanted(spec, ("mask", "overlay"))
        list(predict.run(predictor, jobs[:4], wanted, pathlib.Path(output)))
        began = time.perf_counter()
        done = list(predict.run(predictor, jobs, wanted, pathlib.Path(output)))
        taken = time.perf_counter() - began
    assert not [error for _, error in done if error]
    return {"rate": len(jobs) / taken}


def measure_input(count=64, repeated=16, size=(375, 500), crop=(320, 320)):
    """The pipeline on JPEGs in memory: one thread for the rates, all cores for the consumer.

    The split has each of them several times, since Grain shuffles the fewest examples in the longest time.
    """
    from PIL import Image

    from fcn_jax.data import datasets, images, pipeline, transforms

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
        heads=(("label", "", CLASSES),),
        inputs={"colour": ()},
        unscored=(),
        swaps=(transforms.IDENTITY,),
        source=datasets.Source(records * repeated),
        ids=[record["id"].decode() for record in records] * repeated,
        sizes=np.tile(np.array(size, np.int32), (repeated * count, 1)),
        pixel_counts=np.ones((repeated * count, CLASSES), np.int64),
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


def measure_mask():
    """From Python to the first mask of the network that comes along, and a second one."""
    code = (
        "import time; began = time.perf_counter(); import numpy, fcn_jax; predict = fcn_jax.load('camvid-small');"
        " image = numpy.zeros((360, 480, 3), numpy.uint8); predict(image); first = time.perf_counter() - began;"
        " predict(image); print(first, time.perf_counter() - began - first)"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    first, second = map(float, output.split())
    return {"first": first, "second": second}


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


MEASURES = {
    "device": measure_device,
    "step": measure_step,
    "forward": measure_forward,
    "recipe": measure_recipe,
    "matmul": measure_matmul,
    "predict": measure_predict,
    "input": measure_input,
    "start": measure_start,
    "mask": measure_mask,
    "torch_step": functools.partial(speed_torchfcn.step, photographs, seconds, peak),
    "torch_forward": functools.partial(speed_torchfcn.forward, photographs, seconds, peak),
    "torch_predict": speed_torchfcn.predict,
}

if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    print(json.dumps(MEASURES[case.pop("what")](**case)))

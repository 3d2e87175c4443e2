"""One run on any devices: the same numbers on one and on eight, in one process and in four, and after any stop."""

import csv
import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
from commands import command
from processes import Job

from fcn_jax import config as config_lib
from fcn_jax import losses, optim, sharding, steps, train, train_state
from fcn_jax.data import datasets, pipeline
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run import distributed
from fcn_jax.run.stop import Stopped

STEPS, SAVED = 16, 10
# FCN-8s with all that is random: crops, sizes, mirroring, colours and dropout. At the demo's rate of 3e-3 a difference
# of the last bit becomes one of 1e-2 within 30 steps, in whatever is computed: training from scratch is chaotic.
RUN = (
    "--config=configs/fcn8s.py:demo",
    f"--config.steps={STEPS},",
    "--config.learning_rate=2e-4,",
    "--config.optim.warmup_steps=1",
    "--config.data.train_split=tiny[:6]",
    "--config.data.eval_split=tiny[6:]",
    "--config.data.batch_size=8",
    "--config.data.crop_size=(64,64)",
    "--config.data.scale=(0.8,1.2)",
    "--config.data.flip=True",
    "--config.data.colour_jitter=0.2",
    "--config.model.width=2",
    "--config.model.fc_width=64",
    "--config.model.dropout=0.5",
    "--config.eval.batch_size=8",
    "--config.eval.pictures=1",
    "--config.log.every=1",
    f"--config.log.checkpoint_every={SAVED}",
)
DIVIDED = "--config.sharding.params=True"
ACCUMULATED = "--config.data.accumulate=2"
# Name: processes, devices of each, what else.
TOPOLOGIES = {
    "1 device": (1, 1),
    "8 devices": (1, 8),
    "4 processes": (4, 1),
    "8 devices, divided": (1, 8, DIVIDED),
    "1 device, accumulated": (1, 1, ACCUMULATED),
    "2 processes of 2, divided, accumulated": (2, 2, DIVIDED, ACCUMULATED),
}
ELSEWHERE = "4 processes"  # only goes on with what another has begun
# Float32 keeps 6e-8. Measured: 3e-7 for all losses, 2e-5 of the largest weight of its array for a weight.
LOSSES, WEIGHTS = 2e-6, 1e-4


def train_on(topology, workdir, data_dir):
    """Runs to the end, or goes on; what the processes said on stderr."""
    count, devices, *more = TOPOLOGIES[topology]
    places = (f"--config.data.data_dir={data_dir}", f"--workdir={workdir}")
    with Job(*RUN, *more, *places, processes=count, devices=devices) as job:
        assert set(job.wait()) == {0}, job.everything()
        return [job.stderr(index) for index in range(count)]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The workdir of a topology's run, and its stderr."""

    @functools.cache
    def run(topology):
        workdir = tmp_path_factory.mktemp("runs") / topology.replace(" ", "_")
        return workdir, train_on(topology, workdir, data_dir)

    return run


def assert_same_run(workdir, expected):
    """To float32 rounding: all losses and gradient norms, the scores, and the parameters at the end."""
    for key, tolerance in (("loss", LOSSES), ("gradient_norm", 10 * LOSSES), ("learning_rate", 1e-12)):
        found, wanted = (
            np.array([row[key] for row in processes.rows(path) if key in row]) for path in (workdir, expected)
        )
        assert len(found) == len(wanted) == STEPS
        np.testing.assert_allclose(found, wanted, rtol=tolerance, err_msg=key)
    results, wanted_results = (json.loads((path / "eval_tiny_6-.json").read_text()) for path in (workdir, expected))
    pixels = np.array(results["confusion_matrix"]) - wanted_results["confusion_matrix"]
    assert np.abs(pixels).sum() <= 4, "two pixels, where two classes all but tie"
    assert results["loss"] == pytest.approx(wanted_results["loss"], rel=LOSSES)
    images, wanted_images = (per_image(path / "eval_tiny_6-.csv") for path in (workdir, expected))
    assert len(set(images.values())) > 1, "images that would not be told apart"
    assert images == {name: pytest.approx(scores, abs=0.01) for name, scores in wanted_images.items()}
    params, wanted_params = (processes.state(path, STEPS) for path in (workdir, expected))
    assert params.keys() == wanted_params.keys()
    for path, value in wanted_params.items():
        if path.startswith("params"):
            limit = WEIGHTS * np.abs(value).max()
            np.testing.assert_allclose(params[path], value, rtol=0, atol=limit, err_msg=path)


def per_image(path):
    """{id: (labelled, pixel_accuracy, mean_iou)}."""
    return {name: tuple(map(float, scores)) for name, *scores in csv.reader(path.read_text().splitlines()[1:])}


QUICK = ("8 devices", "2 processes of 2, divided, accumulated")


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in TOPOLOGIES
        if not name.startswith("1 device") and name != ELSEWHERE
    ],
)
def test_losses_and_parameters_are_those_of_one_device(finished, topology):
    workdir, stderr = finished(topology)
    accumulated = ACCUMULATED in TOPOLOGIES[topology]
    assert_same_run(workdir, finished("1 device, accumulated" if accumulated else "1 device")[0])
    assert f"step {STEPS}/{STEPS}  loss" in stderr[0]
    # One speaks, one writes.
    assert stderr[1:] == [""] * (TOPOLOGIES[topology][0] - 1)
    steps = [row["step"] for row in processes.rows(workdir)]
    assert steps == [*range(1, STEPS + 1), STEPS], "each step and one evaluation, once"
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert [path.name for path in (workdir / "pictures").iterdir()] == ["tiny_6-_0.png"]
    assert processes.saved_steps(workdir) == [SAVED, STEPS]
    assert not list(workdir.glob(".shared-*"))
    if TOPOLOGIES[topology][0] == 2:
        assert_each_wrote_a_part(workdir, 2)


def test_the_runs_have_learned_something_and_dropped_something(finished):
    """Else that they agree would say little."""
    workdir, _ = finished("1 device")
    losses = processes.losses(workdir)
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    before, after = processes.state(workdir, SAVED), processes.state(workdir, STEPS)
    unchanged = [path for path in after if path.startswith("params") and (before[path] == after[path]).all()]
    assert not unchanged
    accumulated = processes.losses(finished("1 device, accumulated")[0])
    assert np.abs(accumulated / losses - 1).max() > 0.03


def assert_each_wrote_a_part(workdir, count):
    """Nothing of the last checkpoint is written twice, whether it lies on every device or divided."""
    folder = workdir / "checkpoints" / str(STEPS)
    total = sum(value.nbytes for value in processes.state(workdir, STEPS).values())
    sizes = [
        sum(path.stat().st_size for item in ("params", "train") for path in (folder / item / name).rglob("*"))
        for name in (f"ocdbt.process_{index}" for index in range(count))
    ]
    assert min(sizes) > 0.6 / count * sum(sizes)
    assert sum(sizes) < 0.9 * total, "they are compressed, to about 0.6"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1 device", ELSEWHERE),
        ("2 processes of 2, divided, accumulated", "1 device, accumulated"),
    ],
)
def test_a_run_goes_on_elsewhere(finished, data_dir, tmp_path, before, after):
    """Killed after a save on some devices, ended on others: the same to rounding."""
    workdir = processes.copy(finished(before)[0], tmp_path / "run", without=[STEPS])
    stderr = train_on(after, workdir, data_dir)
    assert f"resuming {workdir} at step {SAVED} of {STEPS}" in stderr[0]
    assert_same_run(workdir, finished("1 device, accumulated" if "accumulated" in after else "1 device")[0])
    if after == ELSEWHERE:
        assert_each_wrote_a_part(workdir, 4)


@pytest.mark.slow
def test_two_processes_go_on_at_the_border_of_two_stages(data_dir, tmp_path):
    """From parameters that were saved alone, averaged and divided; and another run starts from these."""
    stages = ("--config.network=fcn32s,fcn16s", "--config.steps=4,4", "--config.learning_rate=1e-4,1e-4")
    run = [argument for argument in RUN if "steps=" not in argument and "learning_rate" not in argument]
    run += [*stages, DIVIDED, "--config.optim.warmup_steps=1", "--config.optim.ema=0.9"]
    run += ["--config.log.checkpoint_every=4", f"--config.data.data_dir={data_dir}"]
    processes.finish(*run, f"--workdir={tmp_path}/whole", processes=2)
    processes.copy(tmp_path / "whole", tmp_path / "again", without=[8])
    stderr = processes.finish(*run, f"--workdir={tmp_path}/again", processes=2)
    assert f"resuming {tmp_path}/again at step 4 of 8" in stderr
    processes.assert_identical(processes.state(tmp_path / "again"), processes.state(tmp_path / "whole"))
    # Compiled is what the first stage was.
    one = ("--config.network=fcn32s", "--config.steps=4,", "--config.learning_rate=1e-4,")
    run = [argument for argument in run if argument not in stages]
    started = (*run, *one, f"--config.init.weights={tmp_path}/whole/checkpoints/4", f"--workdir={tmp_path}/started")
    stderr = processes.finish(*started, "--config.init.random=", processes=2)
    assert "done: step 4" in stderr


# --- what every process reads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_side_by_side_the_processes_read_the_global_batch(data_dir, count, accumulate):
    """The same images in the same order, augmented alike."""
    split = datasets.open_split("shapes", "tiny", data_dir=data_dir)
    augmentation = pipeline.Augmentation((16, 16), crop=True, scale=(0.8, 1.2), flip=True, colour_jitter=0.2)

    def read(**process):
        reading = pipeline.Reading(**process)
        options = {"seed": 7, "batch_size": 12, "accumulate": accumulate}
        return pipeline.train_dataset(split, augmentation, **options, reading=reading)[5]

    expected = read()
    assert expected["id"].shape == (accumulate, 12)
    shares = [read(process_index=index, process_count=count) for index in range(count)]
    for key, value in expected.items():
        np.testing.assert_array_equal(np.concatenate([share[key] for share in shares], axis=1), value, err_msg=key)


# --- gradients -----------------------------------------------------------------------------------------------------

SIZES = ((40, 40), (200, 200), (41, 199), (97, 64), (133, 180), (64, 96), (200, 47), (101, 101))
VARIANTS = (("caffe", "learned"), ("same", "fixed"))
CLASSES = 3


def miniature(geometry, upsampling, width=2, fc_width=16):
    palette = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    return ModelSpec("fcn8s", "vgg16", geometry, False, upsampling, width, fc_width, ("ground", "a", "b"), palette)


def random_params(spec):
    """Scores that are not zero, so that a gradient reaches every layer."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        layer = path[0].key
        if path[-1].key == "bias":
            return rng.uniform(0, 0.1, leaf.shape).astype(np.float32)
        deviation = 0.01 if layer.startswith(("score", "up")) else np.sqrt(2 / np.prod(leaf.shape[:3]))
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, fcn.abstract_params(spec))


def padded_batch():
    """[1, 8, 200, 200]: eight images of SIZES, black and void around them."""
    rng = np.random.default_rng(1)
    image = np.zeros((1, len(SIZES), 200, 200, 3), np.uint8)
    label = np.full((1, len(SIZES), 200, 200), 255, np.uint8)
    for index, (height, width) in enumerate(SIZES):
        part = np.s_[0, index, :height, :width]
        label[part] = np.kron(rng.integers(0, CLASSES, (25, 25)), np.ones((8, 8), int))[:height, :width]
        image[part] = 80 * label[part][..., None] + rng.integers(0, 90, (height, width, 3))
    return {"image": image, "label": label, "size": np.array([SIZES], np.int32)}


# Adds gradients up in its state, and changes nothing.
KEEPER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params: (
        jax.tree.map(jnp.zeros_like, gradient),
        jax.tree.map(jnp.add, state, gradient),
    ),
)


def compiled_step(spec, mesh, batch, *, divided, optimizer):
    """train_step over a mesh as train.py compiles it, and the shapes of its state, placed."""
    params = fcn.abstract_params(spec)
    create = functools.partial(train_state.create_train_state, optimizer=optimizer)
    abstract = jax.eval_shape(create, params)
    places = sharding.place(abstract, mesh, divided=divided)
    gather = functools.partial(sharding.gather, whole=sharding.replicated(mesh), parts=places.params)
    update = steps.Update(
        model=fcn.FCN(spec),
        optimizer=optimizer,
        loss=losses.Loss((1.0,) * CLASSES, "pixel"),
        gather=gather if divided else None,
    )
    step = functools.partial(steps.train_step, update=update)
    data = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in batch.items()}
    split = sharding.split_batch(mesh, 1)
    jitted = jax.jit(
        step, in_shardings=(places, split), out_shardings=(places, sharding.replicated(mesh)), donate_argnums=0
    )
    return jitted.lower(abstract, data).compile(), create, places


def gradient_on(mesh, geometry, upsampling, *, divided):
    """(loss, {layer: {name: gradient}}, bytes of the state per device) of the padded batch, from train_step."""
    spec, batch = miniature(geometry, upsampling), padded_batch()
    step, create, places = compiled_step(spec, mesh, batch, divided=divided, optimizer=KEEPER)
    state = jax.jit(create, out_shardings=places)(random_params(spec))
    exact = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    state, results = step(state, sharding.to_devices(batch, mesh, 1))
    analysis = step.memory_analysis()
    given = analysis.argument_size_in_bytes - sum(value.nbytes for value in batch.values()) // mesh.size
    assert given == pytest.approx(exact, rel=0.05)
    assert analysis.output_size_in_bytes == pytest.approx(exact, rel=0.05)  # a table of pointers is in it
    return float(results["loss"]), sharding.to_host(state.opt_state, mesh), given


def assert_same_gradient(found, expected, tolerance=1e-5):
    """Up to `tolerance` times the largest value of each array."""
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for path, value in jax.tree_util.tree_leaves_with_path(expected[1]):
        assert value.any(), path
        other = functools.reduce(lambda tree, entry: tree[entry.key], path, found[1])
        limit = tolerance * np.abs(value).max()
        np.testing.assert_allclose(other, value, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def on_one_device():
    mesh = sharding.make_mesh(jax.devices()[:1])
    return functools.cache(functools.partial(gradient_on, mesh, divided=False))


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize(("geometry", "upsampling"), VARIANTS)
def test_divided_gradients_are_those_of_one_device(on_one_device, monkeypatch, devices, geometry, upsampling):
    """Of images of 40 to 200 pixels; with a state that takes the less memory the more devices there are."""
    monkeypatch.setattr(sharding, "_WORTH_DIVIDING", 1)  # whatever the devices divide, however small
    found = gradient_on(sharding.make_mesh(jax.devices()[:devices]), geometry, upsampling, divided=True)
    expected = on_one_device(geometry, upsampling)
    assert_same_gradient(found, expected)
    assert expected[2] / found[2] > 0.9 * devices


def eight_devices(path):
    """What test_divided_gradients_on_eight_devices runs in a process that has eight."""
    sharding._WORTH_DIVIDING = 1
    mesh = sharding.make_mesh()
    for geometry, upsampling in VARIANTS:
        with open(f"{path}/{geometry}", "rb") as file:
            expected = pickle.load(file)
        found = gradient_on(mesh, geometry, upsampling, divided=True)
        assert_same_gradient(found, expected)
        print(mesh.size, geometry, expected[2] / found[2])


def test_divided_gradients_on_eight_devices(on_one_device, tmp_path):
    for variant in VARIANTS:
        (tmp_path / variant[0]).write_bytes(pickle.dumps(on_one_device(*variant)))
    # Devices first: conftest.py asks for four.
    code = f"import jax; jax.devices(); import test_topology; test_topology.eight_devices({str(tmp_path)!r})"
    environment = {**processes.environment(8), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=processes.LIMIT)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["8", geometry] for geometry, _ in VARIANTS]
    assert all(float(factor) > 5 for *_, factor in lines)  # of 2 to 6 channels nothing is divided by eight


def test_moments_lie_where_their_parameters_do():
    """And small arrays are whole on every device."""
    spec = miniature("same", "learned", fc_width=64)
    solver = optim.Solver("adamw", lambda step: 1e-3, momentum=0.9, weight_decay=1e-4, clip_norm=1.0)
    optimizer = optim.make_optimizer(fcn.abstract_params(spec), solver)
    create = functools.partial(train_state.create_train_state, optimizer=optimizer)
    abstract = jax.eval_shape(create, fcn.abstract_params(spec))
    mesh = sharding.make_mesh()
    divided = [
        jax.tree_util.keystr(path, simple=True)
        for path, place in jax.tree_util.tree_leaves_with_path(sharding.place(abstract, mesh, divided=True))
        if not place.is_fully_replicated
    ]
    assert len(divided) == 3
    assert all(path.endswith("fc6kernel") for path in divided), divided
    assert all(place.is_fully_replicated for place in jax.tree.leaves(sharding.place(abstract, mesh, divided=False)))


# --- exact resuming in one process ---------------------------------------------------------------------------------


def small_config(data_dir):
    """4 + 4 steps of two networks on six images, in batches of four: only steps 3 and 6 end an epoch."""
    c = config_lib.default()
    c.network = "fcn32s,fcn16s"
    c.steps = (4, 4)
    c.learning_rate = (1e-3, 1e-3)
    c.model.width, c.model.fc_width = 2, 4
    c.init.random = "conv*,fc*"
    c.data.name, c.data.train_split, c.data.eval_split, c.data.data_dir = "shapes", "tiny[:6]", "tiny[6:]", data_dir
    c.data.batch_size = 4
    c.data.crop_size, c.data.flip, c.data.scale, c.data.colour_jitter = (64, 64), True, (0.8, 1.2), 0.2
    c.optim.ema = 0.9
    c.eval.batch_size, c.eval.every, c.eval.pictures = 4, 0, 0
    c.log.every = 1
    return c


@pytest.fixture(scope="module")
def never_stopped(data_dir, tmp_path_factory, standard_promotion):
    """The workdir of such a run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.train_and_evaluate(small_config(data_dir), workdir)
    return workdir


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_stop_at_any_step_changes_no_bit(never_stopped, data_dir, tmp_path, monkeypatch, stop):
    """By SIGTERM while step `stop` is computed: in an epoch, at the stages' border, and in the second stage."""
    iterate = pipeline.iterate

    def stopping(dataset, start, num_threads):
        for number, batch in enumerate(iterate(dataset, start, num_threads), start + 1):
            if number == stop and batch["image"].ndim == 5:  # not the evaluation's batches
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(pipeline, "iterate", stopping)
    with pytest.raises(Stopped) as stopped:
        train.train_and_evaluate(small_config(data_dir), tmp_path)
    assert stopped.value.code == 143
    assert processes.saved_steps(tmp_path)[-1] == len(processes.losses(tmp_path)) == stop
    monkeypatch.undo()
    train.train_and_evaluate(small_config(data_dir), tmp_path)
    np.testing.assert_array_equal(processes.losses(tmp_path), processes.losses(never_stopped))
    processes.assert_identical(processes.state(tmp_path, 8), processes.state(never_stopped, 8))


@pytest.mark.usefixtures("standard_promotion")
def test_a_stop_while_the_end_of_a_stage_is_evaluated(never_stopped, data_dir, tmp_path, monkeypatch):
    """The next stage is not begun."""
    whole = train._evaluate

    def stopping(*given, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*given, **more)

    monkeypatch.setattr(train, "_evaluate", stopping)
    with pytest.raises(Stopped):
        train.train_and_evaluate(small_config(data_dir), tmp_path)
    assert processes.saved_steps(tmp_path)[-1] == len(processes.losses(tmp_path)) == 4
    monkeypatch.undo()
    train.train_and_evaluate(small_config(data_dir), tmp_path)
    processes.assert_identical(processes.state(tmp_path, 8), processes.state(never_stopped, 8))


# --- what is refused -----------------------------------------------------------------------------------------------


def refusal(job, index=0, limit=120):
    """The one line of a process that ends with 1."""
    assert set(job.wait(limit)) == {1}, job.everything()
    own = [line for line in job.lines(index) if not re.match(r"[WE]\d{4} |\[Gloo\]", line)]  # not JAX's
    assert len(own) == 1, job.everything()
    return own[0]


def test_a_workdir_that_is_not_shared_is_refused_by_all(data_dir, tmp_path):
    assert_not_shared(tmp_path, data_dir)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".processes"]


def test_a_workdir_that_one_process_has_lost_is_refused_by_all(finished, data_dir, tmp_path):
    """The other one sees checkpoints to go on from."""
    processes.copy(finished("1 device")[0], tmp_path / "a", without=[STEPS])
    assert_not_shared(tmp_path, data_dir)


def assert_not_shared(folder, data_dir):
    """Of folder/a and folder/b as the workdirs of two processes."""
    arguments = (*RUN, f"--config.data.data_dir={data_dir}", f"--workdir={folder}/a")
    with Job(*arguments, processes=2, own={1: [f"--workdir={folder}/b"]}) as job:
        for index, name in enumerate("ab"):
            assert refusal(job, index) == (
                f"ValueError: {folder}/{name} is not the same folder on every host (process 1 does not see what"
                " process 0 writes there): give a --workdir on storage that all of them share"
            )


TOGETHER = "--coordinator=HOST:PORT, --processes and --process belong together: give all three or none"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator=127.0.0.1:1",), f"ValueError: {TOGETHER}"),
        (
            ("--coordinator=127.0.0.1:1", "--processes=2", "--process=2"),
            "ValueError: --process=2: with --processes=2 it is 0 to 1",
        ),
        (("--processes=0",), "flag --processes=0: 0 is not a positive integer"),
    ],
)
def test_flags_that_describe_no_job(flags, message):
    process = command("fcn_jax.main", "--config=configs/fcn8s.py:demo", *flags)
    assert process.returncode == 1
    assert process.stderr.startswith(message)
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [(None, 2, 1), (None, 2, None), (None, None, 0), ("a:1", 2, None), ("a:1", None, 0)])
def test_flags_that_belong_together(given):
    with pytest.raises(ValueError, match=TOGETHER):
        distributed.join(*given)


def test_a_batch_that_the_devices_of_all_processes_cannot_share(data_dir, tmp_path):
    arguments = (*RUN, "--config.data.batch_size=6", f"--config.data.data_dir={data_dir}", f"--workdir={tmp_path}/run")
    with Job(*arguments, processes=2, devices=2) as job:
        for index in (0, 1):
            assert refusal(job, index) == (
                "ValueError: config.data.batch_size=6 is not divisible by the 4 devices: use 4 or 8, or fewer devices"
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "described"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
        ({"HOSTNAME": "host", "PATH": "/bin"}, False),
    ],
)
def test_what_describes_a_job(monkeypatch, environment, described):
    monkeypatch.setattr(distributed, "_on_cloud_tpu", lambda: False)
    assert distributed.described_by(environment) is described


def test_a_cloud_tpu_machine_describes_a_job(monkeypatch):
    monkeypatch.setattr(distributed, "_on_cloud_tpu", lambda: True)
    assert distributed.described_by({})

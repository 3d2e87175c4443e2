"""Runs in processes of their own that are stopped, killed, damaged or out of room; and what the same command does next.

The outcomes are listed in docs/RELIABILITY.md.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from commands import command
from jax.experimental import multihost_utils
from layouts import make_label, voc_list, write_voc
from processes import Job, needs_namespaces
from test_train import stopping

from fcn_jax import checkpoint, optim, train_state
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run.checkpoints import Checkpoints
from fcn_jax.run.damage import set_aside
from fcn_jax.run.stop import Stop

RUN = (
    "--config=configs/fcn8s.py:demo",
    "--config.network=fcn32s",
    "--config.model.backbone=alexnet_torchvision",  # few layers: each start traces the network
    "--config.optim.warmup_steps=1",
    "--config.data.train_split=tiny[:6]",
    "--config.data.eval_split=tiny[6:]",
    "--config.data.batch_size=4",
    "--config.data.crop_size=(64,64)",
    "--config.data.scale=(0.8,1.2)",
    "--config.data.flip=True",
    "--config.model.width=2",
    "--config.model.fc_width=16",
    "--config.model.dropout=0.5",
    "--config.eval.batch_size=4",
    "--config.eval.pictures=1",
    "--config.eval.every=8",  # every second checkpoint has scores
    "--config.log.every=1",
    "--config.log.checkpoint_every=4",
)
STEPS = 40
SHORT = 16  # of the runs in this process


def arguments(workdir, data_dir, *more, steps=STEPS):
    return (*RUN, f"--config.steps={steps},", f"--config.data.data_dir={data_dir}", f"--workdir={workdir}", *more)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """The workdir of a run of so many steps and processes that nothing happened to."""

    @functools.cache
    def run(steps=STEPS, count=1):
        workdir = tmp_path_factory.mktemp("whole") / "run"
        processes.finish(*arguments(workdir, data_dir, steps=steps), processes=count)
        return workdir

    return run


def assert_same(workdir, expected):
    """Every loss, once and in order, and at the end every parameter and moment, to the last bit."""
    assert processes.losses(workdir).tobytes() == processes.losses(expected).tobytes()
    processes.assert_identical(processes.state(workdir), processes.state(expected))


def goes_on(workdir, data_dir, *more, steps=STEPS):
    """What the command says that runs or goes on in this process, on its four devices, to a good end."""
    process = command("fcn_jax.main", *arguments(workdir, data_dir, *more, steps=steps))
    assert process.returncode == 0, process.stderr
    return process.stderr


@pytest.fixture(scope="module")
def whole_here(data_dir, tmp_path_factory):
    """The workdir of a run in this process that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    goes_on(workdir, data_dir, steps=SHORT)
    return workdir


@pytest.fixture(scope="module")
def halfway(data_dir, tmp_path_factory):
    """The same run as it is when it ends during step 11, and the steps of its two checkpoints."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 10)
        assert command("fcn_jax.main", *arguments(workdir, data_dir, steps=SHORT)).returncode == 130
    older, newest = processes.saved_steps(workdir)
    assert (older, newest) == (4, 8)
    return workdir, older, newest


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
def test_sigterm_before_the_first_step_loses_nothing(data_dir, tmp_path, joined):
    """While the step is compiled there is nothing to save; at most the first step was quicker than the signal.

    Once a job is joined, even of one process, the signal is JAX's, and the first step is awaited.
    """
    job_of_one = ("--coordinator=127.0.0.1:" + str(processes.free_port()), "--processes=1", "--process=0")
    with Job(*arguments(tmp_path / "run", data_dir), *(job_of_one if joined else ())) as job:
        job.until(lambda: (tmp_path / "run" / "config.json").exists())
        job.signal(signal.SIGTERM)
        assert job.wait() == [143]
    assert processes.saved_steps(tmp_path / "run") in ([[1]] if joined else [[], [1]])


def test_a_second_signal_is_as_usual():
    usual = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.asked()
        assert signal.getsignal(signal.SIGTERM) != usual
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert signal.getsignal(signal.SIGTERM) == usual


def test_orbax_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    """It would ask with the step of the save that ends, on one process and later than the loop has asked."""
    questions = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: questions.append(step) or False)
    spec = ModelSpec("fcn32s", "vgg16", "same", False, "fixed", 1, 2, ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                train_state.TrainState(jnp.int32(step), {"w": jnp.zeros(3)}, {"m": jnp.zeros(3)}, jnp.int32(-1)), spec
            )
    assert processes.saved_steps(tmp_path) == [1, 2]
    assert questions == []


# --- killed -----------------------------------------------------------------------------------------------------------


def is_saving(workdir):
    """Whether a checkpoint is begun and not whole."""
    return any(not path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def assert_none_damaged_but_one_being_deleted(stderr, kept):
    """A kill that comes while Orbax deletes a checkpoint that is no longer wanted leaves half of it."""
    found = [int(step) for step in re.findall(r"^the checkpoint of step (\d+) is damaged", stderr, re.MULTILINE)]
    assert len(found) == stderr.count("damaged (") <= 1, stderr
    assert all(step < kept for step in found), stderr


def stopped_after_six_steps(workdir, data_dir, steps):
    """A run that SIGTERM has ended, and that has saved all that was done."""
    with Job(*arguments(workdir, data_dir, steps=steps)) as job:
        job.until(f"step 6/{steps}")
        job.signal(signal.SIGTERM)
        assert job.wait() == [143]
        assert "stopping when this step is done and saved; again stops at once" in job.stderr()
        assert "Traceback" not in job.stderr()
    assert processes.saved_steps(workdir)[-1] == len(processes.losses(workdir)) < steps


@pytest.mark.slow
def test_stopped_and_killed_at_random_moments(whole, data_dir, tmp_path, request):
    """SIGTERM, then SIGKILL, every second in a save; each start has to go on from the newest whole checkpoint."""
    rounds = request.config.getoption("--kills")
    workdir, steps, rng = tmp_path / "run", 24 * rounds, random.Random(rounds)
    stopped_after_six_steps(workdir, data_dir, steps)
    inside = 0
    for number in range(1, rounds + 1):
        with Job(*arguments(workdir, data_dir, steps=steps)) as job:
            kept = processes.saved_steps(workdir)[-1]
            job.until(f"step {kept + 10}/{steps}")
            time.sleep(rng.uniform(0, 0.2))
            if number % 2:
                job.until(lambda: is_saving(workdir))
            job.kill()
            assert job.wait() == [137]
            inside += is_saving(workdir)
            assert f"resuming {workdir} at step {kept} of {steps}" in job.stderr(), job.stderr()
            assert_none_damaged_but_one_being_deleted(job.stderr(), kept)
    assert inside >= rounds // 3, "kills inside of a save are what this is about"
    kept = processes.saved_steps(workdir)[-1]
    stderr = processes.finish(*arguments(workdir, data_dir, steps=steps))
    assert f"resuming {workdir} at step {kept} of {steps}" in stderr
    assert_none_damaged_but_one_being_deleted(stderr, kept)
    assert not is_saving(workdir)
    assert_same(workdir, whole(steps))
    print(f"{rounds} kills, {inside} inside of a save")


@pytest.mark.slow
def test_one_of_two_processes_is_stopped_or_killed(whole, data_dir, tmp_path):
    """SIGTERM to one stops both; a kill of either ends the other, which names it; at last the run is the same."""
    workdir, steps = tmp_path / "run", 44
    given = arguments(workdir, data_dir, steps=steps)
    with Job(*given, processes=2) as job:
        job.until(f"step 6/{steps}")
        job.signal(signal.SIGTERM, 1)
        assert job.wait(120) == [143, 143]
        assert not [line for index in (0, 1) for line in job.lines(index) if "Traceback" in line]
    kept = processes.saved_steps(workdir)[-1]
    assert kept == len(processes.losses(workdir))
    with Job(*given, processes=2) as job:
        job.until(f"resuming {workdir} at step {kept} ")
        job.signal(signal.SIGTERM, 1)
        assert job.wait(120) == [143, 143], "a resumed run is stopped before its first step too"
    before, kept = kept, processes.saved_steps(workdir)[-1]
    assert before < kept == len(processes.losses(workdir)) < before + 8
    for killed in (1, 0):
        at = kept + 9
        with Job(*given, processes=2) as job:
            job.until(f"step {at}/{steps}")
            assert f"resuming {workdir} at step {kept} of {steps}" in job.stderr()
            pid = job.processes[killed].pid
            job.kill(killed)
            began = time.monotonic()
            codes = job.wait(120)
            took = time.monotonic() - began
            assert (codes[killed], codes[1 - killed]) == (137, 1)
            assert re.search(rf"process {killed} \(process {pid} on .*\) of the run is gone: ", job.stderr(1 - killed))
            print(f"process {killed} killed: the other ended after {took:.1f} s")
        kept = processes.saved_steps(workdir)[-1]
        assert kept >= at - 8, "nothing but the steps since the last save, or the one under way, is lost"
    processes.finish(*given, processes=2)
    assert_same(workdir, whole(steps, 2))


def test_an_evaluation_has_nothing_to_save(halfway, data_dir):
    """It ends at once, though in a job the signal is JAX's."""
    with Job(*arguments(halfway[0], data_dir, steps=SHORT), "--mode=eval", processes=2) as job:
        job.until(lambda: "Gloo" in job.stdout(1))
        job.signal(signal.SIGTERM, 1)
        assert job.processes[1].wait(10) == -signal.SIGTERM


# --- damaged ----------------------------------------------------------------------------------------------------------


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


DAMAGES = {
    "truncated parameters": lambda step: halve(largest(step / "params")),
    "truncated moments": lambda step: halve(largest(step / "train")),
    "no moments": lambda step: shutil.rmtree(step / "train"),
    "no model.json": lambda step: (step / "model" / "model.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint(halfway, whole_here, data_dir, tmp_path, damage):
    source, older, newest = halfway
    workdir = processes.copy(source, tmp_path / "50% #1?")
    damage(workdir / "checkpoints" / str(newest))
    stderr = goes_on(workdir, data_dir, steps=SHORT)
    found = re.search(
        rf"^the checkpoint of step {newest} is damaged \((.+)\): moved to (.+)\ngoing on from (.+)$",
        stderr,
        re.MULTILINE,
    )
    assert found, stderr
    assert found[2] == f"{workdir}/damaged/{newest}"
    assert os.path.isdir(found[2])
    assert found[3] == f"step {older}"
    assert f"resuming {workdir} at step {older} of {SHORT}" in stderr
    assert stderr.count("damaged (") == 1
    assert "Traceback" not in stderr
    assert_same(workdir, whole_here)


def test_scores_of_an_older_checkpoint_are_damaged(halfway, data_dir, tmp_path):
    """They are read to find the best one, wherever the run goes on."""
    source, older, newest = halfway
    workdir = processes.copy(source, tmp_path / "run")
    (workdir / "checkpoints" / str(older) / "metrics").mkdir(exist_ok=True)
    (workdir / "checkpoints" / str(older) / "metrics" / "metrics").write_text('{"mean_iou": 0.')
    stderr = goes_on(workdir, data_dir, steps=SHORT)
    assert f"the checkpoint of step {older} is damaged (" in stderr
    assert f"going on from step {newest}\nresuming {workdir} at step {newest} of {SHORT}" in stderr


def test_a_deleted_newest_checkpoint(halfway, whole_here, data_dir, tmp_path):
    source, older, newest = halfway
    workdir = processes.copy(source, tmp_path / "run", without=[newest])
    assert f"resuming {workdir} at step {older} of {SHORT}" in goes_on(workdir, data_dir, steps=SHORT)
    assert_same(workdir, whole_here)


def test_what_a_kill_inside_of_a_save_has_left_is_deleted(halfway, whole_here, data_dir, tmp_path):
    """Also of a step that is not saved again, such as one that a stop asked for."""
    workdir = processes.copy(halfway[0], tmp_path / "run")
    left = workdir / "checkpoints" / f"{halfway[2] + 1}.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / str(halfway[2]), left)
    goes_on(workdir, data_dir, steps=SHORT)
    assert not left.exists()
    assert_same(workdir, whole_here)


def test_half_a_line_of_the_curves(halfway, whole_here, data_dir, tmp_path):
    """As a full disk leaves it."""
    source, _, newest = halfway
    workdir = processes.copy(source, tmp_path / "run")
    with open(workdir / "curves.jsonl", "a") as file:
        file.write('{"step": 9, "time": 17')
    assert f"resuming {workdir} at step {newest} of {SHORT}" in goes_on(workdir, data_dir, steps=SHORT)
    assert_same(workdir, whole_here)


def test_the_newest_damaged_twice(halfway, tmp_path):
    """What was set aside first is not overwritten."""
    source, _, newest = halfway
    for k in range(2):
        workdir = processes.copy(source, tmp_path / f"run{k}")
        (workdir / "checkpoints" / str(newest) / "model" / "model.json").unlink()
        if k:
            shutil.copytree(tmp_path / "run0" / "damaged", workdir / "damaged")
        set_aside(workdir)
    assert sorted(path.name for path in (tmp_path / "run1" / "damaged").iterdir()) == [f"{newest}", f"{newest}-2"]


def test_all_checkpoints_damaged(halfway, data_dir, tmp_path):
    """Nothing is trained anew unasked; every process says why."""
    source, older, newest = halfway
    workdir = processes.copy(source, tmp_path / "run")
    for step in (older, newest):
        empty(largest(workdir / "checkpoints" / str(step) / "params"))
    with Job(*arguments(workdir, data_dir, steps=SHORT), processes=2) as job:
        assert job.wait() == [1, 1]
        assert re.search(
            rf"none of the 2 checkpoints in .* can be read \(step {newest}: params/.*\): put", job.stderr()
        )
        assert f"ValueError: none of the checkpoints in {workdir} can be read" in job.stderr(1)
    assert processes.saved_steps(workdir) == [older, newest]


def restored(workdir, step):
    """The arrays of a state, read as a run reads them."""
    with Checkpoints(workdir) as checkpoints:
        params = fcn.abstract_params(checkpoints.spec(step))
        solver = optim.Solver("adamw", lambda step: 1e-3, momentum=0.9, weight_decay=1e-4, clip_norm=1.0)
        optimizer = optim.make_optimizer(params, solver)
        abstract = jax.eval_shape(functools.partial(train_state.create_train_state, optimizer=optimizer), params)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.leaves(checkpoints.restore(step, checkpoint.with_sharding(abstract, place)))


@pytest.mark.parametrize("damage", [os.unlink, empty, halve])
def test_no_damage_to_any_file_goes_unseen(halfway, tmp_path, damage):
    """Either it is found before the run reads the checkpoint, or what it reads is the same as ever."""
    source, older, newest = halfway
    expected = [np.asarray(x) for x in restored(source, newest)]
    seen = unseen = 0
    for path in sorted((source / "checkpoints" / str(newest)).rglob("*")):
        if path.is_dir() or (damage is halve and path.stat().st_size < 2):
            continue
        workdir = processes.copy(source, tmp_path / "run", without=[older])
        damage(workdir / path.relative_to(source))
        if not set_aside(workdir):
            unseen += 1
            for found, value in zip(restored(workdir, newest), expected, strict=True):
                np.testing.assert_array_equal(found, value, err_msg=str(path))
        else:
            seen += 1
        shutil.rmtree(workdir)
    assert seen >= 5
    print(f"{seen} seen, {unseen} harmless")


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_namespaces
def test_a_disk_that_fills_up_in_the_middle(whole, data_dir, tmp_path):
    """Stops with one line; what was saved is intact; with room again the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    filled = """
        "$@" & run=$!
        until [ -e "$0/run/checkpoints/4" ]; do sleep 0.02; done
        cat /dev/zero > "$0/filler" 2> /dev/null || true
        code=0; wait $run || code=$?
        echo "code $code"; ls "$0/run/checkpoints"; echo again >&2
        rm "$0/filler"
        "$@"
        cp -r "$0/run" "$0.kept"
        """
    wrap = ("unshare", "-rm", "bash", "-ec", f'mount -t tmpfs -o size=40m none "$0"; {filled}', disk)
    with Job(*arguments(disk / "run", data_dir), wrap=wrap) as job:
        assert job.wait() == [0], job.everything()
        code, *kept = job.stdout().split("\n")
        before, after = job.stderr().split("\nagain\n")
    assert code == "code 1"
    steps = [int(name) for name in kept if name.isdecimal()]
    assert steps, "those saved before are there"
    assert re.match("disk full: .*: free some space and give the same command again$", before.splitlines()[-1])
    assert "Traceback" not in before + after
    assert "damaged" not in after
    assert f"resuming {disk}/run at step {max(steps)} of {STEPS}" in after
    assert_same(tmp_path / "disk.kept", whole())


@needs_namespaces
def test_a_run_whose_disk_has_become_read_only(halfway, data_dir, tmp_path):
    source, _, newest = halfway
    workdir = processes.copy(source, tmp_path / "disk" / "run")
    before = processes.state(workdir, newest)
    again = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"'
    wrap = ("unshare", "-rm", "bash", "-ec", again, tmp_path / "disk")
    with Job(*arguments(workdir, data_dir, steps=SHORT), wrap=wrap) as job:
        assert job.wait() == [1]
        assert len(job.lines()) == 1
        assert re.match(r".*Read-only file system.*: name a folder that can be written$", job.lines()[0])
    processes.assert_identical(processes.state(workdir, newest), before)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runs_on_one_workdir(whole, data_dir, tmp_path):
    """The second is refused and names the first, which does not notice."""
    given = arguments(tmp_path / "run", data_dir)
    with Job(*given) as first:
        first.until(f"step 1/{STEPS}")
        first.signal(signal.SIGSTOP)  # however long the second takes to start
        with Job(*given) as second:
            assert second.wait() == [1]
            (line,) = second.lines()
            assert re.fullmatch(
                rf"ValueError: another run works in {tmp_path}/run \(process {first.processes[0].pid} on .+\):"
                " wait for its end, or use another --workdir",
                line,
            )
        first.signal(signal.SIGCONT)
        assert first.wait() == [0]
    assert_same(tmp_path / "run", whole())


def test_a_loss_that_is_not_finite(data_dir, tmp_path):
    """Ends with one line that names step and images; nothing that is not finite is saved."""
    given = arguments(tmp_path, data_dir, "--config.learning_rate=1e30,", "--config.log.every=2", steps=12)
    process = command("fcn_jax.main", *given)
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    found = re.match(
        r"FloatingPointError: the loss or its gradient is not finite at step (\d+), images (.+); the last checkpoint is"
        r" of step (\d+): lower learning_rate",
        line,
    )
    assert found, line
    assert int(found[1]) <= 4
    assert len(found[2].split(", ")) == 4
    assert processes.saved_steps(tmp_path) == ([int(found[3])] if int(found[3]) else [])


def test_corrupt_images_in_the_middle_of_the_data(tmp_path):
    """Named; with `raise` nothing is begun, with `skip` the run goes on without them and its results count them."""
    root = tmp_path / "raw"
    write_voc(root, {name: make_label(k) for k, name in enumerate("abcdefgh")})
    voc_list(root, "train", "abcde")
    voc_list(root, "val", "fgh")
    folder = root / "VOCdevkit" / "VOC2012"
    halve(folder / "JPEGImages" / "c.jpg")
    halve(folder / "SegmentationClass" / "g.png")
    given = (
        "--config=configs/voc_laptop.py",
        *(a for a in RUN if "split" not in a and "fcn8s.py" not in a and "network" not in a),
        "--config.network=fcn32s",
        "--config.steps=8,",
        "--config.init.weights=",
        "--config.init.random=conv*,fc*",
        "--config.optim.frozen=",
        f"--config.data.raw_dir={root}",
        f"--config.data.data_dir={tmp_path}/data",
    )
    process = command("fcn_jax.main", *given, f"--workdir={tmp_path}/raise")
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    assert re.match(r"CorruptError: image 'c' cannot be decoded \(.+\): replace or remove the file", line)
    assert not (tmp_path / "raise").exists()
    process = command("fcn_jax.main", *given, f"--workdir={tmp_path}/skip", "--config.data.corrupt=skip")
    assert process.returncode == 0
    stderr = process.stderr
    assert "1 of 5 images of voc_segmentation/train are corrupt and left out: c" in stderr
    for name in ("image 'c'", "label '.*g.png'"):
        assert re.search(f"{name} cannot be decoded", stderr), stderr
    assert len(processes.losses(tmp_path / "skip")) == 8
    results = json.loads((tmp_path / "skip" / "eval_val.json").read_text())
    assert (results["num_examples"], results["num_corrupt"]) == (2, 1)

"""The commands as their users run them: exit codes, one line for each mistake.

One process of each kind; what differs by arguments alone is run in this process.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import processes
import pytest
from commands import command
from layouts import make_label, voc_list, write_image, write_voc
from PIL import Image
from processes import mounted, needs_namespaces

ROOT = pathlib.Path(__file__).parents[1]
DEMO = "--config=configs/fcn8s.py:demo"
# The demo at the size of a test: six images, two steps.
TINY = (
    "--config.model.width=2",
    "--config.model.fc_width=4",
    "--config.steps=2",
    "--config.optim.warmup_steps=1",
    "--config.data.train_split=tiny[:6]",
    "--config.data.eval_split=tiny[6:]",
    "--config.data.batch_size=4",
    "--config.eval.batch_size=4",
    "--config.eval.pictures=1",
    "--config.log.every=1",
)
ENVIRONMENT = processes.environment()


def train(*arguments, **options):
    return processes.run("fcn_jax.main", *arguments, **options)


def error_of(process):
    """The last line of a command that refuses."""
    assert process.returncode == 1, process.stderr
    lines = process.stderr.strip().splitlines()
    assert "Traceback" not in process.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
    """A finished run of the tiny demo."""
    path = tmp_path_factory.mktemp("runs") / "demo"
    process = train(DEMO, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={path}")
    assert process.returncode == 0, process.stderr
    assert re.search(r"step 2/2  loss \d\.\d{4}  [\d.]+ steps/s  [\d.]+ images/s  ETA 0:00:00", process.stderr)
    assert "done: step 2; best at step 2" in process.stderr
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"--config is missing: give a file of configs/"),
        ((DEMO, "extra"), r"unknown argument 'extra': every option is --name=value"),
        (("--confg=x",), r"Unknown command line flag 'confg'. Did you mean: config"),
        (("--config=configs/none.py",), r"No such file or directory: 'configs/none.py'"),
        (("--config=configs/fcn8s.py:tiny",), r"has no variant 'tiny': choose paper or demo"),
        ((DEMO, "--config.model.widht=3"), r"unknown config key 'widht'. Did you mean \"width\""),
        ((DEMO, "--config.modle.width=3"), r"unknown config key 'modle'. Did you mean \"model\""),
        ((DEMO, "--config.model.width=wide"), r"config.model.width=wide: invalid literal for int"),
        ((DEMO, "--config.model.geometry=valid"), r"config.model.geometry='valid': choose from caffe, same"),
        ((DEMO, "--split=val"), r"--split and --which are for --mode=eval, which is not given"),
        ((DEMO, "--which=best"), r"--split and --which are for --mode=eval, which is not given"),
        ((DEMO, "--mode=evaluate"), r"flag --mode=evaluate: value should be one of <train\|eval>"),
        ((DEMO, "--mode=eval", "--workdir=/nowhere"), r"no checkpoint in '/nowhere': give the workdir of a run"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    process = command("fcn_jax.main", *arguments)
    assert re.search(message, error_of(process)), process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("argument", ["--confg=x", "--workdir=x"])
def test_a_mistake_in_a_process_is_the_same_line(argument):
    """One that the flags show, and one that the command does."""
    process, same = train(argument), command("fcn_jax.main", argument)
    assert (process.returncode, process.stderr, process.stdout) == (1, same.stderr, same.stdout)


def test_evaluation_prints_a_table_and_writes_its_results(workdir, data_dir):
    process = train(
        DEMO,
        *TINY,
        f"--config.data.data_dir={data_dir}",
        f"--workdir={workdir}",
        "--mode=eval",
        "--split=tiny",
        "--which=latest",
    )
    assert process.returncode == 0, process.stderr
    results = json.loads((workdir / "eval_tiny.json").read_text())
    assert results["num_examples"] == 8
    assert f"{workdir} at step 2, 8 images of tiny" in process.stdout
    assert f"pixel accuracy {100 * results['pixel_accuracy']:.1f}" in process.stdout
    background = re.search(r"^  background +([\d.]+)$", process.stdout, re.MULTILINE)
    assert float(background[1]) == pytest.approx(100 * results["per_class_iou"]["background"], abs=0.051)


def test_evaluation_at_several_scales_stands_beside_the_plain_one(workdir, data_dir):
    given = (
        DEMO,
        *TINY,
        f"--config.data.data_dir={data_dir}",
        f"--workdir={workdir}",
        "--mode=eval",
        "--split=tiny[:2]",
    )
    for more in ((), ("--config.eval.scales=0.75,1", "--config.eval.flip=True", "--config.eval.refine=True")):
        process = command("fcn_jax.main", *given, *more)
        assert process.returncode == 0, process.stderr
    assert "2 images of tiny[:2]\nscales 0.75, 1 and mirrored\nmasks are aligned with contours\n" in process.stdout
    names = ("", "_x0.75_x1_flip_refined")
    plain, several = (json.loads((workdir / f"eval_tiny_-2{end}.json").read_text()) for end in names)
    assert (plain["scales"], plain["flip"], several["scales"], several["flip"]) == ([1.0], False, [0.75, 1], True)
    assert ("refine" in plain, several["refine"]) == (False, True)
    assert plain["loss"] != several["loss"]
    assert plain["num_examples"] == several["num_examples"] == 2
    twice = error_of(command("fcn_jax.main", *given, "--config.eval.scales=0.75", "--config.eval.scales=1"))
    assert twice == "--config.eval.scales is given 2 times, which would make it 0.75,1: give it once"
    assert "give factors above 0" in error_of(command("fcn_jax.main", *given, "--config.eval.scales=0,"))


def test_a_finished_run_says_so(workdir, data_dir):
    process = command("fcn_jax.main", DEMO, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={workdir}")
    assert process.returncode == 0
    assert "is finished: step 2 of 2" in process.stderr


def test_a_workdir_of_another_config(workdir, data_dir):
    given = (DEMO, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={workdir}")
    line = error_of(command("fcn_jax.main", *given, "--config.seed=5"))
    assert re.search(r"use another --workdir, or delete .*, which holds a run with another config: seed: 0 -> 5$", line)


@pytest.mark.slow
def test_ctrl_c_saves_what_is_done(data_dir, tmp_path):
    arguments = (
        DEMO,
        *(argument for argument in TINY if "steps" not in argument),
        "--config.steps=2000",
        "--config.eval.every=0",
        "--config.log.checkpoint_every=20",
        f"--config.data.data_dir={data_dir}",
        f"--workdir={tmp_path}",
    )
    program = (sys.executable, "-m", "fcn_jax.main", *arguments)
    process = subprocess.Popen(program, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + processes.LIMIT
    while not any(p.name.isdigit() for p in (tmp_path / "checkpoints").glob("*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=processes.LIMIT)[1]
    assert process.returncode == 130
    assert "stopping when this step is done and saved" in stderr
    kept = max(int(p.name) for p in (tmp_path / "checkpoints").glob("*") if p.name.isdigit())
    steps = [json.loads(line)["step"] for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert kept == max(steps), "nothing done is lost"
    assert f"interrupted: the same command goes on from step {kept}" in stderr
    assert "Traceback" not in stderr


def voc_run(raw_dir, data_dir, workdir, *more):
    return command(
        "fcn_jax.main",
        "--config=configs/voc_laptop.py",
        *(argument for argument in TINY if "split" not in argument),
        "--config.init.weights=",
        "--config.init.random=conv*,fc*",
        f"--config.data.raw_dir={raw_dir}",
        f"--config.data.data_dir={data_dir}",
        f"--workdir={workdir}",
        *more,
    )


@pytest.fixture
def voc(tmp_path):
    """A folder in VOC's layout: train a b, val c."""
    root = tmp_path / "raw"
    write_voc(root, {name: make_label(k) for k, name in enumerate("abc")})
    voc_list(root, "train", ["a", "b"])
    voc_list(root, "val", ["c"])
    return root


def corrupt(path):
    path.write_bytes(path.read_bytes()[:60])


def another_size(path):
    write_image(path, (5, 7))


def another_class(path):
    label = make_label(0)
    label[2, 3] = 21
    Image.fromarray(label).save(path)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("JPEGImages/a.jpg", corrupt, r"image 'a' cannot be decoded \(.*\): replace or remove the file"),
        ("SegmentationClass/b.png", corrupt, r"label '.*b.png' cannot be decoded \(.*\): replace or remove the file"),
        ("JPEGImages/b.jpg", another_size, r"'b': image is 5x7 but label is 6x8 \(height x width\)"),
        ("SegmentationClass/a.png", another_class, r"'a': label 21 at 1 pixels, but there are 21 classes \(0..20\)"),
        ("JPEGImages/c.jpg", pathlib.Path.unlink, r"1 of 2 files .* are missing, first '.*c.jpg'"),
        ("ImageSets/Segmentation/val.txt", pathlib.Path.unlink, r"split list '.*val.txt' is missing"),
        ("ImageSets/Segmentation/train.txt", lambda path: path.write_text("\n"), r"split 'train' .* is empty"),
    ],
)
def test_bad_data_is_named(voc, tmp_path, file, spoil, message):
    spoil(voc / "VOCdevkit" / "VOC2012" / file)
    line = error_of(voc_run(voc, tmp_path / "data", tmp_path / "run"))
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there(voc, tmp_path):
    line = error_of(voc_run(voc, tmp_path / "data", tmp_path / "run", "--config.init.weights=/nowhere/vgg16.h5"))
    assert re.search("/nowhere/vgg16.h5", line), line


@needs_namespaces
def test_full_disk(data_dir, tmp_path):
    """A disk with 300 kB: the first checkpoint does not fit."""
    process = train(
        DEMO,
        *TINY,
        "--config.model.fc_width=64",
        f"--config.data.data_dir={data_dir}",
        f"--workdir={tmp_path}/run",
        wrap=mounted(tmp_path, "-o size=300k", 'mkdir "$0/run";'),
    )
    line = error_of(process)
    assert re.match("disk full: .*: free some space and give the same command again", line), line


@needs_namespaces
def test_read_only_disk(data_dir, tmp_path):
    process = train(
        DEMO,
        *TINY,
        f"--config.data.data_dir={data_dir}",
        f"--workdir={tmp_path}/run",
        wrap=mounted(tmp_path, "-o size=300k", 'mount -o remount,ro "$0";'),
    )
    line = error_of(process)
    assert re.match(r".*Read-only file system.*/run.*: name a folder that can be written", line), line


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three pictures, RGB, grey and turned by EXIF, and a text."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / "colour.png")
    Image.fromarray(rng.integers(0, 256, (31, 33)).astype(np.uint8)).save(folder / "grey.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(rng.integers(0, 256, (24, 48, 3)).astype(np.uint8)).save(folder / "turned.JPG", exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_predict_writes_masks_and_overlays(workdir, photographs, tmp_path):
    process = processes.run(
        "fcn_jax.predict", f"--checkpoint={workdir}", f"--input={photographs}", f"--output={tmp_path}", "--max_side=32"
    )
    assert process.returncode == 0, process.stderr
    sizes = {"colour": (50, 40), "grey": (33, 31), "turned": (24, 48)}
    names = [f"{name}{end}" for name in sizes for end in (".png", "_overlay.jpg")]
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == sorted(names)
    for name, size in sizes.items():
        mask = Image.open(tmp_path / f"{name}.png")
        assert (mask.mode, mask.size) == ("P", size)
        assert np.asarray(mask).max() < 6
        with Image.open(tmp_path / f"{name}_overlay.jpg") as overlay:
            assert overlay.size == size


def test_predict_on_one_file_equals_load(workdir, photographs, tmp_path):
    import fcn_jax

    arguments = (f"--checkpoint={workdir}", f"--input={photographs / 'colour.png'}", f"--output={tmp_path}")
    image = np.asarray(Image.open(photographs / "colour.png"))
    for more, options in (((), {}), (("--scales=0.5,2", "--flip"), {"scales": (0.5, 2), "flip": True})):
        assert command("fcn_jax.predict", *arguments, *more).returncode == 0
        expected = fcn_jax.load(workdir, **options)(image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "colour.png")), expected)


def test_predict_goes_on_after_a_broken_image(workdir, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "b.png").write_bytes((photographs / "colour.png").read_bytes())
    (folder / "c.png").symlink_to(folder / "gone.png")
    (folder / "d.png").mkdir()
    Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(folder / "e.tif")
    process = command("fcn_jax.predict", f"--checkpoint={workdir}", f"--input={folder}", f"--output={tmp_path / 'out'}")
    assert "3 of 4 images failed; the others are done" in error_of(process)
    assert "a.jpg' cannot be decoded (not an image file)" in process.stderr
    assert "e.tif' has values of more than 8 bits (16): convert it to 8 bits" in process.stderr
    assert (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input=x",), "--checkpoint is missing"),
        (("--checkpoint=/nowhere", "--input=README.md", "--output=x"), "no checkpoint in '/nowhere'"),
        (("--checkpoint=x", "--input=/nowhere", "--output=x"), "--input='/nowhere' is neither a file nor a folder"),
        (("--checkpoint=x", "--input=configs", "--output=x"), "no image in 'configs'"),
        (("--chekpoint=x",), "Unknown command line flag 'chekpoint'"),
    ],
)
def test_predict_mistakes(arguments, message):
    assert message in error_of(command("fcn_jax.predict", *arguments))


def test_out_of_memory_on_the_way_is_one_line():
    import jax

    from fcn_jax import cli

    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 GB")
    assert cli.explain(error) == (
        "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 5 GB:"
        " lower data.batch_size, eval.batch_size or --max_side"
    )
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.explain(jax.errors.JaxRuntimeError("INTERNAL: a defect"))


def test_a_full_disk_in_a_thread_is_one_line(monkeypatch, capfd):
    """As TensorBoard's writer finds it, whenever it writes; a defect there keeps its traceback."""
    import errno
    import threading

    from fcn_jax import cli

    monkeypatch.setattr(cli, "set_up", lambda: None)

    def ends_by(error):
        def work():
            raise error

        def main(argv):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

        cli.guarded(main)([])
        return capfd.readouterr().err

    usual = threading.excepthook
    full = ends_by(OSError(errno.ENOSPC, "No space left on device"))
    assert full.startswith("disk full: [Errno 28] No space left on device: free some space")
    assert full.count("\n") == 1
    assert "Traceback" in ends_by(KeyError("a defect"))
    assert threading.excepthook is usual

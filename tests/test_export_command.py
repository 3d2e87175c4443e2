"""python -m fcn_jax.export as its users run it: what it writes, what it says, and that a failure leaves nothing."""

import pathlib
import re
import sys

import numpy as np
import processes
import pytest
from commands import command
from processes import mounted, needs_namespaces
from test_export import Case, random_params

from fcn_jax import checkpoint, export, weights
from fcn_jax.run.checkpoints import Checkpoints
from fcn_jax.train_state import TrainState

CASE = Case("fcn16s", "same", "fixed")
BESIDE = ("stablehlo", "torchfcn")


def run(*arguments):
    return command("fcn_jax.export", *arguments)


def error_of(process):
    """The only line of a command that refuses."""
    assert process.returncode == 1, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A parameters-only checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "converted"
    checkpoint.save_params(path, random_params(CASE.spec()), CASE.spec())
    return path


ONNX = pytest.param("onnx", marks=pytest.mark.needs("onnx"))


@pytest.mark.parametrize("format", ["stablehlo", ONNX, "safetensors"])
def test_it_writes_a_file_and_says_how_to_use_it(format, converted, tmp_path):
    output = tmp_path / "new" / f"fcn16s.{format}"
    given = (f"--checkpoint={converted}", f"--format={format}", f"--output={output}")
    process = processes.run("fcn_jax.export", *given) if format == "stablehlo" else run(*given)
    assert process.returncode == 0, process.stderr
    first, second = process.stderr.splitlines()
    assert first == f"{output}: {format}, {output.stat().st_size / 1e6:.1f} MB"
    assert second.startswith(("import ", "from "))
    assert repr(str(output)) in second
    compile(second, "usage", "exec")
    names = [output.name, f"{output.name}.json"] if format in BESIDE else [output.name]
    assert sorted(path.name for path in output.parent.iterdir()) == names
    (output.parent / "other").touch()
    assert {path.stat().st_mode for path in output.parent.iterdir()} == {(output.parent / "other").stat().st_mode}


@pytest.mark.parametrize(("which", "step"), [("best", 1), ("latest", 2)])
def test_it_takes_the_checkpoint_of_a_run_that_which_names(which, step, tmp_path):
    spec = CASE.spec()
    with Checkpoints(tmp_path / "run") as checkpoints:
        for number, score in ((1, 0.9), (2, 0.1)):
            state = TrainState(np.int32(number), random_params(spec, seed=number), {"m": np.zeros(1)}, np.int32(-1))
            checkpoints.save(state, spec, {checkpoint.METRIC: score})
    process = run(
        f"--checkpoint={tmp_path / 'run'}", "--format=safetensors", f"--output={tmp_path / 'x'}", f"--which={which}"
    )
    assert process.returncode == 0, process.stderr
    found = weights.read(str(tmp_path / "x"), tmp_path / "cache").arrays["fc7/bias"]
    np.testing.assert_array_equal(found, random_params(spec, seed=step)["fc7"]["bias"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint=x",), "--format is missing: --checkpoint, --format and --output are needed"),
        (("--format=caffe",), "flag --format=caffe: value should be one of <stablehlo|onnx|safetensors|torchfcn|save"),
        (
            ("--checkpoint=/nowhere", "--format=onnx", "--output=x.onnx"),
            "no checkpoint in '/nowhere': give the workdir",
        ),
        (("--chekpoint=x",), "Unknown command line flag 'chekpoint'. Did you mean: checkpoint"),
        (("fcn8s",), "unknown argument 'fcn8s': every option is --name=value"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    assert message in error_of(run(*arguments))


def test_an_unknown_format_of_the_function():
    with pytest.raises(ValueError, match="--format=caffe is unknown: choose from stablehlo, onnx, safetensors"):
        export.export_checkpoint("/nowhere", "caffe", "x")


@pytest.mark.parametrize("existing", ["x", "x.json"])
def test_what_exists_is_not_overwritten(existing, converted, tmp_path):
    (tmp_path / existing).write_text("mine")
    line = error_of(run(f"--checkpoint={converted}", "--format=stablehlo", f"--output={tmp_path / 'x'}"))
    assert f"'{tmp_path / existing}' exists: remove it, or name another" in line
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_pytorch_fcn_has_no_narrow_network(converted, tmp_path):
    line = error_of(run(f"--checkpoint={converted}", "--format=torchfcn", f"--output={tmp_path / 'x'}"))
    assert re.search("this one has geometry 'same', not 'caffe'; width 4, not 64; fc_width 16, not 4096: --form", line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("fcn8s", "caffe", "fixed", mean=(1.0, 2.0, 3.0)), r"mean \(1.0, 2.0, 3.0\), not \(104.00699, "),
        (
            Case("fcn16s", "caffe", "fixed", at_once=True),
            "an at-once fcn16s, and only its fcn8s is: --format=safetensors",
        ),
        (Case("fcn4s", "caffe", "fixed"), "network 'fcn4s', not one of fcn32s, fcn16s, fcn8s: --format=safetensors"),
    ],
    ids=str,
)
def test_pytorch_fcn_has_no_other_means_scales_or_networks(case, message):
    with pytest.raises(ValueError, match=message):
        export.torchfcn.check(case.spec(width=64, fc_width=4096))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("fcn32s", "caffe", "fixed", at_once=True), r"torchfcn.models.FCN32s\(n_class=21\)"),
        (Case("fcn8s", "caffe", "learned"), r"torchfcn.models.FCN8s\(n_class=21\)"),
        (Case("fcn8s", "caffe", "learned", at_once=True), r"torchfcn.models.FCN8sAtOnce\(n_class=21\)"),
    ],
    ids=str,
)
def test_the_class_of_pytorch_fcn_is_named(case, message):
    spec = case.spec(width=64, fc_width=4096, classes=21)
    assert re.search(message, export.torchfcn.usage(pathlib.Path("x.pth"), spec))


@pytest.mark.needs("torch")
@pytest.mark.parametrize("case", [Case("fcn32s", "caffe", "fixed", at_once=True), Case("fcn8s", "caffe", "learned")])
def test_pytorch_fcn_has_networks_of_full_width(case):
    export.torchfcn.check(case.spec(width=64, fc_width=4096, classes=21))


@pytest.mark.parametrize(
    ("format", "package", "remedy"),
    [
        ("onnx", "onnx", "pip install 'fcn_jax[export]'"),
        ("savedmodel", "tensorflow", "pip install tensorflow-cpu"),
    ],
)
def test_a_missing_package_is_named(format, package, remedy, converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    line = error_of(run(f"--checkpoint={converted}", f"--format={format}", f"--output={tmp_path / 'x'}"))
    assert line == f"ValueError: --format={format} needs the package {package}: {remedy}\n"
    assert not list(tmp_path.iterdir())


def test_missing_pytorch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"--format=torchfcn needs the package torch: pip install 'fcn_jax\[parity\]'"):
        export.torchfcn.check(Case("fcn8s", "caffe", "fixed").spec(width=64, fc_width=4096))


def test_a_package_that_is_broken_is_no_missing_one(monkeypatch, tmp_path):
    (tmp_path / "onnx.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        export.onnx.check(CASE.spec())


@pytest.mark.parametrize("format", ["stablehlo", ONNX])
def test_more_than_2_gib_are_refused(format, tmp_path):
    huge = {"fc6": {"kernel": np.broadcast_to(np.float32(0), (7, 7, 512, 21400))}}
    with pytest.raises(ValueError, match=f"take 2.0 GiB, and --format={format} ends at 2: take --format=safetensors"):
        export.write(huge, CASE.spec(), format, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_what_fails_half_way_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(path, params, spec):
        path.mkdir()
        (path / "half").write_text("written")
        raise KeyboardInterrupt

    monkeypatch.setattr(export.stablehlo, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.write({}, CASE.spec(), "stablehlo", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_command_left_is_replaced(converted, tmp_path):
    (tmp_path / "x.part").mkdir()
    (tmp_path / "x.part" / "half").write_text("written")
    export.export_checkpoint(converted, "safetensors", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


FORMATS = ["stablehlo", ONNX, "safetensors", pytest.param("savedmodel", marks=pytest.mark.needs("tensorflow"))]


@needs_namespaces
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk(format, converted, tmp_path):
    wrap = mounted(tmp_path, "-o size=200k", after='ls -A "$0";')
    given = (f"--checkpoint={converted}", f"--format={format}", f"--output={tmp_path / 'x'}")
    process = processes.run("fcn_jax.export", *given, wrap=wrap)
    line = error_of(process)
    assert re.match(f"disk full: '{tmp_path}/x' cannot be written: .*: free some space", line), line
    assert process.stdout == ""


@needs_namespaces
def test_a_read_only_disk(converted, tmp_path):
    wrap = mounted(tmp_path, "-o size=9M", 'mount -o remount,ro "$0";', 'ls -A "$0";')
    given = (f"--checkpoint={converted}", "--format=safetensors", f"--output={tmp_path / 'x'}")
    process = processes.run("fcn_jax.export", *given, wrap=wrap)
    assert error_of(process) == f"OSError: '{tmp_path}/x' cannot be written: its disk is read-only: name another\n"
    assert process.stdout == ""


def test_a_folder_that_is_a_file(converted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x' cannot be written: .*(File exists|Not a directory)"):
        export.export_checkpoint(converted, "safetensors", tmp_path / "file" / "x")

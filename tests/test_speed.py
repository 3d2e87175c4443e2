"""benchmarks/speed.py: its ratios by hand, and the parts that need no large network."""

import argparse
import importlib
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("speed")
    for name in ("speed", "speed_cases", "speed_torchfcn"):
        sys.modules.pop(name, None)


def options(**changes):
    given = {"geometries": "caffe", "dtypes": "float32", "sizes": "375x500", "batches": "2", "rounds": 3, "repeats": 1}
    return argparse.Namespace(**given, torchfcn="folder", **changes)


def test_what_is_compared_takes_turns_and_medians_count(speed, monkeypatch, capsys):
    asked = []

    def run(what, **case):
        asked.append(what)
        if what == "matmul":
            return {"flops_per_second": 5e12}
        seconds = {"step": [4.0, 1.0, 2.0], "torch_step": [9.0, 5.0, 4.0]}[what][asked.count(what) - 1]
        return {"seconds": seconds, "memory": 3.0 if what == "step" else 2.0, "planned": 2.5, "flops": 1e12}

    monkeypatch.setattr(speed, "run", run)
    speed.table_step(options())
    assert asked == ["step", "torch_step"] * 3 + ["matmul"]
    lines = capsys.readouterr().out.splitlines()
    assert "| float32 375x500 x2 pytorch-fcn | 0.40 | 1.00 | 2.00 | 1.00 | | |" in lines
    assert "| float32 375x500 x2 fcn_jax caffe | 1.00 | 2.50 | 3.00 | 1.50 | 2.50 | 0.50 |" in lines
    assert lines[-1] == "A product of two matrices in float32: 5.00 TFLOP/s"


def test_what_fails_is_left_out(speed, monkeypatch, capsys):
    """As a batch that the memory does not hold."""
    monkeypatch.setattr(speed, "run", lambda what, **case: None)
    speed.table_forward(options())
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_input_pipeline_is_measured(speed):
    found = speed.speed_cases.measure_input(count=16, size=(60, 80), crop=(32, 32))
    assert found["decode"] > found["augment"] > 0
    assert found["waited"].keys() == {0.5, 0.8}
    assert all(0 <= share < 1 for share in found["waited"].values())


def test_a_case_that_fails_says_why(speed, capsys):
    assert speed.run(what="nothing") is None
    assert "{'what': 'nothing'}: KeyError: 'nothing'" in capsys.readouterr().err

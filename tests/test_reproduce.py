"""benchmarks/reproduce.py: what it records, and that it notices what is off."""

import importlib
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from fcn_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """The script, which keeps its records in tmp_path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "benchmarks" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECORDED", tmp_path / "recorded")
    return module


LOSSES = np.linspace(2, 1, 16)


def write_run(workdir, *, mean_iou=0.5, losses=LOSSES):
    """What fcn_jax.main leaves of a run of 16 steps, as far as it matters."""
    workdir.mkdir(exist_ok=True)
    (workdir / "checkpoints" / "16").mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "time": 60.0 * step, "loss": loss} for step, loss in enumerate(losses, 1)]
    rows.append({"step": 16, "time": 970.0, "eval/mean_iou": mean_iou})
    (workdir / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = dict.fromkeys(("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"), 0.9)
    results = {
        "step": 16,
        "num_examples": 3,
        **scores,
        "mean_iou": mean_iou,
        "per_class_iou": {"a": mean_iou, "b": None},
    }
    (workdir / "eval_val.json").write_text(json.dumps(results))
    return workdir


ROW = {"train": ("--config=x",), "evaluations": (("val", (1.0,), False),), "points": 2.0, "curve": 0.1}


def test_the_record(reproduce, tmp_path):
    reproduce.record("name", reproduce.Row(**ROW), write_run(tmp_path / "run"))
    found = json.loads((tmp_path / "recorded" / "name.json").read_text())
    assert found["command"] == "python benchmarks/reproduce.py name"
    assert found["losses"] == [round(2 - (4 * k + 1) / 30, 4) for k in range(8)]
    assert found["mean_iou_by_step"] == {"16": 50.0}
    assert found["minutes"] == pytest.approx((970 - 60) / 60, abs=0.05)
    assert found["evaluations"]["val"]["mean_iou"] == 50.0
    assert found["evaluations"]["val"]["per_class_iou"] == {"a": 50.0, "b": None}


@pytest.mark.parametrize(
    ("change", "outside"),
    [
        ({}, []),
        ({"mean_iou": 0.519}, []),
        ({"mean_iou": 0.521}, ["val: mean_iou"]),
        ({"mean_iou": 0.479}, ["val: mean_iou"]),
        ({"losses": LOSSES * 1.09}, []),
        ({"losses": [*LOSSES[:14], 1.3, 1.3]}, ["training loss, part 8 of 8"]),
    ],
)
def test_what_is_off_is_named(reproduce, tmp_path, capsys, change, outside):
    row = reproduce.Row(**ROW)
    reproduce.record("name", row, write_run(tmp_path / "run"))
    assert reproduce.compare("name", row, write_run(tmp_path / "run", **change)) is not bool(outside)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("OUTSIDE")]
    assert [line.split("recorded")[0].strip() for line in lines] == outside


def test_every_row_can_be_run(reproduce):
    for name, row in reproduce.ROWS.items():
        path = ROOT / row.train[0].removeprefix("--config=").partition(":")[0]
        assert path.exists(), name
        keys = {key.split("=")[0].removeprefix("--config.") for key in row.train[1:]}
        assert keys <= config_lib.flatten(config_lib.default()).keys(), name


@pytest.mark.parametrize("group", ["camvid"])
def test_results_has_the_tables_of_the_records(monkeypatch, group):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    records = tables.read(group)
    assert records
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert tables.scores(records) in text
    assert tables.camvid_classes(records) in text


def test_a_row_without_its_data_says_what_it_needs(reproduce, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "camvid", f"--raw_dir={tmp_path}"])
    with pytest.raises(SystemExit, match=r"^camvid needs --raw_dir=DIR, a folder that holds CamVid/$"):
        reproduce.parse()

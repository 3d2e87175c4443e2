"""benchmarks/reproduce.py: what it records, and that it notices what is off."""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fcn_jax import config as config_lib
from fcn_jax.data.builders.voc_segmentation import seg11valid_ids

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


def write_run(workdir, *, mean_iou=0.5, losses=LOSSES, num_examples=3, step=16):
    """What fcn_jax.main leaves of a run of 16 steps, as far as it matters."""
    workdir.mkdir(exist_ok=True)
    (workdir / "checkpoints" / "16" / "model").mkdir(parents=True, exist_ok=True)
    (workdir / "checkpoints" / "16" / "model" / "model.json").touch()
    (workdir / "origin.json").write_text(json.dumps({"commit": "c0ffee", "date": "2026-11-21", "hardware": "a laptop"}))
    rows = [{"step": step, "time": 60.0 * step, "loss": loss} for step, loss in enumerate(losses, 1)]
    rows.append({"step": 16, "time": 970.0, "eval/mean_iou": mean_iou})
    (workdir / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = dict.fromkeys(("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"), 0.9)
    results = {
        "step": step,
        "num_examples": num_examples,
        **scores,
        "mean_iou": mean_iou,
        "per_class_iou": {"a": mean_iou, "b": None},
    }
    (workdir / "eval_val.json").write_text(json.dumps(results))
    return workdir


def a_row(reproduce):
    return reproduce.Row(("--config=x",), (reproduce.Evaluation("val"),), points=2.0, curve=0.1)


def test_the_record(reproduce, tmp_path):
    reproduce.record("name", a_row(reproduce), write_run(tmp_path / "run"))
    found = json.loads((tmp_path / "recorded" / "name.json").read_text())
    assert found["command"] == "python benchmarks/reproduce.py name"
    assert (found["commit"], found["date"], found["hardware"]) == ("c0ffee", "2026-11-21", "a laptop")
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
        ({"num_examples": 4}, ["val: num_examples"]),
        ({"step": 15}, ["val: step"]),
        ({"losses": LOSSES * 1.09}, []),
        ({"losses": [*LOSSES[:14], 1.3, 1.3]}, ["training loss, part 8 of 8"]),
    ],
)
def test_what_is_off_is_named(reproduce, tmp_path, capsys, change, outside):
    row = a_row(reproduce)
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
        assert len(keys) == len(row.train) - 1, f"{name} gives a key twice"


@pytest.fixture
def tables(monkeypatch):
    """The script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


def test_results_has_the_tables_of_the_records(tables):
    for group, of_page in tables.GROUPS.items():
        text = (ROOT / "benchmarks" / "results" / f"{group}.md").read_text()
        records = tables.read(group)
        assert records
        for tabulate in of_page:
            assert tabulate(records) in text
    assert all(len(found) == 3 for found in tables.by_variant(tables.read("matters")).values())
    index = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for name, evaluation in (("shapes", "val"), ("camvid", "test_x1.5"), ("voc_laptop", "val")):
        found = tables.read(name)[name]["evaluations"][evaluation]
        assert f"mean IU {found['mean_iou']:.1f} on" in index


def test_pages_name_the_hardware_of_a_run_that_had_another_than_the_usual(tables):
    others = 0
    for group in tables.GROUPS:
        bullets = re.split(r"\n+(?=- |#)", (ROOT / "benchmarks" / "results" / f"{group}.md").read_text())
        for name, record in tables.read(group).items():
            processor = record["hardware"].partition(" cores of ")[2].partition(", Python")[0]
            processor = processor.replace("(R)", "").removesuffix(" Processor")
            if processor != "AMD EPYC":  # as RESULTS.md has it
                others += 1
                assert any(f"`{name}`" in bullet and processor in bullet for bullet in bullets), name
    assert others


def test_seeds_are_averaged_by_hand(tables):

    def record(mean_iou, pole):
        scores = {"pixel_accuracy": 90.0, "mean_accuracy": 70.0, "frequency_weighted_iou": 80.0, "mean_iou": mean_iou}
        return {"evaluations": {"val": {**scores, "per_class_iou": {"sky": 90.0, "pole": pole}}}}

    records = {
        "a_b_seed0": record(60.0, 5.0),
        "a_b_seed1": record(63.0, 8.0),
        "a_seed0": record(61.0, 4.0),
        "a_seed1": record(62.5, 6.0),
    }
    assert tables.seeds(records, "a").splitlines()[2:] == [
        "| a_b | 2 | 90.0 | 70.0 | 61.5 | 80.0 | 60.0 to 63.0 | -1.0, +0.5 |",
        "| a | 2 | 90.0 | 70.0 | 61.8 | 80.0 | 61.0 to 62.5 |  |",
    ]
    assert tables.seed_classes(records).splitlines()[2:] == ["| a_b | 90.0 | 6.5 |", "| a | 90.0 | 5.0 |"]


def test_the_spread_of_seeds_by_hand(tables):
    def record(mean_iou, *others):
        scores = {"pixel_accuracy": 90.0, "mean_iou": mean_iou, "per_class_iou": dict.fromkeys(tables.FCN8S, mean_iou)}
        return {"evaluations": dict.fromkeys(("test", *others), scores)}

    records = {"a": record(1.0), "b_seed0": record(2.0), "c_seed0": record(60.0, "val"), "c_seed1": record(64.0)}
    mean = "| 62.0 ± 2.8 "  # the deviation of a sample: sqrt((4 + 4) / 1)
    assert tables.camvid_spread(records).splitlines()[2:] == [f"| c, test | 2 | 90.0 ± 0.0 {mean * 12}|"]


def heads(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


def test_the_pages_of_results_are_linked_and_link_to_what_exists():
    index = ROOT / "benchmarks" / "RESULTS.md"
    pages = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    for page in (index, *pages):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith("http"):
                path, _, anchor = target.partition("#")
                path = page.parent / path if path else page
                assert path.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in heads(path.read_text()), f"{page.name}: {target}"
    assert not [page.name for page in pages if f"(results/{page.name}" not in index.read_text()]


def test_what_is_done_is_not_done_again(reproduce, monkeypatch, tmp_path):
    """An evaluation of another step is; evaluations are given no eval.* twice."""
    given = []
    monkeypatch.setattr(reproduce, "run_main", given.append)
    evaluations = (reproduce.Evaluation("val"), reproduce.Evaluation("test", (1.0, 2.0), True, refine=True))
    row = reproduce.Row(
        ("--config=x", "--config.eval.scales=(3.0,)"), evaluations, points=2.0, curve=0.1, data="VOCdevkit/VOC2012"
    )
    write_run(tmp_path / "run")
    reproduce.run(row, tmp_path / "run", tmp_path / "official")
    train, test = given
    where = (f"--config.data.raw_dir={tmp_path}/run/raw", f"--workdir={tmp_path}/run")
    assert train == (*row.train, *where)
    how = ("--config.eval.scales=(1.0, 2.0)", "--config.eval.flip=True", "--config.eval.refine=True")
    assert test == ("--config=x", *where, "--mode=eval", "--split=test", "--which=latest", *how)
    write_run(tmp_path / "run", step=15)
    reproduce.run(row, tmp_path / "run", tmp_path / "official")
    assert "--split=val" in given[3]


def test_a_run_of_unknown_origin_is_not_recorded(reproduce, tmp_path):
    (write_run(tmp_path / "run") / "origin.json").unlink()
    with pytest.raises(SystemExit, match=r"was not begun by reproduce\.py, so its commit is not known"):
        reproduce.record("name", a_row(reproduce), tmp_path / "run")


def test_ctrl_c_waits_for_the_run_to_save(tmp_path):
    """Ctrl-C goes to both: the run, which takes a second to end, is not killed, and its exit code is kept."""
    (tmp_path / "fcn_jax").mkdir()
    (tmp_path / "fcn_jax" / "main.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(1)\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "fcn_jax" / "__init__.py").touch()
    script = (
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import reproduce\n"
        f"reproduce.ROOT = pathlib.Path({str(tmp_path)!r})\n"
        "reproduce.run_main(())\n"
    )
    with subprocess.Popen((sys.executable, "-c", script), start_new_session=True) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_voc_subset_shares_no_image_with_training(split):
    """Against the released list: val lies within seg11valid, train outside of it."""
    ids = (ROOT / "benchmarks" / "voc_subset" / f"{split}.txt").read_text().split()
    assert len(set(ids)) == len(ids) == {"train": 334, "val": 342}[split]
    assert len({*ids} & {*seg11valid_ids()}) == {"train": 0, "val": 342}[split]


def test_a_row_without_its_data_says_what_it_needs(reproduce, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "camvid", f"--raw_dir={tmp_path}"])
    with pytest.raises(SystemExit, match=r"^camvid needs --raw_dir=DIR, a folder that holds CamVid/; /.* does not$"):
        reproduce.parse()

"""Whole runs in this process, tiny: stages, resuming, results, and what a run refuses."""

import dataclasses
import json
import logging
import pathlib
import re
import time

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, evaluate, sharding, train
from fcn_jax import config as config_lib
from fcn_jax.data import datasets, pipeline
from fcn_jax.losses import cross_entropy
from fcn_jax.models import fcn
from fcn_jax.models import spec as model_spec
from fcn_jax.run import context, parameters, resume
from fcn_jax.run import stage as stage_lib
from fcn_jax.run.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("standard_promotion")


def tiny_config(data_dir, **changes):
    """A staged run of 4 + 4 steps on the eight images of shapes/tiny; 4 devices, so batches of 4."""
    c = config_lib.default()
    c.name = "tiny"
    c.network = "fcn32s,fcn8s"
    c.steps = (4, 4)
    c.learning_rate = (1e-3, 1e-4)
    c.model.width, c.model.fc_width = 2, 4
    c.model.upsampling = "learned"
    c.init.random = "conv*,fc*"
    c.data.name, c.data.train_split, c.data.eval_split = "shapes", "tiny[:6]", "tiny[6:]"
    c.data.data_dir = data_dir
    c.data.accumulate = 2
    c.data.batch_size, c.data.crop_size, c.data.flip, c.data.scale = 4, (64, 64), True, (0.8, 1.2)
    c.eval.batch_size, c.eval.every, c.eval.pictures = 4, 2, 1
    c.log.every, c.log.checkpoint_every = 1, 1
    c.update_from_flattened_dict(changes)
    return c


def curves(workdir):
    return [json.loads(line) for line in (workdir / "curves.jsonl").read_text().splitlines()]


def losses(workdir):
    return {row["step"]: row["loss"] for row in curves(workdir) if "loss" in row}


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory, standard_promotion):
    """The workdir of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train.train_and_evaluate(tiny_config(data_dir), workdir)
    return workdir


def params_at(workdir, which="latest"):
    params, _ = checkpoint.load_params(checkpoint.find(workdir, which))
    return jax.tree.map(np.asarray, params)


def test_a_run_leaves_its_results(finished):
    assert json.loads((finished / "config.json").read_text())["steps"] == [4, 4]
    results = json.loads((finished / "eval_tiny_6-.json").read_text())
    assert list(results) == [
        "step",
        "scales",
        "flip",
        "split",
        "num_examples",
        "num_corrupt",
        "loss",
        "pixel_accuracy",
        "mean_accuracy",
        "mean_iou",
        "frequency_weighted_iou",
        "per_class_iou",
        "confusion_matrix",
    ]
    assert (results["step"], results["split"], results["num_examples"]) == (8, "tiny[6:]", 2)
    confusion = np.array(results["confusion_matrix"])
    assert confusion.shape == (6, 6)
    assert results["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert list(results["per_class_iou"]) == ["background", "disc", "square", "triangle", "ring", "cross"]
    absent = [i for i in range(6) if not confusion[i].any() and not confusion[:, i].any()]
    assert absent
    assert [i for i, v in enumerate(results["per_class_iou"].values()) if v is None] == absent
    assert sorted(losses(finished)) == list(range(1, 9))
    assert [row["step"] for row in curves(finished) if "eval/mean_iou" in row] == [2, 4, 6, 8]
    assert list(finished.glob("events.out.tfevents.*"))
    assert np.asarray(Image.open(finished / "pictures" / "tiny_6-_0.png")).ndim == 3


def test_every_labelled_pixel_is_counted_once(finished, data_dir):
    split = datasets.open_split("shapes", "tiny[6:]", data_dir=data_dir)
    confusion = np.array(json.loads((finished / "eval_tiny_6-.json").read_text())["confusion_matrix"])
    np.testing.assert_array_equal(confusion.sum(1), split.pixel_counts.sum(0))


def test_the_latest_two_and_the_best_are_kept_each_with_its_network(finished):
    by_iou = {row["step"]: row["eval/mean_iou"] for row in curves(finished) if "eval/mean_iou" in row}
    best = checkpoint.best_step(finished)
    assert by_iou[best] == max(by_iou.values())
    assert set(checkpoint.saved_steps(finished)) == {7, 8, best}
    assert model_spec.read(finished / "checkpoints" / "8" / checkpoint.MODEL_JSON).network == "fcn8s"
    assert set(params_at(finished)) >= {"conv1_1", "fc7", "score_pool3", "upscore8"}
    assert "upscore" not in params_at(finished)


def test_a_finished_run_says_so_and_changes_nothing(finished, data_dir, caplog):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file() and p.name != "config.json")
    with caplog.at_level(logging.INFO, "fcn_jax"):
        train.train_and_evaluate(tiny_config(data_dir), finished)
    assert "is finished: step 8 of 8" in caplog.text
    assert before == sorted(
        (p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file() and p.name != "config.json"
    )


@pytest.mark.parametrize(("stop", "every"), [(3, 1), (4, 1), (7, 3)])
def test_resuming_gives_the_run_that_was_never_stopped(finished, data_dir, tmp_path, monkeypatch, caplog, stop, every):
    """Stopped in the first stage, at the border, and in the second a step after a checkpoint: bit for bit the same."""
    c = tiny_config(data_dir, **{"log.checkpoint_every": every, "eval.every": every})
    stopping(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.INFO, "fcn_jax"):
        train.train_and_evaluate(c, tmp_path)
    assert max(losses(tmp_path)) == stop
    assert f"interrupted: the same command goes on from step {stop // every * every}" in caplog.text
    monkeypatch.undo()
    train.train_and_evaluate(c, tmp_path)
    assert [row["step"] for row in curves(tmp_path) if "loss" in row] == list(range(1, 9))
    assert losses(tmp_path) == losses(finished)
    jax.tree.map(np.testing.assert_array_equal, params_at(tmp_path), params_at(finished))


def test_a_finished_run_is_extended(data_dir, tmp_path, monkeypatch, caplog):
    """At a constant rate it is the longer run, bit for bit; a further stage begins where the others have ended."""
    longer = {"eval.every": 0, "optim.schedule": "constant", "network": "fcn32s", "learning_rate": (1e-3,)}
    monkeypatch.chdir(tmp_path)  # and below a path that globs and `..` would be misread in
    short, whole = pathlib.Path("x/../lr[0.1] *?"), tmp_path / "whole"
    (tmp_path / "x").mkdir()
    train.train_and_evaluate(tiny_config(data_dir, steps=(2,), **longer), short)
    with caplog.at_level(logging.INFO, "fcn_jax"):
        train.train_and_evaluate(tiny_config(data_dir, steps=(4,), **longer), short)
    assert "extended from 2 to 4 steps: from step 3 on the learning rate is that of a run of 4 steps" in caplog.text
    train.train_and_evaluate(tiny_config(data_dir, steps=(4,), **longer), whole)
    assert losses(short) == losses(whole)
    jax.tree.map(np.testing.assert_array_equal, params_at(short), params_at(whole))
    two = {**longer, "network": "fcn32s,fcn16s", "learning_rate": (1e-3, 1e-4)}
    train.train_and_evaluate(tiny_config(data_dir, steps=(4, 1), **two), short)
    assert sorted(losses(short)) == [1, 2, 3, 4, 5]
    assert "upscore16" in params_at(short)
    for steps, changes in [((3,), longer), ((3, 2), two), ((4, 1), {**two, "network": "fcn16s,fcn16s"})]:
        with pytest.raises(ValueError, match=r"which holds a run with another config: .*(steps|network): "):
            train.train_and_evaluate(tiny_config(data_dir, steps=steps, **changes), short)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "lr[0.1] *?", "whole"}


def test_equal_runs_share_their_programs(finished, data_dir, tmp_path, monkeypatch):
    """In one process the second of two traces nothing anew; another seed is another program, for dropout."""
    traced = []
    monkeypatch.setattr("fcn_jax.losses.cross_entropy", lambda *given: traced.append(given) or cross_entropy(*given))
    train.train_and_evaluate(tiny_config(data_dir), tmp_path / "again")
    assert not traced
    assert losses(tmp_path / "again") == losses(finished)
    train.train_and_evaluate(tiny_config(data_dir, seed=1), tmp_path / "other")
    assert len(traced) == 2, "one for each stage; the evaluation is the same"


def test_images_are_overfitted_only_on_purpose(data_dir, tmp_path, caplog):
    c = tiny_config(data_dir, network="fcn32s", steps=(1,), learning_rate=(1e-3,), **{"data.eval_split": "tiny[:1]"})
    with pytest.raises(ValueError, match=r"1 images are in both .*tiny\[:6\] and .*: choose another split, or"):
        train.train_and_evaluate(c, tmp_path)
    c.data.overlap = True
    train.train_and_evaluate(c, tmp_path)
    assert "data.overlap: images may be in both splits" in caplog.text


def test_a_run_without_a_checkpoint_that_can_be_read_does_not_start_over(data_dir, tmp_path):
    c = tiny_config(data_dir, network="fcn32s", steps=(2,), learning_rate=(1e-3,))
    train.train_and_evaluate(c, tmp_path)
    for path in (tmp_path / "checkpoints").glob("*/model/model.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints in .* can be read .*: put a copy back, or delete"):
        train.train_and_evaluate(c, tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.usefixtures("one_device")
def test_no_more_than_two_steps_are_dispatched_at_once(data_dir, tmp_path, monkeypatch):
    """Dispatching is asynchronous, and a stop waits for what is dispatched: minutes, where a step takes long."""
    found, pending, ready = [], [], stage_lib.ready

    def late(value):
        time.sleep(0.1)
        return value

    slow = jax.jit(lambda loss: jax.pure_callback(late, jax.ShapeDtypeStruct((), np.float32), loss))

    def with_slow_steps(run, stage):
        made = ready(run, stage)

        def update(state, arrays):
            pending.append(sum(not loss.is_ready() for loss in found))
            state, results = made.update(state, arrays)
            found.append(slow(results["loss"]))
            return state, {**results, "loss": found[-1]}

        return dataclasses.replace(made, update=update)

    monkeypatch.setattr(stage_lib, "ready", with_slow_steps)
    seldom = {"log.every": 8, "log.checkpoint_every": 8, "eval.every": 0}
    config = tiny_config(data_dir, network="fcn32s", steps=(8,), learning_rate=(1e-3,), **seldom)
    train.train_and_evaluate(config, tmp_path / "run")
    assert len(pending) == 8
    assert max(pending) == 1


def test_hosts_that_see_different_checkpoints_do_not_go_on(data_dir, tmp_path, monkeypatch):
    """As where network storage shows one of them a listing of some seconds ago."""
    c = tiny_config(data_dir, **{"log.checkpoint_every": 1, "eval.every": 0})
    stopping(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(c, tmp_path)
    monkeypatch.setattr(train.distributed, "of_main", lambda step: step + 1)
    message = re.escape(f"not every host sees the checkpoint of step 3 in {tmp_path}: start again in a minute")
    with pytest.raises(ValueError, match=message):
        train.train_and_evaluate(c, tmp_path)


def test_the_mean_losses_of_a_run_that_was_stopped(finished, data_dir, tmp_path, monkeypatch):
    """Every loss is in the mean of one row, whether the run is stopped after a checkpoint or not."""
    c = tiny_config(data_dir, **{"log.every": 4, "log.checkpoint_every": 3, "eval.every": 0})
    each = losses(finished)
    wanted = {3: (1, 2, 3), 4: (4,), 6: (5, 6), 8: (7, 8)}
    stopping(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(c, tmp_path)
    monkeypatch.undo()
    train.train_and_evaluate(c, tmp_path)
    means = {step: np.mean([each[k] for k in steps]) for step, steps in wanted.items()}
    assert losses(tmp_path) == pytest.approx(means, rel=1e-6)


def stopping(monkeypatch, step):
    """Makes a run end as by Ctrl-C after the update `step`."""
    iterate = pipeline.iterate

    def interrupted(dataset, start, num_threads):
        for number, batch in enumerate(iterate(dataset, start, num_threads), start + 1):
            if number > step and batch["image"].ndim == 5:  # not the evaluation's batches
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pipeline, "iterate", interrupted)


def test_the_next_stage_starts_from_the_last(finished, data_dir, tmp_path, monkeypatch):
    """Layers of the 32s are carried over; scores that the 8s adds start at zero, its upsampling bilinear."""
    c = tiny_config(data_dir)
    run = context.Run(c, finished, None, *2 * [split_of(data_dir)], Checkpoints(tmp_path), None)
    spec32, spec8 = map(run.spec, config_lib.stages(c))
    old = fcn.init(spec32, jax.random.key(5))
    first, second = config_lib.stages(c)
    start = resume.Start(second, second.start, {"": first})
    params = parameters.initial(run, start, jax.tree.map(np.asarray, old))
    assert set(params) == set(fcn.abstract_params(spec8))
    np.testing.assert_array_equal(params["fc6"]["kernel"], old["fc6"]["kernel"])
    assert not np.asarray(params["score_pool4"]["kernel"]).any()
    np.testing.assert_allclose(
        np.asarray(params["upscore2"]["kernel"])[:, 0, 0, 0], np.array([1, 3, 3, 1]) / 16, atol=1e-7
    )


def split_of(data_dir):
    return datasets.open_split("shapes", "tiny", data_dir=data_dir)


def test_a_workdir_of_another_config_is_refused(finished, data_dir):
    with pytest.raises(ValueError, match=r"another config: model.width: 2 -> 3; optim.momentum: 0.9 -> 0.5$"):
        train.train_and_evaluate(tiny_config(data_dir, **{"model.width": 3, "optim.momentum": 0.5}), finished)


def test_resuming_on_fewer_devices(finished, data_dir, tmp_path, monkeypatch):
    """Stopped on four devices, ended on two: the same to float32 rounding."""
    stopping(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(tiny_config(data_dir), tmp_path)
    monkeypatch.undo()
    mesh = sharding.make_mesh(jax.devices()[:2])
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
    train.train_and_evaluate(tiny_config(data_dir), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(finished), rel=1e-4)


def test_a_checkpoint_of_another_architecture_is_refused(finished, data_dir, tmp_path):
    """config.json says one network, the checkpoint another: a folder put together by hand."""
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"is of another network \(width: 2 is not 3\)"):
        train.train_and_evaluate(tiny_config(data_dir, **{"model.width": 3, "steps": (4, 8)}), tmp_path / "run")


def test_a_frozen_glob_that_matches_nothing(data_dir, tmp_path):
    message = r"config.optim.frozen has 'conv9_\*', which matches no layer: choose from conv1_1"
    with pytest.raises(ValueError, match=message):
        train.train_and_evaluate(tiny_config(data_dir, **{"optim.frozen": "conv1_*,conv9_*"}), tmp_path)


def test_evaluation_alone_agrees_with_training(finished, data_dir):
    during = json.loads((finished / "eval_tiny_6-.json").read_text())
    c = tiny_config(data_dir)
    results = evaluate.evaluate_checkpoint(c, finished, split="tiny[6:]", which="latest")
    assert results["confusion_matrix"] == during["confusion_matrix"]
    assert results["loss"] == pytest.approx(during["loss"], rel=1e-6)
    for batch_size in (8, 12):
        c.eval.batch_size = batch_size
        again = evaluate.evaluate_checkpoint(c, finished, split="tiny[6:]", which="latest")
        assert again["confusion_matrix"] == during["confusion_matrix"]


def test_evaluation_on_other_classes_is_refused(finished, data_dir, tmp_path):
    from layouts import write_camvid

    write_camvid(tmp_path, "val", ["a"])
    c = tiny_config(data_dir, **{"data.name": "camvid", "data.raw_dir": str(tmp_path)})
    with pytest.raises(ValueError, match=r"knows 6 classes .* but camvid has 11 .*: evaluate it on its own dataset"):
        evaluate.evaluate_checkpoint(c, finished, split="val", which="best")


def test_prediction_agrees_with_evaluation(finished, data_dir):
    """load(): images of their own sizes, one by one and as a list, give the confusion matrix of the evaluation."""
    from reference import confusion_matrix, scores

    split = split_of(data_dir)
    predict = fcn_jax.load(finished, which="latest")
    examples = [pipeline._Decode(split, pipeline.PLAIN).map(i) for i in (6, 7)]
    masks = predict([e["image"] for e in examples])
    per_image = [confusion_matrix(e["label"], m, 6) for e, m in zip(examples, masks, strict=True)]
    rows = [(scores(counts)["mean_iou"], e["id"], counts) for counts, e in zip(per_image, examples, strict=True)]
    wanted = [
        f"{name},{c.sum()},{scores(c)['pixel_accuracy']:.4f},{iou:.4f}"
        for iou, name, c in sorted(rows, key=lambda r: r[0])
    ]
    lines = (finished / "eval_tiny_6-.csv").read_text().splitlines()
    assert lines == ["id,labelled,pixel_accuracy,mean_iou", *wanted]
    assert sum(per_image).tolist() == json.loads((finished / "eval_tiny_6-.json").read_text())["confusion_matrix"]
    for e, mask in zip(examples, masks, strict=True):
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(predict(e["image"]), mask)
    c = tiny_config(data_dir, **{"eval.scales": (0.75, 1.5), "eval.flip": True, "eval.pictures": 0})
    results = evaluate.evaluate_checkpoint(c, finished, split="tiny[6:]", which="latest")
    masks = fcn_jax.load(finished, which="latest", scales=(0.75, 1.5), flip=True)([e["image"] for e in examples])
    counts = sum(confusion_matrix(e["label"], m, 6) for e, m in zip(examples, masks, strict=True))
    assert np.abs(counts - results["confusion_matrix"]).sum() <= 4, "two pixels, where two classes all but tie"
    c = tiny_config(data_dir, **{"eval.refine": True, "eval.pictures": 0})
    results = evaluate.evaluate_checkpoint(c, finished, split="tiny[6:]", which="latest")
    refined = fcn_jax.load(finished, which="latest", refine=True)([e["image"] for e in examples])
    counts = sum(confusion_matrix(e["label"], m, 6) for e, m in zip(examples, refined, strict=True))
    assert np.abs(counts - results["confusion_matrix"]).sum() <= 4, "two pixels, where two classes all but tie"
    plain, kept = (json.loads((finished / f"eval_tiny_6-{end}.json").read_text()) for end in ("", "_refined"))
    assert kept["loss"] == results["loss"] != pytest.approx(plain["loss"], rel=1e-3)
    with pytest.raises(ValueError, match=r"scales \[0, 1\]: give factors above 0 and up to 8"):
        fcn_jax.load(finished, scales=(0, 1))
    for wrong, message in [
        ([np.zeros((5, 5))], r"an image is float64 \[5, 5\]: give uint8 RGB"),
        (np.zeros((5, 5), np.uint8), r"an image is uint8 \[5, 5\]: give uint8 RGB"),
        ("photograph.jpg", "an image is a str: give an array"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict(wrong)


def test_find_says_what_it_wants(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: give the workdir of a run"):
        checkpoint.find(tmp_path)


def test_a_non_finite_loss_names_step_and_images_and_saves_nothing_of_it(data_dir, tmp_path):
    c = tiny_config(data_dir, network="fcn8s", steps=(6,), learning_rate=(1e30,))
    c.log.every = c.log.checkpoint_every = 3
    c.eval.every = 0
    with pytest.raises(FloatingPointError, match=r"the last checkpoint is of step 0: lower learning_rate") as error:
        train.train_and_evaluate(c, tmp_path)
    step, ids = re.search(r"not finite at step ([23]), images (.*);", str(error.value)).groups()
    split = datasets.open_split("shapes", "tiny[:6]", data_dir=data_dir)
    crops = pipeline.Augmentation((64, 64), crop=True)
    dataset = pipeline.train_dataset(split, crops, seed=0, batch_size=4, accumulate=2)
    assert ids.split(", ") == dataset[int(step) - 1]["id"].ravel().tolist()
    assert checkpoint.saved_steps(tmp_path) == []


@pytest.mark.parametrize("key", ["data.batch_size", "eval.batch_size"])
def test_out_of_memory_is_found_before_the_weights_are_read(data_dir, tmp_path, monkeypatch, key):
    check = sharding.check_memory
    monkeypatch.setattr(sharding, "check_memory", lambda k, *rest: check(k, *rest, available=0 if k == key else 10**12))
    with pytest.raises(ValueError, match=f"out of memory: a step with {key}=4 needs .*: no batch fits"):
        train.train_and_evaluate(tiny_config(data_dir, **{"init.weights": "/nowhere"}), tmp_path)


def test_a_teacher_teaches(finished, data_dir, tmp_path, caplog):
    """A smaller network; where its teacher counts alone, labels do not matter, and a resumed run is the same."""
    caplog.set_level("INFO")
    taught = {"distill.teacher": str(finished), "distill.weight": 1.0, "network": "fcn32s", "steps": (3,)}
    c = tiny_config(data_dir, **taught, **{"learning_rate": (1e-2,), "model.fc_width": 3})
    train.train_and_evaluate(c, tmp_path / "taught")
    assert f"taught by {finished}, which counts 1" in caplog.text
    found = losses(tmp_path / "taught")
    assert all(0 < loss < np.log(6) for loss in found.values())
    c.distill.weight = 0.0
    train.train_and_evaluate(c, tmp_path / "alone")
    c.distill.teacher = ""
    train.train_and_evaluate(c, tmp_path / "plain")
    assert losses(tmp_path / "alone") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert found[1] != pytest.approx(losses(tmp_path / "plain")[1], rel=1e-2)


def test_a_teacher_of_other_classes_is_refused(finished, data_dir, tmp_path):
    from test_outputs import network, params

    spec = network()
    checkpoint.save_params(tmp_path / "other", params(spec), spec)
    c = tiny_config(data_dir, **{"distill.teacher": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="has other classes: background, cell, nucleus"):
        train.train_and_evaluate(c, tmp_path / "run")
    c.distill.teacher = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train.train_and_evaluate(c, tmp_path / "run")


def test_overlapping_splits_are_refused(data_dir, tmp_path):
    with pytest.raises(ValueError, match="2 images are in both"):
        train.train_and_evaluate(tiny_config(data_dir, **{"data.train_split": "tiny"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value", "remedy"), [("data", 6, "use 4 or 8"), ("eval", 3, "use 4")])
def test_batch_not_divisible_by_the_devices(data_dir, tmp_path, key, value, remedy):
    with pytest.raises(
        ValueError, match=f"config.{key}.batch_size={value} is not divisible by the 4 devices: {remedy}"
    ):
        train.train_and_evaluate(tiny_config(data_dir, **{f"{key}.batch_size": value}), tmp_path)


class Analysis:
    argument_size_in_bytes, output_size_in_bytes, temp_size_in_bytes, alias_size_in_bytes = 300, 200, 1000, 200


@pytest.mark.parametrize(
    ("available", "message"),
    [
        # 1300 needed; 200 are fixed; (available - 200) / 1100 of the batch of 16 fits, in fours.
        (1200, r"a step with eval.batch_size=16 needs 0.00 GB per device, .*: eval.batch_size=12 should fit"),
        (500, "eval.batch_size=4 should fit"),
        (300, "no batch fits: lower data.crop_size"),
    ],
)
def test_out_of_memory_says_what_would_fit(available, message):
    fixed = (np.zeros(25, np.float32), np.zeros(25, np.float32))
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=message):
        sharding.check_memory("eval.batch_size", Analysis, fixed, 16, mesh, available)
    assert sharding.check_memory("eval.batch_size", Analysis, fixed, 16, mesh, 1300) == 1300


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("meadian", "choose none, median_frequency"),
        ("1,2", "has 2 numbers, .* needs 6"),
        ("1,1,1,1,1,-1", "none below 0"),
    ],
)
def test_bad_class_weights(data_dir, choice, message):
    with pytest.raises(ValueError, match=message):
        datasets.class_weights(choice, split_of(data_dir))


def test_class_weights(data_dir):
    split = split_of(data_dir)
    balanced = datasets.class_weights("median_frequency", split)
    np.testing.assert_allclose(datasets.class_weights("sqrt_median_frequency", split), np.sqrt(balanced))
    np.testing.assert_array_equal(datasets.class_weights("1,0.5,2,1,1,0", split), np.float32([1, 0.5, 2, 1, 1, 0]))
    np.testing.assert_array_equal(datasets.class_weights("none", split), np.ones(6, np.float32))
    assert balanced[0] < balanced[1:].max()


def test_panels_are_written_of_the_first_images(finished):
    pictures = pathlib.Path(finished / "pictures").glob("*.png")
    assert sorted(p.name for p in pictures) == ["tiny_6-_0.png"]


def test_images_that_are_skipped_are_named_once(caplog):
    known = {"a"}
    for _ in range(2):
        batch = {"id": np.array([["c", "a", "b"]]), "corrupt": np.array([[True, True, False]])}
        train._tell_corrupt(batch, known)
    assert [record.getMessage() for record in caplog.records] == ["corrupt and skipped: c (2 images so far)"]
    assert known == {"a", "c"}

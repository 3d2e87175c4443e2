"""The report: what it measures, how sure it is of it, and its page in a real browser."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import scipy.stats
from commands import command
from PIL import Image
from scipy import ndimage

from fcn_jax import metrics
from fcn_jax.report import measure, page
from fcn_jax.report.measure import Measured
from fcn_jax.run import curves, environment

pytest.importorskip("matplotlib")


def confusions(number=40, classes=4, seed=0):
    """Of images, most pixels right."""
    rng = np.random.default_rng(seed)
    base = np.eye(classes) * 60 + 4
    return rng.poisson(base * rng.gamma(2, 1, (number, 1, 1)) * rng.gamma(2, 0.5, (number, classes, 1)))


def measured(matrices, unscored=()):
    counts = metrics.counts(matrices)
    names = tuple(f"image{k:03d}" for k in range(len(matrices)))
    return Measured(names, matrices.sum(0), counts, counts // 3, unscored)


# --- boundaries -----------------------------------------------------------------------------------------------------


def test_a_boundary_by_hand():
    label = np.zeros((7, 8), np.uint8)
    label[2:6, 2:7] = 1
    assert metrics.boundary(label, 2).all()
    inner = ~metrics.boundary(label, 1)
    assert [tuple(map(int, place)) for place in np.argwhere(inner)] == [(r, c) for r in (3, 4) for c in (3, 4, 5)]


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_boundaries_are_what_erosion_takes_away(distance):
    """As the paper's own code has it: each mask, with nothing around the image, eroded by 3x3 pixels."""
    rng = np.random.default_rng(distance)
    for size in [(1, 1), (3, 40), (37, 29)]:
        label = ndimage.zoom(rng.integers(0, 4, (9, 9)), (size[0] / 9, size[1] / 9), order=0).astype(np.uint8)
        found = metrics.boundary(label, distance)
        for value in np.unique(label):
            mask = np.pad(label == value, 1)
            eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)[1:-1, 1:-1]
            np.testing.assert_array_equal(found & (label == value), (label == value) & ~eroded)


def test_boundary_counts_by_hand():
    """A square of 8 pixels that is found one pixel too far to the right; boundaries are one pixel wide."""
    truth, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[6:14, 6:14] = 1
    prediction[6:14, 7:15] = 1
    counts = metrics.boundary_counts(truth, prediction, 2)
    assert counts[:, 1].tolist() == [2 * 7, 28, 28]  # only upper and lower edge lie over each other
    assert metrics.boundary_counts(truth, truth, 2)[:, 1].tolist() == [28, 28, 28]


def test_void_is_out_of_boundaries():
    rng = np.random.default_rng(0)
    truth = np.zeros((30, 30), np.uint8)
    truth[8:20, 8:20] = 1
    truth[:, 24:] = 255
    wild = np.where(truth == 255, rng.integers(0, 3, truth.shape), truth).astype(np.uint8)
    counts = metrics.boundary_counts(truth, wild, 3)
    assert (counts[0] == counts[1]).all()
    assert (counts[1] == counts[2]).all()


def test_counts_are_those_of_the_scores():
    matrices = confusions()
    found = measure.scores(metrics.counts(matrices.sum(0)), metrics.counts(matrices.sum(0)), [2])
    expected = metrics.scores(matrices.sum(0), [2])
    for key in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"):
        assert found[key] == pytest.approx(expected[key], abs=1e-12)
    np.testing.assert_allclose(found["per_class_iou"], expected["per_class_iou"])
    for matrix, value in zip(matrices, measured(matrices).of_images(), strict=True):
        assert value == pytest.approx(metrics.scores(matrix)["mean_iou"])


# --- intervals ------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_an_independent_bootstrap():
    matrices = confusions(60)
    found = measure.intervals(measured(matrices), samples=4000)["mean_iou"]

    def statistic(chosen):
        return metrics.scores(matrices[chosen].sum(0))["mean_iou"]

    expected = scipy.stats.bootstrap(
        (np.arange(60),), statistic, vectorized=False, n_resamples=2000, method="percentile", random_state=1
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value == pytest.approx(metrics.scores(matrices.sum(0))["mean_iou"])
    assert abs(found.low - expected.low) < 0.1 * width
    assert abs(found.high - expected.high) < 0.1 * width


def test_images_that_are_alike_leave_no_doubt():
    found = measure.intervals(measured(np.repeat(confusions(1), 20, 0)))
    assert found["mean_iou"].low == pytest.approx(found["mean_iou"].high)


def test_a_class_of_one_image():
    """It is not in every sample; a class that is nowhere has no interval."""
    matrices = confusions(10, 4)
    matrices[1:, 2] = matrices[1:, :, 2] = 0
    matrices[:, 3] = matrices[:, :, 3] = 0
    found = measure.intervals(measured(matrices))
    assert 0 < found["per_class_iou"][2].low <= found["per_class_iou"][2].high < 1
    assert np.isnan(found["per_class_iou"][3].value)
    assert np.isnan(found["per_class_iou"][3].low)


def test_differences_share_their_luck():
    """A network that is a little better on every image is surely better, though both intervals overlap."""
    matrices = confusions(30)
    better = matrices.copy()
    for index in range(4):
        moved = (matrices[:, index, (index + 1) % 4] * 0.3).astype(int)
        better[:, index, index] += moved
        better[:, index, (index + 1) % 4] -= moved
    first, second = measured(matrices), measured(better)
    alone = [measure.intervals(m)["mean_iou"] for m in (first, second)]
    assert alone[0].high > alone[1].low
    found = measure.differences(first, second)["mean_iou"]
    assert 0 < found.low < found.value < found.high
    assert measure.differences(first, first)["mean_iou"] == measure.Interval(0, 0, 0)
    with pytest.raises(ValueError, match="same images"):
        measure.differences(first, measured(matrices[:20]))


def test_extremes():
    values = np.array([0.5, np.nan, 0.9, 0.1, 0.7, 0.3])
    found = measure.extremes(values, 3)
    assert [(kind, place) for kind, place, _ in found] == [("best", 2), ("median", 0), ("worst", 3)]
    assert measure.extremes(values, 0) == []
    kinds = [[kind for kind, *_ in measure.extremes(values, number)] for number in (1, 2, 4, 5)]
    assert kinds == [
        ["worst"],
        ["best", "worst"],
        ["best", "median", "worst", "worst"],
        ["best", "best", "median", "worst", "worst"],
    ]
    assert len({place for _, place, _ in measure.extremes(values, 60)}) == 5


def test_what_was_measured_is_remembered(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return measured(confusions(), (1,))

    path = tmp_path / "report.npz"
    first, second = (measure.remembered(path, "a", make) for _ in range(2))
    assert len(calls) == 1
    assert first.ids == second.ids
    assert second.unscored == (1,)
    for name in ("confusion", "counts", "edges"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    measure.remembered(path, "other weights", make)
    assert len(calls) == 2
    for damage in (b"", path.read_bytes()[:-40], b"PK\x03\x04nothing"):
        path.write_bytes(damage)
        measure.remembered(path, "other weights", make)
    assert len(calls) == 5


def test_what_cannot_be_kept_is_still_shown(tmp_path, caplog):
    found = measure.remembered(tmp_path / "gone" / "report.npz", "a", lambda: measured(confusions()))
    assert len(found.ids) == 40
    assert "is not kept for the next report" in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"eval.refine": True}, ", aligned with contours"),
        ({"eval.scales": [1.5], "eval.flip": True}, ", at 1.5 times the size and mirrored"),
        ({"eval.refine": True, "eval.mask": "shape"}, ", aligned with contours, without shape"),
    ],
)
def test_how_a_run_was_scored_is_said(changed, said):
    plain = {"eval.scales": [1.0], "eval.flip": False, "eval.refine": False, "eval.mask": ""}
    assert page._scoring(SimpleNamespace(settings=plain | changed)) == said


def test_minutes_without_pauses():
    points = [{"time": 60.0 * t} for t in (0, 1, 30, 31)]
    assert curves.minutes(points) == 2  # of a run that has noted no starts
    assert curves.minutes(points, [-5.0]) == 31  # a step takes long
    assert curves.minutes(points, [-5.0, 60 * 29.0]) == 2  # it was stopped


def test_starts_are_read_back_whole(tmp_path):
    environment.note(tmp_path, 0)
    environment.note(tmp_path, 40)
    with open(tmp_path / "starts.jsonl", "a") as file:
        file.write('{"step": 80, "tim')  # a power cut
    found = environment.read(tmp_path)
    assert [start["step"] for start in found] == [0, 40]
    assert found[0]["versions"]["jax"]
    assert environment.read(tmp_path / "nothing") == []


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs of other seeds, with an evaluation each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("_second $<b>", 1)):
        arguments = ["--config=configs/fcn8s.py:demo", f"--workdir={folder / name}", f"--config.seed={seed}"]
        small = [
            "--config.steps=(6,)",
            "--config.log.every=2",
            "--config.eval.every=3",
            "--config.optim.warmup_steps=0",
        ]
        small.append("--config.data.eval_split=val[:9]")
        done = command("fcn_jax.main", *arguments, *small, f"--config.data.data_dir={folder / 'data'}")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def report(runs):
    output = f"--output={runs / 'report.html'}"
    done = command("fcn_jax.report", runs / "first", runs / "_second $<b>", output, "--which=latest")
    assert done.returncode == 0, done.stderr
    return runs / "report.html"


def test_it_measures_what_the_run_recorded(runs, report):
    (path,) = (runs / "first").glob("report_*_6.npz")
    recorded = json.loads((runs / "first" / "eval_val_-9.json").read_text())
    assert recorded["step"] == 6
    with np.load(path) as found:
        # Images alone and images on a canvas: of 50,000 pixels one or two may be a tie.
        assert np.abs(found["confusion"] - recorded["confusion_matrix"]).sum() <= 4
        assert found["counts"][:, 1].sum() == np.sum(recorded["confusion_matrix"])
        iou = measure.scores(found["counts"].sum(0), found["edges"].sum(0))["mean_iou"]
    assert iou == pytest.approx(recorded["mean_iou"], abs=1e-4)
    assert f">{100 * iou:.1f} <small>" in report.read_text()


def test_it_is_one_file_that_asks_nobody(report):
    text = report.read_text()
    assert not re.findall(r"(?:src|href)=(?!['\"]?(?:data:|#))", text)
    assert "@import" not in text
    assert "url(http" not in text
    assert "_second $<b>" not in text
    assert "_second $&lt;b&gt;" in text
    sections = re.findall(r"<h2>([^<]*)</h2>", text)
    assert sections[:3] == ["Scores", "Differences between the runs", "Curves"]
    assert sections[-3:] == ["Settings", "Data", "Environment and cost"]
    assert re.search(r"<td>seed<td>0<td>1", text)


@pytest.mark.needs("playwright")
def test_in_a_browser(report, tmp_path):
    with browser.opened() as page:
        page.goto(report.as_uri())
        assert page.locator("h2").count() >= 11
        figure = page.locator("figure").first
        figure.scroll_into_view_if_needed()
        pictures = []
        for value in ("0", "100"):
            figure.locator("input").fill(value)
            pictures.append(figure.locator(".compare").screenshot(path=tmp_path / f"{value}.png"))
        truth, prediction = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in pictures)
        assert truth.shape == prediction.shape
        assert np.abs(truth - prediction).mean() > 1  # six steps teach nothing
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True, path=tmp_path / "report.png")))
        assert whole.height > 2000
        assert page.locator("svg").first.bounding_box()["height"] > 150
        assert page.outside == []
        assert page.failures == []


def test_without_the_data_it_shows_what_was_recorded(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs / "first", copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"] |= {"name": "camvid", "raw_dir": str(tmp_path / "gone")}
    (copy / "config.json").write_text(json.dumps(config))
    done = command("fcn_jax.report", copy, f"--output={tmp_path / 'report.html'}")
    assert done.returncode == 0, done.stderr
    assert "only what the run has recorded is shown" in done.stderr
    text = (tmp_path / "report.html").read_text()
    assert "Evaluations that the runs recorded" in text
    assert "gone" in text


def test_mended_labels_are_measured_again_and_other_labels_are_no_difference(runs, tmp_path):
    """Of a folder of one's own, whose files one corrects."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
        for index in range(number):
            mask = np.zeros((40, 48), np.uint8)
            mask[10:30, 10 + index : 30] = 1
            image = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "photos" / split / "images" / f"{split}{index}.png")
            Image.fromarray(mask).save(tmp_path / "photos" / split / "masks" / f"{split}{index}.png")
    arguments = ["--config=configs/folder.py", f"--config.data.raw_dir={tmp_path / 'photos'}", "--config.init.weights="]
    small = ["--config.model.width=2", "--config.model.fc_width=4", "--config.init.random=*", "--config.steps=2,"]
    small += ["--config.optim.warmup_steps=0", "--config.optim.frozen=", "--config.data.crop_size=32,32"]
    small += ["--config.data.batch_size=4", "--config.eval.batch_size=4", "--config.eval.scales=1,"]
    workdir = [f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={tmp_path / 'data'}"]
    done = command("fcn_jax.main", *arguments, *small, *workdir)
    assert done.returncode == 0, done.stderr

    def truth():
        done = command("fcn_jax.report", tmp_path / "run", f"--output={tmp_path / 'r.html'}", "--pictures=0")
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / "run").glob("report_*.npz")
        with np.load(path) as found:
            return found["counts"][:, 1].sum(0).tolist()

    before = truth()
    path = tmp_path / "photos" / "val" / "masks" / "val0.png"
    mask = np.array(Image.open(path))
    mask[0, :5] = 1
    Image.fromarray(mask).save(path)
    after = truth()
    assert [a - b for a, b in zip(after, before, strict=True)] == [-5, 5]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no run is named"),
        (["nowhere"], "is no run: it has no config.json"),
        (["{run}", "{run}"], "a run is named twice"),
        (["{run}", "--output={folder}"], "is a folder: name a file"),
        (["{run}", "--pictures=-1"], "pictures"),
    ],
)
def test_refusals(arguments, reason, runs, tmp_path):
    given = [a.format(run=runs / "first", folder=tmp_path) for a in arguments]
    done = command("fcn_jax.report", *given)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

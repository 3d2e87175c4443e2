"""The report: one HTML file with curves, scores, pictures and settings of runs, which opens without a network."""

import datetime
import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcn_jax import config as config_lib
from fcn_jax import visualize, web
from fcn_jax.predictor import Found, enlarge, shrink
from fcn_jax.report import figures, measure
from fcn_jax.report.measure import Interval
from fcn_jax.report.published import ROWS, Row
from fcn_jax.report.runs import Picture, Run
from fcn_jax.run.curves import minutes

_SIDE = 560  # pixels of a picture's longer side
_MOST_CLASSES = 40  # of a confusion matrix that is shown whole
_SCORES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iou": "mean IU",
    "frequency_weighted_iou": "frequency-weighted IU",
    "boundary_iou": "Boundary IoU",
}
_STYLE = """
body { max-width: 80rem }
small, .note { color: #666; font-size: .8rem } .wide { overflow-x: auto }
svg { max-width: 100%; height: auto }
table.confusion { font-size: .75rem } .confusion td { padding: .1rem .3rem; text-align: right; min-width: 2rem }
.confusion th { padding: .1rem .3rem } .confusion thead th { writing-mode: vertical-rl; text-align: left }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.4rem }
.compare { position: relative; line-height: 0 } .compare img { width: 100% }
.compare img + img { position: absolute; left: 0; top: 0; clip-path: inset(0 0 0 var(--cut, 50%)) }
.compare::after { content: ''; position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px;
  background: #fff }
figure input { width: 100%; margin: .3rem 0 0 }
.legend span { margin-right: 1rem; white-space: nowrap; font-size: .85rem }
"""
_SCRIPT = """
for (const slider of document.querySelectorAll('figure input'))
  slider.addEventListener('input', () =>
    slider.parentElement.querySelector('.compare').style.setProperty('--cut', slider.value + '%'));
"""


def render(runs: Sequence[Run], today: datetime.date) -> str:
    """The whole document.

    Raises:
      ValueError: matplotlib is not installed.
    """
    several = len(runs) > 1
    title = f"fcn_jax: {', '.join(run.name for run in runs)}"
    parts = [
        f"<h1>{html.escape(title)}</h1><p class=note>Made on {today}. Scores in percent.</p>",
        _section("Scores", _scores(runs)),
        *([_section("Differences between the runs", _differences(runs))] if several else []),
        _section("Curves", f"<div class=wide>{figures.svg(figures.curves({r.name: r.points for r in runs}))}</div>"),
        *(_section(f"Classes{_of(run, several)}", _classes(run)) for run in runs if run.measured),
        *(_section(f"Confusion matrix{_of(run, several)}", _confusion(run)) for run in runs if run.measured),
        *(_section(f"Images{_of(run, several)}", _pictures(run)) for run in runs if run.pictures),
        _section("Evaluations that the runs recorded", _recorded(runs)),
        _section("Settings", _settings(runs)),
        _section("Data", _data(runs)),
        _section("Environment and cost", _cost(runs)),
    ]
    return web.document(title, "".join(parts), _STYLE, _SCRIPT)


def _of(run: Run, several: bool) -> str:
    return f" of {run.name}" if several else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """HTML cells; the first `words` columns are words, the others numbers."""
    kinds = ["" if index < words else " class=n" for index in range(len(head))]
    top = "".join(f"<th{kind}>{cell}" for kind, cell in zip(kinds, head, strict=True))
    lines = ["<tr>" + "".join(f"<td{kind}>{cell}" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return f"<div class=wide><table><thead><tr>{top}<tbody>{''.join(lines)}</table></div>"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _sure(found: Interval) -> str:
    if math.isnan(found.value):
        return "-"
    return f"{_percent(found.value)} <small>{_percent(found.low)} to {_percent(found.high)}</small>"


def _published(run: Run) -> Row | None:
    split = run.split.split if run.split is not None else run.settings["data.eval_split"]
    return ROWS.get((run.settings["data.name"], split, run.spec.network))


def _scores(runs: Sequence[Run]) -> str:
    """A row a run, and published ones below."""
    rows = []
    for run in runs:
        if run.measured is None or run.split is None:
            rows.append([html.escape(run.name), str(run.step), html.escape(run.reason), *["-"] * len(_SCORES)])
            continue
        found = measure.intervals(run.measured)
        where = f"{run.split.name} {run.split.split}, {len(run.measured.ids)} images{_scoring(run)}"
        rows.append([html.escape(run.name), str(run.step), html.escape(where), *(_sure(found[key]) for key in _SCORES)])
    published = {row.source: row for row in map(_published, runs) if row is not None}
    for row in published.values():
        values = [f"{row.scores[key]:.1f}" if key in row.scores else "-" for key in _SCORES]
        rows.append([f"published {html.escape(row.network)}", "", html.escape(row.source), *values])
    note = (
        "<p class=note>Small: the interval that holds the score of other images of the same kind with 95 %"
        f" (bootstrap over the images, {measure.SAMPLES} samples). It says nothing of other seeds."
        " Boundary IoU is the IU of pixels near outlines, within 2 % of the image's diagonal.</p>"
    )
    return _table(["run", "step", "scored on", *_SCORES.values()], rows, words=3) + note


def _scoring(run: Run) -> str:
    scales, flip, refine, mask = (run.settings[f"eval.{key}"] for key in ("scales", "flip", "refine", "mask"))
    plain = list(scales) == [1.0] and not flip
    how = "" if plain else f", at {', '.join(f'{s:g}' for s in scales)} times the size{' and mirrored' if flip else ''}"
    return how + (", aligned with contours" if refine else "") + (f", without {mask}" if mask else "")


def _differences(runs: Sequence[Run]) -> str:
    """Of each run to the first, where both were scored on the same images."""
    first, rows = runs[0], []
    for run in runs[1:]:
        if first.measured is None or run.measured is None or not _alike(first, run):
            continue
        found = measure.differences(first.measured, run.measured)
        rows.append([f"{html.escape(run.name)} less {html.escape(first.name)}", *(_sure(found[k]) for k in _SCORES)])
    note = "<p class=note>On the same images, drawn together. Where an interval holds 0, the images do not tell.</p>"
    return _table(["", *_SCORES.values()], rows) + note if rows else ""


def _alike(first: Run, second: Run) -> bool:
    """Whether both were scored on the same images with the same labels."""
    assert first.measured is not None
    assert second.measured is not None
    return (
        first.measured.ids == second.measured.ids
        and first.spec.class_names == second.spec.class_names
        and first.settings["eval.mask"] == second.settings["eval.mask"]
        and np.array_equal(first.measured.counts[:, 1], second.measured.counts[:, 1])
    )


def _names(run: Run) -> tuple[str, ...]:
    return run.spec.class_names[run.spec.outputs[0][1]]


def _palette(run: Run) -> Sequence[tuple[int, int, int]]:
    return run.spec.palette[run.spec.outputs[0][1]]


def _classes(run: Run) -> str:
    assert run.measured is not None
    measured, found, published = run.measured, measure.intervals(run.measured), _published(run)
    pixels, images = measured.counts[:, 1].sum(0), (measured.counts[:, 1] > 0).sum(0)
    rows = []
    for index, name in enumerate(_names(run)):
        iou, edge, share = (
            found["per_class_iou"][index],
            found["per_class_boundary_iou"][index],
            pixels[index] / max(1, pixels.sum()),
        )
        bar = f"<div class=bar style='width:{100 * np.nan_to_num(iou.value):.1f}%'></div>"
        rows.append(
            [
                f"{_square(_palette(run)[index])} {html.escape(name)}",
                f"<div style='width:10rem'>{bar}</div>",
                _sure(iou),
                *([f"{published.classes[name]:.1f}" if name in published.classes else "-"] if published else []),
                _sure(edge),
                f"{100 * share:.2f}",
                str(images[index]),
            ]
        )
    head = ["class", "", "IU", *(["published"] if published else []), "Boundary IoU", "share of pixels", "images"]
    return _table(head, rows, words=2)


def _square(colour: tuple[int, int, int]) -> str:
    return f"<span class=square style='background:rgb{tuple(colour)}'></span>"


def _confusion(run: Run) -> str:
    """Rows add up to 100 %; of very many classes the largest confusions alone."""
    assert run.measured is not None
    names, matrix = _names(run), run.measured.confusion
    truth = np.maximum(matrix.sum(1, keepdims=True), 1)
    shares = matrix / truth
    largest = _largest(names, matrix, shares)
    if len(names) > _MOST_CLASSES:
        return largest
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    rows = "".join(
        f"<tr><th>{html.escape(name)}" + "".join(_cell(share, index == column) for column, share in enumerate(row))
        for index, (name, row) in enumerate(zip(names, shares, strict=True))
    )
    table = f"<div class=wide><table class=confusion><thead><tr><th>{head}<tbody>{rows}</table></div>"
    return f"<p class=note>Each row: how the pixels of a class were labelled, in percent.</p>{table}{largest}"


def _cell(share: float, right: bool) -> str:
    colour = "46,125,80" if right else "192,57,43"
    shown = f"{100 * share:.0f}" if share >= 0.005 else ""
    dark = ";color:#fff" if share > 0.6 else ""
    return f"<td style='background:rgba({colour},{share:.2f}){dark}'>{shown}"


def _largest(names: Sequence[str], matrix: np.ndarray, shares: np.ndarray, most: int = 8) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None)[:most]]
    rows = [
        [html.escape(names[i]), html.escape(names[j]), f"{100 * shares[i, j]:.1f}", f"{wrong[i, j]:,}"]
        for i, j in order
        if wrong[i, j]
    ]
    if not rows:
        return ""
    return "<p>The largest confusions:</p>" + _table(["is", "taken for", "% of the class", "pixels"], rows, words=2)


def _pictures(run: Run) -> str:
    """The best, the median and the worst images by their own mean IU, each with a slider."""
    present = sorted({int(v) for p in run.pictures for mask in (p.truth, p.prediction) for v in np.unique(mask)})
    names, palette = _names(run), _palette(run)
    legend = "".join(f"<span>{_square(palette[v])} {html.escape(names[v])}</span>" for v in present if v < len(names))
    shown = np.arange(256) >= (names[0].lower() == "background")  # all classes, and void
    figures = "".join(_picture(picture, palette, shown) for picture in run.pictures)
    note = "<p class=note>Left of the slider is the prediction, right of it the truth. White is not labelled.</p>"
    return f"{note}<p class=legend>{legend}</p><div class=sheet>{figures}</div>"


def _picture(picture: Picture, palette: Sequence[tuple[int, int, int]], shown: np.ndarray) -> str:
    image = visualize.visible(picture.image)
    prediction, truth = (_laid(image, mask, palette, shown) for mask in (picture.prediction, picture.truth))
    tags = f"<img src='{prediction}' alt='prediction'><img src='{truth}' alt='truth'>"
    caption = f"{html.escape(picture.id)}: mean IU {_percent(picture.mean_iou)} ({picture.kind})"
    slider = f"<input type=range min=0 max=100 value=50 aria-label='prediction or truth of {html.escape(picture.id)}'>"
    return f"<figure><div class=compare>{tags}</div>{slider}<figcaption>{caption}</figcaption></figure>"


def _laid(image: np.ndarray, mask: np.ndarray, palette: Sequence[tuple[int, int, int]], shown: np.ndarray) -> str:
    """An overlay, shrunk first: large images are shown small."""
    small = shrink(np.ascontiguousarray(image), _SIDE)
    labels = enlarge(Found(mask), small.shape[:2]).mask
    return web.embedded(visualize.overlay(small, labels, palette, shown=shown), _SIDE)


def _recorded(runs: Sequence[Run]) -> str:
    rows = [
        [
            html.escape(run.name),
            html.escape(name),
            str(found.get("step", "")),
            str(found.get("num_examples", "")),
            *(_percent(found.get(key)) for key in _SCORES if key != "boundary_iou"),
        ]
        for run in runs
        for name, found in run.recorded.items()
    ]
    head = ["run", "evaluation", "step", "images", *(name for key, name in _SCORES.items() if key != "boundary_iou")]
    return _table(head, rows, words=2) if rows else ""


def _settings(runs: Sequence[Run]) -> str:
    """What differs between runs; of one run what differs from the defaults."""
    if len(runs) > 1:
        keys = [key for key in runs[0].settings if len({_text(run.settings.get(key)) for run in runs}) > 1]
        rows = [[html.escape(key), *(_text(run.settings.get(key)) for run in runs)] for key in keys]
        head, none = ["key", *(html.escape(run.name) for run in runs)], "<p>All settings are alike.</p>"
    else:
        defaults = config_lib.completed({})
        keys = [key for key, value in runs[0].settings.items() if value != defaults.get(key)]
        rows = [[html.escape(key), _text(runs[0].settings[key]), _text(defaults.get(key))] for key in keys]
        head, none = ["key", "value", "default"], "<p>All settings are the defaults.</p>"
    return _table(head, rows, words=len(head)) if rows else none


def _text(value: Any) -> str:
    return html.escape(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _data(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        split = run.split
        labelled = "-" if run.measured is None else f"{int(run.measured.counts[:, 1].sum()):,}"
        rows.append(
            [
                html.escape(run.name),
                html.escape(run.settings["data.name"]),
                html.escape(run.settings["data.train_split"]),
                html.escape(split.split if split is not None else run.settings["data.eval_split"]),
                "-" if split is None else str(len(split.ids)),
                "-" if split is None else str(len(split.corrupt)),
                labelled,
                str(len(_names(run))),
            ]
        )
    head = ["run", "dataset", "trained on", "scored on", "images", "left out as damaged", "labelled pixels", "classes"]
    return _table(head, rows, words=4)


def _cost(runs: Sequence[Run]) -> str:
    """A column a run."""
    lines: dict[str, Callable[[Run], str]] = {
        "parameters": lambda run: f"{run.parameters:,}",
        "steps": lambda run: f"{run.points[-1]['step']:,}" if run.points else "-",
        "images seen": lambda run: f"{run.points[-1]['step'] * _batch(run):,}" if run.points else "-",
        "minutes, pauses left out": lambda run: f"{minutes(run.points, _times(run)):.1f}",
        "starts": lambda run: str(len(run.starts)) if run.starts else "not recorded",
        "devices": lambda run: _last(run, "devices"),
        "CPU": lambda run: f"{_last(run, 'cpu')}, {_last(run, 'cores')} cores" if run.starts else "-",
        "platform": lambda run: _last(run, "platform"),
        "Python": lambda run: _last(run, "python"),
        "packages": lambda run: (
            ", ".join(f"{k} {v}" for k, v in run.starts[-1].get("versions", {}).items()) if run.starts else "-"
        ),
    }
    rows = [[name, *(html.escape(value(run)) for run in runs)] for name, value in lines.items()]
    return _table(["", *(html.escape(run.name) for run in runs)], rows, words=len(runs) + 1)


def _times(run: Run) -> list[float]:
    return [start["time"] for start in run.starts if isinstance(start.get("time"), int | float)]


def _batch(run: Run) -> int:
    return int(run.settings["data.batch_size"]) * int(run.settings["data.accumulate"])


def _last(run: Run, key: str) -> str:
    return str(run.starts[-1].get(key, "-")) if run.starts else "-"

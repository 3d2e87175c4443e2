"""The checker's report: one HTML file with pictures in it, which opens without a network."""

import html
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fcn_jax import visualize, web
from fcn_jax.data import images
from fcn_jax.data.own import bands, forms
from fcn_jax.data.own.check import Checked, class_rows
from fcn_jax.data.own.look import Look
from fcn_jax.data.own.writers import write_text

_SIDE = 320  # pixels of a picture's longer side
_STYLE = """
.error { border-left: 4px solid #c0392b } .warning { border-left: 4px solid #d9a400 }
.finding { padding: .3rem .8rem; margin: .5rem 0; background: #f6f6f6 } .finding code { word-break: break-all }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem }
.sheet img { width: 32%; vertical-align: top }
.verdict { font-weight: bold }
"""


def write(path: pathlib.Path, checked: Checked, most: int = 24) -> None:
    """Writes the report with pictures of at most `most` images: some of each split, and those that findings name.

    Raises:
      OSError: it cannot be written.
    """
    lines = checked.lines()
    parts = [
        f"<h1>{html.escape(str(checked.root))}</h1>",
        f"<p class=verdict>{html.escape(lines[-1])}</p>",
        _inventory(checked, lines),
        _findings(checked),
        *([_classes(checked)] if checked.form is not None else []),
        _sizes(checked.looks),
        _sheet("Pictures", _some(checked.looks, most), checked),
        _sheet("Worst: what cannot be used, the emptiest, the smallest", _worst(checked.looks, most // 2), checked),
    ]
    page = web.document(f"{checked.root.name}: what the folder holds", "".join(parts), _STYLE)
    write_text(path, page)


def _inventory(checked: Checked, lines: Sequence[str]) -> str:
    shown = lines[: len(lines) - 1 - len(checked.findings)]
    return "".join(f"<p>{html.escape(line)}</p>" for line in shown if not line.startswith("  "))


def _findings(checked: Checked) -> str:
    if not checked.findings:
        return ""
    shown = [
        f"<div class='finding {finding.level}'><b>{html.escape(finding.what)}</b>: {finding.count}<br>first"
        f" <code>{html.escape(finding.first)}</code><br>{html.escape(finding.remedy)}</div>"
        for finding in checked.findings
    ]
    return f"<h2>What to look at</h2>{''.join(shown)}"


def _classes(checked: Checked) -> str:
    assert checked.form is not None
    rows = class_rows(checked)
    largest = max((share for *_, share, _ in rows), default=1) or 1
    colours = dict(enumerate(checked.form.palette))
    cells = [
        f"<tr><td class=n>{value}"
        f"<td><div class=square style='background:rgb{colours.get(value, visualize.WHITE)}'></div>"
        f"<td>{html.escape(name)}<td class=n>{100 * share:.3f} %<td style='width:20rem'><div class=bar"
        f" style='width:{100 * share / largest:.1f}%'></div><td class=n>{images}"
        for name, value, share, images in rows
    ]
    head = "<tr><th>id<th><th>class<th>pixels<th><th>images"
    return f"<h2>Classes</h2><table>{head}{''.join(cells)}</table>"


def _sizes(looks: Sequence[Look]) -> str:
    """A histogram of the images' longer sides."""
    sides = np.array([max(found.size) for found in looks if found.size != (0, 0)])
    if not sides.size:
        return ""
    counts, edges = np.histogram(sides, bins=min(12, len(np.unique(sides))))
    cells = [
        f"<tr><td class=n>{int(low)} to {int(high)}<td style='width:20rem'><div class=bar"
        f" style='width:{100 * count / counts.max():.1f}%'></div><td class=n>{count}"
        for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True)
        if count
    ]
    return f"<h2>Longer side of the images, in pixels</h2><table>{''.join(cells)}</table>"


def _some(looks: Sequence[Look], most: int) -> list[Look]:
    """From all parts of the list."""
    good = [found for found in looks if not found.error]
    return good[:: max(1, -(-len(good) // most))]


def _worst(looks: Sequence[Look], most: int) -> list[Look]:
    broken = [found for found in looks if found.error]
    good = [found for found in looks if not found.error]
    emptiest = sorted(good, key=lambda found: float(found.counts[1:255].sum() / max(1, found.counts.sum())))
    smallest = sorted(good, key=lambda found: found.size[0] * found.size[1])
    third = max(1, most // 3)
    shown = [*broken[: max(third, most - 2 * third)], *emptiest[:third], *smallest[:third]]
    return list({found.pair.image: found for found in shown}.values())[:most]


def _sheet(title: str, looks: Sequence[Look], checked: Checked) -> str:
    figures = "".join(_figure(found, checked) for found in looks)
    return f"<h2>{html.escape(title)}</h2><div class=sheet>{figures}</div>" if figures else ""


def _figure(found: Look, checked: Checked) -> str:
    """Image, mask and overlay, as far as they can be read."""
    pictures, form = [], checked.form
    try:
        image = bands.picture(images.read_file(found.pair.image), str(found.pair.image))
        pictures.append(web.embedded(image, _SIDE))
        if form is not None:
            label = forms.read(form, found.pair.label)
            label = images.turn(label, found.orientation) if checked.annotated == "stored" else label
            pictures.append(web.embedded(visualize.colorize(label, form.palette), _SIDE, nearest=True))
            if label.shape == found.size:
                small = np.asarray(Image.fromarray(label).resize(image.shape[1::-1], Image.Resampling.NEAREST))
                pictures.append(web.embedded(visualize.overlay(image, small, form.palette), _SIDE))
    except (ValueError, OSError, MemoryError):
        pass  # the caption says why
    tags = "".join(f"<img src='{source}' alt=''> " for source in pictures)
    caption = html.escape(f"{found.pair.id} ({found.pair.split}){f': {found.error}' if found.error else ''}")
    return f"<figure>{tags}<figcaption>{caption}</figcaption></figure>"

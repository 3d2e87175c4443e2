"""Curves of runs as pictures, by matplotlib (the extra `report`)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from fcn_jax import extras


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """A figure of the training loss, and of the mean IU of the evaluations on the way, against the step.

    Args:
      runs: points as run/curves.py reads them, by name.

    Raises:
      ValueError: matplotlib is not installed.
    """
    figures = extras.need("matplotlib.figure", "report")
    figure = figures.Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, factor, label in (
        (axes[0], "loss", 1, "training loss"),
        (axes[1], "eval/mean_iou", 100, "mean IU on the evaluation split, %"),
    ):
        top = 0.0
        for points in runs.values():
            found = [(p["step"], factor * p[key]) for p in points if isinstance(p.get(key), int | float)]
            steps, values = [step for step, _ in found], [value for _, value in found]
            axis.plot(steps, values, marker="o" if len(found) < 30 else None, markersize=4, linewidth=1.2)
            top = max([top, *values])
        axis.set(xlabel="step", ylabel=label, xlim=(0, None), ylim=(0, 1.05 * top or 1))
        axis.grid(alpha=0.3)
    if len(runs) > 1:  # handles by themselves: a name may begin with _, and have what is mathematics to matplotlib
        axes[1].legend(axes[1].lines, [name.replace("$", r"\$") for name in runs], fontsize="small")
    return figure


def svg(figure: Any) -> str:
    """A figure as text to be put into HTML; the same for the same figure."""
    matplotlib = extras.need("matplotlib", "report")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fcn_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

"""The curves of a run: TensorBoard's events for people, and a line of curves.jsonl for everything else."""

import itertools
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorboardX

from fcn_jax import files

_ROOM = 4_000_000  # bytes, more than an evaluation's pictures take


class Curves:
    """The curves of one run from a step on; what an earlier start wrote beyond that step is forgotten.

    `points` are all that there are, as `read` gives them.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._workdir = workdir
        forget_after(workdir, step)
        self.points = read(workdir)
        self._writer = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve; OSError where there is no room."""
        # TensorBoard's writer would wait for ever on its thread, which a full disk has ended.
        files.check_room(self._workdir, _ROOM, "curves and pictures")
        for key, value in values.items():
            self._writer.add_scalar(key if "/" in key else f"train/{key}", value, step)
        with open(self._workdir / "curves.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self.points.append({"step": step, **values})

    def pictures(self, step: int, panels: Sequence[np.ndarray]) -> None:
        """Panels [H, W, 3] uint8 of an evaluation, to TensorBoard alone."""
        for index, picture in enumerate(panels):
            self._writer.add_image(f"eval/{index}", picture, step, dataformats="HWC")

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The points of curves.jsonl, in order; of evaluations the keys begin with eval/."""
    path = workdir / "curves.jsonl"
    lines = path.read_bytes().decode("ascii", "replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def minutes(points: Sequence[dict[str, Any]], starts: Sequence[float] = ()) -> float:
    """Time between the points without pauses: gaps in which the run was started again.

    Runs of earlier versions have noted no `starts` (times); for them a gap of more than ten minutes is a pause.
    """
    times = [point["time"] for point in points if "time" in point]

    def works(earlier: float, later: float) -> bool:
        return not any(earlier < start <= later for start in starts) if starts else later - earlier < 600

    return sum(later - earlier for earlier, later in itertools.pairwise(times) if works(earlier, later)) / 60


def forget_after(workdir: pathlib.Path, step: int) -> None:
    """Takes the points after the step that a run goes on from out of curves.jsonl: they come again."""
    path = workdir / "curves.jsonl"
    if path.exists():
        lines = path.read_bytes().decode("ascii", "replace").splitlines()
        rows = [line for line in lines if _step_of(line) <= step]
        files.write(path, "".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    """Of a line of curves.jsonl; infinite if a full disk or a power cut has left half of it."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return found if isinstance(found, int) else math.inf

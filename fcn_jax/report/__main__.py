"""Runs as a page to look at: python -m fcn_jax.report RUN [RUN ...] --output=report.html

One HTML file that opens without a network: scores with their intervals, curves, classes, confusion matrix, the best,
the median and the worst images, settings, data and cost. Several runs stand side by side.

  python -m fcn_jax.report runs/fcn8s_demo
  python -m fcn_jax.report runs/a runs/b --output=a_and_b.html --split=test --which=latest
"""

import collections
import datetime
import logging
import pathlib
from collections.abc import Sequence

from absl import flags

from fcn_jax import cli, extras, files
from fcn_jax.report import page, runs

_OUTPUT = flags.DEFINE_string("output", "report.html", "The file that is written.")
_SPLIT = flags.DEFINE_string("split", "", "The split that is scored; by default the run's own, config.data.eval_split.")
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of each run that is taken.")
_PICTURES = flags.DEFINE_integer("pictures", 6, "How many images of each run are shown.", lower_bound=0, upper_bound=60)

log = logging.getLogger("fcn_jax.report")


def names_of(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """What the runs are called: their folders, or their paths where two folders are called alike."""
    counted = collections.Counter(path.name for path in workdirs)
    return [path.name if counted[path.name] == 1 else str(path) for path in workdirs]


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    given = [pathlib.Path(argument) for argument in argv[1:]]
    if not given:
        raise ValueError("no run is named: python -m fcn_jax.report runs/fcn8s_demo")
    workdirs = [files.local(path) for path in given]
    if len({*workdirs}) < len(workdirs):
        raise ValueError(f"a run is named twice: {', '.join(map(str, given))}")
    output = pathlib.Path(_OUTPUT.value).expanduser()
    if output.is_dir():
        raise ValueError(f"--output={str(output)!r} is a folder: name a file, such as {str(output / 'report.html')!r}")
    extras.need("matplotlib", "report")  # before the minutes that measuring takes
    opened = [
        runs.open_run(workdir, which=_WHICH.value, split=_SPLIT.value, number=_PICTURES.value, name=name)
        for workdir, name in zip(workdirs, names_of(workdirs), strict=True)
    ]
    text = page.render(opened, datetime.date.today())
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write(output, text)
    log.info("%s: %.1f MB, opens in any browser", output, len(text) / 1e6)


if __name__ == "__main__":
    cli.run(main)

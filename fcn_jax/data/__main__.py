"""One's own pictures: python -m fcn_jax.data check DIR

check DIR     what the folder holds, what is wrong with it, and a verdict, which is the exit code too.
show DIR      pictures of images with their annotations: --output=FOLDER
convert DIR   the folder in another form: --form=ids|labelme|cvat|coco --output=FOLDER

  python -m fcn_jax.data check PHOTOS --report=report.html
  python -m fcn_jax.data show PHOTOS --output=pictures --number=12
  python -m fcn_jax.data convert PHOTOS --form=coco --output=PHOTOS_coco
"""

import logging
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from fcn_jax import cli

_REPORT = flags.DEFINE_string("report", None, "check: an HTML file with pictures and tables, to be written.")
_OUTPUT = flags.DEFINE_string("output", None, "show and convert: the folder that is written to.")
_FORM = flags.DEFINE_enum("form", "ids", ["ids", "labelme", "cvat", "coco"], "convert: the form of the annotations.")
_NUMBER = flags.DEFINE_integer("number", 24, "show: how many images, from all parts of the folder.", lower_bound=1)

log = logging.getLogger("fcn_jax.data")


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    commands = {"check": _check, "show": _show, "convert": _convert}
    if len(argv) != 3 or argv[1] not in commands:
        raise ValueError(f"give one of {', '.join(commands)} and a folder: python -m fcn_jax.data check DIR")
    root = pathlib.Path(argv[2]).expanduser()
    commands[argv[1]](root)


def _bar(what: str) -> Any:
    def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(items, what, total, unit=" images", leave=False, delay=1, mininterval=0.5)

    return progress


def _check(root: pathlib.Path) -> None:
    from fcn_jax.data.own import check, page

    checked = check.check(root, _bar("looking"))
    if _REPORT.value:
        page.write(pathlib.Path(_REPORT.value).expanduser(), checked)
    print("\n".join(checked.lines()))
    if not checked.fine:
        sys.stdout.flush()
        sys.exit(1)


def _show(root: pathlib.Path) -> None:
    from PIL import Image

    from fcn_jax.data.own import check, show

    output = _folder()
    checked = check.check(root, _bar("looking"))
    written = 0
    for name, picture in show.panels(checked, _NUMBER.value):
        Image.fromarray(picture).save(output / f"{name}.jpg", quality=92)
        written += 1
    log.info("%d pictures in %s", written, output)


def _convert(root: pathlib.Path) -> None:
    from fcn_jax.data.own import check, convert

    if not _OUTPUT.value:
        raise ValueError("--output is missing: give a new folder")
    output = pathlib.Path(_OUTPUT.value).expanduser()
    checked = check.check(root, _bar("looking"))
    number = convert.convert(checked, output, _FORM.value, _bar("converting"))
    log.info("%d of %d images in %s", number, len(checked.pairing.pairs), output)


def _folder() -> pathlib.Path:
    if not _OUTPUT.value:
        raise ValueError("--output is missing: give a folder")
    folder = pathlib.Path(_OUTPUT.value).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    cli.run(main)

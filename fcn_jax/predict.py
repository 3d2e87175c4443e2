"""Masks and overlays of photographs: python -m fcn_jax.predict --checkpoint=RUN --input=PHOTOS --output=DIR

python -m fcn_jax.predict --checkpoint=runs/mine --input=PHOTOS --output=masks --write=mask,overlay,areas
python -m fcn_jax.predict --checkpoint=camvid-small --input=a.jpg --output=cut --write=cutout --classes=car
python -m fcn_jax.predict --checkpoint=runs/mine --input=aerial.tif --output=masks --tiles --max_side=0
"""

import collections
import dataclasses
import errno
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import flags

from fcn_jax import cli, outputs, visualize
from fcn_jax.data import huge, images
from fcn_jax.predictor import MAX_SIDE, Found, Predictor, enlarge, load, shrink
from fcn_jax.run import progress

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a step of its checkpoints, converted weights, or a name such as camvid-small."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of a run that is taken.")
_INPUT = flags.DEFINE_string("input", None, "An image or a folder of images.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder for NAME.png (the mask), NAME_overlay.jpg and the like.")
_WRITE = flags.DEFINE_list(
    "write",
    "mask,overlay",
    "What is written: mask, overlay, cutout (transparent but for what is found), scores (.npz), probability (16-bit PNG"
    " for each of --classes), labelme (.json), areas (.csv for all) and cvat (.zip for all).",
)
_CLASSES = flags.DEFINE_list("classes", "", "The classes that are wanted, such as person,car; none for all.")
_SKIP_EXISTING = flags.DEFINE_bool("skip_existing", False, "Leave images alone whose files are there.")
_TILES = flags.DEFINE_bool(
    "tiles", False, "Segment images that are longer than --max_side in tiles, exactly, instead of shrinking them."
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    MAX_SIDE,
    "Longer images are segmented at this length and their masks enlarged; 0: never.",
    lower_bound=0,
)

_SCALES = flags.DEFINE_list(
    "scales", "", "Each image is scored at these sizes, such as 0.75,1,1.25; default: as the run was evaluated, or 1."
)
_REFINE = flags.DEFINE_bool(
    "refine", None, "Align masks with contours, a second an image; default: as the run was evaluated."
)
_FLIP = flags.DEFINE_bool("flip", None, "Each image is scored mirrored, too; default: as the run was evaluated.")

_NOWHERE_TO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FAILURES = (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError)  # of one image alone
_THREADS = 2  # that read, and that write: decoding and compressing leave Python's lock
_AHEAD = 2  # images read, and images to be written, that wait

log = logging.getLogger("fcn_jax.predict")


def find_images(path: pathlib.Path) -> list[pathlib.Path]:
    """The image, or the images of the folder by name, less hidden ones.

    Raises:
      FileNotFoundError: there is no such file, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"--input={str(path)!r} is neither a file nor a folder")
    visible = sorted(p for p in path.iterdir() if not p.name.startswith(".") and not p.is_dir())
    found = [p for p in visible if p.suffix.lower() in images.suffixes()]
    if not found:
        raise FileNotFoundError(f"no image in {str(path)!r}: files ending in {', '.join(images.suffixes())} are taken")
    if len(found) < len(visible):
        others = [p.name for p in visible if p not in {*found}]
        log.info("%d files in %s are no images and left alone, first %r", len(others), path, others[0])
    return found


def output_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """What each image's mask is called, without .png: its name without the ending, with it where two would be alike."""
    stems = collections.Counter(path.stem.casefold() for path in paths)
    names = [path.name if stems[path.stem.casefold()] > 1 else path.stem for path in paths]
    if len({name.casefold() for name in names}) < len(names):  # a.jpg, a.png and a.jpg.png
        names = [path.name for path in paths]
    kept = [path.name for path, name in zip(paths, names, strict=True) if name == path.name]
    if kept:
        log.info("%d images of like names have masks with their endings: %s.png", len(kept), kept[0])
    return names


def _required(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    if not flag.value:
        raise ValueError(f"--{flag.name} is missing: --checkpoint, --input and --output are needed")
    return pathlib.Path(flag.value).expanduser()


def _scales(values: Sequence[str]) -> tuple[float, ...] | None:
    if not values:
        return None
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise ValueError(f"--scales={','.join(values)}: give numbers such as 0.75,1,1.25") from None


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    checkpoint, source, output = (_required(flag) for flag in (_CHECKPOINT, _INPUT, _OUTPUT))
    paths = find_images(source)
    if output.resolve() == paths[0].parent.resolve():
        raise ValueError(
            f"--output={str(output)!r} is the folder of the images, whose masks could replace them: name another"
        )
    predictor = load(
        checkpoint,
        which=_WHICH.value,
        scales=_scales(_SCALES.value),
        flip=_FLIP.value,
        max_side=_MAX_SIDE.value,
        tiles=_TILES.value,
        refine=_REFINE.value,
    )
    spec = predictor.spec
    if spec.input_names not in (("colour",), ("bands",)):
        seen = "+".join(spec.input_names)
        raise ValueError(f"{checkpoint} takes {seen}, photographs have colour alone: call fcn_jax.load on arrays")
    wanted = outputs.Wanted(spec, tuple(_WRITE.value), tuple(_CLASSES.value))
    jobs = [Job(path, name) for path, name in zip(paths, output_names(paths), strict=True)]
    jobs = _claimed(jobs, wanted, output)
    failed = 0
    with outputs.Tables(wanted, output) as tables:
        for job, error in progress.bar(run(predictor, jobs, wanted, output, tables), "predicting", len(jobs), "images"):
            if error is not None:
                line = "out of memory: lower --max_side" if isinstance(error, MemoryError) else cli.explain(error)
                log.error("%s", line if str(job.path) in line else f"{job.path}: {line}")
                failed += 1
    log.info("%d images done: %s in %s", len(jobs) - failed, ", ".join(wanted.kinds), output)
    if failed:
        raise ValueError(f"{failed} of {len(jobs)} images failed; the others are done")


def _claimed(jobs: Sequence["Job"], wanted: outputs.Wanted, output: pathlib.Path) -> list["Job"]:
    """The jobs that are to be done, whose files may be written."""
    targets = {job: wanted.targets(output, job.name) for job in jobs}
    _refuse_replacing([job.path for job in jobs], [target for found in targets.values() for target in found])
    if _SKIP_EXISTING.value:
        if wanted.tables(output):
            raise ValueError("--skip_existing would leave images out of areas and cvat: write these without it")
        left = [job for job in jobs if not all(target.exists() for target in targets[job])]
        log.info("%d of %d images are done already", len(jobs) - len(left), len(jobs))
        jobs = left
    outputs.claim(output, [*(target for job in jobs for target in targets[job]), *wanted.tables(output)])
    return list(jobs)


def _refuse_replacing(paths: Sequence[pathlib.Path], targets: Sequence[pathlib.Path]) -> None:
    """ValueError if a target is one of the images, by whatever link or name."""
    sources = {(path.stat().st_dev, path.stat().st_ino): path for path in paths if path.exists()}
    for target in targets:
        if os.path.exists(target) and (source := sources.get((target.stat().st_dev, target.stat().st_ino))):
            raise ValueError(f"{str(target)!r} would replace the image {str(source)!r}: name another --output")


@dataclasses.dataclass(eq=False)
class Job:
    """An image, what its files are called, and what was read of it."""

    path: pathlib.Path
    name: str
    image: np.ndarray | None = None  # uint8 [H, W, 3], of large JPEGs reduced
    rows: huge.Rows | None = None  # of what is too large to be decoded whole
    size: tuple[int, int] = (0, 0)  # height and width of the mask


def run(
    predictor: Predictor,
    jobs: Sequence[Job],
    wanted: outputs.Wanted,
    output: pathlib.Path,
    tables: outputs.Tables | None = None,
) -> Iterator[tuple[Job, Exception | None]]:
    """Each job when it is done, with what kept it from that; images are read and written while others are computed.

    Raises OSError where nothing more can be written.
    """
    with ThreadPoolExecutor(_THREADS) as readers, ThreadPoolExecutor(_THREADS) as writers:
        writing: collections.deque[tuple[Job, Future[None]]] = collections.deque()
        read = _ahead(readers, functools.partial(_read, predictor), jobs, _AHEAD)
        for job, found in predictor.stream(read, scored=wanted.scored, shrunk=True):
            if isinstance(found, Exception):
                yield job, found
                continue
            found = enlarge(found, job.size)
            if tables is not None:
                tables.add(job.name, found)
            writing.append((job, writers.submit(_write, job, found, wanted, output)))
            while len(writing) > _AHEAD:
                yield _written(*writing.popleft())
        while writing:
            yield _written(*writing.popleft())


def _ahead(pool: Executor, work: Callable[[Job], Any], jobs: Iterable[Job], most: int) -> Iterator[tuple[Job, Any]]:
    """(job, work(job)) in order, at most so many begun ahead of what is taken; an exception in place of what failed."""
    begun: collections.deque[tuple[Job, Future[Any]]] = collections.deque()
    for job in itertools.chain(jobs, [None] * most):
        if job is not None:
            begun.append((job, pool.submit(work, job)))
        if begun and (job is None or len(begun) > most):
            first, future = begun.popleft()
            try:
                yield first, future.result()
            except _FAILURES as error:
                yield first, error


def _read(predictor: Predictor, job: Job) -> Any:
    """The image as it is segmented; `job` keeps it as it is shown."""
    if predictor.tiles and (size := huge.size_of(job.path))[0] * size[1] > huge.LARGE:
        job.rows = huge.Rows(job.path)
        job.size = size
        return job.rows
    data = images.read_file(job.path)
    if predictor.spec.input_names == ("bands",):
        bands = images.decode_bands(data, str(job.path))
        job.image, job.size = visualize.visible(bands), bands.shape[:2]
        return shrink(bands, 0 if predictor.tiles else predictor.side_of(job.size))
    if images.has_several(data):
        log.info("%s has several pictures: the first is taken", job.path)
    most = 0 if predictor.tiles else predictor.max_side
    job.image, job.size = images.decode_image(data, str(job.path), max_side=most), images.upright_size(data)
    return shrink(job.image, 0 if predictor.tiles else predictor.side_of(job.size))


def _write(job: Job, found: Found, wanted: outputs.Wanted, output: pathlib.Path) -> None:
    if job.rows is not None:
        job.image, job.rows = job.rows.preview, None
    assert job.image is not None
    try:
        outputs.write(found, job.image, job.path, wanted, output, job.name)
    finally:
        job.image = None


def _written(job: Job, future: "Future[None]") -> tuple[Job, Exception | None]:
    try:
        future.result()
    except _FAILURES as error:
        if getattr(error, "errno", None) in _NOWHERE_TO_WRITE:
            raise
        return job, error
    return job, None


if __name__ == "__main__":
    cli.run(main)

"""Masks and overlays of photographs: python -m fcn_jax.predict --checkpoint=RUN --input=PHOTOS --output=DIR"""

import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image

from fcn_jax import cli, progress, visualize
from fcn_jax.data.images import decode_image
from fcn_jax.predictor import Predictor, load

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a step of its checkpoints, or converted weights."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of a run that is taken.")
_INPUT = flags.DEFINE_string("input", None, "An image or a folder of images.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder for NAME.png (the mask) and NAME_overlay.jpg.")
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 1024, "Longer images are segmented at this length and their masks enlarged; 0: never.", lower_bound=0
)

_SCALES = flags.DEFINE_list("scales", "1", "Each image is scored at these sizes, such as 0.75,1,1.25.")
_FLIP = flags.DEFINE_bool("flip", False, "Each image is scored mirrored, too.")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

log = logging.getLogger("fcn_jax.predict")


def find_images(path: pathlib.Path) -> list[pathlib.Path]:
    """The image, or the images of the folder by name.

    Raises:
      FileNotFoundError: there is no such file, or no image in the folder.
      ValueError: two images would write the same mask.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"--input={str(path)!r} is neither a file nor a folder")
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not images:
        raise FileNotFoundError(f"no image in {str(path)!r}: files ending in {', '.join(SUFFIXES)} are taken")
    stems: dict[str, pathlib.Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other is not image:
            raise ValueError(f"{other.name} and {image.name} would both write {image.stem}.png: rename one")
    return images


def segment(predictor: Predictor, image: np.ndarray, max_side: int) -> np.ndarray:
    """The mask uint8 [H, W] of an image, computed at no more than `max_side` pixels a side (0: no limit)."""
    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return predictor(image)
    factor = max_side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    mask = Image.fromarray(predictor(small))
    return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))


def _required(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    if not flag.value:
        raise ValueError(f"--{flag.name} is missing: --checkpoint, --input and --output are needed")
    return pathlib.Path(flag.value).expanduser()


def _scales(values: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise ValueError(f"--scales={','.join(values)}: give numbers such as 0.75,1,1.25") from None


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    checkpoint, source, target = (_required(flag) for flag in (_CHECKPOINT, _INPUT, _OUTPUT))
    images, output = find_images(source), target
    if output.resolve() == images[0].parent.resolve():
        raise ValueError(
            f"--output={str(output)!r} is the folder of the images, whose masks could replace them: name another"
        )
    predictor = load(checkpoint, which=_WHICH.value, scales=_scales(_SCALES.value), flip=_FLIP.value)
    if len(predictor.spec.mean) != 3:
        channels = len(predictor.spec.mean)
        raise ValueError(f"{checkpoint} takes {channels} channels, photographs have 3: call fcn_jax.load on arrays")
    output.mkdir(parents=True, exist_ok=True)
    palette, failed = predictor.spec.palette, 0
    for path in progress.bar(images, "predicting", len(images), "images"):
        try:
            image = decode_image(path.read_bytes(), str(path), upright=True)
        except (ValueError, OSError) as error:
            log.error("%s", error)
            failed += 1
            continue
        mask = segment(predictor, image, _MAX_SIDE.value)
        visualize.save_mask(output / f"{path.stem}.png", mask, palette)
        Image.fromarray(visualize.overlay(image, mask, palette)).save(output / f"{path.stem}_overlay.jpg", quality=95)
    log.info("%d masks and overlays in %s", len(images) - failed, output)
    if failed:
        raise ValueError(f"{failed} of {len(images)} images could not be read; the others are done")


if __name__ == "__main__":
    cli.run(main)

"""Videos: python -m fcn_jax.video --checkpoint=RUN --input=VIDEO --output=OUT.mp4

Each frame is segmented; the result is laid over it. With --remove, objects are taken out, and what is behind them is
filled in. Sound, times and rotation stay. `pip install 'fcn_jax[video]'` installs what it needs.

  python -m fcn_jax.video --checkpoint=runs/mine --input=street.mp4 --output=overlay.mp4
  python -m fcn_jax.video --checkpoint=runs/mine --input=street.mp4 --output=empty.mp4 --remove=car --fill=background
  python -m fcn_jax.video --checkpoint=runs/mine --input=me.mp4 --output=cut.webm --remove=background --fill=transparent
  python -m fcn_jax.video --checkpoint=runs/mine --input=camera --output=seen.mp4 --seconds=30
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from absl import flags

from fcn_jax import cli, extras
from fcn_jax.predictor import Predictor, load
from fcn_jax.run import progress
from fcn_jax.video import motion, process, writer
from fcn_jax.video.reader import Camera, Frame, Reader, open_source

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a step of its checkpoints, converted weights, or a name such as camvid-small."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of a run that is taken.")
_INPUT = flags.DEFINE_string("input", None, "A video file, `camera`, or a camera's device such as /dev/video0.")
_OUTPUT = flags.DEFINE_string("output", None, "The video that is written: .mp4, .mov, .mkv or .webm.")
_SHOW = flags.DEFINE_enum("show", "overlay", ["overlay", "mask"], "What is shown where nothing is removed.")
_CLASSES = flags.DEFINE_list("classes", "", "The classes that are shown, such as person,car; none for all.")
_SIDE = flags.DEFINE_bool("side", False, "Put the original beside the result.")
_REMOVE = flags.DEFINE_list("remove", "", "The classes that are removed, such as person,car.")
_FILL = flags.DEFINE_enum(
    "fill",
    "background",
    list(process.FILLS),
    "What takes their place: what other frames show there (background), what is around (inpaint), blur, --colour,"
    " or nothing (transparent; .mov or .webm).",
)
_COLOUR = flags.DEFINE_list("colour", "128,128,128", "Red, green and blue, 0 to 255, for --fill=colour.")
_GROW = flags.DEFINE_float(
    "grow", 1.0, "How far what is removed is grown, in percent of the diagonal.", lower_bound=0, upper_bound=20
)
_MEMORY = flags.DEFINE_float(
    "memory",
    motion.MEMORY,
    "How much masks keep of the frame before, along the motion; 0: each frame by itself.",
    lower_bound=0,
    upper_bound=0.99,
)
_REFINE = flags.DEFINE_bool("refine", None, "Align masks with contours, slower; default: as the run was evaluated.")
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 512, "Longer frames are segmented at this length; 0: never.", lower_bound=0
)
_SOUND = flags.DEFINE_bool("sound", True, "Keep the sound.")
_SECONDS = flags.DEFINE_float("seconds", 0, "Stop after so many seconds of the video; 0: at its end.", lower_bound=0)

log = logging.getLogger("fcn_jax.video")


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    checkpoint, source, output = (_required(flag) for flag in (_CHECKPOINT, _INPUT, _OUTPUT))
    path = pathlib.Path(output).expanduser()
    source = source if source.startswith("/dev/") else str(pathlib.Path(source).expanduser())
    if _REMOVE.value and (_SHOW.present or _CLASSES.value):
        raise ValueError("--show and --classes are for videos of which nothing is removed: leave them out")
    if path.exists() and pathlib.Path(source).exists() and path.samefile(source):
        raise ValueError(f"--output={output!r} is the video that is read: name another")
    extras.need("av", "video")
    writer.check(path, alpha=bool(_REMOVE.value) and _FILL.value == "transparent")
    with open_source(source) as reader:
        network = load(checkpoint, which=_WHICH.value, max_side=_MAX_SIDE.value, refine=_REFINE.value)
        if network.spec.input_names != ("colour",):
            raise ValueError(f"{checkpoint} takes {'+'.join(network.spec.input_names)}, videos have colour alone")
        count = convert(network, reader, path, _options(network))
    passed = f", {reader.broken} frames passed over" if reader.broken else ""
    log.info("%s: %d frames%s", path, count, passed)


def _required(flag: flags.FlagHolder[str | None]) -> str:
    if not flag.value:
        raise ValueError(f"--{flag.name} is missing: --checkpoint, --input and --output are needed")
    return flag.value


def _options(network: Predictor) -> process.Options:
    names = network.spec.class_names[network.spec.outputs[0][1]]
    unknown = [name for name in (*_REMOVE.value, *_CLASSES.value) if name not in names]
    if unknown:
        raise ValueError(f"the network has no class {unknown[0]!r}: choose from {', '.join(names)}")
    shown = np.zeros(256, bool)
    for index, name in enumerate(names):
        shown[index] = name in _CLASSES.value if _CLASSES.value else index > 0 or name.lower() != "background"
    try:
        colour = tuple(int(value) for value in _COLOUR.value)
    except ValueError:
        colour = ()
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise ValueError(f"--colour={','.join(_COLOUR.value)}: give red, green and blue from 0 to 255, such as 0,255,0")
    return process.Options(
        show=_SHOW.value,
        classes=shown,
        remove=tuple(names.index(name) for name in _REMOVE.value),
        fill=_FILL.value,
        colour=colour,  # type: ignore[arg-type]  # three of them
        grow=_GROW.value / 100,
        memory=_MEMORY.value,
        side=_SIDE.value,
    )


def convert(network: Predictor, reader: Reader | Camera, path: pathlib.Path, options: process.Options) -> int:
    """Writes the whole video, or nothing; how many frames it has. What a camera has shown up to Ctrl-C is whole.

    Raises:
      ValueError: no frame can be decoded, or the format cannot hold the sound.
      OSError: it cannot be written.
    """
    sound = reader.sound if _SOUND.value else None
    if sound is not None:
        writer.check_sound(path, sound)
    with contextlib.ExitStack() as stack:
        out: list[writer.Writer] = []
        waiting: list[object] = []  # sound before the first frame

        def frames() -> Iterator[Frame]:
            """Those of the reader, up to --seconds; the sound goes straight to the writer."""
            start: int | None = None

            def late(seconds: Fraction) -> bool:
                return bool(_SECONDS.value) and float(seconds - (start or 0) * reader.time_base) >= _SECONDS.value

            for event in reader.packets():
                if not isinstance(event, Frame):
                    if sound is not None and not late(event.dts * event.time_base):
                        out[0].packet(event) if out else waiting.append(event)
                    continue
                start = event.time if start is None else start
                if late(event.time * reader.time_base):
                    return
                yield event

        count = 0
        results = process.process(network, frames(), options)
        for frame in progress.bar(results, "segmenting", reader.total or None, "frames"):
            if not out:
                opened = writer.Writer(
                    path,
                    frame.pixels.shape[:2],
                    time_base=reader.time_base,
                    rate=reader.rate,
                    sound=sound,
                    alpha=options.alpha,
                    aspect=reader.aspect,
                )
                out.append(stack.enter_context(opened))
                for packet in waiting:
                    out[0].packet(packet)
            out[0].frame(frame.pixels, frame.time)
            count += 1
        if not count:
            raise ValueError(f"no frame of {reader.source!r} can be decoded: give another file")
    return count


if __name__ == "__main__":
    cli.run(main)

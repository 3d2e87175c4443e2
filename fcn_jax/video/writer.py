"""A video that is written whole or not at all."""

import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from fcn_jax import extras

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES)
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers of colours and of their range
_QUALITY = "18"  # x264's crf: hardly to be told from the original
# By ending: codec, pixels, options. What has transparency first.
_ALPHA = {
    ".mov": ("prores_ks", "yuva444p10le", {"profile": "4444"}),
    ".webm": ("libvpx-vp9", "yuva420p", {"crf": "24", "b": "0", "cpu-used": "5", "row-mt": "1"}),
}
_PLAIN = {
    ".mp4": ("libx264", "yuv420p", {"crf": _QUALITY, "preset": "veryfast"}),
    ".mov": ("libx264", "yuv420p", {"crf": _QUALITY, "preset": "veryfast"}),
    ".mkv": ("libx264", "yuv420p", {"crf": _QUALITY, "preset": "veryfast"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "24", "b": "0", "cpu-used": "5", "row-mt": "1"}),
}

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def check(path: pathlib.Path, *, alpha: bool) -> None:
    """Raises ValueError for an ending whose format is not written, or has no transparency where that is needed."""
    formats = _ALPHA if alpha else _PLAIN
    if path.suffix.lower() not in formats:
        what = "transparent videos end in" if alpha else "videos end in"
        raise ValueError(f"--output={str(path)!r}: {what} {', '.join(formats)}")


def check_sound(path: pathlib.Path, sound: Any) -> None:
    """Raises ValueError if the format of a path does not hold a sound (PyAV's audio stream) as it is.

    By trying: it writes the head of such a file to memory. Else it would show when the first frames are written.
    """
    av = extras.need("av", "video")
    try:
        with av.open(io.BytesIO(), "w", format=_FORMATS[path.suffix.lower()]) as trial:
            trial.add_stream_from_template(sound)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        what = f"{path.suffix} does not hold sound as {sound.codec_context.name} ({error})"
        raise ValueError(f"{what}: give an --output that ends in .mkv, or --nosound") from None


class Writer:
    """A video file that gets its name when it is complete; a context, which leaves nothing behind if it fails.

    Frames have the times that they are given. Odd sides get one more row or column, a copy of the last one, since
    four pixels share their colour in what all players read.
    """

    def __init__(
        self,
        path: pathlib.Path,
        size: tuple[int, int],
        *,
        time_base: Fraction,
        rate: Fraction | None,
        sound: Any = None,
        alpha: bool = False,
        aspect: Fraction | None = None,
    ):
        """Opens a file beside `path`.

        Args:
          size: height and width of the frames.
          time_base: the unit of their times, in seconds.
          rate: frames a second on average.
          sound: an audio stream (PyAV's) whose packets are copied, and which check_sound lets pass.
          alpha: frames are [H, W, 4].
          aspect: width of a pixel by its height, where they are not square.
        """
        self._av = extras.need("av", "video")
        check(path, alpha=alpha)
        self._path, self._alpha = path, alpha
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        codec, pixels, options = (_ALPHA if alpha else _PLAIN)[path.suffix.lower()]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = self._av.open(str(self._partial), "w")
        self._stream = self._container.add_stream(codec, rate=rate or 25, options=dict(options))
        self._stream.height, self._stream.width = (n + n % 2 for n in size)
        self._stream.pix_fmt = pixels
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = time_base
        # Said, and not left to the player's guess by size: else greens of small videos shift when they are enlarged.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if aspect:
            context.sample_aspect_ratio = aspect
        self._sound = self._container.add_stream_from_template(sound) if sound is not None else None

    def frame(self, pixels: np.ndarray, time: int) -> None:
        """Adds a frame uint8 [H, W, 3], or with transparency [H, W, 4], all of one size."""
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels), format="rgba" if self._alpha else "rgb24"
        )
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = time, self._stream.codec_context.time_base
        with self._told():
            self._container.mux(self._stream.encode(frame))

    def packet(self, packet: Any) -> None:
        """Adds a packet of the sound as it is."""
        if self._sound is not None:
            packet.stream = self._sound
            with self._told():
                self._container.mux(packet)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What FFmpeg cannot do, as an error that names the file that was asked for."""
        try:
            yield
        except self._av.error.FFmpegError as error:
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise OSError(error.errno, os.strerror(error.errno), str(self._path)) from None
            reason = str(error).replace(str(self._partial), self._path.name)
            raise ValueError(f"{str(self._path)!r} cannot be written: {reason}") from None

    def _discard(self) -> None:
        with contextlib.suppress(Exception):
            self._container.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with self._told():
                self._container.mux(self._stream.encode(None))
                self._container.close()
            self._partial.replace(self._path)
        except BaseException:
            self._discard()
            raise

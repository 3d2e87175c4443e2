"""Frames of a video file or a camera, upright, with their times."""

import logging
import pathlib
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import cv2
import numpy as np

from fcn_jax import extras

_UNSAID = 2  # FFmpeg's number of colours that a file does not say

log = logging.getLogger("fcn_jax.video")


class Frame(NamedTuple):
    """uint8 RGB [H, W, 3], upright, and its time in units of the reader's time_base."""

    pixels: np.ndarray
    time: int


class Reader:
    """A video that is open for reading; a context.

    Attributes:
      time_base: the unit of times, in seconds.
      rate: frames a second on average, or None.
      total: about how many frames there are; 0 where that is not known, as of a camera.
      sound: the first audio stream (PyAV's), or None.
      broken: how many frames could not be decoded and were passed over.
      aspect: width of a pixel of an upright frame by its height, where they are not square, and else None.
    """

    def __init__(self, source: str):
        """Opens a file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no video, or PyAV is not installed.
        """
        self._av = extras.need("av", "video")
        self.source, self.broken, self._decoding_times = source, 0, False
        if not pathlib.Path(source).is_file():
            raise FileNotFoundError(f"there is no video {source!r}")
        try:
            self._container = self._av.open(source)
        except (self._av.error.FFmpegError, OSError) as error:
            raise ValueError(f"{source!r} is no video that can be read ({_reason(error)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{source!r} has no pictures: give a video")
        self.stream = self._container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.sound = next(iter(self._container.streams.audio), None)
        self.time_base: Fraction = self.stream.time_base
        self.rate: Fraction | None = self.stream.average_rate
        self.total = self._count()
        self.aspect: Fraction | None = None

    def _count(self) -> int:
        if self.stream.frames:
            return int(self.stream.frames)
        seconds = (self._container.duration or 0) / self._av.time_base
        return round(seconds * float(self.rate)) if self.rate else 0

    def packets(self) -> Iterator[Any]:
        """Each Frame, and between them the packets of the sound (PyAV's), in the order of the file.

        A frame that cannot be decoded is told of and passed over; times always rise.
        """
        last: int | None = None
        streams = [self.stream] + ([self.sound] if self.sound is not None else [])
        for packet in self._demuxed(streams):
            if packet.stream is self.sound:
                if packet.dts is not None:
                    yield packet
                continue
            for frame in self._decoded(packet):
                last = self._time(frame, last)
                self.aspect = self.aspect or _aspect(self.stream, frame)
                yield Frame(_upright(frame), last)

    def _time(self, frame: Any, last: int | None) -> int:
        """Of a frame, after that of the one before; AVI has no times of frames that are stored out of order.

        There, and where frames have no times at all, those at which they were to be decoded will do, or the rate.
        """
        if frame.pts is None or (last is not None and frame.pts <= last):
            self._decoding_times = True
        when = frame.dts if self._decoding_times else frame.pts
        if last is None:
            return when if when is not None else 0
        if when is None:
            when = last + (round(1 / (self.rate * self.time_base)) if self.rate else 1)
        return max(int(when), last + 1)

    def _demuxed(self, streams: list[Any]) -> Iterator[Any]:
        """Up to where the file is cut off."""
        try:
            yield from self._container.demux(streams)
        except self._av.error.FFmpegError as error:
            log.warning("%s ends early: %s", self.source, _reason(error))

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            frames = packet.decode()
        except self._av.error.FFmpegError as error:
            self._pass(packet.pts, _reason(error))
            return []
        good = []
        for frame in frames:
            if frame.is_corrupt:
                self._pass(frame.pts, "damaged")
            else:
                good.append(frame)
        return good

    def _pass(self, when: int | None, reason: str) -> None:
        self.broken += 1
        if self.broken <= 10:
            where = f"at {float(when * self.time_base):.2f} s" if when is not None else "without a time"
            log.warning("%s: the frame %s is passed over: %s", self.source, where, reason)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _aspect(stream: Any, frame: Any) -> Fraction | None:
    ratio = stream.sample_aspect_ratio
    if not ratio or ratio == 1:
        return None
    return Fraction(1 / ratio if round(frame.rotation / 90) % 2 else ratio)


class Camera:
    """A camera as a Reader, by OpenCV, which opens them alike on every system; its times are those of the clock.

    The first Ctrl-C ends it, whatever is computed at that moment: what it has shown up to then becomes a whole video.
    """

    time_base = Fraction(1, 1000)
    total = broken = 0
    sound = aspect = None

    def __init__(self, source: str):
        """Opens a camera: `camera` for the first one, or a device such as /dev/video2.

        Raises:
          ValueError: it cannot be opened.
        """
        self.source, self._stopped = source, False
        if source.startswith("/dev/") and not pathlib.Path(source).exists():
            raise ValueError(f"there is no camera {source!r}")
        self._capture = cv2.VideoCapture(0 if source == "camera" else source)
        if not self._capture.isOpened():
            raise ValueError(f"the camera {source!r} cannot be opened: is it there, and may you use it?")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if rate and rate > 0 else None

    def packets(self) -> Iterator[Frame]:
        """Each Frame, until the camera gives no more, or Ctrl-C."""
        began, last = time.monotonic(), -1
        while not self._stopped:
            good, pixels = self._capture.read()
            if not good:
                return
            last = max(last + 1, round(1000 * (time.monotonic() - began)))
            yield Frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), last)

    def _stop(self, number: int, frame: Any) -> None:
        self._stopped = True
        signal.signal(number, self._usual)  # the second one ends at once

    def __enter__(self) -> "Camera":
        self._usual = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._usual)
        self._capture.release()


def open_source(source: str) -> "Reader | Camera":
    """A video file, or a camera: `camera` or /dev/video..."""
    return Camera(source) if source == "camera" or source.startswith("/dev/video") else Reader(source)


def _upright(frame: Any) -> np.ndarray:
    """Its pixels, turned as the file says."""
    # Where the file does not say its colours, players go by the size.
    unsaid = frame.colorspace == _UNSAID and (frame.height >= 720 or frame.width > 1024)
    pixels = frame.reformat(format="rgb24", src_colorspace="ITU709" if unsaid else None).to_ndarray()
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else np.asarray(pixels)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]

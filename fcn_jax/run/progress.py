"""How fast a loop is, and how long it will take."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def bar(items: Iterable[Any], description: str, total: int | None, unit: str) -> Iterable[Any]:
    """The items, with a progress bar and its ETA; where no terminal shows it, a line a minute."""
    interval = 0.2 if sys.stderr.isatty() else 60
    silent = not logging.getLogger(__name__).isEnabledFor(logging.INFO)  # as all processes but the first are
    return tqdm(items, description, total, unit=f" {unit}", leave=False, mininterval=interval, delay=1, disable=silent)


class Clock:
    """Speed and time left of a loop, evaluation not counted."""

    def __init__(self, images_per_step: int, start: int, end: int):
        self._images, self._step, self._end = images_per_step, start, end
        self._since = time.monotonic()

    def tell(self, step: int) -> str:
        """'2.1 steps/s  17 images/s  ETA 0:14:03', from the time since the last call."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        seconds = int((self._end - step) / rate)
        left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return f"{rate:.2f} steps/s  {rate * self._images:.1f} images/s  ETA {left}"

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

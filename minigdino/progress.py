"""Progress of a run over many images: how many are done, seconds each, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from .errors import from_signal_handler

INTERVAL = 30  # seconds between two lines in a log


class Progress:
    """The progress of a run, written to a stream.

    On a terminal, one line is replaced after each image. Elsewhere, such as in a log, a line is written every 30
    seconds, so none for a shorter run.

    Args:
        stream: where it is written.
        total: number of images; None if unknown, as for a video.
        clock: function that returns the time in seconds.
    """

    def __init__(self, stream: TextIO, total: int | None, clock: Callable[[], float] = time.monotonic):
        self._stream, self._total, self._clock = stream, total, clock
        self._is_terminal = stream.isatty()
        self._start = self._last = clock()
        self._done = 0

    def clear(self) -> None:
        """Remove the line from a terminal, so that other text has a line of its own."""
        if self._is_terminal:
            self._write("\r\033[K")

    def step(self) -> None:
        """Count an image, and show the progress."""
        self._done += 1
        now = self._clock()
        if self._is_terminal:
            self._write(f"\r\033[K{self._text(now)}")
        elif now - self._last >= INTERVAL:
            self._last = now
            self._write(f"{self._text(now)}\n")

    def close(self) -> None:
        """End the line on a terminal, which stays there."""
        if self._is_terminal and self._done:
            self._write("\n")

    def _text(self, now):
        each = (now - self._start) / self._done
        if self._total is None:
            return f"{self._done} done, {each:.2f} s each"
        left = duration(each * max(0, self._total - self._done))  # a folder can get more images meanwhile
        return f"{self._done}/{self._total} images, {each:.2f} s each, {left} left"

    def _write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # the terminal was closed, but the run goes on
            if from_signal_handler(error):
                raise


def duration(seconds: float) -> str:
    """Return a duration in words, such as "1 h 40 min".

    Args:
        seconds: the duration, 0 or more.
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""Recognise exceptions that interrupted a call, and say nothing about it."""

from __future__ import annotations

import inspect
import traceback
from types import FrameType


def from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program raised an exception, such as a timeout.

    Python calls a handler with the interrupted frame as an argument. Few other functions have such an argument.

    Args:
        error: a caught exception.
    """
    return any(isinstance(value, FrameType)
               for frame, _ in traceback.walk_tb(error.__traceback__) for value in _arguments(frame))


def _arguments(frame):
    names, more, _, values = inspect.getargvalues(frame)
    return [*(values.get(name) for name in names), *(values.get(more) or ())]

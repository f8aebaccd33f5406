"""Recognise exceptions that interrupted a call, and say nothing about it."""

from __future__ import annotations

import inspect
import signal
import traceback
from types import FrameType


def from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program raised an exception, such as a timeout.

    Python calls a handler with the interrupted frame as an argument. Few other functions have such an argument. A
    function that is a handler now is recognised by its code, too: it may have deleted its arguments.

    Args:
        error: a caught exception.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(type(value) is FrameType for frame in frames for value in _arguments(frame)):
        return True
    handlers = {getattr(getattr(handler, "__func__", handler), "__code__", None)
                for handler in map(signal.getsignal, signal.valid_signals())}
    return any(frame.f_code in handlers for frame in frames)


def _arguments(frame):
    """Values of the arguments. They can have been replaced, by objects of any type."""
    names, more, _, values = inspect.getargvalues(frame)
    others = values.get(more) if more else ()
    return [*(values.get(name) for name in names), *(others if type(others) is tuple else ())]

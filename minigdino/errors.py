"""The exceptions that minigdino raises. A message states what was expected, what was given, and the next step."""

import reprlib
import signal
import traceback


class Error(Exception):
    """Base class of all exceptions of minigdino."""


class CheckpointError(Error, OSError):
    """A model file or directory is missing, corrupted, or does not match its `config.json`."""


class ConfigError(Error, ValueError):
    """A configuration value is unsupported, or inconsistent with the others."""


class ImageError(Error, ValueError):
    """An image cannot be read, or has a format or size that the model cannot use."""


class PromptError(Error, ValueError):
    """A text prompt is empty, too long, or ambiguous."""


class ArgumentError(Error, ValueError):
    """An argument has the wrong type, shape or range, or its file or device cannot be used."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def brief(value) -> str:
    """Shorten a value for an error message.

    Args:
        value: a value read from a file, or an exception raised by another library.

    Returns:
        An abbreviated `repr` of a value, or the printable text of an exception, at most 300 characters.
    """
    if not isinstance(value, BaseException):
        try:
            return _short.repr(value)
        except ValueError:  # an int with more digits than Python converts
            return f"a very large {type(value).__name__}"
    text = "".join(c if c.isprintable() else " " for c in str(value) or type(value).__name__)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program raised an exception, such as a timeout.

    Such an exception says nothing about the file or the library that it interrupted, so it must not be converted.

    Args:
        error: a caught exception.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))

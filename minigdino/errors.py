"""The exceptions of minigdino, and its warning about prompts.

A message states what was expected, what was given, and the next step.
"""

import reprlib
import sys
import warnings

from ._ext.interrupts import from_signal_handler


class Error(Exception):
    """Base class of all exceptions of minigdino.

    A signal handler of the program can raise an exception, such as a timeout, in the middle of a call. It says nothing
    about the file or the library that it interrupted. So where minigdino catches it to raise an Error instead, the
    constructor of the Error raises it again.
    """

    def __init__(self, *args):
        caught = sys.exc_info()[1]
        if caught and _caught_here(caught) and from_signal_handler(caught):
            raise caught
        super().__init__(*args)


def _caught_here(error):
    """Return whether a function of this package caught an exception. Else, it is handled by a caller of minigdino."""
    where = error.__traceback__  # None if the program removed it
    return where is not None and str(where.tb_frame.f_globals.get("__name__")).startswith(f"{__package__}.")


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


class PromptWarning(UserWarning):
    """A prompt is valid, but probably does not name what its author means. Its message names the words."""


def warn_prompt(message: str) -> None:
    """Issue a PromptWarning for the line of the program that called this package.

    Args:
        message: the text of the warning.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PromptWarning, stacklevel=level)


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

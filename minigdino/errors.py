"""Everything minigdino raises on purpose. Each message says what was expected, what came, and the next step."""

import reprlib


class Error(Exception):
    """Base of all errors raised by minigdino."""


class CheckpointError(Error, OSError):
    """A model file or directory is missing, damaged, or not what its config says."""


class ConfigError(Error, ValueError):
    """A configuration asks for something this model family does not have."""


class ImageError(Error, ValueError):
    """An image cannot be read, or is not an image this model can take."""


class PromptError(Error, ValueError):
    """A text prompt holds nothing to look for, too much, or something ambiguous."""


class ArgumentError(Error, ValueError):
    """An argument has the wrong type, shape, or range."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def brief(value) -> str:
    """A value from a file, or a library's complaint about one, as a message may quote it: short and printable."""
    if not isinstance(value, BaseException):
        return _short.repr(value)
    text = "".join(c if c.isprintable() else " " for c in str(value) or type(value).__name__)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"

"""Everything minigdino raises on purpose. Each message says what was expected, what came, and the next step."""


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

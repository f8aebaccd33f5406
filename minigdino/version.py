"""The version of the package, defined only in this file."""

__version__ = "0.1.0.dev0"

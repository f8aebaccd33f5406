"""Standard output and standard error of the command line: printable text, written at once, without a traceback."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import writing
from .errors import ArgumentError, from_signal_handler
from .files import STDOUT


def printable(text: str, keep: str = "") -> str:
    r"""Replace control characters, which a file name could use to change the terminal, by their escapes.

    Args:
        text: any text.
        keep: characters that are not replaced.

    Returns:
        The text, for example with `\x1b` in place of an escape character.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def show(text: str, end: str = "\n") -> None:
    """Print to standard output, at once. A character that its encoding lacks is escaped.

    Args:
        text: printable text.
        end: text after it.

    Raises:
        ArgumentError: if the output cannot be written, for example because the disk is full.
        BrokenPipeError: if the program that reads the output has ended.
    """
    try:
        print(_encodable(text, sys.stdout), end=end, flush=True)
    except OSError as error:
        if from_signal_handler(error):
            raise
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise ArgumentError(f"standard output: cannot write there ({error.strerror}). Write to another place") from None


def complain(text: str) -> None:
    """Print to standard error. If that fails, there is no place for the message, and the run goes on.

    Args:
        text: printable text. A character that the encoding of the stream lacks is escaped.
    """
    try:
        print(_encodable(text, sys.stderr), file=sys.stderr, flush=True)
    except OSError as error:
        if from_signal_handler(error):
            raise
        _discard(sys.stderr)


def _encodable(text, stream):
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard(stream):
    """Send the rest of a stream to the null device: Python writes it at exit, and must not fail again."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def replace_closed_streams() -> None:
    """Open the null device for closed standard streams. Otherwise the next file would take the number of one."""
    for name, access in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, access, encoding="utf-8"))  # noqa: SIM115  for the whole process


def counted(n: int, unit: str) -> str:
    """Return a number with its unit, such as "1 image" or "2 images"."""
    return f"{n} {unit}{'s' * (n != 1)}"


def listed(names: Sequence[str], n: int) -> str:
    """Return names for a message, such as "a.jpg, b.jpg and 7 more".

    Args:
        names: the first names.
        n: number of all names.
    """
    return ", ".join(names) + (f" and {n - len(names)} more" if n > len(names) else "")


def write(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file and name it on standard error, or print its content.

    Args:
        path: the file, as in `writing.replace_file`; "-" for standard output.
        data: the content, or blocks of it; in UTF-8 for standard output.

    Raises:
        ArgumentError: if it cannot be written.
    """
    if path == STDOUT:
        blocks = [data] if isinstance(data, bytes) else data
        for text in codecs.iterdecode(blocks, "utf-8", "surrogateescape"):
            show(text, end="")
    else:
        writing.replace_file(path, data)
        complain(f"wrote {printable(str(path))}")

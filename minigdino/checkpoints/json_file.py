"""Regular files, and the JSON files of a model directory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, brief, from_signal_handler

MAX_BYTES = 2**24  # 20 times a published tokenizer.json; a parsed JSON file can fill 30 times its size in memory


def status(path: str | Path, follow: bool = True) -> os.stat_result | None:
    """Return the status of a file or folder, or None if it cannot be accessed.

    os.path.exists and its relatives also hide the exception of a signal handler, since TimeoutError is an OSError.

    Args:
        path: the file or folder.
        follow: whether to follow a link.

    Returns:
        The status; None if the path is missing, not accessible or invalid.
    """
    try:
        return os.stat(path, follow_symlinks=follow)
    except (OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return None


def is_folder(path: str | Path) -> bool:
    """Return whether a path is that of a folder."""
    return (found := status(path)) is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | Path) -> bool:
    """Return whether a path is that of a regular file."""
    return (found := status(path)) is not None and stat.S_ISREG(found.st_mode)


def absolute(path: str | Path) -> str:
    """Return an absolute path, without links where the folders above can be read."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return os.path.join(os.getcwd(), path)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Pipes and devices, which may have no end, are refused at once.

    Args:
        path: the file.

    Returns:
        The open file.

    Raises:
        OSError: if the file cannot be opened or is not a regular file.
        ValueError: if the path is invalid.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("expected a regular file; got a pipe or a device")
    return file


def _open_at_once(path, flags):
    """Open a file. Without O_NONBLOCK, opening a pipe would wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """Read a regular file of bounded size.

    Args:
        path: the file, UTF-8 encoded.
        limit: largest accepted size, in bytes.

    Returns:
        The text, with the line ends of the file.

    Raises:
        OSError: if the file cannot be read, is not a regular file, or is larger than `limit`.
        ValueError: if it is not UTF-8, or the path is invalid.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"expected at most {limit} bytes; got {size}")
        return file.read(size).decode("utf-8")


def read_json(path: str | Path, limit: int = MAX_BYTES) -> Any:
    """Parse a JSON file.

    Args:
        path: the file, UTF-8 encoded.
        limit: largest accepted size, in bytes.

    Returns:
        The parsed value.

    Raises:
        CheckpointError: if the file is missing, too large, no regular file, or not JSON, or repeats a key in an object.
    """
    try:
        return json.loads(read_text(path, limit), object_pairs_hook=unique)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. A model directory holds config.json and the weights.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({brief(error)}); download it again") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object, as `object_pairs_hook` of `json.loads`.

    Two parsers may choose different values of a repeated key, so a repeated key is refused.

    Args:
        pairs: keys and values, in the order of the file.

    Raises:
        ValueError: if a key occurs twice.
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"an object repeats the key {brief(key)}")
        values[key] = value
    return values

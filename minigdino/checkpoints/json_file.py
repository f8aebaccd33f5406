"""Regular files, and the JSON files of a model directory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, brief

MAX_BYTES = 2**24  # 20 times a published tokenizer.json; a parsed JSON file can fill 30 times its size in memory


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
        CheckpointError: if the file is missing, too large, no regular file, or not JSON.
    """
    try:
        return json.loads(read_text(path, limit))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. A model directory holds config.json and the weights.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({brief(error)}); download it again") from None

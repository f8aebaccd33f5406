"""Read files of JSON Lines that belong together, such as the shards of a run. Their headers must agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checkpoints.json_file import open_regular
from .errors import ArgumentError, brief
from .files import MAX_LINE, differences
from .writing import reason

SHARD = "shard"  # the only value of the header that may differ between files that are merged


class LineFile:
    """A file of JSON Lines: a header, and the complete lines after it. A killed run can leave an incomplete last line.

    Args:
        path: the file.
        expected: what it must be, for error messages: "expected ...".

    Attributes:
        path: the file.
        header: the JSON object of its first line.

    Raises:
        ArgumentError: if the file cannot be read, or its first line is not complete.
    """

    def __init__(self, path: str | Path, expected: str):
        self.path, self._expected = str(path), expected
        try:
            self._file = open_regular(path)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        try:
            self.header: dict[str, Any] = self._first()
        except BaseException:
            self.close()
            raise

    def _first(self):
        for _, values in self._objects():
            return values
        raise ArgumentError(f"{self.path}: {self._expected}; got no complete line. Continue the run, or start it again")

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the place of each line after the header, in bytes, and its JSON object.

        Raises:
            ArgumentError: if a line is no JSON object, or the file cannot be read.
        """
        objects = self._objects()
        next(objects)
        return objects

    def _objects(self):
        offset = 0
        try:
            self._file.seek(0)
            while (line := self._file.readline(MAX_LINE)).endswith(b"\n"):
                yield offset, self._parsed(line, offset)
                offset += len(line)
        except OSError as error:
            raise self._unreadable(error) from None
        if len(line) == MAX_LINE:
            raise self._malformed(line, offset)

    def at(self, offset: int) -> dict[str, Any]:
        """Return the JSON object of the line at a place. Errors as in iteration."""
        try:
            self._file.seek(offset)
            return self._parsed(self._file.readline(MAX_LINE), offset)
        except OSError as error:
            raise self._unreadable(error) from None

    def _parsed(self, line, offset):
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise self._malformed(line, offset) from None
        return values

    def _malformed(self, line, offset):
        return ArgumentError(f"{self.path}: {self._expected}; the line at byte {offset} is no JSON object: "
                             f"{brief(line)}. Remove it, and resume the run")

    def _unreadable(self, error):
        return ArgumentError(f"{self.path}: {self._expected}; it cannot be read ({reason(error)}). Check the path")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def check_headers(first: dict, header: dict, first_path: str | Path, path: str | Path) -> None:
    """Check that the lines of two files may be merged. Only their shards may differ, and what `differences` ignores.

    Args:
        first: header of the first file.
        header: header of another one.
        first_path: the first file, used in error messages.
        path: the other one.

    Raises:
        ArgumentError: if the headers differ.
    """
    ours, theirs = ({name: value for name, value in one.items() if name != SHARD} for one in (first, header))
    if found := differences(ours, theirs):
        old, new = (" and ".join(parts) for parts in zip(*found))
        raise ArgumentError(f"{path}: files that are merged must have the same model and options, {old} as in "
                            f"{first_path}; got {new}. Run this shard again")

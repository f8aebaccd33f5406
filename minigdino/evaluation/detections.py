"""Raw detections of an evaluation: JSON Lines with a header, and a line per image, read image by image.

`files.JsonLines` writes such a file, so that each line is on the disk before the next image begins. N detections.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..checkpoints.json_file import open_regular
from ..errors import ArgumentError, brief
from ..files import MAX_LINE, differences
from ..writing import reason

SHARD = "shard"  # the only value of the header that may differ between files that are merged
FORMAT = "expected a file of raw detections, as `minigdino evaluate` writes it"


def numbers(values) -> list:
    """Convert an array to a list of floats with the shortest decimals that give the same float32.

    Args:
        values: array of any shape.

    Returns:
        A list, nested as the array.
    """
    values = np.asarray(values, np.float32)
    return values.astype(str).astype(np.float64).tolist()


class RawDetections:
    """The lines of one or several files, by the id of their image. Only the places of the lines are kept in memory.

    A file may have several lines for an image, such as an error before a resumed run: the last one counts. An
    incomplete last line, of a killed run, is skipped. Files must have the same header, but for the shard.

    Args:
        paths: the files.

    Attributes:
        header: header of the first file.
        errors: {id of an image: message} of the images whose line is an error.
        double: {id of an image: name of the second file} of images with detections that are in another file, too. Those
            of the first file count.

    Raises:
        ArgumentError: if a file cannot be read, has another format, or was made with another model, other annotations
            or other options than the first one.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [str(path) for path in paths]
        self.header: dict[str, Any] = {}
        self.errors: dict[int, str] = {}
        self.double: dict[int, str] = {}
        self._places: dict[int, tuple[int, int]] = {}  # {id: (index of the file, offset of the line)}
        self._files: list[BinaryIO] = []
        try:
            for number, path in enumerate(self.paths):
                self._files.append(_open(path))
                self._index(number)
        except OSError as error:
            self.close()
            raise _unreadable(path, error) from None
        except BaseException:
            self.close()
            raise

    def _index(self, number):
        path, file, offset = self.paths[number], self._files[number], 0
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            if not line.endswith(b"\n"):
                break
            values = _parsed(line, path, offset)
            if offset == 0:
                self._check(values, path)
            else:
                self._add(values, number, offset)
            offset += len(line)
        if offset == 0:
            raise ArgumentError(f"{path}: {FORMAT}; got no complete line. Run the evaluation again")

    def _check(self, header, path):
        if "minigdino" not in header or "annotations" not in header:
            raise ArgumentError(f"{path}: {FORMAT}; got another one. Give the files of `minigdino evaluate --out`")
        self.header = self.header or header
        ours, theirs = ({name: value for name, value in one.items() if name != SHARD} for one in (self.header, header))
        if found := differences(ours, theirs):
            old, new = (" and ".join(parts) for parts in zip(*found))
            raise ArgumentError(f"{path}: files that are merged must have the same model and options, {old} as in "
                                f"{self.paths[0]}; got {new}. Evaluate this shard again")

    def _add(self, values, number, offset):
        try:
            image = int(values["image"])
        except (LookupError, TypeError, ValueError):
            raise ArgumentError(f"{self.paths[number]}: {FORMAT}; the line at byte {offset} has no image. Remove "
                                "it") from None
        known = self._places.get(image)
        if known and known[0] != number and image not in self.errors:
            self.double[image] = self.paths[number]
            return
        self._places[image] = number, offset
        self.errors.pop(image, None)
        if "error" in values:
            self.errors[image] = str(values["error"])

    def __contains__(self, image: int) -> bool:
        return image in self._places and image not in self.errors

    def __getitem__(self, image: int) -> dict[str, Any]:
        """Return the line of an image, which must be there and no error."""
        number, offset = self._places[image]
        file, path = self._files[number], self.paths[number]
        try:
            file.seek(offset)
            return _parsed(file.readline(MAX_LINE), path, offset)
        except OSError as error:
            raise _unreadable(path, error) from None

    def missing(self, images: Iterable[int]) -> list[int]:
        """Return the ids that have no line."""
        return [image for image in images if image not in self._places]

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> RawDetections:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _open(path):
    try:
        return open_regular(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    return ArgumentError(f"{path}: {FORMAT}; it cannot be read ({reason(error)}). Check the path")


def _parsed(line, path, offset):
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise ArgumentError(f"{path}: {FORMAT}; the line at byte {offset} is no JSON object: {brief(line)}. Remove it, "
                            "and resume the run") from None
    return values

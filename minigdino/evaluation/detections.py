"""Raw detections of an evaluation: JSON Lines with a header, and a line per image, read image by image.

`files.JsonLines` writes such a file, so that each line is on the disk before the next image begins. N detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..line_files import LineFile, check_headers

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
        self._files: list[LineFile] = []
        try:
            for number, path in enumerate(self.paths):
                self._files.append(LineFile(path, FORMAT))
                self._index(number)
        except BaseException:
            self.close()
            raise

    def _index(self, number):
        file = self._files[number]
        if "minigdino" not in file.header or "annotations" not in file.header:
            raise ArgumentError(f"{file.path}: {FORMAT}; got another one. Give the files of `minigdino evaluate --out`")
        self.header = self.header or file.header
        check_headers(self.header, file.header, self.paths[0], file.path)
        for offset, values in file:
            self._add(values, number, offset)

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
        return self._files[number].at(offset)

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

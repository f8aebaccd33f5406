"""The detections of many images in one file: a COCO data set, CSV, or JSON.

A file is collected image by image: the first megabyte in memory, the rest in a temporary file. So memory does not grow
with the number of images, and the finished file can replace an older one in one step.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .checkpoints.json_file import open_regular
from .errors import ArgumentError, Error, brief, from_signal_handler
from .files import check_new_id, image_id, read_categories, record
from .results import COLUMNS, FORMULA, Detections
from .version import __version__
from .writing import ends, reason

BLOCK = 2**20  # bytes of a file that are in memory at a time


class Pieces:
    """Pieces of text with a separator between them, in a temporary file.

    Args:
        separator: text between two pieces.

    Attributes:
        n: number of pieces.
        size: number of bytes of the text.
    """

    def __init__(self, separator: str):
        self.n, self.size, self._separator = 0, 0, separator
        self._file = tempfile.SpooledTemporaryFile(BLOCK)  # noqa: SIM115  deleted by the system

    def __del__(self):
        with contextlib.suppress(OSError):  # the rest of the buffer has no space on the disk
            self._file.close()  # of a run that failed: Python would warn of an open file

    def append(self, text: str) -> None:
        """Append a piece. Bytes of a file name that are not Unicode are kept."""
        piece = (self._separator + text if self.n else text).encode("utf-8", "surrogateescape")
        try:
            self._file.write(piece)
        except OSError as error:
            raise _unwritable(error) from None
        self.n += 1
        self.size += len(piece)

    def line(self, place: int) -> bytes:
        """Return the line that starts at a byte. No piece can be appended afterwards. Errors as in `Coco.add`."""
        try:
            self._file.seek(place)
            return self._file.readline()
        except OSError as error:
            raise _unwritable(error) from None

    def blocks(self) -> Iterator[bytes]:
        """Yield the text, and close the temporary file. Errors as in `Coco.add`."""
        try:
            self._file.seek(0)  # which writes the rest of the buffer
            yield from iter(partial(self._file.read, BLOCK), b"")
            self._file.close()
        except OSError as error:
            raise _unwritable(error) from None


def _unwritable(error):
    place = tempfile.tempdir or "temporary files"  # None if the system has no folder with space for them
    return ArgumentError(f"{place}: results cannot be collected there ({reason(error)}). Set TMPDIR to a folder with "
                         "more space")


def categories(path: str | Path | None, phrases: Sequence[str]) -> dict[str, int]:
    """Return the category ids of a data set.

    Args:
        path: file with the ids, as in `files.read_categories`; None for ids from 1 in the order of the phrases.
        phrases: phrases of the prompt.

    Returns:
        {label: id} with every phrase.

    Raises:
        ArgumentError: if the file lacks a phrase, or as `files.read_categories` does.
    """
    if not path:
        return {phrase: i for i, phrase in enumerate(dict.fromkeys(phrases), start=1)}
    ids = read_categories(path)
    if missing := [phrase for phrase in phrases if phrase not in ids]:
        known = ", ".join(map(brief, itertools.islice(ids, 10)))
        raise ArgumentError(f"{path} must have an id for each phrase; it has no id for {brief(missing[0])}, only for "
                            f"{known}{', ...' if len(ids) > 10 else ''}. Add it")
    return ids


class Coco:
    """A COCO data set of several images. Ids of annotations start at 1, and those of images, too, by default.

    Args:
        categories: {label: category id} with every phrase of the prompt.
        image_ids: {file_name: id} with every image, as in `files.image_id`.
    """

    def __init__(self, categories: Mapping[str, int], image_ids: Mapping[str, int] | None = None):
        self._categories, self._ids = categories, image_ids
        self._names: dict[int, str] = {}  # of the images that have an id in `image_ids`
        self._images, self._annotations = Pieces(", "), Pieces(", ")

    def add(self, image: str, result: Detections | Error, number: int | None = None) -> None:
        """Add the detections of an image. An image with an error is left out.

        Args:
            image: name of the image.
            result: its detections, or the error.
            number: id of the image, without `image_ids`; None for the next one.

        Raises:
            ArgumentError: if the categories lack a label, if `image_ids` lack the image or have one id for two
                images, or if there is no space for temporary files.
        """
        if isinstance(result, Error):
            return
        width, height = result.image_size
        if self._ids is not None:
            number = self._given_id(image, self._ids)
        elif number is None:
            number = self._images.n + 1
        self._images.append(_json({"id": number, "file_name": image, "width": width, "height": height}))
        for row in result.to_coco(number, self._categories):
            area = row["bbox"][2] * row["bbox"][3]
            self._annotations.append(_json({"id": self._annotations.n + 1, **row, "area": area, "iscrowd": 0}))

    def _given_id(self, image, ids):
        number = image_id(image, ids)
        check_new_id(number, image, self._names)
        return number

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the file: {"images", "categories", "annotations", "info"}. Can be called once."""
        digest = _checksum()
        for block in self._blocks():
            digest.update(block)
            yield block
        info = {"description": DESCRIPTION, "version": __version__, "checksum": digest.hexdigest()}
        yield f'], "info": {_json(info)}}}\n'.encode()

    def _blocks(self):
        categories = [{"id": number, "name": label} for label, number in self._categories.items()]
        yield COCO_START
        yield from self._images.blocks()
        yield f'], "categories": {_json(categories)}, "annotations": ['.encode()
        yield from self._annotations.blocks()


DESCRIPTION = "Detections of minigdino"
COCO_START = b'{"images": ['
COCO_END = re.compile(rb'\], "info": \{"description": "%s", "version": "[^"]*", "checksum": "([0-9a-f]+)"\}\}\n\Z'
                      % DESCRIPTION.encode())
MAX_END = 200  # bytes; more than COCO_END matches


class Csv:
    """The detections of several images as CSV: the name of the image, then the columns of `Detections.to_csv`."""

    def __init__(self):
        self._lines = Pieces("")
        self._write([["image", *COLUMNS]])

    def add(self, image: str, result: Detections | Error) -> None:
        """Add one line per detection of an image; none for an error. Arguments and errors as in `Coco.add`."""
        if not isinstance(result, Error):
            name = f"'{image}" if image.startswith(FORMULA) else image  # as `to_csv` treats a label
            _, *rows = csv.reader(io.StringIO(result.to_csv(), newline=""))
            self._write([name, *row] for row in rows)

    def _write(self, rows):
        # the writer ends lines with "\r\n", so that it quotes "\r"
        append: Any = SimpleNamespace(write=lambda line: self._lines.append(line.removesuffix("\r\n") + "\n"))
        csv.writer(append).writerows(rows)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the file, in UTF-8. Can be called once."""
        return self._lines.blocks()


class Json:
    """The JSON of `minigdino detect --json`.

    Args:
        many: whether it is a list of objects, not the object of one image.
    """

    def __init__(self, many: bool):
        self._many, self._objects = many, Pieces(",\n")

    def add(self, image: str, result: Detections | Error) -> None:
        """Add an image, also one with an error. Arguments and errors as in `Coco.add`."""
        text = json.dumps(record(image, result), indent=2, allow_nan=False)
        self._objects.append(textwrap.indent(text, "  ") if self._many else text)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes: the list or the object; "[]" without images. Can be called once."""
        start, end = (b"[\n", b"\n]") if self._many else (b"", b"")
        if not self._objects.n:
            start, end = b"[", b"]"
        yield start
        yield from self._objects.blocks()
        yield end + b"\n"


def is_coco(path: str | Path) -> bool:
    """Return whether `Coco` made a file. A file that another program has changed is not recognised.

    Args:
        path: a file of any kind.

    Returns:
        False for every other file, and for one that cannot be read.
    """
    start, end = ends(path, len(COCO_START), MAX_END)
    found = COCO_END.search(end) if start == COCO_START else None
    if not found:
        return False
    digest = _checksum()
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size - (len(end) - found.start())
            while left > 0 and (block := file.read(min(left, BLOCK))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return False
    return digest.hexdigest() == found[1].decode()


def _checksum():
    """Of all that is before "info": so that a file which another program has changed is recognised."""
    return hashlib.blake2b(digest_size=16)


def _json(value):
    return json.dumps(value, allow_nan=False)

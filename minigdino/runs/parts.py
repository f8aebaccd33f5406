"""The files of a run, read as one list: each image once, in the order of the ids."""

from __future__ import annotations

import glob
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import urls
from ..checkpoints.json_file import is_folder
from ..console import listed
from ..datasets import Pieces
from ..errors import ArgumentError, brief
from ..files import is_result
from ..line_files import SHARD, LineFile, check_headers
from .items import Item, stable_id
from .manifest import is_id
from .shard import Shard
from .table import is_parquet, read_header, read_lines

EXPECTED = "expected results, as `minigdino run`, `merge` and `detect --jsonl` write them"
PATTERNS = (("found.jsonl", "found-*-of-*.jsonl"), ("*.parquet",))  # of files in a folder; the first that match
FIELDS = ("box", "score", "label", "label_id", "phrase")
NAMED = 3  # names in a message; the others are counted


def part_files(parts: Sequence[str | Path]) -> list[str]:
    """List the files of a run.

    Args:
        parts: files, and folders that `minigdino run` wrote to. A folder has JSON Lines, or else Parquet files.

    Returns:
        Different paths, those of a folder sorted.

    Raises:
        ArgumentError: if a folder has no such file.
    """
    found: list[str] = []
    for part in map(str, parts):
        found += sorted(_in_folder(part)) if is_folder(part) else [part]
    return list(dict.fromkeys(found))


def _in_folder(folder):
    for patterns in PATTERNS:
        if names := [name for pattern in patterns for name in glob.glob(pattern, root_dir=folder)]:
            return [os.path.join(folder, name) for name in names]
    raise ArgumentError(f"{folder}: expected a folder of `minigdino run`, with files such as found.jsonl; found none. "
                        "Check the path, or give the files")


def read_headers(paths: Sequence[str]) -> tuple[dict[str, Any], list[Shard | None]]:
    """Read the headers of the files of a run, and check that they agree.

    Args:
        paths: the files.

    Returns:
        The first header, without a shard, and the shard of each file.

    Raises:
        ArgumentError: if a file cannot be read or has no header, or if another one differs from the first.
    """
    first, shards = {}, []
    for path in paths:
        header = read_header(path) if is_parquet(path) else _header(path)
        first = first or header
        check_headers(first, header, paths[0], path)
        shards.append(_shard(header, path))
    return {name: None if name == SHARD else value for name, value in first.items()}, shards


def _header(path):
    with LineFile(path, EXPECTED) as file:
        header = file.header
    if "minigdino" not in header or not isinstance(header.get("text"), list):
        raise ArgumentError(f"{path}: {EXPECTED}; its first line is no header of them. Give another file")
    return header


def _shard(header, path):
    try:
        return None if header.get(SHARD) is None else Shard.parsed(str(header[SHARD]))
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}. Run this part again") from None


def check_shards(shards: Sequence[Shard | None], paths: Sequence[str], all_there: bool = True) -> None:
    """Check that files are the shards of one division into n, or none is a shard.

    Args:
        shards: shards of the files.
        paths: the files.
        all_there: whether all n must be there.

    Raises:
        ArgumentError: if a file is none of these shards, or if one has no file.
    """
    first = shards[0]
    for shard, path in zip(shards, paths):
        if (first and first.of) != (shard and shard.of):
            raise ArgumentError(f"{path}: expected {_shown(first)}, as {paths[0]} has; got {_shown(shard)}. Merge the "
                                "files of one run")
    if not first or not all_there:
        return
    numbers = {shard.number for shard in shards if shard}
    if missing := first.of - len(numbers):
        absent = itertools.islice((n for n in range(1, first.of + 1) if n not in numbers), NAMED)
        raise ArgumentError(f"expected a file of each of the {first.of} shards; {missing} "
                            f"{'has' if missing == 1 else 'have'} none: "
                            f"{listed([f'{n}/{first.of}' for n in absent], missing)}. Run them, or give "
                            "--allow-missing to merge the others")


def _shown(shard):
    return f"a shard of {shard.of}" if shard else "a file that is no shard"


class Parts:
    """The lines of the files of a run: each image once, by ascending id.

    If a file has several lines for an image, such as an error before a resumed run, the last one counts. Another file
    may have the image too, if all but one have an error: detections count before errors.

    The lines are copied to a temporary file. Memory grows by 25 bytes per image, and by 60 while they are sorted.

    Args:
        paths: the files.
        labels: the phrases of the prompt.

    Attributes:
        ids: [N] int64, the ids of the images, ascending.
        failed: number of images with an error.

    Raises:
        ArgumentError: if a file cannot be read, if a line has another format or a value out of range, if several files
            have detections of an image, or if two images have the same id.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[str]):
        self._paths, self._lines = list(paths), Pieces("")
        self._starts: list[int] = []  # of the files, in bytes
        ids, names, places, good = array("q"), array("q"), array("q"), array("b")
        for path in paths:
            self._starts.append(self._lines.size)
            for values in read_lines(path) if is_parquet(path) else _values(path):
                line = _checked(values, labels, path)
                ids.append(line["id"])
                names.append(stable_id(line["image"]))
                places.append(self._lines.size)
                good.append("error" not in line)
                self._lines.append(json.dumps(line) + "\n")
        order = np.argsort(np.asarray(ids), kind="stable")  # lines of an image stay in the order of files and lines
        self.ids, self._names, self._places, self._good = (
            np.asarray(column)[order] for column in (ids, names, places, good))
        del ids, names, places, good, order
        pairs = self._pairs()
        self._drop(pairs[self._file(pairs) == self._file(pairs + 1)])
        self._drop(list(self._superseded()))
        self.failed = len(self.ids) - int(np.count_nonzero(self._good))

    def _pairs(self):
        """Index of each line that is followed by another one of its image."""
        return np.flatnonzero(self.ids[1:] == self.ids[:-1])

    def _file(self, index):
        """Index of the file of lines."""
        return np.searchsorted(self._starts, self._places[index], "right") - 1

    def _drop(self, indices):
        if len(indices):
            self.ids, self._names, self._places, self._good = (
                np.delete(column, indices) for column in (self.ids, self._names, self._places, self._good))

    def _superseded(self) -> Iterator[int]:
        """Yield the index of each line whose image has a line in another file that counts instead."""
        best = 0
        for first in self._pairs().tolist():
            one, other = best if self.ids[best] == self.ids[first] else first, first + 1
            self._check(one, other)
            best = one if self._good[one] else other
            yield one + other - best

    def _check(self, one, other):
        """Check that two lines with the same id, of two files, are of one image, and that one of them is an error."""
        images = [json.loads(self._line(i))["image"] for i in (one, other)]
        files = [self._paths[self._file(i)] for i in (one, other)]
        if images[0] != images[1]:
            raise ArgumentError(f"{files[1]}: expected a different id for each image; {urls.shown(images[1])} has the "
                                f"id {self.ids[one]}, and so has {urls.shown(images[0])} in {files[0]}. Correct the "
                                "manifest, and run both again")
        if self._good[one] and self._good[other]:
            raise ArgumentError(f"{files[1]}: expected the detections of each image in one file; "
                                f"{urls.shown(images[1])} is in {files[0]}, too. Leave one of the two files out")

    def _line(self, index) -> bytes:
        return self._lines.line(int(self._places[index]))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON object of each image."""
        return map(json.loads, self.text())

    def text(self) -> Iterator[bytes]:
        """Yield the line of each image, as JSON."""
        return map(self._line, range(len(self)))

    def first_failed(self) -> list[str]:
        """Return the names of the first images with an error, for a message."""
        return [urls.shown(json.loads(self._line(i))["image"]) for i in np.flatnonzero(self._good == 0)[:NAMED]]

    def has(self, items: Sequence[Item]) -> list[bool]:
        """Return for each of some images whether it is there, with its id and its name."""
        if not len(self):
            return [False] * len(items)
        ids = np.array([item.id for item in items], np.int64)
        places = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        names = np.array([stable_id(item.uri) for item in items], np.int64)
        return ((self.ids[places] == ids) & (self._names[places] == names)).tolist()


def _values(path) -> Iterator[dict]:
    with LineFile(path, EXPECTED) as file:
        for _, values in file:
            yield values


def _checked(line, labels, path):
    """The fields of a line, in their order."""
    image, failed = line.get("image"), "error" in line
    if not (isinstance(image, str) and is_id(line.get("id", 0))
            and (isinstance(line["error"], str) if failed else _is_found(line, labels))):
        raise ArgumentError(f"{path}: {EXPECTED}; the line of {brief(image)} has another format, or a value out of "
                            "range. Remove it and continue the run, or run this part again")
    start = {"image": image, "id": line["id"] if "id" in line else stable_id(image)}
    if failed:
        return {**start, "error": line["error"]}
    return {**start, "width": line["width"], "height": line["height"],
            "detections": [{name: one[name] for name in FIELDS} for one in line["detections"]]}


def _is_found(line, labels):
    return is_result(line) and all(one["label_id"] < len(labels) and labels[one["label_id"]] == one["label"]
                                   for one in line["detections"])

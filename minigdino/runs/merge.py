"""`minigdino merge`: check the files of a run, and write them as one."""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from .. import outputs, urls, writing
from ..checkpoints.json_file import is_folder
from ..console import complain, counted, listed, printable, write
from ..datasets import Coco, Csv, categories, is_coco
from ..errors import ArgumentError, ImageError
from ..extras import require
from ..files import STDOUT, detections, read_image_ids
from .items import read_items
from .parts import NAMED, PATTERNS, Parts, check_shards, part_files, read_headers
from .table import PYARROW, content

FORMATS = ("jsonl", "parquet", "coco", "csv")
BLOCK = 4096  # images of the sources that are compared at a time


def run(arguments: argparse.Namespace) -> int:
    """Run `minigdino merge`.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message.

    Returns:
        The exit status: 1 if an image has an error, else 0.

    Raises:
        Error: if the files do not fit together, if an image is missing, or if an output cannot be written.
        SystemExit: with status 2, if arguments do not fit together.
    """
    paths = part_files(arguments.part)
    written = {name: path for name in FORMATS if (path := getattr(arguments, name))}
    _check_outputs(arguments, paths, written)
    header, shards = read_headers(paths)
    check_shards(shards, paths, not arguments.allow_missing)
    numbers = categories(arguments.categories, header["text"])
    image_ids = read_image_ids(arguments.image_ids) if arguments.image_ids else None
    parts = Parts(paths, header["text"])
    if not arguments.allow_missing:
        _check_sources(parts, arguments.sources, header, arguments.recursive)
    for name, path in written.items():
        _check_replaceable(arguments, name, path)  # again: the first check may be minutes ago
        write(path, _content(name, parts, header, numbers, image_ids))
    complain(f"{counted(len(paths), 'file')}, {counted(len(parts), 'image')}")
    if parts.failed:
        names = listed(parts.first_failed(), parts.failed)
        complain(f"minigdino: {counted(parts.failed, 'image')} with an error: {printable(names)}")
    return 1 if parts.failed else 0


def _check_outputs(arguments, paths, written):
    """Check all arguments that concern outputs, before the files are read."""
    if [*written.values()].count(STDOUT) > 1:
        arguments.error("expected at most one output on standard output; got "
                        + " and ".join(f"--{name} -" for name, path in written.items() if path == STDOUT))
    if "parquet" in written:
        if written["parquet"] == STDOUT:
            raise ArgumentError("--parquet - is not possible: Parquet is not text. Give --parquet a file")
        require("pyarrow", "--parquet", PYARROW)
    outputs.check_ids(arguments)
    outputs.check_paths([*(("a file of the run", path) for path in paths), ("--categories", arguments.categories),
                         ("--image-ids", arguments.image_ids)],
                        [(f"--{name}", path) for name, path in written.items() if path != STDOUT])
    for name, path in written.items():
        if path != STDOUT:
            _check_place(arguments.part, name, path)
            _check_replaceable(arguments, name, path)
            writing.check_writable(path)


def _check_place(parts, name, path):
    """Check that the next merge does not take an output for a file of the run."""
    folder, file = os.path.split(os.path.realpath(path))
    for part in filter(is_folder, parts):
        if os.path.realpath(part) == folder and any(fnmatch.fnmatch(file, pattern) for pattern in
                                                    itertools.chain(*PATTERNS)):
            raise ArgumentError(f"--{name} {path}: the next merge of {part} would take this file for one of the run. "
                                "Choose another folder")


def _check_replaceable(arguments, name, path):
    if not arguments.overwrite and path != STDOUT:
        writing.check_replaceable(path, is_coco if name == "coco" else lambda _: False)


def _check_sources(parts, given, header, recursive):
    """Check that each image of the sources has a line."""
    sources = given or header.get("sources")
    if not sources:
        complain("minigdino: these files do not say of which sources they are. Give --sources, to check that no image "
                 "is missing")
        return
    missing, names, found = 0, [], 0
    try:
        items = read_items(sources, recursive=recursive if given else header.get("recursive", False))
        while block := list(itertools.islice(items, BLOCK)):
            lost = [urls.shown(item.uri) for item, is_known in zip(block, parts.has(block)) if not is_known]
            found += len(block) - len(lost)
            missing += len(lost)
            names += lost[: NAMED - len(names)]
    except (ArgumentError, ImageError) as error:
        raise type(error)(f"{error}. To compare the images with other sources, give --sources; with none, "
                          "--allow-missing") from None
    if missing:
        raise ArgumentError(f"expected a line for each image of the sources; {counted(missing, 'image')} of "
                            f"{missing + found} {'has' if missing == 1 else 'have'} none: {listed(names, missing)}. "
                            "Continue the run, or give --allow-missing to merge the others")
    if found < len(parts):
        complain(f"minigdino: {counted(len(parts) - found, 'image')} not in the sources, but merged with the others")


def _content(name, parts: Parts, header: dict[str, Any], numbers, image_ids) -> Iterable[bytes]:
    """The bytes of an output."""
    if name == "jsonl":
        return itertools.chain([json.dumps(header).encode() + b"\n"], parts.text())
    if name == "parquet":
        return content(parts, header)
    return _data_set(name, parts, numbers, image_ids)


def _data_set(name, parts, numbers, image_ids) -> Iterator[bytes]:
    data_set: Any = Coco(numbers, image_ids) if name == "coco" else Csv()
    for line in parts:
        if "error" not in line:
            number = (line["id"],) if name == "coco" else ()
            data_set.add(line["image"], detections(line, line["image"]), *number)
    return data_set.content()

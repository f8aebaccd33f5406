"""Results of many images as Parquet: one row per image, and the header of the run in the metadata.

A line is the JSON object of one image, as `items.record` returns it. Lines and rows can be converted into each other
without loss. Labels are not stored: they are the phrases of the header, at the label ids.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..checkpoints.json_file import open_regular
from ..errors import ArgumentError, brief
from ..extras import require
from ..writing import ends, reason

VERSION = 1  # of the columns. A later one may add columns at the end; it is 2 if one of these changes
HEADER, SCHEMA = b"minigdino", b"minigdino.schema"  # keys of the metadata
COLUMNS = ("id", "uri", "width", "height", "boxes", "scores", "label_ids", "phrases", "error")
FOUND = COLUMNS[2:-1]  # null for an image with an error
ROWS = 1024  # rows that are Python objects at a time
GROUP = 2**25  # bytes of the rows of a row group
PYARROW = "pyarrow>=16.1"
MAGIC = b"PAR1"  # start and end of a Parquet file
EXPECTED = "expected a Parquet file of results, as `minigdino merge --parquet` writes it"


def schema(header: dict | None = None) -> Any:
    """Return the columns, with their types.

    Args:
        header: header of the run, for the metadata; None for none.

    Returns:
        A `pyarrow.Schema`. Its metadata has the header as JSON, and the version of the columns.

    Raises:
        ArgumentError: if pyarrow is not installed.
    """
    pa = _arrow()
    types = (pa.int64(), pa.string(), pa.int32(), pa.int32(), pa.list_(pa.list_(pa.float32())), pa.list_(pa.float32()),
             pa.list_(pa.int32()), pa.list_(pa.string()), pa.string())
    metadata = {SCHEMA: str(VERSION).encode()}
    if header is not None:
        metadata[HEADER] = json.dumps(header, allow_nan=False).encode()
    return pa.schema(list(zip(COLUMNS, types)), metadata)


def table(lines: Iterable[dict], header: dict | None = None) -> Any:
    """Convert lines to a table.

    Args:
        lines: JSON objects of images.
        header: header of the run. Its "text" has the labels.

    Returns:
        A `pyarrow.Table` with a row per line, in the same order.

    Raises:
        ArgumentError: if a number is out of range, if a text is not valid Unicode, or if pyarrow is not installed.
    """
    pa = _arrow()
    rows = [_row(line) for line in lines]
    try:
        return pa.Table.from_pylist(rows, schema(header))
    except UnicodeEncodeError as error:  # a name of a file that is no text
        name = next(row["uri"] for row in rows if error.object in _texts(row))
        raise ArgumentError(f"{name}: expected names and messages in valid Unicode for Parquet; got {brief(name)}. "
                            "Rename the image, or write JSON Lines") from None
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise ArgumentError(f"expected ids in 64 bits and sizes in 32 bits for Parquet ({brief(error)}). Write JSON "
                            "Lines") from None


def _row(line):
    row = {"id": line["id"], "uri": line["image"], "error": line.get("error")}
    if row["error"] is None:
        found = line["detections"]
        values = ([one[name] for one in found] for name in ("box", "score", "label_id", "phrase"))
        row |= dict(zip(FOUND, (line["width"], line["height"], *values)))
    return row


def _texts(row):
    return row["uri"], row["error"], *row.get("phrases", ())


def lines(table: Any, path: str | Path = "the table") -> Iterator[dict]:
    """Convert a table to lines, as the inverse of `table`.

    Args:
        table: a `pyarrow.Table` or `pyarrow.RecordBatch` with these columns, and others that are ignored.
        path: its file, used in error messages.

    Yields:
        The JSON object of each image.

    Raises:
        ArgumentError: if the columns have another version, if a row is not complete or does not fit the header, or if
            there is no header.
    """
    pa = _arrow()
    text = header_of(table.schema, path)["text"]
    try:
        columns = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        columns = columns.select(COLUMNS).cast(schema())
    except (pa.ArrowException, LookupError) as error:
        raise ArgumentError(f"{path}: {EXPECTED}; got other columns ({brief(error)}). Give a file that was not "
                            "changed") from None
    for batch in columns.to_batches(ROWS):
        for row in batch.to_pylist():
            yield _line(row, text, path)


def _line(row, text, path):
    line = {"image": row["uri"], "id": row["id"]}
    try:
        if row["id"] is None or row["uri"] is None:
            raise TypeError
        if row["error"] is not None:
            return {**line, "error": row["error"]}
        found = zip(row["boxes"], row["scores"], row["label_ids"], row["phrases"], strict=True)
        return {**line, "width": row["width"], "height": row["height"],
                "detections": [{"box": box, "score": score, "label": text[_index(label_id)], "label_id": label_id,
                                "phrase": phrase} for box, score, label_id, phrase in found]}
    except (TypeError, ValueError, LookupError):
        raise ArgumentError(f"{path}: expected an id, a uri, and detections with labels of the header in each row, or "
                            f"an error; the row of {brief(row['uri'])} has other values. Run this part again") from None


def _index(label_id):
    if label_id < 0:  # which Python would count from the end
        raise LookupError
    return label_id


def header_of(columns: Any, path: str | Path = "the table") -> dict:
    """Return the header of the run in the metadata of a schema.

    Args:
        columns: a `pyarrow.Schema`.
        path: its file, used in error messages.

    Raises:
        ArgumentError: if the metadata has none, or if the columns have a later version.
    """
    metadata = columns.metadata or {}
    try:
        if (version := int(metadata[SCHEMA])) > VERSION:
            raise ArgumentError(f"{path}: expected columns of version {VERSION}; got version {version}, of a later "
                                "minigdino. Update minigdino")
        header = json.loads(metadata[HEADER])
        if not isinstance(header, dict) or not isinstance(header.get("text"), list):
            raise TypeError
    except ArgumentError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError):
        raise ArgumentError(f"{path}: {EXPECTED}; its metadata has no header of a run. Give a file that was not "
                            "changed") from None
    return header


def read_header(path: str | Path) -> dict:
    """Return the header of the run in a Parquet file.

    Raises:
        ArgumentError: if the file cannot be read, or is not one of results.
    """
    with _opened(path) as file:
        return header_of(file.schema_arrow, path)


def read_lines(path: str | Path) -> Iterator[dict]:
    """Yield the JSON objects of the images in a Parquet file. Some rows are in memory at a time.

    Raises:
        ArgumentError: if the file cannot be read, or as `lines` does.
    """
    with _opened(path) as file:
        header_of(file.schema_arrow, path)  # also without rows
        for batch in file.iter_batches(ROWS):
            yield from lines(batch, path)


def is_parquet(path: str | Path) -> bool:
    """Return whether the content of a file is Parquet, complete or not."""
    return ends(path, len(MAGIC))[0] == MAGIC


@contextlib.contextmanager
def _opened(path) -> Iterator[Any]:
    parquet, arrow = require("pyarrow.parquet", "Parquet", PYARROW), _arrow()
    try:
        with open_regular(path) as file, parquet.ParquetFile(file) as opened:
            yield opened
    except ArgumentError:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ArgumentError(f"{path}: {EXPECTED}; it cannot be read ({reason(error)}). Check the path, or run this "
                            "part again") from None


def content(lines: Iterable[dict], header: dict) -> Iterator[bytes]:
    """Yield the bytes of a Parquet file, in blocks. A row group is in memory at a time.

    Args:
        lines: JSON objects of images.
        header: header of the run.

    Raises:
        ArgumentError: as `table` does.
    """
    parquet = require("pyarrow.parquet", "Parquet", PYARROW)
    sink = io.BytesIO()
    with parquet.ParquetWriter(sink, schema(header), compression="zstd") as writer:
        for group in _groups(lines, header):
            writer.write_table(group)
            yield _taken(sink)
    yield _taken(sink)


def _groups(lines, header):
    lines, tables, size = iter(lines), [], 0
    while rows := list(itertools.islice(lines, ROWS)):
        tables.append(table(rows, header))
        size += tables[-1].nbytes
        if size >= GROUP:
            yield _arrow().concat_tables(tables)
            tables, size = [], 0
    if tables:
        yield _arrow().concat_tables(tables)


def _taken(sink):
    """The bytes in a buffer, which is then empty. pyarrow counts the bytes of the file itself."""
    block = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return block


def _arrow() -> Any:
    return require("pyarrow", "Parquet", PYARROW)

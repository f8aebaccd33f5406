"""Manifests: lists of images as JSON Lines, CSV or Parquet, with an id and a URI in each row.

They are read in blocks, so that memory does not depend on the number of rows.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from ..errors import ArgumentError, brief
from ..extras import require
from ..files import MAX_LINE
from .remote import has_ending, open_file, reading

JSON_LINES, CSV, PARQUET = (".jsonl", ".ndjson"), (".csv",), (".parquet", ".pq")
GZIP = ".gz"
COLUMNS = ("id", "uri")
BLOCK = 2**20  # bytes of a text file, or
ROWS = 2**16  # rows of a Parquet file, that are in memory at a time
OUTPUT = re.compile(r'{"(minigdino|image)": ')
NUMBER = re.compile("-?[0-9]{1,19}")
MARK = b"\xef\xbb\xbf"  # of UTF-8, which some programs write at the start of a text
EXAMPLE = '{"id": 7, "uri": "a.jpg"} in a line'
PYARROW = "pyarrow>=16.1"


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value can be the id of an image: an int within int64."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_manifest(uri: str) -> bool:
    """Return whether a URI is that of a manifest, by its ending: .jsonl, .ndjson, .csv, also with .gz, or .parquet."""
    texts = (*JSON_LINES, *CSV)
    return has_ending(uri, [*texts, *(ending + GZIP for ending in texts), *PARQUET])


def read(uri: str) -> Iterator[tuple[int, str]]:
    """Read a manifest. Other columns than "id" and "uri" are ignored.

    Args:
        uri: a path or a URL for which `is_manifest` is true.

    Yields:
        The id and the URI of each row. Two rows may have the same id.

    Raises:
        ArgumentError: if the file cannot be read, has no rows, or has a row without a valid id and a valid URI. The
            message names the file and the line or the row.
    """
    rows = _parquet_rows if has_ending(uri, PARQUET) else _text_rows
    with reading(uri, ArgumentError), open_file(uri) as file:
        found = rows(uri, file)
        if (first := next(found, None)) is None:
            raise ArgumentError("expected at least one image; got no rows. Check the file")
        yield from itertools.chain([first], found)


def _text_rows(uri, file):
    parse = _csv_rows if has_ending(uri, [*CSV, *(ending + GZIP for ending in CSV)]) else _json_rows
    return parse(_lines(gzip.GzipFile(fileobj=file) if has_ending(uri, [GZIP]) else file))


def _lines(file) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, with their ends."""
    number, rest = 0, file.read(len(MARK)).removeprefix(MARK)
    while block := file.read(BLOCK):
        lines = (rest + block).splitlines(keepends=True)
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            number += 1
            yield _decoded(line, number)
        if len(rest) > MAX_LINE:
            raise ArgumentError(f"line {number + 1}: expected at most {MAX_LINE} bytes; got more. Check the file")
    if rest:
        yield _decoded(rest, number + 1)


def _decoded(line, number):
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"line {number}: expected text in UTF-8; got {brief(line[error.start : error.end])} at "
                            f"byte {error.start}. Convert the file") from None


def _json_rows(lines):
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
            row = values["id"], values["uri"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ArgumentError(f"line {number}: expected {EXAMPLE}; got {brief(line.strip())}. "
                                f"{_hint(line)}") from None
        yield _checked(*row, "line", number)


def _hint(line):
    """The next step after a line without id or URI."""
    if OUTPUT.match(line):
        return 'This is the output of minigdino: give the manifest of that run, or rename "image" to "uri"'
    return "Correct the line"


def _csv_rows(lines):
    rows = csv.reader(lines, strict=True)
    filled = filter(None, rows)  # not empty lines
    try:
        if not (header := next(filled, None)):
            return
        if [header.count(name) for name in COLUMNS] != [1, 1]:
            raise _no_columns(header, " in the first line, separated by commas")
        at = [header.index(name) for name in COLUMNS]
        for row in filled:
            if len(row) != len(header):
                raise ArgumentError(f"line {rows.line_num}: expected {len(header)} values, as in the first line; got "
                                    f"{len(row)}. Put quotes around a value that contains a comma")
            number, uri = (row[i] for i in at)
            yield _checked(int(number) if NUMBER.fullmatch(number) else number, uri, "line", rows.line_num)
    except csv.Error as error:
        raise ArgumentError(f"line {rows.line_num}: expected CSV; got another format ({error}). Correct the "
                            "line") from None


def _parquet_rows(_, file):
    pa = require("pyarrow", "a Parquet manifest", PYARROW)
    opened = require("pyarrow.parquet", "a Parquet manifest", PYARROW).ParquetFile(file)
    schema, n = opened.schema_arrow, 0
    if [schema.names.count(name) for name in COLUMNS] != [1, 1]:
        raise _no_columns(schema.names, "")
    number, uri = (schema.field(name).type for name in COLUMNS)
    text = uri.value_type if pa.types.is_dictionary(uri) else uri
    if not pa.types.is_integer(number) or str(text) not in ("string", "large_string", "string_view"):
        raise ArgumentError(f'expected "id" of type int64 and "uri" of type string; got {number} and {uri}. Convert '
                            "the columns")
    for batch in opened.iter_batches(ROWS, columns=list(COLUMNS)):
        try:
            ids, uris = (batch.column(name).to_pylist() for name in COLUMNS)
        except UnicodeDecodeError as error:
            raise ArgumentError(f"rows {n + 1} to {n + len(batch)}: expected text in UTF-8; got "
                                f"{brief(error.object)}. Write the file again") from None
        yield from map(_checked, ids, uris, itertools.repeat("row"), itertools.count(n + 1))
        n += len(batch)


def _no_columns(names, where):
    return ArgumentError(f'expected the columns "id" and "uri" once each{where}; got {brief(names)}. Rename the '
                         "columns")


def _checked(number: Any, uri: Any, unit: str, n: int) -> tuple[int, str]:
    """Check the n-th line or row."""
    if not is_id(number):
        raise ArgumentError(f"{unit} {n}: expected an integer as id, within 64 bits; got {brief(number)}. Correct it")
    if type(uri) is not str or not uri or not (uri.isascii() or _is_unicode(uri)):
        raise ArgumentError(f"{unit} {n}: expected a path or a URL as uri; got {brief(uri)}. Correct it")
    return number, uri


def _is_unicode(text):
    """Return whether a text has no half of a surrogate pair, which JSON can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Results as Parquet: lines and rows are converted without loss, and files that do not fit are refused."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigdino import ArgumentError, files
from minigdino.results import Detections
from minigdino.runs import table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

HEADER = {"minigdino": "0.1.0", "model": "shapes", "fingerprint": "af", "text": ["a cat", "猫", 'a "b",\n'],
          "threshold": 0.25, "sources": ["photos/"], "shard": None}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # Unicode
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)  # with -0.0 and subnormal numbers
INT64 = st.integers(-2**63, 2**63 - 1)
INT32 = st.integers(1, 2**31 - 1)


@st.composite
def detections(draw):
    label_id = draw(st.integers(0, 2))
    return {"box": draw(st.lists(FLOATS, min_size=4, max_size=4)), "score": draw(st.floats(0, 1, width=32)),
            "label": HEADER["text"][label_id], "label_id": label_id, "phrase": draw(TEXTS)}


def ordered(**strategies):
    """Objects with their keys in this order, which `st.fixed_dictionaries` changes."""
    return st.tuples(*strategies.values()).map(lambda values: dict(zip(strategies, values)))


GOOD = ordered(image=TEXTS, id=INT64, width=INT32, height=INT32, detections=st.lists(detections(), max_size=3))
LINES = st.lists(GOOD | ordered(image=TEXTS, id=INT64, error=TEXTS), max_size=5)


def parquet(tmp_path_factory, rows, header=HEADER):
    path = tmp_path_factory.mktemp("table") / "found.parquet"
    path.write_bytes(b"".join(table.content(rows, header)))
    return path


def text(lines):
    """Lines as text, in which -0.0 and 0.0, or 1 and 1.0, differ, and so does the order of keys."""
    return [json.dumps(line) for line in lines]


@given(LINES)
def test_lines_survive_the_file_to_the_bit(tmp_path_factory, rows):
    path = parquet(tmp_path_factory, rows)
    assert text(table.read_lines(path)) == text(rows)
    assert table.read_header(path) == HEADER
    assert table.is_parquet(path)


@given(LINES)
def test_lines_survive_the_table_to_the_bit(rows):
    made = table.table(rows, HEADER)
    assert made.schema.equals(table.schema(HEADER), check_metadata=True)
    assert text(table.lines(made)) == text(rows)
    assert [line for batch in made.to_batches() for line in table.lines(batch)] == rows


def test_the_line_of_a_result_survives():
    found = Detections(np.array([[0.1, -0.0, 7.3, 1e-40]], np.float32), np.array([1 / 3], np.float32), ["猫"],
                       np.array([1]), ["猫 a"], (80, 60))
    line = {"image": "a.jpg", "id": 2**63 - 1, **files.record("a.jpg", found)}
    row, = table.lines(table.table([line], HEADER))
    assert text([row]) == text([line])
    again = files.detections(row, "x")
    assert again.boxes.tobytes() == found.boxes.tobytes() and again.scores.tobytes() == found.scores.tobytes()


def test_the_columns_are_those_of_version_1():
    """Programs of users read them: a change needs another version."""
    names = {"id": "int64", "uri": "string", "width": "int32", "height": "int32",
             "boxes": "list<item: list<item: float>>", "scores": "list<item: float>", "label_ids": "list<item: int32>",
             "phrases": "list<item: string>", "error": "string"}
    assert {field.name: str(field.type) for field in table.schema()} == names
    assert table.schema().metadata == {b"minigdino.schema": b"1"}
    assert json.loads(table.schema(HEADER).metadata[b"minigdino"]) == HEADER


ROWS = [{"image": "a.jpg", "id": 1, "width": 8, "height": 6, "detections": [
            {"box": [0.0, 1.0, 2.0, 3.0], "score": 0.5, "label": "猫", "label_id": 1, "phrase": "x"}]},
        {"image": "b.jpg", "id": 2, "width": 8, "height": 6, "detections": []},
        {"image": "c.jpg", "id": 3, "error": "c.jpg: broken"}]


def test_what_is_null():
    """An image without detections has empty lists; one with an error has none."""
    _, empty, broken = table.table(ROWS, HEADER).to_pylist()
    assert empty["boxes"] == empty["phrases"] == [] and empty["error"] is None
    assert [broken[name] for name in table.FOUND] == [None] * 6 and broken["error"] == "c.jpg: broken"


def test_row_groups_are_bounded_in_bytes(monkeypatch):
    """So memory does not grow with the number of images, and the bytes do not depend on how lines arrive."""
    monkeypatch.setattr(table, "ROWS", 4)
    monkeypatch.setattr(table, "GROUP", 1000)
    rows = [{**ROWS[i % 3], "id": i} for i in range(100)]
    blocks = list(table.content(iter(rows), HEADER))
    assert b"".join(blocks) == b"".join(table.content(rows, HEADER))
    with pq.ParquetFile(io.BytesIO(b"".join(blocks))) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        assert {file.metadata.row_group(0).column(i).compression for i in range(9)} == {"ZSTD"}
    assert len(blocks) == len(groups) + 1 > 4
    assert all(group.num_rows % 4 == 0 and group.nbytes < 2000 for group in groups)
    assert [id for group in groups for id in group["id"].to_pylist()] == list(range(100))


@pytest.mark.parametrize(("change", "message"), [
    ({"image": "\udcff.jpg"}, r"expected names and messages in valid Unicode for Parquet; got '\\udcff.jpg'. Rename"),
    ({"error": "\udcff.jpg: broken"}, r"c.jpg: expected names and messages in valid Unicode"),
    ({"id": 2**63}, "expected ids in 64 bits"),
    ({"id": None, "error": None, "width": 2**31, "height": 1, "detections": []}, "sizes in 32 bits"),
])
def test_a_line_that_parquet_cannot_represent_is_refused(change, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        table.table([*ROWS[:2], {**ROWS[2], **change}], HEADER)
    assert caught.value.__suppress_context__


def changed(column, value):
    """A table in which the first row has another value in a column."""
    rows = table.table(ROWS, HEADER).to_pylist()
    rows[0][column] = value
    return pa.Table.from_pylist(rows, table.schema(HEADER))


@pytest.mark.parametrize(("column", "value"), [
    ("label_ids", [3]), ("label_ids", [-1]), ("label_ids", [None]), ("label_ids", []), ("label_ids", None),
    ("scores", [0.5, 0.5]), ("boxes", None), ("phrases", None), ("id", None), ("uri", None)])
def test_a_row_that_is_not_complete_is_refused(column, value):
    with pytest.raises(ArgumentError, match="^x.parquet: expected an id, a uri, .*; the row of .* Run this part again"):
        list(table.lines(changed(column, value), "x.parquet"))


@pytest.mark.parametrize(("metadata", "message"), [
    (None, "its metadata has no header of a run"),
    ({"minigdino": "{}"}, "no header of a run"),
    ({"minigdino.schema": "1"}, "no header of a run"),
    ({"minigdino.schema": "1", "minigdino": "{"}, "no header of a run"),
    ({"minigdino.schema": "1", "minigdino": "[" * 10**5}, "no header of a run"),
    ({"minigdino.schema": "1", "minigdino": "7"}, "no header of a run"),
    ({"minigdino.schema": "one", "minigdino": "{}"}, "no header of a run"),
    ({"minigdino.schema": "2", "minigdino": "{}"}, "columns of version 1; got version 2, .* Update minigdino"),
])
def test_metadata_is_checked(tmp_path, metadata, message):
    made = table.table(ROWS[:0]).replace_schema_metadata(metadata)
    pq.write_table(made, tmp_path / "x.parquet")
    for read in (table.read_header, lambda path: list(table.read_lines(path))):
        with pytest.raises(ArgumentError, match=f"x.parquet: expected .*{message}"):
            read(tmp_path / "x.parquet")


def test_other_columns_are_refused_and_more_are_ignored():
    made = table.table(ROWS, HEADER)
    with pytest.raises(ArgumentError, match="expected a Parquet file of results, .*; got other columns .*error"):
        list(table.lines(made.drop_columns(["error"])))
    with pytest.raises(ArgumentError, match="got other columns"):
        list(table.lines(made.set_column(0, "id", pa.array(["a", "b", "c"]))))
    assert list(table.lines(made.append_column("day", pa.array([1, 2, 3])))) == ROWS


def test_other_arrow_types_of_the_same_values_are_read():
    """Polars writes long strings and lists, DuckDB other names of elements."""
    made = table.table(ROWS, HEADER)
    long = pa.schema([("id", pa.int64()), ("uri", pa.large_string()), ("width", pa.int32()), ("height", pa.int32()),
                      ("boxes", pa.large_list(pa.large_list(pa.float32()))), ("scores", pa.large_list(pa.float32())),
                      ("label_ids", pa.large_list(pa.int32())), ("phrases", pa.large_list(pa.large_string())),
                      ("error", pa.large_string())], made.schema.metadata)
    assert list(table.lines(made.cast(long))) == ROWS


def test_damaged_files_are_refused(tmp_path):
    """A file that was cut anywhere, or has changed bytes in its end, gives an error that names it, or its rows."""
    data = b"".join(table.content(ROWS, HEADER))
    path = tmp_path / "x.parquet"
    for end in range(0, len(data), 41):
        path.write_bytes(data[:end])
        with pytest.raises(ArgumentError, match=r"x.parquet: expected .*; it cannot be read \(.*Check the path"):
            list(table.read_lines(path))
    rng = np.random.default_rng(0)
    for _ in range(100):
        bad = bytearray(data)
        for place in rng.integers(4, len(data), 3):
            bad[place] = rng.integers(256)
        path.write_bytes(bad)
        try:
            list(table.read_lines(path))
        except ArgumentError as error:
            assert "x.parquet: expected" in str(error)


def test_what_is_no_parquet_is_recognised(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    for path in (tmp_path, tmp_path / "void", "/dev/zero", tmp_path / "x.jsonl"):
        assert not table.is_parquet(path)
        with pytest.raises(ArgumentError, match="expected a Parquet file"):
            table.read_header(path)


def test_without_pyarrow_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for use in (table.schema, lambda: table.table([]), lambda: list(table.content([], {}))):
        with pytest.raises(ArgumentError, match="Parquet needs the package pyarrow"):
            use()

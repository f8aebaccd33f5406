"""Manifests: every format gives the rows that were written, and a message names the line of an invalid one."""

import csv
import gzip
import io
import json
import re
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigdino import ArgumentError
from minigdino.runs import manifest

IDS = st.integers(-(2**63), 2**63 - 1)
URIS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(IDS, URIS), min_size=1, max_size=20)
TEXTS = [".jsonl", ".ndjson.gz", ".csv", ".CSV.gz"]


def parquet():
    return pytest.importorskip("pyarrow.parquet", reason="needs the extra run")


def content(rows, ending):
    """A manifest with two columns that are ignored."""
    if ending == ".parquet":
        import pyarrow as pa

        ids, uris = zip(*rows)
        columns = {"caption": ["x"] * len(rows), "uri": pa.array(uris, pa.string()), "id": pa.array(ids, pa.int64())}
        file = io.BytesIO()
        parquet().write_table(pa.table(columns), file, row_group_size=3)
        return file.getvalue()
    if "jsonl" in ending or "ndjson" in ending:
        text = "".join(json.dumps({"width": 3, "uri": uri, "id": number, "caption": "é"}, ensure_ascii=False) + "\n"
                       for number, uri in rows)
    else:
        file = io.StringIO(newline="")
        csv.writer(file).writerows([["caption", "uri", "id"], *(["a, b\n", uri, number] for number, uri in rows)])
        text = file.getvalue()
    data = text.encode()
    return gzip.compress(data) if ending.endswith(".gz") else data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("manifests")


def read(folder, data, ending):
    path = folder / f"list{ending}"
    path.write_bytes(data)
    assert manifest.is_manifest(str(path))
    return list(manifest.read(str(path)))


def reason(folder, data, ending):
    with pytest.raises(ArgumentError) as raised:
        read(folder, data.encode() if isinstance(data, str) else data, ending)
    name, found, message = str(raised.value).partition(f"list{ending}: ")
    assert found and name == f"{folder}/"
    return message


@pytest.mark.parametrize("ending", TEXTS)
@given(rows=ROWS, block=st.integers(1, 50), mark=st.booleans())
@settings(max_examples=40)
def test_a_text_has_the_rows_that_were_written(folder, ending, rows, block, mark):
    data = content(rows, ending)
    if mark and not ending.endswith(".gz"):
        data = manifest.MARK + data
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest, "BLOCK", block)
        assert read(folder, data, ending) == rows
        assert read(folder, data.rstrip() if ending == ".jsonl" else data, ending) == rows


@given(rows=ROWS, block=st.integers(1, 7))
@settings(max_examples=40)
def test_a_parquet_file_has_the_rows_that_were_written(folder, rows, block):
    parquet()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest, "ROWS", block)
        assert read(folder, content(rows, ".parquet"), ".parquet") == rows


@given(data=st.binary(max_size=60) | st.text('{"id": 1, "uri"}\n[]\0', max_size=60).map(str.encode),
       ending=st.sampled_from([*TEXTS, ".parquet"]))
@settings(max_examples=200)
def test_any_content_is_read_or_is_an_error_of_the_file(folder, data, ending):
    if ending == ".parquet":
        parquet()
    try:
        rows = read(folder, data, ending)
    except ArgumentError as error:
        assert str(error).startswith(f"{folder}/list{ending}: ") and str(error).isprintable()
    else:
        assert rows


@given(data=st.data())
@settings(max_examples=100)
def test_a_damaged_parquet_file_is_read_or_is_an_error_of_the_file(folder, data):
    parquet()
    good = bytearray(content([(i, f"{i}.jpg") for i in range(5)], ".parquet"))
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        good[at] ^= data.draw(st.integers(1, 255))
    damaged = bytes(good[: data.draw(st.integers(len(good) // 2, len(good)))])
    try:
        read(folder, damaged, ".parquet")
    except ArgumentError as error:
        assert str(error).startswith(f"{folder}/list.parquet: ")


INVALID = [('{"id": "7", "uri": "a.jpg"}', "expected an integer as id, within 64 bits; got '7'. Correct it"),
           ('{"id": 7.0, "uri": "a.jpg"}', "expected an integer as id, within 64 bits; got 7.0. Correct it"),
           ('{"id": true, "uri": "a.jpg"}', "expected an integer as id, within 64 bits; got True. Correct it"),
           ('{"id": null, "uri": "a.jpg"}', "expected an integer as id, within 64 bits; got None. Correct it"),
           (f'{{"id": {2**63}, "uri": "a"}}', f"expected an integer as id, within 64 bits; got {2**63}. Correct it"),
           ('{"id": 7, "uri": ""}', "expected a path or a URL as uri; got ''. Correct it"),
           ('{"id": 7, "uri": null}', "expected a path or a URL as uri; got None. Correct it"),
           ('{"id": 7, "uri": ["a.jpg"]}', "expected a path or a URL as uri; got ['a.jpg']. Correct it"),
           (r'{"id": 7, "uri": "\ud800"}', r"expected a path or a URL as uri; got '\ud800'. Correct it"),
           *((line, f'expected {{"id": 7, "uri": "a.jpg"}} in a line; got {line!r}. Correct the line')
             for line in ('{"uri": "a.jpg"}', "[7]", '{"id": 7, "uri": "a.jpg"', '"id"', "null"))]


@pytest.mark.parametrize(("line", "message"), INVALID)
@given(before=st.lists(st.sampled_from(['{"id": 1, "uri": "b.jpg"}\n', "\n", "  \r\n"]), max_size=5))
@settings(max_examples=5)
def test_an_invalid_object_is_named_by_its_line(folder, line, message, before):
    assert reason(folder, "".join([*before, line, "\n", '{"id": 1}']), ".jsonl") == f"line {len(before) + 1}: {message}"


@pytest.mark.parametrize("line", ['{"minigdino": "0.1.0", "model": "shapes", "text": ["a cat"]}',
                                  '{"image": "a.jpg", "id": 7, "width": 3, "height": 4, "detections": []}'])
def test_the_output_of_a_run_is_no_manifest(folder, line):
    assert reason(folder, line, ".jsonl").endswith(
        '. This is the output of minigdino: give the manifest of that run, or rename "image" to "uri"')


@pytest.mark.parametrize(("text", "message"), [
    ("id;uri\n1;a.jpg\n", 'expected the columns "id" and "uri" once each in the first line, separated by commas; got '
                          "['id;uri']. Rename the columns"),
    ("id,uri,id\n1,a.jpg,2\n", 'expected the columns "id" and "uri" once each in the first line, separated by commas; '
                               "got ['id', 'uri', 'id']. Rename the columns"),
    ("id,uri\n1,a.jpg\n2,a,b.jpg\n", "line 3: expected 2 values, as in the first line; got 3. Put quotes around a "
                                     "value that contains a comma"),
    ("id,uri\n\n1\n", "line 3: expected 2 values, as in the first line; got 1. Put quotes around a value that "
                      "contains a comma"),
    ('id,uri\n1,"a\nb.jpg"\n1_0,c.jpg\n', "line 4: expected an integer as id, within 64 bits; got '1_0'. Correct it"),
    ("id,uri\n٣,c.jpg\n", "line 2: expected an integer as id, within 64 bits; got '٣'. Correct it"),
    ("id,uri\n,c.jpg\n", "line 2: expected an integer as id, within 64 bits; got ''. Correct it"),
    (f"id,uri\n{2**63},c.jpg\n", f"line 2: expected an integer as id, within 64 bits; got {2**63}. Correct it"),
    ("id,uri\n3,\n", "line 2: expected a path or a URL as uri; got ''. Correct it"),
    ('id,uri\n3,"a"b\n', "line 2: expected CSV; got another format (',' expected after '\"'). Correct the line"),
    ('id,uri\n3,"a\n', "line 2: expected CSV; got another format (unexpected end of data). Correct the line"),
    ("id,uri\n", "expected at least one image; got no rows. Check the file"),
    ("", "expected at least one image; got no rows. Check the file")])
def test_an_invalid_csv_is_named_by_its_line(folder, text, message):
    assert reason(folder, text, ".csv") == message


def test_bytes_that_are_no_text_are_named_by_their_line(folder):
    message = r"line 2: expected text in UTF-8; got b'\xff' at byte 2. Convert the file"
    assert reason(folder, b"id,uri\n1,\xff.jpg\n", ".csv") == message
    message = reason(folder, '{"id": 1, "uri": "a"}\n'.encode("utf-16"), ".jsonl")
    assert message.startswith("line 1: expected text in UTF-8; got ")


def test_a_line_is_not_read_into_memory_without_end(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_LINE", 1000)
    monkeypatch.setattr(manifest, "BLOCK", 100)
    text = '{"id": 1, "uri": "a"}\n'
    message = "line 2: expected at most 1000 bytes; got more. Check the file"
    assert reason(folder, text + "x" * 1200, ".jsonl") == message
    assert len(read(folder, (text * 100).encode(), ".jsonl")) == 100


@pytest.mark.parametrize(("cut", "message"), [
    (-1, r"cannot be read \(EOFError: .*\)\. Check the file and its permissions"),
    (0, "expected at least one image; got no rows. Check the file")])
def test_a_truncated_gzip_file(folder, cut, message):
    assert re.fullmatch(message, reason(folder, content([(1, "a.jpg")], ".csv.gz")[:cut], ".csv.gz"))


def table(**columns):
    import pyarrow as pa

    file = io.BytesIO()
    parquet().write_table(pa.table(columns), file)
    return file.getvalue()


def test_an_invalid_parquet_file_is_named_by_its_row(folder):
    parquet()
    import pyarrow as pa

    uris = pa.array(["a", "b"])
    for columns, message in [
        (dict(id=[1, 2]), 'expected the columns "id" and "uri" once each; got [\'id\']. Rename the columns'),
        (dict(id=[1.0, 2.0], uri=uris), 'expected "id" of type int64 and "uri" of type string; got double and string. '
                                        "Convert the columns"),
        (dict(id=["1", "2"], uri=uris), 'expected "id" of type int64 and "uri" of type string; got string and string. '
                                        "Convert the columns"),
        (dict(id=[1, 2], uri=[b"a", b"b"]), 'expected "id" of type int64 and "uri" of type string; got int64 and '
                                            "binary. Convert the columns"),
        (dict(id=[1, None], uri=uris), "row 2: expected an integer as id, within 64 bits; got None. Correct it"),
        (dict(id=pa.array([1, 2**63], pa.uint64()), uri=uris),
         f"row 2: expected an integer as id, within 64 bits; got {2**63}. Correct it"),
        (dict(id=[1, 2], uri=["a", None]), "row 2: expected a path or a URL as uri; got None. Correct it"),
        (dict(id=[1, 2], uri=["", "b"]), "row 1: expected a path or a URL as uri; got ''. Correct it"),
        (dict(id=pa.array([], pa.int64()), uri=pa.array([], pa.string())),
         "expected at least one image; got no rows. Check the file"),
        (dict(id=[1, 2], uri=pa.array([b"a", b"\xff"]).view(pa.string())),
         r"rows 1 to 2: expected text in UTF-8; got b'\xff'. Write the file again")]:
        assert reason(folder, table(**columns), ".parquet") == message


def test_the_columns_of_a_parquet_file_may_have_related_types(folder):
    parquet()
    import pyarrow as pa

    for kind in (pa.int8(), pa.uint64(), pa.int64()):
        for uris in (pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"]).dictionary_encode()):
            assert read(folder, table(id=pa.array([1, 2], kind), uri=uris), ".parquet") == [(1, "a"), (2, "b")]


def test_a_missing_file_and_a_folder(tmp_path):
    for ending in (".csv", ".parquet"):
        with pytest.raises(ArgumentError, match=rf"void{ending}: no such file\. Check the path$"):
            list(manifest.read(str(tmp_path / f"void{ending}")))
        (tmp_path / f"folder{ending}").mkdir()
        with pytest.raises(ArgumentError, match=r"cannot be read \(.*\)\. Check the file and its permissions$"):
            list(manifest.read(str(tmp_path / f"folder{ending}")))


def test_pyarrow_is_named_if_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    message = 'a Parquet manifest needs the package pyarrow, which is not installed. Run: pip install "pyarrow>=16.1"'
    assert reason(folder, b"", ".parquet") == message


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, ValueError, csv.Error, KeyboardInterrupt])
def test_an_exception_of_a_signal_handler_is_unchanged(folder, kind):
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    (folder / "list.csv").write_bytes(content([(1, "a"), (2, "b")], ".csv"))
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.MonkeyPatch.context() as patched, pytest.raises(kind) as raised:
            patched.setattr(manifest, "_decoded", lambda *_: signal.raise_signal(signal.SIGALRM))
            list(manifest.read(str(folder / "list.csv")))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


@pytest.mark.parametrize(("uri", "expected"), [
    ("a.jsonl", True), ("s3://b/a.NDJSON", True), ("a.csv.gz", True), ("https://h/a.parquet?key=1", True),
    ("a.pq", True), ("a.parquet.gz", False), ("a.csv.zip", False), ("a?b.csv", True), ("a.json", False),
    ("https://h/a.jpg?x=.csv", False), ("csv", False)])
def test_the_ending_decides(uri, expected):
    assert manifest.is_manifest(uri) is expected

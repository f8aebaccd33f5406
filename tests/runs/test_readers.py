"""Results as Parquet, read by pandas, DuckDB and Polars: every value, the header, and the code of the page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from minigdino.results import Detections
from minigdino.runs import table
from minigdino.runs.items import Item, record

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
HEADER = {"minigdino": "0.1.0", "text": ["a cat", 'a "red" dog\'s tail', "猫"], "size": [480, 800]}


def line(number, label_ids):
    n = len(label_ids)
    boxes = (np.random.default_rng(number).normal(size=(n, 4)) * 100).astype(np.float32)  # not short as decimals
    return record(Item(number, f"{number} é.jpg"), Detections(
        boxes, np.linspace(1, 0.3, n, dtype=np.float32), [HEADER["text"][i] for i in label_ids], np.array(label_ids),
        [f"phrase {i}" for i in label_ids], (80, 60)))


LINES = [{"image": "broken.jpg", "id": -(2**63), "error": "broken.jpg: no image"}, line(0, []), line(3, [2, 0, 1]),
         line(2**63 - 1, [1])]


@pytest.fixture(autouse=True)
def found(tmp_path, monkeypatch):
    """The working directory, with results in found.parquet."""
    monkeypatch.chdir(tmp_path)
    Path("found.parquet").write_bytes(b"".join(table.content(LINES, HEADER)))
    Path("none.parquet").write_bytes(b"".join(table.content([], HEADER)))


def rows(lines):
    """What each program must read: a dict of plain values per image."""
    return table.table(lines, HEADER).to_pylist()


def test_duckdb_reads_every_value(needed):
    duckdb = needed("duckdb")
    for name, lines in (("found", LINES), ("none", [])):
        result = duckdb.sql(f"FROM '{name}.parquet'")
        assert [dict(zip(result.columns, row)) for row in result.fetchall()] == rows(lines)
    assert list(map(str, result.types)) == ["BIGINT", "VARCHAR", "INTEGER", "INTEGER", "FLOAT[][]", "FLOAT[]",
                                            "INTEGER[]", "VARCHAR[]", "VARCHAR"]
    (value,), = duckdb.sql("SELECT decode(value) FROM parquet_kv_metadata('found.parquet') "
                           "WHERE decode(key) = 'minigdino'").fetchall()
    assert json.loads(value) == HEADER


def test_polars_reads_every_value(needed):
    pl = needed("polars")
    for name, lines in (("found", LINES), ("none", [])):
        frame = pl.read_parquet(f"{name}.parquet")
        assert frame.to_dicts() == rows(lines)
        assert frame.schema == {"id": pl.Int64, "uri": pl.String, "width": pl.Int32, "height": pl.Int32,
                                "boxes": pl.List(pl.List(pl.Float32)), "scores": pl.List(pl.Float32),
                                "label_ids": pl.List(pl.Int32), "phrases": pl.List(pl.String), "error": pl.String}
    assert json.loads(pl.read_parquet_metadata("found.parquet")["minigdino"]) == HEADER


def test_pandas_reads_every_value(needed):
    pd = needed("pandas")
    for name, lines in (("found", LINES), ("none", [])):
        frame = pd.read_parquet(f"{name}.parquet")
        assert list(frame.columns) == list(table.COLUMNS) and frame["id"].dtype == np.int64
        plain = [{name: _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
        assert plain == rows(lines)


def _plain(value):
    """A value of pandas without arrays, and with None for a missing one."""
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else getattr(value, "item", lambda: value)()


BLOCKS = {re.search(r"import (?:json\nimport )?(\w+)", block)[1]: block
          for block in re.findall(r"```py\n(.*?)```", PAGE.read_text().partition("## Parquet\n")[2], re.DOTALL)}


@pytest.mark.parametrize("package", ["pandas", "duckdb", "polars"])
def test_the_code_of_the_page_gives_a_row_per_detection(package, needed):
    needed(package)
    names = {}
    exec(BLOCKS[package], names)
    found = names["rows"]
    if package == "duckdb":
        found = [{"uri": uri, "box": box, "score": score, "label": label} for _, uri, box, score, _, label in found]
    else:
        found = found.to_dicts() if package == "polars" else found.to_dict("records")
        found = [{"uri": row["uri"], "box": list(row["boxes"]), "score": row["scores"], "label": row["label"]}
                 for row in found]
    assert found == [{"uri": line["image"], **{name: one[name] for name in ("box", "score", "label")}}
                     for line in LINES for one in line.get("detections", ())]

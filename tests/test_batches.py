"""`DetectBatch`: rows are those of `Model.detect`, however the images are split into batches."""

import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from minigdino._ext import cpus
from PIL import Image

import minigdino
from minigdino import ArgumentError, CheckpointError, PromptError
from minigdino.runs.batches import DetectBatch
from minigdino.runs.items import Item
from minigdino.runs.table import lines, schema

TEXT = ["a red star", "a blue ring"]
N = 6  # images, the last of which is none


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(N - 1):
        Image.fromarray(tiny.photo()[:, : 60 + i].copy()).save(folder / f"{i}.png")
    (folder / f"{N - 1}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def detect():
    return DetectBatch(TEXT, model="shapes", threshold=0.1)


@pytest.fixture(scope="module")
def batch(folder):
    return {"id": np.arange(N) * 10 - 20, "uri": np.array([str(folder / f"{i}.png") for i in range(N)])}


@pytest.fixture(scope="module")
def rows(detect, batch):
    return detect(batch)


def test_rows_are_the_detections_of_the_model(rows, batch):
    model = minigdino.load("shapes")
    assert rows.schema.equals(schema(), check_metadata=False)
    assert rows["id"].to_pylist() == batch["id"].tolist() and rows["uri"].to_pylist() == batch["uri"].tolist()
    some = 0
    for row in rows.slice(0, N - 1).to_pylist():
        found = model.detect(row["uri"], TEXT, threshold=0.1)
        assert row["error"] is None and (row["width"], row["height"]) == found.image_size
        np.testing.assert_array_equal(np.array(row["boxes"], np.float32).reshape(-1, 4), found.boxes)
        np.testing.assert_array_equal(np.array(row["scores"], np.float32), found.scores)
        assert row["label_ids"] == found.label_ids.tolist() and row["phrases"] == list(found.phrases)
        some += len(found)
    assert some


def test_an_image_that_cannot_be_read_is_a_row(rows, batch):
    row = rows.slice(N - 1).to_pylist()[0]
    assert row["error"].startswith(f"{batch['uri'][-1]}: ") and row["boxes"] is row["scores"] is row["width"] is None


@given(st.lists(st.integers(0, N - 1), max_size=8), st.integers(1, 4))
@settings(max_examples=10)
def test_batches_do_not_change_rows(detect, batch, rows, chosen, size):
    table = pa.table({"uri": batch["uri"][chosen], "id": batch["id"][chosen], "more": chosen})
    parts = [detect(table.slice(start, size)) for start in range(0, len(chosen), size)]
    assert pa.concat_tables([rows.slice(0, 0), *parts]).equals(pa.concat_tables([rows.slice(0, 0),
                                                                                 *(rows.slice(i, 1) for i in chosen)]))


def test_a_data_frame_has_columns_too(detect, batch, rows):
    frame = {name: SimpleNamespace(tolist=values.tolist) for name, values in batch.items()}  # a Series has this method
    assert detect(frame).equals(rows)


def test_lines_are_the_rows(detect, batch, rows):
    items = [Item(key, uri) for key, uri in zip(batch["id"].tolist(), batch["uri"].tolist())]
    assert detect.lines(items) == list(lines(rows))


def test_the_metadata_has_the_header(detect, rows):
    assert rows.schema.equals(schema(detect.header), check_metadata=True)
    assert detect.header["text"] == TEXT and detect.header["model"] == "shapes"
    assert {name: detect.header.get(name) for name in ("threshold", "text_threshold", "size", "nms", "precision")} == {
        "threshold": 0.1, "text_threshold": 0.25, "size": None, "nms": None, "precision": "highest"}


def test_options_of_numpy_are_plain_in_the_header():
    header = DetectBatch("a star.", model="shapes", threshold=np.float32(0.5), size=(np.int64(64), 96), nms=None,
                         score="mean").header
    assert (header["threshold"], header["size"], header["score"]) == (0.5, (64, 96), "mean") and "nms" not in header
    assert type(header["threshold"]) is float and type(header["size"][0]) is int


def test_a_pickled_one_is_small_and_equal(detect, batch, rows):
    data = pickle.dumps(detect)
    assert len(data) < 1000
    assert pickle.loads(data)(batch).equals(rows, check_metadata=True)


def test_the_model_of_the_environment_is_pickled_by_its_name(monkeypatch):
    monkeypatch.setenv("MINIGDINO_MODEL", "shapes")
    monkeypatch.setenv("MINIGDINO_PRECISION", "high")
    detect = DetectBatch("a star.")
    monkeypatch.delenv("MINIGDINO_MODEL")
    monkeypatch.delenv("MINIGDINO_PRECISION")
    again = pickle.loads(pickle.dumps(detect))
    assert again.header == detect.header and again.header["precision"] == "high"


@pytest.mark.parametrize(("batch", "message"), [
    ({"id": np.arange(2)}, r'must have the columns "id" and "uri"; got \[\'id\'\]. Rename or add a column'),
    (pa.table({"uri": ["a.jpg"]}), r'must have the columns "id" and "uri"; got \[\'uri\'\]'),
    (["a.jpg"], r'must have the columns "id" and "uri"; got \[\]'),
    (pa.table({"id": ["7"], "uri": ["a.jpg"]}), r'"id" must have an int64 in each row; got \'7\' in row 0 .*stable_id'),
    (pa.table({"id": [1, None], "uri": ["a.jpg", "b.jpg"]}), "got None in row 1"),
    (pa.table({"id": pa.array([2**63], pa.uint64()), "uri": ["a.jpg"]}), "must have an int64 in each row; got 922337"),
    (pa.table({"id": [5], "uri": [""]}), "\"uri\" must have a path or a URL in each row; got '' in row 0 .* id is 5"),
    ({"id": np.arange(1), "uri": np.array([b"a.jpg"])}, "got b'a.jpg' in row 0"),
])
def test_a_batch_of_another_format_is_refused(detect, batch, message):
    with pytest.raises(ArgumentError, match=message):
        detect(batch)


@pytest.mark.parametrize(("text", "options", "error"), [
    ("a star.", {"model": "no-such-model"}, CheckpointError),
    ("a star.", {"threshold": 2}, ArgumentError),
    ("a star.", {"threads": 0}, ArgumentError),
    ("a star.", {"device": "tpu"}, ArgumentError),
    ("a star.", {"precision": "low"}, ArgumentError),
    ([], {}, PromptError),
    ([["a star"], ["a ring"]], {}, PromptError),
    ("a star.", {"errors": "raise"}, TypeError),
    ("a star.", {"color": "red"}, TypeError),
])
def test_mistakes_are_found_before_the_first_batch(text, options, error):
    with pytest.raises(error):
        DetectBatch(text, **{"model": "shapes", **options})


@pytest.fixture
def ray(monkeypatch):
    """The package as it is in a process of Ray, and the numbers of threads that are set."""
    context = SimpleNamespace(get_actor_id=lambda: "a1", get_assigned_resources=lambda: context.assigned, assigned={})
    module = SimpleNamespace(is_initialized=lambda: context.connected, get_runtime_context=lambda: context)
    context.connected, context.threads = True, []
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(cpus, "limit", context.threads.append)
    return context


@pytest.mark.parametrize(("assigned", "threads"), [({"CPU": 3.0}, 3), ({"CPU": 0.5}, 1), ({"CPU": 2.5}, 2), ({}, 1)])
def test_an_actor_has_as_many_threads_as_cpus(ray, assigned, threads):
    ray.assigned = assigned
    DetectBatch("a star.", model="shapes")
    assert ray.threads == [threads]


def test_threads_that_are_given_come_first(ray):
    ray.assigned = {"CPU": 3.0}
    again = pickle.loads(pickle.dumps(DetectBatch("a star.", model="shapes", threads=2)))
    assert ray.threads == [2, 2] and again.header["model"] == "shapes"


def test_threads_follow_the_process_that_unpickles(ray):
    ray.assigned = {"CPU": 3.0}
    data = pickle.dumps(DetectBatch("a star.", model="shapes"))
    ray.assigned = {"CPU": 4.0}
    pickle.loads(data)
    assert ray.threads == [3, 4]


@pytest.mark.parametrize(("name", "value"), [("get_actor_id", lambda: None), ("connected", False)])
def test_outside_an_actor_threads_stay_as_they_are(ray, monkeypatch, name, value):
    monkeypatch.setattr(ray, name, value)
    DetectBatch("a star.", model="shapes")
    assert ray.threads == []


def test_an_actor_with_a_gpu_uses_it(ray):
    ray.assigned = {"CPU": 1.0, "GPU": 1.0}
    with pytest.raises(ArgumentError, match="cuda|CuPy|GPU"):  # on a machine without one
        DetectBatch("a star.", model="shapes")
    DetectBatch("a star.", model="shapes", device="cpu")

"""The detections of many images in one file: COCO, CSV and JSON, in memory that does not grow with their number."""

import csv
import gc
import io
import json
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigdino import ArgumentError, ImageError, console, datasets, files, writing
from minigdino.datasets import Coco, Csv, Json, is_coco
from minigdino.results import Detections

LABELS = ["a cat", "remote control", "=1+1", 'a "b", c\r\nd', "猫"]
CATEGORIES = {label: 10 + i for i, label in enumerate(LABELS)}


def detections(label_ids, size=(80, 60)):
    n = len(label_ids)
    boxes = np.arange(4 * n).reshape(n, 4) + np.array([0.1, 0.2, 7.3, 9.4])
    labels = [LABELS[i] for i in label_ids]
    return Detections(boxes.astype(np.float32), np.linspace(1, 0.5, n, dtype=np.float32), labels,
                      np.array(label_ids, np.int64), labels, size)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ["-", "=a.png", "a,b.png", 'a".png', "a\nb.png", "a\r.png", "\udcff.png"])
RUNS = st.lists(st.tuples(NAMES, st.none() | st.lists(st.integers(0, len(LABELS) - 1), max_size=3)), max_size=6)


def collect(data_set, run):
    """The bytes of a data set, and its images: (name, detections or error)."""
    results = [(name, ImageError("broken") if ids is None else detections(ids)) for name, ids in run]
    for pair in results:
        data_set.add(*pair)
    return b"".join(data_set.content()), results


@given(RUNS)
def test_a_coco_file_has_consecutive_ids_and_the_rows_of_to_coco(run):
    data, results = collect(Coco(CATEGORIES), run)
    data = json.loads(data)
    good = [(name, found) for name, found in results if not isinstance(found, ImageError)]
    assert list(data) == ["images", "categories", "annotations", "info"]
    assert data["images"] == [{"id": i, "file_name": name, "width": 80, "height": 60}
                              for i, (name, _) in enumerate(good, start=1)]
    assert data["categories"] == [{"id": number, "name": label} for label, number in CATEGORIES.items()]
    rows = [row for i, (_, found) in enumerate(good, start=1) for row in found.to_coco(i, CATEGORIES)]
    assert data["annotations"] == [{"id": i, **row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                                   for i, row in enumerate(rows, start=1)]


@given(RUNS)
def test_a_csv_file_has_one_line_per_detection(run):
    data, results = collect(Csv(), run)
    text = data.decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["image", "left", "top", "right", "bottom", "score", "label", "label_id", "phrase"]
    want = [(name, d) for name, found in results if not isinstance(found, ImageError) for d in found]
    assert len(rows) == len(want)
    for (image, *values), (name, d) in zip(rows, want):
        assert image.removeprefix("'") == name.removeprefix("'")
        assert not image.startswith(("=", "+", "-", "@"))
        assert [float(v) for v in values[:5]] == [*d.box, d.score]
        assert (values[5].removeprefix("'"), int(values[6])) == (d.label, d.label_id)


@given(RUNS, st.booleans())
def test_json_is_what_json_dumps_writes(run, many):
    run = run if many else run[:1]
    data, results = collect(Json(many), run)
    records = [files.record(*pair) for pair in results]
    want = records[0] if records and not many else records
    assert data == (json.dumps(want, indent=2) + "\n").encode()


@given(RUNS)
def test_only_own_files_are_recognised(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("own")
    for name, data_set in (("coco", Coco(CATEGORIES)), ("csv", Csv()), ("json", Json(True))):
        (folder / name).write_bytes(collect(data_set, run)[0])
    assert [is_coco(folder / name) for name in ("coco", "csv", "json")] == [True, False, False]


def test_a_file_that_another_program_changed_is_not_recognised(tmp_path):
    path, (data, _) = tmp_path / "x", collect(Coco(CATEGORIES), [("a.png", [0, 1])])
    changed = json.loads(data)
    del changed["info"]
    for other in (json.dumps(json.loads(data), indent=1).encode(), data + b"\n", b" " + data, data[:-1], b"",
                  data.replace(b"Detections of", b"Corrected detections of"), json.dumps(changed).encode() + b"\n",
                  data.replace(b'"iscrowd": 0', b'"iscrowd": 1', 1), data.replace(b"a.png", b"b.png")):
        assert other != data
        path.write_bytes(other)
        assert not is_coco(path)
    path.write_bytes(data)
    assert is_coco(path)
    for path in (tmp_path, tmp_path / "void", "\0", "/dev/zero"):
        assert not is_coco(path)


@pytest.mark.parametrize("make", [lambda: Coco(CATEGORIES), Csv, lambda: Json(True)])
def test_memory_does_not_grow_with_the_number_of_images(make, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "BLOCK", 2**14)
    found = detections([0, 1, 2] * 10)

    def peak(n):
        tracemalloc.start()
        data_set = make()
        for i in range(n):
            data_set.add(f"photos/{i:06}.png", found)
        writing.replace_file(tmp_path / "x", data_set.content())
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used, (tmp_path / "x").stat().st_size

    (small, size), (large, larger_size) = peak(20), peak(80)
    assert larger_size > 3.8 * size > 5 * datasets.BLOCK
    assert large < 1.5 * small  # for four times as many images


def test_a_full_folder_for_temporary_files_is_named(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.tempfile.SpooledTemporaryFile, "write", fail)
    with pytest.raises(ArgumentError, match="results cannot be collected there .*No space left.*Set TMPDIR to"):
        Csv()


@pytest.mark.parametrize("path", ["x.json", "-"])
def test_a_folder_for_temporary_files_that_is_full_at_the_end_is_named(path, tmp_path, monkeypatch):
    """A buffer holds the last pieces until the file is read."""
    resource = pytest.importorskip("resource", reason="limits the size of files")
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(datasets, "BLOCK", 100)
    monkeypatch.chdir(tmp_path)
    data_set = Json(True)
    data_set.add("a.png", detections([0, 1, 2]))  # creates the file
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        data_set.add("b.png", detections([0]))
        with pytest.raises(ArgumentError, match="^[^:]*: results cannot be collected there .*too large.*Set TMPDIR to"):
            console.write(path, data_set.content())
        del data_set
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not unraisable
    assert not list(tmp_path.iterdir())


def test_no_folder_for_temporary_files_gives_a_message(monkeypatch):
    """`tempfile.gettempdir` writes a file to find a folder with space."""
    def fail():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(datasets, "BLOCK", 10)
    monkeypatch.setattr(tempfile, "gettempdir", fail)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ArgumentError, match="temporary files: results cannot be collected there .No usable temporary"):
        Csv()


def test_a_label_without_a_category_is_an_error():
    with pytest.raises(ArgumentError, match="no id for 'remote control'"):
        Coco({"a cat": 1}).add("a.png", detections([0, 1]))


def test_image_ids_come_from_a_data_set(tmp_path):
    path = tmp_path / "truth.json"
    truth = {"images": [{"file_name": "val/a.jpg", "id": 139}, {"file_name": "a.jpg", "id": 7}], "categories": []}
    path.write_text(json.dumps(truth))
    ids = files.read_image_ids(path)
    assert ids == {"val/a.jpg": 139, "a.jpg": 7}
    names = {"a.jpg": 7, "./a.jpg": 7, "other/a.jpg": 7, "val/a.jpg": 139, "/data/val/a.jpg": 139}
    assert {name: files.image_id(name, ids) for name in names} == names
    with pytest.raises(ArgumentError, match="b.jpg: expected a name with an id, such as 'val/a.jpg', 'a.jpg'"):
        files.image_id("b.jpg", ids)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"images": 3}', '{"images": [{"id": 1}]}', "nothing",
                                  '{"images": [{"file_name": "a", "id": true}]}',
                                  '{"images": [{"file_name": 1, "id": 1}]}',
                                  '{"images": [{"file_name": "a", "id": 1}, {"file_name": "b", "id": 1}]}',
                                  '{"images": [{"file_name": "a", "id": 1}, {"file_name": "a", "id": 2}]}'])
def test_image_ids_of_another_format_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ArgumentError, match=r"x\.json: .*expected"):
        files.read_image_ids(tmp_path / "x.json")


def test_a_coco_data_set_has_the_given_image_ids():
    result = Detections(np.float32([[1, 2, 3, 4]]), np.float32([0.5]), ["a cat"], np.array([0]), ["cat"], (9, 9))
    data_set = Coco({"a cat": 3}, {"a.jpg": 139, "b.jpg": 7})
    for name in ("x/b.jpg", "x/a.jpg"):
        data_set.add(name, result)
    with pytest.raises(ArgumentError, match="different id for each image; x/a.jpg has the id 139"):
        data_set.add("y/a.jpg", result)
    content = json.loads(b"".join(data_set.content()))
    assert [image["id"] for image in content["images"]] == [7, 139]
    assert [row["image_id"] for row in content["annotations"]] == [7, 139]

"""`minigdino merge`: the result does not depend on how a run was split, and files that do not fit are refused."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigdino import ArgumentError, ImageError, cli, datasets, files
from minigdino.results import Detections
from minigdino.runs import table
from minigdino.runs.items import Item, record, stable_id
from minigdino.runs.parts import Parts, part_files

pq = pytest.importorskip("pyarrow.parquet")

TEXT = ["a cat", "猫"]
HEADER = {"minigdino": "0.1.0", "model": "shapes", "fingerprint": "af", "text": TEXT, "tokens": [101, 102],
          "threshold": 0.25, "text_threshold": 0.25, "size": None, "precision": "highest"}
FORMATS = ("jsonl", "parquet", "coco", "csv")


def line(number, n=1, name=None, error=None):
    """The line of an image with n detections, or an error."""
    uri = name or f"{number}.jpg"
    if error:
        return {"image": uri, "id": number, "error": error}
    boxes = (np.arange(4 * n).reshape(n, 4) + number % 7 + 0.1).astype(np.float32)
    label_ids = np.arange(n) % 2
    return record(Item(number, uri), Detections(boxes, np.linspace(1, 0.5, n, dtype=np.float32),
                                                [TEXT[i] for i in label_ids], label_ids, ["x"] * n, (80, 60)))


def write(path, lines, shard=None, rest="", **header):
    """Write a file of a run: JSON Lines, or Parquet by its name."""
    head = {**HEADER, "sources": ["list.jsonl"], "recursive": False, "shard": shard, **header}
    if path.suffix == ".parquet":
        path.write_bytes(b"".join(table.content(lines, head)))
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in [head, *lines]) + rest)
    return path


def manifest(ids):
    with open("list.jsonl", "w") as file:
        file.writelines(json.dumps({"id": i, "uri": f"{i}.jpg"}) + "\n" for i in ids)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # which takes most of the time of a small file
    return tmp_path


def merge(*arguments):
    return cli.main(["merge", *map(str, arguments)])


def printed(capsys):
    return capsys.readouterr().err


# The result.


@st.composite
def runs(draw):
    """The lines of a run, by id; and the same as files: pairs (lines, whether it is Parquet)."""
    ids = draw(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=8, unique=True))
    lines = {i: line(i, draw(st.integers(0, 3)), error=draw(st.sampled_from([None, None, "broken"]))) for i in ids}
    n = draw(st.integers(1, 3))
    parts = [[] for _ in range(n)]
    for i in draw(st.permutations(ids)):
        home = draw(st.integers(0, n - 1))
        if draw(st.booleans()):  # an error before, in this file or in another one
            other = draw(st.integers(0, n - 1)) if "error" not in lines[i] else home
            parts[other].append(line(i, error="an earlier error"))
        parts[home].append(lines[i])
    return lines, [(part, draw(st.booleans())) for part in parts]


@given(runs())
@settings(max_examples=30)
def test_the_result_does_not_depend_on_the_split(tmp_path_factory, run):
    lines, parts = run
    folder = tmp_path_factory.mktemp("merge")
    whole = write(folder / "found.jsonl", lines.values())
    names = [write(folder / (f"{i}.parquet" if is_parquet else f"{i}.jsonl"), part, f"{i}/{len(parts)}",
                   "" if is_parquet else '{"image": "cut') for i, (part, is_parquet) in enumerate(parts, start=1)]
    results = []
    for start, sources in (("a", [whole]), ("b", names), ("c", [folder / "a.jsonl"]), ("d", [folder / "b.parquet"])):
        outputs = {name: folder / f"{start}.{name}" for name in FORMATS}
        options = itertools.chain(*((f"--{name}", path) for name, path in outputs.items()))
        failed = any("error" in one for one in lines.values())
        assert merge(*sources, "--allow-missing", *options) == failed
        results.append([path.read_bytes() for path in outputs.values()])
    assert results[0] == results[1] == results[2] == results[3]
    header, *rest = map(json.loads, results[0][0].splitlines())
    assert header == {**HEADER, "sources": ["list.jsonl"], "recursive": False, "shard": None}
    assert rest == [lines[i] for i in sorted(lines)]
    assert list(table.read_lines(folder / "a.parquet")) == rest


def test_the_outputs_are_those_of_detect():
    """COCO and CSV are what `detect` collects from the same results. The ids of the images are those of the run."""
    lines = [line(7, 2), line(9, 0), line(40, 3), line(3, error="broken")]
    assert merge(write(Path("found.jsonl"), lines), "--allow-missing", "--coco", "a.json", "--csv", "a.csv") == 1
    coco, csv = datasets.Coco({"a cat": 1, "猫": 2}, {"7.jpg": 7, "9.jpg": 9, "40.jpg": 40}), datasets.Csv()
    for one in lines[:3]:
        for data_set in (coco, csv):
            data_set.add(one["image"], files.detections(one, "x"))
    assert Path("a.json").read_bytes() == b"".join(coco.content())
    assert Path("a.csv").read_bytes() == b"".join(csv.content())


def test_ids_of_categories_and_images_are_those_of_files():
    Path("c.json").write_text(json.dumps({"猫": 5, "a cat": 6}))
    Path("i.json").write_text(json.dumps({"images": [{"file_name": f"{i}.jpg", "id": i * 10} for i in (7, 8)]}))
    path = write(Path("found.jsonl"), [line(7, 2), line(8, 1)])
    assert merge(path, "--allow-missing", "--coco", "a.json", "--categories", "c.json", "--image-ids", "i.json") == 0
    data = json.loads(Path("a.json").read_text())
    assert [image["id"] for image in data["images"]] == [70, 80]
    assert [(row["image_id"], row["category_id"]) for row in data["annotations"]] == [(70, 6), (70, 5), (80, 6)]


def test_lines_of_detect_get_an_id():
    """It depends on the name alone, so that two files of `detect` have different ones."""
    for name in ("a", "b"):
        lines = [files.record(f"{name}{i}.jpg", ImageError("broken")) for i in range(3)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [HEADER, *lines]))
    assert merge("b.jsonl", "a.jsonl", "--jsonl", "all.jsonl") == 1
    header, *lines = map(json.loads, Path("all.jsonl").read_text().splitlines())
    assert header == HEADER
    names = [f"{name}{i}.jpg" for name in "ab" for i in range(3)]
    assert [(one["id"], one["image"]) for one in lines] == sorted((stable_id(name), name) for name in names)


def test_lines_are_printed(capsys):
    path = write(Path("found.jsonl"), [line(2), line(1)])
    assert merge(path, "--allow-missing", "--jsonl", "-") == 0
    out, err = capsys.readouterr()
    assert [json.loads(one).get("id") for one in out.splitlines()] == [None, 1, 2]
    assert err == "1 file, 2 images\n"


def test_names_that_are_no_text_stay_as_they_are(capsys):
    path = write(Path("found.jsonl"), [line(1, name="\udcff.jpg")])
    assert merge(path, "--allow-missing", "--jsonl", "a.jsonl", "--csv", "a.csv") == 0
    assert json.loads(Path("a.jsonl").read_text().splitlines()[1])["image"] == "\udcff.jpg"
    assert merge(path, "--allow-missing", "--parquet", "a.parquet") == 1
    assert "valid Unicode for Parquet" in printed(capsys) and not Path("a.parquet").exists()


def test_memory_is_that_of_a_few_numbers_per_image(monkeypatch):
    monkeypatch.setattr(datasets, "BLOCK", 2**14)

    def peak(n):
        path = write(Path("found.jsonl"), (line(i) for i in range(n, 0, -1)))
        tracemalloc.start()
        parts = Parts([str(path)], TEXT)
        assert sum(1 for _ in parts) == len(parts) == n
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = 500, 2500
    assert peak(many) - peak(few) < 60 * (many - few)  # a line alone has 170 bytes


@pytest.mark.once
def test_runs_that_were_split_merge_to_the_same_bytes(capsys):
    """Processes, shards and `detect` give the same detections, and so the same files."""
    tiny.model().save("model")
    Path("images").mkdir()
    for i in range(5):
        Image.fromarray(tiny.photo(60, 80, seed=i)).save(f"images/{i}.png")
    Path("images/bad.png").touch()
    words = ["images", "a cat. a dog.", "--model", "model", "--threads", "1"]
    assert cli.main(["run", *words, "--out", "whole"]) == 1
    assert cli.main(["run", *words, "--out", "shards", "--shard", "1/2", "--workers", "2"]) + cli.main(
        ["run", *words, "--out", "shards", "--shard", "2/2"]) == 1
    assert cli.main(["detect", *words, "--jsonl", "detect.jsonl"]) == 1
    for source in ("whole", "shards", "detect.jsonl"):
        outputs = itertools.chain(*((f"--{name}", f"{source}.{name}") for name in FORMATS))
        assert merge(source, "--sources", "images", *outputs) == 1
    for name in FORMATS:
        assert Path(f"whole.{name}").read_bytes() == Path(f"shards.{name}").read_bytes()
        if name in ("coco", "csv"):
            assert Path(f"whole.{name}").read_bytes() == Path(f"detect.jsonl.{name}").read_bytes()
    assert len(json.loads(Path("whole.coco").read_text())["annotations"]) > 5
    assert list(table.read_lines("whole.parquet")) == list(table.read_lines("detect.jsonl.parquet"))
    assert merge("whole") == merge("shards") == 1 and "1 image with an error: images/bad.png" in printed(capsys)


# Which files are read.


def test_a_folder_has_lines_or_else_parquet(tmp_path):
    for name in ("found-2-of-2.jsonl", "found-1-of-2.jsonl", "other.jsonl", "x.parquet", ".found.jsonl"):
        (tmp_path / name).touch()
    assert part_files([tmp_path]) == [str(tmp_path / f"found-{i}-of-2.jsonl") for i in (1, 2)]
    (tmp_path / "ray").mkdir()
    for name in ("b.parquet", "a.parquet", "_SUCCESS"):
        (tmp_path / "ray" / name).touch()
    assert part_files(["z", tmp_path / "ray", "z"]) == ["z", *(str(tmp_path / "ray" / f"{i}.parquet") for i in "ab")]


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert merge(tmp_path) == 1
    assert "expected a folder of `minigdino run`, with files such as found.jsonl; found none" in printed(capsys)


# Images that are missing, or twice.


def shards(*parts):
    return [write(Path(f"found-{i}-of-{len(parts)}.jsonl"), part, f"{i}/{len(parts)}")
            for i, part in enumerate(parts, start=1)]


def test_a_complete_run_is_confirmed_without_an_output(capsys):
    manifest([3, 1, 2])
    shards([line(1), line(3)], [line(2)])
    assert merge(".") == 0
    assert printed(capsys) == "2 files, 3 images\n"


def test_missing_images_are_named(capsys):
    manifest(range(10))
    shards([line(1), line(3)], [line(2, error="broken"), line(2, error="again")])
    assert merge(".", "--jsonl", "all.jsonl") == 1
    assert ("expected a line for each image of the sources; 7 images of 10 have none: 0.jpg, 4.jpg, 5.jpg and 4 more. "
            "Continue the run, or give --allow-missing to merge the others") in printed(capsys)
    assert not Path("all.jsonl").exists()
    assert merge(".", "--jsonl", "all.jsonl", "--allow-missing") == 1
    assert printed(capsys) == "wrote all.jsonl\n2 files, 3 images\nminigdino: 1 image with an error: 2.jpg\n"


def test_a_line_of_another_image_with_the_id_is_not_that_of_the_source(capsys):
    manifest([1, 2])
    shards([line(1, name="other.jpg")], [line(2)])
    assert merge(".") == 1
    assert "1 image of 2 has none: 1.jpg" in printed(capsys)


def test_other_sources_can_be_given(tmp_path, capsys):
    shards([line(1)], [line(2)])
    assert merge(".") == 1
    assert "list.jsonl: " in (message := printed(capsys)) and "give --sources; with none, --allow-missing" in message
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/deep/b.jpg"):
        Path(name).touch()
    lines = [line(stable_id(name), name=name) for name in ("photos/a.jpg", "photos/deep/b.jpg")]
    folder = write(Path("folder.jsonl"), lines, sources=["photos"], recursive=True)
    assert merge(folder) == merge(folder, "--sources", "photos", "--recursive") == 0
    assert printed(capsys) == "1 file, 2 images\n" * 2
    assert merge(folder, "--sources", "photos") == 0
    assert printed(capsys) == "minigdino: 1 image not in the sources, but merged with the others\n1 file, 2 images\n"


def test_files_of_detect_do_not_say_of_which_sources_they_are(capsys):
    Path("a.jsonl").write_text(json.dumps(HEADER) + "\n" + json.dumps(line(1)) + "\n")
    assert merge("a.jsonl") == 0
    assert "Give --sources, to check that no image is missing\n1 file, 1 image\n" in printed(capsys)


def test_a_run_without_an_image_is_merged():
    manifest([1])
    write(Path("found.jsonl"), [])
    assert merge("found.jsonl") == 1
    options = itertools.chain(*((f"--{name}", f"a.{name}") for name in FORMATS))
    assert merge("found.jsonl", "--allow-missing", *options) == 0
    assert pq.read_table("a.parquet").num_rows == 0
    assert len(Path("a.jsonl").read_text().splitlines()) == len(Path("a.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(("numbers", "message"), [
    (["1/3", "3/3"], "expected a file of each of the 3 shards; 1 has none: 2/3. Run them, or give --allow-missing"),
    (["2/999999999"], "999999998 have none: 1/999999999, 3/999999999, 4/999999999 and 999999995 more"),
    (["1/2", "2/3"], "1.jsonl: expected a shard of 2, as 0.jsonl has; got a shard of 3. Merge the files of one run"),
    (["1/2", None], "1.jsonl: expected a shard of 2, as 0.jsonl has; got a file that is no shard"),
    ([None, "1/1"], "1.jsonl: expected a file that is no shard, as 0.jsonl has; got a shard of 1"),
    (["1/2", "3/2"], "1.jsonl: a shard must be i/n with 1 <= i <= n, such as 1/4; got 3/2. Run this part again"),
    (["1/1", 7], "1.jsonl: a shard must be i/n"),
])
def test_shards_are_checked(numbers, message, capsys):
    manifest([0, 1])
    paths = [write(Path(f"{i}.jsonl"), [line(i)], number) for i, number in enumerate(numbers)]
    assert merge(*paths) == 1
    assert message in printed(capsys)


def test_some_shards_can_be_merged(capsys):
    paths = [write(Path(f"{i}.jsonl"), [line(i)], f"{i}/9") for i in (4, 2)]
    assert merge(*paths, "--allow-missing", "--jsonl", "all.jsonl") == 0
    assert json.loads(Path("all.jsonl").read_text().splitlines()[0])["shard"] is None


def test_an_image_with_detections_in_two_files_is_refused(capsys):
    one, two = write(Path("1.jsonl"), [line(3), line(7)]), write(Path("2.jsonl"), [line(7), line(8)])
    assert merge(one, two, "--allow-missing", "--jsonl", "all.jsonl") == 1
    assert ("2.jsonl: expected the detections of each image in one file; 7.jpg is in 1.jsonl, too. Leave one of the "
            "two files out") in printed(capsys)


def test_two_images_with_one_id_are_refused(capsys):
    one, two = write(Path("1.jsonl"), [line(7)]), write(Path("2.jsonl"), [line(7, name="b.jpg", error="broken")])
    assert merge(one, two, "--allow-missing") == 1
    assert ("2.jsonl: expected a different id for each image; b.jpg has the id 7, and so has 7.jpg in 1.jsonl. Correct "
            "the manifest") in printed(capsys)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=12))
def test_which_line_counts(tmp_path_factory, rows):
    """Within a file the last one. Of several files, the one with detections, else the last one."""
    folder, expected = tmp_path_factory.mktemp("counts"), {}
    last = {(file, number): is_good for file, number, is_good in rows}
    for (file, number), is_good in sorted(last.items()):
        expected.setdefault(number, []).append((is_good, file))
    paths = [write(folder / f"{i}.jsonl", [line(n, error=None if is_good else f"error in {i}")
                                           for file, n, is_good in rows if file == i]) for i in range(3)]
    if any(sum(is_good for is_good, _ in found) > 1 for found in expected.values()):
        with pytest.raises(ArgumentError, match="expected the detections of each image in one file"):
            Parts(list(map(str, paths)), TEXT)
        return
    parts = Parts(list(map(str, paths)), TEXT)
    assert list(parts) == [line(n, error=None if max(found)[0] else f"error in {max(found)[1]}")
                           for n, found in sorted(expected.items())]
    assert parts.failed == sum(not max(found)[0] for found in expected.values())
    assert parts.has([Item(n, f"{n}.jpg") for n in range(-1, 4)]) == [n in expected for n in range(-1, 4)]
    assert parts.has([Item(n, "other.jpg") for n in range(-1, 4)]) == [False] * 5


# Files that do not fit.


@pytest.mark.parametrize(("change", "message"), [
    ({"text": ["a dog"]}, "must have the same model and options, text ['a cat', '猫'] as in a.jsonl; got text"),
    ({"fingerprint": "b0"}, "got model 'shapes' with fingerprint 'b0'"),
    ({"threshold": 0.5}, "threshold 0.25 as in a.jsonl; got threshold 0.5. Run this shard again"),
    ({"sources": ["b/"]}, "got sources ['b/']"),
])
def test_headers_must_agree(change, message, capsys):
    write(Path("a.jsonl"), [line(1)])
    for name in ("b.jsonl", "b.parquet"):
        write(Path(name), [line(2, 0)], **change)
        assert merge("a.jsonl", name) == 1
        assert f"{name}: " in (said := printed(capsys)) and message in said


def test_version_and_name_of_the_model_may_differ():
    write(Path("a.jsonl"), [line(1)])
    write(Path("b.jsonl"), [line(2)], minigdino="0.2.0", model="copy/of/shapes")
    assert merge("a.jsonl", "b.jsonl", "--allow-missing", "--jsonl", "all.jsonl") == 0
    assert json.loads(Path("all.jsonl").read_text().splitlines()[0])["minigdino"] == "0.1.0"


GOOD = json.dumps(line(1))
NO_LINE = "has another format, or a value out of range. Remove it and continue the run"


@pytest.mark.parametrize(("text", "message"), [
    (GOOD.replace('"id": 1', '"id": "1"'), NO_LINE),
    (GOOD.replace('"id": 1', '"id": 9223372036854775808'), NO_LINE),
    (GOOD.replace('"id": 1', '"id": true'), NO_LINE),
    (GOOD.replace('"image"', '"file"'), NO_LINE),
    (GOOD.replace('"1.jpg"', "1"), NO_LINE),
    (GOOD.replace('"score": 1.0', '"score": NaN'), NO_LINE),
    (GOOD.replace('"score": 1.0', '"score": 1.5'), NO_LINE),
    (GOOD.replace('"box": [', '"box": [Infinity, '), NO_LINE),
    (GOOD.replace('"box": [', '"box": [1.0, '), NO_LINE),
    (GOOD.replace('"label_id": 0', '"label_id": 2'), NO_LINE),
    (GOOD.replace('"label_id": 0', '"label_id": 1'), NO_LINE),
    (GOOD.replace('"label_id": 0', '"label_id": -2'), NO_LINE),
    (GOOD.replace("a cat", "a dog"), NO_LINE),
    (GOOD.replace('"width": 80', '"width": 0'), NO_LINE),
    (GOOD.replace('"detections"', '"found"'), NO_LINE),
    ('{"image": "1.jpg", "id": 1, "error": null}', NO_LINE),
    ("[]", "the line at byte 243 is no JSON object: b'[]"),
    ("{", "the line at byte 243 is no JSON object"),
    ("[" * 10**5, "the line at byte 243 is no JSON object"),
    (json.dumps(HEADER), NO_LINE),  # files that were written one after the other into one
])
def test_a_line_of_another_format_is_refused(text, message, capsys):
    path = Path("found.jsonl")
    write(path, [line(0, error="broken")], rest=f"{text}\n")
    offset = path.read_bytes().index(text.encode() + b"\n")
    assert merge(path, "--allow-missing", "--jsonl", "all.jsonl") == 1
    assert message.replace("243", str(offset)) in (said := printed(capsys))
    assert said.startswith("minigdino: found.jsonl: expected results, as `minigdino run`, `merge` and `detect --jsonl`")
    assert not Path("all.jsonl").exists()


def test_an_incomplete_line_is_skipped_but_nothing_else_is_lost(capsys):
    """A killed run may have written a part of a line. A power failure can leave zeros in place of it."""
    manifest([1, 2])
    for rest in (GOOD[:30], GOOD, "\0" * 100):
        path = write(Path("found.jsonl"), [line(2)], rest=rest)
        assert merge(path) == 1
        assert "1 image of 2 has none: 1.jpg" in printed(capsys)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "got no complete line. Continue the run"),
    (b'{"minigdino": "0.1', "got no complete line"),
    (b"a cat\n", "the line at byte 0 is no JSON object: b'a cat\\n'"),
    (b"\xff\xfe\n", "the line at byte 0 is no JSON object"),
    (GOOD.encode() + b"\n", "its first line is no header of them"),
    (b'{"minigdino": "0.1.0", "annotations": "73"}\n', "its first line is no header of them"),
    (b"PAR1", "x: expected a Parquet file of results, as `minigdino merge --parquet` writes it; it cannot be read"),
    (b"PAR1" * 99, "expected a Parquet file of results"),
    (None, "it cannot be read (No such file or directory). Check the path"),
])
def test_a_file_of_another_kind_is_refused(content, message, capsys):
    if content is not None:
        Path("found.x").write_bytes(content)
    assert merge("found.x") == 1
    assert message in printed(capsys)


def test_values_of_a_parquet_file_are_checked_too(capsys):
    bad = line(1)
    bad["detections"][0]["score"] = float("nan")
    write(Path("x.parquet"), [bad])
    assert merge("x.parquet", "--allow-missing") == 1
    assert "x.parquet: expected results" in (said := printed(capsys)) and NO_LINE in said


def test_a_device_is_refused(capsys):
    assert merge("/dev/zero") == 1
    assert "/dev/zero: expected results" in printed(capsys)


# Outputs.


def test_existing_files_are_kept():
    path = write(Path("found.jsonl"), [line(1)])
    for name in FORMATS:
        Path(f"a.{name}").write_text("mine")
        assert merge(path, "--allow-missing", f"--{name}", f"a.{name}") == 1
        assert Path(f"a.{name}").read_text() == "mine"
        for _ in range(2):
            assert merge(path, "--allow-missing", f"--{name}", f"a.{name}", "--overwrite") == 0
        assert merge(path, "--allow-missing", f"--{name}", f"a.{name}") == (0 if name == "coco" else 1)


@pytest.mark.parametrize(("options", "message"), [
    (["--jsonl", "in.jsonl"], "expected different files for a file of the run and --jsonl"),
    (["--coco", "a", "--csv", "a"], "expected different files for --coco and --csv"),
    (["--coco", "c.json", "--categories", "c.json"], "expected different files for --categories and --coco"),
    (["--coco", "c.json", "--image-ids", "c.json"], "expected different files for --image-ids and --coco"),
    (["--parquet", "-"], "--parquet - is not possible: Parquet is not text. Give --parquet a file"),
    (["--jsonl", "run/found.jsonl"], "--jsonl run/found.jsonl: the next merge of run would take this file for one"),
    (["--parquet", "run/../run/x.parquet"], "the next merge of run would take this file for one of the run"),
    (["--jsonl", "in.jsonl/x"], "cannot write there"),
    (["--coco", "x", "--categories", "none"], "none: not a readable JSON file of categories"),
    (["--coco", "x", "--image-ids", "none"], "none: not a readable JSON file of images"),
])
def test_wrong_outputs_are_refused_before_the_files_are_read(options, message, capsys, tmp_path, monkeypatch):
    path = write(Path("in.jsonl"), [line(1)])
    Path("c.json").write_text("{}")
    Path("run").mkdir()
    write(Path("run/found-1-of-1.jsonl"), [], "1/1")
    monkeypatch.setattr(Parts, "__init__", None)
    assert merge("run" if "run/" in options[1] else path, "--allow-missing", *options) == 1
    assert message in printed(capsys)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.json", "in.jsonl", "run"]


@pytest.mark.parametrize(("options", "message"), [
    (["--jsonl", "-", "--csv", "-"], "expected at most one output on standard output; got --jsonl - and --csv -"),
    (["--categories", "c.json"], "--categories needs --coco, whose ids it gives"),
    (["--image-ids", "c.json", "--csv", "x"], "--image-ids needs --coco"),
    (["--jsonl", ""], "expected a path"),
])
def test_arguments_that_do_not_fit_together_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        merge("in.jsonl", *options)
    assert caught.value.code == 2 and message in printed(capsys)


def test_a_failed_output_leaves_the_old_file(monkeypatch, capsys):
    path = write(Path("found.jsonl"), [line(1)])
    Path("a.parquet").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigdino.writing.os.replace", fail)
    assert merge(path, "--allow-missing", "--parquet", "a.parquet", "--overwrite") == 1
    assert "a.parquet: cannot write there (No space left on device)" in printed(capsys)
    assert Path("a.parquet").read_text() == "old"
    assert sorted(one.name for one in Path(".").iterdir()) == ["a.parquet", "found.jsonl"]

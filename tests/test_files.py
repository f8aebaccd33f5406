"""Detection in many images, some of them corrupted; resumable JSON Lines; COCO files."""

import errno
import glob
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino
from minigdino import files, inputs, progress, writing

TEXT = ["a cat", "remote control"]


def test_files_that_pillow_cannot_decode_are_not_listed(tmp_path):
    for name in ("a.png", "notes.pdf", "film.mpg", "data.h5"):
        (tmp_path / name).write_bytes(b"")
    assert names(files.find_images([str(tmp_path)])) == ["a.png"]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.fromarray(tiny.photo(60, 80, seed=i)).save(tmp_path / f"{'bca'[i]}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(paths):
    return [p.rpartition("/")[2] for p in paths]


def test_sources_may_be_files_folders_globs_and_standard_input(folder):
    assert names(files.find_images([str(folder)])) == ["a.png", "b.png", "c.png"]
    assert names(files.find_images([f"{folder}/[bc].png", "-", "void.jpg"])) == ["b.png", "c.png", "-", "void.jpg"]
    (folder / "odd[1].png").write_bytes((folder / "a.png").read_bytes())
    assert names(files.find_images([f"{folder}/odd[1].png"])) == ["odd[1].png"]
    with pytest.raises(minigdino.ImageError, match="matches no file"):
        files.find_images([f"{folder}/*.tif"])
    (folder / "empty").mkdir()
    with pytest.raises(minigdino.ImageError, match="expected a folder with images, .*; found none"):
        files.find_images([str(folder / "empty")])


def test_a_path_is_listed_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sources = [".", "b.png", "*.png", "**", "-", "void.jpg", "-", "void.jpg", "./b.png"]
    assert files.find_images(sources) == ["a.png", "b.png", "c.png", "notes.txt", "-", "void.jpg", "./b.png"]


def test_patterns_match_what_glob_matches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "[x]/b.png", "p/a.png", "p/q/a.png", "p/q/.hidden/a.png", "p/.h.png", "p/q/r/c.jpg",
                 "z/p/q/a.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    for pattern in ("*.png", "**/*.png", "./**/*.png", "p/**", "**", "p/**/q/*", "**/q/**/*.jpg", "**/**/a.png",
                    "p//**//*", "?/**/a.png", f"{tmp_path}/**/a.png", "p/q**/*", "p**", "[[]x]/**", "p/q/.hidden/**",
                    "*/"):
        want = sorted(set(filter(os.path.isfile, glob.glob(pattern, recursive=True))))
        if want:
            assert files.find_images([pattern]) == want, pattern
        else:
            with pytest.raises(minigdino.ImageError, match="matches no file"):
                files.find_images([pattern])


def test_links_between_folders_do_not_make_a_search_endless(tmp_path):
    for i in range(8):
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}" / "x.png").write_bytes(b"")
        for j in range(8):
            (tmp_path / f"d{i}" / f"to{j}").symlink_to(tmp_path / f"d{j}")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "outside").mkdir()
    (tmp_path / "a").symlink_to("outside")
    (tmp_path / "outside" / "y.png").write_bytes(b"")
    found = files.find_images([f"{tmp_path}/**/*.png"])
    assert found == [*(f"{tmp_path}/d{i}/x.png" for i in range(8)), f"{tmp_path}/outside/y.png"]
    (tmp_path / "d0" / "linked").symlink_to(tmp_path / "outside")
    assert files.find_images([f"{tmp_path}/d0/linked/**/*.png"]) == [f"{tmp_path}/d0/linked/y.png"]


def test_pipes_folders_and_broken_links_are_no_images(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").symlink_to("c.png")
    os.mkfifo(tmp_path / "d.png")
    for source in (tmp_path, tmp_path / "*", tmp_path / "**"):
        assert names(files.find_images([str(source)])) == ["a.png"]

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(minigdino.ImageError, match=r"expected a readable folder \(Permission denied\)"):
        files.find_images([str(tmp_path)])


def test_a_corrupted_image_is_reported_and_the_others_are_processed(folder):
    (folder / "b.png").write_bytes(b"not a picture")
    results = list(inputs.detect_each(tiny.model(), files.find_images([str(folder)]), TEXT))
    assert [isinstance(result, minigdino.Error) for _, result in results] == [False, True, False]
    good, bad, _ = (files.record(image.name, result) for image, result in results)
    assert list(bad) == ["image", "error"]
    assert "b.png: not a readable image" in bad["error"]
    assert list(good) == ["image", "width", "height", "detections"]


def test_a_closed_terminal_does_not_end_a_run(folder):
    class Closed(io.StringIO):
        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

        def isatty(self):
            return True

    shown = progress.Progress(Closed(), 3)
    assert len(list(inputs.detect_each(tiny.model(), files.find_images([str(folder)]), TEXT, progress=shown))) == 3


@pytest.mark.parametrize(("data", "message"), [
    (b"", "empty or closed"), (b"x" * 101, "expected an image of at most 100 bytes"),
    (b"x" * 100, "not a readable image")])
def test_standard_input_is_checked(monkeypatch, data, message):
    monkeypatch.setattr(inputs, "MAX_STDIN", 100)
    for stdin in [io.TextIOWrapper(io.BytesIO(data)), *([None] if not data else [])]:
        monkeypatch.setattr(sys, "stdin", stdin)
        (_, error), = inputs.detect_each(tiny.model(), ["-"], TEXT)
        assert isinstance(error, minigdino.ImageError) and message in str(error)


def test_lines_are_written_immediately_and_a_file_can_be_resumed(tmp_path):
    path = tmp_path / "found.jsonl"
    with files.JsonLines(path) as lines:
        lines.write({"image": "a"})
        assert path.read_text() == '{"image": "a"}\n'  # while the run continues
    with open(path, "a") as file:
        file.write('{"image": "b", "wid')  # an interruption in the middle of a line
    with files.JsonLines(path, resume=True) as again:
        assert set(again.done) == {"a"}
        again.write({"image": "b"})
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a", "b"]
    with pytest.raises(minigdino.ArgumentError, match="exists already. Give --resume"):
        files.JsonLines(path)
    path.write_text("[]\n")
    with pytest.raises(minigdino.ArgumentError, match='each line must be a JSON object with "image"; line 1 is not'):
        files.JsonLines(path, resume=True)
    with pytest.raises(minigdino.ArgumentError, match="cannot be written"):
        files.JsonLines(tmp_path / "void" / "new.jsonl")


def test_a_file_has_one_writer_at_a_time(tmp_path):
    path = tmp_path / "found.jsonl"
    with files.JsonLines(path) as lines:
        lines.write({"image": "a"})
        with pytest.raises(minigdino.ArgumentError, match="another process is writing to this file. Wait until it"):
            files.JsonLines(path, resume=True)
        with pytest.raises(minigdino.ArgumentError, match="exists already. Give --resume"):
            files.JsonLines(path)
    with files.JsonLines(path, resume=True) as lines:
        assert set(lines.done) == {"a"}


@pytest.mark.parametrize("tail", ["{", '{"image": "b', '{"image": "b", "width": 7\0\0\0', "\0\0"])
def test_only_the_incomplete_line_of_a_file_is_removed(tmp_path, monkeypatch, tail):
    """No line is written again, so a second interruption cannot lose lines."""
    path = tmp_path / "found.jsonl"
    path.write_text(complete := "".join(f'{{"image": "{i}"}}\n' for i in range(1000)))
    with open(path, "a") as file:
        file.write(tail)
    changes = []
    truncate = os.truncate
    monkeypatch.setattr(os, "truncate", lambda *a: changes.append(a[1]) or truncate(*a))
    monkeypatch.setattr(Path, "write_bytes", None)
    before = path.stat().st_ino
    with files.JsonLines(path, resume=True) as lines:
        assert len(lines.done) == 1000
    assert (path.read_text(), path.stat().st_ino, changes) == (complete, before, [len(complete)])


@pytest.mark.parametrize("content", ["notes without a line end", '{"image": "a"}\nnotes', "a line\n{", "[]\n", "7\n",
                                     "\n", '{"image": ["a"]}\n', '{"image": null}\n', "\xff\n", "[" * 100_000 + "\n"])
def test_a_file_of_another_format_is_refused_and_stays_as_it_is(tmp_path, content):
    (tmp_path / "notes.txt").write_text(content, encoding="latin-1")
    with pytest.raises(minigdino.ArgumentError, match=r'each line must be a JSON object with "image"; line \d is not'):
        files.JsonLines(tmp_path / "notes.txt", resume=True)
    assert (tmp_path / "notes.txt").read_text(encoding="latin-1") == content


def test_lines_of_a_file_are_read_one_by_one(tmp_path):
    with open(tmp_path / "found.jsonl", "w") as file:
        for i in range(200):
            file.write(json.dumps({"image": f"{i}.png", "detections": ["x" * 100_000]}) + "\n")
    tracemalloc.start()
    with files.JsonLines(tmp_path / "found.jsonl", resume=True) as lines:
        assert len(lines.done) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # the file has 20 MB


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    (tmp_path / "big.jsonl").write_text('{"image": "' + "x" * 5000)
    with pytest.raises(minigdino.ArgumentError, match="line 1 is not"):
        files.JsonLines(tmp_path / "big.jsonl", resume=True)


def test_a_pipe_or_a_device_is_no_json_lines_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        for resume in (False, True):
            with pytest.raises(minigdino.ArgumentError, match="expected a regular file"):
                files.JsonLines(path, resume)


def test_a_line_gives_the_recorded_detections():
    found = tiny.model().detect(tiny.photo(), TEXT, threshold=0)
    for want in (found, found[:1], found[:0]):
        line = json.loads(json.dumps(files.record("a.png", want)))
        got = files.detections(line, "found.jsonl")
        assert files.record("a.png", got) == line
        assert (got.boxes.dtype, got.boxes.shape, got.label_ids.dtype) == ("float32", want.boxes.shape, "int64")
        np.testing.assert_array_equal(got.boxes, want.boxes)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "avif", "gif", "bmp"])
def test_only_a_marked_picture_counts_as_drawn(tmp_path, ending):
    if f".{ending}" not in Image.registered_extensions():
        pytest.skip("this Pillow lacks the format")
    path, picture = tmp_path / f"x.{ending}", Image.fromarray(tiny.photo(60, 80))
    picture.save(path)
    assert not writing.is_drawn(path)
    picture.save(path, **{**writing.drawn_marks(), "exif": Image.Exif(), "comment": "minigdino 2", "pnginfo": None})
    assert not writing.is_drawn(path)
    picture.save(path, **writing.drawn_marks())
    assert writing.is_drawn(path) == (ending != "bmp")  # a format without a place for the mark
    with Image.open(path) as drawn:
        assert drawn.size == (80, 60)


def test_other_files_do_not_count_as_drawn(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG Software minigdino")
    assert not any(map(writing.is_drawn, (tmp_path, tmp_path / "x.png", tmp_path / "void", "\0", "/dev/zero")))


DETECTION = {"box": [1, 2, 3.5, 4], "score": 0.5, "label": "a cat", "label_id": 0, "phrase": "cat"}


@pytest.mark.parametrize("wrong", [
    *({"box": [v, 2, 3, 4]} for v in (float("nan"), float("-inf"), 1e300, 10**400, True, "1", None, [1])),
    {"box": [1, 2, 3]}, {"box": [1, 2, 3, 4, 5]}, {"box": "1234"}, {"box": None},
    *({"score": v} for v in (float("nan"), float("inf"), -0.1, 1.1, True, "0.5", None)),
    *({"label_id": v} for v in (-1, True, 0.0, 1.9, "0", 2**63, float("nan"), None)),
    *({name: v} for name in ("label", "phrase") for v in (7, None, ["a"], {"x": 1}))])
def test_a_line_with_a_wrong_value_is_refused(wrong):
    line = json.loads(json.dumps({"image": "a.png", "width": 8, "height": 8, "detections": [{**DETECTION, **wrong}]}))
    with pytest.raises(minigdino.ArgumentError, match="the line of a.png has another format"):
        files.detections(line, "found.jsonl")


@pytest.mark.parametrize("wrong", [{"width": 0}, {"height": -1}, {"width": True}, {"width": 8.0}, {"detections": {}},
                                   {"detections": ""}, {"detections": None}, {"detections": [None]}])
def test_a_line_of_another_format_is_refused(wrong):
    line = {"image": "a.png", "width": 8, "height": 8, "detections": [DETECTION]}
    assert files.detections(line, "found.jsonl").to_dict()["detections"] == [DETECTION]
    with pytest.raises(minigdino.ArgumentError, match="the line of a.png has another format"):
        files.detections({**line, **wrong}, "found.jsonl")


def test_a_line_that_is_not_valid_json_is_never_written(tmp_path):
    with files.JsonLines(tmp_path / "a.jsonl") as lines, pytest.raises(ValueError, match="not JSON compliant"):
        lines.write({"image": "a", "score": float("nan")})
    assert (tmp_path / "a.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [
        {"a cat": 17, "dog": 18},
        [{"id": 17, "name": "a cat"}, {"id": 18, "name": "dog"}],
        {"categories": [{"id": 17, "name": "a cat"}, {"id": 18, "name": "dog"}]},
    ],
)
def test_the_three_formats_of_categories_are_read(tmp_path, content):
    (tmp_path / "ids.json").write_text(json.dumps(content))
    assert files.read_categories(tmp_path / "ids.json") == {"a cat": 17, "dog": 18}


@pytest.mark.parametrize("content", [7, [1], [{"id": 1}], {"a": "x"}, {"categories": 3}, {"a": float("inf")},
                                     {"a": float("nan")}, [[["a"]]], "a", None,
                                     *([{"id": 1, "name": name}] for name in (None, ["x"], 7, True, {"x": 1})),
                                     {}, [], "", {"categories": []}, {"categories": {}}, {"categories": None}])
def test_other_formats_of_categories_are_rejected(tmp_path, content):
    (tmp_path / "ids.json").write_text(json.dumps(content))
    with pytest.raises(minigdino.ArgumentError, match=r"ids\.json: expected"):
        files.read_categories(tmp_path / "ids.json")


def test_a_message_about_a_wrong_name_or_no_category_says_what_came(tmp_path):
    for content, message in (('[{"id": 1, "name": null}]', "expected a str as the name of a category; got None"),
                             ("{}", "expected at least one category, such as .*; got none")):
        (tmp_path / "ids.json").write_text(content)
        with pytest.raises(minigdino.ArgumentError, match=message):
            files.read_categories(tmp_path / "ids.json")


@pytest.mark.parametrize("number", [1.9, 1.0, True, "3", None, [1]])
def test_the_id_of_a_category_is_an_int(tmp_path, number):
    for content in ({"dog": 2, "a cat": number}, [{"id": number, "name": "a cat"}]):
        (tmp_path / "ids.json").write_text(json.dumps(content))
        with pytest.raises(minigdino.ArgumentError, match=r"ids\.json: expected an int as the id of 'a cat'; got "):
            files.read_categories(tmp_path / "ids.json")


@pytest.mark.parametrize(("content", "message"), [
    ({"a cat": 3, "dog": 3}, "expected a different id for each label; got 3 for 'a cat' and 'dog'"),
    ({"categories": [{"id": 3, "name": "a cat"}, {"id": 3, "name": "dog"}]}, "expected a different id for each label"),
    ([{"id": 3, "name": "a cat"}, {"id": 4, "name": "a cat"}], "expected each label once; got 'a cat' twice"),
    ([{"id": 3, "name": "a cat"}, {"id": 3, "name": "a cat"}], "expected each label once; got 'a cat' twice")])
def test_categories_have_different_labels_and_ids(tmp_path, content, message):
    (tmp_path / "ids.json").write_text(json.dumps(content))
    with pytest.raises(minigdino.ArgumentError, match=message):
        files.read_categories(tmp_path / "ids.json")

"""Runs of `minigdino detect` over many images: resuming, sources, progress, standard output, memory."""

import gc
import io
import json
import os
import re
import shutil
import sys
import weakref

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_streams import copies, detect, images_of, in_process, objects

from minigdino import ArgumentError, ImageError, cli, console, datasets, detect_run, files, progress, writing
from minigdino.results import Detections

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
HEADER = {"minigdino": "0.1", "model": "m", "fingerprint": "1f", "text": ["a cat"], "tokens": [101, 7, 102],
          "threshold": 0.25, "size": None}


# --resume: the header of a JSON Lines file


@pytest.fixture(scope="module")
def begun(home):
    """A run of two images, the second of which was not reached."""
    copies(home, "begun", "a.png", "b.png")
    tiny.model(seed=1).save(home / "other")
    return home


ARGUMENTS = ["begun/a.png", "begun/b.png", "cat. dog.", "--size", "64", "96"]


@pytest.fixture
def lines(begun, monkeypatch, capsys):
    """Its JSON Lines file."""
    path = begun / "begun.jsonl"
    path.unlink(missing_ok=True)
    status, err = detect(begun, monkeypatch, capsys, *ARGUMENTS, "--jsonl", "begun.jsonl")
    assert status == 0, err
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    return path


@pytest.mark.parametrize(("change", "message"), [
    (["cat. hat."], "text ['cat', 'dog']; got text ['cat', 'hat']"), (["Cat. dog."], "got text ['Cat', 'dog']"),
    (["cat? dog."], "tokens [101, 203, 1012, 205, 1012, 102]; got tokens [101, 203, 1029, 205, 1012, 102]"),
    (["cat. dog. cat."], "got text ['cat', 'dog', 'cat']"),
    (["--threshold", "0.3"], "threshold 0.25; got threshold 0.3."),
    (["--text-threshold", "0"], "text_threshold 0.25; got text_threshold 0.0."),
    (["--size", "64", "97"], "size [64, 96]; got size [64, 97]."),
    (["--precision", "medium"], "precision 'highest'; got precision 'medium'."),
    (["cat.", "--size", "64", "97"], "text ['cat', 'dog'] and size [64, 96]; got text ['cat'] and size [64, 97]"),
    (["--model", "other"], "model 'model' with fingerprint ")])
def test_resume_with_another_prompt_model_or_option_is_refused_by_name(
        begun, lines, monkeypatch, capsys, change, message):
    before = lines.read_bytes()
    text, *options = change if not change[0].startswith("--") else ("cat. dog.", *change)
    status, _, err = in_process(begun, monkeypatch, capsys, "detect", "begun", text, "--model", "model", "--size", "64",
                                "96", *options, "--jsonl", "begun.jsonl", "--resume")
    assert (status, err.count("\n")) == (1, 1), err
    assert "begun.jsonl: --resume needs the model and the options with which the file was begun, " in err
    assert message in err and err.endswith("Give the same ones, or choose another name for --jsonl\n")
    assert lines.read_bytes() == before


def test_resume_accepts_the_same_run_from_another_place(begun, lines, tmp_path, monkeypatch, capsys):
    """The model may have moved, the prompt may be written differently, and the version may be another one."""
    shutil.copytree(begun / "model", tmp_path / "moved")
    header, first = objects(lines)
    lines.write_text(json.dumps({**header, "minigdino": "9.9"}) + "\n" + json.dumps(first) + "\n")
    status, _, err = in_process(begun, monkeypatch, capsys, "detect", *ARGUMENTS[:2], "--phrase", "cat", "--phrase",
                                "dog", *ARGUMENTS[3:], "--model", str(tmp_path / "moved"), "--jsonl", "begun.jsonl",
                                "--resume")
    assert status == 0, err
    assert images_of(lines) == ["begun/a.png", "begun/b.png"]


@pytest.mark.parametrize("content", ['{"image": "begun/a.png"}\n', '{"image": "a"}\n{"minigdino": "1"}\n'])
def test_lines_without_a_header_are_not_continued(begun, monkeypatch, capsys, content):
    (begun / "old.jsonl").write_text(content)
    status, err = detect(begun, monkeypatch, capsys, *ARGUMENTS, "--jsonl", "old.jsonl", "--resume")
    assert (status, err.count("\n")) == (1, 1)
    assert "a first line that names the model" in err or "line 2 is not" in err
    assert (begun / "old.jsonl").read_text() == content


VALUES = st.none() | st.integers(0, 2) | st.sampled_from(["a", 0.25, ["a cat"], ["a", "b"], True])
HEADERS = st.dictionaries(st.sampled_from(["text", "threshold", "size", "fingerprint", "nms"]), VALUES)


@given(HEADERS, HEADERS)
def test_headers_agree_if_their_values_do(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("agree") / "x.jsonl"
    with files.JsonLines(path, header={**HEADER, **old}):
        pass
    old, new = {**HEADER, **old}, {**HEADER, **new, "minigdino": "0.2", "model": "elsewhere"}
    wrong = [name for name in {**old, **new} if name not in ("minigdino", "model") and old.get(name) != new.get(name)]
    if wrong:
        with pytest.raises(ArgumentError) as error:
            files.JsonLines(path, resume=True, header=new)
        assert all(f"{name} {new.get(name)!r}" in str(error.value) for name in wrong)
    with files.JsonLines(path, resume=True, header=old) as lines:
        assert lines.done == {}


@given(st.data())
def test_a_run_that_was_killed_at_any_byte_can_be_resumed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("killed") / "x.jsonl"
    names = ["a", "b", "ü"]
    with files.JsonLines(path, header=HEADER) as lines:
        for name in names:
            lines.write({"image": name})
    complete = path.read_bytes()
    path.write_bytes(complete[: data.draw(st.integers(0, len(complete)))])
    with files.JsonLines(path, resume=True, header=HEADER) as lines:
        for name in names:
            if name not in lines.done:
                lines.write({"image": name})
    assert path.read_bytes() == complete


def test_each_line_is_synced_to_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "x.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_text().count("\n")))
    with files.JsonLines(path, header=HEADER) as lines:
        for name in "ab":
            lines.write({"image": name})
    assert synced == [1, 2, 3]


def test_overwrite_replaces_lines_unless_they_are_resumed(begun, lines, monkeypatch, capsys):
    before = lines.read_text()
    for more in (["--resume", "--overwrite", "--threshold", "0.3"], []):  # refused
        status, err = detect(begun, monkeypatch, capsys, *ARGUMENTS, "--jsonl", "begun.jsonl", *more)
        assert (status, lines.read_text()) == (1, before), err
    assert "--resume to continue it, --overwrite to replace it, or choose" in err
    status, err = detect(begun, monkeypatch, capsys, *ARGUMENTS, "--jsonl", "begun.jsonl", "--resume", "--overwrite")
    assert status == 0 and lines.read_text().startswith(before), err
    status, err = detect(begun, monkeypatch, capsys, "begun/b.png", "hat", "--jsonl", "begun.jsonl", "--overwrite")
    assert status == 0, err
    assert (objects(lines)[0]["text"], images_of(lines)) == (["hat"], ["begun/b.png"])


def test_data_sets_of_a_resumed_run_have_all_images_of_the_lines(begun, lines, monkeypatch, capsys):
    """Those of the first run, too, which are not among the sources."""
    options = ARGUMENTS[2:]
    status, err = detect(begun, monkeypatch, capsys, "begun/b.png", *options, "--jsonl", "begun.jsonl", "--resume",
                         "--coco", "begun.json", "--csv", "begun.csv", "--overwrite")
    assert status == 0, err
    assert images_of(lines) == ["begun/a.png", "begun/b.png"]
    status, err = detect(begun, monkeypatch, capsys, "begun", *options, "--coco", "all.json", "--csv", "all.csv")
    assert status == 0, err
    for ending in ("json", "csv"):
        assert (begun / f"begun.{ending}").read_bytes() == (begun / f"all.{ending}").read_bytes()


# sources


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with images in several places. Hidden files are no images."""
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.JPG", "p/a.png", "p/._a.png", "p/.h.jpg", "p/q/c.Jpeg", "p/q/r/d.TIFF", "p/.hidden/e.png",
                 "p/q/no.txt", "p/folder.png/f.png", "empty/deep/g.png"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Image.fromarray(tiny.photo(60, 80)).save(name, format="PNG")
    os.symlink("../..", "p/q/up")
    return tmp_path


def test_a_folder_can_be_searched_with_its_subfolders(tree):
    flat = ["p/a.png", "p/b.JPG"]
    assert files.find_images(["p"]) == flat
    deep = ["p/a.png", "p/b.JPG", "p/folder.png/f.png", "p/q/c.Jpeg", "p/q/r/d.TIFF"]
    for source in ("p", "p/", "./p"):
        found = files.find_images([source], recursive=True)
        assert found[: len(deep)] == deep
        assert found[len(deep):] == ["p/q/up/empty/deep/g.png"]  # through a link, once
    with pytest.raises(ImageError, match="found none. With --recursive, its subfolders are searched too"):
        files.find_images(["empty"])
    assert files.find_images(["empty"], recursive=True) == ["empty/deep/g.png"]
    os.makedirs("void/deep")
    with pytest.raises(ImageError, match="found none$"):
        files.find_images(["void"], recursive=True)


def test_patterns_skip_hidden_files_and_folders(tree):
    assert files.find_images(["p/*.png"]) == ["p/a.png"]
    assert files.find_images(["p/*"]) == ["p/a.png", "p/b.JPG"]
    assert files.find_images(["p/**/*.png"]) == ["p/a.png", "p/folder.png/f.png", "p/q/up/empty/deep/g.png"]


def test_a_named_file_is_always_taken(tree):
    names = ["p/._a.png", "p/q/no.txt", "p/.hidden/e.png"]
    assert files.find_images(names) == names
    assert files.find_images(["p/._*"]) == ["p/._a.png"]  # a pattern that names hidden files


@pytest.fixture
def sealed(tree, monkeypatch):
    """The folder p/q cannot be read, not even by root."""
    os.unlink("p/q/up")

    def refusing(read):
        def refuse(path):
            if str(path).rstrip("/") == "p/q":
                raise PermissionError(13, "Permission denied")
            return read(path)
        return refuse

    monkeypatch.setattr(files.Path, "iterdir", refusing(files.Path.iterdir))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))


@pytest.mark.parametrize(("sources", "recursive"), [(["p"], True), (["p/**/*.*"], False)])
def test_an_unreadable_subfolder_is_reported_and_left_out(home, tree, sealed, monkeypatch, capsys, sources, recursive):
    message = "p/q/: expected a readable folder (Permission denied). Check its permissions"
    with pytest.raises(ImageError, match=re.escape(message)):
        files.find_images(sources, recursive=recursive)
    errors = []
    readable = ["p/a.png", "p/b.JPG", "p/folder.png/f.png"]
    assert files.find_images(sources, recursive=recursive, on_error=errors.append) == readable
    assert list(map(str, errors)) == [message]
    status, _, err = in_process(tree, monkeypatch, capsys, "detect", *sources, "cat", *["--recursive"] * recursive,
                                "--model", str(home / "model"), "--jsonl", "found.jsonl")
    assert (status, err) == (1, f"minigdino: {message}\n")
    assert images_of(tree / "found.jsonl") == readable


def test_an_unreadable_source_is_an_error(tree, sealed):
    for recursive in (False, True):
        with pytest.raises(ImageError, match=r"p/q: expected a readable folder \(Permission denied\)"):
            files.find_images(["p/q"], recursive=recursive, on_error=print)


def test_what_is_missing_is_named_with_the_next_step(tree):
    for source, message in (("p/*.gif", "the pattern matches no file. Check its folder and its ending; ** matches"),
                            ("void/", "no such folder. Check its name, and the working directory")):
        with pytest.raises(ImageError, match=re.escape(f"{source}: {message}")):
            files.find_images([source])


@pytest.mark.parametrize("out", ["p/drawn", "p/q/r", "away", "p/q/up/x"])
def test_pictures_are_never_images_of_the_next_recursive_run(tree, monkeypatch, capsys, out):
    os.symlink("p/q", "away")
    monkeypatch.setattr(detect_run, "load", None)
    before = sorted(tree.rglob("*"))
    status, err = detect(tree, monkeypatch, capsys, "p", "cat", "--recursive", "--out", out, "--overwrite")
    assert (status, err.count("\n")) == (1, 1)
    assert "where the next run would take the drawing for an image. Give --out another folder" in err
    assert sorted(tree.rglob("*")) == before


def test_a_recursive_run_draws_the_folders_of_the_images(home, tree, monkeypatch, capsys):
    os.unlink("p/q/up")
    status, _, err = in_process(tree, monkeypatch, capsys, "detect", "p", "cat", "--recursive", "--out", "drawn",
                                "--model", str(home / "model"))
    assert status == 0, err
    drawn = sorted(str(path.relative_to(tree)) for path in (tree / "drawn").rglob("*.png") if path.is_file())
    assert drawn == ["drawn/a.png", "drawn/b.png", "drawn/folder.png/f.png", "drawn/q/c.png", "drawn/q/r/d.png"]


# --out and --overwrite


@pytest.mark.parametrize("out", ["made.v2/", "there"])
def test_the_picture_of_one_image_can_go_to_a_folder(home, tmp_path, monkeypatch, capsys, out):
    (tmp_path / "there").mkdir()
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", str(home / "photo.png"), "cat", "--model",
                                str(home / "model"), "--out", out)
    assert status == 0, err
    assert writing.is_drawn(tmp_path / out / "photo.png")


def test_the_folder_of_several_pictures_is_checked_before_the_model_is_loaded(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detect_run, "load", None)
    copies(home, "sources", "a.jpg", "b.jpg")
    (tmp_path / "file").write_text("old")
    for out, message in ((tmp_path / "file" / "new", "cannot write there ("), (tmp_path / "file", "need a folder"),
                         (tmp_path / "new.png", "need a folder"), ("-", "are not written to standard output")):
        status, err = detect(home, monkeypatch, capsys, "sources", "cat", "--out", str(out))
        assert (status, err.count("\n")) == (1, 1)
        assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_lines_are_checked_before_the_model_is_loaded(home, tmp_path, monkeypatch, capsys):
    (tmp_path / "old.jsonl").write_text("old")
    monkeypatch.setattr(detect_run, "load", None)
    for path, message in ((tmp_path / "old.jsonl", "exists already. Give --resume"), (tmp_path, "regular file"),
                          (tmp_path / "old.jsonl" / "new.jsonl", "cannot write there (")):
        status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--jsonl", str(path))
        assert (status, err.count("\n")) == (1, 1)
        assert message in err

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        status, err = detect(home, patch, capsys, "photo.png", "cat", "--resume", "--jsonl",
                             str(tmp_path / "old.jsonl"))
    assert status == 1 and "old.jsonl: the file cannot be written (Permission denied). Choose another name" in err
    assert (tmp_path / "old.jsonl").read_text() == "old"


def test_overwrite_replaces_a_picture_in_a_folder_but_no_image_and_no_folder(home, monkeypatch, capsys):
    work = copies(home, "pile", "a.jpg", "b.png", "drawn/a.png", "drawn/b.png")
    arguments = ["pile/a.jpg", "pile/b.png", "cat", "--out"]
    before = (work / "b.png").read_bytes()
    status, err = detect(home, monkeypatch, capsys, *arguments, "pile/drawn")
    assert status == 1 and "was not drawn by minigdino" in err and "or give --overwrite to replace it" in err
    status, err = detect(home, monkeypatch, capsys, *arguments, "pile/drawn", "--overwrite")
    assert status == 0 and all(map(writing.is_drawn, (work / "drawn").iterdir())), err
    (work / "a.png").mkdir()
    for _ in range(2):
        status, err = detect(home, monkeypatch, capsys, *arguments, "pile", "--overwrite")
        assert status == 1, err
        assert (work / "b.png").read_bytes() == before
        if (work / "a.png").exists():
            assert "a.png, which exists and was not drawn by minigdino" in err
            (work / "a.png").rmdir()
    assert "pile/b.png, which is one of the images" in err


# arguments


@pytest.mark.parametrize("arguments", [
    "begun cat. --json --size 64 96", "begun --json cat. --size 64 96", "--json begun --size 64 96 cat.",
    "--json --size 64 96 begun/a.png begun/b.png cat.", "begun/a.png --json begun/b.png --size 64 96 cat."])
def test_options_may_stand_between_the_sources_and_the_text(begun, monkeypatch, capsys, arguments):
    status, out, err = in_process(begun, monkeypatch, capsys, "detect", "--model", "model", *arguments.split())
    assert status == 0, err
    records = json.loads(out)
    assert [line["image"] for line in records] == ["begun/a.png", "begun/b.png"]
    assert {d["label"] for line in records for d in line["detections"]} == {"cat"}


@pytest.mark.parametrize("arguments", ["detect begun --json cat. --void", "detect begun --json cat. -v", "info --json",
                                       "detect begun --json cat. --void -", "models x y z --void"])
def test_unknown_options_are_refused(begun, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


# standard output


def test_one_output_can_be_printed_instead_of_the_table(home, monkeypatch, capsys):
    printed = {}
    for option in ("--jsonl", "--coco", "--csv"):
        for where in ("-", f"printed{option}"):
            status, out, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "photo.png", "cat",
                                          "--model", "model", option, where, "--overwrite")
            assert status == 0, err
            printed[where] = out
        assert (home / f"printed{option}").read_text() == printed["-"]
        table = printed[f"printed{option}"]  # not printed with lines of several images
        assert table.startswith("photo.png:\ncat  0.") or (option, table) == ("--jsonl", "")
        assert not (home / "-").exists()


@pytest.mark.parametrize("options", ["--json --jsonl -", "--coco - --csv -", "--json --coco -", "--jsonl - --csv -"])
def test_standard_output_takes_one_output(capsys, options):
    with pytest.raises(SystemExit) as end:
        cli.main(["detect", "photo.png", "cat", *options.split()])
    assert end.value.code == 2
    first, second = (option.removesuffix(" -") for option in options.replace("--", "|--").split("|")[1:])
    assert f"expected at most one output on standard output; got {first.strip()}" in (err := capsys.readouterr().err)
    assert second.strip() in err


@pytest.mark.parametrize("options", ["--resume", "--resume --jsonl -"])
def test_resume_needs_a_file(capsys, options):
    with pytest.raises(SystemExit) as end:
        cli.main(["detect", "photo.png", "cat", *options.split()])
    assert end.value.code == 2
    assert "--resume needs" in capsys.readouterr().err


def test_text_is_printed_block_by_block_without_cutting_characters(monkeypatch, capsys):
    monkeypatch.setattr(datasets, "BLOCK", 1)
    data_set = datasets.Csv()
    data_set.add("ü猫🐱.png", tiny.model().detect(tiny.photo(), "cat", threshold=0)[:1])
    console.write("-", data_set.content())
    assert "ü猫🐱.png," in capsys.readouterr().out


# progress and memory


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self):
        return True


def test_the_progress_is_erased_before_a_message(home, monkeypatch, capsys):
    work = copies(home, "shown", "a.png", "c.png")
    (work / "b.png").write_bytes(b"broken")
    for more in ([], ["--jsonl", "shown.jsonl"]):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        detect(home, monkeypatch, capsys, "shown", "cat", *more)
        _, *lines = terminal.getvalue().split("\r\033[K")
        shown = [line for line in lines if line]
        assert shown[0].startswith("1/3 images, 0.") and shown[0].endswith(" s left")
        assert shown[1].startswith("minigdino: shown/b.png: not a readable image") and shown[1].endswith("\n")
        assert shown[2].startswith("2/3 images, ") and shown[3].startswith("3/3 images, ")
        assert shown[3].endswith(" s each, 0 s left\n") and len(shown) == 4


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3569, "59 min"), (3600, "1 h 0 min"), (30_000, "8 h 20 min")])
def test_the_time_left_is_readable(seconds, text):
    assert progress.duration(seconds) == text


class Stub:
    """A model that detects the same boxes in every image, and keeps weak references to its results."""

    source, precision, tensors = "stub", "highest", {}
    config, settings = tiny.config(), tiny.SETTINGS

    def __init__(self):
        self.results, self.most = weakref.WeakSet(), 0

    def tokenize(self, text):
        return tiny.model().tokenize(text)

    def detect(self, image, text, **_):
        if image == []:
            return []
        gc.collect()  # Pillow leaves cycles that hold the frames of its callers
        self.most = max(self.most, len(self.results))
        result = Detections(np.ones((50, 4), np.float32), np.ones(50, np.float32), ["cat"] * 50, np.zeros(50, np.int64),
                            ["cat"] * 50, (80, 60), tiny.photo(60, 80))
        self.results.add(result)
        return result


def test_no_result_is_kept(home, monkeypatch, capsys):
    copies(home, "pictures", *(f"{i}.png" for i in range(8)))
    model = Stub()
    monkeypatch.setattr(detect_run, "load", lambda *_, **__: model)
    status, out, err = in_process(home, monkeypatch, capsys, "detect", "pictures", "cat", "--json", "--jsonl",
                                  "kept.jsonl", "--coco", "kept.json", "--csv", "kept.csv", "--out", "kept")
    assert status == 0, err
    assert len(json.loads(out)) == 8
    assert model.most <= 2


HEADER = {"minigdino": "1", "model": "m", "text": ["a cat"]}
LINE = json.dumps({"image": "a.png", "error": "no"}) + "\n"


@pytest.mark.parametrize("content", [
    b'{"image": "x.jpg", "note": "my annotation"}', b'{"image": "x.jpg"}\n{"image": "y.jpg"}', bytes(100), b"notes",
    b'{"image": "x', b'{"a": 1}\n', b"[1]\n", json.dumps({**HEADER, "text": ["a dog"]}).encode(),
    (json.dumps({**HEADER, "text": ["a dog"]}) + "\n" + LINE + '{"image": "b').encode(),
    (json.dumps({**HEADER, "text": ["a dog"]}) + "\n" + LINE.rstrip()).encode()])
def test_a_file_that_resume_refuses_stays_as_it_is(tmp_path, content):
    path = tmp_path / "found.jsonl"
    path.write_bytes(content)
    with pytest.raises(ArgumentError):
        files.JsonLines(path, resume=True, header=HEADER)
    assert path.read_bytes() == content


@pytest.mark.parametrize("end", ["", '{"image": "b', '{"image": "b.png", "er' + "\0" * 50, "\0" * 9])
def test_only_an_incomplete_line_is_cut_off(tmp_path, end):
    path = tmp_path / "found.jsonl"
    begun = json.dumps(HEADER) + "\n" + LINE
    path.write_text(begun + end)
    with files.JsonLines(path, resume=True, header=HEADER) as lines:
        assert lines.done == {"a.png": 2} and lines.failed == {"a.png"}
        lines.write({"image": "b.png"})
    assert path.read_text() == begun + '{"image": "b.png"}\n'


def test_a_last_line_without_a_line_break_is_kept(tmp_path):
    """An editor has removed it."""
    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + LINE.rstrip())
    with files.JsonLines(path, resume=True, header=HEADER) as lines:
        lines.write({"image": "b.png"})
    assert path.read_text() == json.dumps(HEADER) + "\n" + LINE + '{"image": "b.png"}\n'


@pytest.mark.parametrize("length", range(1, 30, 4))
def test_a_header_that_was_not_completed_is_written_again(tmp_path, length):
    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps(HEADER)[:length])
    files.JsonLines(path, resume=True, header=HEADER).close()
    assert path.read_text() == json.dumps(HEADER) + "\n"


# --image-ids


@pytest.mark.parametrize("option", ["--image-ids", "--categories"])
def test_ids_need_an_output_with_ids(home, monkeypatch, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        detect(home, monkeypatch, capsys, "photo.png", "cat", "--csv", "no.csv", option, "ids.json")
    assert f"{option} needs --coco" in capsys.readouterr().err
    assert not (home / "no.csv").exists()


def test_the_image_ids_of_a_file_are_those_of_the_data_set(home, monkeypatch, capsys):
    copies(home, "truth", "a.png", "b.png")
    entries = [{"file_name": "b.png", "id": 5}, {"file_name": "truth/a.png", "id": 139}]
    (home / "truth.json").write_text(json.dumps({"images": entries}))
    run = ("truth", "cat", "--coco", "with_ids.json", "--image-ids", "truth.json")
    status, err = detect(home, monkeypatch, capsys, *run)
    assert status == 0, err
    images = json.loads((home / "with_ids.json").read_text())["images"]
    assert {image["file_name"]: image["id"] for image in images} == {"truth/a.png": 139, "truth/b.png": 5}


@pytest.mark.parametrize(("entries", "message"), [
    ([("a.png", 1)], "no_id/b.png: expected a name with an id, such as 'a.png'"),
    ([], "expected a name with an id, such as none"),
    ([("a.png", 1), ("b.png", 1)], "expected each file_name and each id once"),
    ([("a.png", 1), ("b.png", 2)], "a different id for each image; no_id/a.png has the id 1, too")])
def test_an_image_without_an_id_of_its_own_ends_the_run_before_the_model_is_loaded(home, monkeypatch, capsys, entries,
                                                                                 message):
    copies(home, "no_id", "a.png", "b.png")
    copies(home, "no_id_2", "a.png")
    (home / "ids.json").write_text(json.dumps({"images": [{"file_name": n, "id": i} for n, i in entries]}))
    monkeypatch.setattr(detect_run, "load", None)
    status, err = detect(home, monkeypatch, capsys, "no_id", "no_id_2", "cat", "--coco", "no.json", "--image-ids",
                         "ids.json")
    assert (status, err.count("\n")) == (1, 1) and message in err
    assert not (home / "no.json").exists()


def test_the_file_of_image_ids_is_never_replaced(home, monkeypatch, capsys):
    (home / "ids.json").write_text('{"images": [{"file_name": "photo.png", "id": 1}]}')
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--coco", "ids.json", "--image-ids",
                         "ids.json", "--overwrite")
    assert status == 1 and "expected different files for --image-ids and --coco" in err

"""The command line: long lists, filters and tiles of `minigdino detect`, and their place in JSON Lines."""

import json
import sys

import pytest
import tiny
from test_streams import in_process, objects

from minigdino import detect_arguments
from minigdino.options import DetectOptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
PHRASES = ["a cat", "st. bernard", "hat"]
LIST = [word for phrase in PHRASES for word in ("--phrase", phrase)]


@pytest.fixture
def detect(home, monkeypatch, capsys):
    """Run `minigdino detect photo.png` in this process. Returns the exit status, standard output and error."""
    return lambda *arguments: in_process(home, monkeypatch, capsys, "detect", "photo.png", "--model", "model",
                                         *arguments)


OPTIONS = {
    "--chunk 2": {"chunk": 2}, "--score mean": {"score": "mean"}, "--max-area 0.05": {"max_area": 0.05},
    "--nms 0.5": {"nms": 0.5}, "--nms 0.5 --class-agnostic": {"nms": 0.5, "class_agnostic": True},
    "--max-detections 3": {"max_detections": 3}, "--tile 70": {"tile": 70},
    "--tile 70 --class-agnostic --nms 0.2": {"tile": 70, "class_agnostic": True, "nms": 0.2}}


@pytest.mark.parametrize("words", OPTIONS)
def test_an_option_is_that_of_the_library_and_in_the_header(detect, home, words):
    path = home / f"{words}.jsonl"
    status, _, err = detect(*LIST, *words.split(), "--jsonl", path.name)
    assert status == 0, err
    header, line = objects(path)
    want = tiny.model().detect(home / "photo.png", PHRASES, **OPTIONS[words])
    assert line["detections"] == want.to_dict()["detections"]
    assert OPTIONS[words].items() <= header.items()
    assert header["text"] == PHRASES
    assert len(header["tokens"]) == 2 if "chunk" in words else all(isinstance(token, int) for token in header["tokens"])
    status, _, err = detect(*LIST, *words.split(), "--jsonl", path.name, "--resume")
    assert status == 0, err
    status, _, err = detect(*LIST, "--jsonl", path.name, "--resume")
    assert status == 1
    for name, value in OPTIONS[words].items():
        assert f"{name} {value!r}" in err and f"{name} None" in err
    assert "tokens" not in err


def test_a_file_without_these_options_is_continued_with_the_default_values(detect, home):
    """A header of an earlier version has none of them."""
    default = ["--score", "max"]
    status, _, err = detect(*LIST, *default, "--jsonl", "earlier.jsonl")
    assert status == 0, err
    header = objects(home / "earlier.jsonl")[0]
    assert list(header) == ["minigdino", "model", "fingerprint", "text", "tokens", "threshold", "text_threshold",
                            "size", "precision"]
    status, _, err = detect(*LIST, "--jsonl", "earlier.jsonl", "--resume")
    assert status == 0, err
    status, _, err = detect(*LIST, "--jsonl", "earlier.jsonl", "--resume", "--max-detections", "2")
    assert status == 1 and "max_detections None; got max_detections 2" in err


def test_every_option_of_detect_is_on_the_command_line():
    given = {"threshold", "text_threshold", "size"}
    assert given | set(detect_arguments.OPTIONAL) == set(DetectOptions.__annotations__)


def test_a_phrase_has_its_own_threshold(detect, home):
    model = tiny.model()
    every = model.detect(home / "photo.png", PHRASES, threshold=0, chunk=1)
    limit = float(sorted(every.filter("st. bernard").scores)[10])
    status, out, err = detect(*LIST, "--chunk", "1", "--threshold", "0.9", "--phrase-threshold",
                              f"st. bernard.={limit}", "--phrase-threshold", "hat=1", "--json")
    assert status == 0, err
    want = every.filter(threshold={"a cat": 0.9, "st. bernard": limit, "hat": 1})
    assert json.loads(out)["detections"] == want.to_dict()["detections"]
    assert 0 < len(want.filter("st. bernard")) < 20
    status, _, err = detect("cat. dog.", "--phrase-threshold", "cat=0.4", "--jsonl", "thresholds.jsonl")
    assert status == 0, err
    assert objects(home / "thresholds.jsonl")[0]["threshold"] == {"cat": 0.4, "dog": 0.25}
    status, _, err = detect("cat. dog.", "--phrase-threshold", "cat=0.5", "--jsonl", "thresholds.jsonl", "--resume")
    assert status == 1 and "threshold {'cat': 0.4, 'dog': 0.25}; got threshold {'cat': 0.5, 'dog': 0.25}" in err


def test_more_phrases_than_a_prompt_holds_are_a_run_like_any_other(detect, home):
    names = [f"{a} {b}" for a in "abcdefghij" for b in "abcdefghij"]
    words = [word for name in names for word in ("--phrase", name)]
    status, _, err = detect(*words, "--jsonl", "long.jsonl", "--coco", "long.json", "--max-detections", "30")
    assert status == 0, err
    header, line = objects(home / "long.jsonl")
    assert header["text"] == names
    assert [len(tokens) for tokens in header["tokens"]] == [254, 50]
    assert len(line["detections"]) == 30
    assert [category["name"] for category in json.loads((home / "long.json").read_text())["categories"]] == names
    status, _, err = detect(". ".join(names))
    assert status == 1 and "Give its phrases as a list (on the command line, by --phrase or --phrases)" in err


def test_the_phrases_can_come_from_a_file(detect, home):
    (home / "names.txt").write_bytes("\ufeffa cat.\r\n\n  st. bernard \nhat".encode())
    outputs = [detect(*words, "--json") for words in (LIST, ["--phrases", "names.txt"])]
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0][1])["detections"]) > 0
    status, _, err = detect("--phrases", "names.txt", "--csv", "names.txt", "--overwrite")
    assert status == 1 and "names.txt" in err
    assert (home / "names.txt").read_bytes().startswith("\ufeffa cat.".encode())


@pytest.mark.parametrize(("content", "message"), [
    (b" \n\n", "with a phrase on each line; it has none. Write for example: a cat"),
    (b"\xff", "can't decode byte 0xff"),
    (None, "Check the path of --phrases")])
def test_a_file_without_phrases_is_an_error(detect, home, content, message):
    if content is not None:
        (home / "wrong.txt").write_bytes(content)
    status, _, err = detect("--phrases", "wrong.txt" if content is not None else "none.txt")
    assert (status, err.count("\n")) == (1, 1)
    assert message in err and ".txt: expected a text file in UTF-8" in err


@pytest.mark.parametrize(("words", "line"), [
    ("--threshold 1", "nothing scores above 1.0"),
    ("--threshold 1 --max-area 0.5", "nothing scores above 1.0 and covers at most 0.5 of the image"),
    ("--threshold 1 --phrase-threshold hat=1", "nothing scores above its threshold")])
def test_a_table_without_detections_names_the_limits(detect, words, line):
    status, out, err = detect(*LIST, *words.split())
    assert (status, out) == (0, f"{line}\n"), err


@pytest.mark.parametrize(("words", "message"), [
    ("--chunk 0", "chunk must be a whole number of 1 or more; got 0"),
    ("--nms 2", "nms must be a number from 0 to 1; got 2.0"),
    ("--nms nan", "nms must be a number from 0 to 1; got nan"), ("--max-area 0", "max_area must be a fraction"),
    ("--max-detections 0", "max_detections must be a whole number of 1 or more; got 0"),
    ("--tile 10", "tile must be a side of 64 pixels or more; got 10"),
    ("--class-agnostic", "class_agnostic=True needs nms or tile"),
    ("--phrase-threshold dog=0.5", "got 'dog'. The phrases are ['a cat', 'st. bernard', 'hat']"),
    ("--phrase-threshold hat=5", "threshold of 'hat' must be a number from 0 to 1; got 5.0")])
def test_a_wrong_value_is_one_message_and_no_file(detect, home, words, message):
    status, _, err = detect(*LIST, *words.split(), "--jsonl", "wrong.jsonl")
    assert (status, err.count("\n")) == (1, 1)
    assert message in err
    assert not (home / "wrong.jsonl").exists()


@pytest.mark.parametrize(("words", "message"), [
    ("cat --chunk 2", "--chunk needs the phrases by --phrase or --phrases; got TEXT"),
    ("--phrase cat --phrases names.txt", "expected --phrase or --phrases; got both"),
    ("cat --score min", "invalid choice: 'min'"), ("cat --nms x", "invalid float value: 'x'"),
    ("cat --phrase-threshold cat", 'expected a phrase and a number, such as "a cat=0.4"; got \'cat\''),
    ("cat --phrase-threshold =0.5", "got '=0.5'"), ("cat --phrase-threshold cat=x", "got 'cat=x'"),
    ("cat --phrase-threshold cat=0.5 --phrase-threshold cat.=0.9",
     "expected --phrase-threshold once for a phrase; got 'cat' twice. Keep one of them")])
def test_words_that_cannot_be_read_are_a_usage_error(detect, words, message, capsys):
    with pytest.raises(SystemExit) as error:
        detect(*words.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err

"""The command line: arguments of `detect` in a wrong order or without quotes, and warnings about the prompt."""

import warnings
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino import cli
from minigdino.misplaced import misplaced

ROOT = Path(minigdino.__file__).parent.parent
SCENE = str(ROOT / "docs/images/scene.jpg")
words = st.lists(st.sampled_from(["a", "purple", "star.", "t-shirt", "man's", "chair2"]), min_size=2, max_size=5)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two images, one with a blank in its name, and a folder."""
    for name in ("cat.jpg", "my cat.jpg"):
        Image.fromarray(tiny.photo(40, 50)).save(tmp_path / name)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@given(words)
def test_a_prompt_without_quotes_is_shown_with_them(prompt):
    *sources, text = [SCENE, *prompt]
    expected = f'Put a prompt of several words in quotes: minigdino detect {SCENE} "{" ".join(prompt)}"'
    assert misplaced(sources, text).endswith(expected)
    assert misplaced([SCENE], " ".join(prompt)) is None


@pytest.mark.parametrize(
    ("sources", "text", "message"),
    [
        (["cat.jpg", "a"], "star", "got 'a', which is no file"),
        (["cat.jpg", "photos", "a"], "star", 'minigdino detect cat.jpg photos "a star"'),
        (["my cat.jpg", "a"], "star", 'minigdino detect "my cat.jpg" "a star"'),
        (["a cat."], "cat.jpg", 'got \'cat.jpg\', which exists. Write: minigdino detect cat.jpg "a cat."'),
        (["a cat"], "photos", 'Write: minigdino detect photos "a cat"'),
        (["a", "cat"], "my cat.jpg", 'Write: minigdino detect "my cat.jpg" "a cat"'),
        (["cat.jpg"], "my cat.jpg", 'in quotes at the end: minigdino detect cat.jpg "my cat.jpg" "a cat."'),
        (["-"], "cat.jpg", "expected TEXT as the last argument; got 'cat.jpg', which exists. Put the prompt"),
        (["cat.jpg", "a star"], "photos", "which exists; 'a star' is no file. Put the prompt in quotes at the end: "
                                          'minigdino detect cat.jpg photos "a star"'),
        (["cat.jpg", "a cat"], "a dog.", "got 'a cat', which is no file. Write all phrases as one TEXT: minigdino "
                                         'detect cat.jpg "a cat. a dog."'),
        (["my cat.jpg", "a cat. ", "photos", "a hat"], "dog",
         'minigdino detect "my cat.jpg" photos "a cat. a hat. dog."'),
        (["cat.jpg", "a cat."], ["dog"], "got 'a cat.', which is no file. Give the prompt either as TEXT or by "
                                       "one of these options, not both"),
        (["cat.jpg", "cat."], ["dog"], "got 'cat.'"),
        (["cat.jpg", "a cat"], ["dog"], "got 'a cat'"),
        (["cat.jpg", "cat"], ["dog"], "expected SOURCE ... with --phrase or --phrases; got 'cat', which is no file"),
    ],
)
def test_a_mistake_gives_the_right_command(here, sources, text, message):
    assert message in misplaced(sources, text)


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        (["cat.jpg"], "cat"),
        (["cat.jpg"], "photos"),  # a word that is also a folder
        (["cat.jpg", "photos"], "cat"),
        (["void.jpg", "photos"], "cat"),
        (["photos", "void"], "a cat."),  # the text was in quotes
        (["my photos", "photos"], "a cat."),  # the first argument is a source
        (["cat.jpg", "void.jpg", "void/x", "*.png", "https://host/x", "-", "7"], "cat"),
        (["cat.jpg", "my cat.jpg", "my void.jpg"], ["cat"]),
        (["void"], ["cat"]),
        (["void", "cat.jpg"], ["cat"]),
        (["cat.jpg", "0a1b2c"], ["cat"]),  # can be a file without an ending
    ],
)
def test_other_arguments_are_left_to_later_checks(here, sources, text):
    assert misplaced(sources, text) is None


def test_a_mistake_is_a_usage_error(here, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["detect", "cat.jpg", "a", "cat", "--model", "shapes"])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: minigdino detect") and error.endswith('minigdino detect cat.jpg "a cat"\n')


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        cli.main([*arguments])
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "cat.jpg", "cat", "--modle", "shapes"],
         "unrecognized arguments: --modle shapes. Did you mean --model?"),
        (["detect", "cat.jpg", "cat", "--output=a.png"], "unrecognized arguments: --output=a.png. Did you mean --out?"),
        (["detect", "cat.jpg", "cat", "-o", "a.png"], "-o a.png. `minigdino detect --help` lists the options"),
        (["explain", "cat.jpg", "cat", "--out", "a.html", "--giude", "x"], "--giude x. Did you mean --guide?"),
        (["info", "--json"], "--json. `minigdino info --help` lists the options"),
        (["--verzion", "info"], "--verzion. Did you mean --version?"),
    ],
)
def test_an_unknown_option_gives_a_similar_one_of_its_command(here, capsys, arguments, message):
    command = "" if arguments[0].startswith("-") else f" {arguments[0]}"
    error = usage_error(capsys, *arguments)
    assert error.startswith(f"usage: minigdino{command} ") and error.endswith(message + "\n")


@pytest.mark.parametrize("command", [["trace"], ["explain", "--out", "page.html"]])
def test_a_text_without_quotes_is_explained_where_it_is_one_argument(here, capsys, command):
    error = usage_error(capsys, *command, "cat.jpg", "a", "purple", "star")
    assert error.endswith("unrecognized arguments: purple star. Put a TEXT of several words in quotes\n")


@pytest.mark.parametrize("command", [["trace"], ["explain", "--out", "page.html"]])
def test_a_text_before_the_image_is_named(here, capsys, command):
    assert cli.main([*command, "a cat.", "my cat.jpg", "--model", "shapes"]) == 1
    assert capsys.readouterr().err == ("minigdino: expected the image first, then the text; got the text 'my cat.jpg', "
                                       "which is a file, and the image 'a cat.', which is none. Swap them\n")
    assert not (here / "page.html").exists()


def test_a_page_has_not_the_name_of_an_image(here, capsys):
    assert cli.main(["explain", "cat.jpg", "a cat.", "--model", "shapes", "--out", "page.PNG"]) == 1
    assert capsys.readouterr().err == ("minigdino: page.PNG: expected the name of an HTML page for --out; got that of "
                                       "an image. Choose another ending, such as .html\n")
    assert not (here / "page.PNG").exists()


def run(capsys, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status = cli.main([*arguments, "--model", "shapes"])
    return status, capsys.readouterr().err.splitlines()


def test_a_warning_is_printed_once_for_all_images(here, capsys):
    status, lines = run(capsys, "detect", "cat.jpg", "my cat.jpg", "purple \x1b星, green heart")
    assert status == 0
    assert [line.partition(";")[0] for line in lines if not line.startswith("minigdino: warning: only a dot")] == [
        "minigdino: warning: each word of a prompt must be in the model's vocabulary, else the model reads [UNK] and "
        "its boxes mean nothing"]
    assert len(lines) == 2 and "\x1b" not in "".join(lines)
    assert run(capsys, "detect", "cat.jpg", "star") == (0, [])


def test_the_settings_of_warnings_are_restored(here, capsys):
    before = warnings.showwarning, list(warnings.filters)
    assert run(capsys, "trace", "cat.jpg", "a 星")[0] == 0
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_a_warning_that_is_an_error_gives_a_message(here, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["detect", "cat.jpg", "star, heart", "--model", "shapes"]) == 1
    assert capsys.readouterr().err.startswith("minigdino: only a dot or a question mark ends a phrase")


def test_other_warnings_are_shown_as_before(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cli._short_warnings():
            warnings.warn_explicit("slow", RuntimeWarning, "file.py", 3)
    assert [(str(w.message), w.category, w.filename, w.lineno) for w in caught] == [
        ("slow", RuntimeWarning, "file.py", 3)]
    assert capsys.readouterr().err == ""


def test_an_unknown_phrase_is_an_error(here, capsys):
    status, lines = run(capsys, "detect", "cat.jpg", "--phrase", "star", "--phrase", "星")
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith("minigdino: a phrase must have a word of the model's vocabulary; '星' has only unknown")

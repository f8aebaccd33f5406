"""Messages for paths without an image file: the reason, and what to give instead."""

import glob
import os
import pathlib
import re
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigdino
from minigdino import ImageError, missing
from minigdino.image import endings, open_image

names = st.text("abcÄß._- ", min_size=1, max_size=12).filter(lambda name: name.strip(" ."))


def message(path):
    with pytest.raises(ImageError) as raised:
        open_image(path)
    return str(raised.value)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a picture, other files and a folder; no file in it is an image."""
    folder = tmp_path_factory.mktemp("room")
    for name in ("Scene.JPG", "cat.jpeg", "cat.json", "dog.png"):
        (folder / name).write_bytes(b"x")
    (folder / "photos").mkdir()
    (folder / "lost.jpg").symlink_to(folder / "gone.jpg")
    return folder


@pytest.mark.parametrize(("given", "found"), [
    ("scene.jpg", "Scene.JPG"), ("scene.png", "Scene.JPG"), ("cat.jpg", "cat.jpeg"), ("cat", "cat.jpeg"),
    ("dog.jpg", "dog.png"), ("dog.png\n", "dog.png"), (" dog.png", "dog.png"), ("dog.png/", "dog.png"),
    ("dog.*", None), ("cats.jpg", None), (".jpg", None)])
def test_a_file_of_a_similar_name_is_suggested(room, given, found):
    text = message(f"{room}/{given}")
    assert text.startswith(f"{room}/{given}: no such file")
    assert ("Did you mean" in text) == (found is not None)
    if found:
        assert text.endswith(f". Did you mean {str(room / found)!r}?")


@given(st.lists(names, max_size=4), names, st.sampled_from([".jpg", ".PNG", ".txt"]))
def test_a_suggestion_is_an_entry_of_the_folder_with_the_same_stem(tmp_path_factory, others, name, ending):
    folder = tmp_path_factory.mktemp("names")
    for other in others:
        (folder / other).touch()
    if (folder / (wanted := name + ending)).exists():
        return
    text = missing.why_missing(str(folder / wanted), endings())
    suggested = [path for path in folder.iterdir() if text.endswith(f"Did you mean {str(path)!r}?")]
    assert len(suggested) == ("Did you mean" in text)
    for path in suggested:
        assert path.stem.strip().casefold() == Path(wanted).stem.strip().casefold() or \
            path.name.strip().casefold() == wanted.strip().casefold()


def test_names_are_relative_to_the_working_directory_which_the_message_shows(room, monkeypatch):
    monkeypatch.chdir(room)
    assert message("nope.jpg") == f"nope.jpg: no such file in the folder {os.getcwd()}. Check the name"
    assert message("cat.jpg").endswith("Did you mean 'cat.jpeg'?")
    assert message("void/a.jpg").endswith(f"no such file; {os.getcwd()}/void does not exist. Check the path")
    assert message("dog.png/a.jpg").endswith(f"{os.getcwd()}/dog.png is not a folder. Check the path")


@pytest.mark.parametrize(("path", "advice"), [
    ("", "'': expected a path; got an empty text. Give the path of an image"),
    ("*.jpg", "*.jpg: no such file; patterns are not expanded here. Give a list, sorted(glob.glob('*.jpg')), "
              "or use `minigdino detect`, which accepts patterns"),
    ("photos", "photos: expected an image file; got a folder. Give one of its images, or in Python a list of them: "
               "sorted(pathlib.Path('photos').glob(\"*.jpg\"))"),
    ("lost.jpg", "lost.jpg: no such file; the path is a link to one that does not exist. Replace the link")])
def test_other_inputs_have_advice_of_their_own(room, monkeypatch, path, advice):
    monkeypatch.chdir(room)
    assert message(path) == advice
    if path:
        assert message(Path(path)) == advice


def test_a_tilde_is_not_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    full = str(tmp_path / "x.jpg")
    assert message("~/x.jpg") == (f'~/x.jpg: no such file; "~" is not expanded. Give the full path, {full!r}')
    assert "full path" not in message("~unknown-user/x.jpg")


def test_python_and_the_advice_agree(room, monkeypatch):
    """The expressions in the messages give the images."""
    monkeypatch.chdir(room)
    listed = re.search(r"(sorted\(.*\))", message("photos"))[1].replace("photos", ".").replace("*.jpg", "*.png")
    assert eval(listed, {"pathlib": pathlib}) == [Path("dog.png")]
    listed = re.search(r"(sorted\(.*\)),", message("*.jpg"))[1].replace("*.jpg", "*.png")
    assert eval(listed, {"glob": glob}) == ["dog.png"]


def test_a_folder_that_cannot_be_listed_has_no_suggestions(room, monkeypatch):
    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(os, "scandir", refuse)
    assert message(room / "cat.jpg").endswith(f"no such file in the folder {room}. Check the name")


def test_a_deleted_working_directory_is_no_other_error(monkeypatch):
    def deleted():
        raise FileNotFoundError("gone")

    monkeypatch.setattr(os, "getcwd", deleted)
    assert message("nope.jpg") == "nope.jpg: no such file in the folder .. Check the name"


def test_a_large_folder_is_searched_in_part(monkeypatch, tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.png").touch()
    monkeypatch.setattr(missing, "MAX_ENTRIES", 20)
    found = sum("Did you mean" in message(tmp_path / f"{i}.jpg") for i in range(30))
    assert found == 20


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("place", ["scandir", "getcwd"])
def test_a_timeout_during_the_search_passes_through(monkeypatch, place):
    error = TimeoutError("the job took too long")

    def handler(signum, frame):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(os, place, lambda *_: signal.raise_signal(signal.SIGALRM))
    try:
        with pytest.raises(TimeoutError) as raised:
            open_image("nope.jpg")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


def test_detect_names_the_reason(room):
    model = minigdino.load("shapes")
    with pytest.raises(ImageError, match="got a folder. Give one of its images"):
        model.detect(room, "a star.")
    start = time.perf_counter()
    errors = model.detect([room / "cat.jpg"] * 50, "a star.", errors="return")
    assert time.perf_counter() - start < 1
    assert all("Did you mean" in str(error) for error in errors)

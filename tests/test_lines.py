"""The line of an image in a run, and the images that a file has already."""

import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigdino import ArgumentError, files
from minigdino.runs.items import Item
from minigdino.runs.lines import Done, line

OPTIONS = {"threshold": 0.1, "text_threshold": 0.25, "size": None}
IDS = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**62 + 1, 2**63 - 1])
NAMES = st.sampled_from(["a", "b", "\udcff"])
LINES = st.lists(st.tuples(NAMES, IDS, st.booleans()).map(
    lambda row: {"image": row[0], "id": row[1], **({"detections": []} if row[2] else {"error": "no"})}))
OTHERS = st.sampled_from([{"id": 1}, *({"image": "a", **number} for number in (
    {}, {"id": None}, {"id": True}, {"id": 1.0}, {"id": 2**63}, {"id": "1"}))])


@given(LINES, st.lists(OTHERS, max_size=3), st.lists(IDS, unique=True), NAMES)
def test_the_last_line_of_an_image_says_whether_it_is_done(lines, others, ids, name):
    done, last = Done(), {}
    for values in (*lines, *others):
        done.add(values)
        if values in lines:
            last[values["id"]] = values
    good = {number: values["image"] for number, values in last.items() if "error" not in values}
    assert len(done) == len(good)
    for number in ids:
        if good.get(number, name) == name:
            assert (Item(number, name) in done) == (number in good)
        else:
            with pytest.raises(ArgumentError, match=f"another image with the id {number}\\. Correct the manifest"):
                assert Item(number, name) not in done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(tiny.photo(60, 80)).save(folder / "good.png")
    Image.fromarray(tiny.photo(60, 80)).resize((2000, 1)).save(folder / "long.png")
    (folder / "bad.png").write_text("no picture")
    return folder


def test_a_line_has_the_detections_of_the_library(folder):
    model, uri = tiny.model(), str(folder / "good.png")
    found = line(model, "a cat.", OPTIONS, Item(7, uri))
    assert found == {"id": 7, **files.record(uri, model.detect(uri, "a cat.", **OPTIONS))}
    assert list(found) == ["image", "id", "width", "height", "detections"]
    assert found["detections"]


@pytest.mark.parametrize("name", ["bad.png", "long.png", "void.png"])
def test_an_image_that_cannot_be_used_is_named_once(folder, name):
    uri = str(folder / name)
    found = line(tiny.model(), ["a cat"], OPTIONS, Item(-7, uri))
    assert list(found) == ["image", "id", "error"] and (found["image"], found["id"]) == (uri, -7)
    assert found["error"].startswith(f"{uri}: ") and found["error"].count(uri) == 1
    json.dumps(found)


def test_the_error_of_a_url_has_no_password(folder):
    found = line(tiny.model(), ["a cat"], OPTIONS, Item(1, "http://me:secret@127.0.0.1/a.png"))
    assert "secret" not in found["error"] and found["error"].startswith("http://127.0.0.1/a.png: ")

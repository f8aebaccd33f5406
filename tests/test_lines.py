"""The line of an image in a run, and the images that a file has already."""

import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigdino import files
from minigdino.runs.items import Item
from minigdino.runs.lines import Done, line

OPTIONS = {"threshold": 0.1, "text_threshold": 0.25, "size": None}
IDS = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**62 + 1, 2**63 - 1])
LINES = st.lists(st.tuples(IDS, st.booleans()).map(
    lambda pair: {"image": "a", "id": pair[0], **({"detections": []} if pair[1] else {"error": "no"})}))
OTHERS = st.sampled_from([{"image": "a"}, *({"image": "a", "id": number} for number in (None, True, 1.0, 2**63, "1"))])


@given(LINES, st.lists(OTHERS, max_size=3), st.lists(IDS))
def test_the_last_line_of_an_image_says_whether_it_is_done(lines, others, ids):
    done, last = Done(), {}
    for values in (*lines, *others):
        done.add(values)
        if values in lines:
            last[values["id"]] = "error" not in values
    assert list(done.ids) == sorted(number for number, good in last.items() if good)
    assert list(done.has(ids)) == [last.get(number, False) for number in ids]
    assert [bool(done.has(number)) for number in ids] == list(done.has(ids))


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

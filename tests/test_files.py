"""Detection in many images, some of them corrupted; resumable JSON Lines; COCO files."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino
from minigdino import files

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


def test_a_corrupted_image_is_reported_and_the_others_are_processed(folder):
    (folder / "b.png").write_bytes(b"not a picture")
    results = []
    failed = files.detect_each(
        tiny.model(), files.find_images([str(folder)]), TEXT, on_result=lambda *pair: results.append(pair)
    )
    assert failed == 1
    assert [isinstance(result, minigdino.Error) for _, result in results] == [False, True, False]
    bad, good = files.record(*results[1]), files.record(*results[0])
    assert list(bad) == ["image", "error"]
    assert "b.png: not a readable image" in bad["error"]
    assert list(good) == ["image", "width", "height", "detections"]


def test_lines_are_written_immediately_and_a_file_can_be_resumed(tmp_path):
    path = tmp_path / "found.jsonl"
    lines = files.JsonLines(path)
    lines.write({"image": "a"})
    assert path.read_text() == '{"image": "a"}\n'  # while the run continues
    with open(path, "a") as file:
        file.write('{"image": "b", "wid')  # an interruption in the middle of a line
    again = files.JsonLines(path, resume=True)
    assert again.done == {"a"}
    again.write({"image": "b"})
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a", "b"]
    with pytest.raises(minigdino.ArgumentError, match="exists already. Give --resume"):
        files.JsonLines(path)
    path.write_text("[]\n")
    with pytest.raises(minigdino.ArgumentError, match='each line must be a JSON object with "image"; line 1 is not'):
        files.JsonLines(path, resume=True)
    with pytest.raises(minigdino.ArgumentError, match="cannot be written"):
        files.JsonLines(tmp_path / "void" / "new.jsonl")


def test_the_ids_of_a_coco_file_are_consistent():
    model = tiny.model()
    results = [(f"{i}.png", model.detect(tiny.photo(seed=i), TEXT, threshold=0)) for i in range(2)]
    data = files.coco(results, {"a cat": 1, "remote control": 2})
    assert [(image["id"], image["file_name"]) for image in data["images"]] == [(1, "0.png"), (2, "1.png")]
    assert [c["name"] for c in data["categories"]] == TEXT
    assert [a["id"] for a in data["annotations"]] == list(range(1, 41))
    one, box = data["annotations"][25], results[1][1].boxes[5]
    assert one["image_id"] == 2
    np.testing.assert_allclose(one["bbox"], [box[0], box[1], box[2] - box[0], box[3] - box[1]], rtol=1e-4, atol=1e-4)
    named = files.coco(results, {"a cat": 17, "remote control": 75})
    assert {a["category_id"] for a in named["annotations"]} <= {17, 75}


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


@pytest.mark.parametrize("content", [7, [1], [{"id": 1}], {"a": "x"}, {"categories": 3}])
def test_other_formats_of_categories_are_rejected(tmp_path, content):
    (tmp_path / "ids.json").write_text(json.dumps(content))
    with pytest.raises(minigdino.ArgumentError, match=r"ids\.json: expected"):
        files.read_categories(tmp_path / "ids.json")

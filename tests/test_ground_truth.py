"""Annotation files for evaluation: what is read from COCO and from LVIS, and a message for each fault."""

import copy
import json

import numpy as np
import pytest
from annotated import as_coco, random_set
from hypothesis import given
from PIL import Image
from strategies import rngs

from minigdino import ArgumentError
from minigdino.evaluation.ground_truth import Category, Picture, read_ground_truth, read_object

COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 50, "height": 40, "coco_url": "http://images/val2017/b.jpg"},
        {"id": 4, "file_name": "sub/a.jpg", "width": 30, "height": 20}],
    "annotations": [
        {"id": 0, "image_id": 4, "category_id": 3, "bbox": [1, 2, 3.5, 4], "area": 7.25, "iscrowd": 0,
         "segmentation": [[1, 2, 3, 4]]},
        {"id": 7, "image_id": 4, "category_id": 8, "bbox": [0, 0, 30, 20], "iscrowd": 1},
        {"id": 5, "image_id": 9, "category_id": 3, "bbox": [-2, 5, 0, 60], "area": 0}],
    "categories": [{"id": 8, "name": "traffic light", "supercategory": "outdoor"}, {"id": 3, "name": "cat"}]}
LVIS = {
    "images": [{"id": 391895, "width": 640, "height": 360, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
                "neg_category_ids": [2, 1], "not_exhaustive_category_ids": [1], "license": 3}],
    "annotations": [{"id": 1, "image_id": 391895, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 600.5}],
    "categories": [{"id": 1, "name": "bow_(weapon)", "frequency": "r", "synonyms": ["bow"], "image_count": 4},
                   {"id": 2, "name": "bow_(decorative_ribbons)", "frequency": "f"}]}


@pytest.fixture
def saved(tmp_path):
    def save(content):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path
    return save


def changed(content, *path, **fields):
    """A copy of a file in which the object at a path has other fields; the value None removes a field."""
    content = copy.deepcopy(content)
    entry = content
    for key in path:
        entry = entry[key]
    entry |= fields
    for name in [name for name, value in fields.items() if value is None]:
        del entry[name]
    return content


def test_a_file_of_coco(saved):
    truth = read_ground_truth(saved(COCO))
    assert truth.pictures == [Picture(9, "b.jpg", 50, 40), Picture(4, "sub/a.jpg", 30, 20)]
    assert truth.categories == [Category(8, "traffic light"), Category(3, "cat")]
    assert truth.ids.tolist() == [0, 7, 5]
    assert truth.image_ids.tolist() == [4, 4, 9]
    assert truth.category_ids.tolist() == [3, 8, 3]
    assert truth.boxes.tolist() == [[1, 2, 3.5, 4], [0, 0, 30, 20], [-2, 5, 0, 60]]
    assert truth.areas.tolist() == [7.25, 600, 0]
    assert truth.crowd.tolist() == [False, True, False]
    assert [array.dtype for array in (truth.ids, truth.image_ids, truth.category_ids)] == [np.int64] * 3
    assert [array.dtype for array in (truth.boxes, truth.areas, truth.crowd)] == [np.float64, np.float64, bool]


def test_masks_are_dropped_while_a_file_is_read(saved):
    assert "segmentation" in COCO["annotations"][0]
    assert not any("segmentation" in entry for entry in read_object(saved(COCO)).values["annotations"])


def test_a_file_of_lvis(saved):
    truth = read_ground_truth(saved(LVIS))
    assert truth.pictures == [
        Picture(391895, "train2017/000000391895.jpg", 640, 360, frozenset({1, 2}), frozenset({1}))]
    assert truth.categories == [Category(1, "bow_(weapon)", "r"), Category(2, "bow_(decorative_ribbons)", "f")]
    assert truth.areas.tolist() == [600.5]
    assert truth.crowd.tolist() == [False]


def test_an_image_of_lvis_without_a_url_has_its_file_name(saved):
    content = changed(LVIS, "images", 0, coco_url=None, file_name="val2017/1.jpg")
    assert read_ground_truth(saved(content)).pictures[0].file_name == "val2017/1.jpg"


def test_a_prompt_of_an_image_has_an_order(saved):
    truth = read_ground_truth(saved(changed(COCO, "images", 1, prompt=[3, 8])))
    assert [picture.prompt for picture in truth.pictures] == [None, (3, 8)]


def test_a_part_of_a_set_has_the_annotations_of_its_images_and_all_categories(saved):
    truth = read_ground_truth(saved(COCO))
    part = truth.only([4, 12345])
    assert [picture.id for picture in part.pictures] == [4]
    assert part.categories == truth.categories
    assert part.ids.tolist() == [0, 7]
    assert part.boxes.tolist() == truth.boxes[:2].tolist()
    assert [len(array) for array in (part.image_ids, part.category_ids, part.areas, part.crowd)] == [2] * 4
    assert len(truth.only([]).boxes) == 0


@given(rngs())
def test_a_written_set_is_read_again(tmp_path_factory, rng):
    truth, _ = random_set(rng)
    path = tmp_path_factory.mktemp("set") / "lvis.json"
    path.write_text(json.dumps(as_coco(truth)))
    again = read_ground_truth(path)
    assert again.pictures == truth.pictures
    assert again.categories == truth.categories
    for name in ("image_ids", "category_ids", "boxes", "areas", "crowd"):
        np.testing.assert_array_equal(getattr(again, name), getattr(truth, name))


ANNOTATION, IMAGE, CATEGORY = ("annotations", 1), ("images", 1), ("categories", 1)


@pytest.mark.parametrize(("content", "message"), [
    ([], r"annotations.json: expected a JSON object; got \[\]"),
    ("{", "expected annotations, a JSON file .* it is not readable"),
    ('{"images": [], "images": []}', "it is not readable .*repeats the key 'images'"),
    (changed(COCO, images=None), '.json: expected a list as "images"; got no such field'),
    (changed(COCO, images=[]), ".json: expected at least one object in images; got none. Evaluation needs"),
    (changed(COCO, annotations=[]), ".json: expected at least one object in annotations; got none"),
    (changed(COCO, annotations=None), '.json: expected a list as "annotations"; got no such field'),
    (changed(COCO, categories={}), r'.json: expected a list as "categories"; got \{\}'),
    (changed(COCO, categories=[3]), r"categories\[0\]: expected a JSON object; got 3"),
    (changed(COCO, *CATEGORY, id=8), r"categories\[1\]: expected a different id for each entry; got 8 for the second"),
    (changed(COCO, *CATEGORY, name=None), r'categories\[1\]: expected a text as "name"; got no such field'),
    (changed(COCO, *CATEGORY, frequency="x"), r'categories\[1\]: expected "r", "c" or "f" as "frequency"; got \'x\''),
    (changed(COCO, *CATEGORY, frequency=[]), r'expected "r", "c" or "f" as "frequency"; got \[\]'),
    (changed(COCO, *IMAGE, id=9), r"images\[1\]: expected a different id for each entry; got 9 for the second time"),
    (changed(COCO, *IMAGE, id=True), r'images\[1\]: expected an int as "id"; got True'),
    (changed(COCO, *IMAGE, id=2**63), r'images\[1\]: expected an int as "id"; got 9223372036854775808'),
    (json.dumps(COCO).replace('"id": 4,', f'"id": {"9" * 5000},'), "it is not readable .*limit .* integer"),
    (changed(COCO, *IMAGE, file_name=None), r'images\[1\]: expected a text as "file_name"; got no such field'),
    (changed(COCO, *IMAGE, file_name=""), r'images\[1\]: expected a text as "file_name"; got \'\''),
    (changed(COCO, *IMAGE, width=None, height=None), r'images\[1\]: expected the size of the image as "width" and'),
    (changed(COCO, *IMAGE, height=0), r'images\[1\]: expected a positive int as "height"; got 0'),
    (changed(COCO, *IMAGE, prompt=[]), r'images\[1\]: expected at least one category id, and each once, as "prompt"'),
    (changed(COCO, *IMAGE, prompt=[3, 3]), r'and each once, as "prompt"; got \[3, 3\]'),
    (changed(COCO, *IMAGE, prompt=[4]), r'images\[1\]: expected a list of category ids as "prompt"; got \[4\]'),
    (changed(COCO, *IMAGE, prompt=["cat"]), r'expected a list of category ids as "prompt"; got \[\'cat\'\]'),
    (changed(COCO, *IMAGE, prompt=[[3]]), r'expected a list of category ids as "prompt"; got \[\[3\]\]'),
    (changed(LVIS, "images", 0, neg_category_ids=None), 'list of category ids as "neg_category_ids"; got no'),
    (changed(LVIS, "images", 0, not_exhaustive_category_ids=[9]), 'category ids as "not_exhaustive_category_ids"'),
    (changed(COCO, *ANNOTATION, id=None), r'annotations\[1\]: expected an int as "id"; got no such field'),
    (changed(COCO, *ANNOTATION, id=0), r"annotations\[1\]: expected a different id for each entry; got 0"),
    (changed(COCO, *ANNOTATION, image_id=5), r'\[1\]: expected the id of one of the 2 images as "image_id"; got 5'),
    (changed(COCO, *ANNOTATION, category_id=1), 'expected the id of one of the 2 categories as "category_id"; got 1'),
    (changed(COCO, *ANNOTATION, category_id=8.0), 'expected an int as "category_id"; got 8.0'),
    (changed(COCO, *ANNOTATION, bbox=None), r"annotations\[1\]: expected \[left, top, width, height\] .*got no such"),
    (changed(COCO, *ANNOTATION, bbox=[1, 2, 3]), r'as "bbox"; got \[1, 2, 3\]'),
    (changed(COCO, *ANNOTATION, bbox=[1, 2, -3, 4]), r'and a height of 0 or more as "bbox"; got \[1, 2, -3'),
    (changed(COCO, *ANNOTATION, bbox=[1, float("nan"), 3, 4]), r'as "bbox"; got \[1, nan, 3, 4\]'),
    (changed(COCO, *ANNOTATION, bbox=[1, 2, float("inf"), 4]), r'as "bbox"; got \[1, 2, inf, 4\]'),
    (changed(COCO, *ANNOTATION, bbox=[1, 2, 1e300, 1e300]), r'as "bbox"; got'),
    (changed(COCO, *ANNOTATION, bbox=[1, 2, "3", True]), r'as "bbox"; got'),
    (changed(COCO, *ANNOTATION, area=-1), r'annotations\[1\]: expected a number of 0 or more as "area"; got -1'),
    (changed(COCO, *ANNOTATION, area="7"), r'expected a number of 0 or more as "area"; got \'7\''),
    (changed(COCO, *ANNOTATION, iscrowd=2), r'annotations\[1\]: expected 0 or 1 as "iscrowd"; got 2'),
])
def test_each_fault_is_named_with_its_entry(saved, content, message):
    with pytest.raises(ArgumentError, match=message):
        read_ground_truth(saved(content))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="nothing.json: no such file. Give the path of an annotation file"):
        read_ground_truth(tmp_path / "nothing.json")
    with pytest.raises(ArgumentError, match="it is not readable"):
        read_ground_truth(tmp_path)


def test_an_image_instead_of_annotations_is_called_one(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    for read in (read_ground_truth, read_object):
        with pytest.raises(ArgumentError, match=r"a\.jpg: expected annotations, .*; got an image\. Give the file"):
            read(tmp_path / "a.jpg")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(saved, monkeypatch):
    monkeypatch.setattr("minigdino.evaluation.ground_truth.MAX_CATEGORIES", 100)
    with pytest.raises(ArgumentError, match="it is not readable .expected at most 100 bytes"):
        read_ground_truth(saved(COCO))

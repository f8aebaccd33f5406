"""Annotation files: both formats give the same samples, and each fault is named with its entry and the next step."""

import copy
import json

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minigdino import ArgumentError, Error
from minigdino.learning import annotations
from minigdino.learning.annotations import read
from minigdino.network.losses import Targets
from minigdino.prompt import as_label
from minigdino.targets import image_targets, one_per_object

SIZES = {"a.png": (40, 30), "b.jpg": (24, 32), "sub/c.png": (50, 20)}  # width, height
CATEGORIES = [{"id": 7, "name": "a cat", "supercategory": "animal"}, {"id": 3, "name": "red hat"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three images. Tests add annotation files to it."""
    home = tmp_path_factory.mktemp("images")
    (home / "sub").mkdir()
    for name, (width, height) in SIZES.items():
        Image.fromarray(tiny.photo(height, width)).save(home / name)
    return home


def coco(**changes):
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(SIZES)]
    boxes = [{"image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 20]},
             {"image_id": 12, "category_id": 3, "bbox": [0.5, 0, 30, 5.25], "iscrowd": 0},
             {"image_id": 10, "category_id": 3, "bbox": [30, 20, 10, 10], "area": 100}]
    return {"images": images, "annotations": boxes, "categories": CATEGORIES} | changes


def odvg(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def detection(name, *boxes):
    return {"filename": name, "detection": {"instances": [
        {"bbox": corners, "label": 0, "category": category} for category, corners in boxes]}}


LINES = [detection("a.png", ("a cat", [1, 2, 11, 22]), ("red hat", [30, 20, 40, 30])), detection("b.jpg"),
         detection("sub/c.png", ("red hat", [0.5, 0, 30.5, 5.25]))]


def saved(folder, content):
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refused(folder, content, **options):
    """The message for an annotation file, without the folder."""
    with pytest.raises(ArgumentError) as caught:
        read(saved(folder, content), **options)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert len(message) < 1000
    return message.replace(f"{folder}/", "")


def described(samples):
    return [(sample.path, sample.boxes.tolist(), sample.labels) for sample in samples]


@pytest.mark.parametrize("content", [coco(), json.dumps(coco(), indent=2), odvg(*LINES), " \n" + odvg(*LINES) + "\n\n"])
def test_both_formats_give_the_same_samples(folder, content):
    samples = read(saved(folder, content))
    assert described(samples) == [
        (f"{folder}/a.png", [[1, 2, 11, 22], [30, 20, 40, 30]], ("a cat", "red hat")),
        (f"{folder}/b.jpg", [], ()),
        (f"{folder}/sub/c.png", [[0.5, 0, 30.5, 5.25]], ("red hat",))]
    assert all(sample.boxes.dtype == np.float32 and sample.boxes.shape[1] == 4 for sample in samples)


def test_a_data_set_that_minigdino_writes_can_be_read(folder, tmp_path):
    import minigdino

    found = minigdino.detect(tiny.photo(30, 40), "a cat", model=tiny.model(), threshold=0)
    rows = [{"id": i, **row} for i, row in enumerate(found.to_coco(10, {"a cat": 7}))]
    inside = [row for row in rows if row["bbox"][2] > 0 and row["bbox"][0] < 40 and row["bbox"][1] < 30]
    (sample, *_) = read(saved(folder, coco(annotations=inside)))
    assert len(sample.boxes) == len(inside) > 0


def test_images_can_be_in_another_folder(folder, tmp_path, monkeypatch):
    expected = described(read(saved(folder, coco())))
    moved = saved(tmp_path, coco())
    assert described(read(moved, images=folder)) == expected
    assert described(read(str(moved), images=str(folder))) == expected
    absolute = [{"id": 1, "file_name": str(folder / "a.png")}]
    assert read(saved(tmp_path, coco(images=absolute, annotations=[])))[0].path == f"{folder}/a.png"
    monkeypatch.chdir(folder)
    assert [sample.path for sample in read("annotations.json")] == list(SIZES)


def test_a_phrase_of_a_caption_has_one_or_several_boxes(folder):
    """An image can have several captions."""
    regions = [{"bbox": [[1, 2, 11, 22], [5, 5, 9, 9]], "phrase": "A cat", "tokens_positive": [[0, 5]]},
               {"bbox": [30, 20, 40, 30], "phrase": "a red hat."}]
    lines = [{"filename": "a.png", "height": 30, "width": 40, "grounding": {"caption": "A cat, a red hat.",
                                                                            "regions": regions}},
             {"filename": "a.png", "grounding": {"caption": "Two cats", "regions": [
                 {"bbox": [1, 2, 11, 22], "phrase": " a cat"}]}}]
    first, second = read(saved(folder, odvg(*lines)))
    assert first.labels == ("A cat", "A cat", "a red hat")
    assert first.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 9, 9], [30, 20, 40, 30]]
    assert second.labels == ("A cat",)  # in the wording that came first


def test_labels_that_differ_in_case_only_are_the_same(folder):
    categories = [{"id": 7, "name": " A Cat."}, {"id": 3, "name": "a cat"}, {"id": 4, "name": "st. Bernard "}]
    (first, _, third) = read(saved(folder, coco(categories=categories)))
    assert first.labels == ("A Cat", "A Cat") and third.labels == ("A Cat",)
    boxes = [(category, [1, 2, 3, 4]) for category in ("Dog", "dog ", "DOG..", "a dog", "st. Bernard")]
    (sample,) = read(saved(folder, odvg(detection("a.png", *boxes))))
    assert sample.labels == ("Dog", "Dog", "Dog", "a dog", "st. Bernard")


def test_crowds_are_skipped(folder):
    crowd = {"image_id": 10, "category_id": 7, "bbox": [0, 0, 0, 0], "iscrowd": 1, "segmentation": {"counts": []}}
    assert described(read(saved(folder, coco(annotations=[crowd, *coco()["annotations"]])))) == described(
        read(saved(folder, coco())))
    assert '"iscrowd"; got 2' in refused(folder, coco(annotations=[crowd | {"iscrowd": 2}]))


def test_boxes_refer_to_the_upright_image(folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(tiny.photo(30, 40)).save(folder / "turned.jpg", exif=exif)
    (sample,) = read(saved(folder, odvg(detection("turned.jpg", ("a cat", [0, 0, 30, 40])))))
    assert sample.boxes.tolist() == [[0, 0, 30, 40]]
    message = refused(folder, odvg(detection("turned.jpg", ("a cat", [0, 0, 40, 30])) | {"width": 40, "height": 30}))
    assert message == ('annotations.json: line 1: expected the size of the upright image turned.jpg as "width" and '
                       '"height", 30 and 40; got 40 and 30. A file is rotated by its EXIF orientation first. Convert '
                       "the boxes to pixels of this image")
    assert read(saved(folder, odvg(detection("turned.jpg") | {"width": 30, "height": 40})))


boxes = st.tuples(*[st.floats(-60, 100, width=32)] * 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_a_box_is_clipped_and_refused_as_in_the_loss(folder, box):
    path, prompt = saved(folder, odvg(detection("a.png", ("cat", list(box))))), tiny.tokenizer().encode(["cat"])
    try:
        (sample,) = read(path)
    except ArgumentError as error:
        assert "line 1: instances[0]: expected a box" in str(error).replace("detection: ", "")
        low, high = np.clip(box[:2], 0, (40, 30)), np.clip(box[2:], 0, (40, 30))
        assert (high - low).min() < 1e-4
    else:
        corners = sample.boxes[0].tolist()
        np.testing.assert_array_equal(corners, np.clip(np.float32(box), 0, np.float32([40, 30, 40, 30])))
        targets = image_targets(sample.boxes, sample.labels, prompt, (40, 30))
        np.testing.assert_allclose(targets.boxes, image_targets([box], ["cat"], prompt, (40, 30)).boxes, atol=1e-6)


def test_a_message_about_a_box_names_file_entry_image_and_order(folder):
    row = coco()["annotations"][0]
    assert refused(folder, coco(annotations=[row, row | {"bbox": [30, 5, -20, 10]}])) == (
        "annotations.json: annotations[1]: expected a box [left, top, width, height] with an area inside the image "
        "a.png of 40 x 30 pixels; got one from [30.0, 5.0] to [10.0, 15.0]. Correct it, or remove it")
    outside = detection("b.jpg", ("cat", [1, 1, 2, 2]), ("cat", [24, 0, 30, 9]))
    assert refused(folder, odvg(LINES[0], outside)).startswith(
        "annotations.json: line 2: detection: instances[1]: expected a box [left, top, right, bottom] with")


def test_all_image_files_must_exist(folder):
    images = [{"id": i, "file_name": name} for i, name in enumerate(["a.png", "x.jpg", "y.jpg"])]
    assert refused(folder, coco(images=images, annotations=[])) == (
        "annotations.json: images[1]: expected an image file at x.jpg; 2 of 3 images are missing. Give the folder of "
        "the images, or remove the entries")
    for name in ("\0", "\ud800", "~/x", "http://example.com/a.jpg"):
        content = coco(images=[{"id": 1, "file_name": name}], annotations=[])
        assert "1 of 1 images are missing" in refused(folder, content)


def test_an_unreadable_image_is_named_with_its_entry(folder):
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_text("")
    for name, problem in (("text.jpg", "not a readable image"), ("empty.jpg", "got an empty file"),
                          ("sub", "got a folder")):
        assert f"line 2: {name}: " in (message := refused(folder, odvg(LINES[0], detection(name))))
        assert problem in message


@pytest.mark.parametrize("other", ["a.png", "./a.png", "sub/../a.png"])
def test_an_image_is_annotated_once(folder, other):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": other}]
    assert "images[1]: expected each image once; " in refused(folder, coco(images=images, annotations=[]))
    assert "has another entry, images[0]. Put" in refused(folder, coco(images=images, annotations=[]))
    assert "line 3: expected each image once" in refused(folder, odvg(*LINES[:2], detection(other)))
    caption = {"filename": other, "grounding": {"caption": "", "regions": []}}
    assert "line 2: expected each image once" in refused(folder, odvg(LINES[0], caption))


WRONG = [None, True, 1.5, "7", [], {}, [1], float("nan")]
BOX = coco()["annotations"][0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"images": {}}, 'expected a list as "images"; got {}'),
    ({"images": []}, "expected at least one image; got none"),
    ({"images": [7]}, "images[0]: expected a JSON object; got 7"),
    ({"images": [{"id": 1}]}, 'images[0]: expected a text as "file_name"; got no such field'),
    ({"images": [{"id": 1, "file_name": ""}]}, "images[0]: expected a text as \"file_name\"; got ''"),
    *(({"images": [{"id": wrong, "file_name": "a.png"}]}, 'images[0]: expected an int as "id"; got ')
      for wrong in WRONG),
    ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.jpg"}]},
     "images[1]: expected a different id for each image; 'a.png' has the id 1, too"),
    *(({"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": wrong}]},
       'images[0]: expected a positive int as "height"; got ') for wrong in (*WRONG, 0, -30)),
    ({"images": [{"id": 1, "file_name": "a.png", "width": 40}]}, 'a positive int as "height"; got no such field'),
    ({"images": [{"id": 10, "file_name": "a.png", "width": 80, "height": 60}], "annotations": []},
     'images[0]: expected the size of the upright image a.png as "width" and "height", 40 and 30; got 80 and 60. C'),
    ({"annotations": None}, 'expected a list as "annotations"; got None'),
    ({"annotations": [[]]}, "annotations[0]: expected a JSON object; got []"),
    *(({"annotations": [BOX | {"image_id": wrong}]}, 'annotations[0]: expected an int as "image_id"; got ')
      for wrong in WRONG),
    *(({"annotations": [BOX, BOX | {"category_id": wrong}]}, 'annotations[1]: expected an int as "category_id"; got ')
      for wrong in WRONG),
    ({"annotations": [BOX | {"image_id": 9}]},
     'annotations[0]: expected the id of one of the 3 images as "image_id"; got 9. Correct the entry, or remove it'),
    ({"annotations": [BOX | {"category_id": 9}]}, 'expected the id of one of the 2 categories as "category_id"; got 9'),
    *(({"annotations": [BOX | {"bbox": wrong}]}, 'annotations[0]: expected [left, top, width, height] as "bbox"; got ')
      for wrong in (*WRONG, [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [True, 2, 3, 4], [float("nan"), 2, 3, 4],
                    [1, 2, float("inf"), 4], [10**400, 2, 3, 4], [1, 2, [3], 4])),
    *(({"categories": wrong}, 'expected a list as "categories"; got ') for wrong in (None, {"a cat": 7}, "a cat")),
    ({"categories": []}, "expected at least one category"),
    ({"categories": [{"id": True, "name": "a cat"}]}, "expected an int as the id of 'a cat'; got True"),
    ({"categories": [*CATEGORIES, {"id": 4, "name": "a cat"}]}, "expected each label once; got 'a cat' twice"),
    ({"categories": [*CATEGORIES, {"id": 4, "name": " . "}]}, "expected a text as the name of a category; got ' . '")])
def test_a_wrong_value_in_a_coco_file_is_named(folder, changes, message):
    assert message in refused(folder, coco(**changes))


@pytest.mark.parametrize("name", ["annotations", "categories"])
def test_each_list_of_a_coco_file_must_be_there(folder, name):
    content = coco()
    del content[name]
    assert refused(folder, content) == (f'annotations.json: expected a list as "{name}"; got no such field. Correct '
                                        "the entry")


@pytest.mark.parametrize(("line", "message"), [
    ("[]", "expected a JSON object; got []"),
    ("{", "expected a JSON object; got another text (Expecting property name"),
    ('{"filename": "a.png", "filename": "b.jpg"}', "(an object repeats the key 'filename')"),
    ('{"filename": 3}', 'expected a text as "filename"; got 3'),
    ('{"filename": "b.jpg"}', 'expected either "detection" or "grounding"; got neither'),
    ('{"filename": "b.jpg", "detection": {}, "grounding": {}}', "got both"),
    ('{"filename": "b.jpg", "width": 0, "detection": {"instances": []}}', 'a positive int as "width"; got 0'),
    ('{"filename": "b.jpg", "detection": []}', "detection: expected a JSON object; got []"),
    ('{"filename": "b.jpg", "detection": {}}', 'detection: expected a list as "instances"; got no such field'),
    ('{"filename": "b.jpg", "detection": {"instances": [{"bbox": [1, 2, 3, NaN]}]}}',
     'detection: instances[0]: expected [left, top, right, bottom] as "bbox"; got [1, 2, 3, nan]'),
    ('{"filename": "b.jpg", "detection": {"instances": [{"bbox": [1, 2, 3, 4], "label": 3}]}}',
     'instances[0]: expected a text as "category"; got no such field'),
    ('{"filename": "b.jpg", "grounding": {"regions": [{"bbox": [[1, 2, 3]]}]}}',
     'grounding: regions[0]: expected [left, top, right, bottom], or a list of them as "bbox"; got [[1, 2, 3]]'),
    ('{"filename": "b.jpg", "grounding": {"regions": [{"bbox": [1, 2, 3, 4], "phrase": ""}]}}',
     "regions[0]: expected a text as \"phrase\"; got ''")])
def test_a_wrong_line_of_an_odvg_file_is_named(folder, line, message):
    assert (text := refused(folder, odvg(LINES[0]) + "\n" + line)).startswith("annotations.json: line 3: ")
    assert message in text


@pytest.mark.parametrize("content", ["", " ", "{", "7", "null", "[]", "{}", '[{"filename": "a.png"}]', "\ufeff{}",
                                     json.dumps(coco()) * 2, "9" * 5000, "[" * 100_000, '{"images": [], "images": []}'])
def test_other_formats_are_refused(folder, content):
    message = refused(folder, content)
    assert 'expected COCO annotations, {"images": [...], "annotations": [...], "categories": [...]}, or ODVG' in message


def test_a_file_that_cannot_be_read_is_named(folder, tmp_path, monkeypatch):
    (folder / "latin.json").write_bytes(b'{"images": "\xe9"}')
    for path, message in (("none.json", "no such file"), ("sub", "not a readable annotation file"),
                          ("latin.json", "not a readable annotation file .*utf-8")):
        with pytest.raises(ArgumentError, match=message):
            read(folder / path)
    path = saved(tmp_path, coco())
    with pytest.raises(ArgumentError, match="none: expected the folder of the images; there is none"):
        read(path, images="none")
    monkeypatch.setattr(annotations, "MAX_CATEGORIES", 10)
    with pytest.raises(ArgumentError, match="expected at most 10 bytes"):
        read(path)


names = st.sampled_from([*SIZES, "void.png", "sub"]) | st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 15) | st.floats() | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([
        "id", "file_name", "filename", "image_id", "category_id", "bbox", "name", "images", "annotations", "categories",
        "detection", "grounding", "regions", "instances", "phrase", "category", "width", "height"]), inner, max_size=4),
    max_leaves=12)


def places(tree):
    """The containers of a tree of JSON values, each with one of its keys or indices."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key])


@st.composite
def changed(draw, tree):
    """A tree of JSON values of which one or two are replaced or missing."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(tree))))
        if draw(st.booleans()):
            container[key] = draw(values)
        else:
            del container[key]
    return tree


def check(folder, content):
    """Any file gives samples, whose boxes are inside their images, or an error of minigdino."""
    try:
        samples = read(saved(folder, content))
    except Error:
        return
    for sample in samples:
        with Image.open(sample.path) as image:
            width, height = image.size
        assert sample.boxes.dtype == np.float32 and sample.boxes.shape == (len(sample.labels), 4)
        assert (sample.boxes >= 0).all() and (sample.boxes <= np.float32([width, height, width, height])).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert all(label and as_label(label) == label for label in sample.labels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=changed(coco()) | changed(LINES))
def test_a_changed_file_gives_samples_or_an_error(folder, content):
    check(folder, content if isinstance(content, dict) else odvg(*content))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=values | st.text())
def test_any_json_gives_samples_or_an_error(folder, content):
    check(folder, content if isinstance(content, str) and content.isprintable() else json.dumps(content))


def test_an_image_as_annotations_is_called_one(folder):
    with pytest.raises(ArgumentError, match=r"a\.png: expected COCO .*; got an image\. Give the file with its annot"):
        read(folder / "a.png")


def key(box):
    return tuple(map(float, box))


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.booleans(), min_size=5, max_size=5)), max_size=9))
def test_annotations_with_the_same_box_are_one_object(rows):
    """It has the tokens of all its labels. Objects are in the order of their first annotations."""
    corners = np.float32([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.5], [0.7, 0.7, 0.2, 0.2], [0.1, 0.2, 0.2, 0.4]])
    boxes = corners[[place for place, _ in rows]].reshape(-1, 4)
    tokens = np.array([row for _, row in rows], bool).reshape(-1, 5)
    found = one_per_object(Targets(boxes, tokens))
    assert list(map(key, found.boxes)) == list(dict.fromkeys(map(key, boxes)))
    for box, row in zip(found.boxes, found.tokens):
        np.testing.assert_array_equal(row, tokens[(boxes == box).all(axis=1)].any(axis=0))
    assert (found.boxes.dtype, found.tokens.dtype) == (np.float32, bool)
    assert found.tokens.shape == (len(found.boxes), 5)


# One image of a COCO file.


@pytest.mark.parametrize("image", ["a.png", "photos/a.png", "/data/photos/a.png"])
def test_the_annotations_of_an_image_are_found_by_its_name(folder, monkeypatch, image):
    """In the file, the image has the longest end of its path that has an entry."""
    expected = read(saved(folder, coco()))[0]
    names = [image.removeprefix("/data/"), "a.png", "sub/c.png"]
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(dict.fromkeys(names))]
    content = coco(images=images)
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 10]
    monkeypatch.setattr(annotations, "read_size", lambda path: SIZES["a.png"])
    sample = annotations.of_image(content, "data.json", image)
    assert (sample.path, sample.labels) == (image, expected.labels)
    np.testing.assert_array_equal(sample.boxes, expected.boxes)


def test_the_annotations_of_an_image_are_checked_as_those_of_a_data_set(folder):
    wrong = coco(images=[{"id": 10, "file_name": "a.png", "width": 30, "height": 40}])["images"]
    outside = [{"image_id": 10, "category_id": 7, "bbox": [90, 2, 10, 20]}]
    for content, message in ((coco(images=wrong, annotations=[]), "expected the size of the upright image"),
                             (coco(annotations=outside), r"annotations\[0\]: expected a box"),
                             (coco(categories=[]), "at least one category")):
        with pytest.raises(ArgumentError, match=f"data.json.*{message}"):
            annotations.of_image(content, "data.json", folder / "a.png")


def test_an_image_without_an_entry_or_with_two_is_an_error(folder):
    with pytest.raises(ArgumentError) as caught:
        annotations.of_image(coco(), "data.json", "z.png")
    assert str(caught.value) == (
        'data.json: expected one entry in "images" for z.png; got none. The file has \'a.png\', \'b.jpg\', '
        "'sub/c.png'. Give the file with the annotations of this image")
    twice = coco(images=[{"id": i, "file_name": "a.png"} for i in (10, 12)])
    with pytest.raises(ArgumentError, match="for a.png; got 2 of 'a.png'. The file has 'a.png', 'a.png'. Give"):
        annotations.of_image(twice, "data.json", "a.png")

"""Drawn sets: the annotations fit the pictures, and follow the rules of their formats."""

import json

import numpy as np
import pytest
from PIL import Image

from minigdino.evaluation.ground_truth import read_ground_truth
from minigdino.evaluation.referring import read_captions
from training import sets
from training.outlines import SHAPES
from training.prompts import Meaning
from training.scenes import SETS, scenes
from training.world import COLOURS, HELD_OUT

N = {"prompts": 8, "coco": 20, "lvis": 40, "refcoco": 8, "flickr": 8}  # rare categories, and large objects


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, draw in sets.FORMATS.items():
        draw(folder / name, N[name])
    return folder


def content(drawn, name):
    return json.loads((drawn / name / sets.ANNOTATIONS).read_text())


@pytest.mark.parametrize("name", sets.FORMATS)
def test_every_picture_has_its_size_and_its_boxes_are_inside(drawn, name):
    found = content(drawn, name)
    sizes = {}
    for image in found["images"]:
        path = drawn / name / (image["coco_url"] if name == "lvis" else f"images/{image['file_name']}")
        with Image.open(path) as picture:
            sizes[image["id"]] = picture.size
        assert sizes[image["id"]] == (image["width"], image["height"])
    assert len({*(drawn / name / "images").iterdir()}) == N[name]
    for annotation in found["annotations"]:
        left, top, width, height = annotation["bbox"]
        assert 0 <= left < left + width <= sizes[annotation["image_id"]][0] + 1e-9
        assert 0 <= top < top + height <= sizes[annotation["image_id"]][1] + 1e-9


def test_a_set_is_the_same_every_time(drawn, tmp_path):
    sets.lvis(tmp_path, 3)
    again = json.loads((tmp_path / sets.ANNOTATIONS).read_text())
    assert again["images"] == content(drawn, "lvis")["images"][:3]
    assert (tmp_path / "images/000002.png").read_bytes() == (drawn / "lvis/images/000002.png").read_bytes()


def test_coco_has_objects_of_all_sizes_and_shapes(drawn):
    truth = read_ground_truth(drawn / "coco" / sets.ANNOTATIONS)
    assert [category.name for category in truth.categories] == list(SHAPES)
    assert {int(np.searchsorted([32**2, 96**2], area)) for area in truth.areas} == {0, 1, 2}
    assert {*truth.category_ids.tolist()} == {category.id for category in truth.categories}


def test_the_scenes_of_the_model_card_have_their_prompts(drawn):
    truth = read_ground_truth(drawn / "prompts" / sets.ANNOTATIONS)
    names = {category.id: category.name for category in truth.categories}
    for picture, (scene, prompt) in zip(truth.pictures, scenes("seen", N["prompts"]), strict=True):
        assert picture.phrases == tuple(prompt.phrases)
        assert [names[number] for number in picture.prompt] == [sets.name(meaning) for meaning in prompt.meanings]
        with Image.open(drawn / "prompts/images" / picture.file_name) as image:
            assert (np.asarray(image) == scene.image).all()
        own = truth.only([picture.id])
        fitting = [(names[number], thing.box) for number, meaning in zip(picture.prompt, prompt.meanings)
                   for thing in scene.things if meaning.fits(thing)]
        assert [names[number] for number in own.category_ids.tolist()] == [name for name, _ in fitting]
        for box, (_, corners) in zip(own.boxes, fitting):
            np.testing.assert_allclose([*box[:2], *(box[:2] + box[2:])], corners)


def test_every_set_of_the_model_card_can_be_drawn(tmp_path):
    for kind in SETS:
        sets.prompts(tmp_path / kind, 2, kind)
        assert len(read_ground_truth(tmp_path / kind / sets.ANNOTATIONS).pictures) == 2


def test_different_meanings_are_different_categories():
    meanings = [Meaning(colour, shape) for colour in (None, *COLOURS) for shape in (None, *SHAPES) if colour or shape]
    assert len({sets.name(meaning) for meaning in meanings}) == len(meanings)


def test_lvis_is_annotated_in_part(drawn):
    truth = read_ground_truth(drawn / "lvis" / sets.ANNOTATIONS)
    frequency = {category.name: category.frequency for category in truth.categories}
    assert {name for name, kind in frequency.items() if kind == "r"} == {"_".join(pair) for pair in HELD_OUT}
    counts = dict.fromkeys("rcf", 0)
    for number in truth.category_ids.tolist():
        counts[truth.categories[number - 1].frequency] += 1
    assert counts["f"] > counts["c"] > counts["r"] > 0
    assert any(picture.not_exhaustive for picture in truth.pictures)
    for picture, (scene, _) in zip(truth.pictures, sets.drawn(N["lvis"], pairs=sets.LONG_TAIL), strict=True):
        assert len(truth.only([picture.id]).ids) == len(scene.things) - len(picture.not_exhaustive)
        present = {*truth.only([picture.id]).category_ids.tolist()}
        assert len(picture.absent) == sets.ABSENT
        assert not picture.absent & (present | picture.not_exhaustive)


def test_a_caption_names_every_shape_once(drawn):
    captions = read_captions(drawn / "flickr" / sets.ANNOTATIONS)
    for caption, (scene, _) in zip(captions, sets.drawn(N["flickr"]), strict=True):
        phrases = [caption.text[slice(*spans[0])] for spans in caption.spans]
        assert " and ".join(phrases) == caption.text
        shapes = [words.split()[-1] for words in phrases]
        assert sorted(shapes) == sorted({thing.shape for thing in scene.things})
        for shape, boxes in zip(shapes, caption.boxes):
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
            np.testing.assert_allclose(corners, [thing.box for thing in scene.things if thing.shape == shape])


def test_a_referring_expression_matches_one_object(drawn):
    """Each thing of a scene has a phrase with its words, and no other thing fits them."""
    captions = read_captions(drawn / "refcoco" / sets.ANNOTATIONS)
    things = {}
    for scene, _ in sets.drawn(N["refcoco"]):
        things[len(things)] = scene.things
    files = sorted({caption.picture.file_name for caption in captions})
    by_file = dict(zip(files, things.values()))
    assert len(captions) > 2 * N["refcoco"]
    for caption in captions:
        words = set(caption.text.split())
        colour, shape = (next((word for word in known if word in words), None) for known in (COLOURS, SHAPES))
        fitting = [thing for thing in by_file[caption.picture.file_name] if Meaning(colour, shape).fits(thing)]
        assert len(fitting) == 1 and (colour or shape)
        box = caption.boxes[0][0]
        np.testing.assert_allclose([*box[:2], *(box[:2] + box[2:])], fitting[0].box)

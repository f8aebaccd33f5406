"""Referring expressions and phrases of captions: files, ranked boxes, and the share of phrases that are found."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import rngs

import minigdino
from minigdino import ArgumentError
from minigdino.evaluation.candidates import Candidates
from minigdino.evaluation.ground_truth import Picture
from minigdino.evaluation.referring import KEPT_EXPRESSION, KEPT_PHRASES, Caption, locate, rates, read_captions
from minigdino.image import read_size
from minigdino.network.boxes import cxcywh_to_xyxy, sigmoid
from training import demo

SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"
PHOTO = tiny.photo(40, 60)
REFCOCO = {
    "images": [{"id": 3, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480,
                "original_id": 9, "caption": "the man on the left", "dataset_name": "refcoco", "tokens_negative": []},
               {"id": 1, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480,
                "original_id": 9, "caption": "hat.", "dataset_name": "refcoco+"}],
    "annotations": [{"id": 0, "image_id": 1, "category_id": 50, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 12},
                    {"id": 1, "image_id": 3, "category_id": 1, "bbox": [10, 20, 30.5, 40], "iscrowd": 1, "area": 9,
                     "tokens_positive": [[0, 7]]}],
    "categories": [{"id": 1, "name": "person"}]}
FLICKR = {
    "images": [{"id": 7, "file_name": "36979.jpg", "width": "500", "height": "375", "dataset_name": "flickr",
                "caption": "A man in a red hat with two dogs", "sentence_id": 0, "original_img_id": 36979,
                "tokens_positive_eval": [[[0, 5]], [[9, 18]], [[24, 32]]]}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 200], "tokens_positive": [[0, 5]]},
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [50, 0, 40, 30], "tokens_positive": [[9, 18]]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [200, 0, 50, 50], "tokens_positive": [[24, 32]]},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [300, 0, 50, 50], "tokens_positive": [[24, 32], [0, 5]]}],
    "categories": [{"id": 1, "name": "object"}]}


def saved(tmp_path, content):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    return path


def caption(text="a cat", spans=None, boxes=(), number=1, dataset=""):
    return Caption(Picture(number, "a.jpg", 60, 40), text, dataset, spans,
                   tuple(np.array(found, float).reshape(-1, 4) for found in boxes))


def test_a_file_of_refcoco(tmp_path):
    first, second = read_captions(saved(tmp_path, REFCOCO))
    assert first.picture == Picture(3, "COCO_train2014_000000000009.jpg", 640, 480)
    assert (first.text, first.dataset, first.spans) == ("the man on the left", "refcoco", None)
    assert [boxes.tolist() for boxes in first.boxes] == [[[10, 20, 30.5, 40]]]
    assert (second.text, second.dataset) == ("hat.", "refcoco+")
    assert [boxes.tolist() for boxes in second.boxes] == [[[1, 2, 3, 4]]]


def test_a_file_of_flickr30k(tmp_path):
    (found,) = read_captions(saved(tmp_path, FLICKR))
    assert found.picture == Picture(7, "36979.jpg", 500, 375)
    assert found.spans == (((0, 5),), ((9, 18),), ((24, 32),))
    assert [boxes.tolist() for boxes in found.boxes] == [
        [[0, 0, 100, 200], [300, 0, 50, 50]], [[50, 0, 40, 30]], [[200, 0, 50, 50], [300, 0, 50, 50]]]


def changed(content, *path, **fields):
    """A copy of a file in which the object at a path has other fields; the value None removes a field."""
    entry = content = copy.deepcopy(content)
    for key in path:
        entry = entry[key]
    entry |= fields
    for name in [name for name, value in fields.items() if value is None]:
        del entry[name]
    return content


IMAGE, ANNOTATION = ("images", 0), ("annotations", 0)


@pytest.mark.parametrize(("content", "message"), [
    ([], "expected a JSON object"),
    (changed(REFCOCO, images=[]), "expected at least one object in images"),
    (changed(REFCOCO, annotations=[]), "expected at least one object in annotations"),
    (changed(REFCOCO, *IMAGE, id=1), r"images\[1\]: expected a different id for each entry; got 1"),
    (changed(REFCOCO, *IMAGE, caption=None), r'images\[0\]: expected a text as "caption"; got no such field'),
    (changed(REFCOCO, *IMAGE, caption=" ."), r'images\[0\]: expected a text as "caption"; got \' \.\''),
    (changed(REFCOCO, *IMAGE, dataset_name=3), r'images\[0\]: expected a text as "dataset_name"; got 3'),
    (changed(REFCOCO, *IMAGE, width="x"), r'images\[0\]: expected a positive int as "width"; got \'x\''),
    (changed(REFCOCO, *IMAGE, width="0"), r'images\[0\]: expected a positive int as "width"; got 0'),
    (changed(REFCOCO, *ANNOTATION, id=1), r"annotations\[1\]: expected a different id for each entry; got 1"),
    (changed(REFCOCO, *ANNOTATION, image_id=2), r'\[0\]: expected the id of one of the 2 images as "image_id"; got 2'),
    (changed(REFCOCO, *ANNOTATION, image_id=3), r"images\[0\]: expected one annotation, the box of the expression 'the "
                                                r"man on the left'; got 2"),
    (changed(REFCOCO, *ANNOTATION, bbox=[1, 2, -1, 3]), r'as "bbox"; got \[1, 2, -1, 3\]'),
    (changed(FLICKR, *IMAGE, tokens_positive_eval=[[[0, 33]]]), "within the 32 characters of the caption"),
    (changed(FLICKR, *IMAGE, tokens_positive_eval=[[]]), "expected a list of phrases"),
    (changed(FLICKR, *IMAGE, tokens_positive_eval=[[[5, 5]]]), "expected a list of phrases"),
    (changed(FLICKR, *IMAGE, tokens_positive_eval=[[[2, 5]]]),
     r"images\[0\]: expected a box for each phrase; 'man' has none"),
    (changed(FLICKR, *ANNOTATION, tokens_positive=None),
     r'\[start, stop\] within the caption as "tokens_positive"; got no'),
])
def test_each_fault_is_named_with_its_entry(tmp_path, content, message):
    with pytest.raises(ArgumentError, match=message):
        read_captions(saved(tmp_path, content))


# the ranked boxes


def defined(model, text, spans, kept):
    """The definition: score, box and phrase of each pair of query and phrase, from `Model.forward`."""
    ids, offsets = model.tokenizer.read(text)
    output = model.forward(model.preprocess(PHOTO), ids)
    size = np.array([60, 40, 60, 40], np.float32)
    rows = []
    for logits, box in zip(output.logits, (cxcywh_to_xyxy(output.boxes) * size).clip(0, size)):
        p = sigmoid(logits)
        if spans is None:
            rows.append((p.max(), *box, 0))
        for i, pieces in enumerate(spans or ()):
            characters = {c for piece in pieces for c in range(*piece)}
            if tokens := [k for k, (start, stop) in enumerate(offsets) if characters.intersection(range(start, stop))]:
                rows.append((p[tokens].mean(), *box, i))
    rows = np.array(sorted(rows, key=lambda row: -row[0])[:kept])
    rows[:, 3:5] -= rows[:, 1:3]
    return rows


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
@pytest.mark.parametrize("spans", [None, (((0, 5),),), (((2, 5),), ((9, 16),)), (((0, 1), (9, 12)), ((5, 6),))])
def test_ranked_boxes_equal_their_definition(family, spans):
    model = tiny.model(family, queries=40)
    found = locate(model, PHOTO, caption("a cat in red hats", spans))
    expected = defined(model, "a cat in red hats.", spans, KEPT_EXPRESSION if spans is None else KEPT_PHRASES)
    np.testing.assert_allclose(found.scores, expected[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.boxes, expected[:, 1:5], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.category_ids, expected[:, 5])
    assert len(found.scores) == (30 if spans is None else 40 * len(set(found.category_ids)))


def test_a_caption_without_phrases_has_no_boxes_and_does_not_count(tmp_path):
    (text,) = read_captions(saved(tmp_path, changed(FLICKR, *IMAGE, tokens_positive_eval=[])))
    found = locate(tiny.model(), PHOTO, text)
    assert (found.boxes.shape, found.scores.shape, found.category_ids.shape) == ((0, 4), (0,), (0,))
    assert rates([text], [(7, found)]) == {}


def test_a_dot_is_added_once():
    one, two = (locate(tiny.model(), PHOTO, caption(text)) for text in ("the red hat", "the red hat."))
    assert np.array_equal(one.scores, two.scores)


def test_all_phrases_of_a_caption_share_300_boxes():
    text = "a cat a dog a hat a man a star a cat a dog a hat"
    spans = tuple(((start, start + 5),) for start in range(0, 48, 6))
    assert len(locate(tiny.model(queries=40), PHOTO, caption(text, spans)).scores) == 300


def test_a_caption_that_is_too_long_is_named():
    with pytest.raises(ArgumentError, match="caption 5: expected at most 256 tokens; got 303. Shorten it"):
        locate(tiny.model(), PHOTO, caption("cat " * 300, number=5))


# the rates


def rate(boxes, ranked, **options):
    """The rates of one phrase with these annotated boxes, and ranked boxes by descending score."""
    found = Candidates(np.array(ranked, float).reshape(-1, 4), -np.arange(len(ranked)), np.zeros(len(ranked), int))
    (result,) = rates([caption(boxes=[boxes])], [(1, found)], **options).values()
    return [result[name] for name in ("@1", "@5", "@10")]


BOX, FAR = [0, 0, 10, 10], [50, 50, 10, 10]


def test_a_phrase_is_found_at_the_rank_of_its_first_right_box():
    assert rate([BOX], [BOX]) == [1, 1, 1]
    assert rate([BOX], [FAR, BOX]) == [0, 1, 1]
    assert rate([BOX], [FAR] * 5 + [BOX]) == [0, 0, 1]
    assert rate([BOX], [FAR] * 10 + [BOX]) == [0, 0, 0]
    assert rate([BOX], []) == [0, 0, 0]


def test_a_box_is_right_from_an_iou_of_one_half():
    assert rate([BOX], [[0, 0, 10, 5]])[0] == 1
    assert rate([BOX], [[0, 0, 10, 4.99]])[0] == 0


def test_any_of_several_boxes_counts_or_the_one_around_them():
    both, around = [BOX, [20, 0, 10, 10]], [0, 0, 30, 10]
    assert [rate(both, [box])[0] for box in (*both, around)] == [1, 1, 0]
    assert [rate(both, [box], merged=True)[0] for box in (*both, around)] == [0, 0, 1]


def test_rates_are_those_of_each_data_set_and_missing_captions_are_not_found():
    captions = [caption(boxes=[[BOX], [FAR]], number=1, dataset="flickr"),
                caption(boxes=[[BOX]], number=2, dataset="b"), caption(boxes=[[BOX]], number=3, dataset="b")]
    found = Candidates(np.array([BOX, BOX]), np.array([0.5, 0.4]), np.array([1, 0]))
    result = rates(captions, [(3, Candidates(np.array([BOX]), np.ones(1), np.zeros(1, int))), (1, found)])
    assert result == {"flickr": {"@1": 0.5, "@5": 0.5, "@10": 0.5, "phrases": 2},
                      "b": {"@1": 0.5, "@5": 0.5, "@10": 0.5, "phrases": 2}}


@settings(max_examples=50)
@given(rngs(), st.booleans())
def test_rates_equal_their_definition(rng, merged):
    captions, found = [], []
    for number in range(1, 6):
        phrases = [rng.integers(0, 6, (rng.integers(1, 4), 4)) * 4 + [0, 0, 4, 4] for _ in range(rng.integers(1, 4))]
        captions.append(caption(boxes=phrases, number=number))
        n = rng.integers(0, 25)
        found.append((number, Candidates(rng.integers(0, 6, (n, 4)) * 4 + [0, 0, 4, 4], rng.permutation(n) / 50,
                                         rng.integers(0, len(phrases), n))))
    right = np.zeros(3)
    for text, (_, boxes) in zip(captions, found):
        for i, wanted in enumerate(text.boxes):
            if merged:
                corner = (wanted[:, :2] + wanted[:, 2:]).max(axis=0)
                wanted = np.array([[*wanted[:, :2].min(axis=0), *(corner - wanted[:, :2].min(axis=0))]])
            ranked = sorted((-score, *box) for score, box, k in zip(boxes.scores, boxes.boxes, boxes.category_ids)
                            if k == i)
            hits = [any(overlap(box, other) >= 0.5 for other in wanted) for _, *box in ranked]
            right += [any(hits[:k]) for k in (1, 5, 10)]
    total = sum(len(text.boxes) for text in captions)
    (result,) = rates(captions, found, merged=merged).values()
    np.testing.assert_allclose([result["@1"], result["@5"], result["@10"]], right / total)
    assert result["phrases"] == total


def overlap(a, b):
    sides = [max(min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize(("found", "message"), [
    ([2], "expected the boxes of each of the 1 captions once; got those of the id 2. Use"),
    ([1, 1], "got those of the id 1 twice. Use")])
def test_boxes_of_other_captions_are_refused(found, message):
    nothing = Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(ArgumentError, match=message):
        rates([caption(boxes=[[BOX]])], [(number, nothing) for number in found])


@pytest.mark.parametrize("ids", [[3, 0], [0, 3], [-1, 0]])
def test_boxes_of_another_phrase_are_refused(ids):
    wrong = ids[0] or ids[1]
    with pytest.raises(ArgumentError, match=f"caption 1: expected boxes of its 1 phrases; got some of phrase {wrong}"):
        rates([caption(boxes=[[BOX]])], [(1, Candidates(np.array([BOX, FAR]), np.ones(2), np.array(ids)))])


def test_lists_are_arrays_too_and_other_values_are_refused():
    assert rates([caption(boxes=[[BOX]])], [(1, Candidates([BOX], [0.5], [0]))])[""]["@1"] == 1
    with pytest.raises(ArgumentError, match=r"caption 1: expected boxes \[K, 4\]"):
        rates([caption(boxes=[[BOX]])], [(1, Candidates([BOX], 0.5, [0]))])
    with pytest.raises(ArgumentError, match="caption 1: expected finite scores"):
        rates([caption(boxes=[[BOX]])], [(1, Candidates([BOX], [np.nan], [0]))])


# the embedded checkpoint


def test_the_embedded_checkpoint_finds_the_objects_of_the_demonstration(tmp_path):
    """An expression for each object, then a caption with a phrase for each object."""
    model, things = minigdino.load("shapes"), demo.scene().things
    width, height = read_size(SCENE)
    picture = {"file_name": SCENE.name, "width": width, "height": height, "dataset_name": "drawn"}
    phrases = [f"a {thing.colour} {thing.shape}" for thing in things]
    text = ". ".join(phrases)
    spans = [[[text.index(phrase), text.index(phrase) + len(phrase)]] for phrase in phrases]
    corners = [tuple(map(float, thing.box)) for thing in things]
    boxes = [[left, top, right - left, bottom - top] for left, top, right, bottom in corners]
    files = [
        {"images": [picture | {"id": i, "caption": phrase} for i, phrase in enumerate(phrases)],
         "annotations": [{"id": i, "image_id": i, "bbox": box} for i, box in enumerate(boxes)]},
        {"images": [picture | {"id": 0, "caption": text, "tokens_positive_eval": spans}],
         "annotations": [{"id": i, "image_id": 0, "bbox": box, "tokens_positive": span}
                         for i, (box, span) in enumerate(zip(boxes, spans))]}]
    for content in files:
        captions = read_captions(saved(tmp_path, content))
        result = rates(captions, ((c.picture.id, locate(model, SCENE, c)) for c in captions))
        assert result == {"drawn": {"@1": 1, "@5": 1, "@10": 1, "phrases": 8}}

"""The protocols of evaluation: prompts from class names, and the scored boxes of an image."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cache import counted, fresh  # noqa: F401  a fixture

from minigdino import ArgumentError, CheckpointError, ImageError, Model
from minigdino.evaluation.ground_truth import Category
from minigdino.evaluation.protocols import COCO, LVIS, Protocol, class_name, clips, in_pixels, predict, prompts
from minigdino.network.boxes import cxcywh_to_xyxy, sigmoid

TOKENIZER = tiny.tokenizer()
PHOTO = tiny.photo(40, 60)
NAMES = ["cat", "red_hat", "tennis dog", "person", "blue star"]
EVERY = Protocol("every", None, 10**6, False)  # keeps all pairs of query and class


def named(names):
    return [Category(10 * i + 3, name) for i, name in enumerate(names)]


@pytest.mark.parametrize(("name", "expected"), [
    ("traffic light", "traffic light"), ("bow_(weapon)", "bow"), ("flip-flop_(sandal)", "flip-flop"),
    ("bow_(decorative_ribbons)", "bow"), ("alarm_clock", "alarm clock"), ("a__b", "a b"), ("a (b) c (d) e", "a e"),
    ("monitor_(computer_equipment) computer_monitor", "monitor computer monitor"), ("T-Shirt", "T-Shirt"),
    ("(all of it)", ""), ("half (open", "half (open")])
def test_class_names_lose_parentheses_and_underscores(name, expected):
    assert class_name(name) == expected


def test_the_published_numbers():
    assert (COCO.chunk, COCO.kept, LVIS.chunk, LVIS.kept) == (None, 300, 40, 300)
    names = [f"a {a} {b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in range(50)][:1203]
    found = prompts(named(names), TOKENIZER, LVIS)
    assert len(found) == 31
    assert len(found) * LVIS.kept == 9300


@given(st.lists(st.sampled_from([*tiny.WORDS, "red hat", "a cat"]), min_size=1, max_size=9, unique=True))
def test_a_prompt_has_the_tokens_and_spans_of_the_listed_names(names):
    (found,) = prompts(named(names), TOKENIZER, COCO)
    expected = TOKENIZER.encode(names)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.spans == expected.spans
    assert found.category_ids.tolist() == [category.id for category in named(names)]
    assert found.ids.dtype == found.category_ids.dtype == np.int64


@given(st.lists(st.sampled_from([*tiny.WORDS, "(x) red hat", "a_cat", "st. bernard"]), min_size=1, max_size=30),
       st.none() | st.integers(1, 8), st.integers(10, 40))
def test_prompts_have_all_categories_in_order_and_as_many_as_fit(names, chunk, limit):
    categories = named(names)
    found = prompts(categories, TOKENIZER, Protocol("any", chunk, 9, True), limit)
    assert np.concatenate([prompt.category_ids for prompt in found]).tolist() == [c.id for c in categories]
    sizes = [[stop - start + 1 for start, stop in prompt.spans] for prompt in found]
    for prompt, size, following in zip(found, sizes, [*sizes[1:], None]):
        assert len(prompt.ids) == sum(size) + 2 <= limit
        assert len(size) <= (chunk or len(names))
        if following:  # the next name does not fit
            assert len(size) == chunk or len(prompt.ids) + following[0] > limit


def test_a_name_with_a_dot_keeps_it_as_in_the_published_code():
    (found,) = prompts(named(["st. bernard"]), TOKENIZER, COCO)
    assert found.ids.tolist() == TOKENIZER.encode("st. bernard.").ids.tolist()
    assert found.spans == [(1, 4)]  # with the dot inside


def test_equal_names_are_all_in_the_prompt_and_have_the_same_scores():
    categories = named(["bow_(weapon)", "cat", "bow_(ribbon)", "Bow"])
    (prompt,) = prompts(categories, TOKENIZER, EVERY)
    assert len(prompt.spans) == 4
    found = predict(tiny.model("mm-grounding-dino"), PHOTO, [prompt], EVERY)
    scores = [np.sort(found.scores[found.category_ids == category.id]) for category in categories]
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-4)
    np.testing.assert_allclose(scores[0], scores[3], rtol=1e-4)
    assert abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.parametrize(("names", "message"), [
    ([], "expected at least one category; got none"),
    (["cat", "_"], "category 13: expected a name of 1 to 253 tokens outside parentheses; '_' has 0. Change the name"),
    (["(nothing)"], r"category 3: .*'\(nothing\)' has 0"),
    (["a " * 254], "category 3: .* has 254")])
def test_names_that_make_no_prompt_are_refused(names, message):
    with pytest.raises(ArgumentError, match=message):
        prompts(named(names), TOKENIZER, LVIS)


def defined(model, picture, prompts, kept, clip):
    """The definition: one query and one class at a time, from `Model.forward`."""
    rows = []
    for prompt in prompts:
        output = model.forward(model.preprocess(picture), prompt.ids)
        corners = cxcywh_to_xyxy(output.boxes) * np.array([*picture.size] * 2, np.float32)
        if clip:
            corners = corners.clip(0, [*picture.size] * 2)
        pairs = [(sigmoid(logits)[start:stop].mean(), *box, category)
                 for logits, box in zip(output.logits, corners)
                 for (start, stop), category in zip(prompt.spans, prompt.category_ids)]
        rows += sorted(pairs, key=lambda row: -row[0])[:kept]
    scores, left, top, right, bottom, categories = np.array(rows).T
    return np.stack([left, top, right - left, bottom - top], axis=1), scores, categories.astype(int)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
@settings(max_examples=10)
@given(st.integers(1, 5), st.none() | st.integers(1, 3), st.integers(1, 120), st.sampled_from([None, True, False]))
def test_candidates_equal_their_definition(family, n, chunk, kept, clip):
    model, protocol = tiny.model(family), Protocol("any", chunk, kept, clip)
    asked = prompts(named(NAMES[:n]), TOKENIZER, protocol)
    found = predict(model, PHOTO, asked, protocol)
    boxes, scores, categories = defined(model, Image.fromarray(PHOTO), asked, kept, clips(protocol, model))
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.category_ids, categories)
    assert len(found.scores) == sum(min(kept, model.config.num_queries * len(prompt.spans)) for prompt in asked)


def test_only_the_original_models_keep_boxes_beyond_the_image():
    original, mm = tiny.model("grounding-dino"), tiny.model("mm-grounding-dino")
    assert [clips(COCO, model) for model in (original, mm)] == [False, True]
    assert [clips(LVIS, model) for model in (original, mm)] == [True, True]


def test_clipping_moves_edges_and_nothing_else():
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4]], np.float32)
    np.testing.assert_allclose(in_pixels(boxes, (100, 50), False), [[40, 15, 20, 20], [-10, 35, 40, 20]], rtol=1e-6)
    clipped = in_pixels(boxes, (100, 50), True)
    np.testing.assert_allclose(clipped, [[40, 15, 20, 20], [0, 35, 30, 15]], rtol=1e-6)
    assert clipped.dtype == np.float32


def test_the_image_backbone_runs_once_and_the_text_backbone_once_for_all_images(counted):  # noqa: F811
    model, protocol = fresh(), Protocol("any", 1, 5, True)
    asked = prompts(named([f"{a} {b}" for a in "abcde" for b in "fghi"]), TOKENIZER, protocol)
    predict(model, PHOTO, asked, protocol)
    assert counted == {"bert": 20, "swin": 1}
    predict(model, tiny.photo(40, 60, 1), asked, protocol)
    assert counted == {"bert": 20, "swin": 2}


def test_an_image_can_be_a_file_and_have_another_size(tmp_path):
    model, (prompt,) = tiny.model(), prompts(named(NAMES), TOKENIZER, COCO)
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    one, two = (predict(model, image, [prompt], COCO) for image in (PHOTO, tmp_path / "a.png"))
    assert np.array_equal(one.boxes, two.boxes)
    other = predict(model, PHOTO, [prompt], COCO, size=(64, 128))
    assert abs(other.boxes - one.boxes).max() > 1e-3


def test_faults_of_images_and_weights_have_the_errors_of_detect():
    (prompt,) = prompts(named(NAMES), TOKENIZER, COCO)
    with pytest.raises(ImageError, match="at least 20 image tokens"):
        predict(tiny.model(), PHOTO, [prompt], COCO, size=(8, 8))
    with pytest.raises(ImageError, match="nothing.png"):
        predict(tiny.model(), "nothing.png", [prompt], COCO)
    model = fresh()
    name = next(name for name in model.tensors if name.endswith("class_embed.0.bias") or "bbox_embed" in name)
    broken = Model({**model.tensors, name: np.full_like(model.tensors[name], np.nan)}, model.config,
                   tokenizer=TOKENIZER, settings=replace(tiny.SETTINGS))
    with pytest.raises(CheckpointError, match=f"tensor {name}"):
        predict(broken, PHOTO, [prompt], COCO)

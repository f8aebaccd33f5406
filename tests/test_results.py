"""Post-processing, the `Detections` container and its output formats, and drawing."""

import ast
import copy
import csv
import dataclasses
import inspect
import io
import json
import os
import pickle
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, ImageShow
from strategies import rngs

import minigdino
from minigdino import ArgumentError, Detections, results
from minigdino.drawing import _fit, annotate, colour
from minigdino.fonts import choose
from minigdino.network.boxes import sigmoid
from minigdino.results import Labels, post_process

TOKENIZER = tiny.tokenizer()
PROMPT = TOKENIZER.encode(["a cat", "a dog", "remote control"])  # tokens 1 2, 4 5 and 7 8; tokens 3, 6 and 9 are dots


def process(logits, threshold=0.25, text_threshold=0.25, boxes=None, size=(100, 50)):
    boxes = np.full((len(logits), 4), 0.5, np.float32) if boxes is None else boxes
    return post_process(np.float32(logits), boxes, PROMPT, TOKENIZER.decode, size, threshold, text_threshold)


def row(**probabilities):
    """Logits of one query. t3=0.9 gives token 3 the probability 0.9; all others have 0.0001."""
    p = np.full(len(PROMPT.ids), 1e-4)
    for name, value in probabilities.items():
        p[int(name[1:])] = value
    return np.log(p / (1 - p))


def test_detections_are_sorted_and_strictly_above_the_threshold():
    found = process([row(t1=0.3), row(t4=0.9), row(t1=0.2), row(t8=0.5)])
    assert found.labels == ["a dog", "remote control", "a cat"]
    assert found.label_ids.tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.3], rtol=1e-5)
    assert len(process([np.zeros(len(PROMPT.ids))], threshold=0.5)) == 0


def test_equal_scores_keep_the_order_of_the_queries():
    boxes = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    found = process([row(t1=0.7)] * 3, boxes=boxes)
    assert (np.diff(found.boxes[:, 2]) > 0).all()


def test_a_delimiter_counts_for_the_score_but_not_for_the_label():
    found = process([row(t3=0.9, t4=0.01), row(t0=0.8, t7=0.02)])
    assert found.labels == ["a dog", "remote control"]
    np.testing.assert_allclose(found.scores, [0.9, 0.8], rtol=1e-5)
    assert found.phrases == [".", ""]


def test_a_tie_between_phrases_goes_to_the_earlier_one():
    assert process([row(t2=0.6, t5=0.6, t8=0.6)]).labels == ["a cat"]


def test_phrases_contain_the_tokens_above_the_text_threshold():
    found = process([row(t1=0.9, t2=0.8), row(t2=0.7, t7=0.6), row(t4=0.5, t6=0.45)])
    assert found.phrases == ["a cat", "cat remote", "a."]
    assert process([row(t1=0.9)], text_threshold=0.95).phrases == [""]


def test_each_phrase_may_have_its_own_threshold():
    logits = [row(t1=0.3), row(t4=0.9), row(t7=0.6), row(t4=0.7)]
    found = process(logits, threshold=np.array([0.2, 0.8, 0.6]))
    assert found.labels == ["a dog", "a cat"]  # 0.6 does not exceed 0.6, nor 0.7 the 0.8 of its own phrase
    everywhere = process(logits, threshold=np.full(3, 0.5))
    assert everywhere.to_dict() == process(logits, threshold=0.5).to_dict()


def test_the_mean_score_is_over_the_tokens_of_a_phrase():
    logits = np.float32([row(t1=0.9, t2=0.1, t4=0.6, t5=0.6), row(t3=0.9, t7=0.4, t8=0.4), row(t2=0.5, t5=0.5)])
    found = post_process(logits, np.full((3, 4), 0.5, np.float32), PROMPT, TOKENIZER.decode, (100, 50), 0.2, 0.25,
                         score="mean")
    assert found.labels == ["a dog", "remote control", "a cat"]  # delimiters do not count; a tie goes to the earlier
    np.testing.assert_allclose(found.scores, [0.6, 0.4, 0.25], rtol=1e-3)


def test_boxes_are_pixels_of_the_original_and_not_clipped():
    box = np.float32([[0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]])
    found = process([row(t1=0.9), row(t1=0.8)], boxes=box)
    np.testing.assert_allclose(found.boxes, [[25, 12.5, 75, 37.5], [-50, -25, 50, 25]])
    assert found.image_size == (100, 50)


@given(rngs(), st.floats(0, 1), st.floats(0, 1))
def test_labels_are_always_phrases_of_the_caller(rng, threshold, text_threshold):
    logits = rng.normal(-1, 3, (12, len(PROMPT.ids)))
    found = process(logits, threshold, text_threshold)
    assert set(found.labels) <= set(PROMPT.phrases)
    assert [PROMPT.phrases[i] for i in found.label_ids] == found.labels
    assert len(found) == (sigmoid(np.float32(logits)).max(1) > np.float32(threshold)).sum()
    assert (np.diff(found.scores) <= 0).all()


def found():
    boxes = np.float32([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.5, 0.5], [0.5, 0.5, 2, 2]])
    return process([row(t1=0.9), row(t4=0.6), row(t8=0.4)], boxes=boxes)


def test_detections_are_a_sequence():
    all_three = found()
    assert len(all_three) == 3
    first = all_three[0]
    assert (first.label, first.label_id, first.phrase) == ("a cat", 0, "a")
    assert all_three[-1].label == "remote control"
    assert [d.label for d in all_three] == all_three.labels
    assert all_three[1:].labels == ["a dog", "remote control"]
    assert all_three[all_three.scores > 0.5].labels == ["a cat", "a dog"]
    assert all_three[[2, 0]].labels == ["remote control", "a cat"]
    assert len(all_three[:0]) == 0
    with pytest.raises(IndexError):
        all_three[3]
    assert repr(all_three) == "Detections(3: a cat 0.90, a dog 0.60, remote control 0.40)"


def test_dict_and_json_have_plain_python_values():
    value = found().to_dict()
    assert json.loads(found().to_json()) == value
    assert value["width"], value["height"] == (100, 50)
    assert list(value["detections"][0]) == ["box", "score", "label", "label_id", "phrase"]
    assert type(value["detections"][0]["score"]) is float
    np.testing.assert_allclose(value["detections"][0]["box"], [20, 10, 40, 20], rtol=1e-6)


def test_a_json_text_is_valid_json():
    value = dataclasses.replace(found(), scores=np.float32([0.9, np.nan, 0.4]))
    with pytest.raises(minigdino.ArgumentError, match="expected finite boxes and scores"):
        value.to_json(indent=2)
    assert "NaN" in value.to_json(allow_nan=True)


def test_a_box_that_is_nan_is_not_plotted_and_a_notebook_shows_the_table():
    boxes = found().boxes.copy()
    boxes[1, 2] = np.nan
    value = dataclasses.replace(found(), boxes=boxes, image=tiny.photo())
    with pytest.raises(minigdino.ArgumentError, match=r"plot\(\) expected boxes without NaN; .*Remove"):
        value.plot()
    assert value._repr_html_().startswith("<table>") and "nan" in value._repr_html_()
    value[~np.isnan(boxes).any(axis=1)].plot()
    boxes[1, 2] = np.inf  # clipped to the image
    value.plot()


def test_a_message_about_empty_categories_says_so():
    with pytest.raises(minigdino.ArgumentError, match="no id for 'a cat', because it is empty. Add it"):
        found().to_coco(categories={})


@pytest.mark.parametrize("size", [(64, 64), (3000, 2000), (40, 900), (3, 2)])
def test_a_plot_is_an_annotated_copy(size):
    image = Image.new("RGB", size, (90, 90, 90))
    boxes = np.float32([[0.5, 0.5, 0.5, 0.5], [0.52, 0.5, 0.5, 0.5], [0.1, 0.1, 3, 3]])
    picture = process([row(t1=0.9), row(t1=0.8), row(t8=0.7)], boxes=boxes, size=size).plot(image)
    assert (picture.size, picture.mode) == (size, "RGB")
    assert np.ptp(np.asarray(image)) == 0  # the original is unchanged
    pixels = np.asarray(picture).reshape(-1, 3)
    assert (pixels == colour(0)).all(1).any()
    assert min(size) < 30 or (pixels == colour(2)).all(1).any()


def test_a_plot_without_detections_is_the_image():
    photo = tiny.photo()
    np.testing.assert_array_equal(np.asarray(process([row()]).plot(photo)), photo)


def test_colours_differ_between_labels_and_are_dark_enough_for_white_text():
    colours = [colour(i) for i in range(12)]
    assert len(set(colours)) == 12
    assert max(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours) < 170


def test_coco_boxes_are_xywh_with_the_given_ids():
    rows = found().to_coco(7, {"a cat": 17, "a dog": 18, "remote control": 75})
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(7, 17), (7, 18), (7, 75)]
    np.testing.assert_allclose(rows[0]["bbox"], [20, 10, 20, 10], rtol=1e-6)
    assert [r["category_id"] for r in found().to_coco()] == [0, 1, 2]
    with pytest.raises(minigdino.ArgumentError, match="no id for 'a dog', only for 'a cat'"):
        found().to_coco(categories={"a cat": 17})


def test_csv_has_one_line_per_box():
    lines = list(csv.DictReader(io.StringIO(found().to_csv())))
    assert [line["label"] for line in lines] == found().labels
    assert float(lines[0]["right"]) == pytest.approx(40)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_csv_has_no_formulas(start):
    label = f'{start}HYPERLINK("http://x","a, b")\r2'
    result = dataclasses.replace(found(), labels=[label, "a-b=c", "'quoted'"], phrases=["", "-1", "@x"])
    lines = list(csv.reader(io.StringIO(result.to_csv(), newline="")))
    assert [line[5] for line in lines] == ["label", "'" + label, "a-b=c", "'quoted'"]
    assert [line[7] for line in lines] == ["phrase", "", "'-1", "'@x"]
    assert float(lines[3][0]) < 0  # a number is no formula
    assert result.to_csv().startswith(",".join(lines[0]) + "\n")


def test_rows_for_coco_are_plain_numbers():
    rows = found().to_coco(np.int64(7), {label: np.int32(3) for label in found().labels})
    assert json.loads(json.dumps(rows)) == rows
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(7, 3)}


def test_a_message_about_categories_is_short():
    with pytest.raises(minigdino.ArgumentError, match=r"no id for 'a cat', only for '0', .*'9', \.\.\.\. Add it"):
        found().to_coco(categories={str(i): i for i in range(100_000)})
    result = dataclasses.replace(found(), labels=["x" * 10_000] * 3)
    with pytest.raises(minigdino.ArgumentError) as error:
        result.to_coco(categories={"y" * 10_000: 1})
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", [True, False])
def test_a_bool_is_no_index(key):
    with pytest.raises(minigdino.ArgumentError, match=f"must be indexed with an int, .*; got {key}"):
        found()[key]


def test_a_label_as_an_index_is_refused_with_the_mask_that_selects_it():
    result = found()
    with pytest.raises(minigdino.ArgumentError, match="the text 'a cat'.*write found") as error:
        result["a cat"]
    expression = str(error.value).partition("write ")[2]
    assert set(eval(expression, {"found": result}).labels) == {"a cat"}


@pytest.mark.parametrize("key", [None, np.True_, [[0, 1]], np.array(1), np.zeros((3, 3), bool)])
def test_an_index_that_gives_no_list_of_detections_is_refused(key):
    with pytest.raises((minigdino.ArgumentError, IndexError)):
        found()[key]


def test_detections_can_be_copied_and_pickled():
    result = found()
    for other in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
        assert other.to_dict() == result.to_dict()
        assert other != result and len({other, result}) == 2  # compared by identity, as arrays have no single answer
    assert result[0] == result[0] and len({result[0], result[0]}) == 1


def test_supervision_gets_the_same_boxes(monkeypatch):
    supervision = types.SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    got = found().to_supervision()
    np.testing.assert_array_equal(got["xyxy"], found().boxes)
    assert got["data"]["class_name"].tolist() == found().labels


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # the small vocabulary has no "<"
def test_a_notebook_shows_the_image_and_a_table(tmp_path):
    model, photo = tiny.model(), tiny.photo()
    shown = model.detect(photo, ["a cat", "a dog"], threshold=0)._repr_html_()
    assert shown.startswith('<img src="data:image/jpeg;base64,')
    assert "<td>a dog</td>" in shown
    assert "&lt;cat&gt;" in model.detect(photo, ["<cat>"], threshold=0)._repr_html_()
    assert found()._repr_html_().startswith("<table>")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    on_disk = model.detect(tmp_path / "photo.png", ["a dog"], threshold=0)
    (tmp_path / "photo.png").unlink()
    assert on_disk._repr_html_().startswith("<table>")
    with pytest.raises(minigdino.ArgumentError, match="these detections store none"):
        found().plot()


def test_name_tags_never_overlap_and_stay_in_the_image():
    image = Image.new("RGB", (400, 300), (90, 90, 90))
    rng = np.random.default_rng(0)
    tags = []
    draw_rectangle = ImageDraw.ImageDraw.rectangle

    def spy(self, xy, fill=None, **options):
        tags.extend([xy] if fill else [])
        draw_rectangle(self, xy, fill=fill, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "rectangle", spy)
        boxes = np.concatenate([np.tile([[50, 50, 200, 200]], (9, 1)), rng.uniform(-50, 400, (30, 4))]).astype(
            np.float32
        )
        annotate(image, boxes, ["a cat"] * 39, np.full(39, 0.5), np.arange(39))
    assert len(tags) > 20
    for i, a in enumerate(tags):
        assert 0 <= a[0] < a[2] < 400
        assert 0 <= a[1] < a[3] < 300
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in tags[:i])


def fit_by_definition(draw, font, label, score, width):
    """Shorten a label by one character until its tag fits."""
    text = f"{label} {score:.2f}"
    while label and draw.textlength(text, font=font) > width:
        label = label[:-1]
        text = f"{label}… {score:.2f}"
    return text


LETTERS = "abcdefijlmrtw WAT.-é猫שם\N{CAT FACE}\u0301"


@given(st.text(alphabet=LETTERS, max_size=60), st.floats(0, 1), st.integers(-9, 400))
def test_a_label_is_shortened_as_little_as_necessary(label, score, width):
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(size=12)
    assert _fit(draw, font, label, score, width) == fit_by_definition(draw, font, label, score, width)


@pytest.mark.parametrize("label", ["x" * 65_000, "\u0301" * 65_000, "W" + "\u0336" * 300, "a\tb\0c\r\n\x1b[31m",
                                   "\ud800", "\N{CAT FACE}\u200d\N{DOG FACE}", "שלום \u202e עולם", "", "\n\n"])
@pytest.mark.parametrize("size", [(300, 200), (2000, 50), (1, 1)])
def test_any_label_is_drawn(label, size):
    image = Image.new("RGB", size)
    boxes = np.random.default_rng(0).uniform(-10, 300, (20, 4))
    start = time.process_time()
    assert annotate(image, boxes, [label] * 20, np.linspace(1, 0, 20), np.arange(20)).size == size
    assert time.process_time() - start < 10


def test_a_thousand_boxes_are_drawn_in_seconds():
    image = Image.new("RGB", (800, 600))
    boxes = np.random.default_rng(0).uniform(0, 600, (1000, 4)).astype(np.float32)
    start = time.process_time()
    annotate(image, boxes, ["a cat"] * 1000, np.full(1000, 0.5), np.arange(1000))
    assert time.process_time() - start < 10


def test_labels_compared_with_a_text_are_a_mask():
    boxes = found()
    assert (boxes.labels == "a dog").tolist() == [False, True, False]
    assert (boxes.phrases == "control").tolist() == [False, False, True]
    assert (boxes.labels != "a dog").tolist() == [True, False, True]
    assert boxes[boxes.labels == "a dog"].labels == ["a dog"]
    assert len(boxes[boxes.labels == "a bird"]) == 0
    empty = boxes[:0]
    assert (empty.labels == "a dog").shape == (0,)


@given(st.lists(st.sampled_from(["a cat", "a dog", "=1"])), st.sampled_from(["a cat", "a dog", "bird"]))
def test_labels_are_a_list_otherwise(texts, text):
    labels = Labels(texts)
    assert (labels == texts) is True and (labels != texts) is False and texts == labels
    assert (labels == [*texts, "a"]) is False
    assert json.loads(json.dumps(labels)) == texts
    assert pickle.loads(pickle.dumps(labels)) == copy.deepcopy(labels) == texts
    assert (text in labels) == (text in texts) and labels.count(text) == texts.count(text)
    assert repr(labels) == repr(texts)
    assert (labels == text).tolist() == [label == text for label in texts]
    np.testing.assert_array_equal(labels != text, ~(labels == text))
    assert (labels == text).dtype == bool
    assert (labels[1:] == text).tolist() == (labels == text).tolist()[1:] and labels[::-1] == texts[::-1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(labels)


def test_labels_that_a_caller_gives_as_any_sequence_are_labels():
    boxes = minigdino.Detections(np.zeros((1, 4)), np.ones(1), ("a cat",), np.zeros(1, int), ["cat"], (4, 4))
    assert (boxes.labels == "a cat").all() and (boxes.phrases == "cat").all()


@given(st.sets(st.sampled_from(["a cat", "a dog", "remote control", "a bird"])), st.floats(-0.1, 1.1))
def test_a_filter_selects_by_label_and_score(labels, threshold):
    boxes = found()
    want = [i for i, d in enumerate(boxes) if d.label in labels and d.score > threshold]
    for given_labels in (labels, list(labels), np.array(sorted(labels))):
        assert boxes.filter(given_labels, threshold).to_dict() == boxes[np.array(want, int)].to_dict()
    assert boxes.filter(threshold=threshold).scores.tolist() == [s for s in boxes.scores.tolist() if s > threshold]
    assert boxes.filter("a dog").labels == ["a dog"]
    assert len(boxes.filter()) == len(boxes)


@pytest.mark.parametrize("wrong", [{"labels": 3}, {"labels": [1]}, {"threshold": "0.5"}, {"threshold": True},
                                   {"threshold": np.nan}])
def test_a_filter_of_another_type_is_refused(wrong):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be a "):
        found().filter(**wrong)


def at(*boxes, size=(40, 20), image=None):
    """Detections at given boxes, all with one label."""
    n = len(boxes)
    return minigdino.Detections(np.array(boxes, np.float32).reshape(n, 4), np.full(n, 0.5, np.float32), ["a cat"] * n,
                                np.zeros(n, np.int64), ["cat"] * n, size, image)


def test_clipped_boxes_lie_in_the_image():
    boxes = at((-5, 2, 50, 30), (1, 2, 3, 4), (-9, -9, -1, -1))
    assert boxes.clip().boxes.tolist() == [[0, 2, 40, 20], [1, 2, 3, 4], [0, 0, 0, 0]]
    assert boxes.clip().labels == boxes.labels
    assert boxes.boxes[0, 0] == -5  # a copy


@given(rngs(), st.floats(0, 3))
def test_a_crop_has_the_pixels_that_a_box_touches(rng, pad):
    image = rng.integers(0, 256, (20, 40, 3), np.uint8)
    low = rng.uniform(-10, 40, (5, 2))
    boxes = at(*np.concatenate([low, low + rng.uniform(0, 30, (5, 2))], axis=1), image=image)
    crops = boxes.crops(pad=pad)
    assert len(crops) == len(boxes)
    for crop, (x0, y0, x1, y1) in zip(crops, boxes.boxes.astype(float)):
        touched = [[max(int(np.floor(a - pad * (b - a))), 0), min(int(np.ceil(b + pad * (b - a))), edge)]
                   for a, b, edge in ((x0, x1, 40), (y0, y1, 20))]
        (left, right), (top, bottom) = touched
        if right > left and bottom > top:
            np.testing.assert_array_equal(np.asarray(crop), image[top:bottom, left:right])
        else:
            assert min(crop.size) >= 1


def test_a_crop_outside_the_image_has_one_pixel():
    image = np.zeros((20, 40, 3), np.uint8)
    boxes = at((50, 30, 60, 40), (-9, -9, -5, -5), (3, 3, 3, 3), image=image)
    assert [crop.size for crop in boxes.crops()] == [(1, 1)] * 3


def test_crops_need_an_image_finite_boxes_and_a_margin():
    with pytest.raises(ArgumentError, match=r"crops\(\) needs an image.*Call crops\(image\)"):
        at((1, 2, 3, 4)).crops()
    for wrong in (-1, np.nan, np.inf, "1", True):
        with pytest.raises(ArgumentError, match="pad must be a number that is not negative"):
            at((1, 2, 3, 4), image=np.zeros((20, 40, 3), np.uint8)).crops(pad=wrong)
    with pytest.raises(ArgumentError, match="finite boxes"):
        at((1, 2, 3, np.inf), image=np.zeros((20, 40, 3), np.uint8)).crops()
    assert at().crops(np.zeros((20, 40, 3), np.uint8)) == []


def test_a_saved_picture_is_the_plot(tmp_path):
    image = np.full((20, 40, 3), 200, np.uint8)
    boxes = at((1, 2, 13, 14), image=image)
    boxes.save(tmp_path / "new" / "found.png")
    with Image.open(tmp_path / "new" / "found.png") as picture:
        np.testing.assert_array_equal(picture, boxes.plot())
    black = np.zeros((20, 40, 3), np.uint8)
    boxes.save(str(tmp_path / "new" / "found.png"), black)  # replaces it
    with Image.open(tmp_path / "new" / "found.png") as picture:
        np.testing.assert_array_equal(picture, boxes.plot(black))


def test_a_picture_never_replaces_its_own_image(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(ArgumentError, match="is the image itself"):
        at((1, 2, 13, 14), image=opened).save(tmp_path / "a.png")
    for source, path in (("a.png", "a.png"), ("a.png", "link.png"), ("link.png", "a.png")):
        with pytest.raises(ArgumentError, match=f"{path} is the image itself. Choose another name"):
            at((1, 2, 13, 14), image=tmp_path / source).save(tmp_path / path)
        with pytest.raises(ArgumentError, match="is the image itself"):
            at((1, 2, 13, 14)).save(tmp_path / path, str(tmp_path / source))
    assert (tmp_path / "a.png").read_bytes() == data


@pytest.mark.parametrize("path", ["found.abc", "found", ".", "a.png/found.png"])
def test_a_picture_that_cannot_be_written_is_refused(tmp_path, path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError, match="cannot write there"):
        at((1, 2, 13, 14), image=tmp_path / "a.png").save(tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ArgumentError, match="a path must be a str or a path; got int"):
        at((1, 2, 13, 14), image=tmp_path / "a.png").save(3)


def test_show_opens_the_plot(monkeypatch):
    shown = []

    class Viewer(ImageShow.Viewer):
        def show_image(self, image, **options):
            shown.append(image)
            return 1

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    boxes = at((1, 2, 13, 14), image=np.zeros((20, 40, 3), np.uint8))
    boxes.show()
    np.testing.assert_array_equal(shown[0], boxes.plot())


def test_show_without_a_viewer_names_save(monkeypatch):
    monkeypatch.setattr(ImageShow, "_viewers", [])
    boxes = at((1, 2, 13, 14), image=np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(ArgumentError, match=r"show\(\) needs a program that displays images.*found none.*save\(path\)"):
        boxes.show()


def test_yolo_lines_are_fractions_of_the_image():
    boxes = at((10, 5, 30, 15), (-10, 5, 20, 50))
    assert boxes.to_yolo() == "0 0.500000 0.500000 0.500000 0.500000\n0 0.250000 0.625000 0.500000 0.750000\n"
    assert boxes.to_yolo(scores=True).splitlines()[0] == "0 0.500000 0.500000 0.500000 0.500000 0.500000"
    assert at().to_yolo() == ""
    with pytest.raises(ArgumentError, match="without NaN"):
        at((1, 2, 3, np.nan)).to_yolo()


def test_a_table_of_pandas_has_the_columns_of_csv(monkeypatch):
    fake = types.SimpleNamespace(DataFrame=dict)
    monkeypatch.setitem(sys.modules, "pandas", fake)
    table = found().to_pandas()
    assert list(table) == found().to_csv().splitlines()[0].split(",")
    assert [len(column) for column in table.values()] == [3] * 8
    assert table["label"] == found().labels
    np.testing.assert_array_equal(np.stack([table["left"], table["top"], table["right"], table["bottom"]], axis=1),
                                  found().boxes)


def test_tags_have_a_contrast_of_at_least_4_5():
    for label_id in range(500):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
                  for v in (channel / 255 for channel in colour(label_id))]
        assert 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) >= 4.5


def tags_of(image, boxes, labels):
    """The tags that `annotate` draws: filled rectangles."""
    tags, draw_rectangle = [], ImageDraw.ImageDraw.rectangle

    def spy(self, xy, fill=None, **options):
        tags.extend([xy] if fill else [])
        draw_rectangle(self, xy, fill=fill, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "rectangle", spy)
        annotate(image, boxes, labels, np.full(len(boxes), 0.5), np.arange(len(boxes)))
    return tags


@given(rngs(), st.sampled_from([(32, 32), (300, 200), (64, 400)]))
def test_a_tag_covers_at_most_half_of_any_box(rng, size):
    centres, sizes = rng.uniform(0, size, (8, 2)), rng.uniform(0, 40, (8, 2))
    boxes = np.hstack([centres - sizes / 2, centres + sizes / 2])
    frames = np.clip(boxes, 0, np.array([*size, *size]) - 1)
    for tag in tags_of(Image.new("RGB", size), boxes, ["a cat"] * 8):
        for frame in frames:
            width = min(tag[2], frame[2]) - max(tag[0], frame[0])
            height = min(tag[3], frame[3]) - max(tag[1], frame[1])
            area = (frame[2] - frame[0]) * (frame[3] - frame[1])
            assert width <= 0 or height <= 0 or width * height <= area / 2 + 1e-6


@pytest.mark.parametrize("box", [[0, 0, 20, 12], [280, 0, 300, 12], [0, 188, 20, 200], [280, 188, 300, 200]])
def test_a_small_box_at_a_corner_has_a_tag_beside_it(box):
    (tag,) = tags_of(Image.new("RGB", (300, 200)), np.float32([box]), ["a cat"])
    assert tag[0] >= box[2] - 1 or tag[2] <= box[0] + 1 or tag[1] >= box[3] - 1 or tag[3] <= box[1] + 1


@pytest.mark.parametrize("grey", range(0, 256, 51))
def test_a_frame_differs_from_any_background(grey):
    result = np.asarray(annotate(Image.new("RGB", (100, 100), (grey,) * 3), [[30, 40, 70, 90]], ["x"], [0.5], [0]))
    column = result[89:93, 50].astype(int)  # the lower edge, without the tag
    assert np.abs(column - grey).max() >= 100


def test_characters_that_no_font_has_are_escaped():
    for label, text in (("a cat", "a cat"), ("猫", "U+732B"), ("a 猫猫 b", "a U+732B U+732B b"), ("a\tb", "a b"),
                        ("\N{CAT FACE}", "U+1F431")):
        assert choose(label, 12, names=["no such font.ttf"])[1] == text
    font, text = choose("a 猫", 12, names=())
    assert text == "a U+732B" and font.getmask(text).getbbox()


@pytest.mark.parametrize("label", ["ดาวสีม่วง", "बैंगनी तारा", "e\N{COMBINING RING BELOW}\N{COMBINING ENCLOSING KEYCAP}"])
def test_combining_characters_that_no_font_has_are_escaped(label):
    """Text shaping would draw one on its own as two missing characters."""
    text = choose(label, 12, names=())[1]
    assert [f"U+{ord(c):04X}" for c in label if c != " " and ord(c) > 127] == [w for w in text.split() if w[:2] == "U+"]


def test_a_font_without_digits_is_not_used(monkeypatch):
    full, glyphs = ImageFont.load_default(size=13), minigdino.fonts._glyph
    monkeypatch.setattr(minigdino.fonts, "_named", lambda name, size: full)
    monkeypatch.setattr(minigdino.fonts, "_glyph", lambda font, c: glyphs(font, c if font is not full or c == "猫"
                                                                          else minigdino.fonts.MISSING))
    assert choose("猫", 12, names=["label.ttf"])[1] == "U+732B"


def test_fonts_of_the_working_directory_are_not_opened(tmp_path, monkeypatch):
    (tmp_path / "DejaVuSans.ttf").write_bytes(b"not a font")
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(ImageFont, "truetype", lambda path, size: opened.append(path))
    minigdino.fonts._opened.cache_clear()
    choose("a 猫 \N{CAT FACE}", 12)
    minigdino.fonts._opened.cache_clear()
    assert all(map(os.path.isabs, opened))


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("size", [(100, 100), (300, 500)])
def test_a_frame_at_the_edges_of_the_picture_differs_from_any_background(grey, size):
    width, height = size
    for label_id in range(8):
        image = Image.new("RGB", size, (grey,) * 3)
        drawn = annotate(image, [[-5, -5, width + 5, height + 5]], ["x"], [0.5], [label_id])
        row = np.asarray(drawn)[height - 20, :20].astype(int)
        assert np.abs(row - grey).max() >= 100


def test_a_font_of_the_system_is_used_for_what_the_first_one_lacks(monkeypatch):
    full, glyphs = ImageFont.load_default(size=13), minigdino.fonts._glyph
    monkeypatch.setattr(minigdino.fonts, "_named", lambda name, size: full if name == "full.ttf" else None)
    monkeypatch.setattr(minigdino.fonts, "_glyph", lambda font, c: c if font is full else glyphs(font, c))
    assert choose("猫", 12, names=["none.ttf", "full.ttf"]) == (full, "猫")
    assert choose("a cat", 12, names=["full.ttf"])[0] is not full


def test_the_constructor_for_type_checkers_has_the_parameters_of_the_real_one():
    tree = ast.parse(Path(results.__file__).read_text())
    declared = [node for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) and kind.name == "Detections"
                for node in ast.walk(kind) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    real = inspect.signature(Detections.__init__).parameters.values()
    assert [arg.arg for arg in declared[0].args.args] == [parameter.name for parameter in real]
    assert len(declared[0].args.defaults) == sum(p.default is not p.empty for p in real)


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_texts_are_labels(kind):
    some = found()
    made = Detections(some.boxes, some.scores, kind(some.labels), some.label_ids, kind(some.phrases), some.image_size)
    assert (made.labels, made.phrases) == (some.labels, some.phrases)
    assert (made.labels == "a dog").tolist() == [False, True, False]

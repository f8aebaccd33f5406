"""The report of an evaluation: counts of hand-made cases, and a page that stands alone."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strategies import rngs

from minigdino.evaluation.analysis import LEVELS, AtThreshold, ByScore
from minigdino.evaluation.candidates import Candidates
from minigdino.evaluation.ground_truth import Category, GroundTruth, Picture
from minigdino.evaluation.report import percent, report
from minigdino.inspection.explain import is_page
from minigdino.learning.average_precision import AveragePrecision

CAT, DOG = 7, 3
BOXES = [[10, 10, 20, 20], [50, 50, 30, 10], [5, 60, 12, 20]]


def truth(rows, pictures=1, frequency=None, **fields):
    """Annotations from rows (image, category, box, crowd)."""
    images, categories, boxes, crowd = zip(*rows) if rows else ((), (), (), ())
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return GroundTruth(
        [Picture(i, f"{i}.png", 100, 90, **fields) for i in range(pictures)],
        [Category(CAT, "cat", frequency), Category(DOG, "dog & <co>", frequency)], np.arange(len(rows)),
        np.array(images, np.int64), np.array(categories, np.int64), array, array[:, 2:].prod(axis=1),
        np.array(crowd, bool))


def found(*rows):
    """Detections from rows (category, box, score)."""
    ids, boxes, scores = zip(*rows) if rows else ((), (), ())
    return Candidates(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64),
                      np.array(ids, np.int64))


TRUTH = truth([(0, CAT, BOXES[0], 0), (0, CAT, BOXES[1], 0), (0, DOG, BOXES[2], 0)])
FOUND = [(0, found((CAT, BOXES[0], 0.9), (CAT, BOXES[0], 0.8), (CAT, BOXES[2], 0.7), (DOG, BOXES[1], 0.6),
                   (DOG, [80, 5, 10, 10], 0.5)))]


def test_each_object_is_matched_once_and_only_by_its_category():
    scores = ByScore(TRUTH, FOUND)
    assert scores.categories == [CAT, DOG] and scores.objects.tolist() == [2, 1]
    assert scores.right.sum(axis=1).tolist() == [1, 0]
    assert scores.wrong.sum(axis=1).tolist() == [2, 2]
    precision, recall = scores.curve(0)
    assert (precision[int(0.85 * LEVELS)], recall[int(0.85 * LEVELS)]) == (1, 0.5)
    assert (precision[0], recall[0]) == (1 / 3, 0.5)
    assert (precision[-1], recall[-1]) == (1, 0)
    threshold, *_, f1 = scores.best()
    assert 0.8 < threshold <= 0.9 and f1 == pytest.approx(2 * 1 * (1 / 3) / (4 / 3))


def test_confusions_and_misses_of_a_picture():
    wrong = AtThreshold(TRUTH, FOUND, 0.25)
    assert wrong.confusions == {(CAT, CAT): 1, (CAT, DOG): 1, (DOG, CAT): 1, (None, DOG): 1}
    (missed,), (false,) = wrong.missed, wrong.false  # one for each picture
    assert (missed.category, missed.other, missed.score) == (CAT, DOG, None)  # 300 pixels, the dog has 240
    assert missed.box == (50, 50, 80, 60)
    assert (false.category, false.other, false.score) == (CAT, DOG, 0.7)
    assert false.other_box == (5, 60, 17, 80)
    assert AtThreshold(TRUTH, FOUND, 0.95).confusions == {(CAT, None): 2, (DOG, None): 1}


def test_the_worst_miss_and_the_best_detection_are_shown_whatever_their_order():
    annotated = truth([(0, DOG, BOXES[2], 0), (0, CAT, BOXES[0], 0), (0, CAT, BOXES[1], 0)])
    detections = [(0, found((DOG, BOXES[0], 0.5), (CAT, BOXES[0], 0.6), (DOG, BOXES[1], 0.7),
                            (DOG, [0, 0, 5, 5], 0.4)))]
    wrong = AtThreshold(annotated, detections, 0.1)
    assert wrong.confusions == {(DOG, None): 1, (CAT, CAT): 1, (CAT, DOG): 1, (None, DOG): 1}
    assert [miss.box for miss in wrong.missed] == [(50, 50, 80, 60)]  # 300 pixels, after 240
    assert [miss.score for miss in wrong.false] == [0.7]


def test_detections_at_a_group_are_neither_right_nor_wrong():
    grouped = truth([(0, CAT, [0, 0, 60, 60], 1), (0, CAT, BOXES[2], 0)])
    detections = [(0, found((CAT, [10, 10, 9, 9], 0.9), (CAT, [20, 20, 9, 9], 0.8), (DOG, [10, 10, 9, 9], 0.7)))]
    scores = ByScore(grouped, detections)
    assert scores.objects.tolist() == [1, 0]
    assert scores.right.sum() == 0 and scores.wrong.sum(axis=1).tolist() == [0, 1]
    wrong = AtThreshold(grouped, detections, 0.1)
    assert wrong.confusions[CAT, None] == 1


def test_categories_for_which_a_picture_is_not_annotated_do_not_count():
    federated = truth([(0, CAT, BOXES[0], 0)], frequency="f")
    detections = [(0, found((CAT, BOXES[1], 0.9), (DOG, BOXES[1], 0.8)))]
    assert ByScore(federated, detections).wrong.sum(axis=1).tolist() == [1, 0]
    assert [miss.category for miss in AtThreshold(federated, detections, 0.1).false] == [CAT]
    absent = truth([(0, CAT, BOXES[0], 0)], frequency="f", absent=frozenset([DOG]))
    assert ByScore(absent, detections).wrong.sum(axis=1).tolist() == [1, 1]
    partial = truth([(0, CAT, BOXES[0], 0)], frequency="f", not_exhaustive=frozenset([CAT]))
    assert ByScore(partial, detections).wrong.sum() == 0


def random_set(rng, pictures=4):
    """Random boxes near one another, and random scores that are no multiples of a level."""
    rows, detections = [], []
    for image in range(pictures):
        places = rng.integers(0, 40, (int(rng.integers(0, 5)), 2)) * 2.0
        rows += [(image, [CAT, DOG][rng.integers(2)], [*place, 20, 20], 0) for place in places]
        some = [*places, *rng.integers(0, 80, (3, 2))]
        levels = rng.permutation(LEVELS)[: len(some)]  # different levels: their order is that of the scores
        detections.append((image, found(*(
            ([CAT, DOG][rng.integers(2)], [*(place + rng.integers(-4, 5, 2)), 20, 20], (level + 0.5) / LEVELS)
            for place, level in zip(some, levels)))))
    return truth(rows, pictures), detections


@given(rngs())
def test_average_precision_is_that_of_the_validation_of_training(rng):
    """With one picture, no two scores are in a level, so that rounding does not matter."""
    annotated, detections = random_set(rng, 1)
    expected, scores = AveragePrecision(), ByScore(annotated, detections)
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
               for boxes in (annotated.boxes, detections[0][1].boxes)]
    for category in (CAT, DOG):
        of, own = annotated.category_ids == category, detections[0][1].category_ids == category
        expected.add(str(category), corners[1][own], detections[0][1].scores[own], corners[0][of])
    for row, category in enumerate((CAT, DOG)):
        if str(category) in expected.by_label():
            assert scores.average_precision(row) == pytest.approx(expected.by_label()[str(category)])
        else:
            assert np.isnan(scores.average_precision(row))


@given(rngs(), st.floats(0, 1))
def test_every_object_has_one_label(rng, threshold):
    annotated, detections = random_set(rng)
    wrong = AtThreshold(annotated, detections, threshold)
    assert sum(n for (actual, _), n in wrong.confusions.items() if actual is not None) == len(annotated.ids)
    for misses in (wrong.missed, wrong.false):
        assert len({miss.picture.id for miss in misses}) == len(misses) <= 4
    values = [miss.score for miss in wrong.false]
    assert values == sorted(values, reverse=True) and all(value > threshold for value in values)


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (100, 90), "#406080").save(tmp_path / "0.png")
    return tmp_path


# F1 is highest for all three of them: two are right
SOME = [(0, found((CAT, BOXES[0], 0.9), (DOG, BOXES[1], 0.8), (DOG, BOXES[2], 0.7)))]


def page(images, annotated=TRUTH, detections=SOME):
    return report(annotated, lambda: iter(detections), images, "model <x>", "facts & more", {"AP": 0.5, "APl": np.nan})


def test_a_page_stands_alone_and_is_recognised(folder):
    html = page(folder)
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", html) and "url(" not in html and "<script" not in html
    assert "model &lt;x&gt;" in html and "dog &amp; &lt;co&gt;" in html and "<x>" not in html and "<co>" not in html
    assert "<td>50.0</td><td>–</td>" in html
    assert html.count("data:image/jpeg") == 2  # the missed object, the false detection
    (folder / "report.html").write_text(html)
    assert is_page(folder / "report.html")


def test_a_page_without_pictures_or_with_a_missing_one(tmp_path):
    assert "data:image/jpeg" not in page(None)
    assert "<strong>cat</strong> is annotated, dog &amp; &lt;co&gt; detected" in page(None)
    assert "0.png" in page(tmp_path) and "data:image/jpeg" not in page(tmp_path)


def test_a_page_without_a_single_detection_or_miss(folder):
    assert "<p>None.</p>" in page(folder, detections=[(0, found())])
    perfect = [(0, found(*zip(TRUTH.category_ids, TRUTH.boxes, [0.9, 0.8, 0.7])))]
    assert page(folder, detections=perfect).count("<p>None.</p>") == 2


def test_many_categories_give_a_list_of_confusions(folder):
    names = [Category(i, f"kind {i}") for i in range(30)]
    boxes = np.tile(BOXES[0], (30, 1)).astype(float)
    many = dataclasses.replace(TRUTH, categories=names, ids=np.arange(30), image_ids=np.zeros(30, int),
                               category_ids=np.arange(30), boxes=boxes, areas=np.full(30, 400.0),
                               crowd=np.zeros(30, bool))
    html = page(folder, many, [(0, found((4, BOXES[0], 0.9)))])
    assert "<td>kind 3</td><td>kind 4</td><td>1</td>" in html and 'class="confusion"' not in html
    assert "Shown are the 24 categories with the most objects." in html


def test_percent_is_that_of_the_papers():
    assert [percent(value) for value in (0.4836, 1, 0, float("nan"))] == ["48.4", "100.0", "0.0", "–"]


def test_the_command_writes_the_report(tmp_path):
    from training import sets

    sets.lvis(tmp_path, 3)
    from minigdino import cli

    words = ["evaluate", "lvis", tmp_path / "annotations.json", "--images", tmp_path, "--model", "shapes",
             "--out", tmp_path / "out", "--report"]
    assert cli.main([*map(str, words)]) == 0
    html, table = (tmp_path / "out" / "report.html").read_text(), json.loads((tmp_path / "out/table.json").read_text())
    assert "shapes on LVIS" in html and percent(table["table"]["AP"]) in html
    assert "Objects that were not found" in html

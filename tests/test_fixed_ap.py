"""LVIS's fixed AP: its rules one by one, its properties, and values of the API of LVIS."""

from dataclasses import replace

import numpy as np
import pytest
from annotated import random_set
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import rngs

from minigdino import ArgumentError
from minigdino.evaluation import fixed_ap
from minigdino.evaluation.candidates import Candidates, checked, iou
from minigdino.evaluation.fixed_ap import lvis_table
from minigdino.evaluation.ground_truth import Category, GroundTruth, Picture

COLUMNS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
BOX = [10, 10, 50, 20]  # an area of 1,000: small


def truth_of(*objects, pictures=None, categories=None):
    """Annotations from rows (image id, category id, box) with areas of boxes."""
    image_ids, category_ids, boxes = zip(*objects) if objects else ((), (), ())
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    n = len(boxes)
    return GroundTruth(pictures or [Picture(1, "a.jpg", 200, 200), Picture(2, "b.jpg", 200, 200)],
                       categories or [Category(1, "cat", "f"), Category(2, "dog", "r")], np.arange(n) + 1,
                       np.array(image_ids, np.int64), np.array(category_ids, np.int64), boxes,
                       boxes[:, 2:].prod(axis=1), np.zeros(n, bool))


def found(*rows):
    """Candidates from rows (category id, score, box)."""
    category_ids, scores, boxes = zip(*rows) if rows else ((), (), ())
    return Candidates(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64),
                      np.array(category_ids, np.int64))


def table(truth, *detections):
    return lvis_table(truth, detections)


def equal(one, two):
    return list(one) == list(two) and np.allclose(list(one.values()), list(two.values()), 0, 1e-12, equal_nan=True)


def test_perfect_detections_have_an_ap_of_1_and_missing_kinds_are_nan():
    result = table(truth_of((1, 1, BOX), (2, 1, BOX)), (1, found((1, 0.9, BOX))), (2, found((1, 0.3, BOX))))
    assert list(result) == COLUMNS
    assert {name for name, value in result.items() if value == 1} == {"AP", "AP50", "AP75", "APs", "APf"}
    assert all(np.isnan(result[name]) for name in ("APm", "APl", "APr", "APc"))


def test_no_detections_have_an_ap_of_0():
    assert table(truth_of((1, 1, BOX)))["AP"] == 0
    assert table(truth_of((1, 1, BOX)), (1, found()))["AP"] == 0
    assert all(map(np.isnan, table(truth_of()).values()))


def test_a_detection_counts_up_to_its_iou():
    """IoU 0.62: right at 0.5, 0.55 and 0.6."""
    result = table(truth_of((1, 1, [0, 0, 100, 100])), (1, found((1, 0.9, [0, 0, 100, 62]))))
    assert result["AP"] == pytest.approx(0.3)
    assert (result["AP50"], result["AP75"], result["APl"]) == (1, 0, pytest.approx(0.3))


def test_ap_is_the_precision_at_101_recalls():
    """Right, wrong, right: recalls up to 0.5 have the precision 1, the others 2/3."""
    far = [150, 150, 20, 20]
    result = table(truth_of((1, 1, BOX), (2, 1, BOX)), (1, found((1, 0.9, BOX), (1, 0.8, far))),
                   (2, found((1, 0.7, BOX))))
    assert result["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize(("absent", "partial", "expected"), [
    ((), (), 1), ((2,), (), 1), ((1,), (), 51 / 101 + 50 / 101 * 2 / 3), ((1,), (1,), 1)])
def test_a_detection_in_an_image_counts_if_its_category_is_known_to_be_absent(absent, partial, expected):
    """One right detection in image 1, then one in image 3 where nothing is annotated, then a right one in image 2."""
    pictures = [Picture(1, "", 9, 9), Picture(2, "", 9, 9),
                Picture(3, "", 9, 9, absent=frozenset(absent), not_exhaustive=frozenset(partial))]
    result = table(truth_of((1, 1, BOX), (2, 1, BOX), pictures=pictures), (1, found((1, 0.9, BOX))),
                   (3, found((1, 0.8, BOX))), (2, found((1, 0.7, BOX))))
    assert result["AP"] == pytest.approx(expected)


def test_where_a_category_is_annotated_in_part_a_detection_without_an_object_is_ignored_but_one_with_it_is_right():
    pictures = [Picture(1, "", 9, 9, not_exhaustive=frozenset({1}))]
    boxes = found((1, 0.9, [100, 100, 30, 30]), (1, 0.8, BOX))
    assert table(truth_of((1, 1, BOX), pictures=pictures), (1, boxes))["AP"] == 1
    assert table(truth_of((1, 1, BOX)), (1, boxes))["AP"] == pytest.approx(0.5)


def test_an_object_is_matched_once_and_the_next_detection_of_it_is_wrong():
    truth = truth_of((1, 1, BOX), (2, 1, BOX))
    result = table(truth, (1, found((1, 0.9, BOX), (1, 0.8, BOX))), (2, found((1, 0.7, BOX))))
    assert result["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_of_equal_overlaps_the_last_object_is_taken():
    """So the first object stays free for the second detection, which fits it. From 0.85 on, only that one is right."""
    truth = truth_of((1, 1, [0, 0, 100, 40]), (1, 1, [20, 0, 100, 40]))
    result = table(truth, (1, found((1, 0.9, [10, 0, 100, 40]), (1, 0.8, [0, 0, 100, 40]))))
    assert result["AP"] == pytest.approx(0.7 + 0.3 * 51 / 101 / 2)


def test_an_object_in_the_range_of_areas_is_preferred_to_one_with_more_overlap():
    """The smaller object has an IoU of 38/42, the other one of 1."""
    truth = truth_of((1, 1, [0, 0, 40, 40]), (1, 1, [2, 0, 40, 40]))
    result = table(replace(truth, areas=np.array([1000.0, 2000])), (1, found((1, 0.9, [2, 0, 40, 40]))))
    assert result["APs"] == pytest.approx(0.9)
    assert result["APm"] == pytest.approx(1)


def test_the_bounds_of_the_areas_belong_to_both_ranges():
    result = table(truth_of((1, 1, [0, 0, 32, 32]), (2, 2, [0, 0, 96, 96])), (1, found((1, 0.9, [0, 0, 32, 32]))),
                   (2, found((2, 0.9, [0, 0, 96, 96]))))
    assert [result[name] for name in ("APs", "APm", "APl")] == [1, 1, 1]
    assert table(truth_of((1, 1, [0, 0, 32, 33])))["APm"] == 0
    assert np.isnan(table(truth_of((1, 1, [0, 0, 32, 33])))["APs"])


def test_among_small_objects_detections_of_large_ones_and_large_false_ones_are_ignored():
    large, truth = [0, 0, 150, 150], truth_of((1, 1, BOX), (2, 1, [0, 0, 150, 150]))
    result = table(truth, (1, found((1, 0.8, BOX), (1, 0.9, [60, 60, 100, 100]))), (2, found((1, 0.9, large))))
    assert result["APs"] == 1
    assert result["APl"] == pytest.approx(0.5)  # the false one comes first, by its image id


def test_boxes_without_an_area_do_not_count():
    empty, truth = [30, 30, 0, 40], truth_of((1, 1, BOX), (1, 1, [30, 30, 0, 40]), (2, 2, [30, 30, 0, 40]))
    result = table(truth, (1, found((1, 0.9, empty), (1, 0.8, BOX))), (2, found((2, 0.5, BOX))))
    assert result["AP"] == 1  # of category 1; category 2 has no object
    assert np.isnan(result["APr"])


def test_categories_have_the_same_weight_and_frequencies_a_column_each():
    truth = truth_of((1, 1, BOX), (2, 1, BOX), (1, 2, BOX))
    result = table(truth, (1, found((1, 0.9, BOX))), (2, found((1, 0.8, BOX))))
    assert [result[name] for name in ("AP", "APr", "APf")] == [0.5, 0, 1]


def test_only_the_best_detections_of_a_category_count_over_all_images(monkeypatch):
    monkeypatch.setattr(fixed_ap, "LIMIT", 2)
    truth = truth_of((1, 1, BOX), (2, 1, BOX), (2, 2, BOX))
    far = [150, 150, 20, 20]
    result = table(truth, (1, found((1, 0.9, far), (1, 0.8, BOX))), (2, found((1, 0.7, BOX), (2, 0.1, BOX))))
    assert result["APf"] == pytest.approx(51 / 101 / 2)  # the right one in image 2 is the third
    assert result["APr"] == 1


def test_of_equal_scores_the_detection_that_was_read_first_is_kept(monkeypatch):
    monkeypatch.setattr(fixed_ap, "LIMIT", 1)
    truth, right, wrong = truth_of((1, 1, BOX), (2, 1, BOX)), found((1, 0.5, BOX)), found((1, 0.5, [150, 0, 9, 9]))
    assert table(truth, (1, right), (2, wrong))["AP"] == pytest.approx(51 / 101)
    assert table(truth, (2, wrong), (1, right))["AP"] == 0


@settings(max_examples=25)
@given(rngs(), st.integers(1, 40), st.integers(0, 60), st.booleans())
def test_dropping_while_reading_equals_dropping_at_the_end(rng, limit, spare, coarse):
    """The definition: sort all detections of the set by score, and keep the first ones of each category."""
    truth, detections = random_set(rng, coarse=coarse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_ap, "LIMIT", limit)
        patch.setattr(fixed_ap, "SPARE", spare)
        result = lvis_table(truth, iter(detections))
    rows = [(float(score), k, j) for k, (_, boxes) in enumerate(detections) for j, score in enumerate(boxes.scores)]
    left, kept = dict.fromkeys([category.id for category in truth.categories], limit), set()
    for _, k, j in sorted(rows, key=lambda row: -row[0]):
        category_id = int(detections[k][1].category_ids[j])
        if left[category_id]:
            left[category_id] -= 1
            kept.add((k, j))
    masks = [np.array([(k, j) in kept for j in range(len(boxes.scores))], bool)
             for k, (_, boxes) in enumerate(detections)]
    cut = [(image_id, Candidates(boxes.boxes[mask], boxes.scores[mask], boxes.category_ids[mask]))
           for (image_id, boxes), mask in zip(detections, masks)]
    assert equal(result, lvis_table(truth, cut))


@settings(max_examples=25)
@given(rngs())
def test_the_order_of_images_and_of_boxes_does_not_matter_if_scores_differ(rng):
    truth, detections = random_set(rng, coarse=False)
    shuffled = []
    for k in rng.permutation(len(detections)):
        image_id, boxes = detections[k]
        order = rng.permutation(len(boxes.scores))
        shuffled.append((image_id, Candidates(boxes.boxes[order], boxes.scores[order], boxes.category_ids[order])))
    assert equal(lvis_table(truth, detections), lvis_table(truth, shuffled))


@settings(max_examples=25)
@given(rngs())
def test_every_value_is_a_fraction_and_perfect_detections_reach_1(rng):
    truth, detections = random_set(rng, coarse=False)
    assert all(np.isnan(value) or 0 <= value <= 1 for value in lvis_table(truth, detections).values())
    perfect = [(picture.id, Candidates(truth.boxes[rows], np.ones(rows.sum()), truth.category_ids[rows]))
               for picture in truth.pictures for rows in [truth.image_ids == picture.id]]
    result = lvis_table(truth, perfect)
    assert all(np.isnan(result[name]) or result[name] == pytest.approx(1) for name in ("AP", "AP50", "APr", "APf"))


# Computed by lvis-api for `random_set(default_rng(seed), coarse=seed % 2 == 0)`, and by the parity tests again
EXPECTED = {
    0: [0.148404262695177, 0.217921970768505, 0.153901461574729, 0.206752710985384, 0.133836633663366, 0.0,
        0.128795379537954, 0.235643564356436, 0.100382727348365],
    1: [0.187123799677539, 0.373143564356436, 0.199738723872387, 0.121782466708209, 0.380500550055005,
        0.911111111111111, 0.166093668577384, 0.335757806549886, 0.080550055005501],
    2: [0.20092928317557, 0.272537446052298, 0.202145214521452, 0.142889851485149, 0.353857260726073, 0.0,
        0.215001178689298, 0.336633663366337, 0.03708111195735],
    3: [0.371069981058256, 0.545377573471633, 0.422642621404998, 0.301278877887789, 0.59540680154972, 0.92,
        0.292449564505323, 0.344650322175075, 0.554730473047305],
}


@pytest.mark.parametrize("seed", EXPECTED)
def test_values_equal_those_of_the_api_of_lvis(seed):
    result = lvis_table(*random_set(np.random.default_rng(seed), coarse=seed % 2 == 0))
    np.testing.assert_allclose(list(result.values()), EXPECTED[seed], rtol=0, atol=1e-9)


@given(rngs(), st.integers(0, 5), st.integers(0, 5))
def test_iou_is_symmetric_and_1_for_equal_boxes(rng, n, m):
    a, b = (np.concatenate([rng.uniform(-50, 50, (k, 2)), rng.uniform(1, 80, (k, 2))], axis=1) for k in (n, m))
    np.testing.assert_allclose(iou(a, b), iou(b, a).T)
    np.testing.assert_allclose(np.diag(iou(a, a)), 1)
    assert iou(a, b).shape == (n, m)


def test_iou_of_known_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [10, 0, 10, 10], [3, 3, 0, 5]], float)
    np.testing.assert_allclose(iou(boxes[:1], boxes), [[1, 1 / 3, 0, 0]])


@pytest.mark.parametrize(("detections", "message"), [
    ([(3, found())], "expected detections in the 2 images of the annotations; got some for the image id 3"),
    ([(1, found()), (1, found())], "expected the detections of each image once; got those of the image id 1 twice"),
    ([(1, found((7, 0.5, BOX)))], "image id 1: expected detections of the 2 categories .* the category id 7"),
    ([(1, found((1, np.nan, BOX)))], "image id 1: expected finite scores and boxes"),
    ([(1, found((1, 0.5, [0, 0, np.inf, 1])))], "image id 1: expected finite scores and boxes"),
    ([(2, found((1, 0.5, [0, 0, -1, 1])))], "image id 2: .* no negative width"),
    ([(2, Candidates(np.zeros((2, 4)), np.zeros(3), np.zeros(3)))], r"boxes \[K, 4\].* got \[2, 4\], \[3\] and \[3\]"),
    ([(2, Candidates([BOX], 0.5, 1))], r"boxes \[K, 4\].* got \[1, 4\], \[\] and \[\]"),
    ([(2, Candidates([BOX, [1]], [0.5, 0.4], [1, 1]))], r"image id 2: expected boxes \[K, 4\].* no such arrays"),
    ([(2, Candidates([BOX], ["high"], [1]))], r"image id 2: expected boxes \[K, 4\].* no such arrays"),
    ([(2, Candidates([BOX], [10**400], [1]))], r"image id 2: expected boxes \[K, 4\].* no such arrays"),
    ([(2, Candidates(None, None, None))], r"image id 2: expected boxes \[K, 4\]"),
    ([(2, Candidates([BOX], [0.5], [1.5]))], r"image id 2: expected ints as category ids; got \[1.5\]"),
    ([(2, Candidates([BOX], [0.5], ["cat"]))], r"image id 2: expected ints as category ids; got \['cat'\]"),
    ([(2, Candidates([BOX], [0.5], [True]))], r"image id 2: expected ints as category ids; got \[True\]"),
    ([(2, Candidates([BOX], [0.5], [2**70]))], "image id 2: expected ints as category ids; got"),
])
def test_detections_of_another_set_are_refused(detections, message):
    with pytest.raises(ArgumentError, match=message):
        list(checked(truth_of((1, 1, BOX)), detections))


def test_annotations_without_frequencies_are_refused():
    with pytest.raises(ArgumentError, match='expected categories with a "frequency".*the protocol coco'):
        lvis_table(truth_of((1, 1, BOX), categories=[Category(1, "cat"), Category(2, "dog", "r")]), [])

"""COCO's AP: values of pycocotools, the same values as LVIS's AP where the rules agree, and its own rules."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from annotated import random_set
from hypothesis import given, settings
from strategies import rngs
from test_fixed_ap import BOX, found, truth_of

from minigdino import ArgumentError
from minigdino.evaluation.coco_ap import COLUMNS, coco_table
from minigdino.evaluation.fixed_ap import lvis_table


@pytest.fixture(scope="module", autouse=True)
def package():
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs the extra evaluate")


# Computed by pycocotools for `random_set(default_rng(seed), federated=False, coarse=seed % 2 == 0)`, and by the parity
# tests again
EXPECTED = {
    0: [0.257170053543816, 0.362422107595375, 0.303619111911191, 0.230606435643564, 0.354323432343234,
        0.716666666666667],
    1: [0.201735565949675, 0.354476588491701, 0.21896099870037, 0.116701796553282, 0.519218921892189, 0.55],
    2: [0.364978211800699, 0.556386205422162, 0.363434767421219, 0.132819719471947, 0.683824257425742,
        0.936699669966997],
    3: [0.269216437404296, 0.390967311016816, 0.289939971440753, 0.125086003105805, 0.609810231023102,
        0.684158415841584],
}


@pytest.mark.parametrize("seed", EXPECTED)
def test_values_equal_those_of_pycocotools(seed):
    result = coco_table(*random_set(np.random.default_rng(seed), federated=False, coarse=seed % 2 == 0))
    assert tuple(result) == COLUMNS
    np.testing.assert_allclose(list(result.values()), EXPECTED[seed], rtol=0, atol=1e-9)


@settings(max_examples=25)
@given(rngs())
def test_without_crowds_and_with_complete_annotations_the_ap_is_that_of_lvis(rng):
    truth, detections = random_set(rng, coarse=False)
    every = frozenset(category.id for category in truth.categories)
    complete = replace(truth, pictures=[replace(picture, absent=every, not_exhaustive=frozenset())
                                        for picture in truth.pictures])
    visible = [(image_id, replace(boxes, boxes=boxes.boxes + np.array([0, 0, 1, 1]))) for image_id, boxes in detections]
    one, two = coco_table(complete, visible), lvis_table(complete, visible)
    np.testing.assert_allclose(list(one.values()), [two[name] for name in COLUMNS], rtol=0, atol=1e-9)


def test_a_detection_in_a_crowd_is_ignored():
    far = [100, 100, 60, 60]
    truth = truth_of((1, 1, BOX), (1, 1, far))
    boxes = found((1, 0.9, [110, 110, 20, 20]), (1, 0.8, [120, 120, 20, 20]), (1, 0.7, BOX))
    assert coco_table(replace(truth, crowd=np.array([False, True])), [(1, boxes)])["AP"] == 1
    assert coco_table(truth, [(1, boxes)])["AP"] == pytest.approx(51 / 101 / 3)


def test_no_detections_have_an_ap_of_0_and_missing_kinds_are_nan():
    for detections in ([], [(1, found())]):
        result = coco_table(truth_of((1, 1, BOX)), detections)
        assert [result[name] for name in ("AP", "AP50", "AP75", "APs")] == [0, 0, 0, 0]
        assert np.isnan(result["APm"])
        assert np.isnan(result["APl"])


def test_the_first_annotation_counts_though_its_id_is_0():
    truth = replace(truth_of((1, 1, BOX)), ids=np.array([0]))
    assert coco_table(truth, [(1, found((1, 0.5, BOX)))])["AP"] == 1


def test_of_an_image_the_100_best_detections_of_a_category_count():
    far = [(1, 0.9, [100, 100, 9, 9])]
    assert coco_table(truth_of((1, 1, BOX)), [(1, found(*far * 99, (1, 0.5, BOX)))])["AP"] == pytest.approx(0.01)
    assert coco_table(truth_of((1, 1, BOX)), [(1, found(*far * 100, (1, 0.5, BOX)))])["AP"] == 0


def test_detections_of_another_set_are_refused():
    with pytest.raises(ArgumentError, match="got some for the image id 3"):
        coco_table(truth_of((1, 1, BOX)), [(3, found())])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    expected = 'COCO AP needs the package faster-coco-eval, .* Run: pip install .*"faster-coco-eval>=1.6"'
    with pytest.raises(ArgumentError, match=expected):
        coco_table(truth_of((1, 1, BOX)), [])

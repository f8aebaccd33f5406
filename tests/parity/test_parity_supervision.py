"""`Detections.to_supervision` with the package supervision."""

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of that package
supervision = pytest.importorskip("supervision")


@pytest.mark.parametrize("threshold", [0, 1])
def test_supervision_detections_hold_the_same_values(threshold):
    detections = tiny.model().detect(tiny.photo(), ["a cat", "remote control"], threshold=threshold)
    converted = detections.to_supervision()
    assert isinstance(converted, supervision.Detections)
    assert len(converted) == len(detections)
    np.testing.assert_array_equal(converted.xyxy, detections.boxes)
    np.testing.assert_array_equal(converted.confidence, detections.scores)
    np.testing.assert_array_equal(converted.class_id, detections.label_ids)
    assert list(converted["class_name"]) == detections.labels
    best = converted[converted.confidence > 0.5]  # filtering by supervision also filters the names
    assert list(best["class_name"]) == detections[detections.scores > 0.5].labels

"""`to_supervision` against the real package."""

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # the package's own
supervision = pytest.importorskip("supervision")


@pytest.mark.parametrize("threshold", [0, 1])
def test_supervision_holds_the_same_boxes(threshold):
    found = tiny.model().detect(tiny.photo(), ["a cat", "remote control"], threshold=threshold)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert len(theirs) == len(found)
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    np.testing.assert_array_equal(theirs.class_id, found.label_ids)
    assert list(theirs["class_name"]) == found.labels
    best = theirs[theirs.confidence > 0.5]  # its own filtering keeps the names in step
    assert list(best["class_name"]) == found[found.scores > 0.5].labels

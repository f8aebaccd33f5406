"""AP against the published implementations: pycocotools for COCO, lvis-api for fixed AP. Needs the extra "parity".

lvis-api 0.5.3 limits the detections of an image. With `max_dets` -1, and the detections of each category cut before, it
computes fixed AP, as its branch lvis_challenge_2021 does.
"""

import contextlib
import copy
import io
import logging
from collections import defaultdict

import numpy as np
import pytest
import test_coco_ap
import test_fixed_ap
from annotated import as_coco, as_results, random_set
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import rngs

from minigdino.evaluation import fixed_ap
from minigdino.evaluation.coco_ap import coco_table
from minigdino.evaluation.fixed_ap import lvis_table


def pycocotools_values(truth, detections):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        objects = coco.COCO()
        objects.dataset = as_coco(truth)
        objects.createIndex()
        evaluation = cocoeval.COCOeval(objects, objects.loadRes(as_results(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return without_minus_one(evaluation.stats[:6])


def lvis_values(truth, detections, limit=fixed_ap.LIMIT):
    lvis = pytest.importorskip("lvis")
    objects = lvis.LVIS.__new__(lvis.LVIS)  # its constructor reads a file
    objects.logger, objects.dataset = logging.getLogger("lvis"), copy.deepcopy(as_coco(truth))
    objects._create_index()
    by_category = defaultdict(list)
    for row in as_results(detections):
        by_category[row["category_id"]].append(row)
    kept = [row for rows in by_category.values() for row in sorted(rows, key=lambda row: -row["score"])[:limit]]
    with pytest.MonkeyPatch.context() as patch:  # lvis 0.5.3 needs names that Python and NumPy have dropped since
        patch.setattr(logging.Logger, "warn", logging.Logger.info, raising=False)
        patch.setattr(np, "float", float, raising=False)
        evaluation = lvis.LVISEval(objects, lvis.LVISResults(objects, kept, max_dets=-1), "bbox")
        evaluation.params.max_dets = -1
        evaluation.run()
    return without_minus_one([value for name, value in evaluation.results.items() if name.startswith("AP")])


def without_minus_one(values):
    """Both packages write -1 where there is no object."""
    return [np.nan if value == -1 else value for value in values]


def assert_equal(result, expected):
    np.testing.assert_allclose(list(result.values()), expected, rtol=0, atol=1e-9)


@settings(max_examples=100)
@given(rngs(), st.booleans())
def test_coco_ap_equals_that_of_pycocotools(rng, coarse):
    truth, detections = random_set(rng, federated=False, coarse=coarse)
    assume(as_results(detections))  # pycocotools refuses an empty list
    assert_equal(coco_table(truth, detections), pycocotools_values(truth, detections))


@settings(max_examples=100)
@given(rngs(), st.booleans(), st.sampled_from([1, 5, 20, fixed_ap.LIMIT]), st.sampled_from([0, 30, fixed_ap.SPARE]))
def test_fixed_ap_equals_that_of_the_api_of_lvis(rng, coarse, limit, spare):
    truth, detections = random_set(rng, coarse=coarse)
    assume(as_results(detections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_ap, "LIMIT", limit)
        patch.setattr(fixed_ap, "SPARE", spare)
        result = lvis_table(truth, detections)
    assert_equal(result, lvis_values(truth, detections, limit))


@pytest.mark.parametrize("seed", test_coco_ap.EXPECTED)
def test_the_stored_values_are_those_of_pycocotools(seed):
    values = pycocotools_values(*random_set(np.random.default_rng(seed), federated=False, coarse=seed % 2 == 0))
    np.testing.assert_allclose(values, test_coco_ap.EXPECTED[seed], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", test_fixed_ap.EXPECTED)
def test_the_stored_values_are_those_of_the_api_of_lvis(seed):
    values = lvis_values(*random_set(np.random.default_rng(seed), coarse=seed % 2 == 0))
    np.testing.assert_allclose(values, test_fixed_ap.EXPECTED[seed], rtol=0, atol=1e-12)

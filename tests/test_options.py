"""Options of `detect`: filters and scores, what each accepts, and their order."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import minigdino
from minigdino import ArgumentError, Detections
from minigdino.network.boxes import sigmoid

MODEL = minigdino.load("shapes")
PHOTO = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"
PHRASES = ["star", "a. green heart", "ring"]
EVERY = MODEL.detect(PHOTO, PHRASES, threshold=0)


def rows(found):
    """The detections as tuples that are equal to the bit."""
    return [(d.score, d.box, d.label, d.phrase) for d in found]


def detect(text=PHRASES, image=PHOTO, **options):
    return MODEL.detect(image, text, **{"threshold": 0, **options})


@settings(max_examples=30)  # a forward pass each
@given(st.none() | st.sampled_from([0.03, 0.05, 1]), st.none() | st.sampled_from([0, 0.5, 0.9, 1]), st.booleans(),
       st.none() | st.integers(1, 12), st.sampled_from([0, 0.1, {"star": 0.1, "ring": 0.05}]))
def test_the_options_are_the_methods_in_the_documented_order(max_area, nms, class_agnostic, n, threshold):
    agnostic = class_agnostic and nms is not None
    found = detect(threshold=threshold, max_area=max_area, nms=nms, class_agnostic=agnostic, max_detections=n)
    limits = {**dict.fromkeys(PHRASES, 0.25), **threshold} if isinstance(threshold, dict) else threshold
    want = EVERY.filter(threshold=limits).filter(max_area=max_area)
    want = want if nms is None else want.nms(nms, agnostic)
    want = want if n is None else want.top(n)
    assert rows(found) == rows(want)
    assert rows(minigdino.detect(PHOTO, PHRASES, model=MODEL, threshold=threshold, max_area=max_area, nms=nms,
                                 class_agnostic=agnostic, max_detections=n)) == rows(want)


def test_the_options_have_an_effect_on_this_image():
    """So that the test above can fail."""
    assert len(set(EVERY.labels)) == 3
    counts = [len(EVERY.filter(max_area=0.05)), len(EVERY.nms(0.5)), len(EVERY.nms(0.5, class_agnostic=True)),
              len(EVERY.filter(threshold={"star": 0.1})), len(EVERY.filter(threshold=0.1))]
    assert all(0 < count < len(EVERY) for count in counts)
    assert counts[2] < counts[1]


def test_a_phrase_without_a_threshold_has_the_default_one():
    found = detect(threshold={"star": 0.1})
    assert rows(found) == rows(EVERY.filter(threshold={"star": 0.1, "a. green heart": 0.25, "ring": 0.25}))
    assert rows(detect(threshold={})) == rows(MODEL.detect(PHOTO, PHRASES))


def test_the_keys_of_thresholds_are_phrases_in_the_wording_of_the_prompt():
    want = rows(detect(threshold={"a. green heart": 0}))
    assert len(want) > len(rows(detect(threshold={})))
    for text in (PHRASES, ["star.", "a. green heart.", "ring"]):
        assert rows(detect(text, threshold={"a. green heart. ": 0})) == want
    assert set(detect("A star. ring. star.", threshold={"A star": 0, "ring": 1, "star": 1}).labels) <= {"A star"}
    apart = [["a star"], ["a ring"]]
    both = detect(apart, [PHOTO, PHOTO], threshold={"a star": 0, "a ring": 1})
    assert [len(found) for found in both] == [MODEL.config.num_queries, 0]
    with pytest.raises(ArgumentError, match=r"keys; got 'a hat'\. The phrases are \['a star', 'a ring'\]"):
        detect(apart, [PHOTO, PHOTO], threshold={"a hat": 0})


def test_the_mean_score_is_that_of_the_label():
    prompt = MODEL.tokenize(PHRASES)
    output = MODEL.forward(MODEL.preprocess(PHOTO), prompt.ids)
    probabilities = sigmoid(output.logits.astype(np.float64))
    means = np.array([probabilities[:, start:stop].mean(axis=1) for start, stop in prompt.spans])  # [P, Q]
    order = np.argsort(-means.max(axis=0))
    found = detect(score="mean")
    np.testing.assert_allclose(found.scores, means.max(axis=0)[order], rtol=1e-5)
    assert found.label_ids.tolist() == means.argmax(axis=0)[order].tolist()
    assert (found.scores <= EVERY.scores).all() and (found.scores < EVERY.scores).any()
    limit = float(np.median(found.scores))
    assert rows(detect(score="mean", threshold=limit)) == rows(found.filter(threshold=limit))
    assert rows(detect(score="max")) == rows(EVERY)


WRONG = {
    "chunk": [0, -1, True, 1.5, "2", float("nan"), [1]],
    "score": ["min", None, 1, ["max"]],
    "max_area": [0, -0.1, 1.1, True, "0.5", float("nan"), float("inf"), [0.5], 10**400],
    "nms": [-0.1, 1.1, True, "0.7", float("nan"), float("inf"), (0.5,), 10**400],
    "class_agnostic": [1, None, "yes"],
    "max_detections": [0, -1, True, 2.0, "3", float("nan")],
    "tile": [0, -1, 63, True, 640.0, "640", float("nan"), (640, 640)],
    "threshold": [{"star": 2}, {"star": True}, {"star": float("nan")}, {"star": None}, {3: 0.5}, {None: 0.5},
                  {"a hat": 0.5}, {"Star": 0.5}, {"star": 0.1, "star.": 0.2}, {}.keys(), [0.5]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values],
                         ids=lambda value: str(value)[:20])
def test_a_wrong_value_is_refused_by_the_name_of_its_option(name, value):
    for image in (PHOTO, [], iter([])):  # also before the first image
        with pytest.raises(ArgumentError, match=f"^{name} "):
            detect(image=image, **{name: value})


def test_a_suppression_that_is_off_has_no_kind():
    with pytest.raises(ArgumentError, match="class_agnostic=True needs nms or tile, .*got neither. Give for example"):
        detect(class_agnostic=True)


@pytest.mark.parametrize("call", [
    lambda found: found.nms(2), lambda found: found.nms(True), lambda found: found.nms("x"),
    lambda found: found.nms(float("nan")), lambda found: found.nms(0.5, class_agnostic=1), lambda found: found.top(0),
    lambda found: found.top(1.0), lambda found: found.top(True), lambda found: found.filter(max_area=0),
    lambda found: found.filter(max_area=float("nan")), lambda found: found.filter(max_area=2),
    lambda found: found.filter(threshold={"star": "x"}), lambda found: found.filter(threshold={"star": float("nan")}),
    lambda found: found.filter(threshold={3: 0.5}), lambda found: found.filter(threshold="x")])
def test_a_wrong_argument_of_a_method_is_refused(call):
    for found in (EVERY, EVERY[:0]):
        with pytest.raises(ArgumentError, match="must (be|have) .*; got"):
            call(found)


def test_methods_of_no_detections_give_none():
    none = EVERY[:0]
    for found in (none.nms(), none.top(3), none.filter(threshold={"star": 0.1}, max_area=0.5)):
        assert isinstance(found, Detections)
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)


def test_the_area_is_that_inside_the_image():
    def found(*box):
        return Detections(np.float32([box]), np.float32([0.5]), ["a"], np.array([0]), ["a"], (100, 50))

    assert len(found(-1000, -1000, 50, 25).filter(max_area=0.25)) == 1
    assert len(found(-1000, -1000, 51, 25).filter(max_area=0.25)) == 0
    assert len(found(-5, -5, 200, 200).filter(max_area=1)) == 1
    assert len(found(500, 500, 900, 900).filter(max_area=1e-9)) == 1  # outside


def test_the_order_of_detections_does_not_change_what_is_best():
    shuffled = EVERY[np.random.default_rng(0).permutation(len(EVERY))]
    assert rows(shuffled.top(5)) == rows(EVERY.top(5)) == rows(EVERY[:5])
    assert sorted(rows(shuffled.nms(0.5))) == sorted(rows(EVERY.nms(0.5)))
    kept = iter(rows(shuffled))
    assert all(row in kept for row in rows(shuffled.nms(0.5)))  # in the same order
    assert len(EVERY.top(10**6)) == len(EVERY)


def test_numpy_values_are_options_too():
    for name, value in (("chunk", np.int64(2)), ("max_area", np.float32(0.5)), ("nms", np.float64(0.5)),
                        ("max_detections", np.int32(3)), ("tile", np.int64(500))):
        assert rows(detect(**{name: value})) == rows(detect(**{name: value.item()}))
    assert rows(detect(nms=0.5, class_agnostic=np.True_)) == rows(detect(nms=0.5, class_agnostic=True))


def test_every_pair_of_options_can_be_combined():
    options = {"chunk": 2, "score": "mean", "max_area": 0.9, "nms": 0.7, "max_detections": 3, "tile": 64}
    model, photo = tiny.model(), tiny.photo(60, 80)
    for a, b in itertools.combinations(options, 2):
        assert len(model.detect(photo, ["a cat", "a dog", "hat"], **{a: options[a], b: options[b]}))

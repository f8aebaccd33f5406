"""Losses equal their definitions; Model.loss sums them with their weights, and names what is wrong with its input."""

import dataclasses
import io
import sys
from pathlib import Path

import definitions
import fake_gpu
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapecheck import checked
from strategies import rngs
from test_fake_gpu import both
from test_matching import boxes, phrases

import minigdino
from minigdino import ArgumentError, CheckpointError, ImageError, Model, PromptError
from minigdino.network import losses, matching
from minigdino.network.losses import Targets

MODEL = tiny.model()
SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"
PHOTO = tiny.photo()  # 120 x 90 pixels
NAMES = ["a cat", "red hat", "st. bernard"]
BOXES = [[10, 20, 50, 70], [60, 5, 119, 88], [30, 30, 45, 52]]
LABELS = ["a cat", "st. bernard", "a cat"]

alphas = st.integers(0, 64).map(lambda i: i / 64)  # 1 - alpha is exact
logits_of = st.floats(-30, 30)


# The three losses.


@given(logits_of, st.booleans(), alphas, st.sampled_from([0, 0.5, 2, 5]))
def test_focal_loss_equals_its_definition(logit, target, alpha, gamma):
    found = losses.focal(np.float64([logit]), np.array([target]), alpha, gamma)
    # the definition computes 1 - p_t, which cancels for answers that are right
    np.testing.assert_allclose(found, definitions.focal(logit, target, alpha, gamma), rtol=1e-6, atol=1e-12)


@given(logits_of, st.booleans())
def test_with_gamma_0_it_is_half_of_the_binary_cross_entropy(logit, target):
    expected = np.logaddexp(0, -logit if target else logit) / 2
    np.testing.assert_allclose(losses.focal(np.float64([logit]), target, 0.5, 0), expected, rtol=1e-12)


@given(st.floats(-60, 60, width=32), st.booleans(), alphas)
def test_a_more_certain_right_answer_costs_less(logit, target, alpha):
    """It never costs less than nothing, and the opposite answer to the opposite logit costs the same."""
    x = np.float32([logit, logit + 0.5])
    loss = losses.focal(x, target, alpha)
    assert loss.dtype == np.float32
    assert loss.min() >= 0
    assert (loss[1] <= loss[0]) if target else (loss[1] >= loss[0])
    np.testing.assert_allclose(losses.focal(-x, not target, 1 - alpha), loss, rtol=1e-5)


def test_focal_loss_of_any_float32_is_finite_without_warnings():
    x = np.float32([-1e30, -100, -1e-30, 0, 1e-30, 100, 1e30])
    for target in (False, True):
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            assert np.isfinite(losses.focal(x, target, 0.25)).all()
    certain = losses.focal(np.float32([-20]), False, 0.25, 0)  # log(1 - p) would be 0 in float32
    np.testing.assert_allclose(certain, 0.75 * np.exp(-20), rtol=1e-6)


@given(rngs(), st.integers(1, 6), st.integers(1, 6))
def test_giou_and_l1_equal_their_definitions(rng, n, m):
    a, b = boxes(rng, n), boxes(rng, m)
    found, distances = losses.giou(a[:, None], b[None]), losses.l1(a[:, None], b[None])
    assert found.shape == distances.shape == (n, m)
    for i in range(n):
        for j in range(m):
            assert found[i, j] == pytest.approx(definitions.giou(a[i], b[j]), abs=1e-12)
            assert distances[i, j] == pytest.approx(sum(abs(a[i] - b[j])), abs=1e-12)


@given(rngs(), st.integers(1, 9))
def test_giou_does_not_depend_on_order_position_or_scale(rng, n):
    a, b = boxes(rng, n), boxes(rng, n)
    value = losses.giou(a, b)
    assert (value > -1).all() and (value <= 1).all()
    np.testing.assert_allclose(losses.giou(b, a), value, atol=1e-12)
    factor, shift = rng.uniform(0.1, 9, 2), rng.normal(0, 3, 2)  # of width and height
    moved = [np.concatenate([box[:, :2] * factor + shift, box[:, 2:] * factor], axis=1) for box in (a, b)]
    np.testing.assert_allclose(losses.giou(*moved), value, atol=1e-9)
    np.testing.assert_allclose(losses.giou(a, a), 1, atol=1e-12)
    assert losses.giou(*(box.astype(np.float32) for box in (a, b))).dtype == np.float32


def test_giou_decreases_with_the_distance_of_boxes_that_do_not_touch():
    at = np.float64([[x, 0.5, 0.1, 0.1] for x in (0.1, 0.3, 0.6, 0.9)])
    assert (np.diff(losses.giou(at[0], at)) < 0).all()
    assert losses.giou(at[0], at[3]) == pytest.approx(-1 + 2 / 9)  # the hull is nine boxes wide


# Their sum over stages and targets.


def predictions(rng, targets, certainty, names=("", "_enc", "_0")):
    """Logits and boxes of perfect predictions and two other queries, at every stage. {stage: (logits, boxes)}"""
    B = len(targets.boxes)
    logits = np.full((B + 2, 7), -certainty)
    logits[:B][targets.tokens] = certainty
    order = rng.permutation(B + 2)
    return {name: (logits[order], np.concatenate([targets.boxes, boxes(rng, 2)])[order]) for name in names}


def computed(stages, targets, config):
    matches, _ = matching.match(stages, targets, config)
    return losses.losses(stages, targets, matches, config)


@given(rngs(), st.integers(0, 5))
def test_a_perfect_prediction_has_no_loss(rng, B):
    targets = Targets(boxes(rng, B), phrases(rng, B))
    terms = computed(predictions(rng, targets, 60.0), targets, MODEL.config)
    assert len(terms) == 12
    np.testing.assert_allclose(list(terms.values()), 0, atol=1e-9)
    less_certain = computed(predictions(rng, targets, 2.0), targets, MODEL.config)
    assert less_certain["loss_ce_enc"] > 1e-3


@given(rngs(), st.integers(0, 5), st.floats(0, 9), st.floats(0, 9), st.floats(0, 9))
def test_the_total_is_the_weighted_sum_of_three_terms_per_stage(rng, B, ce, l1, giou):
    targets = Targets(boxes(rng, B), phrases(rng, B))
    stages = {name: (rng.normal(0, 3, (8, 7)), boxes(rng, 8)) for name in ("", "_enc", "_0", "_1")}
    config = dataclasses.replace(MODEL.config, bbox_loss_coefficient=l1, giou_loss_coefficient=giou)
    terms = computed(stages, targets, config)
    expected = sum(ce * terms[f"loss_ce{s}"] + l1 * terms[f"loss_bbox{s}"] + giou * terms[f"loss_giou{s}"]
                   for s in stages)
    assert losses.total(terms, config, ce) == pytest.approx(expected)
    assert losses.total(terms, config) == losses.total(terms, config, 2.0)
    alone = computed({"": stages["_1"]}, targets, config)  # a stage does not depend on the others
    assert alone == {name.removesuffix("_1"): value for name, value in terms.items() if name.endswith("_1")}


@given(rngs(), st.integers(1, 5))
def test_a_term_is_the_mean_over_boxes_of_the_matched_pairs(rng, B):
    targets = Targets(boxes(rng, B), phrases(rng, B))
    logits, candidates = rng.normal(0, 3, (6, 7)), boxes(rng, 6)
    config = dataclasses.replace(MODEL.config, focal_alpha=0.4)
    matches, _ = matching.match({"": (logits, candidates)}, targets, config)
    terms = losses.losses({"": (logits, candidates)}, targets, matches, config)
    of_query = dict(zip(*matches[""]))
    focal = sum(definitions.focal(logits[q, t], q in of_query and targets.tokens[of_query[q], t], 0.4, 2)
                for q in range(6) for t in range(7))
    assert terms["loss_ce"] == pytest.approx(focal / B)
    assert terms["loss_bbox"] == pytest.approx(
        sum(abs(candidates[q] - targets.boxes[b]).sum() for q, b in of_query.items()) / B)
    assert terms["loss_giou"] == pytest.approx(
        sum(1 - definitions.giou(candidates[q], targets.boxes[b]) for q, b in of_query.items()) / B)
    assert terms["cardinality_error"] == abs((logits > 0).any(axis=1).sum() - B)


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array type to which NumPy functions dispatch. It becomes no plain array or number, and cannot be changed."""

    def __init__(self, plain):
        self.plain, self.shape = plain, plain.shape

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        assert method == "__call__" and not options
        return Recorded(ufunc(*map(plain, inputs)))

    def __array_function__(self, function, types, args, options):
        return Recorded(function(*map(plain, args), **options))

    def __getitem__(self, key):
        return Recorded(self.plain[key])

    def sum(self, **options):
        return Recorded(self.plain.sum(**options))

    def max(self, **options):
        return Recorded(self.plain.max(**options))

    def refused(self, *_):
        raise TypeError("the gradient would be lost here")

    __array__ = __bool__ = __float__ = __int__ = refused


def plain(value):
    """The array in a Recorded, also in a tuple or list."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    return value.plain if isinstance(value, Recorded) else value


def test_an_array_type_passes_from_the_output_to_the_total():
    """So gradients can be recorded. The cardinality error has none."""
    output = MODEL.forward(MODEL.preprocess(PHOTO), MODEL.tokenize(NAMES).ids, details=True)
    targets = Targets(boxes(np.random.default_rng(0), 3, np.float32), np.eye(3, len(output.text), 1, bool))
    stages = losses.stages(output, True)
    matches, _ = matching.match(stages, targets, MODEL.config)
    expected = losses.losses(stages, targets, matches, MODEL.config)
    arrays = {name: Recorded(getattr(output, name)) for name in ("logits", "boxes", "encoder_logits", "encoder_boxes")}
    layers = {name: [*map(Recorded, getattr(output, name))] for name in ("layer_logits", "layer_boxes")}
    recorded = dataclasses.replace(output, **arrays, **layers)
    found = losses.losses(losses.stages(recorded, True), targets, matches, MODEL.config)
    assert {name: plain(value) for name, value in found.items()} == expected
    total = losses.total(found, MODEL.config)
    assert isinstance(total, Recorded)
    assert total.plain == losses.total(expected, MODEL.config)


# Model.loss.


def loss(model=MODEL, **changes):
    """The terms of a loss."""
    return model.loss(**{"image": PHOTO, "phrases": NAMES, "boxes": BOXES, "labels": LABELS, **changes}).terms


def test_it_is_the_loss_of_the_forward_pass():
    model = Model(MODEL.tensors, dataclasses.replace(MODEL.config, auxiliary_loss=True), tokenizer=MODEL.tokenizer,
                  settings=MODEL.settings)
    found = model.loss(PHOTO, NAMES, BOXES, LABELS, details=True)
    prompt = model.tokenize(NAMES)
    output = model.forward(model.preprocess(PHOTO), prompt.ids, details=True)
    low, high = np.split(np.float64(BOXES) / [120, 90, 120, 90], 2, axis=1)
    tokens = np.zeros((3, len(prompt.ids)), bool)
    for row, phrase in zip(tokens, (0, 2, 0)):
        row[prompt.spans[phrase][0] : prompt.spans[phrase][1]] = True
    targets = Targets(np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32), tokens)
    first = {"": (output.logits, output.boxes), "_0": (output.layer_logits[0], output.layer_boxes[0]),
             "_1": (output.layer_logits[1], output.layer_boxes[1]),
             "_enc": (output.encoder_logits[output.selected], output.references[0])}
    terms = computed(first, targets, model.config)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert type(found.terms[name]) is float
        assert found.terms[name] == pytest.approx(float(value), rel=1e-5), name
    assert found.total == pytest.approx(float(losses.total(terms, model.config)), rel=1e-5)
    assert found.matches.keys() == found.costs.keys() == first.keys()
    assert all(cost.shape == (20, 3) and cost.dtype == np.float32 for cost in found.costs.values())
    np.testing.assert_array_equal(found.matches["_1"], matching.assign(found.costs["_1"]))


def test_stages_and_details_are_optional():
    found = MODEL.loss(PHOTO, NAMES, BOXES, LABELS)
    assert {name.partition("_enc")[0] for name in found.terms} == {"loss_ce", "loss_bbox", "loss_giou",
                                                                   "cardinality_error"}
    assert (found.matches, found.costs) == (None, None)
    assert MODEL.loss(PHOTO, NAMES, BOXES, LABELS, size=(64, 90)).total != found.total


def test_a_trained_model_has_less_loss_for_the_right_annotations():
    model, text = minigdino.load("shapes"), "a purple star. a green heart."
    found = model.detect(SCENE, text)

    annotations = [(found.boxes, found.labels), (found.boxes, found.labels[::-1]),
                   (found.boxes[:, [1, 0, 3, 2]], found.labels), ([], [])]
    right, *wrong = (model.loss(SCENE, text, *annotation).total for annotation in annotations)
    assert right < 2 < 4 < min(wrong)


@pytest.mark.parametrize("labels", [[0, 2, 0], np.array([0, 2, 0]), ("a cat", 2, np.int64(0)),
                                    ["a cat", "st. bernard.", "a cat"]], ids=str)
def test_a_label_is_a_phrase_or_its_index(labels):
    """In a list of phrases, also as the caller wrote it, which the prompt shortens."""
    names = ["a cat", "red hat", "st. bernard."]
    assert MODEL.tokenize(names).phrases == NAMES
    assert MODEL.loss(PHOTO, names, np.float32(BOXES), labels).terms == loss()


def test_boxes_are_clipped_to_the_image():
    beyond = [[-30, 20, 50, 400], [60, -1e9, 1e9, 88]]
    inside = [[0, 20, 50, 90], [60, 0, 120, 88]]
    assert loss(boxes=beyond, labels=[0, 1]) == loss(boxes=inside, labels=[0, 1]) != loss()


def test_boxes_are_in_pixels_of_the_upright_image():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.fromarray(np.rot90(PHOTO)).save(file, "PNG", exif=exif)
    assert loss(image=file) == loss()


@pytest.mark.parametrize("empty", [[], (), [[]], np.zeros((0, 4))], ids=repr)
def test_an_image_without_boxes_has_a_classification_loss_only(empty):
    found = MODEL.loss(PHOTO, NAMES, empty, [])
    logits = MODEL.forward(MODEL.preprocess(PHOTO), MODEL.tokenize(NAMES).ids).logits
    assert found.terms["loss_ce"] == pytest.approx(losses.focal(logits, False, 0.25).sum(), rel=1e-5)
    assert [found.terms[f"loss_{kind}{stage}"] for kind in ("bbox", "giou") for stage in ("", "_enc")] == [0] * 4


def test_more_boxes_than_queries():
    B = MODEL.config.num_queries + 5
    found = MODEL.loss(PHOTO, NAMES, np.tile(BOXES[:1], (B, 1)), [0] * B, details=True)
    assert len(found.matches[""][0]) == B - 5
    assert np.isfinite(found.total)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": BOXES[:2]}, "labels must have one entry for each box; got 3 for 2 boxes"),
        ({"boxes": BOXES[0]},
         "boxes must be an array [N, 4] of finite numbers: (left, top, right, bottom) in pixels; got int64 [4]"),
        ({"boxes": [[1, 2, 3]] * 3}, "got int64 [3, 3]"),
        ({"boxes": [[1, 2, 3, 4], [1, 2]]}, "boxes must be an array [N, 4]"),
        ({"boxes": [["1", "2", "3", "4"]] * 3}, "got <U1 [3, 4]"),
        ({"boxes": None}, "got object []"),
        ({"boxes": [*BOXES[:2], [1, 2, 3, np.nan]]}, "boxes[2] is [1.0, 2.0, 3.0, nan]"),
        ({"boxes": [BOXES[0], [1, 2, np.inf, 4], BOXES[1]]}, "boxes[1] is [1.0, 2.0, inf, 4.0]"),
        ({"boxes": [BOXES[0], [60, 5, 59, 88], BOXES[1]]},
         "boxes must be (left, top, right, bottom) in pixels, with an area inside the image of 120 x 90; boxes[1] is "
         "[60.0, 5.0, 59.0, 88.0]. Remove it, or convert the boxes: those of COCO files are (left, top, width, "),
        ({"boxes": [[130, 5, 150, 88], *BOXES[1:]]}, "boxes[0] is [130.0, 5.0, 150.0, 88.0]"),
        ({"boxes": [[10, 5, 10, 88], *BOXES[1:]]}, "boxes[0] is"),
        ({"boxes": [[10, 5, 10 + 1e-5, 88], *BOXES[1:]]}, "boxes[0] is"),
        ({"labels": ["a cat", "a dog", "a cat"]}, "labels must be phrases of the prompt or their indices, 0 to 2; got "
                                                  "'a dog'. The phrases are ['a cat', 'red hat', 'st. bernard']"),
        ({"labels": [0, 3, 0]}, "got 3. The phrases are"),
        ({"labels": [0, -1, 0]}, "got -1. The"),
        ({"labels": [0, True, 0]}, "got True. The"),
        ({"labels": [0, np.True_, 0]}, f"got {np.True_!r}. The"),
        ({"labels": [0, 1.0, 0]}, "got 1.0. The"),
        ({"labels": [0, ["a cat"], 0]}, "got ['a cat']. The"),
        ({"labels": "a cat"},
         "labels must be a list with a phrase of the prompt, or its index, for each box; got 'a cat'"),
        ({"labels": np.array([[0, 0, 0]])}, "labels must be a list"),
        ({"labels": None}, "labels must be a list"),
        ({"details": 1}, "details must be bool"),
        ({"size": 9}, "size must be"),
    ],
)
def test_a_message_names_what_is_wrong(change, message):
    with pytest.raises(ArgumentError) as caught:
        loss(**change)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_errors_of_image_prompt_and_model_are_those_of_detect():
    with pytest.raises(ImageError):
        loss(image=PHOTO.astype(float))
    with pytest.raises(PromptError):
        loss(phrases=[])
    without = Model(MODEL.tensors, MODEL.config)
    with pytest.raises(CheckpointError, match="needs tokenizer"):
        loss(without)
    name = "model.encoder_output_bbox_embed.layers.2.bias"
    broken = Model({**MODEL.tensors, name: np.full(4, np.nan, np.float32)}, MODEL.config, tokenizer=MODEL.tokenizer,
                   settings=MODEL.settings)
    with np.errstate(invalid="ignore"), pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        loss(broken)


def test_a_message_names_the_missing_package(monkeypatch):
    class WithoutScipy:
        """A finder that makes the package look as if it were not installed."""

        def find_spec(self, name, path, target=None):
            if name == "scipy":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutScipy(), *sys.meta_path])
    with pytest.raises(ArgumentError, match="a loss needs the package scipy, which is not installed. Run: pip install "
                                            "scipy$"):
        loss()


def test_a_loss_changes_neither_caches_nor_detections():
    model = Model(MODEL.tensors, MODEL.config, tokenizer=MODEL.tokenizer, settings=MODEL.settings)
    before = model.detect(PHOTO, NAMES, threshold=0)
    for _ in range(2):
        assert loss(model) == loss()
    np.testing.assert_array_equal(model.detect(PHOTO, NAMES, threshold=0).boxes, before.boxes)


def test_stated_shapes_are_right():
    model = Model(MODEL.tensors, dataclasses.replace(MODEL.config, auxiliary_loss=True), tokenizer=MODEL.tokenizer,
                  settings=MODEL.settings)
    with checked() as shapes:
        loss(model)
        matching.summed_class_cost(np.zeros((5, 4)), np.ones((2, 4), bool), 0.25)
    for function in ("losses.focal", "losses.l1", "losses.giou", "losses.area", "matching.class_cost",
                     "matching.summed_class_cost", "matching.cost_matrix", "matching.answer_costs"):
        assert f"{function}: result" in shapes


def test_a_model_on_a_gpu_has_the_same_loss(monkeypatch):
    on_cpu, on_gpu, gpu = both(monkeypatch)
    with minigdino.use("reference"):
        assert loss(on_gpu) == loss(on_cpu)
    assert len(gpu.fetched) == 4  # logits and boxes of two stages
    assert fake_gpu.Gpu.current is None

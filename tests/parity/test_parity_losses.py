"""Losses and matches equal those of transformers for one image, term by term.

The encoder's term differs on purpose: that of transformers compares learned queries with the text, and ignores the
image. Here it is computed as transformers does, by the same functions.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import CAT, CLS, DOG, DOT, FAMILIES, SEP, A, close, new_pair, noise, numpy, run, selection_of, small, torch
from transformers.loss import loss_grounding_dino

from minigdino.network import losses, matching
from minigdino.network.losses import Targets

IDS = [CLS, A, CAT, DOT, A, DOG, DOT, SEP]
SPANS = [(1, 3), (4, 6)]
PHRASES = np.array([[start <= i < stop for i in range(len(IDS))] for start, stop in SPANS])
RELATIVE = 1e-5


@functools.cache
def models(family, auxiliary):
    return new_pair(small(family, auxiliary_loss=auxiliary, giou_loss_coefficient=3.0, bbox_cost=4.0))


def annotated(count, seed=0):
    """Random targets, and the same as the labels of transformers."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.05, 0.5, (count, 2))
    boxes = np.concatenate([rng.uniform(sides / 2, 1 - sides / 2), sides], axis=1).astype(np.float32)
    phrases = rng.integers(0, len(SPANS), count)
    return Targets(boxes, PHRASES[phrases]), [{"class_labels": torch.tensor(phrases), "boxes": torch.tensor(boxes)}]


def tolerance(value):
    """The largest difference of a term."""
    return RELATIVE * max(1e-2, abs(float(value)))


def their_encoder(output):
    """Prediction of the encoder's term in transformers: similarities of learned queries and text, selected boxes."""
    return output.query_logits, output.references[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("count", [1, 7, 45, 0])  # of 40 queries
def test_every_term_of_a_whole_model_is_equal(family, auxiliary, count, monkeypatch):
    model, reference = models(family, auxiliary)
    targets, labels = annotated(count)
    pixels, found = noise(96, 160), []

    def recorded(cost):
        found.append(assign(cost))
        return found[-1]

    assign = loss_grounding_dino.linear_sum_assignment
    monkeypatch.setattr(loss_grounding_dino, "linear_sum_assignment", recorded)
    theirs = reference(pixel_values=torch.tensor(pixels)[None], input_ids=torch.tensor(IDS)[None], labels=labels)
    output = model.forward(pixels, IDS, selected=selection_of(theirs, model.config.num_queries), details=True)
    stages = losses.stages(output, auxiliary) | {"_enc": their_encoder(output)}
    matches, _ = matching.match(stages, targets, model.config)
    terms = losses.losses(stages, targets, matches, model.config)

    order = ["", *[f"_{i}" for i in range(2) if auxiliary], "_enc"]  # in which transformers matches the stages
    for stage, pair in zip(order, found, strict=True):
        np.testing.assert_array_equal(matches[stage], pair, err_msg=stage)
    assert terms.keys() == theirs.loss_dict.keys()
    for name, value in theirs.loss_dict.items():
        close(f"loss: {name} ({family})", np.float32(terms[name]), value.numpy(), tolerance(value))
    total = losses.total(terms, model.config)
    close(f"loss: total ({family})", np.float32(total), np.float32(theirs.loss), tolerance(theirs.loss))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_every_term_of_the_same_predictions_is_equal(family, seed):
    model, reference = models(family, True)
    targets, labels = annotated(5, seed)
    theirs = reference(pixel_values=torch.tensor(noise(75, 91))[None], input_ids=torch.tensor(IDS)[None], labels=labels)
    predictions = [{"logits": theirs.logits, "pred_boxes": theirs.pred_boxes}, *theirs.auxiliary_outputs,
                   {"logits": theirs.encoder_logits, "pred_boxes": theirs.encoder_pred_boxes}]
    stages = {stage: (numpy(p["logits"])[:, : len(IDS)], numpy(p["pred_boxes"]))
              for stage, p in zip(("", "_0", "_1", "_enc"), predictions, strict=True)}
    matches, _ = matching.match(stages, targets, model.config)
    terms = losses.losses(stages, targets, matches, model.config)
    for name, value in theirs.loss_dict.items():
        np.testing.assert_allclose(terms[name], value, rtol=RELATIVE, err_msg=name)
    np.testing.assert_allclose(losses.total(terms, model.config), theirs.loss, rtol=RELATIVE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_term_of_transformers_ignores_the_image(family):
    """Its logits do not depend on the image, so it cannot train the selection of queries. Here they do."""
    model, reference = models(family, False)
    pixels = [noise(75, 91), 2 * noise(75, 91)]
    first, second = (run(reference, image, IDS)[0].encoder_logits for image in pixels)
    np.testing.assert_array_equal(numpy(first), numpy(second))
    logits = [losses.stages(model.forward(image, IDS, details=True), False)["_enc"][0] for image in pixels]
    assert abs(logits[0] - logits[1]).max() > 0.1


def test_labels_of_a_third_image_are_wrong_in_transformers():
    """Its offset into the phrases of a batch is the length of one list, not the sum of those before."""
    criterion = loss_grounding_dino.GroundingDinoImageLoss(None, 0.25, [])
    maps = tuple(torch.eye(4)[[i, 3 - i]] for i in range(3))
    targets = [{"class_labels": torch.tensor([1])}] * 3
    indices = [(torch.tensor([0]), torch.tensor([0]))] * 3
    outputs = {"logits": torch.zeros(3, 1, 4), "label_maps": maps}
    found = criterion._get_target_classes_one_hot(outputs, targets, indices)
    right = [torch.equal(found[i, 0].float(), maps[i][1]) for i in range(3)]
    assert right == [True, True, False]


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_costs_are_equal_for_the_published_alpha_only(alpha, monkeypatch):
    """The matcher of transformers ignores focal_alpha. Here, costs and losses have the same alpha."""
    targets, labels = annotated(5)
    rng, config, costs = np.random.default_rng(1), small(FAMILIES[0], focal_alpha=alpha), []
    logits, boxes = rng.normal(0, 9, (6, len(IDS))).astype(np.float32), annotated(6, 1)[0].boxes
    monkeypatch.setattr(loss_grounding_dino, "linear_sum_assignment", lambda cost: costs.append(cost) or ([], []))
    one = {"logits": torch.tensor(logits)[None], "pred_boxes": torch.tensor(boxes)[None]}
    loss_grounding_dino.GroundingDinoForObjectDetectionLoss(
        **one, labels=labels, device="cpu", config=SimpleNamespace(**vars(config), two_stage=True),
        encoder_logits=one["logits"], encoder_pred_boxes=one["pred_boxes"],
        label_maps=(torch.tensor(PHRASES).long(),), text_mask=torch.ones(1, 6, len(IDS), dtype=bool))
    ours = matching.cost_matrix(logits, boxes, targets, config)
    assert np.allclose(ours, costs[0], rtol=RELATIVE, atol=1e-5) == (alpha == 0.25)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1, 30])
def test_focal_loss_and_giou_are_equal(alpha, scale):
    rng = np.random.default_rng(2)
    logits, targets = scale * rng.standard_normal((30, 8)).astype(np.float32), rng.random((30, 8)) < 0.3
    expected = loss_grounding_dino.sigmoid_focal_loss(torch.tensor(logits).double(), torch.tensor(targets).double(), 1,
                                                      alpha)
    np.testing.assert_allclose(losses.focal(logits, targets, alpha).sum(), expected, rtol=RELATIVE)
    a, b = annotated(9, 3)[0].boxes, annotated(11, 4)[0].boxes
    corners = loss_grounding_dino.center_to_corners_format
    expected = loss_grounding_dino.generalized_box_iou(corners(torch.tensor(a)), corners(torch.tensor(b)))
    np.testing.assert_allclose(losses.giou(a[:, None], b[None]), expected, rtol=RELATIVE, atol=1e-6)

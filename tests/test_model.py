"""The network: the inputs of each stage, and the results of the class and box heads."""

import numpy as np
import pytest
import tiny

from minigdino.network.bert import bert
from minigdino.network.boxes import logit, sigmoid
from minigdino.network.decoder import decoder
from minigdino.network.enhancer import enhancer, neck
from minigdino.network.model import forward
from minigdino.network.ops import linear, mlp
from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask
from minigdino.network.queries import select_queries
from minigdino.network.swin import swin

pytestmark = pytest.mark.usefixtures("both_kernels")
FAMILIES = ["grounding-dino", "mm-grounding-dino"]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, both_kernels):
    model, pixels = tiny.model(request.param), tiny.pixels(61, 83)
    return model, pixels, model.forward(pixels, tiny.IDS, details=True)


def test_the_features_are_the_outputs_of_the_backbones(case):
    model, pixels, out = case
    w, config = model.weights, model.config
    mask, positions = phrase_mask(tiny.IDS, PUBLISHED_DELIMITERS)
    words = bert(tiny.IDS, mask, positions, **w["text_backbone"], config=config.text_config)
    np.testing.assert_array_equal(out.text_features, linear(words, **w["text_projection"]))
    maps = swin(pixels, **w["backbone"], config=config.backbone_config)
    for got, want in zip(out.image_features, maps, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_enhancer_reads_the_projected_features_and_the_mask(case):
    model, _, out = case
    w, (mask, positions) = model.weights, phrase_mask(tiny.IDS, PUBLISHED_DELIMITERS)
    maps = neck(out.image_features, w["input_proj_vision"])
    assert out.sizes == tuple(m.shape[:2] for m in maps)
    vision, text = enhancer(
        maps, out.text_features, mask, positions, w["encoder"]["layers"], w["level_embed"], model.config
    )
    np.testing.assert_array_equal(out.vision, vision)
    np.testing.assert_array_equal(out.text, text)


def test_the_selection_and_the_decoder_read_the_enhanced_tokens(case):
    model, _, out = case
    w, config = model.weights, model.config
    chosen = select_queries(
        out.vision, out.text, out.sizes, **w["query_selection"], n_queries=config.num_queries, eps=config.layer_norm_eps
    )
    np.testing.assert_array_equal(out.selected, chosen["selected"])
    np.testing.assert_array_equal(out.selection_scores, chosen["scores"])
    states, references = decoder(
        w["query_position_embeddings"]["weight"], chosen["references"], out.vision, out.text, out.sizes, **w["decoder"],
        bbox_embed=w["bbox_embed"], config=config
    )  # fmt: skip
    np.testing.assert_array_equal(out.hidden_states, states)
    np.testing.assert_array_equal(out.references, references)


def test_the_class_heads_compare_states_with_the_enhanced_text(case):
    """Grounding DINO: dot products; MM Grounding DINO divides them by sqrt(C) and adds a bias of each layer."""
    model, _, out = case
    for i, states in enumerate(out.hidden_states):
        want = states @ out.text.T
        if model.config.model_type == "mm-grounding-dino":
            want = want / states.shape[1] ** 0.5 + model.weights["class_embed"][i]["bias"]
        np.testing.assert_allclose(out.layer_logits[i], want, atol=1e-4)
    np.testing.assert_array_equal(out.logits, out.layer_logits[-1])


def test_the_box_heads_refine_the_boxes_that_enter_their_layer(case):
    model, _, out = case
    for i, states in enumerate(out.hidden_states):
        moved = mlp(states, **model.weights["bbox_embed"][i]) + logit(out.references[i])
        np.testing.assert_allclose(out.layer_boxes[i], sigmoid(moved), atol=1e-5)
    np.testing.assert_array_equal(out.boxes, out.layer_boxes[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_an_earlier_pass_give_the_same_result(family, both_kernels):
    model, pixels = tiny.model(family), tiny.pixels()
    out = model.forward(pixels, tiny.IDS)
    again = forward(  # the pixels are not read: their features are given
        0 * pixels, tiny.IDS, PUBLISHED_DELIMITERS, model.weights, model.config, image_features=out.image_features,
        text_features=out.text_features,
    )  # fmt: skip
    np.testing.assert_array_equal(again.logits, out.logits)
    np.testing.assert_array_equal(again.boxes, out.boxes)

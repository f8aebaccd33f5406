"""Each stage separately: minigdino's function runs on the recorded inputs of transformers' module."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    BACKBONE,
    CLS,
    DOT,
    FAMILIES,
    GEOMETRIES,
    LOGITS,
    MODELING,
    QUESTION,
    SEP,
    close,
    close_to_scale,
    noise,
    numpy,
    pair,
    run,
    selection_of,
    small,
    torch,
    words,
)

from minigdino.network.bert import bert
from minigdino.network.boxes import box_positions, sine_embedding
from minigdino.network.decoder import decoder_layer, refine
from minigdino.network.deformable import deformable_attention
from minigdino.network.enhancer import deformable_layer, neck, text_enhancer_layer, vision_positions
from minigdino.network.fusion import fusion_layer
from minigdino.network.ops import linear, mlp
from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask
from minigdino.network.queries import proposals, similarity
from minigdino.network.swin import patch_embedding, patch_merging, swin, swin_block

IDS = [CLS, *words(2, 1), DOT, *words(4, 2), DOT, *words(1, 3), QUESTION, SEP]
SIZE = (101, 131)
CASES = [(family, geometry) for family in FAMILIES for geometry in GEOMETRIES]
every_model = pytest.mark.parametrize("recorded", CASES, ids=lambda case: "-".join(case), indirect=True)


class Recorded:
    """Both models of a checkpoint, and the recorded calls of every module of transformers."""

    def __init__(self, family, geometry):
        self.model, self.reference = pair(small(family, geometry))
        self.config, self.weights = self.model.config, self.model.weights
        self.eps, self.act = self.config.layer_norm_eps, self.config.activation_function
        modules = [name for name, _ in self.reference.named_modules() if name]
        output, _ = run(self.reference, noise(*SIZE), IDS)
        self.selected = selection_of(output, self.config.num_queries)
        self.output, self.calls = run(self.reference, noise(*SIZE), IDS, selected=self.selected, modules=modules)
        self.sizes = tuple(self.calls["model.encoder"][0][1]["spatial_shapes_list"])

    def call(self, module, i=0):
        """Inputs, keyword inputs and output of the i-th call of a module."""
        return self.calls[module][i]

    def inputs(self, module, *names, i=0):
        """Keyword inputs of the i-th call of a module."""
        keywords = self.call(module, i)[1]
        return [numpy(keywords[name]) for name in names]


@functools.cache
def record(family, geometry):
    return Recorded(family, geometry)


@pytest.fixture
def recorded(request):
    return record(*request.param)


def as_map(x):
    """[1, C, H, W] -> [H, W, C]"""
    return np.moveaxis(numpy(x), 0, -1)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.sampled_from([101, 102, 1012, 1029, 0, 5, 6, 7]), min_size=1, max_size=40))
def test_phrase_masks_agree(family, ids):
    mask, positions = phrase_mask(np.array(ids), PUBLISHED_DELIMITERS)
    expected_mask, expected_positions = MODELING[family].generate_masks_with_special_tokens_and_transfer_map(
        torch.tensor([ids]), torch.tensor(MODELING[family].SPECIAL_TOKENS))
    np.testing.assert_array_equal(mask, numpy(expected_mask))
    np.testing.assert_array_equal(positions, numpy(expected_positions))


def test_the_published_delimiters_agree():
    assert all(list(PUBLISHED_DELIMITERS) == modeling.SPECIAL_TOKENS for modeling in MODELING.values())


@every_model
def test_bert_and_its_projection_agree(recorded):
    (ids, expected_mask, _, expected_positions), _, output = recorded.call("model.text_backbone")
    mask, positions = phrase_mask(np.array(IDS), PUBLISHED_DELIMITERS)
    np.testing.assert_array_equal(mask, numpy(expected_mask)[0])
    np.testing.assert_array_equal(positions, numpy(expected_positions))
    actual = bert(numpy(ids), mask, positions, **recorded.weights["text_backbone"], config=recorded.config.text_config)
    close_to_scale("stage: BERT", actual, numpy(output.last_hidden_state))
    (states,), _, projected = recorded.call("model.text_projection")
    actual = linear(numpy(states), **recorded.weights["text_projection"])
    close_to_scale("stage: text projection", actual, numpy(projected))


@every_model
def test_swin_patch_embedding_blocks_and_merging_agree(recorded):
    swin_config, backbone = recorded.config.backbone_config, recorded.weights["backbone"]
    eps, k = swin_config.layer_norm_eps, swin_config.window_size
    embeddings = recorded.call(f"{BACKBONE}swin.embeddings")
    x = patch_embedding(noise(*SIZE), backbone["embeddings"]["patch_embeddings"]["projection"],
                        backbone["embeddings"]["norm"], eps)
    close_to_scale("stage: Swin patches", x.reshape(-1, x.shape[-1]), numpy(embeddings[2][0]))
    for stage, layer in enumerate(backbone["layers"]):
        name = f"{BACKBONE}swin.encoder.layers.{stage}"
        for i, block in enumerate(layer["blocks"]):
            args, keywords, output = recorded.call(f"{name}.blocks.{i}")
            states, size = arguments(args, keywords, "hidden_states", "input_dimensions")
            actual = swin_block(numpy(states).reshape(*size, -1), **block, n_heads=swin_config.num_heads[stage], k=k,
                                shift=i % 2 * (k // 2), activation=swin_config.hidden_act, eps=eps)
            close_to_scale("stage: Swin block", actual.reshape(-1, actual.shape[-1]), numpy(first(output)))
        if "downsample" in layer:
            args, keywords, output = recorded.call(f"{name}.downsample")
            states, size = arguments(args, keywords, "input_feature", "input_dimensions")
            actual = patch_merging(numpy(states).reshape(*size, -1), **layer["downsample"], eps=eps)
            close_to_scale("stage: Swin merge", actual.reshape(-1, actual.shape[-1]), numpy(first(output)))


@every_model
def test_swin_feature_maps_agree(recorded):
    actual = swin(noise(*SIZE), **recorded.weights["backbone"], config=recorded.config.backbone_config)
    expected = [as_map(x) for x, _ in recorded.call("model.backbone.conv_encoder")[2]]
    for a, e in zip(actual, expected, strict=True):
        close_to_scale("stage: Swin map", a, e)


@every_model
def test_the_neck_agrees(recorded):
    features = [as_map(x) for x, _ in recorded.call("model.backbone.conv_encoder")[2]]
    actual = neck(features, recorded.weights["input_proj_vision"])
    assert len(actual) == recorded.config.num_feature_levels
    for level, x in enumerate(actual):
        close_to_scale("stage: neck", x, as_map(recorded.call(f"model.input_proj_vision.{level}")[2]))


@every_model
def test_positions_of_image_tokens_agree(recorded):
    expected, = recorded.inputs("model.encoder", "vision_position_embedding")
    temperature = recorded.config.positional_embedding_temperature
    actual = vision_positions(recorded.sizes, recorded.weights["level_embed"], temperature)
    close_to_scale("stage: image positions", actual, expected)


@every_model
def test_each_fusion_layer_agrees(recorded):
    n_heads = recorded.config.encoder_attention_heads // 2
    for i, layer in enumerate(recorded.weights["encoder"]["layers"]):
        name = f"model.encoder.layers.{i}.fusion_layer"
        vision, text = recorded.inputs(name, "vision_features", "text_features")
        (expected_vision, _), (expected_text, _) = recorded.call(name)[2]
        actual = fusion_layer(vision, text, **layer["fusion_layer"], n_heads=n_heads, eps=recorded.eps)
        close_to_scale("stage: fusion, vision", actual[0], numpy(expected_vision))
        close_to_scale("stage: fusion, text", actual[1], numpy(expected_text))


@every_model
def test_each_text_enhancer_layer_agrees(recorded):
    mask, positions = phrase_mask(np.array(IDS), PUBLISHED_DELIMITERS)
    for i, layer in enumerate(recorded.weights["encoder"]["layers"]):
        name = f"model.encoder.layers.{i}.text_enhancer_layer"
        text, embeddings = recorded.inputs(name, "hidden_states", "position_embeddings")
        actual = sine_embedding(positions.astype(np.float32), recorded.config.d_model, 10000)
        close_to_scale("stage: text positions", actual, embeddings)
        actual = text_enhancer_layer(text, embeddings, mask, **layer["text_enhancer_layer"], activation=recorded.act,
                                     n_heads=recorded.config.encoder_attention_heads // 2, eps=recorded.eps)
        close_to_scale("stage: text enhancer", actual, numpy(recorded.call(name)[2][0]))


@every_model
def test_each_deformable_layer_agrees(recorded):
    for i, layer in enumerate(recorded.weights["encoder"]["layers"]):
        name = f"model.encoder.layers.{i}.deformable_layer"
        vision, positions, points = recorded.inputs(name, "hidden_states", "position_embeddings", "reference_points")
        n_heads, n_points = recorded.config.encoder_attention_heads, recorded.config.encoder_n_points
        actual = deformable_layer(vision, positions, points[:, 0], recorded.sizes, **layer["deformable_layer"],
                                  n_heads=n_heads, n_points=n_points, activation=recorded.act, eps=recorded.eps)
        close_to_scale("stage: deformable layer", actual, numpy(recorded.call(name)[2][0]))
        actual = deformable_attention(vision + positions, points[:, 0], vision, recorded.sizes,
                                      **layer["deformable_layer"]["self_attn"], n_heads=n_heads, n_points=n_points)
        close_to_scale("stage: deformable attention", actual, numpy(recorded.call(f"{name}.self_attn")[2][0]))


@every_model
def test_proposals_scores_and_boxes_of_all_tokens_agree(recorded):
    selection, text = recorded.weights["query_selection"], numpy(recorded.output.encoder_last_hidden_state_text)
    tokens = numpy(recorded.call("model.enc_output_norm")[2])
    boxes, inside = proposals(recorded.sizes, like=tokens)
    masked = np.isinf(numpy(recorded.output.enc_outputs_coord_logits)).all(axis=1)
    np.testing.assert_array_equal(inside, ~masked)
    actual = mlp(tokens, **selection["encoder_output_bbox_embed"]) + boxes
    close_to_scale("stage: proposals", actual, numpy(recorded.output.enc_outputs_coord_logits))
    scores = similarity(tokens, text, **selection["encoder_output_class_embed"])
    close_to_scale("stage: selection scores", scores, numpy(recorded.output.enc_outputs_class)[:, : len(IDS)])


@every_model
def test_selected_tokens_agree_where_scores_differ_clearly(recorded):
    output = recorded.model.forward(noise(*SIZE), IDS)
    scores = numpy(recorded.output.enc_outputs_class).max(axis=1)
    close("selection: score at each rank", scores[output.selected], scores[recorded.selected], 1e-4)
    lowest = scores[recorded.selected[-1]]
    clear = {i for i in recorded.selected if scores[i] > lowest + 1e-4}
    assert clear <= set(output.selected)
    assert len(clear) > len(recorded.selected) // 2


@every_model
def test_positions_of_boxes_agree(recorded):
    for i in range(recorded.config.decoder_layers):
        (expected,), _, positions = recorded.call("model.decoder.reference_points_head", i)
        actual = box_positions(references(recorded)[i], recorded.config.d_model // 2)
        close_to_scale("stage: box positions", actual, numpy(expected))
        actual = mlp(numpy(expected), **recorded.weights["decoder"]["reference_points_head"])
        close_to_scale("stage: query positions", actual, numpy(positions))


@every_model
def test_each_decoder_layer_agrees(recorded):
    for i, layer in enumerate(recorded.weights["decoder"]["layers"]):
        name, config = f"model.decoder.layers.{i}", recorded.config
        states, positions, vision, text = recorded.inputs(name, "hidden_states", "position_embeddings",
                                                          "vision_encoder_hidden_states", "text_encoder_hidden_states")
        actual = decoder_layer(states, positions, references(recorded)[i], vision, text, recorded.sizes, **layer,
                               n_heads=config.decoder_attention_heads, n_points=config.decoder_n_points,
                               activation=recorded.act, eps=recorded.eps)
        close_to_scale("stage: decoder layer", actual, numpy(recorded.call(name)[2][0]))


@every_model
def test_the_refinement_after_each_layer_agrees(recorded):
    for i, head in enumerate(recorded.weights["bbox_embed"]):
        states = numpy(recorded.call(f"model.decoder.layers.{i}")[2][0])
        close("stage: refinement", refine(states, references(recorded)[i], head), references(recorded)[i + 1], 1e-5)


@every_model
def test_the_heads_of_every_layer_agree(recorded):
    text = numpy(recorded.output.encoder_last_hidden_state_text)
    output = recorded.model.forward(noise(*SIZE), IDS, selected=recorded.selected, details=True)
    for i, states in enumerate(numpy(recorded.output.intermediate_hidden_states)):
        logits = similarity(states, text, **recorded.weights["class_embed"][i])
        expected = numpy(recorded.call(f"class_embed.{i}")[2])[:, : len(IDS)]
        close_to_scale("stage: class head", logits, expected)
        close("whole: layer_logits", output.layer_logits[i], expected, LOGITS[recorded.config.model_type])
        anchors = torch.special.logit(torch.tensor(references(recorded)[i]), eps=1e-5)
        expected = (recorded.reference.bbox_embed[i](torch.tensor(states)) + anchors).sigmoid().numpy()
        boxes = refine(states, references(recorded)[i], recorded.weights["bbox_embed"][i])
        close("stage: box head", boxes, expected, 1e-5)
        close("whole: layer_boxes", output.layer_boxes[i], expected, 1e-4)


def references(recorded):
    """Boxes before each of N decoder layers and after the last: [N+1, Q, 4]"""
    return np.concatenate([numpy(recorded.output.init_reference_points)[None],
                           numpy(recorded.output.intermediate_reference_points)])


def arguments(args, keywords, *names):
    """The arguments of a call by name, whether passed by position or by keyword."""
    return [keywords[name] if name in keywords else args[i] for i, name in enumerate(names)]


def first(output):
    """The first output of a module that returns one or several."""
    return output[0] if isinstance(output, tuple) else output

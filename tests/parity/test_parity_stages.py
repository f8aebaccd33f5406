"""Every stage alone: what went into the reference's module goes into ours, and the results are compared."""

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
    choice,
    close,
    close_to_scale,
    noise,
    numpy,
    pair,
    run,
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
every_model = pytest.mark.parametrize("seen", CASES, ids=lambda case: "-".join(case), indirect=True)


class Seen:
    """Both models of a checkpoint, and everything that passed through the modules of theirs."""

    def __init__(self, family, geometry):
        self.mine, self.reference = pair(small(family, geometry))
        self.config, self.weights = self.mine.config, self.mine.weights
        self.eps, self.act = self.config.layer_norm_eps, self.config.activation_function
        modules = [name for name, _ in self.reference.named_modules() if name]
        output, _ = run(self.reference, noise(*SIZE), IDS)
        self.selected = choice(output, self.config.num_queries)
        self.output, self.calls = run(self.reference, noise(*SIZE), IDS, selected=self.selected, modules=modules)
        self.sizes = tuple(self.calls["model.encoder"][0][1]["spatial_shapes_list"])

    def call(self, module, i=0):
        """Inputs, named inputs and output of a module's i-th call."""
        return self.calls[module][i]

    def inputs(self, module, *names, i=0):
        named = self.call(module, i)[1]
        return [numpy(named[name]) for name in names]


@functools.cache
def seen_by(family, geometry):
    return Seen(family, geometry)


@pytest.fixture
def seen(request):
    return seen_by(*request.param)


def as_map(x):
    """Theirs [1, C, H, W] -> ours [H, W, C]"""
    return np.moveaxis(numpy(x), 0, -1)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.sampled_from([101, 102, 1012, 1029, 0, 5, 6, 7]), min_size=1, max_size=40))
def test_phrases_are_cut_alike(family, ids):
    mask, positions = phrase_mask(np.array(ids), PUBLISHED_DELIMITERS)
    their_mask, their_positions = MODELING[family].generate_masks_with_special_tokens_and_transfer_map(
        torch.tensor([ids]), torch.tensor(MODELING[family].SPECIAL_TOKENS))
    np.testing.assert_array_equal(mask, numpy(their_mask))
    np.testing.assert_array_equal(positions, numpy(their_positions))


def test_the_published_delimiters_are_the_reference_s():
    assert all(list(PUBLISHED_DELIMITERS) == modeling.SPECIAL_TOKENS for modeling in MODELING.values())


@every_model
def test_bert_and_its_projection(seen):
    (ids, mask, _, positions), _, output = seen.call("model.text_backbone")
    our_mask, our_positions = phrase_mask(np.array(IDS), PUBLISHED_DELIMITERS)
    np.testing.assert_array_equal(our_mask, numpy(mask)[0])
    np.testing.assert_array_equal(our_positions, numpy(positions))
    ours = bert(numpy(ids), our_mask, our_positions, **seen.weights["text_backbone"], config=seen.config.text_config)
    close_to_scale("stage: BERT", ours, numpy(output.last_hidden_state))
    (states,), _, projected = seen.call("model.text_projection")
    close_to_scale("stage: text projection", linear(numpy(states), **seen.weights["text_projection"]), numpy(projected))


@every_model
def test_swin_patches_and_blocks_and_merges(seen):
    swin_config, backbone = seen.config.backbone_config, seen.weights["backbone"]
    eps, k = swin_config.layer_norm_eps, swin_config.window_size
    embeddings = seen.call(f"{BACKBONE}swin.embeddings")
    x = patch_embedding(noise(*SIZE), backbone["embeddings"]["patch_embeddings"]["projection"],
                        backbone["embeddings"]["norm"], eps)
    close_to_scale("stage: Swin patches", x.reshape(-1, x.shape[-1]), numpy(embeddings[2][0]))
    for stage, layer in enumerate(backbone["layers"]):
        where = f"{BACKBONE}swin.encoder.layers.{stage}"
        for i, block in enumerate(layer["blocks"]):
            args, named, output = seen.call(f"{where}.blocks.{i}")
            states, size = arguments(args, named, "hidden_states", "input_dimensions")
            ours = swin_block(numpy(states).reshape(*size, -1), **block, n_heads=swin_config.num_heads[stage], k=k,
                              shift=i % 2 * (k // 2), activation=swin_config.hidden_act, eps=eps)
            close_to_scale("stage: Swin block", ours.reshape(-1, ours.shape[-1]), numpy(first(output)))
        if "downsample" in layer:
            args, named, output = seen.call(f"{where}.downsample")
            states, size = arguments(args, named, "input_feature", "input_dimensions")
            ours = patch_merging(numpy(states).reshape(*size, -1), **layer["downsample"], eps=eps)
            close_to_scale("stage: Swin merge", ours.reshape(-1, ours.shape[-1]), numpy(first(output)))


@every_model
def test_swin_s_maps(seen):
    ours = swin(noise(*SIZE), **seen.weights["backbone"], config=seen.config.backbone_config)
    theirs = [features for features, _ in seen.call("model.backbone.conv_encoder")[2]]
    for x, wanted in zip(ours, theirs, strict=True):
        close_to_scale("stage: Swin map", x, as_map(wanted))


@every_model
def test_neck(seen):
    features = [as_map(x) for x, _ in seen.call("model.backbone.conv_encoder")[2]]
    ours = neck(features, seen.weights["input_proj_vision"])
    assert len(ours) == seen.config.num_feature_levels
    for level, x in enumerate(ours):
        close_to_scale("stage: neck", x, as_map(seen.call(f"model.input_proj_vision.{level}")[2]))


@every_model
def test_positions_of_image_tokens(seen):
    wanted, = seen.inputs("model.encoder", "vision_position_embedding")
    ours = vision_positions(seen.sizes, seen.weights["level_embed"], seen.config.positional_embedding_temperature)
    close_to_scale("stage: image positions", ours, wanted)


@every_model
def test_each_fusion_layer(seen):
    for i, layer in enumerate(seen.weights["encoder"]["layers"]):
        where = f"model.encoder.layers.{i}.fusion_layer"
        vision, text = seen.inputs(where, "vision_features", "text_features")
        (wanted_vision, _), (wanted_text, _) = seen.call(where)[2]
        ours = fusion_layer(vision, text, **layer["fusion_layer"], n_heads=seen.config.encoder_attention_heads // 2,
                            eps=seen.eps)
        close_to_scale("stage: fusion, vision", ours[0], numpy(wanted_vision))
        close_to_scale("stage: fusion, text", ours[1], numpy(wanted_text))


@every_model
def test_each_text_enhancer_layer(seen):
    mask, positions = phrase_mask(np.array(IDS), PUBLISHED_DELIMITERS)
    for i, layer in enumerate(seen.weights["encoder"]["layers"]):
        where = f"model.encoder.layers.{i}.text_enhancer_layer"
        text, placed = seen.inputs(where, "hidden_states", "position_embeddings")
        ours = sine_embedding(positions.astype(np.float32), seen.config.d_model, 10000)
        close_to_scale("stage: text positions", ours, placed)
        ours = text_enhancer_layer(text, placed, mask, **layer["text_enhancer_layer"], activation=seen.act,
                                   n_heads=seen.config.encoder_attention_heads // 2, eps=seen.eps)
        close_to_scale("stage: text enhancer", ours, numpy(seen.call(where)[2][0]))


@every_model
def test_each_deformable_layer(seen):
    for i, layer in enumerate(seen.weights["encoder"]["layers"]):
        where = f"model.encoder.layers.{i}.deformable_layer"
        vision, positions, points = seen.inputs(where, "hidden_states", "position_embeddings", "reference_points")
        n_heads, n_points = seen.config.encoder_attention_heads, seen.config.encoder_n_points
        ours = deformable_layer(vision, positions, points[:, 0], seen.sizes, **layer["deformable_layer"],
                                n_heads=n_heads, n_points=n_points, activation=seen.act, eps=seen.eps)
        close_to_scale("stage: deformable layer", ours, numpy(seen.call(where)[2][0]))
        ours = deformable_attention(vision + positions, points[:, 0], vision, seen.sizes,
                                    **layer["deformable_layer"]["self_attn"], n_heads=n_heads, n_points=n_points)
        close_to_scale("stage: deformable attention", ours, numpy(seen.call(f"{where}.self_attn")[2][0]))


@every_model
def test_proposals_and_every_token_s_score_and_box(seen):
    selection, text = seen.weights["query_selection"], numpy(seen.output.encoder_last_hidden_state_text)
    tokens = numpy(seen.call("model.enc_output_norm")[2])
    boxes, inside = proposals(seen.sizes, like=tokens)
    blank = np.isinf(numpy(seen.output.enc_outputs_coord_logits)).all(axis=1)
    np.testing.assert_array_equal(inside, ~blank)
    ours = mlp(tokens, **selection["encoder_output_bbox_embed"]) + boxes
    close_to_scale("stage: proposals", ours, numpy(seen.output.enc_outputs_coord_logits))
    scores = similarity(tokens, text, **selection["encoder_output_class_embed"])
    close_to_scale("stage: selection scores", scores, numpy(seen.output.enc_outputs_class)[:, : len(IDS)])


@every_model
def test_the_same_tokens_are_selected_where_scores_are_apart(seen):
    mine = seen.mine.forward(noise(*SIZE), IDS)
    wanted = numpy(seen.output.enc_outputs_class).max(axis=1)
    close("selection: score at each rank", wanted[mine.selected], wanted[seen.selected], 1e-4)
    n = len(seen.selected)
    last = wanted[seen.selected[-1]]
    sure = {i for i in seen.selected if wanted[i] > last + 1e-4}
    assert sure <= set(mine.selected)
    assert len(sure) > n // 2


@every_model
def test_positions_of_boxes(seen):
    for i in range(seen.config.decoder_layers):
        (wanted,), _, placed = seen.call("model.decoder.reference_points_head", i)
        ours = box_positions(references(seen)[i], seen.config.d_model // 2)
        close_to_scale("stage: box positions", ours, numpy(wanted))
        ours = mlp(numpy(wanted), **seen.weights["decoder"]["reference_points_head"])
        close_to_scale("stage: query positions", ours, numpy(placed))


@every_model
def test_each_decoder_layer(seen):
    for i, layer in enumerate(seen.weights["decoder"]["layers"]):
        states, placed, vision, text = seen.inputs(f"model.decoder.layers.{i}", "hidden_states", "position_embeddings",
                                                   "vision_encoder_hidden_states", "text_encoder_hidden_states")
        ours = decoder_layer(states, placed, references(seen)[i], vision, text, seen.sizes, **layer,
                             n_heads=seen.config.decoder_attention_heads, n_points=seen.config.decoder_n_points,
                             activation=seen.act, eps=seen.eps)
        close_to_scale("stage: decoder layer", ours, numpy(seen.call(f"model.decoder.layers.{i}")[2][0]))


@every_model
def test_refinement_after_each_layer(seen):
    for i, head in enumerate(seen.weights["bbox_embed"]):
        states = numpy(seen.call(f"model.decoder.layers.{i}")[2][0])
        close("stage: refinement", refine(states, references(seen)[i], head), references(seen)[i + 1], 1e-5)


@every_model
def test_heads_of_every_layer(seen):
    text = numpy(seen.output.encoder_last_hidden_state_text)
    mine = seen.mine.forward(noise(*SIZE), IDS, selected=seen.selected, details=True)
    for i, states in enumerate(numpy(seen.output.intermediate_hidden_states)):
        logits = similarity(states, text, **seen.weights["class_embed"][i])
        wanted = numpy(seen.call(f"class_embed.{i}")[2])[:, : len(IDS)]
        close_to_scale("stage: class head", logits, wanted)
        close("whole: layer_logits", mine.layer_logits[i], wanted, LOGITS[seen.config.model_type])
        before = torch.special.logit(torch.tensor(references(seen)[i]), eps=1e-5)
        wanted = (seen.reference.bbox_embed[i](torch.tensor(states)) + before).sigmoid().numpy()
        boxes = refine(states, references(seen)[i], seen.weights["bbox_embed"][i])
        close("stage: box head", boxes, wanted, 1e-5)
        close("whole: layer_boxes", mine.layer_boxes[i], wanted, 1e-4)


def references(seen):
    """Boxes that enter layer 0, 1, ... and that leave the last: [N+1, Q, 4]"""
    return np.concatenate([numpy(seen.output.init_reference_points)[None],
                           numpy(seen.output.intermediate_reference_points)])


def arguments(args, named, *names):
    """Arguments by name, however they were passed."""
    return [named[name] if name in named else args[i] for i, name in enumerate(names)]


def first(output):
    return output[0] if isinstance(output, tuple) else output

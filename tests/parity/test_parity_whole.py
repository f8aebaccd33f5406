"""The whole network, from pixels and token ids to logits and boxes."""

import pytest
from oracle import (
    CAT,
    CLS,
    DOG,
    DOT,
    FAMILIES,
    GEOMETRIES,
    QUESTION,
    SEP,
    SWIN,
    A,
    assert_equal,
    noise,
    pair,
    photograph,
    small,
    words,
)

import minigdino

PHRASES = [CLS, A, CAT, DOT, A, DOG, DOT, SEP]
PROMPTS = {
    "1 token": [CLS],
    "1 token, no delimiter": [CAT],
    "2 tokens, empty prompt": [CLS, SEP],
    "3 tokens, no final dot": [CLS, CAT, SEP],
    "3 tokens, only a dot": [CLS, DOT, SEP],
    "two phrases": PHRASES,
    "second phrase without its dot": [CLS, A, CAT, DOT, A, DOG, SEP],
    "a question": [CLS, A, CAT, QUESTION, A, DOG, QUESTION, SEP],
    "dots in a row": [CLS, A, CAT, DOT, DOT, DOT, A, DOG, DOT, SEP],
    "no [CLS], no [SEP]": [A, CAT, DOT, A, DOG],
    "30 tokens": [CLS, *words(13, 1), DOT, *words(12, 2), DOT, DOT, SEP],
    "30 tokens, no final dot": [CLS, *words(13, 1), DOT, *words(14, 2), SEP],
    "256 tokens, one phrase": [CLS, *words(253, 3), DOT, SEP],
    "256 tokens, many phrases": [CLS, *[t for i in range(63) for t in (*words(3, i), DOT)], DOT, DOT, SEP],
}
SIZES = [(101, 131), (64, 64), (96, 160), (33, 250), (57, 58), (320, 200)]
EXTREME = [(9, 700), (700, 9), (1, 1333), (1333, 1), (31, 33)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_stage_agrees_at_any_size(family, geometry, size):
    assert_equal(*pair(small(family, geometry)), noise(*size), PHRASES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", EXTREME, ids=str)
def test_extreme_images_agree(family, geometry, size):
    # a map of 1 x 334 pixels magnifies rounding errors of coordinates; few layers and a smooth image reduce them
    config = small(family, geometry, decoder_layers=2, num_queries=8 if max(size) < 99 else 30)
    assert_equal(*pair(config), photograph(*size), PHRASES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stages", [(4,), (1, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("window", [1, 2, 12])
def test_unusual_geometries_agree(family, stages, window):
    swin = {**SWIN, "out_indices": stages, "window_size": window}
    config = small(family, backbone_config=swin, num_feature_levels=len(stages), num_queries=12)
    assert_equal(*pair(config), noise(130, 150), PHRASES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_numpy_references_agree(family, geometry):
    with minigdino.use("reference"):
        assert_equal(*pair(small(family, geometry)), noise(75, 91), PHRASES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_agrees(family, prompt):
    geometry = "5 levels" if len(prompt) % 2 else "4 levels"
    assert_equal(*pair(small(family, geometry)), noise(75, 91), PROMPTS[prompt])

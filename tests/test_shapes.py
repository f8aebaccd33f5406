"""The shapes written in comments and docstrings are the shapes that flow."""

import numpy as np
import pytest
import tiny
from shapecheck import ShapeError, check, checked

import minigdino


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_every_shape_comment_of_a_pass_is_true(family):
    model = tiny.model(family)
    with minigdino.use("reference"), checked() as kept:
        model.forward(tiny.pixels(61, 83), tiny.IDS, details=True)
    assert len(kept) > 150
    for promise in (
        "fusion.bi_attention: to_text",
        "swin.window_attention: scores",
        "deformable.deform_attn: result",
        "decoder.decoder_layer: result",
        "queries.similarity: result",
        "prompt.phrase_mask: result",
    ):
        assert promise in kept


def test_a_false_comment_is_caught():
    letters = {"S": 5}
    check("S, C", (5, 3), letters, "here")
    assert letters == {"S": 5, "C": 3}
    for spec, shape in (("S, C", (4, 3)), ("S, 2*C", (5, 5)), ("S", (5, 3)), ("..., C", (2, 2))):
        with pytest.raises(ShapeError):
            check(spec, shape, letters, "here")
    check("..., C", np.zeros((7, 7, 3)).shape, letters, "here")

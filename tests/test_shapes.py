"""The shapes written in comments and docstrings are the shapes that flow."""

import inspect
import re

import numpy as np
import pytest
import tiny
from shapecheck import ShapeError, check, checked, promises

import minigdino


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_every_shape_comment_of_a_pass_is_true(family):
    model = tiny.model(family)
    with minigdino.use("reference"), checked() as kept:
        model.forward(tiny.pixels(61, 83), tiny.IDS, details=True)
    assert len(kept) > 150
    for promise in (
        "fusion.attend_both_ways: to_text",
        "swin.attend_in_windows: scores",
        "deformable.deform_attn: result",
        "decoder.decoder_layer: result",
        "queries.similarity: result",
        "phrases.phrase_mask: result",
    ):
        assert promise in kept


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_fields_of_an_output_have_the_shapes_beside_them(family):
    out = tiny.model(family).forward(tiny.pixels(), tiny.IDS, details=True)
    fields = re.findall(
        r"^    (\w+): np\.ndarray.*?#.*?\[([^\]]*)\]", inspect.getsource(minigdino.Output), re.MULTILINE
    )
    letters = {}
    for name, spec in fields:
        check(spec, getattr(out, name).shape, letters, f"Output.{name}")
    assert len(fields) == 14


def test_a_comment_after_a_long_statement_is_read_too():
    named, _ = promises(minigdino.network.model.forward.__code__)
    assert {"text_features", "vision", "text", "states", "references", "logits", "boxes"} <= {name for name, _ in named}


def test_a_false_comment_is_caught():
    letters = {"S": 5}
    check("S, C", (5, 3), letters, "here")
    assert letters == {"S": 5, "C": 3}
    for spec, shape in (("S, C", (4, 3)), ("S, 2*C", (5, 5)), ("S", (5, 3)), ("..., C", (2, 2))):
        with pytest.raises(ShapeError):
            check(spec, shape, letters, "here")
    check("..., C", np.zeros((7, 7, 3)).shape, letters, "here")

"""Shapes in comments and docstrings of the network agree with the arrays of a forward pass."""

import re

import numpy as np
import pytest
import tiny
from shapecheck import ShapeError, check, checked, stated_shapes

import minigdino


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_every_stated_shape_of_a_forward_pass_is_right(family):
    model = tiny.model(family)
    with minigdino.use("reference"), checked() as shapes:
        model.forward(tiny.pixels(61, 83), tiny.IDS, details=True)
    assert len(shapes) > 150
    for shape in (
        "fusion.attend_both_ways: vision",
        "fusion.attend_both_ways: to_text",
        "fusion.fusion_layer: result",
        "swin.attend_in_windows: scores",
        "deformable.deform_attn: result",
        "decoder.decoder_layer: result",
        "queries.similarity: result",
        "phrases.phrase_mask: result",
    ):
        assert shape in shapes


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_fields_of_an_output_have_the_shapes_of_its_docstring(family):
    out = tiny.model(family).forward(tiny.pixels(), tiny.IDS, details=True)
    fields = re.findall(r"^ +(\w+): \[([^\]]*)\]", minigdino.Output.__doc__, re.MULTILINE)
    letters = {}
    for name, spec in fields:
        check(spec, getattr(out, name).shape, letters, f"Output.{name}")
    assert len(fields) == 14


def short(x, weight):
    """Linear map: x [N, I], weight [O, I] -> [N, O]"""
    return x @ weight.T


def short_pair(x):
    """x [N, C] -> sums [N], means [C]

    Not a result: [0, 1].
    """
    return x.sum(axis=1), x.mean(axis=0)


def sections(vision, text):
    """Google style.

    Args:
        vision [S, C], text [T, C]: image and text tokens.
        more: values in [0, 1].

    Returns:
        [S, T], [T]: scores in [0, 1]; means.

    Raises:
        Error: never.
    """
    scores = vision @ text.T  # [S, T]
    return scores, scores.mean(axis=0)


def results_of_names():
    """Google style, without arguments.

    Returns:
        dict of scores [S], selected [Q]: of every image token; of every query.
    """


def results_on_one_line():
    """Google style.

    Returns: [H, W]: a map -> not a result [C].
    """


def no_colon():
    """Google style.

    Returns:
        list of [H, W, C], fine to coarse

    Another paragraph about [0, 1].
    """


@pytest.mark.parametrize(
    ("function", "named", "results"),
    [
        (short, [("x", "N, I"), ("weight", "O, I")], ["N, O"]),
        (short_pair, [("x", "N, C")], ["N", "C"]),
        (sections, [("vision", "S, C"), ("text", "T, C"), ("in", "0, 1"), ("scores", "S, T")], ["S, T", "T"]),
        (results_of_names, [], ["S", "Q"]),
        (results_on_one_line, [], ["H, W"]),
        (no_colon, [], ["H, W, C"]),
    ],
)
def test_both_styles_of_docstrings_are_read(function, named, results):
    assert stated_shapes(function.__code__) == (named, results)


def wrong_result(x):
    """x [N, C] -> [C, N]"""
    return x


def wrong_second_result(x):
    """Google style.

    Args:
        x [N, C]: rows.

    Returns:
        [N, C], [N, N]: rows; columns.
    """
    return x, x.T


def wrong_argument(x):
    """Google style.

    Args:
        x [N, N]: rows.
    """
    return x


def test_wrong_shapes_in_a_docstring_are_detected(monkeypatch):
    """`checked` looks at functions whose module belongs to the network, so these pretend to."""
    monkeypatch.setitem(globals(), "__name__", "minigdino.network.example")
    with checked() as shapes:
        short(np.ones((2, 3)), np.ones((4, 3)))
        short_pair(np.ones((2, 3)))
        sections(np.ones((2, 3)), np.ones((4, 3)))
    names = ("short: x", "short: weight", "short: result", "short_pair: x", "short_pair: result", "sections: vision",
             "sections: text", "sections: scores", "sections: result")  # fmt: skip
    assert shapes == {f"example.{name}" for name in names}
    for function, name in ((wrong_result, "result"), (wrong_second_result, "result"), (wrong_argument, "x")):
        with pytest.raises(ShapeError, match=rf"example\.{function.__name__}: {name}"), checked():
            function(np.ones((2, 3)))


def test_a_comment_after_a_long_statement_is_read_too():
    named, _ = stated_shapes(minigdino.network.model.forward.__code__)
    assert {"text_features", "vision", "text", "states", "references", "logits", "boxes"} <= {name for name, _ in named}


def test_a_wrong_shape_is_detected():
    letters = {"S": 5}
    check("S, C", (5, 3), letters, "here")
    assert letters == {"S": 5, "C": 3}
    for spec, shape in (("S, C", (4, 3)), ("S, 2*C", (5, 5)), ("S", (5, 3)), ("..., C", (2, 2))):
        with pytest.raises(ShapeError):
            check(spec, shape, letters, "here")
    check("..., C", np.zeros((7, 7, 3)).shape, letters, "here")

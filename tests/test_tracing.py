"""Looking in from outside."""

import sys

import numpy as np
import tiny

import minigdino


def test_a_pattern_records_the_steps_it_names():
    with minigdino.trace("*/fusion_layer.*/to_text") as seen:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    paths = [f"forward.0/enhancer.0/fusion_layer.{i}/bi_attention.0/to_text" for i in range(2)]
    assert list(seen) == paths
    assert seen[paths[0]].shape == (108, 2, 8)
    np.testing.assert_allclose(seen[paths[1]].sum(axis=-1), 1, rtol=1e-5)


def test_tracing_changes_nothing_and_leaves_nothing_behind():
    plain = tiny.model().forward(tiny.pixels(), tiny.IDS)
    before = sys.getprofile()
    with minigdino.trace("*/nothing_of_this_name"):
        traced = tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert sys.getprofile() is before
    np.testing.assert_array_equal(traced.boxes, plain.boxes)


def test_results_are_named_too():
    with minigdino.trace("forward.0/*/return*") as seen:
        out = tiny.model().forward(tiny.pixels(), tiny.IDS)
    np.testing.assert_array_equal(seen["forward.0/enhancer.0/return.0"], out.vision)
    assert "forward.0/swin.0/return.2" in seen


def test_a_twin_is_opaque_and_its_reference_is_not():
    with minigdino.trace("*/deform_attn.*") as fast:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    with minigdino.use("reference"), minigdino.trace("*/deform_attn.*") as slow:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert not fast
    assert any(path.endswith("/tent") for path in slow)

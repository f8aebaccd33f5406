"""`trace` records the steps of a forward pass, by pattern or as summaries."""

import asyncio
import cProfile
import functools
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import attention_weights

import minigdino
from minigdino.inspection.tracing import Summary, at_functions, seconds_of
from minigdino.network import fusion, ops, swin
from minigdino.runtime import kernels


def test_a_pattern_records_the_steps_that_it_matches():
    with minigdino.trace("*/fusion_layer.*/to_text") as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    where = "bi_attention.0/attend_both_ways.0"
    paths = [f"forward.0/enhancer.0/fusion_layer.{i}/{where}/to_text" for i in range(2)]
    assert list(recorded) == paths
    assert recorded[paths[0]].shape == (108, 2, 8)
    np.testing.assert_allclose(recorded[paths[1]].sum(axis=-1), 1, rtol=1e-5)


def test_several_patterns_record_steps_that_any_of_them_matches():
    patterns = ("*/attend_both_ways.*/to_text", "*/attend_both_ways.*/to_vision")
    with minigdino.trace(*patterns) as both:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    one_by_one = set()
    for pattern in patterns:
        with minigdino.trace(pattern) as recorded:
            tiny.model().forward(tiny.pixels(), tiny.IDS)
        one_by_one |= set(recorded)
    assert set(both) == one_by_one
    assert len(both) == 4


def test_tracing_does_not_change_the_output_and_restores_the_profiler():
    plain = tiny.model().forward(tiny.pixels(), tiny.IDS)
    before = sys.getprofile()
    with minigdino.trace("*/nothing_of_this_name"):
        traced = tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert sys.getprofile() is before
    np.testing.assert_array_equal(traced.boxes, plain.boxes)


def test_results_are_recorded_too():
    with minigdino.trace("forward.0/*/return*") as recorded:
        out = tiny.model().forward(tiny.pixels(), tiny.IDS)
    np.testing.assert_array_equal(recorded["forward.0/enhancer.0/return.0"], out.vision)
    assert "forward.0/swin.0/return.2" in recorded


def test_a_twin_records_its_result_and_its_reference_every_step():
    with minigdino.trace("*/deform_attn.*") as fast:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    with minigdino.use("reference"), minigdino.trace("*/deform_attn.*") as slow:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert {path.rpartition("/")[2] for path in fast} == {"return"}
    assert set(fast) <= set(slow)
    assert any(path.endswith("/bilinear_weight") for path in slow)
    first = next(iter(fast))
    np.testing.assert_allclose(fast[first], slow[first], atol=1e-4)


def test_without_a_pattern_every_step_is_summarised():
    with minigdino.trace("forward.0/*") as arrays:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    with minigdino.trace() as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert set(arrays) == {path for path in recorded if path.startswith("forward.0/")}
    for path, array in arrays.items():
        assert recorded[path].shape == array.shape
        assert recorded[path].dtype == str(array.dtype)
        one = recorded[path]
        np.testing.assert_allclose([one.min, one.mean, one.max], [array.min(), array.mean(), array.max()], rtol=1e-5)
    fused = recorded["forward.0/enhancer.0/fusion_layer.0/return.0"]
    assert fused.function == "fusion.fusion_layer"
    assert fused.twin is None
    assert 0 < fused.milliseconds < recorded["forward.0/enhancer.0/return.0"].milliseconds
    assert recorded["forward.0/enhancer.0/fusion_layer.0/bi_attention.0/heads"].milliseconds is None


def test_the_summary_of_a_twins_result_names_the_twin():
    with minigdino.trace() as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    sampled = [s for path, s in recorded.items() if "/deform_attn." in path]
    assert sampled
    assert {s.twin for s in sampled} == {"minigdino._ext.deformable:deform_attn"}
    assert "by minigdino._ext.deformable:deform_attn" in str(sampled[0])
    with minigdino.use("reference"), minigdino.trace() as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert not any(s.twin for s in recorded.values())


def test_attention_weights_of_every_kind_are_steps():
    model = tiny.model()
    maps = {
        "*/attend_both_ways.*/to_text": -1,
        "*/attend_both_ways.*/to_vision": 0,
        "*/text_enhancer_layer.*/attend.0/weights": -1,
        "*/decoder_layer.*/attention.0/attend.0/weights": -1,
        "*/decoder_layer.*/attention.1/attend.0/weights": -1,
        "*/bert_layer.*/attend.0/weights": -1,
        "*/attend_in_windows.*/weights": -1,
        "*/deform_attn.*/weights": (2, 3),
    }
    for pattern, axis in maps.items():
        with minigdino.trace(pattern) as fast:
            model.forward(tiny.pixels(), tiny.IDS)
        with minigdino.use("reference"), minigdino.trace(pattern) as slow:
            model.forward(tiny.pixels(), tiny.IDS)
        assert list(fast) == list(slow) != [], pattern
        for path, array in fast.items():
            np.testing.assert_allclose(array.sum(axis=axis), 1, rtol=1e-4)
            np.testing.assert_allclose(array, slow[path], atol=1e-3)


def test_a_named_step_runs_the_reference_for_that_call_only():
    where = "forward.0/enhancer.0/fusion_layer.1/layer_norm.0"
    with minigdino.trace() as plain:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    with minigdino.trace("*/fusion_layer.1/layer_norm.0/variance", "forward.0/*") as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert f"{where}/variance" in recorded
    assert {path for path in set(recorded) - set(plain) if not path.startswith(f"{where}/")} == set()
    with minigdino.trace("*/return") as recorded:  # no plain name before it: every twin still runs
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert set(recorded) <= set(plain)


def test_a_pattern_can_name_any_step_inside_a_twin():
    """Each path that the references record below an op, used as a pattern with twins, records that step."""
    rng = np.random.default_rng(0)
    x, tokens = rng.standard_normal((5, 6, 4)), rng.standard_normal((2, 3, 4))
    w = {**attention_weights(rng, 4), "relative_position_bias_table": rng.standard_normal((9, 2))}
    calls = (
        lambda: swin.window_attention(x, **w, n_heads=2, k=2, shift=1),
        lambda: fusion.attend_both_ways(x[0], tokens, tokens[..., 0], tokens, x[0, 0]),
        lambda: ops.feed_forward(x[0], w["query"], w["key"], "gelu"),
    )
    for call in calls:
        with minigdino.use("reference"), minigdino.trace("*") as slow:
            call()
        for path in (path for path in slow if path.rpartition("/")[2].isidentifier()):
            with minigdino.trace(path) as fast:
                call()
            assert list(fast) == [path]
            np.testing.assert_allclose(fast[path], slow[path], atol=1e-9)


def test_a_twin_is_one_step_and_its_reference_shows_the_steps_inside():
    """Compiled code calls no function of the network, so a twin has no steps."""
    rng = np.random.default_rng(0)
    w = {**attention_weights(rng, 4), "relative_position_bias_table": rng.standard_normal((49, 2))}
    x = rng.standard_normal((9, 140, 4))  # wide enough for the twin to split it into bands
    with minigdino.trace() as recorded:
        swin.window_attention(x, **w, n_heads=2, k=4, shift=2)
    assert list(recorded) == ["window_attention.0/return"]
    with minigdino.trace("*/relative_position_bias.0/rows", "*/attend_in_windows.0/return") as recorded:
        swin.window_attention(x, **w, n_heads=2, k=4, shift=2)
    assert [path.rpartition("/")[2] for path in recorded] == ["rows", "return"]


@pytest.mark.parametrize("patterns", [(5,), (["a"],), (b"x",), ("*", 5), (None, b"x"), (0,)])
def test_a_pattern_must_be_a_str(patterns):
    with pytest.raises(minigdino.ArgumentError, match="a pattern must be a str"), minigdino.trace(*patterns):
        pass
    assert sys.getprofile() is None or callable(sys.getprofile())


@pytest.mark.parametrize("first", ["", None])
def test_an_empty_first_pattern_hides_no_other(first):
    with minigdino.trace(first, "*/to_text") as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert recorded and all(path.endswith("/to_text") for path in recorded)


def test_a_trace_inside_another_hides_nothing_from_it():
    with minigdino.trace() as alone:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    with minigdino.trace() as outer, minigdino.trace() as inner:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    assert list(alone) == list(inner) == list(outer)


def test_a_c_profiler_goes_on_after_a_trace():
    profiler = cProfile.Profile()
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        profiler.enable()
        with minigdino.trace("*/to_text"):
            pass
        random_name_of_a_function()
        profiler.disable()
    finally:
        sys.setprofile(before)
    assert "random_name_of_a_function" in {getattr(entry.code, "co_name", "") for entry in profiler.getstats()}


def random_name_of_a_function():
    pass


ROWS = np.random.default_rng(0).standard_normal((3, 4), np.float32)


def small_pass():
    """Three ops instead of a network, each a path of its own."""
    ops.softmax(ROWS)
    ops.layer_norm(ROWS, ROWS[0], ROWS[1])
    fc1, fc2 = {"weight": ROWS, "bias": ROWS[0, :3]}, {"weight": ROWS.T, "bias": ROWS[0]}
    ops.feed_forward(ROWS, fc1, fc2, "gelu")


def other_profiler(frame, event, result):
    pass


def timeless(recorded):
    """The items of a recording, without times, in a form that can be compared."""
    return [(path, replace(step, milliseconds=None) if isinstance(step, Summary) else (step.shape, step.tobytes()))
            for path, step in recorded.items()]


@functools.cache
def alone(mode, patterns, passes):
    """What a trace records of some passes if no other is open."""
    with minigdino.use(mode), minigdino.trace(*patterns) as recorded:
        for _ in range(passes):
            small_pass()
    return timeless(recorded)


# With twins, a trace that opens a reference changes what others record of that op: no two of these name the same op.
PATTERNS = {
    "fast": [("layer_norm.*/variance",), ("softmax.*/return", "softmax.*/e"), ("feed_forward.0/return",)],
    "reference": [(), ("layer_norm.*/variance",), ("*/return",), ("feed_forward.1/*", "softmax.*")],
}
STEPS = st.one_of(st.just("pass"), st.tuples(st.just("open"), st.integers(0, 3)),
                  st.tuples(st.just("close"), st.integers(0, 3)))


@pytest.mark.parametrize("before", [None, other_profiler])
@pytest.mark.parametrize("mode", PATTERNS)
@given(steps=st.lists(STEPS, max_size=12))
def test_traces_that_overlap_in_any_order_record_what_each_records_alone(mode, before, steps):
    patterns, traces = PATTERNS[mode], []  # traces: [block, recorded, patterns, passes]

    def close(i):
        block, recorded, chosen, passes = traces.pop(i % len(traces))
        block.__exit__(None, None, None)
        assert timeless(recorded) == alone(mode, chosen, passes)

    for chosen in patterns:  # cached before the profiler is set
        for passes in range(len(steps) + 1):
            alone(mode, chosen, passes)
    outside = sys.getprofile()
    sys.setprofile(before)
    try:
        with minigdino.use(mode):
            for step in [*steps, *[("close", 0)] * len(steps)]:
                if step == "pass":
                    small_pass()
                    traces = [[*trace[:3], trace[3] + 1] for trace in traces]
                elif step[0] == "open":
                    chosen = patterns[step[1] % len(patterns)]
                    block = minigdino.trace(*chosen)
                    traces.append([block, block.__enter__(), chosen, 0])
                elif traces:
                    close(step[1])
                assert kernels.traced() == bool(traces)
                assert traces or sys.getprofile() is before
    finally:
        sys.setprofile(outside)


def test_traces_of_two_asyncio_tasks_record_every_pass_of_their_thread():
    async def task(turns):
        await turns[0].wait()
        with minigdino.trace("*/return") as recorded:
            turns[1].set()
            await turns[2].wait()
            small_pass()
        turns[3].set()
        return recorded

    async def both():
        first, second, third, last = (asyncio.Event() for _ in range(4))
        first.set()
        return await asyncio.gather(task((first, second, third, last)), task((second, third, last, asyncio.Event())))

    def run():
        return *asyncio.run(both()), sys.getprofile(), kernels.traced()

    with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop: that of the browser tests
        one, two, *after = pool.submit(run).result()
    assert (timeless(one), timeless(two)) == (alone("fast", ("*/return",), 1), alone("fast", ("*/return",), 2))
    assert after == [None, False]


def test_a_generator_may_end_its_trace_inside_another():
    def steps():
        with minigdino.trace() as recorded:
            small_pass()
            yield recorded

    before, generator = sys.getprofile(), steps()
    first = next(generator)
    with minigdino.trace() as second:
        generator.close()
        small_pass()
    assert timeless(first) == timeless(second) == alone("fast", (), 1)
    assert (sys.getprofile(), kernels.traced()) == (before, False)


def test_a_trace_opens_references_inside_another():
    pattern = ("layer_norm.*/variance",)
    with minigdino.trace(*pattern) as outer, minigdino.trace("softmax.*/return") as inner:
        small_pass()
    assert timeless(outer) == alone("fast", pattern, 1) != []
    assert timeless(inner) == alone("fast", ("softmax.*/return",), 1) != []


def test_two_blocks_may_open_the_same_references():
    everything = bool
    with kernels.opened(everything):
        with kernels.opened(everything):
            pass
        assert kernels.traced()
    assert not kernels.traced()


def test_a_trace_that_another_thread_ends_leaves_no_profiler():
    """The garbage collector ends an abandoned generator in any thread."""
    def trace():
        with minigdino.trace():
            yield

    left, generator, outside = [], trace(), sys.getprofile()
    sys.setprofile(other_profiler)
    try:
        next(generator)
        thread = threading.Thread(target=lambda: (generator.close(), left.append(sys.getprofile())))
        thread.start()
        thread.join()
        random_name_of_a_function()
        assert (sys.getprofile(), left, kernels.traced()) == (other_profiler, [None], False)
    finally:
        sys.setprofile(outside)


def test_a_profiler_that_is_set_in_a_trace_stays_and_may_restore_the_previous_one():
    outside = sys.getprofile()
    try:
        with minigdino.trace():
            of_trace = sys.getprofile()
            sys.setprofile(other_profiler)
            with minigdino.trace(*PATTERNS["fast"][0]) as recorded:
                small_pass()
            assert sys.getprofile() is other_profiler
        assert sys.getprofile() is other_profiler
        assert timeless(recorded) == alone("fast", PATTERNS["fast"][0], 1)
        sys.setprofile(of_trace)
        random_name_of_a_function()
        assert sys.getprofile() is outside
    finally:
        sys.setprofile(outside)


def test_a_profiler_before_a_trace_goes_on_in_it():
    def watch(frame, event, result):
        seen.append((event, frame.f_code.co_name))

    seen, outside = [], sys.getprofile()
    sys.setprofile(watch)
    try:
        with minigdino.trace(), minigdino.trace():
            random_name_of_a_function()
    finally:
        sys.setprofile(outside)
    assert [event for event, name in seen if name == "random_name_of_a_function"] == ["call", "return"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a callback of garbage collection
@pytest.mark.parametrize("before", [None, other_profiler])
def test_an_exception_of_a_signal_handler_leaves_no_trace_open(before):
    class Stop(Exception):
        pass

    def handler(*_):
        nonlocal raising
        if raising:
            raising = False
            raise Stop

    small_pass()  # loads the twins
    raising, left, rng, outside = False, [], np.random.default_rng(0), sys.getprofile()
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(300):
            sys.setprofile(before)
            with suppress(Stop):
                raising = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-5, 1e-3))
                while raising:
                    with minigdino.trace("*/to_text"), minigdino.trace(), minigdino.trace("*/return"):
                        small_pass()
            random_name_of_a_function()
            if kernels.traced() or sys.getprofile() not in (before, None):  # Python removes an interrupted profiler
                left.append(sys.getprofile())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        sys.setprofile(outside)
    assert not left
    with minigdino.trace() as recorded:
        small_pass()
    assert timeless(recorded) == alone("fast", (), 1)


def test_functions_are_timed_inside_a_trace_and_around_it():
    calls = []
    timed = at_functions(["softmax"], lambda name: calls.append(f"enter {name}"), lambda name: calls.append("leave"))
    with minigdino.use("reference"):
        timed.__enter__()
        with minigdino.trace() as recorded, seconds_of(["softmax", "layer_norm"]) as seconds:
            small_pass()
            timed.__exit__(None, None, None)
            small_pass()
    assert timeless(recorded) == alone("reference", (), 2)
    assert calls == ["enter softmax", "leave"]
    assert min(seconds.values()) > 0

"""`detect` with lists of phrases that are cut into several prompts."""

import copy
import itertools
import pickle
import sys

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import counted, fresh  # noqa: F401  a fixture

import minigdino
from minigdino import ArgumentError, ImageError, PromptError
from minigdino.cache import Cache

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = [f"{a} {b}" for a in LETTERS for b in LETTERS]
PHOTO = tiny.photo(40, 60)


def rows(found, first=0):
    """The detections as tuples that are equal to the bit."""
    return [(d.score, d.box, d.label, d.label_id + first, d.phrase) for d in found]


@settings(max_examples=20)  # up to 24 forward passes each
@given(st.integers(1, 12), st.integers(1, 13), st.sampled_from(["max", "mean"]), st.sampled_from([0, 0.2]))
def test_a_list_in_chunks_gives_the_union_of_separate_calls(n, chunk, score, threshold):
    model, names = tiny.model(), NAMES[:n]
    found = model.detect(PHOTO, names, chunk=chunk, threshold=threshold, score=score)
    apart = []
    for first in range(0, n, chunk):
        apart += rows(model.detect(PHOTO, names[first : first + chunk], threshold=threshold, score=score), first)
    assert rows(found) == sorted(apart, key=lambda row: -row[0])  # stable, so ties have the order of the prompts
    assert [names[i] for i in found.label_ids] == found.labels
    assert found.image is PHOTO


def test_a_list_beyond_256_tokens_is_cut_where_it_must_be():
    model = tiny.model()
    names = NAMES[:200]  # three tokens each, with the dot
    found = model.detect(PHOTO, names, threshold=0)
    assert rows(found) == rows(model.detect(PHOTO, names, threshold=0, chunk=84))
    assert len(found) == 3 * model.config.num_queries
    assert max(found.label_ids) > 168
    assert rows(minigdino.detect(PHOTO, names, model=model, threshold=0)) == rows(found)


def test_one_prompt_is_the_same_with_any_chunk_that_it_fits():
    model = tiny.model()
    assert rows(model.detect(PHOTO, NAMES[:5], chunk=5, threshold=0)) == rows(model.detect(PHOTO, NAMES[:5],
                                                                                         threshold=0))


def test_each_image_may_have_its_own_long_list():
    model, other = tiny.model(), tiny.photo(60, 40, 1)
    both = model.detect([PHOTO, other], [NAMES[:7], NAMES[3:5]], chunk=3, threshold=0)
    for found, image, names in zip(both, (PHOTO, other), (NAMES[:7], NAMES[3:5])):
        assert rows(found) == rows(model.detect(image, names, chunk=3, threshold=0))


def test_the_image_backbone_runs_once_and_texts_are_kept_between_images(counted):  # noqa: F811
    model, names = fresh(), NAMES[:40]  # a prompt each: more than a bound on the number of prompts would keep
    model.detect(PHOTO, names, chunk=1)
    assert counted == {"bert": 40, "swin": 1}
    model.detect(tiny.photo(40, 60, 1), names, chunk=1)
    assert counted == {"bert": 40, "swin": 2}


def test_the_pixels_are_hashed_once(monkeypatch):
    shapes = []
    key = minigdino.detector.content_key
    monkeypatch.setattr(minigdino.detector, "content_key", lambda array: shapes.append(array.ndim) or key(array))
    fresh().detect(PHOTO, NAMES[:9], chunk=2)
    assert shapes.count(3) == 1


def test_a_trace_of_several_prompts_has_the_image_backbone_once():
    model = fresh()
    want = model.detect(PHOTO, NAMES[:4], chunk=2, threshold=0)
    with minigdino.trace() as seen:
        found = model.detect(PHOTO, NAMES[:4], chunk=2, threshold=0)
    assert rows(found) == rows(want)
    assert {"forward.0/bert.0/return", "forward.1/bert.0/return"} <= seen.keys()
    assert any(path.startswith("forward.0/swin.0/") for path in seen)
    assert not any(path.startswith("forward.1/swin.0/") for path in seen)


def test_iterators_errors_and_copies_work_with_long_lists():
    model, names = tiny.model(), NAMES[:5]
    want = rows(model.detect(PHOTO, names, chunk=2, threshold=0))
    found = model.detect(iter([PHOTO, b"none", PHOTO]), names, chunk=2, threshold=0, errors="return")
    first, error, last = found
    assert rows(first) == rows(last) == want
    assert isinstance(error, ImageError)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert rows(again.detect(PHOTO, names, chunk=2, threshold=0)) == want


def test_what_is_not_cut_is_refused_with_the_next_step():
    model, names = tiny.model(), NAMES[:200]
    with pytest.raises(PromptError, match=r"at most 256 tokens for this model; got 602\. Give its phrases as a list"):
        model.detect(PHOTO, ". ".join(names))
    for call in (model.tokenize, lambda text: model.loss(PHOTO, text, [], [])):
        with pytest.raises(PromptError, match=r"got 602\. Use fewer phrases; only detect\(\) splits a list"):
            call(names)
    with pytest.raises(ArgumentError, match=r"chunk needs the phrases of the prompt as a list; got 'a\. b'"):
        model.detect(PHOTO, "a. b", chunk=2)
    with pytest.raises(PromptError, match="two phrases must not have the same tokens; 'a b' and 'A B' have"):
        model.detect(PHOTO, [*names, "A B"])
    with pytest.raises(PromptError, match=r"a phrase must have at most 253 tokens for this model; .* has 300"):
        model.detect(PHOTO, ["cat", "a " * 300])


def test_a_cache_is_bounded_by_the_sum_of_sizes():
    cache = Cache(10, len)
    for key, text in (("a", "1234"), ("b", "123456"), ("c", "12")):
        cache.put(key, text)
    assert [cache.get(key) for key in "abc"] == [None, "123456", "12"]
    cache.put("d", "12345")
    assert [cache.get(key) for key in "bcd"] == [None, "12", "12345"]
    cache.put("e", "x" * 11)  # larger than the cache
    assert [cache.get(key) for key in "cde"] == [None, None, None]


@pytest.mark.parametrize("change", [lambda cache: cache.put("z", "1"), lambda cache: cache.clear(),
                                    lambda cache: cache.get("a")])
def test_a_signal_handler_may_use_a_cache_between_any_two_steps(change):
    """A trace function stands for the handler. It runs once, before instruction n of the cache."""
    sys._getframe().f_trace_opcodes = True  # Python 3.12 reports no instructions if the first frame has it later
    n = 0
    while True:
        cache, count = Cache(4, len), itertools.count()

        def handler(frame, event, _, n=n, cache=cache, count=count):
            frame.f_trace_opcodes = frame.f_code.co_filename == minigdino.cache.__file__
            if frame.f_trace_opcodes and event == "opcode" and next(count) == n:
                change(cache)
            return handler

        before = sys.gettrace()
        sys.settrace(handler)
        try:
            for key in "abca":
                cache.put(key, "12")
                found = cache.get(key)
        finally:
            sys.settrace(before)
        assert found in ("12", None)
        cache.put("d", "1234")
        assert [cache.get(key) for key in "abcdz"] == [None, None, None, "1234", None]  # the bound holds
        if next(count) <= n:  # all instructions were interrupted
            break
        n += 1
    assert n > 50


def test_text_features_are_bounded_by_their_bytes():
    model = fresh()
    model.detect(PHOTO, NAMES[:3], chunk=1)
    cache = model._text_cache
    assert sum(map(cache.size, cache._results.values())) == 3 * 5 * 64 * 4  # prompts, tokens, channels, bytes
    assert cache.capacity // (256 * 256 * 4) == 256

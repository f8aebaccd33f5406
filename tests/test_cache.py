"""The caches of `detect` save time and do not change results."""

import contextvars
import threading

import numpy as np
import pytest
import tiny

import minigdino
from minigdino.cache import Cache, content_key
from minigdino.network import model as network


@pytest.fixture
def counted(monkeypatch):
    """The number of calls of each backbone: {"bert": n, "swin": n}."""
    counts = {"bert": 0, "swin": 0}

    def count(name, backbone):
        def counting(*args, **kwargs):
            counts[name] += 1
            return backbone(*args, **kwargs)

        monkeypatch.setattr(network, name, counting)

    for name in counts:
        count(name, getattr(network, name))
    return counts


def fresh():
    return minigdino.Model.random(tiny.config(), tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


def same(a, b):
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and a.phrases == b.phrases


def test_a_new_prompt_skips_swin_and_a_new_image_skips_bert(counted):
    model, photo, other = fresh(), tiny.photo(40, 60), tiny.photo(40, 60, seed=1)
    first = model.detect(photo, "a cat.", threshold=0)
    assert counted == {"bert": 1, "swin": 1}
    model.detect(photo, "a dog.", threshold=0)
    assert counted == {"bert": 2, "swin": 1}
    model.detect(other, "a cat.", threshold=0)
    assert counted == {"bert": 2, "swin": 2}
    assert same(model.detect(photo, "a cat.", threshold=0), first)
    assert counted == {"bert": 2, "swin": 2}


def test_cached_features_give_the_same_result():
    photos, texts = [tiny.photo(40, 60, seed=i) for i in range(3)], ["a cat.", "a dog. the red hat.", "person."]
    model = fresh()
    for photo in photos:
        for text in texts:
            cached = model.detect(photo, text, threshold=0)
            assert same(cached, fresh().detect(photo, text, threshold=0))


def test_one_changed_pixel_is_a_new_image(counted):
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    changed = photo.copy()
    changed[20, 30] ^= 255
    model.detect(changed, "a cat.")
    assert counted["swin"] == 2


def test_forward_does_not_use_the_caches(counted):
    model, pixels = fresh(), tiny.pixels()
    for _ in range(2):
        model.forward(pixels, tiny.IDS)
    assert counted == {"bert": 2, "swin": 2}


def test_clear_empties_the_caches(counted):
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    model.clear()
    model.detect(photo, "a cat.")
    assert counted == {"bert": 2, "swin": 2}


def test_reference_and_fast_mode_do_not_share_cached_features(counted):
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    with minigdino.use("reference"):
        model.detect(photo, "a cat.")
    assert counted == {"bert": 2, "swin": 2}


@pytest.mark.parametrize("pattern", [(), ("*/swin.*/return*",), ("*/variance", "*/swin.*/return*")])
def test_a_trace_of_cached_features_records_every_step(pattern):
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    for _ in range(2):
        with minigdino.trace(*pattern) as recorded:
            model.detect(photo, "a cat.")
        assert any("/swin.0/return" in path for path in recorded)


def test_a_trace_neither_uses_nor_fills_the_caches(counted):
    model, photo = fresh(), tiny.photo(40, 60)
    with minigdino.trace("*/variance"):  # the references of all norms run, which differ from twins in the last bits
        model.detect(photo, "a cat.")
        model.detect(photo, "a cat.")
    assert counted == {"bert": 2, "swin": 2}
    after = model.detect(photo, "a cat.", threshold=0)
    assert counted == {"bert": 3, "swin": 3}
    assert same(after, fresh().detect(photo, "a cat.", threshold=0))


def test_another_thread_uses_the_caches_during_a_trace(counted):
    """Also in a copy of the context, as `asyncio.to_thread` runs a function."""
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    with minigdino.trace("*/variance"):
        for run in (lambda function, *args: function(*args), contextvars.copy_context().run):
            thread = threading.Thread(target=run, args=(model.detect, photo, "a cat."))
            thread.start()
            thread.join()
    assert counted == {"bert": 1, "swin": 1}


def test_the_caches_are_used_again_only_when_the_last_trace_has_ended(counted):
    model, photo = fresh(), tiny.photo(40, 60)
    model.detect(photo, "a cat.")
    first, last = minigdino.trace(), minigdino.trace()
    for step in (first.__enter__, last.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        model.detect(photo, "a cat.")
    assert counted == {"bert": 4, "swin": 4}
    last.__exit__(None, None, None)
    model.detect(photo, "a cat.")
    assert counted == {"bert": 4, "swin": 4}


def test_the_least_recently_used_entry_is_evicted():
    cache = Cache(2)
    for key in "abc":
        cache.put(key, key.upper())
        cache.get("a")
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]


def test_the_key_depends_on_content_shape_and_dtype():
    zeros = np.zeros((2, 3), np.float32)
    assert content_key(zeros) == content_key(zeros.copy())
    assert len({content_key(a) for a in (zeros, zeros.reshape(3, 2), zeros.astype(np.int32), zeros + 1)}) == 4

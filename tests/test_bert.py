"""Text backbone: the features of a phrase do not depend on the other phrases."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minigdino.network.bert import bert
from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask

pytestmark = pytest.mark.usefixtures("both_kernels")

MODEL = tiny.model()


def features(ids):
    ids = np.array(ids)
    mask, positions = phrase_mask(ids, PUBLISHED_DELIMITERS)
    return bert(ids, mask, positions, **MODEL.weights["text_backbone"], config=MODEL.config.text_config)


phrases = st.lists(st.integers(200, 240), min_size=1, max_size=5).map(lambda p: [*p, 1012])


@given(st.lists(phrases, min_size=1, max_size=4), st.data())
def test_a_phrase_has_the_same_features_beside_any_others(prompt, data):
    which = data.draw(st.integers(0, len(prompt) - 1))
    before = sum(map(len, prompt[:which])) + 1
    together = features([101, *sum(prompt, []), 102])[before : before + len(prompt[which])]
    np.testing.assert_allclose(together, features([101, *prompt[which], 102])[1:-1], atol=2e-5)


@given(phrases, phrases)
def test_tokens_outside_a_phrase_change_nothing_inside(phrase, other):
    a, b = features([101, *phrase, 1012, 102]), features([101, *phrase, *other, 102])
    np.testing.assert_allclose(a[1 : 1 + len(phrase)], b[1 : 1 + len(phrase)], atol=2e-5)


def test_word_order_matters_within_a_phrase():
    a, b = features([101, 200, 201, 1012, 102]), features([101, 201, 200, 1012, 102])
    assert abs(a[1] - b[2]).max() > 1e-3


def test_output_is_float32():
    assert features(tiny.IDS).dtype == np.float32

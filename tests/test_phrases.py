"""The phrase mask: a token attends to the tokens of its own phrase only."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask


def blocks(ids):
    mask, positions = phrase_mask(np.array(ids), PUBLISHED_DELIMITERS)
    return [set(np.flatnonzero(row)) for row in mask], positions.tolist()


def test_a_phrase_attends_to_itself_and_its_delimiter_and_its_positions_start_at_zero():
    attended, positions = blocks([101, 7, 8, 1012, 9, 1029, 102])
    assert attended == [{0}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {4, 5}, {4, 5}, {6}]
    assert positions == [0, 0, 1, 2, 0, 1, 0]


def test_a_token_without_a_closing_delimiter_attends_to_itself_only():
    attended, positions = blocks([101, 7, 1012, 8, 9, 102])
    assert attended == [{0}, {1, 2}, {1, 2}, {3}, {4}, {5}]
    assert positions == [0, 0, 1, 0, 0, 0]


def test_an_inner_sep_closes_a_phrase_and_an_empty_phrase_is_its_delimiter():
    attended, positions = blocks([101, 7, 102, 8, 1012, 1012, 102])
    assert attended == [{0}, {1, 2}, {1, 2}, {3, 4}, {3, 4}, {5}, {6}]
    assert positions == [0, 0, 1, 0, 1, 0, 0]


def test_a_first_token_that_is_no_delimiter_belongs_to_the_first_phrase():
    seen, positions = blocks([7, 8, 1012, 102])
    assert seen == [{0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {3}]
    assert positions == [0, 1, 2, 0]


@given(st.lists(st.sampled_from([5, 6, 101, 102, 1012, 1029]), min_size=1, max_size=20))
def test_the_mask_is_an_equivalence_relation_with_contiguous_classes(ids):
    mask, positions = phrase_mask(np.array(ids), PUBLISHED_DELIMITERS)
    assert mask.diagonal().all()
    np.testing.assert_array_equal(mask, mask.T)
    np.testing.assert_array_equal(mask @ mask, mask)
    for i, row in enumerate(mask):
        attended = np.flatnonzero(row)
        np.testing.assert_array_equal(attended, np.arange(attended[0], attended[-1] + 1))
        assert positions[i] == i - attended[0]

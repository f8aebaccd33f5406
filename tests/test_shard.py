"""Shards: parts of many images that are the same on every machine, whatever images are added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigdino import ArgumentError
from minigdino.runs.shard import Shard, file_name

pytestmark = pytest.mark.once

NAMES = st.text(st.characters(exclude_categories=()), max_size=20)  # file names that are not Unicode have surrogates


def parts(names, of):
    return [[name for name in names if name in Shard(number, of)] for number in range(1, of + 1)]


@given(st.lists(NAMES, unique=True), st.integers(1, 20))
def test_the_shards_of_a_list_are_disjoint_and_complete(names, of):
    assert sorted(name for part in parts(names, of) for name in part) == sorted(names)


@given(st.lists(NAMES, unique=True), st.lists(NAMES), st.integers(1, 20))
def test_new_images_change_no_other_images_shard(names, new, of):
    for before, after in zip(parts(names, of), parts([*new, *names], of)):
        assert set(before) == set(after) & set(names)


def test_shards_are_the_same_everywhere():
    """Machines with different versions must agree."""
    names = [f"photos/{i}.jpg" for i in range(1000)]
    assert [next(n for n in range(1, 5) if name in Shard(n, 4)) for name in names[:9]] == [2, 4, 4, 1, 1, 4, 4, 1, 4]
    assert [len(part) for part in parts(names, 4)] == [245, 238, 275, 242]


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_text_of_a_shard_gives_the_shard(number, more):
    shard = Shard(number, number + more)
    assert Shard.parsed(str(shard)) == shard
    assert file_name("found", shard) == f"found-{number}-of-{number + more}.jsonl"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "", "/", "a/b", "1/0", "-1/4", "1/4/2", "1 /4", "²/4",
                                  "1/" + "9" * 5000])
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(ArgumentError, match="a shard must be i/n with 1 <= i <= n, such as 1/4; got"):
        Shard.parsed(text)


def test_all_images_are_in_the_file_without_a_number():
    assert file_name("found") == "found.jsonl"

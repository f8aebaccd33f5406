"""Full width: the published tiny models of both families, with random weights, on a real photograph."""

import pytest
import skimage.data
from oracle import FAMILIES, VOCABULARY, assert_equal, new_pair

from minigdino import Config
from minigdino.prompt import Tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_tiny_model_is_equal_on_a_photograph(family):
    mine, theirs = new_pair(Config.published(family, "tiny"))
    prompt = Tokenizer.from_directory(VOCABULARY).encode("a woman. a helmet. a space shuttle.")
    assert_equal(mine, theirs, mine.preprocess(skimage.data.astronaut()), prompt.ids)

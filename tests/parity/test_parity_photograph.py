"""The published tiny geometries of both families at full width, with random weights, on a photograph."""

import pytest
import skimage.data
from oracle import FAMILIES, VOCABULARY, assert_equal, new_pair

from minigdino import Config
from minigdino.prompt import Tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_agrees_on_a_photograph(family):
    model, reference = new_pair(Config.published(family, "tiny"))
    prompt = Tokenizer.from_directory(VOCABULARY).encode("a woman. a helmet. a space shuttle.")
    assert_equal(model, reference, model.preprocess(skimage.data.astronaut()), prompt.ids)

"""transformers reads the folder that `minigdino train` writes, and computes the same from it."""

import os

import numpy as np
import oracle
import pytest
import tiny
from oracle import FAMILIES, transformers
from PIL import Image

import minigdino
from minigdino import Model
from minigdino.learning.annotations import Sample
from minigdino.learning.training import Options, train


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_a_trained_model(family, tmp_path):
    """Every tensor is trained; the selection of queries, which rounding can change, is that of transformers."""
    image, folder = tmp_path / "image.png", tmp_path / "run"
    Image.fromarray(tiny.photo(96, 128)).save(image)
    start = Model.random(oracle.small(family), 0, tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)
    sample = Sample(str(image), np.float32([[8, 8, 60, 70], [60, 20, 120, 90]]), ("a cat", "red hat"))
    for _ in train(start, [sample], folder, Options(steps=2, rate=1e-3, train="all")):
        pass
    assert {"training", "curve.png"} <= set(os.listdir(folder))  # files that transformers must ignore
    model = minigdino.load(folder)
    changed = [name for name, array in model.tensors.items() if (array != start.tensors[name]).any()]
    assert len(changed) > 0.9 * len(model.tensors)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("a cat. red hat.")["input_ids"]
    assert ids == list(model.tokenize(["a cat", "red hat"]).ids)
    oracle.assert_equal(model, oracle.load(folder), model.preprocess(image), ids)

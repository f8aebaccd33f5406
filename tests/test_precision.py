"""The precision of matrix products: how it is chosen, and what it changes."""

import copy
import importlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny
from minigdino._ext import cpu, instruction_sets
from minigdino._ext.precision import parts

import minigdino
from minigdino import ArgumentError, Model
from minigdino.runtime.precision import PRECISIONS, checked

PIXELS = tiny.pixels(200, 240)
needs_tiles = pytest.mark.skipif(not instruction_sets.tiles(), reason="this CPU has no tile instructions")


def model(precision=None):
    return Model.random(tiny.config(), tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS, precision=precision)


def encoded(precision):
    """Image tokens of a forward pass."""
    return model(precision).forward(PIXELS, tiny.IDS).image_features


def test_the_default_is_the_highest(monkeypatch):
    monkeypatch.delenv("MINIGDINO_PRECISION", raising=False)
    assert model().precision == "highest" == PRECISIONS[0]
    monkeypatch.setenv("MINIGDINO_PRECISION", "medium")
    assert model().precision == "medium"
    assert model("high").precision == "high"


@pytest.mark.parametrize("wrong", ["low", "", "HIGH", 16, 1.0, ["high"], b"high", np.float32])
def test_another_precision_is_refused(wrong):
    with pytest.raises(ArgumentError, match='precision must be "highest", "high" or "medium"; got'):
        model(wrong)
    with pytest.raises(ArgumentError, match="precision must be"):
        minigdino.load("shapes", precision=wrong)
    with pytest.raises(ArgumentError, match="precision must be"):
        model().precision = wrong


def test_a_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("MINIGDINO_PRECISION", "bf16")
    with pytest.raises(ArgumentError, match="got 'bf16' .*MINIGDINO_PRECISION"):
        checked(None)


def test_a_copy_keeps_the_precision(tmp_path):
    model().save(tmp_path)
    for original in (model("medium"), minigdino.load(tmp_path, precision="medium")):
        for same in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            assert same.precision == "medium"
        original.precision = "high"
        for same in (copy.copy(original), pickle.loads(pickle.dumps(original))):
            assert same.precision == "high"


def test_references_have_one_precision():
    with minigdino.use("reference"):
        expected = encoded("highest")
        for precision in PRECISIONS:
            for one, other in zip(encoded(precision), expected):
                np.testing.assert_array_equal(one, other)


def test_a_pass_leaves_the_precision_of_the_thread():
    encoded("medium")
    assert parts.get() == 3


@needs_tiles
def test_a_lower_precision_gives_a_larger_error():
    with minigdino.use("reference"):
        exact = encoded("highest")
    errors = [max(np.abs(one - other).max() / np.abs(other).max() for one, other in zip(encoded(name), exact))
              for name in PRECISIONS]
    assert errors[0] < 1e-5
    assert 2 * errors[0] < errors[1] < errors[2] / 10 < 0.01


@pytest.mark.skipif(instruction_sets.levels()[0] != "avx512" or not cpu.pairs(even_if_slow=True),
                    reason="this CPU has no dot products of pairs")
def test_pairs_are_used_in_medium_only(monkeypatch):
    products = importlib.import_module("minigdino._ext.avx512.products")
    monkeypatch.setattr(products, "uses_tiles", False)
    monkeypatch.setattr(products, "uses_pairs", True)
    highest, high, medium = map(encoded, PRECISIONS)
    assert all((one == other).all() for one, other in zip(high, highest))
    assert 1e-4 < max(np.abs(one - other).max() / np.abs(other).max() for one, other in zip(medium, highest)) < 0.1


@needs_tiles
def test_features_of_one_precision_are_not_used_for_another():
    one, photo = model("highest"), tiny.photo(200, 240)
    highest = one.detect(photo, "a cat.", threshold=0).scores
    one.precision = "medium"
    medium = one.detect(photo, "a cat.", threshold=0).scores
    assert (highest != medium).any()
    np.testing.assert_array_equal(model("medium").detect(photo, "a cat.", threshold=0).scores, medium)


@pytest.mark.parametrize(("wanted", "vectors"), [
    ("baseline", "baseline"), ("avx2", "avx2"), ("avx512", "avx512"),
    ("avx512bf16", "avx512, products: avx512bf16 in medium"), ("amx", "avx512, products: amx")])
def test_a_variable_chooses_the_instruction_set(wanted, vectors):
    names = ["amx", "avx512bf16", *(level or "baseline" for level in cpu.levels())]
    if wanted == "amx" and not cpu.tiles():
        vectors = names[2] + ", products: avx512bf16 in medium" * cpu.pairs()
    if wanted == "avx512bf16" and not cpu.pairs(even_if_slow=True):
        vectors = names[2]  # without a warning, since it sets no limit
    code = "import minigdino; print(minigdino.info()['vectors'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "MINIGDINO_VECTORS": wanted})
    if wanted in names:
        assert (done.stdout.strip(), done.stderr) == (vectors, "")
    else:
        assert f"MINIGDINO_VECTORS must be one of {', '.join(names)}" in done.stderr


def test_the_command_line_chooses_a_precision(home, capsys, monkeypatch):
    from minigdino.cli import main

    monkeypatch.chdir(home)
    assert main(["detect", "photo.png", "cat", "--model", "model", "--precision", "medium"]) == 0
    assert main(["bench", "--model", "model", "--size", "64", "64", "--tokens", "4", "--passes", "1", "--precision",
                 "high"]) == 0
    assert ", precision high\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["detect", "photo.png", "cat", "--precision", "low"])

"""Absurd values in a Config: either an error that names the value, or a model that runs within bounds."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import tiny

from minigdino import Config, ConfigError, Error, Model
from minigdino.checkpoints.config import BertConfig, SwinConfig
from minigdino.checkpoints.parameters import parameters

ODD_INTS = (0, 1, 2, 3, 5, 7, 31, 32, 64, 96, 97, 251, 10_007, 2**31, 2**63, -1, -7, 10**30, 10**5000)
ODD_FLOATS = (1e-40, 1e-20, 0.01, 0.24, 0.999, 1.5, 1e6, 1e300, 0.0, -0.0, -1.5, math.nan, math.inf, -math.inf, 7)
ODD = (None, "", "relu", "gelu", "x" * 10_000, True, [], {}, (), object(), b"1", 1j, np.float32(2), np.arange(3))
PIXELS = tiny.pixels(40, 50)
MAX_PARAMETERS = 3 * 10**5


def absurd(rng, old):
    """A value in place of an old one, usually of its type."""
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if isinstance(old, tuple):
        return tuple(rng.choice(ODD_INTS[:7] if rng.random() < 0.9 else ODD_INTS) for _ in range(rng.randrange(6)))
    return rng.choice(ODD_INTS if isinstance(old, int) else ODD_FLOATS if isinstance(old, float) else ODD)


def values(rng):
    """The fields of a small config, one to three of them changed: {name: value}, with nested dicts."""
    backbone = dict(embed_dim=4, depths=(2, 1), num_heads=(1, 2), window_size=3, out_indices=(1, 2), mlp_ratio=2.0)
    text = dict(vocab_size=1030, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    family = rng.choice(["grounding-dino", "mm-grounding-dino"])
    whole = dict(model_type=family, d_model=32, num_queries=5, num_feature_levels=3, encoder_layers=1, decoder_layers=1,
                 encoder_ffn_dim=32, decoder_ffn_dim=32)
    parts = ((whole, Config), (backbone, SwinConfig), (text, BertConfig))
    for _ in range(rng.randrange(1, 4)):
        part, kind = rng.choice(parts)
        field = rng.choice([f for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING])
        part[field.name] = absurd(rng, field.default)
    return {**whole, "backbone_config": backbone, "text_config": text}


def built(change):
    """The config, or None if it is rejected with a short message."""
    try:
        return Config(**change)
    except ConfigError as error:
        assert len(str(error)) < 600
        return None


@pytest.mark.parametrize("seed", range(3))
def test_absurd_values_are_an_error_or_a_model_that_runs(seed):
    rng, ran = random.Random(seed), 0
    for _ in range(100):
        change = values(rng)
        config = built(change)
        if config is None or sum(map(math.prod, parameters(config).values())) > MAX_PARAMETERS:
            continue
        try:
            with np.errstate(all="ignore"):
                Model.random(config).forward(PIXELS, [101, 200, 1012, 102])
        except Error as error:  # such as an image with fewer tokens than queries
            assert len(str(error)) < 600
        except Exception as error:
            raise AssertionError(f"{change}") from error
        ran += 1
    assert ran > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_config": {"window_size": 250}}, "window_size must be positive and at most 24; got 250"),
        ({"backbone_config": {"num_heads": (65,) * 4}}, "num_heads must be positive and at most 64; got (65, "),
        ({"backbone_config": {"mlp_ratio": 0.01}}, "mlp_ratio must give at least one of 96 channels; got 0.01"),
        ({"text_config": {"num_attention_heads": 768}}, "num_attention_heads must be positive and at most 64; got 768"),
        ({"encoder_attention_heads": 128}, "encoder_attention_heads must be positive and at most 64; got 128"),
        ({"encoder_ffn_dim": 1}, "encoder_attention_heads // 2 must divide 0 channels evenly; got 4"),
        ({"num_queries": 4097}, "num_queries must be positive and at most 4096; got 4097"),
        ({"max_text_len": 10**6}, "max_text_len must be positive and at most 4096; got 1000000"),
        ({"num_feature_levels": 17}, "num_feature_levels must be positive and at most 16; got 17"),
        ({"encoder_layers": 201}, "encoder_layers must be positive and at most 200; got 201"),
        ({"d_model": 10**8}, "d_model must be positive and at most 1e+07; got 100000000"),
        ({"d_model": 10**5000}, "d_model must be positive and at most 1e+07; got a very large int"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps must be positive and at most 1e+07; got nan"),
    ],
)
def test_values_that_would_fill_memory_are_rejected(change, message):
    with pytest.raises(ConfigError) as caught:
        Config(**change)
    assert message in str(caught.value)


def test_a_config_that_came_from_json_is_checked_too():
    for name, value in (("d_model", 1e400), ("mlp_ratio", "x"), ("depths", [[1]]), ("num_heads", [1.5] * 4)):
        where = {"backbone_config": {name: value}} if name != "d_model" else {name: value}
        with pytest.raises(ConfigError):
            Config.from_dict(json.loads(json.dumps({"model_type": "grounding-dino", **where})))

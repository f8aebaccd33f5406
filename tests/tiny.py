"""Small models and inputs, for tests that run many forward passes."""

from __future__ import annotations

import functools

import numpy as np

from minigdino import Config, Model
from minigdino.image import ImageSettings
from minigdino.prompt import Tokenizer, bert_tokenizer

WORDS = [
    "a",
    "an",
    "the",
    "cat",
    "cats",
    "dog",
    "remote",
    "control",
    "red",
    "blue",
    "green",
    "star",
    "st",
    "bernard",
    "man",
    "with",
    "hat",
    "person",
    "at",
    "ten",
    "nis",
    "t",
    "shirt",
]


def tokenizer(clean_up: bool = False) -> Tokenizer:
    """A tokenizer of a few words, letters and subwords. Special tokens have the ids of the published vocabulary."""
    vocab = [f"[unused{i}]" for i in range(1100)]
    for i, token in ((0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (1012, "."), (1029, "?")):
        vocab[i] = token
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [
        *WORDS,
        *(c for c in letters if c not in WORDS),
        *(f"##{c}" for c in letters),
        "##ten",
        "##s",
        "-",
        "'",
        ",",
        "!",
        "[",
        "]",
    ]
    for i, piece in enumerate(dict.fromkeys(pieces), start=200):
        vocab[i] = piece
    ids = {token: i for i, token in enumerate(vocab)}
    return Tokenizer(bert_tokenizer(ids), clean_up)


def config(family: str = "grounding-dino", stages=(2, 3, 4), levels: int = 4, queries: int = 20, **changes) -> Config:
    """A config with every part of the published models, but few channels and layers."""
    values = dict(
        backbone_config=dict(
            embed_dim=16, depths=(2, 2, 2, 2), num_heads=(2, 2, 4, 4), window_size=4, out_indices=stages
        ),
        text_config=dict(
            vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        ),
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=80,
        num_queries=queries,
        num_feature_levels=levels,
    )
    return Config(family, **{**values, **changes})


SETTINGS = ImageSettings(size=(("longest_edge", 128), ("shortest_edge", 96)))


@functools.cache
def model(family: str = "grounding-dino", seed: int = 0, **geometry) -> Model:
    """A random model with a tokenizer, cached for the test session: tests must not change it."""
    return Model.random(config(family, **geometry), seed, tokenizer=tokenizer(), settings=SETTINGS)


def photo(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """An image of smooth random colours -> uint8 [H, W, 3]"""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    waves = sum(np.sin(x * rng.normal(0, 0.2, 3) + y * rng.normal(0, 0.2, 3) + rng.uniform(0, 6, 3)) for _ in range(4))
    return (128 + 30 * waves).clip(0, 255).astype(np.uint8)


def pixels(height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    """Pixels of standard normal noise -> float32 [3, H, W]"""
    return np.random.default_rng(seed).standard_normal((3, height, width), np.float32)


IDS = np.array([101, 200, 203, 1012, 206, 207, 1012, 102])  # a prompt: two phrases of two words

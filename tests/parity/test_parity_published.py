"""minigdino loads checkpoints of the five published geometries as transformers saves them."""

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
def test_checkpoints_saved_by_transformers_load(family, size):
    config = Config.published(family, size)
    shared = family == "grounding-dino"
    with tempfile.TemporaryDirectory() as directory:
        values = config.to_dict() | {"decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared}
        Path(directory, "config.json").write_text(json.dumps(values))
        reference = AutoModelForZeroShotObjectDetection.from_config(AutoConfig.from_pretrained(directory))
        reference.save_pretrained(directory)
        model = minigdino.load(directory)
        assert model.config == config
        layer = reference.model.decoder.layers[5]
        np.testing.assert_array_equal(model.weights["decoder"]["layers"][5]["fc1"]["weight"], layer.fc1.weight.detach())
        heads = [head["layers"][0]["weight"] for head in model.weights["bbox_embed"]]
        for weight, head in zip(heads, reference.bbox_embed):
            np.testing.assert_array_equal(weight, head.layers[0].weight.detach())

"""Export transformers' model of a checkpoint as an ONNX graph, for one image size and one arrangement of phrases.

    python -m benchmarks.export CHECKPOINT INPUTS sdpa|eager GRAPH

The function that finds the phrases uses `isin` and `cummax`, which cannot be exported. Its result depends only on the
prompt, so the graph holds it as a constant. The token ids remain an input. If they were constant too, the text backbone
would be computed when the graph is loaded, and its time would not be measured.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from .reference import RESULTS, Reference

INPUTS = ("pixels", "ids")
FINDS_PHRASES = "generate_masks_with_special_tokens_and_transfer_map"


def linspace(start, end, steps, dtype, device):
    """torch.linspace as a constant. The exported operation would lose its dtype, and all positions would be float64."""
    return torch.from_numpy(np.linspace(float(start), float(end), int(steps))).to(device, dtype)


def export(directory, pixels, ids, attention: str, path: Path) -> None:
    """Write the graph.

    Args:
        directory: checkpoint.
        pixels: preprocessed image [3, H, W], float32.
        ids: token ids [T].
        attention: attention implementation of the image backbone, "sdpa" or "eager".
        path: file to write.
    """
    model = Reference(directory, attention)
    inputs = torch.from_numpy(pixels)[None], torch.from_numpy(ids)[None]
    modeling = sys.modules[type(model.network).__module__]
    phrases = getattr(modeling, FINDS_PHRASES)(inputs[1], special_tokens=model.network.model.special_tokens)
    unfinished = path.with_suffix(".new")
    with (mock.patch.object(modeling, FINDS_PHRASES, return_value=phrases),
          mock.patch.object(torch, "linspace", linspace), warnings.catch_warnings()):
        warnings.simplefilter("ignore")  # the tracer warns of sizes that become constants, which is intended
        torch.onnx.export(model, inputs, unfinished, input_names=INPUTS, output_names=RESULTS, opset_version=17,
                          dynamo=False)
    unfinished.rename(path)  # so an existing graph is always complete


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint")
    options.add_argument("inputs")
    options.add_argument("attention", choices=("sdpa", "eager"))
    options.add_argument("graph", type=Path)
    options = options.parse_args()
    given = np.load(options.inputs)
    export(options.checkpoint, given["pixels"], given["ids"], options.attention, options.graph)

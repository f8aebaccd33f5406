"""The one function that evaluation needs of a detector: predict(image, phrases) -> boxes [Q, 4], scores [Q, P].

image is [H, W, 3] uint8, boxes are xyxy in its pixels. Each maker imports its own library, so neither needs the other.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.vocabulary import phrase_of_token, tokenizer

Predict = Callable[[np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


def read(logits: np.ndarray, boxes: np.ndarray, ids: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network's logits [Q, T] and boxes [Q, 4] (cxcywh in 0..1) -> boxes in pixels and phrase scores [Q, P].

    A phrase's score is the highest probability among its own tokens.
    """
    centre, size = np.split(boxes, 2, axis=1)
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * np.tile(image.shape[1::-1], 2)
    owner = phrase_of_token(ids)
    best = np.stack([logits[:, owner == i].max(axis=1) for i in range(owner.max() + 1)], axis=1)
    return corners, 1 / (1 + np.exp(-best))


def with_network(network, processor) -> Predict:
    """A transformers network and image processor in this process."""
    import torch

    words = tokenizer()

    @torch.inference_mode()
    def predict(image: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(words.encode(" ".join(f"{p}." for p in phrases)).ids)
        pixels = processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        outputs = network(pixel_values=pixels, input_ids=torch.from_numpy(ids)[None])
        return read(outputs.logits[0, :, : len(ids)].numpy(), outputs.pred_boxes[0].numpy(), ids, image)

    return predict


def with_transformers(folder: Path) -> Predict:
    """The folder as transformers reads it."""
    from transformers import GroundingDinoImageProcessorPil, MMGroundingDinoForObjectDetection

    network = MMGroundingDinoForObjectDetection.from_pretrained(folder).eval()
    return with_network(network, GroundingDinoImageProcessorPil.from_pretrained(folder))


def with_minigdino(folder: Path) -> Predict:
    """The folder as this package reads it."""
    import minigdino

    model = minigdino.load(folder)

    def predict(image: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = model.tokenize(phrases).ids
        output = model.forward(model.preprocess(image), ids)
        return read(output.logits, output.boxes, np.asarray(ids), image)

    return predict


BACKENDS = {"transformers": with_transformers, "minigdino": with_minigdino}

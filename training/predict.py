"""All queries of a detector: predict(image, phrases) -> boxes [Q, 4], scores [Q, P].

The image is [H, W, 3] uint8; boxes are xyxy in its pixels. Each backend imports only its own library.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.vocabulary import phrase_of_token, tokenizer

Predict = Callable[[np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


def decode(logits: np.ndarray, boxes: np.ndarray, ids: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert the outputs of a network to boxes in pixels and phrase scores.

    The score of a phrase is the highest probability among its own tokens.

    Args:
        logits: [Q, T].
        boxes: [Q, 4], cxcywh in 0..1.
        ids: token ids [T].
        image: [H, W, 3].

    Returns:
        boxes [Q, 4], xyxy in pixels, and scores [Q, P].
    """
    centre, size = np.split(boxes, 2, axis=1)
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * np.tile(image.shape[1::-1], 2)
    phrase_index = phrase_of_token(ids)
    best = np.stack([logits[:, phrase_index == i].max(axis=1) for i in range(phrase_index.max() + 1)], axis=1)
    return corners, 1 / (1 + np.exp(-best))


def with_network(network, processor) -> Predict:
    """Predict with a network and an image processor of transformers."""
    import torch

    words = tokenizer()

    @torch.inference_mode()
    def predict(image: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(words.encode(" ".join(f"{p}." for p in phrases)).ids)
        pixels = processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        outputs = network(pixel_values=pixels, input_ids=torch.from_numpy(ids)[None])
        return decode(outputs.logits[0, :, : len(ids)].numpy(), outputs.pred_boxes[0].numpy(), ids, image)

    return predict


def with_minigdino(folder: Path) -> Predict:
    """Load a checkpoint folder with minigdino."""
    import minigdino

    model = minigdino.load(folder)

    def predict(image: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = model.tokenize(phrases).ids
        output = model.forward(model.preprocess(image), ids)
        return decode(output.logits, output.boxes, np.asarray(ids), image)

    return predict


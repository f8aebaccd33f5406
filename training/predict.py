"""One function that evaluation needs of a detector: predict(image, phrases) -> boxes [Q, 4], scores [Q, P]."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import GroundingDinoImageProcessorPil, MMGroundingDinoForObjectDetection

from training.batches import phrase_of_token
from training.model import EDGES
from training.vocabulary import tokenizer

Predict = Callable[[np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


def phrase_scores(probability: np.ndarray, ids: np.ndarray, phrases: int) -> np.ndarray:
    """The highest probability [Q, T] among each phrase's own tokens -> [Q, P]"""
    owner = phrase_of_token(ids)
    return np.stack([probability[:, owner == i].max(axis=1) for i in range(phrases)], axis=1)


def with_network(network: MMGroundingDinoForObjectDetection) -> Predict:
    """transformers in this process."""
    processor, words = GroundingDinoImageProcessorPil(size=EDGES), tokenizer()

    @torch.inference_mode()
    def predict(image: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(words.encode(" ".join(f"{p}." for p in phrases)).ids)
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        outputs = network(pixel_values=pixels, input_ids=torch.from_numpy(ids)[None])
        probability = outputs.logits[0, :, : len(ids)].sigmoid().numpy()
        centre, size = np.split(outputs.pred_boxes[0].numpy(), 2, axis=1)
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        return boxes * np.tile(image.shape[1::-1], 2), phrase_scores(probability, ids, len(phrases))

    return predict


def with_transformers(folder: Path) -> Predict:
    """The folder as transformers loads it, computed in float32."""
    return with_network(MMGroundingDinoForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval())

"""Training batches. Batch n depends only on n and the seed, so resuming a run does not change it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from training.model import MEAN, STD
from training.prompts import Prompt, random_prompt
from training.vocabulary import SPECIAL, phrase_of_token, tokenizer
from training.world import Scene, draw_scene

# (height, width). A batch has one size, so no image is padded. As for resized photographs, some sizes are not multiples
# of the patch size.
SIZES = ((128, 128), (128, 128), (128, 170), (170, 128), (128, 149))


@dataclass
class Batch:
    """B images of one size, one prompt of up to T tokens per image, and the N targets of each image."""

    pixels: torch.Tensor  # [B, 3, H, W] normalised
    ids: torch.Tensor  # [B, T]
    mask: torch.Tensor  # [B, T] 1 for a token, 0 for padding
    boxes: list[torch.Tensor]  # [N, 4] cxcywh in 0..1
    tokens: list[torch.Tensor]  # [N, T] 1.0 for the tokens of every phrase that matches the object


def normalise(image: np.ndarray) -> torch.Tensor:
    """Normalise an image: [H, W, 3] uint8 -> [3, H, W] float32."""
    return torch.from_numpy(((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))


def targets(scene: Scene, prompt: Prompt, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the targets of a prompt in a scene.

    An object that matches several phrases ("star", "red thing") is one target with the tokens of all of them. One query
    can then detect it for every phrase.

    Args:
        scene: image and objects.
        prompt: phrases and their meanings.
        ids: token ids [T] of the prompt, with padding.

    Returns:
        boxes [N, 4], cxcywh in 0..1, and tokens [N, T].
    """
    phrase_index = phrase_of_token(ids)
    height, width = scene.image.shape[:2]
    boxes, tokens = [], []
    for thing in scene.things:
        fitting = [i for i, meaning in enumerate(prompt.meanings) if meaning and meaning.fits(thing)]
        if fitting:
            x0, y0, x1, y1 = np.array(thing.box) / (width, height, width, height)
            boxes.append([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            tokens.append(np.isin(phrase_index, fitting))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.from_numpy(np.array(tokens, np.float32).reshape(-1, len(ids))),
    )


def collate(scenes: list[Scene], prompts: list[Prompt]) -> Batch:
    """Stack scenes and prompts to a batch; prompts are padded to the longest."""
    encoded = [e.ids for e in tokenizer().encode_batch([p.text for p in prompts])]
    ids = np.full((len(encoded), max(map(len, encoded))), SPECIAL["[PAD]"])
    for row, one in zip(ids, encoded, strict=True):
        row[: len(one)] = one
    per_image = [targets(s, p, row) for s, p, row in zip(scenes, prompts, ids, strict=True)]
    return Batch(
        torch.stack([normalise(s.image) for s in scenes]),
        torch.from_numpy(ids),
        torch.from_numpy((ids != SPECIAL["[PAD]"]).astype(np.int64)),
        [boxes for boxes, _ in per_image],
        [tokens for _, tokens in per_image],
    )


class Batches(Dataset):
    """Dataset of batches; item n is the batch of step n.

    Args:
        seed: random seed.
        steps: number of batches.
        size: images per batch.
        absent: fraction of prompts that name only absent objects.
    """

    def __init__(self, seed: int, steps: int, size: int, absent: float = 0.08):
        self.seed, self.steps, self.size, self.absent = seed, steps, size, absent

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        size = SIZES[rng.integers(len(SIZES))]
        scenes = [draw_scene(rng, size=size) for _ in range(self.size)]
        prompts = [random_prompt(s.things, rng, absent=rng.random() < self.absent, unknown=0.04) for s in scenes]
        return collate(scenes, prompts)

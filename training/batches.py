"""Training batches. Batch number n of a seed is always the same, so a resumed run goes on as if never stopped."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from training.model import MEAN, STD
from training.prompts import Prompt, ask
from training.vocabulary import SPECIAL, phrase_of_token, tokenizer
from training.world import Scene, draw_scene

# height, width; one for a whole batch, so nothing is padded. Not all are whole patches, as resized photographs are not
SIZES = ((128, 128), (128, 128), (128, 170), (170, 128), (128, 149))


@dataclass
class Batch:
    """B pictures of one size with a prompt each, T tokens at most; what should be found, a tensor for each picture."""

    pixels: torch.Tensor  # [B, 3, H, W] normalised
    ids: torch.Tensor  # [B, T]
    mask: torch.Tensor  # [B, T] 1 is a token, 0 padding
    boxes: list[torch.Tensor]  # [N, 4] cxcywh in 0..1
    tokens: list[torch.Tensor]  # [N, T] 1.0 at the tokens of every phrase that fits the thing


def normalise(image: np.ndarray) -> torch.Tensor:
    """[H, W, 3] uint8 -> [3, H, W] float32"""
    return torch.from_numpy(((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))


def targets(scene: Scene, prompt: Prompt, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What the prompt finds in the scene: boxes [N, 4] and tokens [N, T].

    A thing that several phrases fit ("star", "red thing") is one target whose tokens are theirs together: each phrase
    should find it, and one query can.
    """
    owner = phrase_of_token(ids)
    height, width = scene.image.shape[:2]
    boxes, tokens = [], []
    for thing in scene.things:
        fitting = [i for i, meaning in enumerate(prompt.meanings) if meaning and meaning.fits(thing)]
        if fitting:
            x0, y0, x1, y1 = np.array(thing.box) / (width, height, width, height)
            boxes.append([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            tokens.append(np.isin(owner, fitting))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.from_numpy(np.array(tokens, np.float32).reshape(-1, len(ids))),
    )


def collate(scenes: list[Scene], prompts: list[Prompt]) -> Batch:
    """Pad the prompts to the longest and stack."""
    encoded = [e.ids for e in tokenizer().encode_batch([p.text for p in prompts])]
    ids = np.full((len(encoded), max(map(len, encoded))), SPECIAL["[PAD]"])
    for row, one in zip(ids, encoded, strict=True):
        row[: len(one)] = one
    wanted = [targets(s, p, row) for s, p, row in zip(scenes, prompts, ids, strict=True)]
    return Batch(
        torch.stack([normalise(s.image) for s in scenes]),
        torch.from_numpy(ids),
        torch.from_numpy((ids != SPECIAL["[PAD]"]).astype(np.int64)),
        [boxes for boxes, _ in wanted],
        [tokens for _, tokens in wanted],
    )


class Batches(Dataset):
    """Item n is the batch of step n."""

    def __init__(self, seed: int, steps: int, size: int, absent: float = 0.08):
        """absent: the share of prompts of which nothing is there"""
        self.seed, self.steps, self.size, self.absent = seed, steps, size, absent

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        size = SIZES[rng.integers(len(SIZES))]
        scenes = [draw_scene(rng, size=size) for _ in range(self.size)]
        prompts = [ask(s.things, rng, absent=rng.random() < self.absent, strangers=0.04) for s in scenes]
        return collate(scenes, prompts)

"""First training stage: the image backbone learns to classify the colour and the shape at a given location.

The published detectors start from a Swin trained on ImageNet. This one starts from random weights. It
learns six times slower per image inside the detector than in this stage.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from training.batches import normalise
from training.outlines import SHAPES
from training.world import COLOURS, draw_scene


@dataclass
class Places:
    """B images with the centres and classes of up to N = 6 objects each; the classes of a missing object are -1."""

    pixels: torch.Tensor  # [B, 3, H, W] normalised
    centres: torch.Tensor  # [B, N, 2] xy in -1..1
    colours: torch.Tensor  # [B, N]
    shapes: torch.Tensor  # [B, N]


class Scenes(Dataset):
    """Dataset of crowded scenes without held-out pairs; item n is the batch of step n.

    Args:
        seed: random seed.
        steps: number of batches.
        size: images per batch.
    """

    def __init__(self, seed: int, steps: int, size: int):
        self.seed, self.steps, self.size = seed, steps, size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Places:
        rng = np.random.default_rng([self.seed, step, 1])  # differs from [seed, step] of the detector's batches
        scenes = [draw_scene(rng, count=6) for _ in range(self.size)]
        centres = np.zeros((self.size, 6, 2), np.float32)
        colours, shapes = (np.full((self.size, 6), -1) for _ in range(2))
        for i, scene in enumerate(scenes):
            height, width = scene.image.shape[:2]
            for j, thing in enumerate(scene.things):
                x0, y0, x1, y1 = thing.box
                centres[i, j] = (x0 + x1) / width - 1, (y0 + y1) / height - 1
                colours[i, j], shapes[i, j] = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
        pixels = torch.stack([normalise(s.image) for s in scenes])
        return Places(pixels, *map(torch.from_numpy, (centres, colours, shapes)))


class Namer(nn.Module):
    """A backbone with two linear heads on its features at one location. The heads are discarded after training.

    Args:
        backbone: the image backbone.
        channels: sum of the channels of its feature maps.
    """

    def __init__(self, backbone: nn.Module, channels: int):
        super().__init__()
        self.backbone = backbone
        self.colour = nn.Linear(channels, len(COLOURS))
        self.shape = nn.Linear(channels, len(SHAPES))

    def forward(self, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the logits of colours [B, N, 10] and shapes [B, N, 8]."""
        levels = self.backbone(places.pixels).feature_maps
        samples = [F.grid_sample(level, places.centres[:, None], align_corners=False)[:, :, 0] for level in levels]
        features = torch.cat(samples, dim=1).transpose(1, 2)
        return self.colour(features), self.shape(features)


def naming_loss(namer: Namer, places: Places) -> torch.Tensor:
    """Cross-entropy of colours and shapes, without missing objects."""
    colour, shape = namer(places)
    return sum(
        F.cross_entropy(logits.flatten(0, 1), names.flatten(), ignore_index=-1)
        for logits, names in ((colour, places.colours), (shape, places.shapes))
    )


@torch.no_grad()
def accuracy(namer: Namer, places: Places) -> str:
    """Format the accuracy of colours and of shapes."""
    shares = []
    for logits, names in zip(namer(places), (places.colours, places.shapes), strict=True):
        present = names >= 0
        shares.append((logits.argmax(-1) == names)[present].float().mean())
    return "colours {:.2f} shapes {:.2f}".format(*shares)

"""One pass of `detect`, with the steps that the figures show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from PIL.Image import Image

from ...detector import ImageLike, Model
from ...image import open_image
from ...prompt import Prompt
from ...runtime.kernels import use
from ..tracing import trace


@dataclass(frozen=True)
class Pass:
    """What is known of a pass: what went in, and the steps by their trace paths."""

    model: Model
    name: str  # of the image's file
    image: Image
    prompt: Prompt
    tokens: list[str]  # [T] as the vocabulary spells them
    steps: dict[str, np.ndarray]

    def matching(self, pattern: str) -> list[str]:
        """Paths of steps, in the order of the pass."""
        return [path for path in self.steps if fnmatchcase(path, pattern)]

    def all(self, pattern: str) -> list[np.ndarray]:
        """Arrays of the steps whose paths match."""
        return [self.steps[path] for path in self.matching(pattern)]

    def one(self, pattern: str) -> np.ndarray:
        """The first of them."""
        return self.all(pattern)[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each level of the pyramid."""
        return [m.shape[:2] for m in self.all("forward.0/neck.0/return.*")]

    def levels(self, x: np.ndarray) -> list[np.ndarray]:
        """Cut the image tokens into their maps: x [S, ...] -> [H, W, ...] each"""
        ends = np.cumsum([H * W for H, W in self.sizes])[:-1]
        return [part.reshape(H, W, *x.shape[1:]) for part, (H, W) in zip(np.split(x, ends), self.sizes)]


def observe(model: Model, image: ImageLike, text: str | Sequence[str], patterns: Sequence[str]) -> Pass:
    """Run `detect` on the NumPy formulas, inside which every step can be seen. Raises what `Model.detect` raises.

    The model forgets what it keeps of earlier images and prompts: a backbone that is not run has no steps.
    """
    prompt = model.tokenize(text)
    opened = open_image(image)
    model.clear()
    with use("reference"), trace(*patterns) as steps:
        model.detect(opened, text)
    model.clear()
    name = os.path.basename(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
    tokens = [model.tokenizer.backend.id_to_token(int(i)) for i in prompt.ids]
    return Pass(model, name, opened, prompt, tokens, steps)

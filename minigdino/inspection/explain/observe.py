"""One forward pass of `detect`, with the recorded steps that the figures show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from PIL.Image import Image

from ...detector import ImageLike, Model
from ...extras import require
from ...image import open_image
from ...network.losses import Targets
from ...prompt import Prompt
from ...runtime.kernels import use
from ...targets import image_targets
from ..tracing import trace


@dataclass(frozen=True)
class ForwardPass:
    """Inputs and recorded steps of a forward pass."""

    model: Model
    name: str  # file name of the image
    image: Image
    prompt: Prompt
    tokens: list[str]  # [T] as the vocabulary spells them
    steps: dict[str, np.ndarray]  # arrays by trace path
    targets: Targets | None = None

    def matching(self, pattern: str) -> list[str]:
        """Return the recorded paths that match a pattern, in the order of the forward pass."""
        return [path for path in self.steps if fnmatchcase(path, pattern)]

    def all(self, pattern: str) -> list[np.ndarray]:
        """Return the arrays of the steps whose paths match a pattern."""
        return [self.steps[path] for path in self.matching(pattern)]

    def one(self, pattern: str) -> np.ndarray:
        """Return the array of the first step whose path matches a pattern."""
        return self.all(pattern)[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each feature level."""
        return [m.shape[:2] for m in self.all("forward.0/neck.0/return.*")]

    def levels(self, x: np.ndarray) -> list[np.ndarray]:
        """Split image tokens into the maps of the levels.

        Args:
            x [S, ...]: one entry per image token.

        Returns:
            A list of [H, W, ...], one per level.
        """
        ends = np.cumsum([H * W for H, W in self.sizes])[:-1]
        return [part.reshape(H, W, *x.shape[1:]) for part, (H, W) in zip(np.split(x, ends), self.sizes)]


def observe(model: Model, image: ImageLike, text: str | Sequence[str], patterns: Sequence[str],
            annotated: tuple[list, list] | None = None) -> ForwardPass:
    """Run `Model.detect` with the NumPy references, and record steps.

    The caches of the model are cleared before and after, because a backbone with cached features does not run.

    Args:
        model: the model.
        image: as for `Model.detect`.
        text: as for `Model.detect`.
        patterns: patterns of the trace paths to record.
        annotated: boxes and labels of the image, as for `Model.loss`.

    Returns:
        The inputs and the recorded steps.

    Raises:
        Error: as `Model.detect` and, for annotated boxes, `Model.loss` raise.
    """
    prompt = model.tokenize(text)
    assert model.tokenizer is not None  # it made the prompt
    opened, targets = open_image(image), None
    if annotated is not None:
        require("scipy", "matching queries with targets")
        targets = image_targets(*annotated, prompt, opened.size, text)
    model.clear()
    with use("reference"), trace(*patterns) as steps:
        model.detect(opened, text)
    model.clear()
    name = os.path.basename(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
    tokens = [model.tokenizer.backend.id_to_token(int(i)) for i in prompt.ids]
    return ForwardPass(model, name, opened, prompt, tokens, steps, targets)

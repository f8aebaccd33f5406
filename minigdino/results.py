"""What was found: boxes in the original image's pixels, scores, and the caller's own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .boxes import cxcywh_to_xyxy, sigmoid
from .drawing import annotate
from .image import open_image
from .prompt import Prompt


@dataclass(frozen=True)
class Detection:
    """One box."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the original image, not clipped
    score: float
    label: str  # one of the caller's phrases
    label_id: int  # its place in the prompt
    phrase: str  # the tokens above the text threshold, as transformers spells them

    def to_dict(self) -> dict:
        """{"box": [left, top, right, bottom], "score", "label", "label_id", "phrase"}"""
        return {**self.__dict__, "box": list(self.box)}


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image, best first. An int picks one Detection; a slice, a mask or an array of ints picks several."""

    boxes: np.ndarray  # [N, 4] float32: left, top, right, bottom in pixels of the original image, not clipped
    scores: np.ndarray  # [N] float32
    labels: list[str]  # always one of the caller's phrases
    label_ids: np.ndarray  # [N] int64: the phrase's place in the prompt
    phrases: list[str]  # tokens above the text threshold, as transformers spells them; may be empty or merged
    image_size: tuple[int, int]  # (width, height) of the original image

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)):
            box, score, label_id = tuple(self.boxes[key].tolist()), float(self.scores[key]), int(self.label_ids[key])
            return Detection(box, score, self.labels[key], label_id, self.phrases[key])
        kept = np.arange(len(self))[key]
        return Detections(self.boxes[kept], self.scores[kept], [self.labels[i] for i in kept], self.label_ids[kept],
                          [self.phrases[i] for i in kept], self.image_size)

    def __repr__(self) -> str:
        shown = ", ".join(f"{d.label} {d.score:.2f}" for d in self[:5])
        return f"Detections({len(self)}: {shown}{', ...' if len(self) > 5 else ''})"

    def to_dict(self) -> dict:
        """{"width", "height", "detections": [Detection.to_dict(), ...]}, plain Python throughout."""
        width, height = self.image_size
        return {"width": width, "height": height, "detections": [d.to_dict() for d in self]}

    def to_json(self, **options) -> str:
        """`to_dict` as JSON; options are those of `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def plot(self, image) -> Image.Image:
        """A copy of the image (path, PIL or array) with boxes, labels and scores drawn on it."""
        return annotate(open_image(image), self.boxes, self.labels, self.scores, self.label_ids)


def post_process(logits, boxes, prompt: Prompt, decode, image_size: tuple[int, int], threshold: float,
                 text_threshold: float) -> Detections:
    """Keep the boxes whose best token passes the threshold, and say what they are.

    A box's score is its best probability over all tokens. Its label is the phrase whose own tokens hold the highest
    probability, the earlier one of two equals.
    logits [Q, T], boxes [Q, 4] as fractions; decode turns token ids into text; image_size (width, height)
    """
    probabilities = sigmoid(logits)  # [Q, T]
    scores = probabilities.max(axis=1)  # [Q]
    order = np.argsort(-scores, kind="stable")
    kept = order[scores[order] > threshold]
    per_phrase = np.stack([probabilities[:, start:stop].max(axis=1) for start, stop in prompt.spans])
    label_ids = per_phrase[:, kept].argmax(axis=0)  # [N]
    return Detections(
        boxes=cxcywh_to_xyxy(boxes[kept]) * np.float32([*image_size, *image_size]),
        scores=scores[kept],
        labels=[prompt.phrases[i] for i in label_ids],
        label_ids=label_ids,
        phrases=[decode(prompt.ids[tokens]) for tokens in _said(probabilities[kept], text_threshold)],
        image_size=image_size)


def _said(probabilities, text_threshold):
    """Tokens that pass, for each box; transformers drops the first of a prompt and the last of 256 columns."""
    columns = probabilities[:, 1:255] > text_threshold
    return [np.flatnonzero(row) + 1 for row in columns]

"""What was found: boxes in the original image's pixels, scores, and the caller's own words."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from PIL import Image

from .drawing import annotate
from .errors import ArgumentError, ImageError
from .image import open_image
from .network.boxes import cxcywh_to_xyxy, sigmoid
from .prompt import Prompt

COLUMNS = ("left", "top", "right", "bottom", "score", "label", "label_id", "phrase")


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
    image: Any = field(default=None, repr=False)  # what the caller gave, not a copy; for pictures

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence | np.ndarray) -> Detections: ...

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)):
            box, score, label_id = tuple(self.boxes[key].tolist()), float(self.scores[key]), int(self.label_ids[key])
            return Detection(box, score, self.labels[key], label_id, self.phrases[key])
        kept = np.arange(len(self))[key]
        return Detections(self.boxes[kept], self.scores[kept], [self.labels[i] for i in kept], self.label_ids[kept],
                          [self.phrases[i] for i in kept], self.image_size, self.image)

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

    def to_coco(self, image_id: int = 0, categories: Mapping[str, int] | None = None) -> list[dict]:
        """COCO results: [{"image_id", "category_id", "bbox": [left, top, width, height], "score"}, ...]

        categories maps labels to ids; without it an id is the phrase's place in the prompt.
        Raises ArgumentError naming a label that categories lacks.
        """
        if categories is not None and (strange := [label for label in self.labels if label not in categories]):
            raise ArgumentError(f"categories has no id for {strange[0]!r}; it knows {', '.join(map(repr, categories))}")
        rows = []
        for d in self:
            left, top, right, bottom = d.box
            category = d.label_id if categories is None else categories[d.label]
            rows.append({"image_id": image_id, "category_id": category, "bbox": [left, top, right - left, bottom - top],
                         "score": d.score})
        return rows

    def to_csv(self) -> str:
        """A header line and one line a box: left, top, right, bottom, score, label, label_id, phrase"""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*d.box, d.score, d.label, d.label_id, d.phrase] for d in self)
        return text.getvalue()

    def to_supervision(self):
        """A `supervision.Detections`: xyxy, confidence, class_id, and data["class_name"]. Needs that package."""
        try:
            import supervision
        except ImportError:
            raise ArgumentError("to_supervision() needs the package supervision: pip install supervision") from None
        return supervision.Detections(xyxy=self.boxes.reshape(-1, 4), confidence=self.scores, class_id=self.label_ids,
                                      data={"class_name": np.array(self.labels, dtype=str)})

    def plot(self, image=None) -> Image.Image:
        """A copy of the image (path, PIL or array; by default the one searched) with boxes, labels and scores on it."""
        image = self.image if image is None else image
        if image is None:
            raise ArgumentError("these detections do not know their image; call plot(image)")
        return annotate(open_image(image), self.boxes, self.labels, self.scores, self.label_ids)

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, if the image is still there, and a table."""
        rows = "".join(f"<tr><td>{html.escape(d.label)}</td><td>{d.score:.3f}</td>"
                       f"<td>{', '.join(f'{v:.0f}' for v in d.box)}</td></tr>" for d in self)
        table = f"<table><tr><th>label</th><th>score</th><th>left, top, right, bottom</th></tr>{rows}</table>"
        try:
            picture, data = self.plot(), io.BytesIO()
        except (ArgumentError, ImageError):  # no image, or its file has gone
            return table
        picture.thumbnail((800, 800))
        picture.save(data, "JPEG", quality=88)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">{table}'


def post_process(logits, boxes, prompt: Prompt, decode, image_size: tuple[int, int], threshold: float,
                 text_threshold: float, image=None) -> Detections:
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
        image_size=image_size,
        image=image)


def _said(probabilities, text_threshold):
    """Tokens that pass, for each box; transformers drops the first of a prompt and the last of 256 columns."""
    columns = probabilities[:, 1:255] > text_threshold
    return [np.flatnonzero(row) + 1 for row in columns]

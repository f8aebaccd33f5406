"""Detections: boxes in pixels of the original image, scores, and labels in the caller's wording."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, overload

import numpy as np
from PIL import Image

from .drawing import annotate
from .errors import ArgumentError, ImageError, brief
from .image import open_image
from .network.boxes import cxcywh_to_xyxy, sigmoid
from .prompt import Prompt

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet runs a cell that starts with one of them
COLUMNS = ("left", "top", "right", "bottom", "score", "label", "label_id", "phrase")


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        box: (left, top, right, bottom) in pixels of the original image, not clipped to it.
        score: highest probability of the box over all tokens of the prompt, 0 to 1.
        label: one of the caller's phrases.
        label_id: index of that phrase in the prompt, from 0.
        phrase: text of the tokens above the text threshold, with the spelling of transformers. It may be empty.
    """

    box: tuple[float, float, float, float]
    score: float
    label: str
    label_id: int
    phrase: str

    def to_dict(self) -> dict:
        """Return the fields as a dict of plain Python values; "box" is a list [left, top, right, bottom]."""
        return {**self.__dict__, "box": list(self.box)}


@dataclass(frozen=True, eq=False)
class Detections:
    """The N detections of one image, by descending score.

    It supports `len`, iteration and indexing. An int index gives one `Detection`. A slice, a boolean mask, or an array
    of ints gives `Detections`.

    Attributes:
        boxes: [N, 4] float32 (left, top, right, bottom) in pixels of the original image, not clipped to it.
        scores: [N] float32, highest probability of each box over all tokens of the prompt.
        labels: N strings, each one of the caller's phrases.
        label_ids: [N] int64, index of each label's phrase in the prompt, from 0.
        phrases: N strings, the tokens above the text threshold, with the spelling of transformers. A string may be
            empty, or mix words of several phrases.
        image_size: (width, height) of the original image, in pixels.
        image: the image as passed to `detect`, not a copy; None if unknown. `plot` draws on it.
    """

    boxes: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    labels: list[str]
    label_ids: np.ndarray  # [N]
    phrases: list[str]
    image_size: tuple[int, int]
    image: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence | np.ndarray) -> Detections: ...

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            box, score, label_id = tuple(self.boxes[key].tolist()), float(self.scores[key]), int(self.label_ids[key])
            return Detection(box, score, self.labels[key], label_id, self.phrases[key])
        kept = np.arange(len(self))[key]  # a bool adds a dimension
        if kept.ndim != 1:
            raise ArgumentError("detections must be indexed with an int, a slice, a boolean mask [N] or an array of "
                                f"ints [M]; got {brief(key)}")
        return Detections(self.boxes[kept], self.scores[kept], [self.labels[i] for i in kept], self.label_ids[kept],
                          [self.phrases[i] for i in kept], self.image_size, self.image)

    def __repr__(self) -> str:
        shown = ", ".join(f"{d.label} {d.score:.2f}" for d in self[:5])
        return f"Detections({len(self)}: {shown}{', ...' if len(self) > 5 else ''})"

    def to_dict(self) -> dict:
        """Return all detections as plain Python values.

        Returns:
            {"width", "height", "detections": [{"box", "score", "label", "label_id", "phrase"}, ...]}
        """
        width, height = self.image_size
        return {"width": width, "height": height, "detections": [d.to_dict() for d in self]}

    def to_json(self, **options: Any) -> str:
        """Return `to_dict` as a JSON string.

        Args:
            options: keyword arguments of `json.dumps`, such as indent.

        Returns:
            The JSON text.

        Raises:
            ArgumentError: if a box or a score is not finite, which JSON cannot represent. With the option
                `allow_nan=True`, it is written as NaN or Infinity.
        """
        if not options.setdefault("allow_nan", False) and not (np.isfinite(self.boxes).all()
                                                               and np.isfinite(self.scores).all()):
            raise ArgumentError("expected finite boxes and scores, the only ones that JSON can represent; got NaN or "
                                "infinity. Remove these detections, or pass allow_nan=True")
        return json.dumps(self.to_dict(), **options)

    def to_coco(self, image_id: int = 0, categories: Mapping[str, int] | None = None) -> list[dict]:
        """Return the detections in the COCO results format.

        Args:
            image_id: id of the image.
            categories: {label: category id}. Without it, the category id is the index of the phrase in the prompt.

        Returns:
            [{"image_id", "category_id", "bbox": [left, top, width, height], "score"}, ...], boxes in pixels.

        Raises:
            ArgumentError: if `categories` lacks a label.
        """
        if categories is not None and (missing := [label for label in self.labels if label not in categories]):
            known = ", ".join(map(brief, itertools.islice(categories, 10)))
            only = f"only for {known}{', ...' if len(categories) > 10 else ''}" if known else "because it is empty"
            raise ArgumentError(f"categories must have an id for each label; it has no id for {brief(missing[0])}, "
                                f"{only}. Add it")
        rows = []
        for d in self:
            left, top, right, bottom = d.box
            category = d.label_id if categories is None else categories[d.label]
            rows.append({"image_id": _plain(image_id), "category_id": _plain(category),
                         "bbox": [left, top, right - left, bottom - top], "score": d.score})
        return rows

    def to_csv(self) -> str:
        """Return the detections as CSV text.

        A label or phrase that a spreadsheet would run as a formula gets an apostrophe in front: one that starts with
        "=", "+", "-", "@", a tab or a line break. "label_id" identifies the label without that change.

        Returns:
            A header line, then one line per box: left, top, right, bottom, score, label, label_id, phrase.
        """
        lines: list[str] = []
        writer = csv.writer(SimpleNamespace(write=lines.append))  # with line ends "\r\n", so that "\r" is quoted
        writer.writerow(COLUMNS)
        writer.writerows([*d.box, d.score, _cell(d.label), d.label_id, _cell(d.phrase)] for d in self)
        return "".join(line.removesuffix("\r\n") + "\n" for line in lines)

    def to_supervision(self):
        """Convert to a `supervision.Detections`, with xyxy, confidence, class_id and data["class_name"].

        Raises:
            ArgumentError: if the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ArgumentError("to_supervision() needs the package supervision, which is not installed. Run: pip "
                                "install supervision") from None
        return supervision.Detections(xyxy=self.boxes.reshape(-1, 4), confidence=self.scores, class_id=self.label_ids,
                                      data={"class_name": np.array(self.labels, dtype=str)})

    def plot(self, image: Any = None) -> Image.Image:
        """Draw the boxes with labels and scores on a copy of the image.

        Args:
            image: a path, a PIL image or a uint8 array [H, W, 3]; None for the image that was passed to `detect`.

        Returns:
            An RGB image.

        Raises:
            ArgumentError: if no image is given and none is stored, or if a box has a NaN.
            ImageError: if the image cannot be read, for example because its file was deleted.
        """
        image = self.image if image is None else image
        if image is None:
            raise ArgumentError("plot() needs an image, and these detections store none. Call plot(image)")
        if np.isnan(self.boxes).any():
            raise ArgumentError("plot() expected boxes without NaN; got a box with one. Remove such detections")
        return annotate(open_image(image), self.boxes, self.labels, self.scores, self.label_ids)

    def _repr_html_(self) -> str:
        """Notebook display: the annotated image, if it is still available, and a table."""
        rows = "".join(f"<tr><td>{html.escape(d.label)}</td><td>{d.score:.3f}</td>"
                       f"<td>{', '.join(f'{v:.0f}' for v in d.box)}</td></tr>" for d in self)
        table = f"<table><tr><th>label</th><th>score</th><th>left, top, right, bottom</th></tr>{rows}</table>"
        try:
            picture, data = self.plot(), io.BytesIO()
        except (ArgumentError, ImageError):  # no image is stored, its file was deleted, or a box is NaN
            return table
        picture.thumbnail((800, 800))
        picture.save(data, "JPEG", quality=88)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">{table}'


def _cell(text):
    return f"'{text}" if text.startswith(FORMULA) else text


def _plain(value):
    """A NumPy scalar as a Python number, which the module json can write."""
    return value.item() if isinstance(value, np.generic) else value


def post_process(logits, boxes, prompt: Prompt, decode, image_size: tuple[int, int], threshold: float,
                 text_threshold: float, image=None) -> Detections:
    """Select and label the detections among the network's Q boxes.

    - The score of a box is its highest probability over all tokens. A box is a detection if its score exceeds
      `threshold`.
    - Its label is the phrase whose tokens have the highest probability, the earlier one in a tie. Delimiters count for
      the score, but not for the label.

    Args:
        logits: [Q, T], before the sigmoid.
        boxes: [Q, 4] (cx, cy, w, h) as fractions of the image.
        prompt: the tokenized prompt.
        decode: function that converts token ids to text.
        image_size: (width, height) of the original image, in pixels.
        threshold: score that a detection must exceed.
        text_threshold: probability that a token must exceed to become part of `Detections.phrases`.
        image: stored in the result, for `Detections.plot`.

    Returns:
        The detections, by descending score, then by query index.
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
        phrases=[decode(prompt.ids[tokens]) for tokens in _phrase_tokens(probabilities[kept], text_threshold)],
        image_size=image_size,
        image=image)


def _phrase_tokens(probabilities, text_threshold):
    """Indices of the tokens above the threshold, for each box.

    As in transformers, the first token of the prompt and the last of 256 columns never count.
    """
    columns = probabilities[:, 1:255] > text_threshold
    return [np.flatnonzero(row) + 1 for row in columns]

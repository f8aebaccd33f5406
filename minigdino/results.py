"""Detections: boxes in pixels of the original image, scores, and labels in the caller's wording."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from PIL import Image

from .checkpoints.json_file import status
from .drawing import annotate
from .errors import ArgumentError, ImageError, brief
from .extras import require
from .image import open_image
from .network.boxes import cxcywh_to_xyxy, sigmoid
from .options import check_area, check_count, check_flag, check_fraction, is_number
from .overlap import suppress
from .prompt import Prompt
from .writing import encoded, replace_file

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet runs a cell that starts with one of them
COLUMNS = ("left", "top", "right", "bottom", "score", "label", "label_id", "phrase")


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        box: (left, top, right, bottom) in pixels of the original image, not clipped to it.
        score: highest probability of the box over all tokens of the prompt, 0 to 1. With score="mean", the mean
            probability over the tokens of its label.
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


class Labels(list[str]):
    """A list of N texts. Compared with one text it gives a mask, for `found[found.labels == "a cat"]`.

    `labels == "a cat"` and `labels != "a cat"` are boolean arrays [N]. Compared with a list, it is like any list.
    """

    @overload  # type: ignore[override]
    def __eq__(self, other: str) -> np.ndarray: ...

    @overload
    def __eq__(self, other: object) -> bool: ...

    def __eq__(self, other):
        return np.array([label == other for label in self], bool) if isinstance(other, str) else super().__eq__(other)

    @overload  # type: ignore[override]
    def __ne__(self, other: str) -> np.ndarray: ...

    @overload
    def __ne__(self, other: object) -> bool: ...

    def __ne__(self, other):
        return ~(self == other) if isinstance(other, str) else super().__ne__(other)

    @overload
    def __getitem__(self, key: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, key: slice) -> Labels: ...

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return Labels(found) if isinstance(key, slice) else found

    __hash__ = None  # type: ignore[assignment]  # as for every list


@dataclass(frozen=True, eq=False)
class Detections:
    """The N detections of one image, by descending score.

    It supports `len`, iteration and indexing. An int index gives one `Detection`. A slice, a boolean mask, or an array
    of ints gives `Detections`.

    Attributes:
        boxes: [N, 4] float32 (left, top, right, bottom) in pixels of the original image, not clipped to it.
        scores: [N] float32, highest probability of each box over all tokens of the prompt. With score="mean", the mean
            probability over the tokens of its label.
        labels: N strings, each one of the caller's phrases. `labels == "a cat"` is a mask [N] (see `Labels`).
        label_ids: [N] int64, index of each label's phrase in the prompt, from 0. In a list that was cut into several
            prompts, the index in the whole list.
        phrases: N strings, the tokens above the text threshold, with the spelling of transformers. A string may be
            empty, or mix words of several phrases. A comparison with one str is a mask, too.
        image_size: (width, height) of the original image, in pixels.
        image: the image as passed to `detect`, not a copy; for a file object or a URL, the bytes; None if
            unknown. `plot` draws on it.
    """

    boxes: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    labels: Labels
    label_ids: np.ndarray  # [N]
    phrases: Labels
    image_size: tuple[int, int]
    image: Any = field(default=None, repr=False)

    if TYPE_CHECKING:  # accepts any texts, unlike the one that `dataclass` derives from the fields
        def __init__(self, boxes: np.ndarray, scores: np.ndarray, labels: Iterable[str], label_ids: np.ndarray,
                     phrases: Iterable[str], image_size: tuple[int, int], image: Any = None) -> None: ...

    def __post_init__(self):
        for name in ("labels", "phrases"):
            object.__setattr__(self, name, Labels(getattr(self, name)))

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
        if isinstance(key, str):
            raise ArgumentError(f"detections must be indexed with numbers; got the text {brief(key)}. To select a "
                                f"label, write found[found.labels == {brief(key)}]")
        kept = np.arange(len(self))[key]  # a bool adds a dimension
        if kept.ndim != 1:
            raise ArgumentError("detections must be indexed with an int, a slice, a boolean mask [N] or an array of "
                                f"ints [M]; got {brief(key)}")
        return Detections(self.boxes[kept], self.scores[kept], Labels(self.labels[i] for i in kept),
                          self.label_ids[kept], Labels(self.phrases[i] for i in kept), self.image_size, self.image)

    def __repr__(self) -> str:
        shown = ", ".join(f"{d.label} {d.score:.2f}" for d in self[:5])
        return f"Detections({len(self)}: {shown}{', ...' if len(self) > 5 else ''})"

    def filter(self, labels: str | Iterable[str] | None = None, threshold: float | Mapping[str, float] | None = None,
               max_area: float | None = None) -> Detections:
        """Select detections by label, score and size.

        Args:
            labels: one label or several, as in `labels`; None for all. Labels that do not occur select nothing.
            threshold: score that a detection must exceed; None for all. A dict {label: score} concerns the labels that
                it names.
            max_area: largest fraction of the image that a box may cover, above 0 and at most 1; None for any.

        Returns:
            The selected detections, in the same order.

        Raises:
            ArgumentError: if a label is not a str, a threshold not a number, or `max_area` out of range.
        """
        kept = np.ones(len(self), bool)
        if labels is not None:
            wanted = [labels] if isinstance(labels, str) else _list(labels)
            if not all(isinstance(label, str) for label in wanted):
                raise ArgumentError(f"labels must be a str or several; got {brief(labels)}")
            kept &= np.isin(np.array(self.labels, object), np.array(wanted, object))
        if isinstance(threshold, Mapping):
            for label, value in threshold.items():
                if not isinstance(label, str):
                    raise ArgumentError(f"threshold must have labels as keys; got {brief(label)}")
                kept &= (self.scores > _number(value, f"threshold of {brief(label)}")) | (self.labels != label)
        elif threshold is not None:
            kept &= self.scores > _number(threshold, "threshold")
        if max_area is not None:
            left, top, right, bottom = self.clip().boxes.reshape(-1, 4).T
            kept &= (right - left) * (bottom - top) <= check_area(max_area, "max_area") * math.prod(self.image_size)
        return self[kept]

    def nms(self, iou: float = 0.7, class_agnostic: bool = False) -> Detections:
        """Remove duplicates by non-maximum suppression.

        The model is trained to find an object once. Boxes of several prompts or of tiles can repeat it.

        Args:
            iou: intersection over union, 0 to 1. A detection is removed if its box overlaps that of a kept one with a
                higher score by more than this.
            class_agnostic: whether detections with different labels suppress each other, too.

        Returns:
            The kept detections, in the same order.

        Raises:
            ArgumentError: if `iou` is not a number from 0 to 1, or `class_agnostic` not a bool.
        """
        limit = check_fraction(iou, "iou")
        check_flag(class_agnostic, "class_agnostic")
        return self[suppress(self.boxes, self.scores, limit, None if class_agnostic else self.label_ids)]

    def top(self, n: int) -> Detections:
        """Select the best detections.

        Args:
            n: largest number of detections, 1 or more.

        Returns:
            Those with the highest scores, by descending score. Among equal ones, the earlier come first.

        Raises:
            ArgumentError: if `n` is not an int of 1 or more.
        """
        return self[np.argsort(-self.scores, kind="stable")[: check_count(n, "n")]]

    def clip(self) -> Detections:
        """Return the same detections, with boxes clipped to the image."""
        return replace(self, boxes=np.clip(self.boxes, 0, np.array([*self.image_size, *self.image_size], np.float32)))

    def crops(self, image: Any = None, pad: float = 0) -> list[Image.Image]:
        """Cut the boxes out of the image.

        Args:
            image: as in `plot`.
            pad: margin on each side of a box, as a fraction of its width and height.

        Returns:
            N RGB images: the pixels that a box touches, within the image, and at least one pixel.

        Raises:
            ArgumentError: if no image is given and none is stored, if a box is not finite, or if `pad` is negative.
            ImageError: if the image cannot be read.
        """
        if not isinstance(pad, (int, float, np.integer, np.floating)) or isinstance(pad, bool) or not 0 <= pad < np.inf:
            raise ArgumentError(f"pad must be a number that is not negative; got {brief(pad)}")
        if not np.isfinite(self.boxes).all():
            raise ArgumentError("crops() expected finite boxes; got one with NaN or infinity. Remove such detections")
        picture = open_image(self._image(image, "crops"))
        boxes = self.boxes.astype(np.float64)
        margin = pad * (boxes[:, 2:] - boxes[:, :2])
        size = np.array(picture.size)
        low = np.clip(np.floor(boxes[:, :2] - margin), 0, size - 1).astype(int)
        high = np.clip(np.ceil(boxes[:, 2:] + margin), low + 1, size).astype(int)
        return [picture.crop(tuple(box)) for box in np.concatenate([low, high], axis=1).tolist()]

    def to_dict(self) -> dict[str, Any]:
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
        append: Any = SimpleNamespace(write=lines.append)
        writer = csv.writer(append)  # with line ends "\r\n", so that "\r" is quoted
        writer.writerow(COLUMNS)
        writer.writerows([*d.box, d.score, _cell(d.label), d.label_id, _cell(d.phrase)] for d in self)
        return "".join(line.removesuffix("\r\n") + "\n" for line in lines)

    def to_yolo(self, scores: bool = False) -> str:
        """Return the detections in the text format of YOLO data sets: a line "class cx cy width height" per box.

        Args:
            scores: whether each line ends with the score, as in predictions.

        Returns:
            The text. A class is a label id. Boxes are clipped to the image, in fractions of its width and height.

        Raises:
            ArgumentError: if a box or a score is NaN.
        """
        if np.isnan(self.boxes).any() or np.isnan(self.scores).any():
            raise ArgumentError("to_yolo() expected boxes and scores without NaN; got one. Remove such detections")
        size = np.array([*self.image_size, *self.image_size], np.float64)
        low, high = np.split(np.clip(self.boxes / size, 0, 1), 2, axis=1)
        rows = np.concatenate([(low + high) / 2, high - low, self.scores[:, None]][: 3 if scores else 2], axis=1)
        return "".join(f"{label_id} {' '.join(f'{v:.6f}' for v in row)}\n"
                       for label_id, row in zip(self.label_ids.tolist(), rows.tolist()))

    def to_pandas(self):
        """Convert to a `pandas.DataFrame` with the columns of `to_csv`, one row per box. Labels are not changed.

        Raises:
            ArgumentError: if the package pandas cannot be imported.
        """
        pandas = require("pandas", "to_pandas()")
        values = [*self.boxes.reshape(-1, 4).T, self.scores, list(self.labels), self.label_ids, list(self.phrases)]
        return pandas.DataFrame(dict(zip(COLUMNS, values, strict=True)))

    def to_supervision(self):
        """Convert to a `supervision.Detections`, with xyxy, confidence, class_id and data["class_name"].

        Raises:
            ArgumentError: if the package supervision cannot be imported.
        """
        supervision = require("supervision", "to_supervision()")
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
        image = self._image(image, "plot")
        if np.isnan(self.boxes).any():
            raise ArgumentError("plot() expected boxes without NaN; got a box with one. Remove such detections")
        return annotate(open_image(image), self.boxes, self.labels, self.scores, self.label_ids)

    def _image(self, image, method):
        image = self.image if image is None else image
        if image is None:
            raise ArgumentError(f"{method}() needs an image, and these detections store none. Call {method}(image)")
        return image

    def save(self, path: str | os.PathLike[str], image: Any = None) -> None:
        """Draw the detections as `plot` does, and write the picture to a file. An existing file is replaced.

        Args:
            path: the file. Its ending selects the format, such as .png or .jpg.
            image: as in `plot`.

        Raises:
            ArgumentError: as in `plot`, if the file is the image itself, if its format cannot be written, or if it
                cannot be written there.
            ImageError: as in `plot`.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentError(f"a path must be a str or a path; got {type(path).__name__}")
        path, source = os.fspath(path), self._image(image, "save")
        is_path = isinstance(source, (str, os.PathLike))
        file = os.fspath(source) if is_path else getattr(source, "filename", None)  # of a PIL image
        here, there = (status(name) if name else None for name in (file, path))
        if here and there and os.path.samestat(here, there):
            raise ArgumentError(f"{path} is the image itself. Choose another name")
        replace_file(path, encoded(self.plot(source), path))

    def show(self, image: Any = None) -> None:
        """Draw the detections as `plot` does, and open the picture in the viewer that Pillow finds on this system.

        On a machine without a screen, use `save`.

        Args:
            image: as in `plot`.

        Raises:
            ArgumentError: as in `plot`, or if Pillow finds no viewer.
            ImageError: as in `plot`.
        """
        from PIL import ImageShow  # starts programs; detection does not need it

        if not ImageShow.show(self.plot(image)):
            raise ArgumentError("show() needs a program that displays images, such as xdg-open; Pillow found none. "
                                "Write the picture to a file: save(path)")

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


def _list(values):
    try:
        return list(values)
    except TypeError:
        raise ArgumentError(f"labels must be a str or several; got {brief(values)}") from None


def _number(value, name):
    if not is_number(value):
        raise ArgumentError(f"{name} must be a number; got {brief(value)}")
    return value


def _plain(value):
    """A NumPy scalar as a Python number, which the module json can write."""
    return value.item() if isinstance(value, np.generic) else value


def post_process(logits, boxes, prompt: Prompt, decode, image_size: tuple[int, int], threshold: float | np.ndarray,
                 text_threshold: float, image=None, score: str = "max") -> Detections:
    """Select and label the detections among the network's Q boxes.

    - The score of a box is its highest probability over all tokens. A box is a detection if its score exceeds
      `threshold`.
    - Its label is the phrase whose tokens have the highest probability, the earlier one in a tie. Delimiters count for
      the score, but not for the label.
    - With score="mean", the label is the phrase whose tokens have the highest mean probability, and this mean is the
      score.

    Args:
        logits: [Q, T], before the sigmoid.
        boxes: [Q, 4] (cx, cy, w, h) as fractions of the image.
        prompt: the tokenized prompt.
        decode: function that converts token ids to text.
        image_size: (width, height) of the original image, in pixels.
        threshold: score that a detection must exceed: a number, or one for each phrase of the prompt.
        text_threshold: probability that a token must exceed to become part of `Detections.phrases`.
        image: stored in the result, for `Detections.plot`.
        score: "max" or "mean".

    Returns:
        The detections, by descending score, then by query index.
    """
    probabilities = sigmoid(logits)  # [Q, T]
    over_tokens = np.max if score == "max" else np.mean
    per_phrase = np.stack([over_tokens(probabilities[:, start:stop], axis=1) for start, stop in prompt.spans])
    scores = probabilities.max(axis=1) if score == "max" else per_phrase.max(axis=0)  # [Q]
    labels = per_phrase.argmax(axis=0)  # [Q]
    thresholds = np.broadcast_to(np.asarray(threshold, scores.dtype), len(prompt.spans))
    order = np.argsort(-scores, kind="stable")
    kept = order[scores[order] > thresholds[labels[order]]]
    return Detections(
        boxes=cxcywh_to_xyxy(boxes[kept]) * np.array([*image_size, *image_size], np.float32),
        scores=scores[kept],
        labels=Labels(prompt.phrases[i] for i in labels[kept]),
        label_ids=labels[kept],
        phrases=Labels(decode(prompt.ids[tokens]) for tokens in _phrase_tokens(probabilities[kept], text_threshold)),
        image_size=image_size,
        image=image)


def joined(parts: Sequence[tuple[Detections, int]]) -> Detections:
    """Join detections in one image that come from several prompts or views.

    Args:
        parts: detections, each with a number that is added to its label ids. At least one.

    Returns:
        The detections by descending score. Equal scores keep the order of the parts.
    """
    found = [part for part, _ in parts]
    every = replace(found[0], boxes=np.concatenate([part.boxes for part in found]),
                    scores=np.concatenate([part.scores for part in found]),
                    labels=itertools.chain.from_iterable(part.labels for part in found),
                    label_ids=np.concatenate([part.label_ids + first for part, first in parts]),
                    phrases=itertools.chain.from_iterable(part.phrases for part in found))
    return every[np.argsort(-every.scores, kind="stable")]


def _phrase_tokens(probabilities, text_threshold):
    """Indices of the tokens above the threshold, for each box.

    As in transformers, the first token of the prompt and the last of 256 columns never count.
    """
    columns = probabilities[:, 1:255] > text_threshold
    return [np.flatnonzero(row) + 1 for row in columns]

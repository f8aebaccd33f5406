"""The tasks of `minigdino evaluate`: which file is read, how an image is predicted, and which table is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from PIL import Image

from ..detector import Model
from ..errors import ArgumentError, brief
from ..extras import require
from ..prompt import Tokenizer
from . import protocols
from .candidates import Candidates
from .coco_ap import PACKAGE, coco_table
from .detections import RawDetections, numbers
from .fixed_ap import lvis_table
from .ground_truth import Category, GroundTruth, Picture, read_ground_truth
from .protocols import predict, prompts
from .referring import Caption, locate, rates, read_captions

Predict = Callable[[Any, Image.Image], Candidates]


@dataclasses.dataclass(frozen=True)
class DetectionTask:
    """Detection of all categories of a set, as COCO and LVIS evaluate it.

    Attributes:
        protocol: how the boxes of an image are scored and selected.
        figures: function that computes the table.
    """

    protocol: protocols.Protocol
    figures: Callable[[GroundTruth, Iterable[tuple[int, Candidates]]], dict[str, float]]
    unit: ClassVar[str] = "image"  # what is counted

    @property
    def name(self) -> str:
        """Name of the protocol."""
        return self.protocol.name

    def read(self, path: str | Path) -> GroundTruth:
        """Read an annotation file, as `read_ground_truth`. In an image with a prompt of its own, no others count.

        Raises:
            ArgumentError: as `read_ground_truth` does, or if the file is that of the other data set.
        """
        truth = read_ground_truth(path)
        is_lvis = any(category.frequency for category in truth.categories)
        if is_lvis != (self.name == "lvis"):
            other = "lvis" if is_lvis else "coco"
            raise ArgumentError(f'{path}: expected annotations of {self.name.upper()}; its categories have '
                                f'{"a" if is_lvis else "no"} "frequency", as those of {other.upper()}. Run: minigdino '
                                f"evaluate {other}")
        return asked_only(truth)

    def settings(self) -> dict[str, Any]:
        """The protocol."""
        values = dataclasses.asdict(self.protocol)
        return {"protocol": values.pop("name"), **values}

    def predictor(self, model: Model, truth: GroundTruth, size: Sequence[int] | None) -> Predict:
        """Return a function that detects all categories in an image, or those of its own prompt."""
        tokenizer, limit = _tokenizer(model), model.config.max_text_len
        for_all = prompts(truth.categories, tokenizer, self.protocol, limit)

        def detected(picture: Picture, image: Image.Image) -> Candidates:
            own = for_all if picture.prompt is None else prompts(asked(truth, picture), tokenizer, self.protocol, limit)
            return predict(model, image, own, self.protocol, size)

        return detected

    def check(self) -> None:
        """Check that faster-coco-eval is installed, which computes the table of COCO."""
        if self.figures is coco_table:
            require("faster_coco_eval", "COCO AP", PACKAGE)

    def table(self, truth: GroundTruth, raw: RawDetections) -> dict[str, float]:
        """Compute the columns of the data set's tables."""
        return self.figures(truth, self.candidates(truth, raw))

    def candidates(self, truth: GroundTruth, raw: RawDetections) -> Iterator[tuple[int, Candidates]]:
        """Yield the detections of each image, in the order of the annotation file.

        Raises:
            ArgumentError: if a line has another format.
        """
        for picture in truth.pictures:
            yield picture.id, candidates_of(raw[picture.id])


def asked_only(truth: GroundTruth) -> GroundTruth:
    """Remove the annotations of categories that are not in the prompt of their image."""
    prompts_of = {picture.id: picture.prompt for picture in truth.pictures if picture.prompt is not None}
    rows = np.array([category in prompts_of.get(image, (category,))
                     for image, category in zip(truth.image_ids.tolist(), truth.category_ids.tolist())], bool)
    arrays = ("ids", "image_ids", "category_ids", "boxes", "areas", "crowd")
    return dataclasses.replace(truth, **{name: getattr(truth, name)[rows] for name in arrays})


def asked(truth: GroundTruth, picture: Picture) -> list[Category]:
    """The categories in the prompt of a picture, with their wording in it."""
    known = {category.id: category for category in truth.categories}
    chosen = [known[number] for number in picture.prompt or ()]
    wordings = picture.phrases or [category.name for category in chosen]
    return [dataclasses.replace(category, name=wording) for category, wording in zip(chosen, wordings)]


def fields(found: Candidates) -> dict:
    """Return detections as the fields of a line of raw detections."""
    return {"boxes": numbers(found.boxes), "scores": numbers(found.scores), "category_ids": found.category_ids.tolist()}


def candidates_of(line: dict) -> Candidates:
    """Return the detections in a line, as the inverse of `fields`.

    Raises:
        ArgumentError: if the line has another format.
    """
    try:
        return Candidates(np.array(line["boxes"], np.float64).reshape(-1, 4), np.array(line["scores"], np.float64),
                          np.array(line["category_ids"], np.int64))
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ArgumentError(f'image id {line["image"]}: expected "boxes", "scores" and "category_ids" in its line; got '
                            "another format. Remove the line, and resume the run") from None


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        model.tokenize("a")  # the error says which file is missing
    assert model.tokenizer is not None
    return model.tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """Captions as a set of pictures, of which each has one. The id of a picture is that of its caption.

    Attributes:
        captions: the captions.
    """

    captions: list[Caption]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures, in the order of the file."""
        return [caption.picture for caption in self.captions]

    def only(self, ids: Iterable[int]) -> Captions:
        """Return the captions with some ids."""
        wanted = set(ids)
        return Captions([caption for caption in self.captions if caption.picture.id in wanted])


@dataclasses.dataclass(frozen=True)
class CaptionTask:
    """Boxes for referring expressions, or for the phrases of captions.

    Attributes:
        name: "refcoco" or "flickr".
    """

    name: str
    unit: ClassVar[str] = "caption"

    def read(self, path: str | Path) -> Captions:
        """Read an annotation file, as `read_captions`.

        Raises:
            ArgumentError: as `read_captions` does, or if the captions are of the other kind.
        """
        captions = read_captions(path)
        if other := next((c for c in captions if (c.spans is None) != (self.name == "refcoco")), None):
            kind, command = ("referring expressions", "flickr") if self.name == "refcoco" else ("phrases", "refcoco")
            raise ArgumentError(f"{path}: expected {kind}; caption {other.picture.id}, {brief(other.text)}, has "
                                f'{"no" if other.spans is None else "a"} "tokens_positive_eval". Run: minigdino '
                                f"evaluate {command}")
        return Captions(captions)

    def settings(self) -> dict[str, Any]:
        """The name of the task."""
        return {"protocol": self.name}

    def predictor(self, model: Model, truth: Captions, size: Sequence[int] | None) -> Predict:
        """Return a function that ranks boxes for a caption."""
        by_id = {caption.picture.id: caption for caption in truth.captions}
        _tokenizer(model)
        return lambda picture, image: locate(model, image, by_id[picture.id], size)

    def check(self) -> None:
        """Nothing to check: no other package is needed."""

    def table(self, truth: Captions, raw: RawDetections) -> dict[str, float]:
        """Compute accuracy or recall @1, @5 and @10 of each data set, for phrases with both protocols."""
        kinds = {"accuracy": False} if self.name == "refcoco" else {"any-box recall": False, "merged-box recall": True}
        table = {}
        for kind, merged in kinds.items():
            found = ((caption.picture.id, candidates_of(raw[caption.picture.id])) for caption in truth.captions)
            for dataset, figures in rates(truth.captions, found, merged).items():
                name = f"{dataset} {kind}".strip()
                table |= {f"{name} {rank}": value for rank, value in figures.items() if rank.startswith("@")}
        return table


COCO = DetectionTask(protocols.COCO, coco_table)
LVIS = DetectionTask(protocols.LVIS, lvis_table)
Task: TypeAlias = DetectionTask | CaptionTask
TASKS: dict[str, Task] = {task.name: task for task in (COCO, LVIS, CaptionTask("refcoco"), CaptionTask("flickr"))}

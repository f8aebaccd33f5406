"""The published protocols of evaluation: from class names to scored boxes.

docs/protocols.md compares them with the code of the publications.

C classes, K boxes, Q queries, T text tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..detector import ImageLike, Model
from ..errors import ArgumentError, brief
from ..image import open_image, read_file
from ..network.boxes import cxcywh_to_xyxy, sigmoid
from ..prompt import Tokenizer
from .candidates import Candidates
from .ground_truth import Category


@dataclass(frozen=True)
class Protocol:
    """How the boxes of an image are scored and selected.

    Attributes:
        name: its name.
        chunk: largest number of names in a prompt; None for as many as fit.
        kept: number of boxes kept per prompt, counted over queries and classes.
        clip: whether boxes are clipped to the image; None for yes, except by models of the family Grounding DINO.
        score: score of a query for a name, the "mean" or "max" probability of its tokens. All published figures have
            the mean. `Model.detect` has the maximum.
    """

    name: str
    chunk: int | None
    kept: int
    clip: bool | None
    score: Literal["mean", "max"] = "mean"


COCO = Protocol("coco", chunk=None, kept=300, clip=None)
LVIS = Protocol("lvis", chunk=40, kept=300, clip=True)


@dataclass(frozen=True, eq=False)
class ClassPrompt:
    """A prompt of C class names.

    Attributes:
        ids: [T] int64 token ids, from [CLS] to [SEP].
        spans: (start, stop) token indices of each name, without its dot.
        category_ids: [C] int64.
    """

    ids: np.ndarray
    spans: list[tuple[int, int]]
    category_ids: np.ndarray


def class_name(name: str) -> str:
    """Return a name as a prompt has it: without text in parentheses, and with spaces for "_".

    As in the published code, all between the first "(" and the last ")" is removed.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ").strip()


def prompts(categories: Sequence[Category], tokenizer: Tokenizer, protocol: Protocol,
            limit: int = 256) -> list[ClassPrompt]:
    """Make the prompts of a protocol: "name. name. ", in the order of the categories.

    Categories with the same name in a prompt, such as "bow_(weapon)" and "bow_(decorative_ribbons)" of LVIS, are both
    in it, as in the published code. In one prompt they have the same scores.

    Args:
        categories: the categories.
        tokenizer: tokenizer of the model.
        protocol: the protocol.
        limit: largest number of tokens of a prompt, as `Config.max_text_len`. A prompt has fewer names than
            `protocol.chunk` if they do not fit.

    Returns:
        The prompts, at least one.

    Raises:
        ArgumentError: if there is no category, or a name has no tokens or too many.
    """
    names = [_tokens(category, tokenizer, limit) for category in categories]
    if not names:
        raise ArgumentError("expected at least one category; got none. Give an annotation file with categories")
    found, first = [], 0
    while first < len(names):
        last = first + 1
        while (last < len(names) and last - first != protocol.chunk
               and sum(map(len, names[first : last + 1])) + 2 <= limit):
            last += 1
        found.append(_joined(names[first:last], categories[first:last], tokenizer))
        first = last
    return found


def _tokens(category, tokenizer, limit):
    """Token ids of a name and its dot. They do not depend on other names of a prompt, since BERT splits at spaces."""
    ids = tokenizer.read(class_name(category.name) + ".")[0][1:-1]
    if not 1 < len(ids) <= limit - 2:
        raise ArgumentError(f"category {category.id}: expected a name of 1 to {limit - 3} tokens outside parentheses; "
                            f"{brief(category.name)} has {len(ids) - 1}. Change the name in the annotation file")
    return ids


def _joined(names, categories, tokenizer):
    stops = np.cumsum([len(ids) for ids in names])  # of the dots, without [CLS]
    spans = [(int(stop) - len(ids) + 1, int(stop)) for ids, stop in zip(names, stops)]
    return ClassPrompt(np.concatenate([[tokenizer.cls], *names, [tokenizer.sep]]).astype(np.int64), spans,
                       np.array([category.id for category in categories], np.int64))


def predict(model: Model, image: ImageLike, prompts: Sequence[ClassPrompt], protocol: Protocol,
            size: Sequence[int] | None = None) -> Candidates:
    """Detect all classes in an image, as a protocol prescribes.

    There is no threshold and no NMS. The score of a query for a class is the mean probability of the tokens of its
    name (`protocol.score`). In each prompt, the `protocol.kept` best pairs of query and class are kept. The pairs of
    all prompts are joined, and not cut again. Image features are computed once.

    Args:
        model: the model.
        image: an image, as `Model.detect` accepts.
        prompts: from `prompts`.
        protocol: the protocol.
        size: (shortest, longest) edge in pixels, instead of the checkpoint's. That of the published checkpoints is the
            published one, (800, 1333).

    Returns:
        The boxes, prompt by prompt, in each by descending score, then by query and class.

    Raises:
        Error: as `Model.detect` does.
    """
    picture = open_image(read_file(image))
    pixels = model.preprocess(picture, size=size)
    passes = zip(outputs(model, pixels, [prompt.ids for prompt in prompts]), prompts)
    parts = [_best(logits, boxes, prompt, protocol) for (logits, boxes), prompt in passes]
    boxes, scores, category_ids = map(np.concatenate, zip(*parts))
    return Candidates(in_pixels(boxes, picture.size, clips(protocol, model)), scores, category_ids)


def outputs(model: Model, pixels: np.ndarray,
            prompts: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return logits [Q, T] and boxes [Q, 4] of a forward pass for each prompt. The image backbone runs once.

    Args:
        model: the model.
        pixels: [3, H, W], from `Model.preprocess`.
        prompts: token ids [T] of each prompt.

    Returns:
        An iterator of logits, and boxes as (cx, cy, w, h) in fractions of the image, on the host.

    Raises:
        Error: as `Model.detect` does.
    """
    return model._predict(pixels, prompts)


def _best(logits, boxes, prompt, protocol):
    """Boxes [K, 4], scores [K] and category ids [K] of the best pairs of query and class."""
    probabilities, score = sigmoid(logits), np.max if protocol.score == "max" else np.mean  # [Q, T]
    scores = np.stack([score(probabilities[:, start:stop], axis=1) for start, stop in prompt.spans], axis=1)  # [Q, C]
    best = np.argsort(-scores, axis=None, kind="stable")[: protocol.kept]  # [K]
    queries, classes = np.unravel_index(best, scores.shape)
    return boxes[queries], scores[queries, classes], prompt.category_ids[classes]


def clips(protocol: Protocol, model: Model) -> bool:
    """Return whether a protocol clips the boxes of a model to the image."""
    return model.config.model_type != "grounding-dino" if protocol.clip is None else protocol.clip


def in_pixels(boxes: np.ndarray, size: tuple[int, int], clip: bool) -> np.ndarray:
    """Convert boxes of the network to (left, top, width, height) in pixels.

    Args:
        boxes: [K, 4] (cx, cy, w, h) as fractions of the image.
        size: (width, height) of the image in pixels.
        clip: whether to clip them to the image.

    Returns:
        [K, 4], of the same dtype.
    """
    scale = np.array([*size, *size], boxes.dtype)
    corners = cxcywh_to_xyxy(boxes) * scale
    if clip:
        corners = np.clip(corners, 0, scale)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)

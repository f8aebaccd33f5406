"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg) and phrases of captions (Flickr30k Entities).

In both, a phrase has boxes, and a model ranks boxes for it. The rate @k is the share of the phrases for which one of
the k best boxes has an IoU of at least 0.5 with one of the annotated boxes. For referring expressions it is called
accuracy, for phrases of captions recall.

K boxes, P phrases, Q queries, T text tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..detector import ImageLike, Model
from ..errors import ArgumentError, brief
from ..image import open_image, read_file
from ..json_object import JsonObject
from ..network.boxes import sigmoid
from .candidates import Candidates, as_arrays, iou
from .ground_truth import BOX, Picture, filled, image_size, is_box, new_id, read_object
from .protocols import in_pixels, outputs

RANKS = (1, 5, 10)
IOU = 0.5
KEPT_EXPRESSION, KEPT_PHRASES = 30, 300  # boxes kept for an expression, and for all phrases of a caption together


@dataclass(frozen=True, eq=False)
class Caption:
    """A text about an image, and the boxes of its P phrases.

    Attributes:
        picture: the image. Its id is that of the caption, since an image with several captions has several entries.
        text: the caption.
        dataset: name of its data set, such as "refcoco+"; "" if the file has none.
        spans: for each phrase, (start, stop) of its characters, in one or several pieces. None for a referring
            expression, which is one phrase.
        boxes: for each phrase, [N, 4] float64 (left, top, width, height) in pixels of the upright image.
    """

    picture: Picture
    text: str
    dataset: str
    spans: tuple[tuple[tuple[int, int], ...], ...] | None
    boxes: tuple[np.ndarray, ...]


def read_captions(path: str | Path) -> list[Caption]:
    """Read an annotation file in MDETR's format, such as finetune_refcoco_val.json or final_flickr_separateGT_val.json.

    It is COCO's format with a "caption" for each image.

    - If an image has "tokens_positive_eval", this is a list of phrases, each a list of [start, stop] in characters. The
      boxes of a phrase are those of the annotations whose "tokens_positive" contains one of these pairs.
    - Otherwise the caption is a referring expression, and has exactly one annotation.

    Categories are ignored. Width and height of an image may be a text, as they are in the files of Flickr30k.

    Args:
        path: the file, at most 512 MB.

    Returns:
        The captions, in the order of the file.

    Raises:
        ArgumentError: if the file cannot be read, or has another format; if an id occurs twice or is unknown; or if a
            phrase has no box, a span lies outside its caption, or a field is missing or invalid.
    """
    file = read_object(path)
    seen: set[int] = set()
    entries = {new_id(entry, seen): entry for entry in filled(file, "images")}
    annotations: dict[int, list[JsonObject]] = defaultdict(list)
    seen = set()
    for annotation in filled(file, "annotations"):
        new_id(annotation, seen)
        annotations[annotation.reference("image_id", entries, "images")].append(annotation)
    return [_caption(number, entry, annotations[number]) for number, entry in entries.items()]


def _caption(number, entry, annotations):
    picture = Picture(number, entry.text("file_name"), *image_size(_with_numbers(entry)))
    dataset = ""
    if "dataset_name" in entry:
        dataset = entry.field("dataset_name", lambda value: isinstance(value, str), "a text")
    spans, boxes = (_phrases if "tokens_positive_eval" in entry else _expression)(entry, annotations)
    return Caption(picture, entry.text("caption"), dataset, spans, boxes)


def _expression(entry, annotations):
    """Spans and boxes of a referring expression."""
    if len(annotations) != 1:
        raise ArgumentError(f"{entry.place}: expected one annotation, the box of the expression "
                            f"{brief(entry.text('caption'))}; got {len(annotations)}. Correct the annotations, or "
                            "remove the image")
    return None, (np.array([_box(annotations[0])], np.float64),)


def _phrases(entry, annotations):
    """Spans and boxes of the phrases of a caption."""
    text = entry.text("caption")
    phrases = entry.field("tokens_positive_eval", lambda value: _are_phrases(value, len(text)), "a list of phrases, "
                          f"each a list of [start, stop] within the {len(text)} characters of the caption,")
    spans = tuple(tuple(map(tuple, phrase)) for phrase in phrases)
    places = [set(map(tuple, annotation.field("tokens_positive", lambda value: _are_spans(value, len(text)),
                                              "a list of [start, stop] within the caption")))
              for annotation in annotations]
    boxes = []
    for phrase in spans:
        found = [_box(annotation) for annotation, place in zip(annotations, places) if not place.isdisjoint(phrase)]
        if not found:
            raise ArgumentError(f"{entry.place}: expected a box for each phrase; {brief(text[slice(*phrase[0])])} has "
                                'none. Add an annotation whose "tokens_positive" contains it, or remove the phrase')
        boxes.append(np.array(found, np.float64))
    return spans, tuple(boxes)


def _box(annotation):
    return annotation.field("bbox", is_box, BOX)


def _with_numbers(entry):
    """An entry whose width and height are numbers, also if the file has them as texts."""
    numbers = {name: int(value) for name in ("width", "height")
               if isinstance(value := entry.values.get(name), str) and value.isascii() and value.isdigit()
               and len(value) < 10}
    return JsonObject(entry.values | numbers, entry.place)


def _are_spans(value, length):
    return isinstance(value, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(i) is int for i in span)
        and 0 <= span[0] < span[1] <= length for span in value)


def _are_phrases(value, length):
    return isinstance(value, list) and all(_are_spans(phrase, length) and phrase for phrase in value)


def locate(model: Model, image: ImageLike, caption: Caption, size: Sequence[int] | None = None) -> Candidates:
    """Rank boxes for the phrases of a caption, as MMDetection does.

    - Referring expression: the score of a query is its highest probability over all tokens of the text. The 30 best
      are kept.
    - Phrases: the score of a query for a phrase is the mean probability of the phrase's tokens. The 300 best pairs of
      query and phrase are kept. A phrase without tokens has no boxes, nor has a caption without phrases.

    Boxes are clipped to the image. The text is the caption as it is, with a dot at its end.

    Args:
        model: the model.
        image: an image, as `Model.detect` accepts.
        caption: the caption.
        size: (shortest, longest) edge in pixels, instead of the checkpoint's.

    Returns:
        The boxes by descending score, then by query. `category_ids` are indices of phrases.

    Raises:
        ArgumentError: if the caption has too many tokens.
        Error: as `Model.detect` does.
    """
    text = caption.text if caption.text.endswith(".") else f"{caption.text}."
    ids, offsets = model._tokenizer().read(text)
    if len(ids) > model.config.max_text_len:
        raise ArgumentError(f"caption {caption.picture.id}: expected at most {model.config.max_text_len} tokens; got "
                            f"{len(ids)}. Shorten it, or remove it from the annotation file")
    picture = open_image(read_file(image))
    ((logits, boxes),) = outputs(model, model.preprocess(picture, size=size), [ids])
    probabilities = sigmoid(logits)  # [Q, T]
    if caption.spans is None:
        scores, kept = probabilities.max(axis=1, keepdims=True), KEPT_EXPRESSION  # [Q, 1]
    else:
        tokens = [_tokens(spans, offsets) for spans in caption.spans]
        scores = np.array([probabilities[:, found].mean(axis=1) if found else np.full(len(boxes), -1.0)
                           for found in tokens]).reshape(-1, len(boxes)).T  # [Q, P]
        kept = KEPT_PHRASES
    best = np.argsort(-scores, axis=None, kind="stable")[:kept]  # [K]
    best = best[scores.ravel()[best] >= 0]
    queries, phrases = np.unravel_index(best, scores.shape)
    return Candidates(in_pixels(boxes[queries], picture.size, clip=True), scores[queries, phrases], phrases)


def _tokens(spans, offsets):
    """Indices of the tokens that share characters with a phrase."""
    return [i for i, (start, stop) in enumerate(offsets)
            if start < stop and any(start < b and a < stop for a, b in spans)]


def rates(captions: Sequence[Caption], found: Iterable[tuple[int, Candidates]],
          merged: bool = False) -> dict[str, dict[str, float]]:
    """Compute the rates @1, @5 and @10 for each data set of a list of captions.

    Args:
        captions: the captions.
        found: pairs (id of the caption, candidates from `locate`), each once. A caption that is missing has no boxes.
        merged: whether all boxes of a phrase count as one, the smallest box around them ("merged-box protocol"). By
            default, any of them counts ("any-box protocol").

    Returns:
        {data set: {"@1", "@5", "@10": share of the phrases, 0 to 1; "phrases": number of phrases}}

    Raises:
        ArgumentError: if candidates belong to an unknown caption or phrase, or to a caption twice, or
            `candidates.as_arrays` refuses them.
    """
    by_id = {caption.picture.id: caption for caption in captions}
    hits: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(RANKS), np.int64))
    seen: set[int] = set()
    for number, candidates in found:
        if number not in by_id or number in seen:
            raise ArgumentError(f"expected the boxes of each of the {len(by_id)} captions once; got those of the id "
                                f"{brief(number)}{' twice' if number in seen else ''}. Use the annotation file that "
                                "the boxes were made with")
        seen.add(number)
        caption, candidates = by_id[number], as_arrays(candidates, f"caption {number}")
        phrases = candidates.category_ids
        if len(unknown := phrases[(phrases < 0) | (phrases >= len(caption.boxes))]):
            raise ArgumentError(f"caption {number}: expected boxes of its {len(caption.boxes)} phrases; got some of "
                                f"phrase {unknown[0]}. Use the annotation file that the boxes were made with")
        for i, boxes in enumerate(caption.boxes):
            hits[caption.dataset] += _hits(candidates, i, _around(boxes) if merged else boxes)
    totals: dict[str, int] = defaultdict(int)
    for caption in captions:
        totals[caption.dataset] += len(caption.boxes)
    return {dataset: {f"@{k}": float(n / total) for k, n in zip(RANKS, hits[dataset])} | {"phrases": total}
            for dataset, total in totals.items() if total}


def _hits(candidates, phrase, boxes):
    """[3] bool: whether one of the k best candidates of a phrase has enough overlap with one of the boxes."""
    rows = np.flatnonzero(candidates.category_ids == phrase)
    rows = rows[np.argsort(-candidates.scores[rows], kind="stable")]
    right = np.flatnonzero(iou(candidates.boxes[rows], boxes).max(axis=1) >= IOU)
    return np.array([(right < k).any() for k in RANKS])


def _around(boxes):
    """The smallest box around boxes [N, 4]: [1, 4]"""
    start, stop = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return np.concatenate([start, stop - start])[None]

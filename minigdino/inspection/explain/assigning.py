"""Figure of the training: the cost of matching queries with annotated boxes, the matches, and the losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...checkpoints.json_file import read_text, unique
from ...errors import ArgumentError, brief
from ...files import MAX_CATEGORIES
from ...learning.annotations import of_image
from ...network.losses import giou, l1, losses, total
from ...network.matching import class_cost, match
from .deciding import BOXES, LOGITS
from .encode import packed

EXAMPLE = '[{"box": [left, top, right, bottom], "label": "a cat"}]'
MAX_BOXES = 60  # annotated boxes in the matrix
MAX_QUERIES = 12  # queries in the matrix, besides the matched ones


def read(path: str | Path, image: str | Path) -> Any:
    """Read the annotated boxes of an image from a JSON file.

    Args:
        path: the file: COCO annotations, or a list as `fields` reads it, which also checks it.
        image: path of the image, by which its annotations in a COCO file are found.

    Returns:
        The list. The labels of COCO annotations are the names of their categories.

    Raises:
        ArgumentError: if the file cannot be read or is not JSON, or as `learning.annotations.of_image` does.
    """
    try:
        content = json.loads(read_text(path, MAX_CATEGORIES), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: expected a JSON file such as {EXAMPLE}, or COCO annotations; got none that can "
                            f"be read ({brief(error)}). Correct the file or its name") from None
    if isinstance(content, dict) and "images" in content:
        sample = of_image(content, path, image)
        return [{"box": box, "label": label} for box, label in zip(sample.boxes.tolist(), sample.labels)]
    return content


def fields(entries: Sequence[Mapping[str, Any]]) -> tuple[list, list]:
    """Return boxes and labels of a list of annotated boxes.

    Args:
        entries: [{"box", "label"}, ...]; other keys are ignored.

    Raises:
        ArgumentError: for another type.
    """
    if not isinstance(entries, (list, tuple)):
        raise ArgumentError(f"targets must be a list such as {EXAMPLE}; got {brief(entries)}")
    for i, entry in enumerate(entries):
        if not (isinstance(entry, Mapping) and {"box", "label"} <= entry.keys()):
            raise ArgumentError(f"targets must be a list such as {EXAMPLE}; targets[{i}] is {brief(entry)}. Give it a "
                                "box and a label")
    return [entry["box"] for entry in entries], [entry["label"] for entry in entries]


def matching(recorded):
    """Costs of the queries that compete for a box, the matches, and each term of the last decoder layer's loss."""
    logits, boxes = recorded.one(LOGITS), recorded.one(BOXES)
    targets, config = recorded.targets, recorded.model.config
    stages = {"": (logits, boxes)}
    matches, costs = match(stages, targets, config)
    terms = losses(stages, targets, matches, config)
    (queries, chosen), cost = matches[""], costs[""]  # cost [Q, B]
    parts = np.stack([cost, *_parts(logits, boxes, targets, config)])[..., :MAX_BOXES]  # [4, Q, B]
    rows = _competing(cost, queries[chosen < MAX_BOXES])
    starts = [start for start, _ in recorded.prompt.spans]
    return {"boxes": targets.boxes.tolist(), "labels": [starts.index(row.argmax()) for row in targets.tokens],
            "queries": rows.tolist(), "costs": packed(parts[:, rows], 32),
            "matches": dict(zip(chosen.tolist(), queries.tolist())),  # {box: query}
            # the weight of a term is the total of a loss in which only this term is 1
            "terms": [[name, float(value), float(total({name: 1.0}, config))] for name, value in terms.items()],
            "total": float(total(terms, config))}


def _parts(logits, boxes, targets, config):
    """The three summands of `matching.cost_matrix`: [Q, B] each"""
    pairs = boxes[:, None], targets.boxes[None]  # [Q, 1, 4], [1, B, 4]
    yield config.class_cost * class_cost(logits, targets.tokens, config.focal_alpha)
    yield config.bbox_cost * l1(*pairs)
    yield -config.giou_cost * giou(*pairs)


def _competing(cost, matched):
    """Indices of the matched queries and of those with the lowest costs, lowest first: cost [Q, B] -> [n]"""
    if not cost.size:
        return np.zeros(0, int)
    order = np.argsort(cost.min(axis=1), kind="stable")
    return order[np.isin(order, [*matched, *order[:MAX_QUERIES]])]

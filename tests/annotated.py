"""Random annotated sets with detections, for tests of average precision.

Many numbers are equal on purpose: scores, IoUs, and areas at the bounds of the ranges. Some boxes have no area.
"""

from __future__ import annotations

import numpy as np

from minigdino.evaluation.candidates import Candidates
from minigdino.evaluation.ground_truth import Category, GroundTruth, Picture

N_IMAGES, N_CATEGORIES, N_OBJECTS, MOST = 5, 4, 24, 40  # MOST: detections of an image


def random_set(rng: np.random.Generator, federated: bool = True, coarse: bool = True):
    """Draw annotations, and detections near them.

    Args:
        rng: the generator.
        federated: whether the set is like LVIS, with absent and partly annotated categories; else like COCO, with
            crowds.
        coarse: whether boxes are multiples of 4 and scores multiples of 1/32.

    Returns:
        (GroundTruth, list of (image id, Candidates)). Ids are in no order.
    """
    ids = (3 * np.arange(N_CATEGORIES) + 1).tolist()
    categories = [Category(i, f"name {i}", "rcf"[k % 3] if federated else None) for k, i in enumerate(ids)]
    known = [(_some(rng, ids), _some(rng, ids[:2])) if federated else () for _ in range(N_IMAGES)]
    pictures = [Picture(100 - 7 * k, f"{k}.jpg", 200, 200, *known[k]) for k in range(N_IMAGES)]
    image_ids = rng.choice([picture.id for picture in pictures], N_OBJECTS)
    boxes = _rounded(_boxes(rng, N_OBJECTS), coarse)
    areas = boxes[:, 2:].prod(axis=1) * (1 if coarse else rng.uniform(0.5, 1, N_OBJECTS))
    crowd = (rng.random(N_OBJECTS) < 0.15) & (not federated)
    truth = GroundTruth(pictures, categories, np.arange(N_OBJECTS), image_ids, rng.choice(ids, N_OBJECTS), boxes, areas,
                        crowd)
    return truth, [(picture.id, _near(rng, truth, picture.id, coarse)) for picture in pictures]


def _some(rng, ids):
    return frozenset(i for i in ids if rng.random() < 0.4)


def _boxes(rng, n):
    sides = 2 ** rng.uniform(2, 7.3, (n, 1)) * rng.uniform(0.7, 1.3, (n, 2))  # small, medium and large ones
    return np.concatenate([rng.uniform(0, 60, (n, 2)), sides], axis=1)


def _rounded(boxes, coarse):
    return 4 * np.round(boxes / 4) if coarse else boxes


def _near(rng, truth, image_id, coarse):
    """Detections of an image: most of them close to an object, and of its category."""
    n, objects = rng.integers(0, MOST), np.flatnonzero(truth.image_ids == image_id)
    ids = [category.id for category in truth.categories]
    boxes, category_ids = _boxes(rng, n), rng.choice(ids, n)
    if len(objects):
        chosen = objects[rng.integers(0, len(objects), n)]
        boxes = truth.boxes[chosen] + rng.normal(0, 3, (n, 4))
        category_ids = np.where(rng.random(n) < 0.8, truth.category_ids[chosen], category_ids)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 0)
    scores = rng.integers(1, 30, n) / 32 if coarse else rng.random(n)
    return Candidates(_rounded(boxes, coarse), scores, category_ids)


def as_coco(truth: GroundTruth) -> dict:
    """The annotations as a dict in the format of COCO and LVIS. The ids of annotations start at 1."""
    rows = zip(truth.image_ids.tolist(), truth.category_ids.tolist(), truth.boxes.tolist(), truth.areas.tolist(),
               truth.crowd.tolist())
    return {
        "images": [{"id": picture.id, "file_name": picture.file_name, "width": picture.width, "height": picture.height,
                    "neg_category_ids": sorted(picture.absent),
                    "not_exhaustive_category_ids": sorted(picture.not_exhaustive)} for picture in truth.pictures],
        "categories": [{"id": category.id, "name": category.name, "frequency": category.frequency}
                       for category in truth.categories],
        "annotations": [{"id": i, "image_id": image_id, "category_id": category_id, "bbox": box, "area": area,
                         "iscrowd": int(crowd)}
                        for i, (image_id, category_id, box, area, crowd) in enumerate(rows, start=1)]}


def as_results(detections) -> list[dict]:
    """Detections as a list of dicts in the format of COCO's results."""
    return [{"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, found in detections for category_id, box, score in
            zip(found.category_ids.tolist(), found.boxes.tolist(), found.scores.tolist())]

"""COCO's AP, computed by the package faster-coco-eval.

Unlike LVIS's, the annotations of COCO are complete: every detection without an object is wrong, unless it lies in a box
around a group of objects ("crowd"). Of an image, the 100 best detections of each category count.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..extras import require
from .candidates import Candidates, checked
from .ground_truth import GroundTruth

PACKAGE = "faster-coco-eval>=1.6"
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of the package


def coco_table(truth: GroundTruth, detections: Iterable[tuple[int, Candidates]]) -> dict[str, float]:
    """Compute the columns of COCO's tables.

    Args:
        truth: the annotations.
        detections: pairs (image id, candidates), each image once. An image that is missing has no detections.

    Returns:
        {"AP", "AP50", "AP75", "APs", "APm", "APl"}, each from 0 to 1: all areas and thresholds; an IoU of at least 0.5
        and of 0.75; small, medium and large objects. NaN without an object of that kind.

    Raises:
        ArgumentError: if faster-coco-eval is not installed, or detections do not belong to the annotations (see
            `candidates.checked`).
    """
    package = require("faster_coco_eval", "COCO AP", PACKAGE)
    objects = package.COCO(_dataset(truth))
    rows = [row for image_id, found in checked(truth, detections) for row in _rows(image_id, found)]
    evaluation = package.COCOeval_faster(objects, objects.loadRes(rows or [_nothing(truth)]), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = dict(zip(COLUMNS, map(float, evaluation.stats)))
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}


def _dataset(truth):
    """The annotations in COCO's format. Their ids start at 1, since the package takes 0 for "not matched"."""
    rows = zip(truth.image_ids.tolist(), truth.category_ids.tolist(), truth.boxes.tolist(), truth.areas.tolist(),
               truth.crowd.tolist())
    annotations = [{"id": i, "image_id": image_id, "category_id": category_id, "bbox": box, "area": area,
                    "iscrowd": int(crowd)} for i, (image_id, category_id, box, area, crowd) in enumerate(rows, start=1)]
    return {"images": [{"id": picture.id} for picture in truth.pictures],
            "categories": [{"id": category.id, "name": category.name} for category in truth.categories],
            "annotations": annotations}


def _rows(image_id, found):
    """The detections of an image in COCO's format. The package would add polygons, which only cost memory."""
    polygons: list = []
    return [{"image_id": image_id, "category_id": category_id, "bbox": box, "score": score, "segmentation": polygons}
            for category_id, box, score in zip(found.category_ids.tolist(), found.boxes.tolist(),
                                               found.scores.tolist())]


def _nothing(truth):
    """A detection that no object matches. Versions of the package before 1.8 refuse a list without detections."""
    return {"image_id": truth.pictures[0].id, "category_id": truth.categories[0].id, "bbox": [0.0, 0.0, 0.0, 0.0],
            "score": 0.0, "segmentation": []}

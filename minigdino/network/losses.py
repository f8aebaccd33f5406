"""§3.5  Losses: focal loss for classes, L1 and GIoU loss for boxes, after the encoder and after the decoder layers.

Q queries, T text tokens, B target boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boxes import cxcywh_to_xyxy, sigmoid

GAMMA = 2.0  # focusing parameter of the focal loss
CLASS_WEIGHT = 2.0  # weight of the classification loss, as in transformers; config.json has no field for it


@dataclass(frozen=True, eq=False)
class Targets:
    """Annotated objects of an image.

    Attributes:
        boxes: [B, 4] annotated boxes, (cx, cy, w, h) as fractions of the image.
        tokens: [B, T] True for the text tokens of a box's phrase, without its delimiter.
    """

    boxes: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of a model for one annotated image.

    Names of terms end with the stage that they belong to: nothing for the last decoder layer, "_enc" for the encoder,
    "_0" for the first decoder layer. The decoder layers before the last one have terms if the checkpoint's config has
    `auxiliary_loss`.

    Attributes:
        total: weighted sum of the terms. `loss_ce` has the weight 2, `loss_bbox` and `loss_giou` those in the config.
        terms: value of each term.

            - "loss_ce": focal loss of all logits, divided by the number of boxes.
            - "loss_bbox": L1 loss of the matched boxes, divided by the number of boxes.
            - "loss_giou": 1 - GIoU of the matched boxes, divided by the number of boxes.
            - "cardinality_error": difference of the number of queries with a score above 0.5 and the number of boxes.
              It measures the training, and is not part of the total.

        matches: for each stage ("", "_enc", "_0", ...), the indices of the matched queries, and those of their boxes.
            Without details=True, this and the next field are None.
        costs: for each stage, the cost [Q, B] of matching each of Q queries with each of B boxes.
    """

    total: float
    terms: dict[str, float]
    matches: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    costs: dict[str, np.ndarray] | None = None


def focal(logits, targets, alpha, gamma=GAMMA):
    """Sigmoid focal loss of each logit (§3.5; arXiv 1708.02002, Eq. 5): -α_t (1 - p_t)^γ log(p_t).

    p_t is the probability of the right answer. The logit of the wrong answer gives both factors without cancellation:
    1 - p_t is its sigmoid, and -log(p_t) its softplus.

    Args:
        logits [Q, T]: logits.
        targets [Q, T]: True where the answer is yes.
        alpha: weight of these; the others have the weight 1 - alpha.
        gamma: the larger, the less the logits count that are right already.

    Returns:
        [Q, T]: losses.
    """
    wrong = np.where(targets, -logits, logits)  # [Q, T]
    cross_entropy = np.maximum(wrong, 0) + np.log1p(np.exp(-abs(wrong)))  # [Q, T]
    loss = sigmoid(wrong) ** gamma * cross_entropy  # [Q, T]
    return np.where(targets, alpha * loss, (1 - alpha) * loss)


def l1(boxes, targets):
    """L1 distance of boxes (§3.5): boxes [..., 4], targets [..., 4] -> [...]"""
    return abs(boxes - targets).sum(axis=-1)


def giou(boxes, targets):
    """Generalised IoU of boxes (§3.5; arXiv 1902.09630, Algorithm 1).

    It is the IoU minus the fraction of the hull, the smallest box around both, that neither covers. So it is negative
    for boxes that are far apart, where the IoU is 0 at any distance.

    Args:
        boxes [..., 4], targets [..., 4]: (cx, cy, w, h).

    Returns:
        [...]: values above -1, up to 1 for equal boxes; NaN for two boxes without an area.
    """
    a, b = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets)  # [..., 4], [..., 4]
    intersection = area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    hull = area(np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:]))
    return intersection / union - (hull - union) / hull


def area(first, last):
    """Area between two corners, 0 if they are in the wrong order: first [..., 2], last [..., 2] -> [...]"""
    sides = np.maximum(last - first, 0)  # [..., 2]
    return sides[..., 0] * sides[..., 1]


def stages(output, auxiliary):
    """Logits and boxes of each stage that has losses (§3.5): the decoder's last layer, the encoder, the other layers.

    Args:
        output: `Output` of a forward pass with details=True.
        auxiliary: whether the decoder layers before the last one have losses.

    Returns:
        {stage: (logits [Q, T], boxes [Q, 4])}, with the names of stages in `Losses`.
    """
    # the encoder's candidates are the selected image tokens, as in DINO's code and in MMDetection
    encoder = output.encoder_logits[output.selected], sigmoid(output.encoder_boxes[output.selected])
    others = len(output.layer_logits) - 1 if auxiliary else 0
    return {"": (output.logits, output.boxes), "_enc": encoder,
            **{f"_{i}": (output.layer_logits[i], output.layer_boxes[i]) for i in range(others)}}


def losses(stages, targets, matches, config):
    """Losses of every stage (§3.5; arXiv 2005.12872, section 3.1), all differentiable but the cardinality error.

    Args:
        stages: from `stages`.
        targets: `Targets`.
        matches: {stage: (indices of queries, indices of their boxes)}, from `matching.match`.
        config: `Config`.

    Returns:
        {name: value}, with the names in `Losses`.
    """
    terms = {}
    count = max(1, len(targets.boxes))
    for stage, (logits, boxes) in stages.items():
        queries, chosen = matches[stage]
        tokens = np.zeros(logits.shape, bool)
        tokens[queries] = targets.tokens[chosen]
        matched, wanted = boxes[queries], targets.boxes[chosen]
        terms |= {
            f"loss_ce{stage}": focal(logits, tokens, config.focal_alpha).sum() / count,
            f"loss_bbox{stage}": l1(matched, wanted).sum() / count,
            f"loss_giou{stage}": (1 - giou(matched, wanted)).sum() / count,
            f"cardinality_error{stage}": abs((sigmoid(logits).max(axis=-1) > 0.5).sum() - len(targets.boxes)),
        }
    return terms


def total(terms, config, class_weight=CLASS_WEIGHT):
    """Weighted sum of the losses (§4.1): terms {name: value}, from `losses` -> the total"""
    # != paper: §4.1 gives the classification loss the weight 1 and its matching cost the weight 2. Table 8 and the
    # released config have them the other way round
    weights = {"loss_ce": class_weight, "loss_bbox": config.bbox_loss_coefficient,
               "loss_giou": config.giou_loss_coefficient}
    return sum(weight * value for kind, weight in weights.items() for name, value in terms.items()
               if name.startswith(kind))

"""§3.5  Bipartite matching: each target box gets a query of its own, so that the sum of the costs is smallest.

Matching computes on plain arrays. Its result is an index, which is constant for the gradient of the losses.

Q queries, T text tokens, B target boxes.
"""

from __future__ import annotations

import numpy as np

from .boxes import sigmoid
from .losses import GAMMA, giou, l1


def answer_costs(logits, alpha, gamma, eps):
    """Cost of the answers yes and no for each logit (§3.5): the focal loss (arXiv 1708.02002, Eq. 5), bounded by eps.

    Args:
        logits [Q, T]: logits.
        alpha, gamma: as in `losses.focal`.
        eps: added to probabilities before the logarithm.

    Returns:
        [Q, T], [Q, T]: costs of yes; costs of no.
    """
    p = sigmoid(logits)  # [Q, T]
    yes = alpha * (1 - p) ** gamma * -np.log(p + eps)  # [Q, T]
    no = (1 - alpha) * p**gamma * -np.log(1 - p + eps)  # [Q, T]
    return yes, no


def class_cost(logits, tokens, alpha, gamma=GAMMA):
    """Class cost of transformers (§3.5): the cost of yes minus that of no, as a mean over the tokens of the phrase.

    Args:
        logits [Q, T]: logits of each query.
        tokens [B, T]: True for the tokens of a box's phrase.
        alpha, gamma: as in `losses.focal`.

    Returns:
        [Q, B]: costs.
    """
    yes, no = answer_costs(logits, alpha, gamma, eps=1e-8)  # [Q, T], [Q, T]
    phrase = tokens.astype(logits.dtype)  # [B, T]
    return (yes - no) @ (phrase / phrase.sum(axis=1, keepdims=True)).T


def summed_class_cost(logits, tokens, alpha, gamma=GAMMA):
    """Class cost of MMDetection (§3.5): the costs of all tokens in sum, yes for those of the phrase and no for others.

    MMDetection multiplies it by 2 and the classification loss by 1. In transformers it is the other way round.

    Args:
        logits [Q, T]: logits of each query.
        tokens [B, T]: True for the tokens of a box's phrase.
        alpha, gamma: as in `losses.focal`.

    Returns:
        [Q, B]: costs.
    """
    yes, no = answer_costs(logits, alpha, gamma, eps=1e-12)  # [Q, T], [Q, T]
    phrase = tokens.astype(logits.dtype)  # [B, T]
    return yes @ phrase.T + no @ (1 - phrase).T


def cost_matrix(logits, boxes, targets, config, class_cost=class_cost):
    """Cost of matching each query with each target box (§3.5; arXiv 2005.12872, section 3.1).

    Args:
        logits [Q, T], boxes [Q, 4]: prediction of each query.
        targets: `losses.Targets`.
        config: `Config`.
        class_cost: one of the two functions above.

    Returns:
        [Q, B]: weighted sums of class, L1 and GIoU cost.
    """
    candidates, wanted = boxes[:, None], targets.boxes[None]  # [Q, 1, 4], [1, B, 4]
    with np.errstate(invalid="ignore"):  # two boxes without an area
        cost = (config.class_cost * class_cost(logits, targets.tokens, config.focal_alpha)
                + config.bbox_cost * l1(candidates, wanted) - config.giou_cost * giou(candidates, wanted))  # [Q, B]
    # as in transformers, a pair without a finite cost is matched only if all others are worse
    return np.where(np.isfinite(cost), cost, np.finfo(cost.dtype).max)


def assign(cost):
    """Assignment with the smallest sum of costs (§3.5; arXiv 2005.12872, Eq. 1), by the Hungarian algorithm of SciPy.

    Args:
        cost [Q, B]: costs.

    Returns:
        Indices of queries, increasing, and those of their boxes: min(Q, B) of each.

    Raises:
        ImportError: if SciPy is not installed.
    """
    from scipy.optimize import linear_sum_assignment  # optional, and slow to import

    return linear_sum_assignment(cost)


def match(stages, targets, config, class_cost=class_cost):
    """Match each stage on its own (§3.5).

    Args:
        stages: from `losses.stages`.
        targets: `losses.Targets`.
        config: `Config`.
        class_cost: as in `cost_matrix`.

    Returns:
        {stage: (indices of queries, indices of their boxes)} and {stage: cost [Q, B]}.
    """
    costs = {stage: cost_matrix(logits, boxes, targets, config, class_cost)
             for stage, (logits, boxes) in stages.items()}
    return {stage: assign(cost) for stage, cost in costs.items()}, costs

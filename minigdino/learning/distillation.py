"""Learning without forgetting (arXiv 1606.09282, §3): a loss that keeps predictions as another model makes them.

For the same selected image tokens, queries of the same rank correspond to each other in both models, so they need no
matching (arXiv 2508.11339, §3.2).

Q queries, S image tokens, T text tokens.
"""

from __future__ import annotations

import numpy as np

from ..network.boxes import sigmoid
from ..network.losses import stages


def softplus(x):
    """log(1 + exp(x)), without overflow: x [...] -> [...]"""
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def divergence(logits, wanted):
    """Kullback-Leibler divergence of the answers yes and no, from those of other logits: the sum of p log(p / q).

    With p = sigmoid(wanted) and q = sigmoid(logits), it is softplus(logits) - softplus(wanted) - p (logits - wanted).

    Args:
        logits [Q, T]: logits.
        wanted [Q, T]: logits from which they should not differ.

    Returns:
        [Q, T]: divergences, 0 for equal logits. The derivative is q - p.
    """
    return softplus(logits) - softplus(wanted) - sigmoid(wanted) * (logits - wanted)


def distillation(output, wanted, config):
    """Losses of predictions that differ from those of another model, with names of the losses of §3.5.

    Boxes have the squared distance: for equal ones, its derivative is 0, and those of L1 and GIoU are not. They count
    as much as the other model is certain of them. The sums are divided by the number of objects that it expects. The
    divergence of the encoder counts all image tokens, so that the model selects the same ones.

    Args:
        output: `Output` of the model, with details=True and the selected tokens of the other model.
        wanted: `Output` of the other model, with details=True.
        config: `Config`.

    Returns:
        {name: value}, all 0 where both are equal, with the names in `network.losses.Losses`.
    """
    terms = {}
    certainty = sigmoid(wanted.logits).max(axis=-1)  # [Q]
    count = max(1, certainty.sum())
    others = stages(wanted, auxiliary=True)
    for stage, (logits, boxes) in stages(output, auxiliary=True).items():
        other_logits, other_boxes = others[stage]
        if stage == "_enc":
            logits, other_logits = output.encoder_logits, wanted.encoder_logits
        terms |= {
            f"loss_ce{stage}": divergence(logits, other_logits).sum() / count,
            f"loss_bbox{stage}": (certainty[:, None] * (boxes - other_boxes) ** 2).sum() / count,
        }
    return terms

"""Calibration of the scores after training: lower the bias of the class head until false detections are rare.

All logits change by the same amount, so the order of boxes and the average precision do not change.
"""

import numpy as np
import torch

from training.evaluate import FALSE_BOX
from training.model import image_processor
from training.predict import with_network
from training.scenes import SEED, scenes

CALIBRATION_SEED = SEED + 1  # different scenes from those of the evaluation
SCENES, ALLOWED = 1000, 0.07  # boxes per image that may score above FALSE_BOX while every phrase is absent


def shift(scores: np.ndarray, allowed: int) -> float:
    """Compute the bias change after which at most `allowed` of the scores are above FALSE_BOX.

    Args:
        scores: probabilities, the best of each query.
        allowed: number of scores that may exceed FALSE_BOX.

    Returns:
        The value to add to all logits; zero or negative.
    """
    limit = np.sort(scores)[-allowed - 1]  # the highest score that must not exceed FALSE_BOX
    logit = np.log(limit / (1 - limit))
    return float(min(0.0, np.log(FALSE_BOX / (1 - FALSE_BOX)) - logit))


@torch.no_grad()
def calibrate(network) -> float:
    """Lower the bias of the last decoder layer's class head in place.

    Returns:
        The value added to the bias.
    """
    predict = with_network(network.eval(), image_processor())
    best = [predict(s.image, p.phrases)[1].max(axis=1) for s, p in scenes("absent", SCENES, CALIBRATION_SEED)]
    by = shift(np.concatenate(best), round(ALLOWED * SCENES))
    network.class_embed[network.config.decoder_layers - 1].bias += by
    return by

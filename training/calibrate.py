"""What a score means is fixed last: the class head's bias is lowered until few boxes are found where nothing fits.

Every logit moves by the same amount, so the order of boxes, and with it the average precision, stays as it is.
"""

import numpy as np
import torch

from training.evaluate import FALSE_BOX, SEED, scenes
from training.model import image_processor
from training.predict import with_network

OTHER = SEED + 1  # scenes that no figure is measured on
SCENES, ALLOWED = 1000, 0.07  # boxes a picture that may score above FALSE_BOX although every phrase is absent


def shift(scores: np.ndarray, allowed: int) -> float:
    """What to add to all logits, nothing or less, so that at most `allowed` of these scores are above FALSE_BOX."""
    limit = np.sort(scores)[-allowed - 1]  # this one and those below it may not pass
    logit = np.log(limit / (1 - limit))
    return float(min(0.0, np.log(FALSE_BOX / (1 - FALSE_BOX)) - logit))


@torch.no_grad()
def calibrate(network) -> float:
    """Lower the bias of the last decoder layer's class head in place; -> by how much."""
    predict = with_network(network.eval(), image_processor())
    best = [predict(s.image, p.phrases)[1].max(axis=1) for s, p in scenes("absent", SCENES, OTHER)]
    by = shift(np.concatenate(best), round(ALLOWED * SCENES))
    network.class_embed[network.config.decoder_layers - 1].bias += by
    return by

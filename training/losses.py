"""§3.5  The loss: words by focal loss, boxes by L1 and GIoU, after Hungarian matching; for the encoder's proposals and
for every decoder layer.

transformers' own loss is of no use here: its encoder term compares the learned queries with the text alone, never with
the picture, so that query selection is not taught.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from training.batches import Batch

WORDS, CORNERS, OVERLAP = 2.0, 5.0, 2.0  # weights of the three terms; in the matching cost words weigh 1
ALPHA, GAMMA = 0.25, 2.0


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """cxcywh [..., 4] -> xyxy [..., 4]"""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of cxcywh boxes whose leading axes broadcast: [..., 4] and [..., 4] -> [...]"""
    a, b = corners(a), corners(b)
    area_a, area_b = ((c[..., 2:] - c[..., :2]).prod(-1) for c in (a, b))
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area_a + area_b - shared
    return shared / union + union / hull - 1


def focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sigmoid focal loss of each element."""
    surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = torch.sigmoid(logits) * (1 - 2 * target) + target  # how far the probability is from the target
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return weight * miss**GAMMA * surprise


@torch.no_grad()
def match(logits: torch.Tensor, boxes: torch.Tensor, tokens: torch.Tensor, wanted: torch.Tensor) -> tuple:
    """One picture: logits [Q, T], boxes [Q, 4]; targets tokens [N, T], wanted [N, 4] -> query and target indices [N]

    The words' cost of a pair: what saying yes costs less what saying no does, the mean over the target's own tokens.
    """
    yes, no = focal(logits, torch.ones_like(logits)), focal(logits, torch.zeros_like(logits))
    words = (yes - no) @ (tokens / tokens.sum(1, keepdim=True)).T
    cost = words + CORNERS * torch.cdist(boxes, wanted, p=1) - OVERLAP * giou(boxes[:, None], wanted[None])
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def stage_loss(logits: torch.Tensor, boxes: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss of one stage's answers, logits [B, Q, T] and boxes [B, Q, 4] in 0..1, for each wanted box."""
    target = torch.zeros_like(logits)
    found, wanted = [], []
    for i, (tokens, truth) in enumerate(zip(batch.tokens, batch.boxes, strict=True)):
        if len(truth):
            rows, columns = match(logits[i], boxes[i], tokens, truth)
            target[i, rows] = tokens[columns]
            found.append(boxes[i, rows])
            wanted.append(truth[columns])
    words = (focal(logits, target) * batch.mask[:, None]).sum()
    total = WORDS * words
    if found:
        found, wanted = torch.cat(found), torch.cat(wanted)
        total = total + CORNERS * F.l1_loss(found, wanted, reduction="sum") + OVERLAP * (1 - giou(found, wanted)).sum()
    return total / max(1, sum(map(len, batch.boxes)))


def proposals(outputs, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's answers, one for each image token S: logits [B, S, T] and boxes [B, S, 4].

    Tokens too near the border to propose a box carry infinite coordinates; a box far outside is theirs here, so that
    they match nothing, learn to score low, and send no gradient through infinity.
    """
    coordinates = outputs.enc_outputs_coord_logits
    usable = coordinates.isfinite()
    boxes = torch.where(usable, torch.where(usable, coordinates, 0).sigmoid(), 100.0)
    return outputs.enc_outputs_class[..., :length], boxes


def answers(network, outputs, batch: Batch):
    """Each decoder layer's logits [B, Q, T] and boxes [B, Q, 4], first to last."""
    reference = outputs.init_reference_points
    for i in range(network.config.decoder_layers):
        state = outputs.intermediate_hidden_states[:, i]
        logits = network.class_embed[i](state, outputs.encoder_last_hidden_state_text, batch.mask.bool())
        boxes = (network.bbox_embed[i](state) + torch.logit(reference, eps=1e-5)).sigmoid()
        yield logits[..., : batch.ids.shape[1]], boxes
        reference = outputs.intermediate_reference_points[:, i]


def loss(network, batch: Batch) -> torch.Tensor:
    """Forward and the sum of all stages' losses."""
    outputs = network.model(pixel_values=batch.pixels, input_ids=batch.ids, attention_mask=batch.mask)
    # Padded words have a logit of -inf; a large finite one keeps the focal loss from 0 * inf.
    stages = [proposals(outputs, batch.ids.shape[1]), *answers(network, outputs, batch)]
    return sum(stage_loss(logits.clamp(min=-50), boxes, batch) for logits, boxes in stages)

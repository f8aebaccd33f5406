"""§3.5  Loss: focal loss for classes, L1 and GIoU for boxes, after Hungarian matching.

It is applied to the encoder's proposals and to every decoder layer. The loss of transformers does not train query
selection: its encoder term compares the learned queries with the text and ignores the image.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from training.batches import Batch

CLASS, L1, GIOU = 2.0, 5.0, 2.0  # weights of the three terms; the class weight is 1 in the matching cost
ALPHA, GAMMA = 0.25, 2.0


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Convert boxes from cxcywh to xyxy: [..., 4] -> [..., 4]."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of cxcywh boxes with broadcast leading axes: [..., 4] and [..., 4] -> [...]."""
    a, b = corners(a), corners(b)
    area_a, area_b = ((c[..., 2:] - c[..., :2]).prod(-1) for c in (a, b))
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area_a + area_b - shared
    return shared / union + union / hull - 1


def focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sigmoid focal loss of each element."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    error = torch.sigmoid(logits) * (1 - 2 * target) + target  # |probability - target|
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return weight * error**GAMMA * cross_entropy


@torch.no_grad()
def match(logits: torch.Tensor, boxes: torch.Tensor, tokens: torch.Tensor, target_boxes: torch.Tensor) -> tuple:
    """Match queries to the targets of one image.

    The class cost of a pair is the focal loss for target 1 minus the focal loss for target 0. It is averaged over the
    tokens of the target.

    Args:
        logits: [Q, T].
        boxes: [Q, 4], cxcywh in 0..1.
        tokens: [N, T], 1.0 for the tokens of a target.
        target_boxes: [N, 4], cxcywh in 0..1.

    Returns:
        indices [N] of the queries and indices [N] of the targets.
    """
    positive, negative = focal(logits, torch.ones_like(logits)), focal(logits, torch.zeros_like(logits))
    class_cost = (positive - negative) @ (tokens / tokens.sum(1, keepdim=True)).T
    cost = class_cost + L1 * torch.cdist(boxes, target_boxes, p=1) - GIOU * giou(boxes[:, None], target_boxes[None])
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def stage_loss(logits: torch.Tensor, boxes: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Compute the loss of one stage, per target box.

    Args:
        logits: [B, Q, T].
        boxes: [B, Q, 4], cxcywh in 0..1.
        batch: images, prompts and targets.
    """
    target = torch.zeros_like(logits)
    predicted, expected = [], []
    for i, (tokens, truth) in enumerate(zip(batch.tokens, batch.boxes, strict=True)):
        if len(truth):
            rows, columns = match(logits[i], boxes[i], tokens, truth)
            target[i, rows] = tokens[columns]
            predicted.append(boxes[i, rows])
            expected.append(truth[columns])
    class_loss = (focal(logits, target) * batch.mask[:, None]).sum()
    total = CLASS * class_loss
    if predicted:
        predicted, expected = torch.cat(predicted), torch.cat(expected)
        l1_loss = F.l1_loss(predicted, expected, reduction="sum")
        total = total + L1 * l1_loss + GIOU * (1 - giou(predicted, expected)).sum()
    return total / max(1, sum(map(len, batch.boxes)))


def encoder_predictions(outputs, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the encoder's proposals, one for each of S image tokens.

    Tokens close to the border have infinite coordinates and propose no box. Here they get a box far outside the
    image. It matches no target and keeps the gradient finite, and its score is trained to be low.

    Args:
        outputs: outputs of the network.
        length: T, the number of text tokens.

    Returns:
        logits [B, S, T] and boxes [B, S, 4], cxcywh.
    """
    coordinates = outputs.enc_outputs_coord_logits
    usable = coordinates.isfinite()
    boxes = torch.where(usable, torch.where(usable, coordinates, 0).sigmoid(), 100.0)
    return outputs.enc_outputs_class[..., :length], boxes


def decoder_predictions(network, outputs, batch: Batch):
    """Compute logits [B, Q, T] and boxes [B, Q, 4] of each decoder layer, from the first to the last."""
    reference = outputs.init_reference_points
    for i in range(network.config.decoder_layers):
        state = outputs.intermediate_hidden_states[:, i]
        logits = network.class_embed[i](state, outputs.encoder_last_hidden_state_text, batch.mask.bool())
        boxes = (network.bbox_embed[i](state) + torch.logit(reference, eps=1e-5)).sigmoid()
        yield logits[..., : batch.ids.shape[1]], boxes
        reference = outputs.intermediate_reference_points[:, i]


def loss(network, batch: Batch) -> torch.Tensor:
    """Run a forward pass and sum the losses of all stages."""
    outputs = network.model(pixel_values=batch.pixels, input_ids=batch.ids, attention_mask=batch.mask)
    # Logits of padded tokens are -inf. Clamping keeps the focal loss from computing 0 * inf.
    stages = [encoder_predictions(outputs, batch.ids.shape[1]), *decoder_predictions(network, outputs, batch)]
    return sum(stage_loss(logits.clamp(min=-50), boxes, batch) for logits, boxes in stages)

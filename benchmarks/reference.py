"""transformers' model of a checkpoint, reduced to the four results that every benchmarked program returns.

logits [1, Q, T], boxes [1, Q, 4], vision [1, S, C] after the enhancer, and selection scores [1, S]. The first axis is
the batch axis of transformers.
"""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForZeroShotObjectDetection

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

RESULTS = ("logits", "boxes", "vision", "scores")


class Reference(torch.nn.Module):
    """transformers' model, returning only these results."""

    def __init__(self, directory, attention: str = "sdpa"):
        """Load a checkpoint.

        Args:
            directory: checkpoint.
            attention: attention implementation of the image backbone, "sdpa" or "eager". The text backbone always
                uses "sdpa", because "eager" would add its boolean mask to the scores.
        """
        super().__init__()
        options = {"attn_implementation": {"backbone_config": attention, "text_config": "sdpa"}, "dtype": torch.float32}
        self.network = AutoModelForZeroShotObjectDetection.from_pretrained(directory, **options)
        self.eval().requires_grad_(False)

    def forward(self, pixels, ids):
        """Run a forward pass: pixels [1, 3, H, W], ids [1, T] -> logits, boxes, vision, scores."""
        output = self.network(pixel_values=pixels, input_ids=ids)
        scores = output.enc_outputs_class.max(-1)[0]
        return output.logits[..., : ids.shape[1]], output.pred_boxes, output.encoder_last_hidden_state_vision, scores

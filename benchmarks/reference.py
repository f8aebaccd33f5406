"""transformers' model of a checkpoint, and the four results that every program here returns.

logits [Q, T], boxes [Q, 4], vision [S, C] after the enhancer, scores [S] that queries are selected by; with a batch
axis of one before them, as transformers has it.
"""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForZeroShotObjectDetection

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

RESULTS = ("logits", "boxes", "vision", "scores")


class Reference(torch.nn.Module):
    """The model, asked for these results alone."""

    def __init__(self, directory, attention: str = "sdpa"):
        """attention: how the image backbone writes its own down. The text backbone keeps sdpa: a mask of truth values
        means nothing to the other."""
        super().__init__()
        options = {"attn_implementation": {"backbone_config": attention, "text_config": "sdpa"}, "dtype": torch.float32}
        self.network = AutoModelForZeroShotObjectDetection.from_pretrained(directory, **options)
        self.eval().requires_grad_(False)

    def forward(self, pixels, ids):
        """pixels [1, 3, H, W], ids [1, T] -> logits, boxes, vision, scores"""
        output = self.network(pixel_values=pixels, input_ids=ids)
        scores = output.enc_outputs_class.max(-1)[0]
        return output.logits[..., : ids.shape[1]], output.pred_boxes, output.encoder_last_hidden_state_vision, scores

"""§3.3  Cross-modality decoder. Six layers: attention to queries, text and image; each layer refines the boxes.

Q queries, S image tokens, T text tokens, C channels, N decoder layers.
"""

from __future__ import annotations

import numpy as np

from .boxes import box_positions, logit, sigmoid
from .deformable import deformable_attention
from .ops import add_norm, attention, detach, feed_forward, layer_norm, mlp


def decoder_layer(queries, query_pos, references, vision, text, sizes, self_attn, self_attn_layer_norm,
                  encoder_attn_text, encoder_attn_text_layer_norm, encoder_attn, encoder_attn_layer_norm,
                  fc1, fc2, final_layer_norm, n_heads, n_points, activation, eps):
    """Decoder layer (§3.3; Figure 3, block 3): self-attention, text and image cross-attention, feed-forward network.

    Args:
        queries [Q, C], query_pos [Q, C]: decoder states and the positional encoding of their boxes.
        references [Q, 4]: the boxes, around which deformable attention samples the image.
        vision [S, C], text [T, C]: enhanced image and text tokens.
        sizes: ((H, W), ...) of the levels.

    Returns:
        [Q, C]: decoder states.
    """
    positioned = queries + query_pos  # [Q, C]
    from_queries = attention(positioned, positioned, queries, **self_attn, n_heads=n_heads)  # [Q, C]
    after_self = add_norm(queries, from_queries, **self_attn_layer_norm, eps=eps)  # [Q, C]

    # != paper: in §3.3 and Figure 3, the image is before the text; the released decoder attends to the text first
    from_text = attention(after_self + query_pos, text, text, **encoder_attn_text, n_heads=n_heads)  # [Q, C]
    after_text = add_norm(after_self, from_text, **encoder_attn_text_layer_norm, eps=eps)  # [Q, C]

    from_image = deformable_attention(after_text + query_pos, references, vision, sizes, **encoder_attn,
                                      n_heads=n_heads, n_points=n_points)  # [Q, C]
    after_image = add_norm(after_text, from_image, **encoder_attn_layer_norm, eps=eps)  # [Q, C]

    hidden = feed_forward(after_image, fc1, fc2, activation)  # [Q, C]
    return add_norm(after_image, hidden, **final_layer_norm, eps=eps)


def refine(states, references, bbox_embed):
    """Refine boxes by a predicted difference of logits (Deformable DETR, arXiv 2010.04159, A.4).

    Args:
        states [Q, C]: decoder states.
        references [Q, 4]: boxes to refine.

    Returns:
        [Q, 4]: refined boxes.
    """
    return sigmoid(mlp(states, **bbox_embed) + logit(references))


def decoder(queries, references, vision, text, sizes, layers, norm, reference_points_head, bbox_embed, config):
    """Cross-modality decoder (§3.3).

    Args:
        queries [Q, C]: learned contents, the same for every image.
        references [Q, 4]: first boxes, from `select_queries`.
        vision [S, C], text [T, C]: enhanced image and text tokens.
        sizes: ((H, W), ...) of the levels.
        bbox_embed: the box head of each layer.
        config: `Config`.

    Returns:
        [N, Q, C], [N+1, Q, 4]: layer-normalised states after each layer; boxes that enter each layer, then the boxes
        that leave the last one.
    """
    states, boxes, x = [], [references], queries
    # != paper: Deformable DETR (A.4) has one box head per layer, and so has MM Grounding DINO. The released weights of
    # Grounding DINO have one head for all layers, as DAB-DETR (section 4.3) has
    for layer, head in zip(layers, bbox_embed):
        query_pos = mlp(box_positions(boxes[-1], config.d_model // 2), **reference_points_head)  # [Q, C]
        x = decoder_layer(x, query_pos, boxes[-1], vision, text, sizes, **layer,
                          n_heads=config.decoder_attention_heads, n_points=config.decoder_n_points,
                          activation=config.activation_function, eps=config.layer_norm_eps)
        states.append(layer_norm(x, **norm, eps=config.layer_norm_eps))
        # refined with the unnormalised state for the next layer; `model.forward` uses the layer-normalised one
        # A.4: gradients pass through the predicted differences only, not through the boxes that they refine
        boxes.append(detach(refine(x, boxes[-1], head)))
    return np.stack(states), np.stack(boxes)

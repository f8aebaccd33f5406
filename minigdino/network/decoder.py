"""§3.3  Cross-modality decoder. Six layers: queries attend to each other, to the text, to the image; boxes are refined.

Q queries, S image tokens, T text tokens, C channels, N decoder layers.
"""

from __future__ import annotations

import numpy as np

from .boxes import box_positions, logit, sigmoid
from .deformable import deformable_attention
from .ops import add_norm, attention, feed_forward, layer_norm, mlp


def decoder_layer(queries, query_pos, references, vision, text, sizes, self_attn, self_attn_layer_norm,
                  encoder_attn_text, encoder_attn_text_layer_norm, encoder_attn, encoder_attn_layer_norm,
                  fc1, fc2, final_layer_norm, n_heads, n_points, activation, eps):
    """Figure 3, block 3. queries [Q, C], query_pos [Q, C], references [Q, 4], vision [S, C], text [T, C] -> [Q, C]"""
    placed = queries + query_pos  # [Q, C]
    to_queries = attention(placed, placed, queries, **self_attn, n_heads=n_heads)  # [Q, C]
    x = add_norm(queries, to_queries, **self_attn_layer_norm, eps=eps)  # [Q, C]

    # != paper: Figure 3 draws the image before the text; the released decoder attends to the text first
    to_text = attention(x + query_pos, text, text, **encoder_attn_text, n_heads=n_heads)  # [Q, C]
    y = add_norm(x, to_text, **encoder_attn_text_layer_norm, eps=eps)  # [Q, C]

    to_image = deformable_attention(y + query_pos, references, vision, sizes, **encoder_attn,
                                    n_heads=n_heads, n_points=n_points)  # [Q, C]
    z = add_norm(y, to_image, **encoder_attn_layer_norm, eps=eps)  # [Q, C]
    return add_norm(z, feed_forward(z, fc1, fc2, activation), **final_layer_norm, eps=eps)


def refine(states, references, bbox_embed):
    """Move boxes by what the states say, in logits: states [Q, C], references [Q, 4] -> [Q, 4]"""
    return sigmoid(mlp(states, **bbox_embed) + logit(references))


def decoder(queries, references, vision, text, sizes, layers, norm, reference_points_head, bbox_embed, config):
    """queries [Q, C], references [Q, 4], vision [S, C], text [T, C] -> normed states [N, Q, C], references [N+1, Q, 4]

    references[i] enters layer i, references[i + 1] leaves it.
    """
    states, boxes, x = [], [references], queries
    for layer, head in zip(layers, bbox_embed):
        query_pos = mlp(box_positions(boxes[-1], config.d_model // 2), **reference_points_head)  # [Q, C]
        x = decoder_layer(x, query_pos, boxes[-1], vision, text, sizes, **layer,
                          n_heads=config.decoder_attention_heads, n_points=config.decoder_n_points,
                          activation=config.activation_function, eps=config.layer_norm_eps)
        states.append(layer_norm(x, **norm, eps=config.layer_norm_eps))
        boxes.append(refine(x, boxes[-1], head))
    return np.stack(states), np.stack(boxes)

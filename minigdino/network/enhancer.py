"""§3.1  Feature enhancer. Neck, then six layers of fusion, text self-attention and deformable image self-attention.

S image tokens over all levels, L levels, T text tokens, C channels, H, W rows and columns of a map, I, O channels in
and out.
"""

from __future__ import annotations

import numpy as np

from .boxes import image_positions, pixel_centres, sine_embedding
from .deformable import deformable_attention
from .fusion import fusion_layer
from .ops import add_norm, attention, feed_forward, group_norm, linear


def conv_1x1(x, weight, bias):
    """1 x 1 convolution: x [H, W, I], weight [O, I, 1, 1] -> [H, W, O]"""
    return linear(x, weight.reshape(weight.shape[:2]), bias)


def conv_3x3_stride_2(x, weight, bias):
    """3 x 3 convolution, stride 2, zero padding 1: x [H, W, I], weight [O, I, 3, 3] -> [ceil(H/2), ceil(W/2), O]"""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    h, w = (x.shape[0] + 1) // 2, (x.shape[1] + 1) // 2
    taps = [padded[i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for i in range(3) for j in range(3)]
    patches = np.stack(taps, axis=-1).reshape(h, w, -1)  # in the weight's order: channel, row, column
    return linear(patches, weight.reshape(len(weight), -1), bias)


def neck(features, input_proj_vision):
    """Project the backbone's maps to C channels and append coarser maps (Deformable DETR, arXiv 2010.04159, A.2).

    Args:
        features: list of [H, W, I], the backbone's maps, fine to coarse.

    Returns:
        list of [H, W, C], one map for each of the L levels, fine to coarse.
    """
    maps = []
    for level, (conv, norm) in enumerate(input_proj_vision):
        if level < len(features):
            projected = conv_1x1(features[level], **conv)
        else:  # input of the first coarser map: the backbone's last map, not its projection
            projected = conv_3x3_stride_2(features[-1] if level == len(features) else maps[-1], **conv)
        maps.append(group_norm(projected, **norm))
    return maps


def vision_positions(sizes, level_embed, temperature):
    """Sum of positional and level embedding for every image token (Deformable DETR, arXiv 2010.04159, section 4.1).

    Args:
        sizes: ((H, W), ...) of the levels.
        level_embed [L, C]: learned, one vector per level.
        temperature: temperature of the sine embedding.

    Returns:
        [S, C]: embeddings.
    """
    C = level_embed.shape[1]
    return np.concatenate([image_positions(H, W, C, temperature, like=level_embed) + level_embed[i]
                           for i, (H, W) in enumerate(sizes)])


def text_enhancer_layer(text, positions, mask, self_attn, fc1, fc2, layer_norm_before, layer_norm_after, n_heads,
                        activation, eps):
    """Text self-attention within phrases (Figure 3, block 2; §3.4), then a feed-forward network.

    Args:
        text [T, C], positions [T, C]: tokens and their positional encoding, added to queries and keys only.
        mask [T, T]: True where a token (row) may attend to another (column).

    Returns:
        [T, C]: text tokens.
    """
    positioned = text + positions  # [T, C]
    attended = attention(positioned, positioned, text, **self_attn, n_heads=n_heads, mask=mask)  # [T, C]
    after_attention = add_norm(text, attended, **layer_norm_before, eps=eps)  # [T, C]
    hidden = feed_forward(after_attention, fc1, fc2, activation)  # [T, C]
    return add_norm(after_attention, hidden, **layer_norm_after, eps=eps)


def deformable_layer(vision, positions, references, sizes, self_attn, self_attn_layer_norm, fc1, fc2,
                     final_layer_norm, n_heads, n_points, activation, eps):
    """Deformable self-attention of the image (Figure 3, block 2), then a feed-forward network.

    Args:
        vision [S, C], positions [S, C]: tokens and their positional encoding, added to the queries only.
        references [S, 2]: the pixel centre of each token.
        sizes: ((H, W), ...) of the levels.

    Returns:
        [S, C]: image tokens.
    """
    attended = deformable_attention(vision + positions, references, vision, sizes, **self_attn,
                                    n_heads=n_heads, n_points=n_points)  # [S, C]
    after_attention = add_norm(vision, attended, **self_attn_layer_norm, eps=eps)  # [S, C]
    hidden = feed_forward(after_attention, fc1, fc2, activation)  # [S, C]
    return add_norm(after_attention, hidden, **final_layer_norm, eps=eps)


def enhancer(maps, text, mask, token_positions, layers, level_embed, config):
    """Feature enhancer (§3.1; Figure 3, block 2).

    Args:
        maps: list of [H, W, C], from `neck`.
        text [T, C]: text features.
        mask [T, T], token_positions [T]: from `phrase_mask`.
        level_embed [L, C]: learned level embedding.
        config: `Config`.

    Returns:
        [S, C], [T, C]: enhanced image and text tokens.
    """
    sizes = tuple(m.shape[:2] for m in maps)
    vision = np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])  # [S, C]
    vision_pos = vision_positions(sizes, level_embed, config.positional_embedding_temperature)  # [S, C]
    text_pos = sine_embedding(token_positions.astype(text.dtype), text.shape[1], 10000)  # [T, C]
    references = np.concatenate([pixel_centres(H, W, like=vision) for H, W in sizes])  # [S, 2]
    heads, act, eps = config.encoder_attention_heads, config.activation_function, config.layer_norm_eps
    half = heads // 2  # != paper: appendix A.1 has 8 heads; the released fusion and text layers have half as many
    for layer in layers:
        # != paper: Figure 3 draws self-attention first; in the released encoder, fusion is first, as in Algorithm 1 of
        # MM Grounding DINO (arXiv 2401.02361)
        vision, text = fusion_layer(vision, text, **layer["fusion_layer"], n_heads=half, eps=eps)
        text = text_enhancer_layer(text, text_pos, mask, **layer["text_enhancer_layer"], n_heads=half,
                                   activation=act, eps=eps)
        vision = deformable_layer(vision, vision_pos, references, sizes, **layer["deformable_layer"], n_heads=heads,
                                  n_points=config.encoder_n_points, activation=act, eps=eps)
    return vision, text

"""Image-text cross-attention, both ways from one table of scores. GLIP (arXiv 2112.03857) Eq. 4-6; Figure 3, block 2.

S image tokens, T text tokens, C channels, M heads of D channels.
"""

from __future__ import annotations

from .ops import layer_norm, linear, merge_heads, softmax, split_heads


def bi_attention(vision, text, vision_proj, text_proj, values_vision_proj, values_text_proj,
                 out_vision_proj, out_text_proj, n_heads):
    """vision [S, C], text [T, C] -> [S, C], [T, C]"""
    q = split_heads(linear(vision, **vision_proj), n_heads)  # [M, S, D]
    k = split_heads(linear(text, **text_proj), n_heads)  # [M, T, D]
    v_vision = split_heads(linear(vision, **values_vision_proj), n_heads)  # [M, S, D]
    v_text = split_heads(linear(text, **values_text_proj), n_heads)  # [M, T, D]

    # != released code: it subtracts the largest score of all and clamps at 5e4, which changes nothing in range
    scores = q @ k.swapaxes(1, 2) * q.shape[-1] ** -0.5  # [M, S, T]
    to_text = softmax(scores, axis=-1)  # [M, S, T]
    to_vision = softmax(scores, axis=-2).swapaxes(1, 2)  # [M, T, S]

    from_text = linear(merge_heads(to_text @ v_text), **out_vision_proj)  # [S, C]
    from_vision = linear(merge_heads(to_vision @ v_vision), **out_text_proj)  # [T, C]
    return from_text, from_vision


def fusion_layer(vision, text, layer_norm_vision, layer_norm_text, attn, vision_param, text_param, n_heads, eps):
    """Each modality adds what the other tells it, scaled per channel. vision [S, C], text [T, C] -> [S, C], [T, C]"""
    # != GLIP Eq. 4: the sum starts from the normed input
    v = layer_norm(vision, **layer_norm_vision, eps=eps)  # [S, C]
    t = layer_norm(text, **layer_norm_text, eps=eps)  # [T, C]
    from_text, from_vision = bi_attention(v, t, **attn, n_heads=n_heads)
    return v + vision_param * from_text, t + text_param * from_vision

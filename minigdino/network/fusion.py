"""Image-text cross-attention, both ways from one table of scores. GLIP (arXiv 2112.03857) Eq. 4-6; Figure 3, block 2.

S image tokens, T text tokens, C channels, M heads, D channels of a head.

A prompt has few tokens and an image has many, so every map that GLIP applies to image tokens is folded into the text:
no image token is ever projected. docs/reorderings.md derives it; tests/test_enhancer.py has the definition.
"""

from __future__ import annotations

from ..runtime.kernels import accelerated
from .ops import layer_norm, linear, merge_heads, softmax, split_heads


@accelerated(numpy="minigdino._ext.fusion:attend_both_ways")
def attend_both_ways(vision, asked, offset, told, bias, added=None):
    """The image reads the text, and the text the image, by the scores vision asked' + offset. What a token tells is
    given in `told`; what it sees is the mean of the image, weighted.

    vision [S, C], asked [M, T, C], offset [M, T], told [M, T, C], bias [C], added [S, C] -> [S, C], [M, T, C]
    """
    (S, C), (M, T, _) = vision.shape, asked.shape
    # the released code subtracts the largest score of all and clamps at 5e4 too, which changes nothing in range
    scores = linear(vision, asked.reshape(M * T, C), offset.reshape(M * T)).reshape(S, M, T)  # [S, M, T]
    to_text = softmax(scores, axis=2)  # [S, M, T]
    to_vision = softmax(scores, axis=0)  # [S, M, T]
    from_text = linear(to_text.reshape(S, M * T), told.reshape(M * T, C).T, bias, added)  # [S, C]
    seen = linear(to_vision.reshape(S, M * T).T, vision.T).reshape(M, T, C)  # [M, T, C]
    return from_text, seen


def bi_attention(vision, text, vision_proj, text_proj, values_vision_proj, values_text_proj,
                 out_vision_proj, out_text_proj, n_heads, added=None):
    """What each hears of the other, the image's `added` to what is given: vision [S, C], text [T, C], added [S, C]
    -> [S, C], [T, C]"""
    C, M = text.shape[1], n_heads
    k = split_heads(linear(text, **text_proj), M) * (len(text_proj["bias"]) // M) ** -0.5  # [M, T, D]
    v_text = split_heads(linear(text, **values_text_proj), M)  # [M, T, D]

    # (x Wq + bq) k' = x (Wq k') + bq k': the query map is taken over to the T keys
    asked = k @ vision_proj["weight"].reshape(M, -1, C)  # [M, T, C]
    offset = (k @ vision_proj["bias"].reshape(M, -1, 1))[..., 0]  # [M, T]
    # A ((t Wv + bv) Wo) = (A (t Wv + bv)) Wo: the output map is taken over to the T values
    told = v_text @ out_vision_proj["weight"].reshape(C, M, -1).transpose(1, 2, 0)  # [M, T, C]
    from_text, seen = attend_both_ways(vision, asked, offset, told, out_vision_proj["bias"], added)  # [S, C], [M, T, C]

    # A (x Wv + bv) = (A x) Wv + bv, since the weights of A sum to 1: the value map comes after the sum over the image
    values = seen @ values_vision_proj["weight"].reshape(M, -1, C).swapaxes(1, 2)  # [M, T, D]
    heads = values + values_vision_proj["bias"].reshape(M, 1, -1)  # [M, T, D]
    from_vision = linear(merge_heads(heads), **out_text_proj)  # [T, C]
    return from_text, from_vision


def fusion_layer(vision, text, layer_norm_vision, layer_norm_text, attn, vision_param, text_param, n_heads, eps):
    """Each modality adds what the other tells it, scaled per channel. vision [S, C], text [T, C] -> [S, C], [T, C]"""
    # != paper: GLIP Eq. 5 and 6 add to the input; the released fusion adds to the normed input
    v = layer_norm(vision, **layer_norm_vision, eps=eps)  # [S, C]
    t = layer_norm(text, **layer_norm_text, eps=eps)  # [T, C]
    # p * (a Wo + bo) = a (p * Wo) + p * bo: the image's scale goes over to its last map
    scaled = {name: (p.T * vision_param).T for name, p in attn["out_vision_proj"].items()}
    told, from_vision = bi_attention(v, t, **{**attn, "out_vision_proj": scaled}, n_heads=n_heads, added=v)
    return told, t + text_param * from_vision

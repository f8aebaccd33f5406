"""Bi-directional image-text cross-attention (§3.1, Figure 3, block 2). GLIP (arXiv 2112.03857), Eq. 4-6.

S image tokens, T text tokens, C channels, M heads, D channels of a head.

A prompt has few tokens and an image has many. So every projection that GLIP applies to the image tokens is folded into
the text, and no image token is projected. docs/reorderings.md derives the identities. tests/test_fusion.py compares the
results with GLIP's own order.
"""

from __future__ import annotations

from ..runtime.kernels import accelerated
from .ops import layer_norm, linear, matmul, merge_heads, softmax, split_heads


@accelerated(numpy="minigdino._ext.fusion:attend_both_ways")
def attend_both_ways(vision, folded_keys, key_bias, mapped_values, bias, residual=None):
    """Cross-attention in both directions from one table of scores (GLIP Eq. 4): vision folded_keys^T + key_bias.

    Args:
        vision [S, C]: image tokens.
        folded_keys [M, T, C], key_bias [M, T]: text keys that already contain the image's query projection.
        mapped_values [M, T, C], bias [C]: text values already mapped to image channels, and the bias of that map.
        residual [S, C]: added to the update of the image tokens.

    Returns:
        [S, C], [M, T, C]: update of the image tokens; image context, the attention-weighted mean of the image tokens.
    """
    (S, C), (M, T, _) = vision.shape, folded_keys.shape
    # the released code also subtracts the largest score and clamps to +-5e4; within this range the softmax is the same
    scores = linear(vision, folded_keys.reshape(M * T, C), key_bias.reshape(M * T)).reshape(S, M, T)  # [S, M, T]
    to_text = softmax(scores, axis=2)  # [S, M, T]
    to_vision = softmax(scores, axis=0)  # [S, M, T]
    from_text = linear(to_text.reshape(S, M * T), mapped_values.reshape(M * T, C).T, bias, residual)  # [S, C]
    image_context = linear(to_vision.reshape(S, M * T).T, vision.T).reshape(M, T, C)  # [M, T, C]
    return from_text, image_context


def bi_attention(vision, text, vision_proj, text_proj, values_vision_proj, values_text_proj,
                 out_vision_proj, out_text_proj, n_heads, residual=None):
    """Cross-attention in both directions (X-MHA, GLIP Eq. 4), plus an optional residual for the image.

    GLIP computes in each head, where Wo maps D channels to C and the other projections map C to D:

    - scores: (vision Wq^T + bq) (text Wk^T + bk)^T / sqrt(D)
    - update of the image tokens: softmax(scores) (text Wv^T + bv) Wo^T + bo
    - update of the text tokens: softmax(scores^T) (vision Wv^T + bv) Wo^T + bo

    Args:
        vision [S, C], text [T, C]: image and text tokens.
        residual [S, C]: added to the update of the image tokens.

    Returns:
        [S, C], [T, C]: update of the image tokens from the text; update of the text tokens from the image.
    """
    C, M = text.shape[1], n_heads
    k = split_heads(linear(text, **text_proj), M) * (len(text_proj["bias"]) // M) ** -0.5  # [M, T, D]
    v_text = split_heads(linear(text, **values_text_proj), M)  # [M, T, D]

    # (x Wq^T + bq) k^T = x (k Wq)^T + bq k^T: the query projection is folded into the T keys
    folded_keys = matmul(k, vision_proj["weight"].reshape(M, -1, C))  # [M, T, C]
    key_bias = matmul(k, vision_proj["bias"].reshape(M, -1, 1))[..., 0]  # [M, T]
    # (A v) Wo^T = A (v Wo^T): the output projection is folded into the T values
    mapped_values = matmul(v_text, out_vision_proj["weight"].reshape(C, M, -1).transpose(1, 2, 0))  # [M, T, C]
    from_text, image_context = attend_both_ways(vision, folded_keys, key_bias, mapped_values, out_vision_proj["bias"],
                                                residual)  # [S, C], [M, T, C]

    # A (x Wv^T + bv) = (A x) Wv^T + bv, as rows of A sum to 1: the value projection is applied to the image context
    values = matmul(image_context, values_vision_proj["weight"].reshape(M, -1, C).swapaxes(1, 2))  # [M, T, D]
    heads = values + values_vision_proj["bias"].reshape(M, 1, -1)  # [M, T, D]
    from_vision = linear(merge_heads(heads), **out_text_proj)  # [T, C]
    return from_text, from_vision


def fusion_layer(vision, text, layer_norm_vision, layer_norm_text, attn, vision_param, text_param, n_heads, eps):
    """Image-text fusion (GLIP Eq. 5, 6): each modality plus a scaled update from the other.

    Args:
        vision [S, C], text [T, C]: image and text tokens.
        vision_param [C], text_param [C]: scale of the update per channel.

    Returns:
        [S, C], [T, C]: updated image and text tokens.
    """
    # != paper: GLIP Eq. 5 and 6 add the update to the input; the released fusion adds it to the layer-normalised input
    v = layer_norm(vision, **layer_norm_vision, eps=eps)  # [S, C]
    t = layer_norm(text, **layer_norm_text, eps=eps)  # [T, C]
    # != paper: GLIP adds the update unscaled; the released fusion scales it per channel

    # p (a Wo^T + bo) = a (p Wo)^T + p bo: the scale of the image update is folded into its output projection
    scaled_proj = {name: (p.T * vision_param).T for name, p in attn["out_vision_proj"].items()}
    fused, from_vision = bi_attention(v, t, **{**attn, "out_vision_proj": scaled_proj}, n_heads=n_heads, residual=v)
    return fused, t + text_param * from_vision

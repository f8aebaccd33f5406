"""§3.1  Text backbone. BERT (arXiv 1810.04805), each token seeing only its own phrase (§3.4).

T text tokens, C channels, F hidden channels of the feed-forward.
"""

from __future__ import annotations

from .ops import add_norm, attention, feed_forward


def bert_layer(x, self_attn, self_attn_layer_norm, fc1, fc2, final_layer_norm, mask, n_heads, activation, eps):
    """Attention, then feed-forward, each added and normed: x [T, C], mask [T, T] -> [T, C]"""
    attended = attention(x, x, x, **self_attn, n_heads=n_heads, mask=mask)  # [T, C]
    mixed = add_norm(x, attended, **self_attn_layer_norm, eps=eps)  # [T, C]
    return add_norm(mixed, feed_forward(mixed, fc1, fc2, activation), **final_layer_norm, eps=eps)


def bert(token_ids, mask, positions, embeddings, layers, config):
    """token_ids [T], mask [T, T], positions [T] -> [T, C]"""
    # != paper: BERT counts positions from the first token and sees all; here each phrase is counted, and read, alone
    words = embeddings["word_embeddings"]["weight"][token_ids]  # [T, C]
    places = embeddings["position_embeddings"]["weight"][positions]  # [T, C]
    segment = embeddings["token_type_embeddings"]["weight"][0]  # [C]
    x = add_norm(words, segment + places, **embeddings["layer_norm"], eps=config.layer_norm_eps)
    for layer in layers:
        x = bert_layer(x, **layer, mask=mask, n_heads=config.num_attention_heads,
                       activation=config.hidden_act, eps=config.layer_norm_eps)
    return x

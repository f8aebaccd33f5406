"""§3.1  Text backbone. BERT (arXiv 1810.04805), with attention within each phrase (§3.4).

T text tokens, C channels.
"""

from __future__ import annotations

from .ops import add_norm, attention, feed_forward


def bert_layer(x, self_attn, self_attn_layer_norm, fc1, fc2, final_layer_norm, mask, n_heads, activation, eps):
    """Transformer encoder layer (arXiv 1706.03762, section 3.1): self-attention, then a feed-forward network.

    Args:
        x [T, C]: text tokens.
        mask [T, T]: True where a token (row) may attend to another (column).

    Returns:
        [T, C]: text tokens.
    """
    attended = attention(x, x, x, **self_attn, n_heads=n_heads, mask=mask)  # [T, C]
    after_attention = add_norm(x, attended, **self_attn_layer_norm, eps=eps)  # [T, C]
    hidden = feed_forward(after_attention, fc1, fc2, activation)  # [T, C]
    return add_norm(after_attention, hidden, **final_layer_norm, eps=eps)


def bert(token_ids, mask, positions, embeddings, layers, config):
    """BERT: token ids to contextual features.

    Args:
        token_ids [T]: indices into the vocabulary.
        mask [T, T], positions [T]: from `phrase_mask`.
        config: `BertConfig`.

    Returns:
        [T, C]: text features.
    """
    # != paper: §4.1 says BPE; the released models tokenise with BERT's WordPiece
    # != paper: in BERT, positions continue through the text and a token attends to all others. In the released models,
    # positions restart at 0 in each phrase and attention stays within it
    words = embeddings["word_embeddings"]["weight"][token_ids]  # [T, C]
    position = embeddings["position_embeddings"]["weight"][positions]  # [T, C]
    segment = embeddings["token_type_embeddings"]["weight"][0]  # [C]
    x = add_norm(words, segment + position, **embeddings["layer_norm"], eps=config.layer_norm_eps)
    for layer in layers:
        x = bert_layer(x, **layer, mask=mask, n_heads=config.num_attention_heads,
                       activation=config.hidden_act, eps=config.layer_norm_eps)
    return x

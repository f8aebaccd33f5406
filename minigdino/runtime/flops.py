"""Count the FLOPs of each stage of a forward pass, from the geometry, the image size and the number of text tokens.

A multiply-add counts as two FLOPs. Matrix products and the bilinear sampling of deformable attention are included.
Norms, activations and softmax are not: memory traffic determines their time, not arithmetic.

S image tokens over all levels, T text tokens, C channels, Q queries.
"""

from __future__ import annotations

import math

PATCH = 4  # pixels along one side of a patch of the image backbone

# Exact reorderings of the computation (docs/reorderings.md). Each one reduces the number of FLOPs.
FUSION = "fusion"  # fold the projections of the image tokens into the text tokens
SELECTION = "selection"  # predict boxes for the selected tokens only
PADDING = "padding"  # do not project the padding of the backbone's windows
SAMPLING = "sampling"  # in the decoder, sample the memory before projecting it

NONE = frozenset()  # the computation as in the papers
IMPLEMENTED = frozenset({FUSION, SELECTION, PADDING})  # the computation of minigdino
ALL = frozenset({FUSION, SELECTION, PADDING, SAMPLING})


def matmul(rows, inputs, outputs):
    """Return the FLOPs of a matrix product [rows, inputs] @ [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention(queries, keys, channels):
    """Return the FLOPs of multi-head attention with its four projections. The number of heads has no effect."""
    projections = 2 * matmul(queries, channels, channels) + 2 * matmul(keys, channels, channels)
    return projections + 2 * matmul(queries, channels, keys)  # scores, and the weighted sum of values


def feed_forward(rows, channels, hidden):
    """Return the FLOPs of the two linear maps of a feed-forward network."""
    return 2 * matmul(rows, channels, hidden)


def box_head(rows, channels):
    """Return the FLOPs of the three-layer MLP from a state to a box."""
    return 2 * matmul(rows, channels, channels) + matmul(rows, channels, 4)


def deformable(queries, memory, channels, heads, levels, points, reorderings=NONE):
    """Return the FLOPs of deformable attention: projection of the memory, and sampling at a few points per query."""
    offsets_and_weights = matmul(queries, channels, 3 * heads * levels * points)
    output = matmul(queries, channels, channels)
    sampling = matmul(queries, channels, 4 * levels * points)  # four pixels per point
    if SAMPLING in reorderings:  # each head samples all channels, and projects the result to its own channels
        return offsets_and_weights + output + heads * sampling + matmul(queries, channels, channels)
    return offsets_and_weights + output + sampling + matmul(memory, channels, channels)


def stage_sizes(config, height, width):
    """Return the size (H, W) of the feature map of each backbone stage, for an image of height x width pixels."""
    stages = range(len(config.backbone_config.depths))
    return [(math.ceil(height / (PATCH * 2**i)), math.ceil(width / (PATCH * 2**i))) for i in stages]


def level_sizes(config, height, width):
    """Return the size (H, W) of each feature level: the backbone's maps, then coarser maps, each half the size."""
    stages = stage_sizes(config, height, width)
    sizes = [stages[stage - 1] for stage in config.backbone_config.out_indices]
    while len(sizes) < config.num_feature_levels:
        sizes.append(tuple(math.ceil(n / 2) for n in sizes[-1]))
    return sizes


def image_tokens(config, height, width):
    """Return S, the number of pixels of all feature levels."""
    return sum(h * w for h, w in level_sizes(config, height, width))


def text_backbone(config, tokens):
    """Return the FLOPs of BERT and of the text projection."""
    bert = config.text_config
    layer = (attention(tokens, tokens, bert.hidden_size)
             + feed_forward(tokens, bert.hidden_size, bert.intermediate_size))
    return bert.num_hidden_layers * layer + matmul(tokens, bert.hidden_size, config.d_model)


def swin_block(height, width, channels, window, ratio, reorderings):
    """Return the FLOPs of one block: window attention on the padded map, and a feed-forward network."""
    padded = math.ceil(height / window) * math.ceil(width / window) * window**2
    projections = 4 * matmul(height * width if PADDING in reorderings else padded, channels, channels)
    scores_and_values = 2 * matmul(padded, channels, window**2)
    return projections + scores_and_values + feed_forward(height * width, channels, int(ratio * channels))


def image_backbone(config, height, width, reorderings):
    """Return the FLOPs of Swin."""
    swin, sizes = config.backbone_config, stage_sizes(config, height, width)
    total = matmul(math.prod(sizes[0]), 3 * PATCH**2, swin.embed_dim)
    for i, ((h, w), depth, channels) in enumerate(zip(sizes, swin.depths, swin.channels)):
        total += depth * swin_block(h, w, channels, swin.window_size, swin.mlp_ratio, reorderings)
        if i + 1 < len(sizes):
            total += matmul(math.prod(sizes[i + 1]), 4 * channels, 2 * channels)  # patch merging
    return total


def neck(config, height, width):
    """Return the FLOPs of all convolutions: 1 x 1 for the backbone's maps, 3 x 3 for the coarser maps."""
    channels = [config.backbone_config.channels[stage - 1] for stage in config.backbone_config.out_indices]
    total = 0
    for level, (h, w) in enumerate(level_sizes(config, height, width)):
        if level < len(channels):
            total += matmul(h * w, channels[level], config.d_model)
        else:
            inputs = channels[-1] if level == len(channels) else config.d_model
            total += matmul(h * w, 9 * inputs, config.d_model)
    return total


def fusion(config, S, T, reorderings):
    """Return the FLOPs of one layer of bi-directional cross-attention between image and text."""
    C, E, M = config.d_model, config.encoder_ffn_dim // 2, config.encoder_attention_heads // 2
    if FUSION in reorderings:  # six projections of the text; three products of the image tokens with T tokens per head
        return 6 * matmul(T, C, E) + 3 * matmul(S, C, M * T)
    return 3 * matmul(S, C, E) + 3 * matmul(T, C, E) + 3 * matmul(S, E, T)


def enhancer(config, S, T, reorderings):
    """Return the FLOPs of all enhancer layers: {"enhancer, fusion", "enhancer, text", "enhancer, deformable"}."""
    C, N = config.d_model, config.encoder_layers
    image = deformable(S, S, C, config.encoder_attention_heads, config.num_feature_levels, config.encoder_n_points)
    return {
        "enhancer, fusion": N * fusion(config, S, T, reorderings),
        "enhancer, text": N * (attention(T, T, C) + feed_forward(T, C, config.encoder_ffn_dim // 2)),
        "enhancer, deformable": N * (image + feed_forward(S, C, config.encoder_ffn_dim)),
    }


def query_selection(config, S, T, reorderings):
    """Return the FLOPs of the query scores and of the initial boxes."""
    C, Q = config.d_model, config.num_queries
    return matmul(S, C, C) + matmul(S, C, T) + box_head(Q if SELECTION in reorderings else S, C)


def decoder(config, S, T, reorderings):
    """Return the FLOPs of all decoder layers and of the last layer's heads."""
    C, Q = config.d_model, config.num_queries
    positions = matmul(Q, 2 * C, C) + matmul(Q, C, C)
    image = deformable(Q, S, C, config.decoder_attention_heads, config.num_feature_levels, config.decoder_n_points,
                       reorderings)
    layer = (positions + attention(Q, Q, C) + attention(Q, T, C) + image
             + feed_forward(Q, C, config.decoder_ffn_dim) + box_head(Q, C))
    return config.decoder_layers * layer + box_head(Q, C) + matmul(Q, C, T)


def stages(config, height, width, tokens, reorderings=IMPLEMENTED):
    """Count the FLOPs of each stage of a forward pass.

    Args:
        config: geometry of the model.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        tokens: number of text tokens.
        reorderings: set of the exact reorderings to assume.

    Returns:
        {stage: FLOPs}.
    """
    S = image_tokens(config, height, width)
    return {
        "text backbone": text_backbone(config, tokens),
        "image backbone": image_backbone(config, height, width, reorderings),
        "neck": neck(config, height, width),
        **enhancer(config, S, tokens, reorderings),
        "query selection": query_selection(config, S, tokens, reorderings),
        "decoder": decoder(config, S, tokens, reorderings),
    }


def total(config, height, width, tokens, reorderings=IMPLEMENTED):
    """Return the FLOPs of a forward pass. The arguments are those of `stages`."""
    return sum(stages(config, height, width, tokens, reorderings).values())

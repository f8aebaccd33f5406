"""How much arithmetic a forward pass is: FLOP of every stage, from geometry, image size and length of the prompt.

Counted are the matrix products, two FLOP for every weight and row, and the bilinear sampling of deformable attention.
Norms, activations and softmax are not: they cost memory traffic, not arithmetic.

S image tokens over all levels, T text tokens, C channels, Q queries.
"""

from __future__ import annotations

import math

PATCH = 4  # pixels along the side of one patch of the image backbone

# Cheaper orders that are exact (docs/reorderings.md), each by its name here.
FUSION = "fusion"  # the image is never projected
SELECTION = "selection"  # boxes only for the chosen tokens
PADDING = "padding"  # what pads the backbone's windows meets no linear map
SAMPLING = "sampling"  # the decoder reads the memory first and maps what it read
PAPER = frozenset()  # every step as the papers write it
OURS = frozenset({FUSION, SELECTION, PADDING})  # what this package runs
EVERY = frozenset({FUSION, SELECTION, PADDING, SAMPLING})  # the least that is known


def product(rows, inputs, outputs):
    """FLOP of one matrix product [rows, inputs] @ [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention(queries, keys, channels):
    """FLOP of multi-head attention with its four maps; any number of heads costs the same."""
    maps = 2 * product(queries, channels, channels) + 2 * product(keys, channels, channels)
    return maps + 2 * product(queries, channels, keys)  # the scores, and the sum they weigh


def feed_forward(rows, channels, hidden):
    """FLOP of two linear maps."""
    return 2 * product(rows, channels, hidden)


def box_head(rows, channels):
    """FLOP of the three linear maps from a state to a box."""
    return 2 * product(rows, channels, channels) + product(rows, channels, 4)


def deformable(queries, memory, channels, heads, levels, points, orders=PAPER):
    """FLOP of deformable attention: values of the whole memory, then a few points read for every query."""
    offsets_and_weights = product(queries, channels, 3 * heads * levels * points)
    output = product(queries, channels, channels)
    sampling = product(queries, channels, 4 * levels * points)  # four corners a point
    if SAMPLING in orders:  # each head reads all channels of what it looks at, and maps them to its own
        return offsets_and_weights + output + heads * sampling + product(queries, channels, channels)
    return offsets_and_weights + output + sampling + product(memory, channels, channels)


def stage_sizes(config, height, width):
    """((H, W), ...) of the image backbone's stages."""
    stages = range(len(config.backbone_config.depths))
    return [(math.ceil(height / (PATCH * 2**i)), math.ceil(width / (PATCH * 2**i))) for i in stages]


def level_sizes(config, height, width):
    """((H, W), ...) of the levels that the enhancer sees: the backbone's maps, then coarser ones, halved each."""
    stages = stage_sizes(config, height, width)
    sizes = [stages[stage - 1] for stage in config.backbone_config.out_indices]
    while len(sizes) < config.num_feature_levels:
        sizes.append(tuple(math.ceil(n / 2) for n in sizes[-1]))
    return sizes


def image_tokens(config, height, width):
    """S: pixels of all levels together."""
    return sum(h * w for h, w in level_sizes(config, height, width))


def text_backbone(config, tokens):
    """FLOP of BERT and of the projection after it."""
    bert = config.text_config
    layer = (attention(tokens, tokens, bert.hidden_size)
             + feed_forward(tokens, bert.hidden_size, bert.intermediate_size))
    return bert.num_hidden_layers * layer + product(tokens, bert.hidden_size, config.d_model)


def swin_block(height, width, channels, window, ratio, orders):
    """FLOP of one block: attention in windows, over the map padded to whole windows, and a feed-forward."""
    whole = math.ceil(height / window) * math.ceil(width / window) * window**2
    maps = 4 * product(height * width if PADDING in orders else whole, channels, channels)
    within = 2 * product(whole, channels, window**2)  # a token meets the tokens of its window
    return maps + within + feed_forward(height * width, channels, int(ratio * channels))


def image_backbone(config, height, width, orders):
    """FLOP of Swin."""
    swin, sizes = config.backbone_config, stage_sizes(config, height, width)
    total = product(math.prod(sizes[0]), 3 * PATCH**2, swin.embed_dim)
    for i, ((h, w), depth, channels) in enumerate(zip(sizes, swin.depths, swin.channels)):
        total += depth * swin_block(h, w, channels, swin.window_size, swin.mlp_ratio, orders)
        if i + 1 < len(sizes):
            total += product(math.prod(sizes[i + 1]), 4 * channels, 2 * channels)  # patch merging
    return total


def neck(config, height, width):
    """FLOP of the maps to one width: 1 x 1 for the backbone's, 3 x 3 for the coarser ones made from its last."""
    channels = [config.backbone_config.channels[stage - 1] for stage in config.backbone_config.out_indices]
    total = 0
    for level, (h, w) in enumerate(level_sizes(config, height, width)):
        if level < len(channels):
            total += product(h * w, channels[level], config.d_model)
        else:
            inputs = channels[-1] if level == len(channels) else config.d_model
            total += product(h * w, 9 * inputs, config.d_model)
    return total


def fusion(config, S, T, orders):
    """FLOP of one bi-directional attention between S image tokens and T text tokens."""
    C, E, M = config.d_model, config.encoder_ffn_dim // 2, config.encoder_attention_heads // 2
    if FUSION in orders:
        # per head, the maps of the image go over to the text: what is left for the image is three products with T
        return 6 * product(T, C, E) + 3 * product(S, C, M * T)
    return 3 * product(S, C, E) + 3 * product(T, C, E) + 3 * product(S, E, T)


def enhancer(config, S, T, orders):
    """FLOP of all layers -> {"enhancer, fusion", "enhancer, text", "enhancer, deformable"}"""
    C, N = config.d_model, config.encoder_layers
    image = deformable(S, S, C, config.encoder_attention_heads, config.num_feature_levels, config.encoder_n_points)
    return {
        "enhancer, fusion": N * fusion(config, S, T, orders),
        "enhancer, text": N * (attention(T, T, C) + feed_forward(T, C, config.encoder_ffn_dim // 2)),
        "enhancer, deformable": N * (image + feed_forward(S, C, config.encoder_ffn_dim)),
    }


def query_selection(config, S, T, orders):
    """FLOP of the choice of the queries, and of their first boxes."""
    C, Q = config.d_model, config.num_queries
    return product(S, C, C) + product(S, C, T) + box_head(Q if SELECTION in orders else S, C)


def decoder(config, S, T, orders):
    """FLOP of all layers and of the last class head."""
    C, Q = config.d_model, config.num_queries
    positions = product(Q, 2 * C, C) + product(Q, C, C)
    image = deformable(Q, S, C, config.decoder_attention_heads, config.num_feature_levels, config.decoder_n_points,
                       orders)
    layer = (positions + attention(Q, Q, C) + attention(Q, T, C) + image
             + feed_forward(Q, C, config.decoder_ffn_dim) + box_head(Q, C))
    return config.decoder_layers * layer + box_head(Q, C) + product(Q, C, T)


def stages(config, height, width, tokens, orders=OURS):
    """FLOP of every stage of one pass: an image of height x width pixels, a prompt of so many tokens."""
    S = image_tokens(config, height, width)
    return {
        "text backbone": text_backbone(config, tokens),
        "image backbone": image_backbone(config, height, width, orders),
        "neck": neck(config, height, width),
        **enhancer(config, S, tokens, orders),
        "query selection": query_selection(config, S, tokens, orders),
        "decoder": decoder(config, S, tokens, orders),
    }


def total(config, height, width, tokens, orders=OURS):
    """FLOP of one pass."""
    return sum(stages(config, height, width, tokens, orders).values())

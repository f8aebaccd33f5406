"""Names and shapes of all tensors of a checkpoint, and checkpoints of random tensors."""

from __future__ import annotations

import math
import re

import numpy as np

from .config import Config
from .names import BACKBONE


def parameters(config: Config) -> dict[str, tuple[int, ...]]:
    """List every tensor of a checkpoint except the heads of the decoder, whose names vary (`names.head_names`).

    Args:
        config: geometry of the checkpoint.

    Returns:
        {published name: shape}.
    """
    c, swin, bert, C = config, config.backbone_config, config.text_config, config.d_model
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name, outputs, inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def attention(name, width):
        for part in ("query", "key", "value", "out_proj"):
            linear(f"{name}.{part}", width, width)

    def deformable(name, heads, points):
        linear(f"{name}.sampling_offsets", heads * c.num_feature_levels * points * 2, C)
        linear(f"{name}.attention_weights", heads * c.num_feature_levels * points, C)
        linear(f"{name}.value_proj", C, C)
        linear(f"{name}.output_proj", C, C)

    def backbone(name):
        shapes[f"{name}embeddings.patch_embeddings.projection.weight"] = (swin.embed_dim, 3, 4, 4)
        shapes[f"{name}embeddings.patch_embeddings.projection.bias"] = (swin.embed_dim,)
        norm(f"{name}embeddings.norm", swin.embed_dim)
        for i, (depth, heads, width) in enumerate(zip(swin.depths, swin.num_heads, swin.channels)):
            offsets = (2 * swin.window_size - 1) ** 2
            for j in range(depth):
                block = f"{name}encoder.layers.{i}.blocks.{j}"
                norm(f"{block}.layernorm_before", width)
                for part in ("query", "key", "value"):
                    linear(f"{block}.attention.self.{part}", width, width)
                shapes[f"{block}.attention.self.relative_position_bias_table"] = (offsets, heads)
                linear(f"{block}.attention.output.dense", width, width)
                norm(f"{block}.layernorm_after", width)
                linear(f"{block}.intermediate.dense", int(width * swin.mlp_ratio), width)
                linear(f"{block}.output.dense", width, int(width * swin.mlp_ratio))
            if i + 1 < len(swin.depths):
                norm(f"{name}encoder.layers.{i}.downsample.norm", 4 * width)
                linear(f"{name}encoder.layers.{i}.downsample.reduction", 2 * width, 4 * width, bias=False)
        for stage in swin.out_indices:
            norm(f"{name}hidden_states_norms.stage{stage}", swin.channels[stage - 1])

    def text_backbone(name):
        width = bert.hidden_size
        for part, rows in (("word", bert.vocab_size), ("position", bert.max_position_embeddings),
                           ("token_type", bert.type_vocab_size)):
            shapes[f"{name}.embeddings.{part}_embeddings.weight"] = (rows, width)
        norm(f"{name}.embeddings.LayerNorm", width)
        for i in range(bert.num_hidden_layers):
            layer = f"{name}.encoder.layer.{i}"
            for part in ("query", "key", "value"):
                linear(f"{layer}.attention.self.{part}", width, width)
            linear(f"{layer}.attention.output.dense", width, width)
            norm(f"{layer}.attention.output.LayerNorm", width)
            linear(f"{layer}.intermediate.dense", bert.intermediate_size, width)
            linear(f"{layer}.output.dense", width, bert.intermediate_size)
            norm(f"{layer}.output.LayerNorm", width)

    def neck(name):
        inputs = [swin.channels[stage - 1] for stage in swin.out_indices]
        for i in range(c.num_feature_levels):
            kernel, width = (1, inputs[i]) if i < len(inputs) else (3, inputs[-1] if i == len(inputs) else C)
            shapes[f"{name}.{i}.0.weight"] = (C, width, kernel, kernel)
            shapes[f"{name}.{i}.0.bias"] = (C,)
            norm(f"{name}.{i}.1", C)

    def encoder(name):
        inner = c.encoder_ffn_dim // 2
        for i in range(c.encoder_layers):
            fusion = f"{name}.layers.{i}.fusion_layer"
            norm(f"{fusion}.layer_norm_vision", C)
            norm(f"{fusion}.layer_norm_text", C)
            for part in ("vision_proj", "text_proj", "values_vision_proj", "values_text_proj"):
                linear(f"{fusion}.attn.{part}", inner, C)
            linear(f"{fusion}.attn.out_vision_proj", C, inner)
            linear(f"{fusion}.attn.out_text_proj", C, inner)
            shapes[f"{fusion}.vision_param"] = shapes[f"{fusion}.text_param"] = (C,)
            text = f"{name}.layers.{i}.text_enhancer_layer"
            attention(f"{text}.self_attn", C)
            linear(f"{text}.fc1", inner, C)
            linear(f"{text}.fc2", C, inner)
            norm(f"{text}.layer_norm_before", C)
            norm(f"{text}.layer_norm_after", C)
            image = f"{name}.layers.{i}.deformable_layer"
            deformable(f"{image}.self_attn", c.encoder_attention_heads, c.encoder_n_points)
            norm(f"{image}.self_attn_layer_norm", C)
            linear(f"{image}.fc1", c.encoder_ffn_dim, C)
            linear(f"{image}.fc2", C, c.encoder_ffn_dim)
            norm(f"{image}.final_layer_norm", C)

    def decoder(name):
        for i in range(c.decoder_layers):
            layer = f"{name}.layers.{i}"
            attention(f"{layer}.self_attn", C)
            attention(f"{layer}.encoder_attn_text", C)
            deformable(f"{layer}.encoder_attn", c.decoder_attention_heads, c.decoder_n_points)
            for part in ("self_attn", "encoder_attn_text", "encoder_attn"):
                norm(f"{layer}.{part}_layer_norm", C)
            linear(f"{layer}.fc1", c.decoder_ffn_dim, C)
            linear(f"{layer}.fc2", C, c.decoder_ffn_dim)
            norm(f"{layer}.final_layer_norm", C)
        norm(f"{name}.layer_norm", C)
        linear(f"{name}.reference_points_head.layers.0", C, 2 * C)
        linear(f"{name}.reference_points_head.layers.1", C, C)

    backbone(BACKBONE)
    text_backbone("model.text_backbone")
    linear("model.text_projection", C, bert.hidden_size)
    neck("model.input_proj_vision")
    shapes["model.level_embed"] = (c.num_feature_levels, C)
    encoder("model.encoder")
    linear("model.enc_output", C, C)
    norm("model.enc_output_norm", C)
    shapes |= {f"model.encoder_output_bbox_embed.{part}": shape for part, shape in box_head(C).items()}
    if c.model_type == "mm-grounding-dino":
        shapes["model.encoder_output_class_embed.bias"] = ()
    # despite its name, the learned content of the queries: the decoder computes their positions from boxes
    shapes["model.query_position_embeddings.weight"] = (c.num_queries, C)
    decoder("model.decoder")
    return shapes


def box_head(C: int) -> dict[str, tuple[int, ...]]:
    """List the tensors of one box head, a three-layer MLP from a state [C] to a box [4]: {name: shape}."""
    return {f"layers.{i}.{part}": shape for i, outputs in enumerate((C, C, 4))
            for part, shape in (("weight", (outputs, C)), ("bias", (outputs,)))}


def random_tensors(config: Config, seed: int | np.random.Generator = 0) -> dict[str, np.ndarray]:
    """Create a checkpoint of random tensors, in its family's published layout. Every parameter affects the output.

    - Weights of linear maps: N(0, 1.4**2 / inputs).
    - Weights of norms: N(1, 0.2**2).
    - Layer scales: about 0.5.
    - Biases of sampling offsets: N(0, 2**2), in pixels.
    - Class biases of MM Grounding DINO: a different one for each layer.

    Args:
        config: geometry of the checkpoint.
        seed: seed of the random numbers, or their generator.

    Returns:
        {published name: float32 array}.
    """
    rng = np.random.default_rng(seed)
    shapes, C, N = parameters(config), config.d_model, config.decoder_layers
    mm = config.model_type == "mm-grounding-dino"
    for i in range(N if mm else 1):
        prefix = "model.decoder." if i else ""
        shapes |= {f"{prefix}bbox_embed.{i}.{part}": shape for part, shape in box_head(C).items()}
        if mm:
            shapes[f"{prefix}class_embed.{i}.bias"] = ()
    return {name: _random(rng, name, shape) for name, shape in shapes.items()}


def _random(rng, name, shape) -> np.ndarray:
    normal = rng.standard_normal(shape, np.float32)
    parent, _, leaf = name.rpartition(".")
    if leaf == "bias" and shape == ():  # class bias
        return np.array(-2 + 0.5 * normal, np.float32)
    if leaf in ("vision_param", "text_param"):
        return 0.5 + 0.1 * normal
    if parent.endswith("sampling_offsets") and leaf == "bias":
        return 2 * normal
    if re.search(r"norm[a-z_]*(\.stage\d)?$|LayerNorm$|input_proj_vision\.\d+\.1$", parent):
        return 0.2 * normal + (leaf == "weight")
    if leaf == "weight" and len(shape) > 1 and not parent.endswith("_embeddings"):
        return normal * np.float32(1.4 / math.prod(shape[1:]) ** 0.5)
    return normal if leaf == "weight" or leaf == "level_embed" else 0.2 * normal

"""Names of tensors in published files, in the memory of transformers 5, and in the tree of layer parameters.

`RENAMES` maps published names to names in the tree; `renamed` applies it.
"""

from __future__ import annotations

import re

from ..errors import CheckpointError
from .config import Config

BACKBONE = "model.backbone.conv_encoder.model."  # prefix of the image backbone's tensors

# Names in the memory of transformers 5 -> names in published files. For BACKBONE only, because BERT has similar names.
IN_MEMORY = (
    (".attention.relative_position_bias.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)

# Ignored tensors of some files: integer buffers, and layers that the detector does not use.
UNUSED = re.compile(
    rf"{re.escape(BACKBONE)}(.*\.relative_position_index|layernorm\.(weight|bias))"
    r"|model\.text_backbone\.(embeddings\.position_ids|pooler\..*)|(model\.)?special_tokens")

# Part of a published name -> its replacement in the tree, applied in this order. The rest of a name stays as published.
# query_position_embeddings keeps its misleading name: it holds the learned content of the queries, not positions.
RENAMES = (
    (BACKBONE, "backbone."),
    ("model.", ""),
    ("backbone.encoder.layers.", "backbone.layers."),
    ("text_backbone.encoder.layer.", "text_backbone.layers."),
    (".embeddings.LayerNorm.", ".embeddings.layer_norm."),
    (".attention.self.", ".self_attn."),
    (".attention.output.dense.", ".self_attn.out_proj."),
    (".attention.output.LayerNorm.", ".self_attn_layer_norm."),
    (".intermediate.dense.", ".fc1."),
    (".output.dense.", ".fc2."),
    (".output.LayerNorm.", ".final_layer_norm."),
    ("decoder.layer_norm.", "decoder.norm."),
    ("enc_output", "query_selection.enc_output"),
    ("encoder_output_", "query_selection.encoder_output_"),
)


def renamed(name: str) -> str:
    """Convert a published tensor name to the name in the tree."""
    for old, new in RENAMES:
        if old in (BACKBONE, "model.", "enc_output", "encoder_output_"):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        else:
            name = name.replace(old, new)
    return name


def published(name: str) -> str:
    """Return the published name of a tensor, which transformers 5 may have saved under its name in memory."""
    if not name.startswith(BACKBONE):
        return name
    rest = name.removeprefix(BACKBONE)
    rest = "." + rest.removeprefix("swin.")
    for new, old in IN_MEMORY:
        rest = rest.replace(new, old)
    return BACKBONE + rest[1:]


def head_names(config: Config, names) -> dict[str, list[str]]:
    """Find the names under which a file holds the heads of each decoder layer.

    In training each head has two names, and a file holds it under one of them. Layer i uses bbox_embed.i if present,
    else model.decoder.bbox_embed.i. All layers share head 0 if the file has no heads for the other layers.
    Grounding DINO has no class heads.

    Args:
        config: geometry of the checkpoint.
        names: names of all tensors in the file.

    Returns:
        {"bbox_embed": [prefix of layer 0, prefix of layer 1, ...]}, and "class_embed" for MM Grounding DINO.

    Raises:
        CheckpointError: if some layers have a head and others do not.
    """
    heads = {}
    for kind in ("bbox_embed", "class_embed") if config.model_type == "mm-grounding-dino" else ("bbox_embed",):
        present = {m.group(1) for m in (re.match(rf"((?:model\.decoder\.)?{kind}\.\d+)\.", n) for n in names) if m}
        own = [next((p for p in (f"{kind}.{i}", f"model.decoder.{kind}.{i}") if p in present), None)
               for i in range(config.decoder_layers)]
        if not any(own[1:]):
            own = own[:1] * config.decoder_layers
        if missing := [i for i, prefix in enumerate(own) if prefix is None]:
            raise CheckpointError(f"tensor {kind}.{missing[0]}.* is missing, but other decoder layers have one"
                                  if any(own) else f"tensor {kind}.0.* is missing; the file has no {kind} at all")
        heads[kind] = own
    return heads

"""Checkpoints: safetensors in, a tree out, whose branches are the keyword arguments of the layers.

Published files hold 32-bit floats, which are mapped and never copied: processes on one machine share one copy.
16-bit floats are converted once, when loaded.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, brief
from .config import Config
from .json_file import read_json
from .parameters import BACKBONE, box_head, parameters

INDEX = "model.safetensors.index.json"

# Names that transformers 5 uses in memory -> names in published files; only below BACKBONE, since BERT has look-alikes.
IN_MEMORY = (
    (".attention.relative_position_bias.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)

# Tensors in some files that nothing reads: integer buffers, and layers that the detector skips.
UNUSED = re.compile(
    rf"{re.escape(BACKBONE)}(.*\.relative_position_index|layernorm\.(weight|bias))"
    r"|model\.text_backbone\.(embeddings\.position_ids|pooler\..*)|(model\.)?special_tokens")

# Published name -> name in the tree, in this order. The rest of a name stays as published.
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


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by name. 32-bit floats are read-only views of the mapped file; F16 and BF16 are converted
    to float32; integers are left as stored. Raises CheckpointError for a file that is not safetensors, or cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):  # checks the header against the file's length: nothing below can leave the map
            pass
        with open(path, "rb") as file:
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({brief(error)}); download it again") from None
    header.pop("__metadata__", None)
    return {name: _tensor(raw, start, f"{path}: tensor {_name(name)}", entry) for name, entry in header.items()}


READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


def _tensor(raw, start, what, entry):
    try:
        dtype, shape, (first, _) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in READABLE:
            raise CheckpointError(f"{what} is {dtype}; expected one of {', '.join(READABLE)}")
        array = np.frombuffer(raw, READABLE[dtype], math.prod(shape), start + first).reshape(shape)
    except (TypeError, ValueError) as error:  # an entry that is a list, or more than NumPy's dimensions or sizes
        raise CheckpointError(f"{what} has an impossible entry in the header, {brief(entry)} ({brief(error)}); "
                              "download the file again") from None
    if dtype == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return array.astype(np.float32)
    return array if array.flags.aligned else array.copy()


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a directory (one file, or shards and their index) or of one file, under their published names."""
    path = Path(path)
    if path.is_dir():
        if (path / INDEX).exists():
            tensors = _read_shards(path)
        elif (path / "model.safetensors").exists():
            tensors = read_safetensors(path / "model.safetensors")
        else:
            raise CheckpointError(f"{path}: holds neither model.safetensors nor {INDEX}; "
                                  "a .bin or .pth file must be converted to safetensors first")
    else:
        tensors = read_safetensors(path)
    return {_published(name): array for name, array in tensors.items()}


def _read_shards(directory):
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{directory / INDEX}: expected a 'weight_map' of tensor names to file names")
    tensors = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not os.path.exists(directory / shard):
            raise CheckpointError(f"{directory / INDEX} names {brief(shard)}, which is not in {directory}; "
                                  "download the missing file")
        tensors |= read_safetensors(directory / shard)
    if lost := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{directory}: tensor {_name(lost[0])} is in no shard, though {INDEX} names "
                              f"{brief(places[lost[0]])} for it; download that file again")
    return tensors


def _name(name):
    """A tensor's name from a file, without quotes, as a message may hold it."""
    return brief(name)[1:-1]


def _published(name):
    if not name.startswith(BACKBONE):
        return name
    rest = name.removeprefix(BACKBONE)
    rest = "." + rest.removeprefix("swin.")
    for new, old in IN_MEMORY:
        rest = rest.replace(new, old)
    return BACKBONE + rest[1:]


def head_names(config: Config, names) -> dict[str, list[str]]:
    """Where a file with these names keeps each decoder layer's heads: {"bbox_embed": [prefix, ...], ...}

    A file never holds a head twice, and which of its two names survived differs between checkpoints: layer i reads
    bbox_embed.i, else model.decoder.bbox_embed.i. Only if a file has none at all for layers 1 and up do the layers
    share head 0. Grounding DINO has no class heads. Raises CheckpointError if some layers have a head and others none.
    """
    heads = {}
    for kind in ("bbox_embed", "class_embed") if config.model_type == "mm-grounding-dino" else ("bbox_embed",):
        present = {m.group(1) for m in (re.match(rf"((?:model\.decoder\.)?{kind}\.\d+)\.", n) for n in names) if m}
        own = [next((p for p in (f"{kind}.{i}", f"model.decoder.{kind}.{i}") if p in present), None)
               for i in range(config.decoder_layers)]
        if not any(own[1:]):
            own = own[:1] * config.decoder_layers
        if missing := [i for i, prefix in enumerate(own) if prefix is None]:
            raise CheckpointError(f"tensor {kind}.{missing[0]}.* is missing, though other decoder layers have theirs"
                                  if any(own) else f"tensor {kind}.0.* is missing; the file has no {kind} at all")
        heads[kind] = own
    return heads


def build(tensors: dict[str, np.ndarray], config: Config, source: str | Path) -> dict:
    """Check every tensor against the config and arrange them as a tree.

    Raises CheckpointError naming the first tensor that is missing, unknown, misshapen, or not of floats.
    """
    tensors = {name: array for name, array in tensors.items() if not UNUSED.fullmatch(name)}
    try:
        heads = head_names(config, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}. {_MIXED}") from None
    wanted = parameters(config)
    wanted |= {f"{p}.{part}": shape for p in heads["bbox_embed"] for part, shape in box_head(config.d_model).items()}
    wanted |= {f"{prefix}.bias": () for prefix in heads.get("class_embed", ())}
    for name, shape in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: tensor {name} {list(shape)} is missing. {_MIXED}")
        if tensors[name].shape != shape:
            raise CheckpointError(f"{source}: tensor {name} has shape {list(tensors[name].shape)}; "
                                  f"config.json needs {list(shape)}. {_MIXED}")
        if tensors[name].dtype != np.float32:
            raise CheckpointError(f"{source}: tensor {name} is {tensors[name].dtype}; expected F32, F16 or BF16. "
                                  "\n---> hint: save the checkpoint again with 32-bit floats")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{source}: tensor {_name(unknown[0])} belongs to no layer of this model"
                              f"{f' (nor do {len(unknown) - 1} others)' if len(unknown) > 1 else ''}. {_MIXED}")

    flat = {renamed(name): tensors[name] for name in parameters(config)}
    for kind, prefixes in heads.items():
        for i, prefix in enumerate(prefixes):
            parts = box_head(config.d_model) if kind == "bbox_embed" else ("bias",)
            flat |= {f"{kind}.{i}.{part}": tensors[f"{prefix}.{part}"] for part in parts}
    weights = tree(flat)
    weights["query_selection"].setdefault("encoder_output_class_embed", {})
    weights.setdefault("class_embed", [{}] * config.decoder_layers)  # Grounding DINO compares without a bias
    return weights


def on_device(weights, send):
    """The same tree with send(array) in every array's place; what several layers share is sent once."""
    sent = {}

    def branch(node):
        if isinstance(node, dict):
            return {name: branch(part) for name, part in node.items()}
        if isinstance(node, list):
            return [branch(part) for part in node]
        if id(node) not in sent:
            sent[id(node)] = send(node)
        return sent[id(node)]

    return branch(weights)


_MIXED = ("\n---> hint: config.json and the weights may be of different models, or the download incomplete; "
          "fetch both again from one place")


def renamed(name: str) -> str:
    """Name in the tree of a published tensor."""
    for old, new in RENAMES:
        if old in (BACKBONE, "model.", "enc_output", "encoder_output_"):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        else:
            name = name.replace(old, new)
    return name


def tree(flat: dict[str, np.ndarray]) -> dict:
    """{'a.0.w': x, 'a.1.w': y} -> {'a': [{'w': x}, {'w': y}]}"""
    root: dict = {}
    for name, array in flat.items():
        *path, leaf = name.split(".")
        node = root
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return _lists(root)


def _lists(node):
    if not isinstance(node, dict):
        return node
    node = {key: _lists(value) for key, value in node.items()}
    return [node[str(i)] for i in range(len(node))] if "0" in node else node

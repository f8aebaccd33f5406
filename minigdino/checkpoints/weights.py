"""Read safetensors checkpoints into a tree of arrays. Each branch holds the parameters of one layer function.

Published files hold float32 tensors. They are memory-mapped, so all processes on a machine share one copy. Tensors of
16-bit floats are converted to float32 when loaded.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, brief
from .config import Config
from .json_file import read_json
from .names import UNUSED, head_names, published, renamed
from .parameters import box_head, parameters

INDEX = "model.safetensors.index.json"

def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file.

    Args:
        path: the file.

    Returns:
        {tensor name: array}. F32 tensors are read-only views of the mapped file. F16 and BF16 are converted to float32.
        Integers keep their dtype.

    Raises:
        CheckpointError: if the file is missing, incomplete, or not in safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):  # checks the header against the file's length, so all offsets below are valid
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
    """The array of one header entry. Tensor data begins at `start`; `what` names the tensor in messages."""
    try:
        dtype, shape, (first, _) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in READABLE:
            raise CheckpointError(f"{what} must have one of the dtypes {', '.join(READABLE)}; got {dtype}. Save "
                                  "the checkpoint again with 32-bit floats")
        array = np.frombuffer(raw, READABLE[dtype], math.prod(shape), start + first).reshape(shape)
    except (TypeError, ValueError) as error:  # the entry is a list, or exceeds NumPy's limits on dimensions and sizes
        raise CheckpointError(f"{what} has an impossible entry in the header, {brief(entry)} ({brief(error)}); "
                              "download the file again") from None
    if dtype == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return array.astype(np.float32)
    return array if array.flags.aligned else array.copy()


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint, under their published names.

    Args:
        path: a safetensors file, or a directory that holds one file or several shards and their index.

    Returns:
        {published name: array}, as in `read_safetensors`.

    Raises:
        CheckpointError: if a file is missing or corrupted.
    """
    path = Path(path)
    if path.is_dir():
        if (path / INDEX).exists():
            tensors = _read_shards(path)
        elif (path / "model.safetensors").exists():
            tensors = read_safetensors(path / "model.safetensors")
        else:
            raise CheckpointError(f"{path}: expected model.safetensors or {INDEX}; found neither. Convert a .bin or "
                                  ".pth file to safetensors first")
    else:
        tensors = read_safetensors(path)
    return {published(name): array for name, array in tensors.items()}


def _read_shards(directory):
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{directory / INDEX}: expected a 'weight_map' from tensor names to file names; got "
                              f"{brief(places)}. Download the file again")
    tensors = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not os.path.exists(directory / shard):
            raise CheckpointError(f"{directory / INDEX} names {brief(shard)}, which is not in {directory}; "
                                  "download the missing file")
        tensors |= read_safetensors(directory / shard)
    if absent := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{directory}: tensor {_name(absent[0])} is in no shard, but {INDEX} lists it in "
                              f"{brief(places[absent[0]])}; download that file again")
    return tensors


def _name(name):
    """A tensor name, shortened and made printable for a message."""
    return brief(name)[1:-1]


def build(tensors: dict[str, np.ndarray], config: Config, source: str | Path) -> dict:
    """Check all tensors against the config, and arrange them as a tree.

    Args:
        tensors: {published name: array}.
        config: geometry of the checkpoint.
        source: origin of the tensors, for messages.

    Returns:
        Nested dicts and lists; each branch holds the parameters of one layer function, as keyword arguments.

    Raises:
        CheckpointError: for the first tensor that is missing, unknown, of the wrong shape, or not of floats.
    """
    tensors = {name: array for name, array in tensors.items() if not UNUSED.fullmatch(name)}
    try:
        heads = head_names(config, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}.{_MIXED}") from None
    wanted = parameters(config)
    wanted |= {f"{p}.{part}": shape for p in heads["bbox_embed"] for part, shape in box_head(config.d_model).items()}
    wanted |= {f"{prefix}.bias": () for prefix in heads.get("class_embed", ())}
    for name, shape in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: tensor {name} {list(shape)} is missing.{_MIXED}")
        if tensors[name].shape != shape:
            raise CheckpointError(f"{source}: tensor {name} must have shape {list(shape)} with this config.json; "
                                  f"got {list(tensors[name].shape)}.{_MIXED}")
        if tensors[name].dtype != np.float32:
            raise CheckpointError(f"{source}: tensor {name} must be F32, F16 or BF16; got {tensors[name].dtype}."
                                  "\n---> hint: save the checkpoint again with 32-bit floats")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{source}: tensor {_name(unknown[0])} belongs to no layer of this model"
                              f"{f', nor do {len(unknown) - 1} others' if len(unknown) > 1 else ''}.{_MIXED}")

    flat = {renamed(name): tensors[name] for name in parameters(config)}
    for kind, prefixes in heads.items():
        for i, prefix in enumerate(prefixes):
            parts = box_head(config.d_model) if kind == "bbox_embed" else ("bias",)
            flat |= {f"{kind}.{i}.{part}": tensors[f"{prefix}.{part}"] for part in parts}
    weights = tree(flat)
    weights["query_selection"].setdefault("encoder_output_class_embed", {})
    weights.setdefault("class_embed", [{}] * config.decoder_layers)  # Grounding DINO has no class bias
    return weights


def on_device(weights, send):
    """Copy a tree to a device. An array that several layers share is copied once.

    Args:
        weights: the tree.
        send: copies one array to the device.

    Returns:
        A tree of the same structure.
    """
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


_MIXED = ("\n---> hint: config.json and the weights may belong to different models, or the download may be "
          "incomplete; download both again from one source")


def tree(flat: dict[str, np.ndarray]) -> dict:
    """Nest arrays by the parts of their names: {'a.0.w': x, 'a.1.w': y} -> {'a': [{'w': x}, {'w': y}]}."""
    root: dict = {}
    for name, array in flat.items():
        *path, leaf = name.split(".")
        node = root
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return _lists(root)


def _lists(node):
    """Replace dicts with the keys "0", "1", ... by lists."""
    if not isinstance(node, dict):
        return node
    node = {key: _lists(value) for key, value in node.items()}
    return [node[str(i)] for i in range(len(node))] if "0" in node else node

"""Read safetensors checkpoints into a tree of arrays. Each branch holds the parameters of one layer function.

Published files hold float32 tensors. They are memory-mapped, so all processes on a machine share one copy. Tensors of
16-bit floats are converted to float32 when loaded, after all names, shapes and dtypes have been checked.

A mapping shows later changes of its file. `MappedFile.check` finds them, so that no result comes from a mixture of two
checkpoints. A file that is replaced by renaming does not change: the mapping keeps the old one.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, brief
from .config import Config
from .json_file import MAX_BYTES, absolute, is_file, is_folder, open_regular, read_json, status, unique
from .names import UNUSED, head_names, published, renamed
from .parameters import box_head, parameters

INDEX = "model.safetensors.index.json"
SAVED_CONFIG = "minigdino_config"  # metadata entry in which `Model.save` repeats the geometry


class MappedFile(mmap.mmap):
    """A read-only mapping of a file, which can find out whether the file has changed."""

    path: str
    state: tuple[tuple[int, int], tuple[int, int]]  # see `_state`

    @classmethod
    def open(cls, path: str | Path) -> MappedFile:
        """Map a file. Closes its descriptor, so a check looks at the path."""
        with open_regular(path) as file:
            mapped = cls(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.path, mapped.state = absolute(path), _state(os.fstat(file.fileno()))
        return mapped

    def check(self) -> None:
        """Check size and modification time of the file.

        Raises:
            CheckpointError: if they differ from those at `open`.
        """
        if (found := status(self.path)) is None:  # moved or deleted: the mapping keeps the file
            return
        file, state = _state(found)
        if file == self.state[0] and state != self.state[1]:  # another file of that name does not matter
            raise CheckpointError(f"{self.path}: a mapped weight file must not change; it has been written to since it "
                                  "was loaded. Load the model again; replace files by renaming, or load with "
                                  "mmap=False")


def _state(found):
    """(identity, state) of a file. Writing to the file changes only its state."""
    return (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns)


def mapped_files(weights) -> set[MappedFile]:
    """Find the files whose mappings a tree of arrays uses. Arrays on a GPU use none.

    Args:
        weights: the tree, from `build` or `on_device`.

    Returns:
        The files.
    """
    if isinstance(weights, (dict, list)):
        parts = weights.values() if isinstance(weights, dict) else weights
        return set().union(*map(mapped_files, parts))
    owner = weights
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return {owner} if isinstance(owner, MappedFile) else set()


def check_complete(path: str | Path) -> None:
    """Check that a safetensors file has the length that its header states.

    Args:
        path: the file.

    Raises:
        OSError: if the file cannot be read, is not a regular file, or has a header of more than `MAX_BYTES`.
        SafetensorError: if it is incomplete or not in safetensors format.
        ValueError: if the path is invalid.
    """
    from safetensors import safe_open

    with open_regular(path) as file:  # safe_open would wait for the writer of a pipe
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_BYTES:  # safetensors accepts 100 MB, whose parsed form would fill several GB
        raise OSError(f"expected a header of at most {MAX_BYTES} bytes; got {size}")
    with safe_open(path, "np"):
        pass


def read_safetensors(path: str | Path, mmap: bool = True) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file.

    Args:
        path: the file.
        mmap: whether to map the file. Without it, the file is read into memory.

    Returns:
        {tensor name: array}, read-only. With `mmap`, the arrays are views of a `MappedFile`, else of one copy of the
        file in memory. BF16 has the dtype `BFLOAT16`.

    Raises:
        CheckpointError: if the file is missing, incomplete, or not in safetensors format.
    """
    return _read(path, mmap)[0]


def _read(path, mmap):
    """The tensors and the metadata of a safetensors file."""
    from safetensors import SafetensorError

    try:
        check_complete(path)  # so all offsets below are valid
        raw = MappedFile.open(path) if mmap else np.fromfile(path, np.uint8)
        start = 8 + int.from_bytes(bytes(raw[:8]), "little")
        header = json.loads(bytes(raw[8:start]), object_pairs_hook=unique)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if f"(os error {errno.ENOMEM})" in str(error) or getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError from None  # versions of safetensors differ in the type
        raise CheckpointError(f"{path}: not a complete safetensors file ({brief(error)}); download it again") from None
    metadata = header.pop("__metadata__", None) or {}
    return {name: _tensor(raw, start, f"{path}: tensor {_name(name)}", entry)
            for name, entry in header.items()}, metadata


BFLOAT16 = np.dtype([("upper_half", "<u2")])  # NumPy has no such dtype. A bfloat16 is the upper half of a float32
SIXTEEN_BIT = (np.float16, BFLOAT16)
READABLE = {"F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


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
    array.flags.writeable = False
    return array


def read_checkpoint(path: str | Path, mmap: bool = True) -> tuple[dict[str, np.ndarray], str | None]:
    """Read all tensors of a checkpoint, under their published names.

    Args:
        path: a safetensors file, or a directory that holds one file or several shards and their index.
        mmap: as in `read_safetensors`.

    Returns:
        {published name: array}, as in `read_safetensors`, and the metadata entry `SAVED_CONFIG`. The entry is None in
        a file that `Model.save` did not write.

    Raises:
        CheckpointError: if a file is missing or corrupted.
    """
    path, metadata = Path(path), {}
    if is_folder(path):
        if status(path / INDEX):
            tensors = _read_shards(path, mmap)
        elif status(path / "model.safetensors", follow=False):
            tensors, metadata = _read(path / "model.safetensors", mmap)
        else:
            raise CheckpointError(f"{path}: expected model.safetensors or {INDEX}; found neither. Convert a .bin or "
                                  ".pth file to safetensors first")
    else:
        tensors, metadata = _read(path, mmap)
    return {published(name): array for name, array in tensors.items()}, metadata.get(SAVED_CONFIG)


def _read_shards(directory, mmap):
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{directory / INDEX}: expected a 'weight_map' from tensor names to file names; got "
                              f"{brief(places)}. Download the file again")
    tensors = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not is_file(directory / shard):
            raise CheckpointError(f"{directory / INDEX} names {brief(shard)}, which is not in {directory}; "
                                  "download the missing file")
        tensors |= read_safetensors(directory / shard, mmap)
    if absent := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{directory}: tensor {_name(absent[0])} is in no shard, but {INDEX} lists it in "
                              f"{brief(places[absent[0]])}; download that file again")
    return tensors


def _name(name):
    """A tensor name, shortened and made printable for a message."""
    return brief(name)[1:-1]


def checked(tensors: dict[str, np.ndarray], config: Config, source: str | Path) -> dict[str, np.ndarray]:
    """Check all tensors against the config. Then convert those that layers use.

    Args:
        tensors: {published name: array}, as from `read_checkpoint`.
        config: geometry of the checkpoint.
        source: origin of the tensors, for messages.

    Returns:
        {published name: array}: read-only float32 arrays. Tensors that no layer uses stay as they are; those of 16-bit
        floats are left out.

    Raises:
        CheckpointError: for the first tensor that is missing, unknown, of the wrong shape, or not of floats.
    """
    used = {name: array for name, array in tensors.items() if not UNUSED.fullmatch(name)}
    try:
        heads = head_names(config, used)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}.{_MIXED}") from None
    wanted = parameters(config)
    wanted |= {f"{p}.{part}": shape for p in heads["bbox_embed"] for part, shape in box_head(config.d_model).items()}
    wanted |= {f"{prefix}.bias": () for prefix in heads.get("class_embed", ())}
    for name, shape in wanted.items():
        if name not in used:
            raise CheckpointError(f"{source}: tensor {name} {list(shape)} is missing.{_MIXED}")
        if used[name].shape != shape:
            raise CheckpointError(f"{source}: tensor {name} must have shape {list(shape)} with this config.json; "
                                  f"got {list(used[name].shape)}.{_MIXED}")
        if used[name].dtype not in (np.float32, *SIXTEEN_BIT):
            raise CheckpointError(f"{source}: tensor {name} must be F32, F16 or BF16; got {used[name].dtype}."
                                  "\n---> hint: save the checkpoint again with 32-bit floats")
    if unknown := sorted(used.keys() - wanted.keys()):
        raise CheckpointError(f"{source}: tensor {_name(unknown[0])} belongs to no layer of this model"
                              f"{f', nor do {len(unknown) - 1} others' if len(unknown) > 1 else ''}.{_MIXED}")
    return {name: _converted(array) if name in used else array for name, array in tensors.items()
            if name in used or array.dtype not in SIXTEEN_BIT}


def _converted(array):
    """A read-only float32 array, without a copy if the array has that dtype and is contiguous and aligned."""
    if array.dtype == BFLOAT16:
        bits = array["upper_half"].astype(np.uint32)
        bits <<= 16  # in place
        array = bits.view(np.float32)
    # the layout of an array can change the last bits of a product, so all have the same one. Arrays of files have it.
    # A subclass of ndarray, such as one with a mask, becomes a plain array
    array = np.require(array, np.float32, ("C", "A", "E")).view()
    array.flags.writeable = False
    return array


def build(tensors: dict[str, np.ndarray], config: Config) -> dict:
    """Arrange tensors as a tree.

    Args:
        tensors: {published name: array}, as from `checked`.
        config: geometry of the checkpoint.

    Returns:
        Nested dicts and lists; each branch holds the parameters of one layer function, as keyword arguments.
    """
    flat = {renamed(name): tensors[name] for name in parameters(config)}
    for kind, prefixes in head_names(config, tensors).items():
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


# Tensors whose NaN or infinity may not reach the output: a sampling point at NaN counts as outside the map, ReLU and
# softmax turn -inf into 0, boxes are clamped, and a class bias only shifts scores. 6 % of the tiny checkpoint.
HIDDEN = re.compile(r"bias|level_embed|sampling_offsets|attention_weights|bbox_embed|reference_points_head"
                    r"|(_layer|decoder\.layers\.\d+)\.fc1")


def first_non_finite(tensors: dict[str, np.ndarray], hidden: bool = False) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None.

    Args:
        tensors: {published name: array}. Tensors that the model does not use are skipped.
        hidden: whether to check only those whose NaN or infinity may not reach the output.
    """
    names = (name for name in tensors if not UNUSED.fullmatch(name) and (not hidden or HIDDEN.search(name)))
    return next((name for name in names if not np.isfinite(tensors[name]).all()), None)


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


def _lists(node) -> Any:
    """Replace dicts with the keys "0", "1", ... by lists."""
    if not isinstance(node, dict):
        return node
    node = {key: _lists(value) for key, value in node.items()}
    return [node[str(i)] for i in range(len(node))] if "0" in node else node

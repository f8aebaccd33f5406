"""A fingerprint of a model, by which a resumed run recognises the model that began it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from .config import LOSS_FIELDS, Config
from .names import UNUSED


def fingerprint(tensors: Mapping[str, np.ndarray], config: Config, settings: dict) -> str:
    """Compute a fingerprint of a model. It depends on values only, not on files: a moved checkpoint keeps it.

    Args:
        tensors: {published name: array} on the host. Those that the model does not use are skipped.
        config: geometry of the model. Fields for losses do not count, since detections do not depend on them.
        settings: image settings, as from `ImageSettings.to_dict`.

    Returns:
        16 hexadecimal digits. A change of one value of a tensor, or of their order, changes them.
    """
    geometry = {name: value for name, value in config.to_dict().items() if name not in LOSS_FIELDS}
    digest = hashlib.blake2b(json.dumps([geometry, settings], sort_keys=True).encode(), digest_size=8)
    for name in sorted(tensors):
        if not UNUSED.fullmatch(name):
            digest.update(f"{name} {tensors[name].shape} {_hash(tensors[name])}\n".encode())
    return digest.hexdigest()


BLOCK = 2**16  # words that are multiplied at a time
WEIGHTS = np.arange(1, 2 * BLOCK, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd, so no bit is lost
FACTOR = 0xD1342543DE82EF95  # odd, too


def _hash(array):
    """Weighted sum of an array's bits as 64-bit integers, modulo 2**64. It depends on the order of the values.

    It reads gigabytes at the speed of memory. A cryptographic hash of all bytes would take ten times as long.
    """
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words, rest = np.split(bits, [len(bits) // 8 * 8])  # an odd number of floats leaves 4 bytes
    words, total = words.view(np.uint64), int.from_bytes(rest.tobytes(), "little")
    for start in range(0, len(words), BLOCK):
        part = words[start : start + BLOCK]
        total = (total * FACTOR + int(part @ WEIGHTS[: len(part)])) % 2**64
    return total

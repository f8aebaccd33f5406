"""A fingerprint of a model, by which a resumed run recognises the model that began it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from .config import Config
from .names import UNUSED


def fingerprint(tensors: Mapping[str, np.ndarray], config: Config, settings: dict) -> str:
    """Compute a fingerprint of a model. It depends on values only, not on files: a moved checkpoint keeps it.

    Args:
        tensors: {published name: array} on the host. Those that the model does not use are skipped.
        config: geometry of the model.
        settings: image settings, as from `ImageSettings.to_dict`.

    Returns:
        16 hexadecimal digits. A change of one value of one tensor changes them.
    """
    digest = hashlib.blake2b(json.dumps([config.to_dict(), settings], sort_keys=True).encode(), digest_size=8)
    for name in sorted(tensors):
        if not UNUSED.fullmatch(name):
            digest.update(f"{name} {tensors[name].shape} {_sum(tensors[name])}\n".encode())
    return digest.hexdigest()


def _sum(array):
    """Sum of an array's bits as 64-bit integers, modulo 2**64, plus the 4 bytes that an odd number of floats leaves.

    It reads gigabytes at the speed of memory. A cryptographic hash of all bytes would take ten times as long.
    """
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words, rest = np.split(bits, [len(bits) // 8 * 8])
    return (int(words.view(np.uint64).sum(dtype=np.uint64)) + int.from_bytes(rest.tobytes(), "little")) % 2**64

"""Features of frozen backbones, kept on disk: computed once for each variant of an image, and once for each phrase."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..checkpoints.json_file import status
from ..errors import from_signal_handler
from ..network.phrases import phrase_mask
from ..writing import replace_file

MAX_BYTES = 8 * 2**30  # of all files; at 800 x 1066 pixels, the maps of the tiny model take 18 MB


class FeatureStore:
    """A folder of features, as float32 .npy files that are mapped into memory.

    The input of the backbone is the key, so a changed image has other files. All files belong to one backbone. A store
    that is full computes further features each time.

    Args:
        folder: where the files are; created with the first one.
        count: number of arrays of features for an input.
        max_bytes: size of all files beyond which none is added.
    """

    def __init__(self, folder: str | Path, count: int, max_bytes: int = MAX_BYTES):
        self._folder, self._count, self._max_bytes = Path(folder), count, max_bytes
        self._bytes = sum(path.stat().st_size for path in self._folder.glob("*.npy"))

    def get(self, inputs: np.ndarray, compute: Callable[[np.ndarray], Sequence[np.ndarray]]) -> tuple:
        """Return the features of an input, from the disk if they are there.

        Args:
            inputs: normalised pixels [3, H, W] of an image, or token ids [T] of a phrase.
            compute: the backbone, which returns the features of inputs: the maps [H, W, C] of an image, or [T, C].

        Returns:
            The features in the order of the backbone.

        Raises:
            ArgumentError: if a file cannot be written.
        """
        key = hashlib.blake2b(f"{inputs.shape}".encode() + inputs.tobytes(), digest_size=16).hexdigest()
        paths = [self._folder / f"{key}-{i}.npy" for i in range(self._count)]
        maps = [mapped for path in paths if (mapped := _mapped(path)) is not None]
        if len(maps) < len(paths):
            maps = compute(inputs)
            if self._bytes + sum(m.nbytes for m in maps) <= self._max_bytes:
                for path, array in zip(paths, maps):
                    data = _npy(array)
                    replace_file(path, data)
                    self._bytes += len(data)
        return tuple(maps)


def prompt_features(ids: np.ndarray, delimiters: Sequence[int], compute: Callable[[np.ndarray], np.ndarray]):
    """Return the features of BERT for a prompt, put together from those of its phrases.

    Tokens attend only to their own phrase, and positions restart in each (§3.4). So the features of a phrase do not
    depend on the other phrases.

    Args:
        ids: [T] token ids of the prompt.
        delimiters: token ids that end a phrase.
        compute: returns the features [t, C] of a phrase with its delimiter, or of another token such as [CLS], from
            its ids [t].

    Returns:
        [T, C]: features.
    """
    _, positions = phrase_mask(ids, delimiters)
    return np.concatenate([compute(part) for part in np.split(ids, np.flatnonzero(positions == 0)[1:])])


def _mapped(path):
    """The array in a file; None if the file is missing or incomplete."""
    if status(path) is None:
        return None
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return None


def _npy(array):
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array))
    return file.getvalue()

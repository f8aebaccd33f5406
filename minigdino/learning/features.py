"""Feature maps of a frozen image backbone, kept on disk: they are computed once for each variant of an image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..checkpoints.json_file import status
from ..errors import from_signal_handler
from ..writing import replace_file

MAX_BYTES = 8 * 2**30  # of all files; at 800 x 1066 pixels, the maps of the tiny model take 18 MB


class FeatureStore:
    """A folder of feature maps, as float32 .npy files that are mapped into memory.

    The content of the preprocessed image is the key, so a changed image has other files. All files belong to one
    backbone. A store that is full computes further maps each time.

    Args:
        folder: where the files are; created with the first one.
        count: number of feature maps of an image.
        max_bytes: size of all files beyond which none is added.
    """

    def __init__(self, folder: str | Path, count: int, max_bytes: int = MAX_BYTES):
        self._folder, self._count, self._max_bytes = Path(folder), count, max_bytes
        self._bytes = sum(path.stat().st_size for path in self._folder.glob("*.npy"))

    def get(self, pixels: np.ndarray, compute: Callable[[np.ndarray], Sequence[np.ndarray]]) -> tuple:
        """Return the feature maps of an image, from the disk if they are there.

        Args:
            pixels: [3, H, W] float32, normalised.
            compute: the backbone, which returns the maps [H, W, C] of pixels.

        Returns:
            The maps, fine to coarse.

        Raises:
            ArgumentError: if a file cannot be written.
        """
        key = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
        paths = [self._folder / f"{key}-{i}.npy" for i in range(self._count)]
        maps = [mapped for path in paths if (mapped := _mapped(path)) is not None]
        if len(maps) < len(paths):
            maps = compute(pixels)
            if self._bytes + sum(m.nbytes for m in maps) <= self._max_bytes:
                for path, array in zip(paths, maps):
                    data = _npy(array)
                    replace_file(path, data)
                    self._bytes += len(data)
        return tuple(maps)


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

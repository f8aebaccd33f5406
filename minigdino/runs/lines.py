"""The lines of a run: the result of one image, and the images that a file has already."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..detector import Model
from ..errors import ArgumentError, ImageError
from .items import Item, record, stable_id
from .manifest import is_id
from .opening import open_uri
from .remote import shown_name

FOUND = "found"  # start of the file name
INT64 = "q"  # the ids, as a type of `array`


def line(model: Model, text: str | Sequence[str], options: dict[str, Any], item: Item) -> dict[str, Any]:
    """Detect in one image.

    Args:
        model: the model.
        text: the prompt, as in `Model.detect`.
        options: keyword arguments of `Model.detect`.
        item: the image.

    Returns:
        The JSON object of the image, as from `items.record`: its detections, or why it cannot be used.

    Raises:
        Error: as `Model.detect` does, except `ImageError`.
    """
    try:
        return record(item, model.detect(open_uri(item.uri), text, **options))
    except ImageError as error:
        start, message = f"{shown_name(item.uri)}: ", str(error)
        return record(item, ImageError(message if message.startswith(start) else start + message))


class Done:
    """The images of a file that have detections. It takes 17 bytes per line while it is filled, then 16 per image."""

    def __init__(self):
        self._ids, self._names, self._good = array(INT64), array(INT64), array("b")

    def add(self, values: dict[str, Any]) -> None:
        """Add a line of the file. The last line of an image counts. One without an id is none of a run.

        Args:
            values: the JSON object.
        """
        if is_id(number := values.get("id")) and isinstance(name := values.get("image"), str):
            self._ids.append(number)
            self._names.append(stable_id(name))
            self._good.append("error" not in values)

    @functools.cached_property
    def _sorted(self):
        """The ids of the images [N], sorted, and the hashes of their names [N]."""
        ids, last = np.unique(np.asarray(self._ids)[::-1], return_index=True)
        good, names = (np.asarray(column)[::-1][last] for column in (self._good, self._names))
        del self._ids, self._names, self._good
        return ids[good != 0], names[good != 0]

    def __len__(self) -> int:
        return len(self._sorted[0])

    def __contains__(self, item: Item) -> bool:
        """Return whether the file has an image.

        Raises:
            ArgumentError: if it has another one with the same id.
        """
        ids, names = self._sorted
        i = np.searchsorted(ids, item.id)
        if i == len(ids) or ids[i] != item.id:
            return False
        if names[i] != stable_id(item.uri):
            raise ArgumentError(f"{shown_name(item.uri)}: expected an id of its own; the file of this run has another "
                                f"image with the id {item.id}. Correct the manifest, or begin a run in another folder")
        return True

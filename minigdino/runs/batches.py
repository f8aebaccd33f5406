"""A batch of images in, a table of results out: the class that engines such as Ray Data, Daft, Dask and Spark call."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..detect_arguments import OPTIONAL, header
from ..detector import default_source, load, prompts
from ..errors import ArgumentError, brief
from ..options import THRESHOLD, DetectOptions, checked
from ..runtime import precision as precisions
from ..runtime.threads import set_threads
from .items import Item
from .lines import line
from .manifest import is_id

if TYPE_CHECKING:
    import pyarrow as pa


class DetectBatch:
    """Detect in batches of images, which are opened where they are processed.

    An engine creates one object in each of its processes, and calls it with one batch after the other. An image that
    cannot be read becomes a row with an error, and does not stop the batch. Results do not depend on the batches.

    An object can be pickled: it loads its model again, from the same place.

    Args:
        text: the prompt for all images, as in `Model.detect`.
        model: as in `load`. Each machine must have it, or be able to download it.
        threads: number of threads of this process. None for the CPUs that Ray has assigned to its actor; outside an
            actor of Ray, the number of threads stays as it is.
        device: as in `load`. None for "cuda" in an actor to which Ray has assigned a GPU, else "cpu".
        precision: as in `load`.
        options: options of `Model.detect`, except `errors`.

    Attributes:
        header: all that determines the results, as in the first line of a file of `minigdino run`.

    Raises:
        Error: as `load` and `Model.detect` do. All arguments are checked before the first image.
    """

    def __init__(self, text: str | list[str], *, model: str | Path | None = None, threads: int | None = None,
                 device: str | None = None, precision: str | None = None, **options: Unpack[DetectOptions]):
        self._text, self._options = text, dict[str, Any](options)
        self._arguments = {"model": default_source() if model is None else model, "threads": threads, "device": device,
                           "precision": precisions.checked(precision), **options}
        assigned = _assigned_by_ray()
        if threads is None and assigned is not None:
            threads = max(int(assigned.get("CPU", 1)), 1)  # Ray also assigns parts of a CPU, and none
        if threads is not None:
            set_threads(threads)
        device = device or ("cuda" if (assigned or {}).get("GPU") else "cpu")
        self._model = load(model, device=device, precision=precision)
        parts = prompts(self._model, text, options.get("chunk"))
        self._model.detect([], text, errors="return", **options)  # checks the options
        self.header: dict[str, Any] = header(self._model, parts, _recorded(options))

    def __reduce__(self):
        return partial(type(self), self._text, **self._arguments), ()

    def __call__(self, batch: Any) -> pa.Table:
        """Detect in a batch of images.

        Args:
            batch: a table with the columns "id" (int64, different for each image) and "uri": an Arrow table, a dict of
                NumPy arrays, or a data frame of pandas. A uri is what `minigdino run` accepts in a manifest. Further
                columns are ignored.

        Returns:
            A row for each image, in the same order. `minigdino.runs.table.schema` describes the columns.

        Raises:
            ArgumentError: if a column is missing, or has values of another type.
        """
        from .table import table

        return table(self.lines(_items(batch)), self.header)

    def lines(self, items: Iterable[Item]) -> list[dict[str, Any]]:
        """Detect in some images.

        Args:
            items: the images.

        Returns:
            The JSON object of each, as from `lines.line`.

        Raises:
            Error: as `Model.detect` does, except `ImageError`.
        """
        return [line(self._model, self._text, self._options, item) for item in items]


def _recorded(options):
    """The options as `minigdino run` records them: plain values, and none that leaves the results as they are."""
    given = {"threshold": THRESHOLD, "text_threshold": THRESHOLD, "size": None, **options}
    plain = checked(**{**OPTIONAL, **given})
    values = {name: getattr(plain, name) for name in given}
    return {name: value for name, value in values.items() if name not in OPTIONAL or value != OPTIONAL[name]}


def _assigned_by_ray() -> dict[str, float] | None:
    """The resources that Ray has assigned to the actor in this process; None outside an actor.

    OMP_NUM_THREADS does not tell: Ray sets it in workers that may have imported NumPy before.
    """
    ray = sys.modules.get("ray")  # imported in every process of Ray
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_assigned_resources() if context.get_actor_id() else None


def _items(batch):
    """The images of a batch, checked."""
    ids, names = (_column(batch, name) for name in ("id", "uri"))
    for number, (key, uri) in enumerate(zip(ids, names)):
        if not is_id(key):
            raise ArgumentError(f'the column "id" must have an int64 in each row; got {brief(key)} in row {number} of '
                                "a batch. For names, use minigdino.runs.items.stable_id")
        if not isinstance(uri, str) or not uri:
            raise ArgumentError(f'the column "uri" must have a path or a URL in each row; got {brief(uri)} in row '
                                f"{number} of a batch, whose id is {key}. Correct the manifest")
    return [Item(key, uri) for key, uri in zip(ids, names)]


def _column(batch, name):
    """A column as a list of Python values."""
    try:
        column = batch[name]
    except (LookupError, TypeError):
        known = getattr(batch, "column_names", None) or list(getattr(batch, "keys", list)())
        raise ArgumentError(f'a batch must have the columns "id" and "uri"; got {brief(known)}. Rename or add a '
                            "column") from None
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column.tolist())

"""The precision of the matrix products of a forward pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .._ext.precision import PARTS, parts
from ..errors import ArgumentError, brief

PRECISIONS = tuple(PARTS)  # "highest", "high", "medium"


def checked(precision: str | None) -> str:
    """Return a precision, or the default.

    Args:
        precision: "highest", "high" or "medium"; None for $MINIGDINO_PRECISION if it is set, else "highest".

    Raises:
        ArgumentError: for any other value, also of the environment variable.
    """
    chosen = precision if precision is not None else os.environ.get("MINIGDINO_PRECISION") or "highest"
    if not isinstance(chosen, str) or chosen not in PRECISIONS:
        raise ArgumentError(f'precision must be "highest", "high" or "medium"; got {brief(chosen)} (from precision= or '
                            "MINIGDINO_PRECISION)")
    return chosen


@contextmanager
def computing(precision: str) -> Iterator[None]:
    """Compute the matrix products of this thread, and of the helper threads of its loops, with a precision.

    Args:
        precision: one of `PRECISIONS`.

    Raises:
        ArgumentError: for any other value.
    """
    chosen, before = PARTS[checked(precision)], parts.get()
    try:
        parts.set(chosen)
        yield
    finally:
        parts.set(before)

"""Registry of ops. Each op pairs a NumPy reference with its compiled twins. This module itself defines no op."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .._ext.instruction_sets import levels, load, load_for
from ..errors import ArgumentError

__all__ = [
    "MODES", "OPS", "accelerated", "array_library", "levels", "live", "load", "load_for", "mode", "opened", "use",
]

MODES = ("fast", "reference")
OPS: dict[str, Callable] = {}  # name -> op; the tests iterate over it, so every twin is tested

_announced = False
_mode: ContextVar[str | None] = ContextVar("minigdino kernels", default=None)  # None: MINIGDINO_KERNELS decides
_opened: ContextVar[Callable[[Callable], bool] | None] = ContextVar("minigdino opened", default=None)  # see `opened`


def mode() -> str:
    """Return the mode of this thread, else of the process: "fast" (compiled twins) or "reference" (NumPy)."""
    return _checked(_mode.get() or os.environ.get("MINIGDINO_KERNELS") or "fast")


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose between compiled twins and the NumPy reference: `with minigdino.use("reference"): ...`

    The mode applies to the calling thread, and to the helper threads of its loops, until the block ends. The
    environment variable MINIGDINO_KERNELS sets the mode of a process.

    Args:
        mode: "fast" or "reference".

    Raises:
        ArgumentError: for any other mode.
    """
    token = _mode.set(_checked(mode))
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def opened(wanted: Callable[[Callable], bool]) -> Iterator[None]:
    """Run the reference of some ops in this thread, so that their steps can be traced. Other ops run their twins.

    Args:
        wanted: called with the reference of an op; if it returns True, the reference runs instead of the twin.
    """
    token = _opened.set(wanted)
    try:
        yield
    finally:
        _opened.reset(token)


def accelerated(**twins: str):
    """Decorator that registers a NumPy reference as an op with compiled twins.

    A call runs the twin for the array library of its arguments. `op.reference` runs the NumPy function, and the NumPy
    function of every op that it calls. `inspect.unwrap(op)` is the function as written.

    Args:
        twins: "module:function" for each array library (numpy=, cupy=).
    """

    def decorate(reference):
        @functools.wraps(reference)
        def op(*args, **kwargs):
            path, wanted = twins.get(array_library(args)), _opened.get()
            if not path or mode() != "fast" or (wanted and wanted(reference)):
                return reference(*args, **kwargs)
            twin = load(path)
            if twin is None:
                _announce(path)
            return (twin or reference)(*args, **kwargs)

        @functools.wraps(reference)
        def all_reference(*args, **kwargs):
            with use("reference"):
                return reference(*args, **kwargs)

        op.reference, op.twins = all_reference, twins
        OPS[reference.__name__] = op
        return op

    return decorate


def array_library(arrays) -> str:
    """Return "cupy" if any argument is a CuPy array, else "numpy". Does not import CuPy."""
    return "cupy" if any(type(a).__module__.partition(".")[0] == "cupy" for a in arrays) else "numpy"


def live() -> dict[str, bool]:
    """Return which CPU twins were built: {op: True or False}."""
    return {name: load(op.twins["numpy"]) is not None for name, op in OPS.items() if "numpy" in op.twins}


def _announce(path):
    """Warn once per process about missing twins, because a slow path without a warning would remain unnoticed."""
    global _announced
    if not _announced:
        _announced = True
        warnings.warn(f"{path} was not built; NumPy references run instead of compiled kernels, which is much slower "
                      "(minigdino info lists them).\n---> hint: with a C compiler present, run: pip install "
                      "--no-binary minigdino minigdino (in a clone: pip install -e .)", RuntimeWarning, stacklevel=3)


def _checked(mode):
    if mode not in MODES:
        raise ArgumentError(f'kernels must be "fast" or "reference"; got {mode!r} (from use() or MINIGDINO_KERNELS)')
    return mode

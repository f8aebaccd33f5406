"""Registry of ops: each pairs a NumPy reference with its compiled twins. Knows no op itself."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .._ext.levels import levels, load, load_for
from ..errors import ArgumentError

__all__ = [
    "MODES", "OPS", "accelerated", "array_library", "levels", "live", "load", "load_for", "mode", "opened", "use",
]

MODES = ("fast", "reference")
OPS: dict[str, Callable] = {}  # name -> op; the test suite walks it, so no twin stays untested

_announced = False
_mode: ContextVar[str | None] = ContextVar("minigdino kernels", default=None)  # None: MINIGDINO_KERNELS decides
_opened: ContextVar[Callable[[Callable], bool] | None] = ContextVar("minigdino opened", default=None)  # see `opened`


def mode() -> str:
    """The mode of this thread, else of the process: "fast" (compiled twins) or "reference" (NumPy)."""
    return _checked(_mode.get() or os.environ.get("MINIGDINO_KERNELS") or "fast")


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose between compiled twins and the NumPy reference: `with minigdino.use("reference"): ...`

    Holds for the calling thread, and for the workers of its loops, until the block ends. MINIGDINO_KERNELS sets the
    mode of a whole process.

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
    """Run the reference of some ops in this thread, so that their steps can be traced; the others run their twins.

    Args:
        wanted: called with the reference of an op; True runs it instead of the twin.
    """
    token = _opened.set(wanted)
    try:
        yield
    finally:
        _opened.reset(token)


def accelerated(**twins: str):
    """Decorator that registers a NumPy reference as an op with compiled twins.

    A call runs the twin for the array library of its arguments. `op.reference` runs the NumPy function, with the NumPy
    function of every op inside it. `inspect.unwrap(op)` is the function as written.

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
    """"cupy" if any argument is a CuPy array, else "numpy". Never imports CuPy: a CuPy array proves it is loaded."""
    return "cupy" if any(type(a).__module__.partition(".")[0] == "cupy" for a in arrays) else "numpy"


def live() -> dict[str, bool]:
    """Which CPU twins were built: {op: True or False}."""
    return {name: load(op.twins["numpy"]) is not None for name, op in OPS.items() if "numpy" in op.twins}


def _announce(path):
    """Warn once per process about missing twins: a silent slow path would go unnoticed on a server."""
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

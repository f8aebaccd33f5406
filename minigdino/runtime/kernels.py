"""Pair each NumPy reference with its compiled twins. Nothing here knows any op."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import ArgumentError

MODES = ("fast", "reference")
OPS: dict[str, Callable] = {}  # name -> op; the test suite walks this, so no twin can escape it

_announced = False
_mode: ContextVar[str | None] = ContextVar("minigdino kernels", default=None)  # None: as MINIGDINO_KERNELS says
_opened: ContextVar[Callable[[Callable], bool] | None] = ContextVar("minigdino opened", default=None)  # see `opened`


def mode() -> str:
    """"fast" (compiled twins) or "reference" (the NumPy you read): of this thread, else of the process."""
    return _checked(_mode.get() or os.environ.get("MINIGDINO_KERNELS") or "fast")


@contextmanager
def use(mode: str) -> Iterator[None]:
    """`with minigdino.use("reference"): ...` runs the NumPy formulas instead of their compiled twins.

    Holds for the calling thread, and those that help it, until the block ends; MINIGDINO_KERNELS sets the whole
    process.
    Raises ArgumentError for anything but "fast" and "reference".
    """
    token = _mode.set(_checked(mode))
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def opened(wanted: Callable[[Callable], bool]) -> Iterator[None]:
    """Until the block ends, in this thread, an op runs its formula instead of its twin where `wanted(formula)`."""
    token = _opened.set(wanted)
    try:
        yield
    finally:
        _opened.reset(token)


def accelerated(**twins: str):
    """Decorate a NumPy reference with its twins, as "module:function" per array library (numpy=, cupy=).

    The op runs the twin for the library of its arrays; the formula stays reachable as `op.reference`.
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

        op.reference, op.twins = reference, twins
        OPS[reference.__name__] = op
        return op

    return decorate


def array_library(arrays) -> str:
    """"cupy" if any argument is a CuPy array, else "numpy". Never imports CuPy: whoever made the array did."""
    return "cupy" if any(type(a).__module__.partition(".")[0] == "cupy" for a in arrays) else "numpy"


@functools.cache
def load(path: str) -> Callable | None:
    """The function at "module:function", for the widest vectors of this processor; None when it was not built."""
    return next(filter(None, (load_for(level, path) for level in levels())), None)


def load_for(level: str, path: str) -> Callable | None:
    """The function at "package.module:function" as compiled for a level: "package.level.module:function" if there is
    one. None if it was not built."""
    module, _, name = path.partition(":")
    package, _, module = module.rpartition(".")
    try:
        return getattr(importlib.import_module(".".join(filter(None, (package, level, module)))), name)
    except ImportError:
        return None


@functools.cache
def levels() -> tuple[str, ...]:
    """What twins may be compiled for and this processor runs, best first: of "avx512", "avx2" and "", any processor."""
    try:
        from .._ext.cpu import levels
    except ImportError:
        return ("",)
    return tuple(levels())


def _announce(path):
    """Said once, for whichever missing twin is needed first: a silent slow path is a server's worst failure."""
    global _announced
    if not _announced:
        _announced = True
        warnings.warn(f"{path} was not built; NumPy references run instead of compiled kernels, which is much slower "
                      "(minigdino info lists them).\n---> hint: with a C compiler present, run: pip install "
                      "--no-binary minigdino minigdino (in a clone: pip install -e .)", RuntimeWarning, stacklevel=3)


def live() -> dict[str, bool]:
    """Which CPU twins were built: {op: True or False}."""
    return {name: load(op.twins["numpy"]) is not None for name, op in OPS.items() if "numpy" in op.twins}


def _checked(mode):
    if mode not in MODES:
        raise ArgumentError(f'kernels must be "fast" or "reference"; got {mode!r} (from use() or MINIGDINO_KERNELS)')
    return mode

"""Registry of ops. Each op pairs a NumPy reference with its compiled twins. This module itself defines no op."""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from .._ext.instruction_sets import levels, load, load_for, module_of, problems
from ..errors import ArgumentError, brief

__all__ = [
    "MODES", "OPS", "accelerated", "array_library", "intercepted", "levels", "levels_in_use", "live", "load",
    "load_for", "missing", "mode", "multiplying", "opened", "require_gil", "traced", "use",
]

MODES = ("fast", "reference")
OPS: dict[str, Callable] = {}  # name -> op; the tests iterate over it, so every twin is tested

# References run one at a time: OpenBLAS 0.3.28 and 0.3.29, which some versions of NumPy contain, return wrong products
# when several threads compute them at once.
_reference_lock = threading.RLock()
_announced = False
_mode: ContextVar[str | None] = ContextVar("minigdino kernels", default=None)  # None: MINIGDINO_KERNELS decides
# None: an op runs itself
_runner: ContextVar[Callable | None] = ContextVar("minigdino runner of ops", default=None)


class _Opened(threading.local):
    """The predicates of the `opened` blocks of this thread. Not a ContextVar: a profiler belongs to a thread, too."""

    def __init__(self):
        self.predicates: set[weakref.ref] = set()  # weak, because `finally` may not run (see tracing)


_opened = _Opened()


def mode() -> str:
    """Return the mode of this thread, else of the process: "fast" (compiled twins) or "reference" (NumPy)."""
    return _checked(_mode.get() or os.environ.get("MINIGDINO_KERNELS") or "fast")


def use(mode: str) -> AbstractContextManager[None]:
    """Choose between compiled twins and the NumPy reference: `with minigdino.use("reference"): ...`

    The mode applies to the calling thread, and to the helper threads of its loops, until the block ends. A call without
    `with` changes nothing. The environment variable MINIGDINO_KERNELS sets the mode of a process.

    Args:
        mode: "fast" or "reference".

    Returns:
        The context manager.

    Raises:
        ArgumentError: for any other mode.
    """
    return _using(_checked(mode))


@contextmanager
def _using(mode):
    before = _mode.get()
    try:  # around `set`, so that an exception of a signal handler cannot leave the mode changed
        _mode.set(mode)
        yield
    finally:
        _mode.set(before)


@contextmanager
def opened(wanted: Callable[[Callable], bool]) -> Iterator[None]:
    """Run the reference of some ops in this thread, so that their steps can be traced. Other ops run their twins.

    Blocks may overlap and may end in any order.

    Args:
        wanted: called with the reference of an op; if it returns True, the reference runs instead of the twin.
    """
    predicates = _opened.predicates  # of this thread, also if another one ends the block, by closing a generator
    block = functools.partial(wanted)  # an object of its own, even if two blocks have the same predicate
    reference = weakref.ref(block, predicates.discard)
    try:
        predicates.add(reference)
        yield
    finally:
        predicates.discard(reference)


@contextmanager
def intercepted(run: Callable | None) -> Iterator[None]:
    """Let a function run the ops of this thread until the block ends.

    Args:
        run: called as run(op, args, kwargs) instead of op(*args, **kwargs). None: ops run themselves again.
    """
    before = _runner.get()
    try:
        _runner.set(run)
        yield
    finally:
        _runner.set(before)


@contextmanager
def multiplying() -> Iterator[None]:
    """Let no other thread run a NumPy reference, and no fork happen, while this one multiplies matrices with NumPy."""
    lock = _reference_lock  # a fork replaces it in the child
    with lock:
        yield


def traced() -> bool:
    """Return whether this thread is in an `opened` block, which `trace` opens: every step must run."""
    return bool(_opened.predicates)


def _is_opened(reference):
    """Return whether an `opened` block of this thread wants this reference."""
    return any(wanted(reference) for block in list(_opened.predicates) if (wanted := block()))


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
            if run := _runner.get():
                return run(op, args, kwargs)
            library, twin = array_library(args), None
            path = twins.get(library)
            if path and mode() == "fast" and not _is_opened(reference):
                twin = load(path)
                if twin is None or problems:
                    _announce(path, twin)
            if twin is None and library == "numpy":
                with multiplying():
                    return reference(*args, **kwargs)
            return (twin or reference)(*args, **kwargs)

        @functools.wraps(reference)
        def all_reference(*args, **kwargs):
            with use("reference"):
                return op(*args, **kwargs)

        vars(op).update(reference=all_reference, twins=twins)
        OPS[reference.__name__] = op
        return op

    return decorate


def array_library(arrays) -> str:
    """Return "cupy" if any argument is a CuPy array, else "numpy". Does not import CuPy."""
    return "cupy" if any(type(a).__module__.partition(".")[0] == "cupy" for a in arrays) else "numpy"


def live() -> dict[str, bool]:
    """Return which CPU twins can be used: {op: True or False}."""
    return {name: load(op.twins["numpy"]) is not None for name, op in OPS.items() if "numpy" in op.twins}


def levels_in_use() -> dict[str, str]:
    """Return the instruction set that each compiled module runs with: {"ops": "avx512", "avx2" or "baseline"}.

    The modules for AVX-512 also contain instructions for bfloat16. For "products", the level is "amx" if they use
    tiles, and "avx512bf16 in medium" if they use dot products of pairs, which only the precision "medium" does.
    """
    found = {}
    for path in _compiled():
        twin = load(path)
        if level := next((level or "baseline" for level in levels() if twin and load_for(level, path) is twin), None):
            found[path.partition(":")[0].rpartition(".")[2]] = level
    if found.get("products") == "avx512":
        uses = {"uses_tiles": "amx", "uses_pairs": "avx512bf16 in medium"}
        found["products"] = next((name for flag, name in uses.items()
                                  if load_for("avx512", f"minigdino._ext.products:{flag}")), "avx512")
    return found


def missing() -> list[str]:
    """Return each compiled module that this CPU could use but does not have, followed by the reason."""
    support = ["minigdino._ext.cpu:levels", "minigdino._ext.memory:reused", "minigdino._ext.pool:for_rows"]
    expected = [("", path) for path in support] + [(level, path) for path in _compiled() for level in levels()]
    modules = {module_of(level, path)[1]: load_for(level, path) for level, path in expected}
    return [f"{module} {problems.get(module, 'was not built')}" for module, found in modules.items()
            if found is None or module in problems]  # one of `problems` stays unused, even if it can be loaded now


def _compiled():
    """Paths of the CPU twins"""
    return [op.twins["numpy"] for op in OPS.values() if "numpy" in op.twins]


def require_gil() -> None:
    """Check that this Python has its global interpreter lock (GIL), on which the compiled modules rely.

    A free-threaded Python enables the GIL when it loads the first of them, unless PYTHON_GIL=0 or -X gil=0 forbids it.

    Raises:
        ImportError: if the GIL stays disabled.
    """
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)
    if not enabled():
        levels()  # loads a compiled module
        if not enabled():
            raise ImportError("minigdino needs Python's global interpreter lock (GIL), which is disabled here. Set the "
                              "environment variable PYTHON_GIL=1, or use a Python that is not free-threaded")


def _announce(path, twin):
    """Warn once per process about missing twins, because a slow path without a warning would remain unnoticed."""
    global _announced
    if _announced:
        return
    _announced = True
    reasons = [f"{module} {reason}" for module, reason in problems.items()]
    if twin is None and path.partition(":")[0] not in problems:
        reasons.insert(0, f"{path} was not built")
    instead = ("kernels for other instruction sets run instead, which is slower" if twin else
               "NumPy references run instead of compiled kernels, which is much slower")
    warnings.warn(f"{'; '.join(reasons)}; {instead} (`minigdino info` lists the missing modules).\n---> hint: with a C "
                  "compiler present, run: pip install --no-binary minigdino minigdino (in a clone: pip install -e .)",
                  RuntimeWarning, stacklevel=3)


def _checked(mode):
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(f'kernels must be "fast" or "reference"; got {brief(mode)} (from use() or '
                            "MINIGDINO_KERNELS)")
    return mode


def _renew_lock():
    """Replace the lock in a forked child, where a thread that does not exist there may hold it."""
    global _reference_lock
    _reference_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits for the end of a reference: it stops the threads of OpenBLAS, and can hang while they multiply. Named
    # in full, because the lock is replaced in a child.
    os.register_at_fork(before=lambda: _reference_lock.acquire(), after_in_parent=lambda: _reference_lock.release(),
                        after_in_child=_renew_lock)

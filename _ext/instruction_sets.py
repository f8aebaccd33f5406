"""Selection of the extension modules for the instruction sets of this CPU.

On x86-64, every .pyx file is compiled three times: into this package for any CPU, and into `avx2` and `avx512` for CPUs
that support those instructions. `load` returns a function from the best of the three that this CPU supports.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable


@functools.cache
def levels() -> tuple[str, ...]:
    """Instruction sets this CPU supports, best first: of "avx512", "avx2" and "" (the baseline)."""
    try:
        from .cpu import levels
    except ImportError:
        return ("",)
    return tuple(levels())


@functools.cache
def load(path: str) -> Callable | None:
    """The function at "package.module:function", from the best level that was built; None if none was."""
    return next(filter(None, (load_for(level, path) for level in levels())), None)


def load_for(level: str, path: str) -> Callable | None:
    """The function at "package.module:function" as compiled for one level; None if that was not built."""
    module, _, name = path.partition(":")
    package, _, module = module.rpartition(".")
    try:
        return getattr(importlib.import_module(".".join(filter(None, (package, level, module)))), name)
    except ImportError:
        return None


def require(path: str) -> Callable:
    """Return the same as `load`, but raise ImportError for a function that was not built."""
    if (found := load(path)) is None:
        raise ImportError(f"{path} was not built")
    return found

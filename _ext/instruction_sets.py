"""Selection of the extension modules for the instruction sets of this CPU.

On x86-64, every .pyx file with twins is compiled three times: into this package for any CPU, and into `avx2` and
`avx512` for CPUs that support those instructions. `load` returns a function from the best of the three that this CPU
supports.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable

from .interrupts import from_signal_handler

HERE = os.path.join(os.path.dirname(__file__), "")  # with a separator at its end
_importing = threading.RLock()
problems: dict[str, str] = {}  # {module: why it cannot be used}; `levels` and `load_for` add what they find


@functools.cache
def levels() -> tuple[str, ...]:
    """Instruction sets to use, best first: of "avx512", "avx2" and "" (the baseline).

    Those that this CPU supports and that are not better than MINIGDINO_VECTORS. "amx", the default, and "avx512bf16"
    set no limit here (see `tiles` and `pairs`).
    """
    module = f"{__package__}.cpu"
    if not (found := load_for("", f"{module}:levels")):
        problems.setdefault(module, "was not built")
        return ("",)
    supported, best = tuple(found()), os.environ.get("MINIGDINO_VECTORS") or "amx"
    names = [level or "baseline" for level in supported]
    if best in names:
        return supported[names.index(best):]
    if best not in ("amx", "avx512bf16"):
        warnings.warn(f"MINIGDINO_VECTORS must be one of amx, avx512bf16, {', '.join(names)}; {best[:100]!r} is "
                      "ignored", RuntimeWarning, stacklevel=2)
    return supported


@functools.cache
def tiles() -> bool:
    """Whether products use tile instructions (AMX): this CPU has them, and MINIGDINO_VECTORS does not exclude them."""
    excluded = levels()[0] != "avx512" or os.environ.get("MINIGDINO_VECTORS") in ("avx512bf16", "avx512")
    found = None if excluded else load_for("", f"{__package__}.cpu:tiles")
    return bool(found and found())


@functools.cache
def pairs() -> bool:
    """Whether products of one part use dot products of pairs (AVX512-BF16).

    That is so without tiles, where they are faster than float32: on CPUs of AMD. MINIGDINO_VECTORS=avx512bf16 uses them
    on every CPU that has them.
    """
    wanted = os.environ.get("MINIGDINO_VECTORS")
    excluded = levels()[0] != "avx512" or wanted == "avx512" or tiles()
    found = None if excluded else load_for("", f"{__package__}.cpu:pairs")
    return bool(found and found(wanted == "avx512bf16"))


@functools.cache
def load(path: str) -> Callable | None:
    """The function at "package.module:function", from the best level that was built; None if none was."""
    return next(filter(None, (load_for(level, path) for level in levels())), None)


def load_for(level: str, path: str) -> Callable | None:
    """The function at "package.module:function" as compiled for one level; None if that cannot be used.

    A module that was built but cannot be loaded is added to `problems`, with the reason. Examples are a missing symbol,
    another version of NumPy, and a file that is older than its source. So is one of another source tree: if that tree
    is installed as editable, Python finds its modules in place of those that this one lacks.
    """
    _, module, name = module_of(level, path)
    try:
        with _importing:
            found = importlib.import_module(module)
        if not str(getattr(found, "__file__", HERE)).startswith(HERE):
            raise ImportError(f"it belongs to another source tree, {found.__file__}")
        return getattr(found, name)
    except Exception as error:
        if type(error) not in FAILURES or from_signal_handler(error):  # it says nothing about the module
            raise
        absent = (error.name or "") if isinstance(error, ModuleNotFoundError) else None
        was_not_built = absent and f"{module}.".startswith(f"{absent}.")
        if not was_not_built:
            reason = str(error).strip().partition("\n")[0]
            problems[module] = f"cannot be loaded ({type(error).__name__}: {reason})"
        return None


# What loading a damaged module can raise: a missing symbol, another version of NumPy, an older file
FAILURES = (ImportError, ModuleNotFoundError, AttributeError, ValueError, RuntimeError, SystemError, OSError)

if hasattr(os, "register_at_fork"):  # a fork waits for an import, whose lock would stay held in the child
    os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release,
                        after_in_child=_importing.release)


def module_of(level: str, path: str) -> tuple[str, str, str]:
    """Package, full name of the module as compiled for one level, and function, of "package.module:function"."""
    module, _, name = path.partition(":")
    package, _, module = module.rpartition(".")
    return package, ".".join(filter(None, (package, level, module))), name

"""Watch named intermediates of a pass from outside, without a line of it in the layers.

Layers are pure functions that give every step a name, so the interpreter already knows what is worth seeing: when a
function returns, its locals are the intermediates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

PACKAGE = __name__.partition(".")[0] + "."
LAYERS = {PACKAGE + name for name in ("model", "swin", "bert", "enhancer", "queries", "decoder", "fusion", "deformable",
                                      "boxes", "ops", "prompt")}


@contextmanager
def trace(pattern: str = "*") -> Iterator[dict]:
    """Record arrays of the calling thread whose path matches: `with trace("*/fusion_layer.1/*") as seen: ...`

    A path is function.call/function.call/.../name, calls counted from 0 within their caller. `return` is a function's
    result, `return.0`, `return.1` ... the parts of a result with several. A step inside a compiled twin has no names:
    trace under `use("reference")` to see it.
    """
    seen: dict = {}
    path: list[str] = []
    counts: list[dict[str, int]] = [{}]

    def watch(frame, event, value):
        function = frame.f_code.co_name
        if event not in ("call", "return") or frame.f_globals.get("__name__") not in LAYERS:
            return
        if not function.isidentifier() or function.startswith("__"):  # comprehensions, and methods nobody wrote
            return
        if event == "call":
            i = counts[-1][function] = counts[-1].get(function, -1) + 1
            path.append(f"{function}.{i}")
            counts.append({})
        elif path:
            parts = enumerate(value) if isinstance(value, (tuple, list)) else ()
            for name, array in [*frame.f_locals.items(), ("return", value), *((f"return.{i}", v) for i, v in parts)]:
                key = "/".join([*path, name])
                if hasattr(array, "shape") and fnmatchcase(key, pattern):
                    seen[key] = array
            path.pop()
            counts.pop()

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@contextmanager
def seconds_of(functions: Collection[str]) -> Iterator[dict[str, float]]:
    """Seconds the calling thread spends in these functions of the layers, calls of one function added up."""
    seconds = dict.fromkeys(functions, 0.0)
    started: list[float] = []

    def watch(frame, event, _):
        function = frame.f_code.co_name
        if function in seconds and frame.f_globals.get("__name__") in LAYERS:
            if event == "call":
                started.append(time.perf_counter())
            elif event == "return" and started:
                seconds[function] += time.perf_counter() - started.pop()

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield seconds
    finally:
        sys.setprofile(before)

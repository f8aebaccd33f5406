"""Watch named intermediates of a pass from outside, without a line of it in the layers.

Layers are pure functions that give every step a name, so the interpreter already knows what is worth seeing: when a
function returns, its locals are the intermediates.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import CodeType

from ..runtime import kernels

PACKAGE = __name__.partition(".")[0] + "."
NETWORK = PACKAGE + "network."  # every function below it is a layer
SWITCH = kernels.__name__, "op"  # the module and the function in which a twin takes its formula's place


def is_layer(module: str | None) -> bool:
    """Whether a module of this name belongs to the network."""
    return bool(module) and module.startswith(NETWORK)


@dataclass(frozen=True)
class Summary:
    """What is kept of a step when nobody asked for its array: `str()` is one line."""

    shape: tuple[int, ...]
    dtype: str
    min: float
    mean: float
    max: float
    milliseconds: float | None = None  # a function's, the functions it calls included; None for a step within one
    twin: str | None = None  # the compiled function that computed it, whose own steps nobody sees
    function: str | None = None  # of a result: "module.function"

    def __str__(self) -> str:
        time_ = "" if self.milliseconds is None else f"  {self.milliseconds:.2f} ms"
        twin = f"  by {self.twin}" if self.twin else ""
        return f"{list(self.shape)} {self.dtype}  {self.min:.4g} .. {self.mean:.4g} .. {self.max:.4g}{time_}{twin}"


def summary(array, **more) -> Summary:
    """Least, mean and largest of an array, which may be empty."""
    numbers = (float(array.min()), float(array.mean()), float(array.max())) if array.size else (0.0, 0.0, 0.0)
    return Summary(tuple(array.shape), str(array.dtype), *numbers, **more)


@contextmanager
def trace(pattern: str | None = None, *more: str) -> Iterator[dict]:
    """Record the steps of a pass in the calling thread: `with minigdino.trace() as seen: model.detect(...)`

    With a pattern, or several, the arrays whose path matches: `with trace("*/fusion_layer.1/*/to_text") as seen`.
    Without, a Summary of every step.
    A path is function.call/function.call/.../name, calls counted from 0 within their caller. `return` is a function's
    result, `return.0` or `return.scores` a part of a result with several. Where a compiled twin runs, its result is all
    there is to see, and its Summary names it. A pattern that ends in the name of a step inside, or of a function inside
    and `return`, has the formula run in its place, there alone; under `use("reference")` every step is seen.

    It is the answer to "output_attentions". Every kind of attention map is a step of a function:
    to_text and to_vision of attend_both_ways (image to text and back), weights of attend (among words, among queries,
    queries to words), of attend_in_windows, and of deform_attn, with its locations.
    """
    seen: dict = {}
    patterns = (pattern, *more) if pattern else ()
    named = [_for_any_call(one) for one in patterns if _names_a_step(one)]
    path: list[str] = []
    counts: list[dict[str, int]] = [{}]
    started: list[float] = []
    ops: list = []  # frames of SWITCH that have begun
    watching = 0.0  # seconds spent in here, which are no step's

    def called(function):
        i = counts[-1][function] = counts[-1].get(function, -1) + 1
        return f"{function}.{i}"

    def wanted(formula):
        name = formula.__name__
        where = "/".join([*path, f"{name}.{counts[-1].get(name, -1) + 1}"])
        inside = _steps(formula.__code__, formula.__globals__, where)
        return not within_a_twin() and any(fnmatchcase(step, one) for step in inside for one in named)

    def keep(key, array, **more):
        if hasattr(array, "shape") and (not patterns or any(fnmatchcase(key, one) for one in patterns)):
            seen[key] = array if patterns else summary(array, **more)

    def leave(names, result, **more):
        """Keep what a function named, and its result."""
        for name, array in names:
            keep("/".join([*path, name]), array)
        keep("/".join([*path, "return"]), result, **more)
        for name, part in _parts(result):
            keep("/".join([*path, f"return.{name}"]), part, **more)

    def within_a_twin():
        return any(op.f_locals.get("twin") for op in ops)

    def watch(frame, event, result):
        nonlocal watching
        now = time.perf_counter()
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if event not in ("call", "return"):
            return
        if (module, function) == SWITCH:
            if event == "call":
                started.append(now - watching)
                ops.append(frame)
            elif started:
                ops.pop()
                milliseconds, op = 1e3 * (now - watching - started.pop()), frame.f_locals
                if op.get("twin") and not within_a_twin():
                    path.append(called(op["reference"].__name__))
                    leave((), result, milliseconds=milliseconds, twin=op["path"], function=_name(op["reference"]))
                    path.pop()
        elif within_a_twin():
            pass  # parts of its work, and no whole step
        elif is_layer(module) and function.isidentifier() and not function.startswith("__"):  # else comprehensions
            if event == "call":
                path.append(called(function))
                counts.append({})
                started.append(now - watching)
            elif path:
                milliseconds = 1e3 * (now - watching - started.pop())
                leave(frame.f_locals.items(), result, milliseconds=milliseconds,
                      function=f"{_stem(module)}.{function}")
                path.pop()
                counts.pop()
        watching += time.perf_counter() - now

    with _watching(watch), kernels.opened(wanted) if named else nullcontext():
        yield seen


def _names_a_step(pattern):
    """Whether a pattern ends in the name of a step, or in that of a function and its result: in no wildcard."""
    *_, function, step = ["", *pattern.split("/")]
    return step.isidentifier() and (step != "return" or function.partition(".")[0].isidentifier())


def _for_any_call(pattern):
    """The pattern, its calls' numbers fitting "#" too, which stands for a number that is not known beforehand."""
    return re.sub(r"\.(\d)(?=/)", r".[#\1]", pattern)


def _steps(code, names, where):
    """Paths of the steps of a function that is called `where`, and of the layer functions that it defines or calls.
    names are the globals it sees."""
    for step in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        yield f"{where}/{step}"
    defined = [const for const in code.co_consts if isinstance(const, CodeType) and const.co_name.isidentifier()]
    inside = [(function, names) for function in defined]
    for name in code.co_names:
        found = names.get(name)
        for function in found.values() if isinstance(found, dict) else (found,):  # a dict such as ACTIVATIONS
            function = getattr(function, "reference", function)
            if hasattr(function, "__code__") and is_layer(function.__module__):
                inside.append((function.__code__, function.__globals__))
    for inner, seen in inside:
        yield f"{where}/{inner.co_name}.#/return"
        yield from _steps(inner, seen, f"{where}/{inner.co_name}.#")


@contextmanager
def _watching(watch):
    """Call watch at every call and return of this thread."""
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def _parts(result):
    """A result's parts and their names: of several arrays their places."""
    if isinstance(result, (tuple, list)):
        return enumerate(result)
    return (result if isinstance(result, dict) else getattr(result, "__dict__", {})).items()


def _name(function):
    return f"{_stem(function.__module__)}.{function.__name__}"


def _stem(module):
    return module.rpartition(".")[2]


@contextmanager
def seconds_of(functions: Collection[str]) -> Iterator[dict[str, float]]:
    """Seconds the calling thread spends in these functions of the layers, calls of one function added up."""
    seconds = dict.fromkeys(functions, 0.0)
    started: list[float] = []

    def leave(function):
        if started:
            seconds[function] += time.perf_counter() - started.pop()

    with at_functions(functions, lambda _: started.append(time.perf_counter()), leave):
        yield seconds


@contextmanager
def at_functions(functions: Collection[str], enter: Callable[[str], object],
                 leave: Callable[[str], object]) -> Iterator[None]:
    """Call enter(name) and leave(name) at the ends of these functions of the layers, in the calling thread."""

    def watch(frame, event, _):
        function = frame.f_code.co_name
        if function in functions and is_layer(frame.f_globals.get("__name__")) and event in ("call", "return"):
            (enter if event == "call" else leave)(function)

    with _watching(watch):
        yield

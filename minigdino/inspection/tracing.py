"""Record named intermediates of a forward pass from outside, without any hook in the network.

Layers are pure functions that assign every step to a named variable. When such a function returns, a profiling function
(`sys.setprofile`) reads its local variables.
"""

from __future__ import annotations

import inspect
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import CodeType

from ..errors import ArgumentError, brief
from ..runtime import kernels

PACKAGE = __name__.partition(".")[0] + "."
NETWORK = PACKAGE + "network."  # every function in these modules is a layer function
SWITCH = kernels.__name__, "op"  # module and function that choose between a twin and its NumPy reference


def is_layer(module: str | None) -> bool:
    """Return whether a module of this name belongs to the network."""
    return bool(module) and module.startswith(NETWORK)


@dataclass(frozen=True)
class Summary:
    """Shape, range and time of a recorded step. `str()` formats it as one line."""

    shape: tuple[int, ...]
    dtype: str
    min: float
    mean: float
    max: float
    milliseconds: float | None = None  # time of a function, including the functions it calls; None for other steps
    twin: str | None = None  # "module:function" of the compiled twin that computed it; its own steps are not visible
    function: str | None = None  # "module.function" for the result of a function; None for other steps

    def __str__(self) -> str:
        time_ = "" if self.milliseconds is None else f"  {self.milliseconds:.2f} ms"
        twin = f"  by {self.twin}" if self.twin else ""
        return f"{list(self.shape)} {self.dtype}  {self.min:.4g} .. {self.mean:.4g} .. {self.max:.4g}{time_}{twin}"


def summary(array, **more) -> Summary:
    """Summarise an array, with 0 for the minimum, mean and maximum of an empty one.

    Args:
        array: any array.
        more: further fields of Summary.

    Returns:
        The summary.
    """
    span = (float(array.min()), float(array.mean()), float(array.max())) if array.size else (0.0, 0.0, 0.0)
    return Summary(tuple(array.shape), str(array.dtype), *span, **more)


@contextmanager
def trace(pattern: str | None = None, *more: str) -> Iterator[dict]:
    """Record the steps of every forward pass that the calling thread runs in the block.

    In the block, `detect` neither uses nor fills its caches, so that every step runs. If a list of phrases is split
    over several prompts, the image backbone runs for the first one only.

    Traces of a thread may overlap and may end in any order. Each records every pass from its start to its end,
    including passes of other asyncio tasks of the thread. If an exception of a signal handler ends a pass, later passes
    can be missing: Python removes a profiling function in which an exception is raised.

    Without a pattern, every step is recorded as a Summary:

        with minigdino.trace() as steps:
            model.detect("cat.jpg", "a cat.")

    With one or more patterns, the arrays whose paths match are recorded:

        with minigdino.trace("*/fusion_layer.1/*/to_text") as steps:
            model.detect("cat.jpg", "a cat.")

    A path is `function.call/function.call/.../step`, for example `forward.0/enhancer.0/fusion_layer.1/return.0`:

    - `function.call`: a function and the index of the call, counted from 0 within its caller.
    - `step`: a local variable of the last function.
    - `return`: the result of the last function.
    - `return.0`, `return.scores`: one part of a result that is a tuple, a list, a dict or a dataclass.

    A pattern is matched against the whole path, with the wildcards of `fnmatch`: `*`, `?`, `[...]`. `*` also matches
    `/`.

    Compiled twins have no visible steps, only a result, whose Summary names the twin. Two ways to see the steps:

    - A pattern that ends in the name of a step, or in a function and `return`, selects references. They run for the
      calls that contain the step. All other calls still use their twins.
    - `with use("reference"):` runs every NumPy reference, so that every step is visible.

    Attention weights (`output_attentions` in transformers) are ordinary steps:

    - `attend_both_ways`: `to_text` (image to text) and `to_vision` (text to image).
    - `attend`: `weights` of text to text, query to query and query to text attention.
    - `attend_in_windows`: `weights`.
    - `deform_attn`: `weights`, with the sampling points in `locations`.

    Args:
        pattern: pattern of the paths to record; None records a Summary of every step.
        more: further patterns; a step is recorded if any of them matches.

    Yields:
        A dict from path to array (with patterns) or Summary (without), filled in the order in which calls return.

    Raises:
        ArgumentError: if a pattern is not a str.
    """
    recorded: dict = {}
    patterns = [one for one in (pattern, *more) if one is not None]
    if odd := [one for one in patterns if not isinstance(one, str)]:
        raise ArgumentError('a pattern must be a str, such as "*/attend.*/weights", or None for every step; got '
                            f"{brief(odd[0])}")
    named = [_for_any_call(one) for one in patterns if _names_a_step(one)]
    path: list[str] = []
    counts: list[dict[str, int]] = [{}]
    started: list[tuple] = []  # (frame, time) of each call

    def next_call(function):
        i = counts[-1][function] = counts[-1].get(function, -1) + 1
        return f"{function}.{i}"

    def needs_reference(reference):
        if not named:
            return False
        name = reference.__name__
        where = "/".join([*path, f"{name}.{counts[-1].get(name, -1) + 1}"])
        inside = _steps(reference.__code__, reference.__globals__, where)
        return any(fnmatchcase(step, one) for step in inside for one in named)

    def record(key, array, **more):
        if hasattr(array, "shape") and (not patterns or any(fnmatchcase(key, one) for one in patterns)):
            recorded[key] = array if patterns else summary(array, **more)

    def record_call(names, result, **more):
        """Record the local variables and the result of a call."""
        for name, array in names:
            record("/".join([*path, name]), array)
        record("/".join([*path, "return"]), result, **more)
        for name, part in _parts(result):
            record("/".join([*path, f"return.{name}"]), part, **more)

    def profile(frame, event, result, now):
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if (module, function) == SWITCH:
            if event == "call":
                started.append((frame, now))
            elif started and started[-1][0] is frame:  # else an exception of a signal handler hid its call
                milliseconds, op = 1e3 * (now - started.pop()[1]), frame.f_locals
                if op.get("twin"):
                    path.append(next_call(op["reference"].__name__))
                    record_call((), result, milliseconds=milliseconds, twin=op["path"],
                                function=_name(op["reference"]))
                    path.pop()
        elif is_layer(module) and function.isidentifier() and not function.startswith("__"):  # no comprehensions
            if event == "call":
                path.append(next_call(function))
                counts.append({})
                started.append((frame, now))
            elif started and started[-1][0] is frame:
                milliseconds = 1e3 * (now - started.pop()[1])
                record_call(frame.f_locals.items(), result, milliseconds=milliseconds,
                            function=f"{_stem(module)}.{function}")
                path.pop()
                counts.pop()

    with kernels.opened(needs_reference), _profiling(profile):
        yield recorded


def _names_a_step(pattern):
    """Return whether a pattern ends in the plain name of a step, or in the plain name of a function and `return`."""
    *_, function, step = ["", *pattern.split("/")]
    return step.isidentifier() and (step != "return" or function.partition(".")[0].isidentifier())


def _for_any_call(pattern):
    """The pattern with every call index N replaced by [#N]. "#" in a path stands for an unknown call index."""
    return re.sub(r"\.(\d)(?=/)", r".[#\1]", pattern)


def _steps(code, names, where):
    """Paths of the steps of a function at path `where`, and of the layer functions that it defines or calls.
    names: its globals."""
    for step in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        yield f"{where}/{step}"
    defined = [const for const in code.co_consts if isinstance(const, CodeType) and const.co_name.isidentifier()]
    inside = [(function, names) for function in defined]
    for name in code.co_names:
        found = names.get(name)
        for function in found.values() if isinstance(found, dict) else (found,):  # a dict such as ACTIVATIONS
            function = inspect.unwrap(function) if callable(function) else function
            if hasattr(function, "__code__") and is_layer(function.__module__):
                inside.append((function.__code__, function.__globals__))
    for inner, globals_ in inside:
        yield f"{where}/{inner.co_name}.#/return"
        yield from _steps(inner, globals_, f"{where}/{inner.co_name}.#")


class _Profiler:
    """Runs some functions at every call and return of its thread, and then the profiler that it replaced.

    All traces of a thread share one. With a profiler for each, only the last one could be removed.
    """

    def __init__(self, before):
        self.before = before  # a function, None or a cProfile.Profile
        self.thread = threading.get_ident()
        # Weak, because `finally` may not run: Python 3.11 ends a generator without it if a signal handler raises an
        # exception in a profiler while the generator yields.
        self.functions: set[weakref.ref] = set()
        self.overhead = 0.0  # seconds spent in the functions, subtracted from the times that they are given

    def __call__(self, frame, event, result):
        if event in ("call", "return"):
            now = time.perf_counter()
            for reference in list(self.functions):  # a copy: garbage collection may end a trace here
                if function := reference():
                    function(frame, event, result, now - self.overhead)
            self.overhead += time.perf_counter() - now
        if callable(self.before):
            self.before(frame, event, result)
        if not self.functions:  # the last one was not removed in this thread, or while another profiler was set
            self.update()

    def update(self):
        """Set this profiler if it has functions, else the previous one. A profiler set by others since then stays."""
        current = sys.getprofile()  # None if an exception of a signal handler interrupted this one
        if not (current is self or current is None) or threading.get_ident() != self.thread:
            return
        if self.functions or self.before is None or callable(self.before):
            sys.setprofile(self if self.functions else self.before)
        else:  # a cProfile.Profile, which Python before 3.12 cannot set again
            sys.setprofile(None)
            self.before.enable()


@contextmanager
def _profiling(function):
    """Context manager in which `function` runs at every call and return of this thread.

    Args:
        function: called with the frame, "call" or "return", the result, and the time in seconds.
    """
    current = sys.getprofile()
    profiler = current if isinstance(current, _Profiler) else _Profiler(current)
    reference = weakref.ref(function, profiler.functions.discard)
    try:
        profiler.functions.add(reference)
        sys.setprofile(profiler)
        yield
    finally:
        profiler.functions.discard(reference)
        profiler.update()


def _parts(result):
    """(name or index, part) of a result with several parts."""
    if isinstance(result, (tuple, list)):
        return enumerate(result)
    return (result if isinstance(result, dict) else getattr(result, "__dict__", {})).items()


def _name(function):
    return f"{_stem(function.__module__)}.{function.__name__}"


def _stem(module):
    return module.rpartition(".")[2]


@contextmanager
def seconds_of(functions: Collection[str]) -> Iterator[dict[str, float]]:
    """Measure the time that the calling thread spends in some layer functions.

    Args:
        functions: names of layer functions, without their modules.

    Yields:
        A dict from name to seconds, summed over all calls.
    """
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
    """Run callbacks at the start and the end of some layer functions, in the calling thread.

    Args:
        functions: names of layer functions, without their modules.
        enter: called with the name when a function starts.
        leave: called with the name when it returns.
    """

    def profile(frame, event, *_):
        function = frame.f_code.co_name
        if function in functions and is_layer(frame.f_globals.get("__name__")):
            (enter if event == "call" else leave)(function)

    with _profiling(profile):
        yield

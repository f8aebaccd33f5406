"""Run the shape comments: every `name = ...  # [A, B]` and every docstring's `name [A, B] ... -> [C]` of a function in
the layers is compared with the arrays that really flowed, letters meaning the same number throughout one call."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import sys
import textwrap
from contextlib import contextmanager

from minigdino.inspection.tracing import is_layer

COMMENT = re.compile(r"#\s*((?:\[[^\]]*\](?:, )?)+)\s*$")
ARGUMENT = re.compile(r"\b(\w+) \[([^\]]*)\]")
RESULT = re.compile(r"->\s*((?:[\w ]*\[[^\]]*\](?:,\s*)?)+)", re.DOTALL)
BRACKET = re.compile(r"\[([^\]]*)\]")


class ShapeError(AssertionError):
    """A shape comment that is not true."""


@functools.cache
def promises(code):
    """What a function's text says: ([(name, shape)], [shape of each result])."""
    text = textwrap.dedent(inspect.getsource(code))
    doc = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    before, arrow, after = doc.partition("->")
    named = ARGUMENT.findall(before)
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and (found := COMMENT.search(lines[node.end_lineno - 1])):
            target = node.targets[0]
            names = [part.id for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
            named += zip(names, BRACKET.findall(found[1]))
    result = RESULT.match(arrow + after)
    return named, BRACKET.findall(result[1]) if result else []


def check(spec, shape, letters, where, numbers=None):
    """Bind the letters of "..., H*W, C" to a shape, or raise ShapeError; numbers are what other names stand for."""
    wanted = [part.strip() for part in spec.split(",")] if spec.strip() else []
    if wanted and wanted[0] == "...":
        wanted, shape = wanted[1:], shape[len(shape) - len(wanted) + 1 :]
    if len(wanted) != len(shape):
        raise ShapeError(f"{where}: says [{spec}], is {shape}")
    for part, n in zip(wanted, shape):
        if part.isidentifier() and part not in letters:
            letters[part] = n
            continue
        try:
            value = eval(part, {"ceil": math.ceil, **(numbers or {})}, letters)
        except NameError:
            continue  # a letter that only a caller knows
        if value != n:
            raise ShapeError(f"{where}: [{spec}] says {part} = {value:g}, is {shape}")


@contextmanager
def checked():
    """Check every call of a layer inside the block; yields the set of promises that were seen kept."""
    kept: set[str] = set()

    def watch(frame, event, value):
        function = frame.f_code.co_name
        if event != "return" or not is_layer(frame.f_globals.get("__name__")) or not function.isidentifier():
            return
        if function.startswith("__"):  # generated: it has no text
            return
        module = frame.f_globals["__name__"].rpartition(".")[2]
        named, results = promises(frame.f_code)
        letters: dict[str, int] = {}
        numbers = {name: n for name, n in frame.f_locals.items() if (type(n) is int and len(name) > 1) or name == "k"}
        for name, spec in named:
            array = frame.f_locals.get(name)
            if hasattr(array, "shape") and name in frame.f_locals:
                check(spec, array.shape, letters, f"{module}.{function}: {name}", numbers)
                kept.add(f"{module}.{function}: {name}")
        values = value if isinstance(value, tuple) else (value,)
        if value is not None and all(hasattr(v, "shape") for v in values):
            for spec, array in zip(results, values):
                check(spec, array.shape, letters, f"{module}.{function}: result", numbers)
                kept.add(f"{module}.{function}: result")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield kept
    finally:
        sys.setprofile(before)

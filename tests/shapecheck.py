"""Check the shapes in comments and docstrings of the network and of backward passes against the arrays of a run.

Three notations are checked. A letter stands for one size within a call.

- a comment after an assignment: `name = ...  # [A, B]`
- arguments in a docstring: `name [A, B]`
- results in a docstring: `-> [A, B]`, or `[A, B], [C]: meaning` below "Returns:"
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import sys
import textwrap
from contextlib import contextmanager

from minigdino.inspection.explain.captions import signature
from minigdino.inspection.tracing import is_layer

COMMENT = re.compile(r"#\s*((?:\[[^\]]*\](?:, )?)+)\s*$")
ARGUMENT = re.compile(r"\b(\w+) \[([^\]]*)\]")
BACKWARD = "minigdino.learning.backward"
BRACKET = re.compile(r"\[([^\]]*)\]")


class ShapeError(AssertionError):
    """A stated shape differs from the array's."""


@functools.cache
def stated_shapes(code):
    """Return the shapes that a function states: ([(name, shape)], [shape of each result])."""
    text = textwrap.dedent(inspect.getsource(code))
    doc = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    before, results = signature(doc)
    named = ARGUMENT.findall(before)
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and (found := COMMENT.search(lines[node.end_lineno - 1])):
            target = node.targets[0]
            names = [part.id for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
            named += zip(names, BRACKET.findall(found[1]))
    return named, BRACKET.findall(results)


def check(spec, shape, letters, where, numbers=None):
    """Compare a shape with a specification such as "..., H*W, C".

    Args:
        spec: the stated shape.
        shape: shape of the array.
        letters: sizes of the letters so far; new letters are added.
        where: name of the array, for the error.
        numbers: values of other names.

    Raises:
        ShapeError: if the shapes differ.
    """
    wanted = [part.strip() for part in spec.split(",")] if spec.strip() else []
    if wanted and wanted[0] == "...":
        wanted, shape = wanted[1:], shape[len(shape) - len(wanted) + 1 :]
    if len(wanted) != len(shape):
        raise ShapeError(f"{where}: stated [{spec}], got {shape}")
    for part, n in zip(wanted, shape):
        if part.isidentifier() and part not in letters:
            letters[part] = n
            continue
        try:
            value = eval(part, {"ceil": math.ceil, **(numbers or {})}, letters)
        except NameError:
            continue  # a letter that is not defined in this function
        if value != n:
            raise ShapeError(f"{where}: stated [{spec}] with {part} = {value:g}, got {shape}")


@contextmanager
def checked():
    """Check every call of a layer function or backward pass in the block. Yields the the shapes checked so far."""
    checked_shapes: set[str] = set()

    def watch(frame, event, value):
        function = frame.f_code.co_name
        module = frame.f_globals.get("__name__")
        if event != "return" or not (is_layer(module) or module == BACKWARD) or not function.isidentifier():
            return
        if function.startswith("__"):  # generated code has no source
            return
        module = module.rpartition(".")[2]
        named, results = stated_shapes(frame.f_code)
        letters: dict[str, int] = {}
        numbers = {name: n for name, n in frame.f_locals.items() if (type(n) is int and len(name) > 1) or name == "k"}
        for name, spec in named:
            array = frame.f_locals.get(name)
            if hasattr(array, "shape") and name in frame.f_locals:
                check(spec, array.shape, letters, f"{module}.{function}: {name}", numbers)
                checked_shapes.add(f"{module}.{function}: {name}")
        values = value if isinstance(value, tuple) else (value,)
        if value is not None and all(hasattr(v, "shape") for v in values):
            for spec, array in zip(results, values):
                check(spec, array.shape, letters, f"{module}.{function}: result", numbers)
                checked_shapes.add(f"{module}.{function}: result")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield checked_shapes
    finally:
        sys.setprofile(before)

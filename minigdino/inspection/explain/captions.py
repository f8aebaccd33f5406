"""The code references below a figure: functions, their lines and papers, and shapes of the steps."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ..tree import PLACE, home
from .figure import Figure
from .observe import ForwardPass

ROOT = Path(__file__).parents[3]
BRACKETS = re.compile(r"\[[^\]]*\]")


def code(name: str):
    """Return the function "module.function" as written: for an op with compiled twins, the NumPy reference."""
    module, _, function = name.partition(".")
    return inspect.unwrap(getattr(home(module), function))


def where(name: str) -> str:
    """Return file and line of "module.function", such as "minigdino/network/fusion.py:17"."""
    function = code(name)
    _, line = inspect.getsourcelines(function)
    return f"{Path(inspect.getfile(function)).relative_to(ROOT).as_posix()}:{line}"


def section(module: str) -> str:
    """Return the § in the first line of a module's docstring, such as "§3.1"; "" if there is none."""
    found = PLACE.findall((home(module).__doc__ or "").partition("\n")[0])
    return next((part for part in found if part.startswith("§")), "")


def shapes(figure: Figure, recorded: ForwardPass) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name and shape of the steps that a figure shows.

    Args:
        figure: the figure.
        recorded: the recorded forward pass.

    Returns:
        (name of the step, its shape in letters as the code states it or "", its shape in numbers) of each step.
    """
    functions = {name.partition(".")[2]: name for name in figure.functions}
    rows = {}
    for pattern in figure.steps:
        path = next(iter(recorded.matching(pattern)), None)
        if path:
            *_, call, step = path.split("/")
            function = call.partition(".")[0]
            shape = letters(code(functions[function]), step) if function in functions else ""
            rows.setdefault(spelled(function, step), (shape, recorded.steps[path].shape))
    return [(step, *row) for step, row in rows.items()]


def spelled(function: str, step: str) -> str:
    """Name a step in code style: "to_text in attend_both_ways", "swin_block(...)", "phrase_mask(...)[0]".

    Args:
        function: name of the function.
        step: last part of the step's trace path.

    Returns:
        The name.
    """
    name, _, part = step.partition(".")
    if name != "return":
        return f"{step} in {function}"
    return f"{function}(...)" + (f"[{part if part.isdigit() else repr(part)}]" if part else "")


def letters(function, step: str) -> str:
    """Return the shape of a step in letters, from the function's shape comments or its docstring.

    Args:
        function: the function object.
        step: last part of the step's trace path.

    Returns:
        The shape, such as "[S, M, T]"; "" if the function does not state it.
    """
    name, _, part = step.partition(".")
    source, doc = inspect.getsource(function), inspect.getdoc(function) or ""
    if name == "return" and (not part or part.isdigit()):
        results = BRACKETS.findall(signature(doc)[1])
        return results[int(part or 0)] if len(results) > int(part or 0) else ""
    named = re.escape(part or name)
    found = (re.search(rf"^\s*{named} = .*# (\[[^\]]*\])$", source, re.MULTILINE)
             or re.search(rf"\b{named} (\[[^\]]*\])", doc))
    return found[1] if found else ""


def signature(doc: str) -> tuple[str, str]:
    """Split a docstring into the text that states the arguments' shapes and the text that states the results' shapes.

    The results follow "Returns:", or "->" in a short docstring, and end at the next colon or blank line:

        x [N, C], text [T, C] -> [N, T]

        Returns:
            [S, C], [T, C]: updated image and text tokens.

    Args:
        doc: a docstring.

    Returns:
        (text before the results, text of the results); the second is "" if the docstring states no results.
    """
    before, *after = re.split(r"^\s*Returns:", doc, maxsplit=1, flags=re.MULTILINE)
    if not after:
        before, _, rest = doc.partition("->")
        after = [rest]
    return before, re.split(r":|\n\s*\n", after[0], maxsplit=1)[0]

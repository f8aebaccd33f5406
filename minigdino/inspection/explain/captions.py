"""What stands below a figure, read from the code itself: its functions, where they are, their place, their shapes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ..tree import PLACE, home, place
from .figure import Figure
from .observe import Pass

ROOT = Path(__file__).parents[3]


def code(name: str):
    """The function "module.function", the formula of one that has compiled twins."""
    module, _, function = name.partition(".")
    found = getattr(home(module), function)
    return getattr(found, "reference", found)


def where(name: str) -> str:
    """"minigdino/network/fusion.py:17", the line that begins the function."""
    function = inspect.unwrap(code(name))
    _, line = inspect.getsourcelines(function)
    return f"{Path(inspect.getsourcefile(function)).relative_to(ROOT).as_posix()}:{line}"


def papers(module: str) -> list[str]:
    """The section and the paper that a module names in its first line: ["§3.1", "arXiv 2103.14030"]"""
    found = PLACE.findall((home(module).__doc__ or "").partition("\n")[0])
    return [part for part in found if part.startswith(("§", "arXiv"))]


def section(module: str) -> str:
    """"§3.1", of a stage's module; "" of one that the paper has no section for."""
    return next((part for part in papers(module) if part.startswith("§")), "")


def source(name: str) -> str:
    """Where the papers have "module.function": "arXiv 2010.04159, Eq. 3"; an equation's paper is its module's."""
    said = place(*name.split("."))
    if "§" in said or "arXiv" in said:
        return said
    return ", ".join(filter(None, [*papers(name.partition(".")[0]), said]))


def shapes(figure: Figure, seen: Pass) -> list[tuple[str, str, tuple[int, ...]]]:
    """What a figure is made from: (the step, the letters that the code gives its shape or "", the shape)."""
    functions = {name.partition(".")[2]: name for name in figure.functions}
    rows = {}
    for pattern in figure.steps:
        path = next(iter(seen.matching(pattern)), None)
        if path:
            *_, call, step = path.split("/")
            function = call.partition(".")[0]
            said = letters(code(functions[function]), step) if function in functions else ""
            rows.setdefault(spelled(function, step), (said, seen.steps[path].shape))
    return [(step, *row) for step, row in rows.items()]


def spelled(function: str, step: str) -> str:
    """A step as one would write it: "to_text in attend_both_ways", "swin_block(...)", "phrase_mask(...)[0]"."""
    name, _, part = step.partition(".")
    if name != "return":
        return f"{step} in {function}"
    return f"{function}(...)" + (f"[{part if part.isdigit() else repr(part)}]" if part else "")


def letters(function, step: str) -> str:
    """"[S, M, T]" as the function's comments or docstring have it, else ""."""
    name, _, part = step.partition(".")
    source, doc = inspect.getsource(function), inspect.getdoc(function) or ""
    if name == "return" and (not part or part.isdigit()):
        results = re.findall(r"\[[^\]]*\]", doc.rpartition("->")[2]) if "->" in doc else []
        return results[int(part or 0)] if len(results) > int(part or 0) else ""
    named = re.escape(part or name)
    found = (re.search(rf"^\s*{named} = .*# (\[[^\]]*\])$", source, re.MULTILINE)
             or re.search(rf"\b{named} (\[[^\]]*\])", doc))
    return found[1] if found else ""

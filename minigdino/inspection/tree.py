"""Text tree of a traced forward pass: each function below its caller, with shapes, time and source in the papers."""

from __future__ import annotations

import importlib
import inspect
import re

from ..network import LAYERS
from .tracing import NETWORK, PACKAGE, Summary

PLACE = re.compile(r"§\d\.\d|arXiv \d{4}\.\d{5}|Eq\. \d+(?:(?:-|, | and )\d+)*|[Ss]ection \d[\d.]*\d|Figure \d|"
                   r"Algorithm \d|(?:[Aa]ppendix )?\bA\.\d")
SECTIONS = re.compile(r"^\s*(?:Args|Returns|Yields|Raises):", re.MULTILINE)  # of a Google style docstring
WIDTH = 46  # columns for names


def tree(recorded: dict[str, Summary], depth: int = 4, steps: bool = True) -> str:
    """Format the summaries that `trace()` recorded.

    Args:
        recorded: summaries by path, as `trace()` without a pattern yields them.
        depth: maximum number of nested calls to show.
        steps: whether to show the local variables of functions too.

    Returns:
        One line per call and step, after a header line.
    """
    nodes = _nodes(recorded)
    lines = [f"{'step':{WIDTH}}{'shape':22}{'ms':>9}  place"]

    def show(path, level):
        node = nodes[path]
        name, results = path.rpartition("/")[2], node["results"]
        shape = " ".join(str(list(s.shape)) for s in results[:2]) + (" ..." if len(results) > 2 else "")
        module, _, function = results[0].function.partition(".") if results else ("", "", "")
        ms = f"{results[0].milliseconds:9.2f}" if results else f"{'':9}"
        twin = f"  by {results[0].twin}" if results and results[0].twin else ""
        label = f"{'  ' * level}{module + '.' if module else ''}{name}"
        lines.append(f"{label:{WIDTH}}{shape:22}{ms}  {place(module, function)}{twin}".rstrip())
        if level + 1 >= depth:
            return
        for step, array in node["steps"].items() if steps else ():
            if step not in _arguments(module, function):
                lines.append(f"{'  ' * (level + 1) + step:{WIDTH}}{list(array.shape)!s:22}".rstrip())
        for child in node["calls"]:
            show(child, level + 1)

    for path in nodes:
        if "/" not in path:
            show(path, 0)
    return "\n".join(lines)


def place(module: str, function: str) -> str:
    """Return where the papers describe a function, for example "arXiv 2103.14030, section 3.1".

    The function's docstring is searched first, up to its "Args:", then the first paragraph of the module's docstring.
    In the result, every section, equation, figure and algorithm follows its paper, which is the first of these:

    1. the paper named before it in the same docstring,
    2. the paper of the module: its arXiv id, else its §,
    3. the paper named after it in the same docstring.

    Args:
        module: module of the function, such as "swin".
        function: name of the function.

    Returns:
        Papers, each followed by its sections, equations, figures and algorithms. A § is a section of the Grounding DINO
        paper. "" if neither docstring names any.
    """
    if not module:
        return ""
    own = PLACE.findall(SECTIONS.split(inspect.getdoc(_function(module, function)) or "")[0])
    common = PLACE.findall((inspect.getdoc(home(module)) or "").partition("\n\n")[0])
    found = own or common
    papers = sorted(filter(_is_paper, common), key=lambda part: part.startswith("§"))
    current = next(filter(_is_paper, [*papers, *found]), "")
    grouped: dict[str, list[str]] = {}
    for part in found:
        current = part if _is_paper(part) else current
        grouped.setdefault(current, [current]).append(part)
    return ", ".join(part for group in grouped.values() for part in dict.fromkeys(group) if part)


def home(module: str):
    """Import a module by the last part of its name.

    Args:
        module: a module of the network, such as "swin", or of the package, such as "image".

    Returns:
        The module object.
    """
    return importlib.import_module((NETWORK if module in LAYERS else PACKAGE) + module)


def _is_paper(part):
    return part.startswith(("§", "arXiv"))


def _nodes(recorded):
    """{path of a call: {"results": [Summary, ...], "steps": {name: Summary}, "calls": [path, ...]}}"""
    nodes = {}

    def node(path):
        if path not in nodes:
            nodes[path] = {"results": [], "steps": {}, "calls": []}
            parent = path.rpartition("/")[0]
            if parent:
                node(parent)["calls"].append(path)
        return nodes[path]

    for key, array in recorded.items():  # a call is recorded when it returns, after the calls inside it
        path, _, name = key.rpartition("/")
        if name == "return" or name.startswith("return."):
            node(path)["results"].append(array)
        else:
            node(path)["steps"][name] = array
    return nodes


def _function(module, function):
    """A function of a module, as written; None if it is defined inside another function."""
    found = getattr(home(module), function, None)
    return found and inspect.unwrap(found)


def _arguments(module, function):
    found = _function(module, function) if module else None
    return set(inspect.signature(found).parameters) if found else set()

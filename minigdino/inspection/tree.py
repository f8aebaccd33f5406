"""A traced pass as text: every function under its caller, with the shapes of its steps, its place in the papers, its
time."""

from __future__ import annotations

import importlib
import inspect
import re

from ..network import LAYERS
from .tracing import NETWORK, PACKAGE, Summary

PLACE = re.compile(r"§\d\.\d|arXiv \d{4}\.\d{5}|Eq\. \d+(?:(?:-|, | and )\d+)*|[Ss]ection \d[\d.]*\d|Figure \d")
WIDTH = 46  # columns for names


def tree(seen: dict[str, Summary], depth: int = 4, steps: bool = True) -> str:
    """What `trace()` recorded. depth: calls within calls to show; steps: arrays that functions name, too."""
    nodes = _nodes(seen)
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
    """Where the papers have it: what the function's docstring names, else the first line of its module's."""
    if not module:
        return ""
    texts = (inspect.getdoc(_function(module, function)) or "", home(module).__doc__ or "")
    found = next(filter(None, (PLACE.findall(text.partition("\n\n")[0]) for text in texts)), [])
    return ", ".join(dict.fromkeys(found))


def home(module: str):
    """The module of that name: a layer's, or one of the surface such as `image`."""
    return importlib.import_module((NETWORK if module in LAYERS else PACKAGE) + module)


def _nodes(seen):
    """{path of a call: {"results": [Summary, ...], "steps": {name: Summary}, "calls": [path, ...]}}"""
    nodes = {}

    def node(path):
        if path not in nodes:
            nodes[path] = {"results": [], "steps": {}, "calls": []}
            parent = path.rpartition("/")[0]
            if parent:
                node(parent)["calls"].append(path)
        return nodes[path]

    for key, array in seen.items():  # a call is seen when it returns, so callers come after those they call
        path, _, name = key.rpartition("/")
        if name == "return" or name.startswith("return."):
            node(path)["results"].append(array)
        else:
            node(path)["steps"][name] = array
    return nodes


def _function(module, function):
    found = getattr(home(module), function, None)  # None: one inside another
    return getattr(found, "reference", found)


def _arguments(module, function):
    found = _function(module, function) if module else None
    return set(inspect.signature(found).parameters) if found else set()

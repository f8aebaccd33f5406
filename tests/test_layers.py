"""Imports point down only, and the paper's order is the model's order."""

import ast
import re
from pathlib import Path

import pytest

import minigdino

PACKAGE = Path(minigdino.__file__).parent
LEVELS = [  # a module may import from the rows below its own, never from its own row
    {"__main__"},
    {"cli"},
    {"explain"},
    {"batch", "bench", "tree", "verify", "__init__"},
    {"detector", "installation"},
    {"model", "results", "hub", "kept"},
    {"swin", "bert", "enhancer", "queries", "decoder", "drawing", "weights"},  # stages never import one another
    {"fusion", "deformable", "boxes", "image", "prompt", "parameters"},
    {"ops", "config", "device", "arithmetic", "tracing"},
    {"kernels", "memory"},
    {"threads"},
    {"errors", "version"},
    {"blas"},
]
RANK = {module: len(LEVELS) - i for i, row in enumerate(LEVELS) for module in row}
EXPLAIN = [  # the same, within the package that makes the page
    {"__init__"},
    {"figures"},
    {"backbone", "fusing", "naming", "neck", "sampling", "words"},
    {"deciding"},
    {"captions"},
    {"encode", "figure", "observe"},
]
MODULES = [*sorted(path.stem for path in PACKAGE.glob("*.py")), "explain"]


def files(module):
    """A module's file, or a package's."""
    path = PACKAGE / f"{module}.py"
    return [path] if path.exists() else sorted((PACKAGE / module).glob("*.py"))


def imports(module):
    """Modules of this package that a module imports, anywhere in its text."""
    for path in files(module):
        yield from imported(path, level=len(path.relative_to(PACKAGE).parts))


def imported(path, level):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            if node.module:
                yield node.module.partition(".")[0]
            else:
                yield from (name.name if (PACKAGE / f"{name.name}.py").exists() else "__init__" for name in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for other in set(imports(module)) - {"_ext"}:
        assert RANK[other] < RANK[module], f"{module} imports {other}"


@pytest.mark.parametrize("path", files("explain"), ids=lambda path: path.stem)
def test_imports_point_down_in_explain(path):
    rank = {module: len(EXPLAIN) - i for i, row in enumerate(EXPLAIN) for module in row}
    for other in set(imported(path, level=1)) - {"__init__"}:
        assert rank[other] < rank[path.stem]


def test_no_module_shares_a_name_with_a_public_function():
    """`import minigdino.x` would give the function."""
    assert not set(MODULES) & set(minigdino.__all__) - {"__init__", "__main__"}


def test_every_module_has_its_level():
    assert set(MODULES) == set(RANK)


def test_layers_reach_compiled_code_through_kernels_alone():
    assert [m for m in MODULES if "_ext" in imports(m)] == ["installation", "kernels", "memory", "threads"]


def test_sections_rise_down_the_model():
    """model.py's steps come in the paper's order, but for §3.4, which the text needs first."""
    sections = re.findall(r"# §(3\.\d)", (PACKAGE / "model.py").read_text())
    assert sections[0] == "3.4"
    assert sections[1:] == sorted(sections[1:])
    assert sections[-1] == "3.3"


@pytest.mark.parametrize("module", ["swin", "bert", "enhancer", "queries", "decoder", "prompt"])
def test_a_stage_says_its_section_first(module):
    assert (PACKAGE / f"{module}.py").read_text().startswith('"""§3.')


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_has_a_docstring(module):
    for path in files(module):
        _check_docstrings(path)


def _check_docstrings(path):
    for node in ast.walk(ast.parse(path.read_text())):
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        nested = isinstance(node, ast.FunctionDef) and node.col_offset > 4
        if public and not nested and not _is_inner(node, path):
            assert ast.get_docstring(node), f"{path.stem}.{node.name}"


def _is_inner(node, path):
    """A helper inside another function, which its name and its place explain."""
    tree = ast.parse(path.read_text())
    outer = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.lineno < node.lineno <= n.end_lineno]
    return bool(outer)

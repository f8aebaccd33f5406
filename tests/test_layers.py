"""Modules import only from levels below their own; the model calls its stages in the order of the paper."""

import ast
import re
from pathlib import Path

import pytest

import minigdino
from minigdino.network import LAYERS

pytestmark = pytest.mark.once

PACKAGE = Path(minigdino.__file__).parent
COMPILED = PACKAGE.parent / "_ext"
LEVELS = [  # a module may import from the rows below its own, never from its own row
    {"__main__"},
    {"cli"},
    {"detect_run", "learning.command", "evaluation.evaluate", "evaluation.published_ap", "runs.merge",
     "runs.run_command", "serving.server"},
    {"serving.app"},
    {"serving.intake", "serving.metrics", "serving.openapi", "serving.processes", "serving.web", "serving.worker"},
    {"serving.bodies", "serving.pool"},
    {"serving.messages", "serving.refusals"},
    {"evaluation.run"},
    {"evaluation.tasks", "evaluation.report"},
    {"evaluation.coco_ap", "evaluation.fixed_ap", "evaluation.referring", "evaluation.analysis"},
    {"evaluation.protocols", "evaluation.interval"},
    {"evaluation.candidates", "runs.on_ray"},
    {"learning.training", "runs.batches", "runs.workers"},
    {"detect_arguments", "learning.prompts", "runs.lines", "runs.parts"},
    {"misplaced", "console", "inspection.explain", "datasets", "outputs", "evaluation.ground_truth", "runs.items"},
    {"inputs", "evaluation.detections", "learning.annotations", "runs.manifest", "runs.opening"},
    {"progress", "line_files", "runs.tar"},
    {"__init__", "files", "evaluation.verify", "inspection.tree", "runs.remote", "runtime.bench"},
    {"detector", "runtime.info"},
    {"learning.gradients"},
    {"learning.augmentation", "learning.backward", "learning.distillation", "learning.features",
     "learning.state"},
    {"tiles"},
    {"cache", "chunks", "results", "targets", "video", "network.model", "checkpoints.hub", "checkpoints.reading"},
    {"checkpoints.saving"},
    # stages never import one another
    {"drawing", "options", "checkpoints.weights",
     "network.swin", "network.bert", "network.phrases", "network.enhancer", "network.queries", "network.decoder",
     "network.matching"},
    {"network.losses", "json_object"},
    {"fonts", "image", "prompt", "runs.table", "checkpoints.fingerprint", "checkpoints.parameters",
     "learning.optimizer", "network.fusion", "network.deformable", "network.boxes"},
    {"checkpoints.names", "learning.recording", "network.ops", "inspection.tracing",
     "runtime.device", "runtime.flops"},
    {"checkpoints.config", "runtime.kernels", "runtime.memory", "runtime.precision", "runtime.threads",
     "heif", "missing", "urls", "writing"},
    {"extras", "checkpoints.json_file", "checkpoints.published", "learning.average_precision", "runs.shard"},
    {"errors", "version", "network", "source_tree", "overlap", "learning.curve", "runtime.spawning"},
]
RANK = {module: len(LEVELS) - i for i, row in enumerate(LEVELS) for module in row}
EXPLAIN = [  # the same, within the package that makes the page
    {"__init__"},
    {"figures"},
    {"assigning", "backbone", "fusing", "naming", "neck", "sampling", "words"},
    {"deciding"},
    {"captions"},
    {"encode", "figure", "observe"},
]
SCIPY = {"matching": {"scipy.optimize"}}  # imported by the function that needs it
REACH_COMPILED = {"errors", "runtime.info", "runtime.kernels", "runtime.memory", "runtime.precision",
                  "runtime.threads"}


def dotted(path):
    """A file as a module of the package: "network.swin"; the parts of `inspection.explain` count as one."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[:2] == ("inspection", "explain"):
        return "inspection.explain"
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = sorted(PACKAGE.rglob("*.py"))


def is_docstring_only(path):
    """Return whether a file holds a docstring and nothing else."""
    body = ast.parse(path.read_text()).body
    return len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


EMPTY = {dotted(path) for path in FILES if is_docstring_only(path)}
MODULES = sorted({dotted(path) for path in FILES} - EMPTY)


def imported(path):
    """Yield everything that a file of the package imports: modules as `dotted` names them, and other packages."""
    home = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (absolute(name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield absolute(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = [*home[: len(home) - node.level + 1], *filter(None, (node.module or "").split("."))]
            for name in node.names:
                yield resolved([*base, name.name])


def absolute(name):
    """Convert the full name of a module: as `dotted` names it for this package, unchanged for others."""
    package, *parts = name.split(".")
    return (resolved(parts) if parts else "__init__") if package == "minigdino" else name


def resolved(parts):
    """Return the module that a dotted name denotes, or that defines it."""
    if parts[0] == "_ext":
        return "_ext"
    while parts and not (PACKAGE.joinpath(*parts).with_suffix(".py").exists() or
                         (PACKAGE.joinpath(*parts) / "__init__.py").exists()):
        parts = parts[:-1]
    path = PACKAGE.joinpath(*parts)
    return dotted(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


def imports(module):
    """Modules of this package that a module imports, and other packages."""
    return {other for path in FILES if dotted(path) == module for other in imported(path)} - {module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for other in imports(module) & RANK.keys():
        assert RANK[other] < RANK[module], f"{module} imports {other}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "inspection" / "explain").glob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down_in_explain(path):
    rank = {module: len(EXPLAIN) - i for i, row in enumerate(EXPLAIN) for module in row}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for other in [node.module] if node.module else [name.name for name in node.names]:
                assert rank[other] < rank[path.stem], f"{path.stem} imports {other}"


def test_every_module_has_a_level():
    assert set(MODULES) == set(RANK)


@pytest.mark.parametrize("path", sorted((PACKAGE / "network").glob("*.py")), ids=lambda path: path.stem)
def test_the_network_imports_numpy_and_the_kernels_only(path):
    others = {other for other in imported(path) if other.partition(".")[0] != "network"}
    assert others <= {"__future__", "dataclasses", "numpy", "runtime.kernels"} | SCIPY.get(path.stem, set())
    assert "__import__" not in path.read_text()


def test_the_list_of_layers_matches_the_folder():
    assert sorted(LAYERS) == sorted(path.stem for path in (PACKAGE / "network").glob("*.py") if path.stem != "__init__")


IMPORT = re.compile(r"^\s*(?:from|import|cimport)\s.*$|\bimport_module\(.*$", re.MULTILINE)


def test_compiled_code_imports_nothing_of_the_package():
    """Compiled code receives its inputs as arguments, and imports only modules of `_ext`."""
    for path in (path for suffix in ("py", "pyx", "pxd") for path in COMPILED.rglob(f"*.{suffix}")):
        for line in IMPORT.findall(path.read_text()):
            assert not re.search(r"\bminigdino\b(?!\._ext\b)", line), f"{path.name}: {line}"
            assert not re.match(r"\s*from \.\.", line), f"{path.name}: {line}"


def test_only_the_runtime_imports_compiled_code():
    assert {module for module in MODULES if "_ext" in imports(module)} == REACH_COMPILED


def test_no_module_shares_a_name_with_a_public_function():
    """`import minigdino.x` would give the function."""
    top = {module.partition(".")[0] for module in MODULES}
    assert not top & set(minigdino.__all__) - {"__init__", "__main__"}


def test_file_names_are_unique():
    """The guide and the captions write "swin.windows" for a function, without the folder of its file."""
    stems = [path.stem for path in FILES if path.stem != "__init__" and "explain" not in path.parts]
    assert len(stems) == len(set(stems))


def test_the_model_calls_its_stages_in_the_order_of_the_sections():
    """The steps of model.py are in the paper's order, except §3.4, which the text backbone needs first."""
    sections = re.findall(r"# §(3\.\d)", (PACKAGE / "network" / "model.py").read_text())
    assert sections[0] == "3.4"
    assert sections[1:] == sorted(sections[1:])
    assert sections[-1] == "3.3"


@pytest.mark.parametrize("module", ["swin", "bert", "phrases", "enhancer", "queries", "decoder", "losses",
                                    "matching"])
def test_a_stage_starts_with_its_section(module):
    assert (PACKAGE / "network" / f"{module}.py").read_text().startswith('"""§3.')


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_function_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        overloaded = public and "overload" in map(ast.unparse, node.decorator_list)  # the implementation has it
        if public and not overloaded and not any(other.lineno < node.lineno <= other.end_lineno for other in outer):
            assert ast.get_docstring(node), f"{path.stem}.{node.name}"

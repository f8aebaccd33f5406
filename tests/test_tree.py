"""The tree of a forward pass: functions below their callers, in order, with their places in the papers."""

import ast
import inspect
from pathlib import Path

import pytest
import tiny

import minigdino
from minigdino.cli import main
from minigdino.inspection import tree as trees
from minigdino.inspection.tree import PLACE, home, place, tree
from minigdino.network import LAYERS

SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"


def traced(**options):
    with minigdino.trace() as recorded:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    return tree(recorded, **options).splitlines()


def test_stages_are_in_the_papers_order_below_the_model():
    lines = traced(depth=2, steps=False)
    assert lines[1].startswith("model.forward.0")
    names = [line.split()[0] for line in lines[2:]]
    order = ["phrases.phrase_mask.0", "bert.bert.0", "swin.swin.0", "enhancer.neck.0", "enhancer.enhancer.0"]
    order += ["queries.select_queries.0", "decoder.decoder.0"]
    assert [name for name in names if name in order] == order


def test_a_line_has_shape_time_and_place():
    lines = {line.split()[0]: line for line in traced(depth=5)}
    fused = lines["fusion.fusion_layer.0"]
    assert "[108, 64] [8, 64]" in fused
    assert "arXiv 2112.03857, Eq. " in fused
    assert float(fused.split("]")[2].split()[0]) > 0
    assert lines["heads"].split("  ")[-1].strip() == "[2, 8, 16]"  # a local variable: no time
    assert "by minigdino._ext.swin:window_attention" in lines["swin.window_attention.0"]
    assert "vision" not in [line.split()[0] for line in traced(depth=9) if line.startswith("      ")]  # arguments


PAPERS = {  # module -> paper of the sections, equations and figures that its functions cite without naming a paper
    "model": "arXiv 2303.05499", "swin": "arXiv 2103.14030", "bert": "arXiv 1810.04805", "phrases": "§3.4",
    "enhancer": "§3.1", "fusion": "arXiv 2112.03857", "deformable": "arXiv 2010.04159", "queries": "§3.2",
    "decoder": "§3.3",
}  # fmt: skip


@pytest.mark.parametrize("module", LAYERS)
def test_every_section_equation_and_figure_follows_its_paper(module):
    """The paper is named in the function's own docstring, or it is the paper of the module."""
    for node in ast.parse(inspect.getsource(home(module))).body:
        if isinstance(node, ast.FunctionDef):
            own = (ast.get_docstring(node) or "").partition("Args:")[0]
            parts = PLACE.findall(place(module, node.name))
            papers = {part for part in parts if part.startswith(("§", "arXiv"))}
            if papers != set(parts):  # otherwise only papers are named
                assert parts[0] in papers, f"{module}.{node.name}: {parts}"
                assert all(paper in own or paper == PAPERS.get(module) for paper in papers), f"{module}.{node.name}"


def test_places_of_functions_of_the_network():
    assert place("swin", "patch_merging").lower() == "arxiv 2103.14030, section 3.1"
    assert place("swin", "windows") == "§3.1, arXiv 2103.14030"
    assert place("ops", "layer_norm") == "arXiv 1607.06450, Eq. 4"
    assert place("ops", "attention") == "arXiv 1706.03762, section 3.2.2, Eq. 1"
    assert place("ops", "linear") == ""
    assert place("deformable", "deform_attn") == "arXiv 2010.04159, Eq. 3"
    assert place("phrases", "phrase_mask") == "§3.4, Figure 4"
    assert place("decoder", "decoder_layer") == "§3.3, Figure 3"
    assert place("fusion", "fusion_layer").startswith("arXiv 2112.03857, Eq. 5")
    assert place("results", "post_process") == ""
    assert place("", "") == ""


MODULE = "§3.1  Example stage. A paper (arXiv 1111.11111), section 4.1."
FUNCTIONS = {
    "No place.": "§3.1, arXiv 1111.11111, section 4.1",
    "Eq. 2 and Figure 3.": "arXiv 1111.11111, Eq. 2, Figure 3",
    "Eq. 2.\n\nFigure 3.\n\nArgs:\n    x: as in Eq. 7.": "arXiv 1111.11111, Eq. 2, Figure 3",
    "Another paper (arXiv 2222.22222, Eq. 1), see Figure 2.": "arXiv 2222.22222, Eq. 1, Figure 2",
    "§3.2, Figure 3; another paper, arXiv 2222.22222, A.4.": "§3.2, Figure 3, arXiv 2222.22222, A.4",
    "Eq. 1.\n\nAnother paper (arXiv 2222.22222) adds a bias.": "arXiv 1111.11111, Eq. 1, arXiv 2222.22222",
    "arXiv 2222.22222, Eq. 1 and again arXiv 2222.22222, Eq. 1.": "arXiv 2222.22222, Eq. 1",
}


@pytest.mark.parametrize("doc", FUNCTIONS)
def test_a_place_is_read_from_docstrings(doc, monkeypatch):
    """From the function's docstring before its arguments, or from the first paragraph of the module's docstring."""

    class Module:
        __doc__ = f"{MODULE}\n\nEq. 9."

        def function(x):
            pass

    Module.function.__doc__ = doc
    monkeypatch.setattr(trees, "home", lambda module: Module)
    assert place("module", "function") == FUNCTIONS[doc]
    assert PLACE.findall(FUNCTIONS[doc]) == FUNCTIONS[doc].split(", ")


def test_a_number_belongs_to_the_paper_after_it_if_none_precedes_it(monkeypatch):
    class Module:
        """Helpers."""

        def function(x):
            """Eq. 1 of arXiv 2222.22222."""

    monkeypatch.setattr(trees, "home", lambda module: Module)
    assert place("module", "function") == "arXiv 2222.22222, Eq. 1"


def test_the_command_prints_the_tree(capsys):
    arguments = [str(SCENE), "a red star.", "--model", "shapes"]
    assert main(["trace", *arguments, "--depth", "2", "--no-steps"]) == 0
    short = capsys.readouterr().out
    assert main(["trace", *arguments, "--depth", "6", "--reference"]) == 0
    long = capsys.readouterr().out
    assert "decoder.decoder.0" in short
    assert "minigdino._ext" not in long
    assert "masked" in long  # a step of a function that has a twin
    assert len(long.splitlines()) > 20 * len(short.splitlines())

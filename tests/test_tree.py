"""A pass, printed: who calls whom, in order, and where the papers have it."""

from pathlib import Path

import tiny

import minigdino
from minigdino.cli import main
from minigdino.inspection.tree import place, tree

SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"


def traced(**options):
    with minigdino.trace() as seen:
        tiny.model().forward(tiny.pixels(), tiny.IDS)
    return tree(seen, **options).splitlines()


def test_stages_stand_in_the_papers_order_below_the_model():
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
    assert "Eq. 4-6" in fused
    assert float(fused.split("]")[2].split()[0]) > 0
    assert lines["heads"].split("  ")[-1].strip() == "[2, 8, 16]"  # a step within: no time of its own
    assert "by minigdino._ext.swin:window_attention" in lines["swin.window_attention.0"]
    assert "vision" not in [line.split()[0] for line in traced(depth=9) if line.startswith("      ")]  # arguments


def test_a_functions_own_docstring_comes_before_its_modules():
    assert place("swin", "patch_merging") == "Section 3.1"
    assert place("swin", "swin") == "§3.1, arXiv 2103.14030"
    assert place("ops", "layer_norm") == "arXiv 1607.06450, Eq. 4"


def test_the_command_prints_it(capsys):
    arguments = [str(SCENE), "a red star.", "--model", "shapes"]
    assert main(["trace", *arguments, "--depth", "2", "--no-steps"]) == 0
    short = capsys.readouterr().out
    assert main(["trace", *arguments, "--depth", "6", "--reference"]) == 0
    long = capsys.readouterr().out
    assert "decoder.decoder.0" in short
    assert "minigdino._ext" not in long
    assert "masked" in long  # a step inside what is a twin otherwise
    assert len(long.splitlines()) > 20 * len(short.splitlines())

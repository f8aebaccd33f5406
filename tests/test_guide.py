"""The guide is made from the code: what it names exists, what it leaves out has a reason, and its site builds."""

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import tiny

import minigdino
from docs import hooks
from minigdino.checkpoints.parameters import random_tensors
from minigdino.inspection import tree
from minigdino.inspection.explain import FIGURES

ROOT = Path(__file__).parent.parent
ROWS = hooks.rosetta()
READING = [page.stem for page in (ROOT / "docs" / "reading").glob("*.md") if page.stem != "index"]


def functions(module):
    """Public functions that a layer module defines at its top."""
    body = ast.parse(hooks.home(module).read_text()).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def tensors():
    """Names in checkpoints of both families, with four levels and with five."""
    models = [tiny.config(), tiny.config("mm-grounding-dino"), tiny.config(stages=(1, 2, 3, 4), levels=5)]
    return {name for config in models for name in random_tensors(config)}


# What the pages are made with.


def test_a_piece_is_the_definition_and_nothing_else():
    assert hooks.find("ops.softmax").text.startswith('@accelerated(numpy="minigdino._ext.ops:softmax"')
    assert hooks.find("ops.softmax").text.endswith("keepdims=True)")
    assert hooks.find("weights.RENAMES").text.startswith("RENAMES = (")
    assert hooks.find("prompt.Tokenizer.encode").text.startswith("    def encode(self")
    assert hooks.find("deformable.pyx:bilinear").text.startswith("def bilinear(image, xy):")
    assert hooks.find("deformable.pyx:bilinear").text.endswith("return out")
    assert hooks.find("sampling.pxd:add_pixels").text.startswith("cdef inline void add_pixels(")


CUDA = """// x [N] -> [N]
template <typename T>
__global__ void __launch_bounds__(1024)
    twice(const T *x,
          T *out) {
    once(x);
}"""


def test_a_cuda_function_is_found_with_what_stands_above_it(tmp_path, monkeypatch):
    (tmp_path / "x.cu").write_text(f"// calls twice(x)\nint one;\n\n{CUDA}\n\nint f() {{\n    twice(x);\n}}\n")
    monkeypatch.setattr(hooks, "COMPILED", tmp_path)
    assert hooks.find("x.cu:twice").text == CUDA
    with pytest.raises(KeyError):
        hooks.find("x.cu:once")


@pytest.mark.parametrize(
    "name", ["swin.nothing", "nothing.swin", "swin.swin.nothing", "deformable.pyx:nothing", "nothing.pyx:bilinear"]
)
def test_an_unknown_name_stops_the_build(name):
    with pytest.raises(KeyError, match="nothing"):
        hooks.expand(f'{{{{ source("{name}") }}}}', lambda page, fragment: page)


def test_an_unknown_macro_and_an_unknown_line_stop_the_build():
    for macro in ("nothing()", 'line("ops.softmax", "nothing")', 'line("ops.softmax", "x")'):
        with pytest.raises(KeyError):
            hooks.expand(f"{{{{ {macro} }}}}", lambda page, fragment: page)


def test_a_macro_keeps_its_indent_and_its_neighbours():
    page = 'before {{ code("ops.mlp") }} after\n\n    {{ source("ops.relu") }}\n'
    made = hooks.expand(page, lambda page, fragment: page + fragment)
    first = hooks.find("ops.mlp").first
    link = f'<a class="name" href="source/ops.py.md#__codelineno-0-{first}"><code>ops.mlp</code></a>'
    assert made.startswith(f"before {link} after\n")
    assert "\n    def relu(x, bias=None):\n        " in made
    assert all(not line or line.startswith("    ") for line in made.splitlines()[1:])


# Letters.


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_a_letter_means_the_same_in_every_module(module):
    """One may say it in fewer words: S image tokens, S image tokens over all levels."""
    for letter, meaning in hooks.letters(module).items():
        for other in hooks.LAYERS:
            theirs = hooks.letters(other).get(letter, meaning)
            assert meaning.startswith(theirs) or theirs.startswith(meaning), f"{letter}: {meaning} ({module}), {theirs}"


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_every_letter_of_a_shape_is_introduced(module):
    """In the module's docstring, or model.py's; N and T also as shapes.md says."""
    text = hooks.home(module).read_text()
    shapes = re.findall(r"(?:\w |-> |# |, |\")\[([A-Z0-9(][^\]\"']*)\]", text)
    used = set(re.findall(r"\b[A-Z]\b", " ".join(shapes)))
    assert used <= hooks.letters(module).keys() | hooks.letters("model").keys()
    assert used


# Differences.


def test_every_difference_is_collected():
    marked = sum(path.read_text().count("# != paper:") for path in hooks.PACKAGE.rglob("*.py"))
    collected = [difference for module in hooks.LAYERS for difference in hooks.differences(module)]
    assert len(collected) == marked > 5


@pytest.mark.parametrize("module", [m for m in hooks.LAYERS if hooks.differences(m)])
def test_a_difference_is_shown_on_its_page(module):
    page = (ROOT / "docs" / "reading" / f"{module}.md").read_text()
    assert f'{{{{ differences("{module}"' in page


# The list of functions and classes.


def test_everything_public_is_listed():
    listed = set(re.findall(r"^::: minigdino\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    complaints = {name for name in minigdino.__all__ if hasattr(minigdino.errors, name)}
    assert set(minigdino.__all__) - complaints - {"__version__"} == listed - {"errors"}


# Rosetta.


def test_rosettas_terms_are_different():
    assert len({hooks.slug(row["term"]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: hooks.slug(row["term"]))
def test_a_row_leads_to_what_exists(row):
    assert row["code"]
    assert all(hooks.exists(name) for name in row["code"])
    assert row["page"] in READING
    names = tensors()
    for pattern in row.get("tensors", ()):
        assert any(fnmatchcase(name, pattern) for name in names), pattern


def test_every_tensor_of_both_families_is_in_a_row():
    patterns = [pattern for row in ROWS for pattern in row.get("tensors", ())]
    assert {name for name in tensors() if not any(fnmatchcase(name, pattern) for pattern in patterns)} == set()


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_every_function_of_a_layer_is_in_a_row_or_says_why_not(module):
    named = {name for row in ROWS for name in row["code"]}
    for function in functions(module):
        assert (f"{module}.{function}" in named) != (f"{module}.{function}" in hooks.without()), f"{module}.{function}"


def test_what_is_left_out_exists():
    assert all(hooks.exists(name) and reason for name, reason in hooks.without().items())


@pytest.mark.parametrize("page", READING)
def test_the_way_back_from_a_page(page):
    assert f'{{{{ rosetta("{page}") }}}}' in (ROOT / "docs" / "reading" / f"{page}.md").read_text()
    assert any(row["page"] == page for row in ROWS)


def test_every_function_of_a_row_is_shown_on_a_page():
    pages = "".join((ROOT / "docs" / "reading" / f"{page}.md").read_text() for page in READING)
    macros = re.findall(r"\{\{ source\((.*?)\) \}\}", pages)
    shown = {name for arguments in macros for name in re.findall(r'"(.*?)"', arguments)}
    assert {name for row in ROWS for name in row["code"]} <= shown


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_the_way_back_from_a_function(module):
    """The number that a function's docstring gives is in a row of it; so is its module's section."""
    for function in set(functions(module)) - {name.partition(".")[2] for name in hooks.without()}:
        places = "; ".join(row["place"] for row in ROWS if f"{module}.{function}" in row["code"])
        found = getattr(importlib.import_module(f"minigdino.network.{module}"), function)
        own = tree.PLACE.findall((inspect.getdoc(found) or "").partition("\n\n")[0])
        for number in own:
            if not number.startswith("arXiv"):
                assert number.lower() in places.lower(), f"{module}.{function}: {number} is not in {places!r}"
        (section,) = re.findall(r"^§3\.\d", hooks.docstring(module)) or ("§3" if module == "model" else "",)
        assert section in places, f"{module}.{function}: {places}"


def test_every_picture_is_in_the_page_that_explains():
    assert {row["picture"] for row in ROWS if "picture" in row} == {figure.slug for figure in FIGURES}


# The site.


class Page(HTMLParser):
    """What a page links to, loads, and calls by an id."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values.get("id"), values.get("name") if tag == "a" else None}
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])
        elif tag in ("img", "script", "link", "iframe") and values.get("rel") != "canonical":
            self.loads.add(values.get("src") or values.get("href"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not (importlib.util.find_spec("mkdocs") and importlib.util.find_spec("latex2mathml")):
        pytest.skip("the site needs the extra docs: make docs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
                           cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 60
    for path, page in pages.items():
        for link in page.links | page.loads - {None}:
            if not link.startswith(("http://", "https://", "data:", "mailto:", "javascript:")):
                target, _, fragment = unquote(link).partition("#")
                there = (path.parent / target).resolve() if target else path
                assert there.exists(), f"{path.relative_to(site)}: {link}"
                if fragment and there in pages:
                    assert fragment in pages[there].ids, f"{path.relative_to(site)}: {link}"


def test_the_site_reads_without_a_network(site):
    for path in site.rglob("*.html"):
        assert not [load for load in Page(path).loads - {None} if load.startswith(("http:", "https:", "//"))], path
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", path.read_text())]


def test_formulas_and_macros_are_carried_out(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert path.parent.name == "source" or not hooks.MACRO.search(text), path
        assert "```math" not in text, path
    assert (site / "reading" / "swin.html").read_text(encoding="utf-8").count("<math ") == 2

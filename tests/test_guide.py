"""The guide includes code by name: every name exists, every omission has a reason, and the web site builds."""

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
from minigdino.inspection.explain import FIGURES, TRAINING
from tests.browser import conftest as browser

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
ROWS = hooks.rosetta()
READING = [page.stem for page in (ROOT / "docs" / "reading").glob("*.md") if page.stem != "index"]


def functions(module):
    """Public module-level functions of a module of the network."""
    body = ast.parse(hooks.home(module).read_text()).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def tensors():
    """Tensor names in checkpoints of both families, with four and with five levels."""
    models = [tiny.config(), tiny.config("mm-grounding-dino"), tiny.config(stages=(1, 2, 3, 4), levels=5)]
    return {name for config in models for name in random_tensors(config)}


# Macros.


def test_find_returns_exactly_the_definition():
    assert hooks.find("ops.softmax").text.startswith('@accelerated(numpy="minigdino._ext.ops:softmax"')
    assert hooks.find("ops.softmax").text.endswith("keepdims=True)")
    assert hooks.find("names.RENAMES").text.startswith("RENAMES = (")
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


def test_find_returns_a_cuda_function_with_the_comment_above_it(tmp_path, monkeypatch):
    (tmp_path / "x.cu").write_text(f"// calls twice(x)\nint one;\n\n{CUDA}\n\nint f() {{\n    twice(x);\n}}\n")
    monkeypatch.setattr(hooks, "COMPILED", tmp_path)
    assert hooks.find("x.cu:twice").text == CUDA
    with pytest.raises(KeyError):
        hooks.find("x.cu:once")


@pytest.mark.parametrize(
    "name", ["swin.nothing", "nothing.swin", "swin.swin.nothing", "deformable.pyx:nothing", "nothing.pyx:bilinear"]
)
def test_an_unknown_name_raises(name):
    with pytest.raises(KeyError, match="nothing"):
        hooks.expand(f'{{{{ source("{name}") }}}}', lambda page, fragment: page)


def test_an_unknown_macro_and_an_unknown_line_raise():
    for macro in ("nothing()", 'line("ops.softmax", "nothing")', 'line("ops.softmax", "x")'):
        with pytest.raises(KeyError):
            hooks.expand(f"{{{{ {macro} }}}}", lambda page, fragment: page)


def test_a_macro_keeps_its_indentation_and_the_text_around_it():
    page = 'before {{ code("ops.mlp") }} after\n\n    {{ source("ops.relu") }}\n'
    expanded = hooks.expand(page, lambda page, fragment: page + fragment)
    first = hooks.find("ops.mlp").first
    link = f'<a class="name" href="source/ops.py.md#__codelineno-0-{first}"><code>ops.mlp</code></a>'
    assert expanded.startswith(f"before {link} after\n")
    assert "\n    def relu(x):\n        " in expanded
    assert all(not line or line.startswith("    ") for line in expanded.splitlines()[1:])


# Letters.


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_a_letter_means_the_same_in_every_module(module):
    """A definition may be a prefix of another: "image tokens", "image tokens over all levels"."""
    for letter, meaning in hooks.letters(module).items():
        for other in hooks.LAYERS:
            second = hooks.letters(other).get(letter, meaning)
            assert meaning.startswith(second) or second.startswith(meaning), f"{letter}: {meaning} ({module}), {second}"


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_every_letter_of_a_shape_is_defined(module):
    """It is defined in the docstring of the module or of model.py."""
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
def test_a_page_lists_the_differences_of_its_module(module):
    page = (ROOT / "docs" / "reading" / f"{module}.md").read_text()
    assert f'{{{{ differences("{module}"' in page


# The API page.


def test_the_api_page_lists_every_public_name():
    listed = set(re.findall(r"^::: minigdino\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    errors = {name for name in minigdino.__all__ if hasattr(minigdino.errors, name)}
    assert set(minigdino.__all__) - errors - {"__version__"} == listed - {"errors"}


# Rosetta.


def test_terms_are_unique():
    assert len({hooks.slug(row["term"]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: hooks.slug(row["term"]))
def test_a_row_names_code_pages_and_tensors_that_exist(row):
    assert row["code"]
    assert all(hooks.exists(name) for name in row["code"])
    assert row["page"] in READING
    names = tensors()
    for pattern in row.get("tensors", ()):
        assert any(fnmatchcase(name, pattern) for name in names), pattern


def test_every_tensor_of_both_families_has_a_row():
    patterns = [pattern for row in ROWS for pattern in row.get("tensors", ())]
    assert {name for name in tensors() if not any(fnmatchcase(name, pattern) for pattern in patterns)} == set()


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_every_function_of_the_network_has_a_row_or_a_reason(module):
    named = {name for row in ROWS for name in row["code"]}
    for function in functions(module):
        assert (f"{module}.{function}" in named) != (f"{module}.{function}" in hooks.without()), f"{module}.{function}"


def test_functions_without_a_row_exist_and_have_a_reason():
    assert all(hooks.exists(name) and reason for name, reason in hooks.without().items())


@pytest.mark.parametrize("page", READING)
def test_a_page_shows_its_rows(page):
    assert f'{{{{ rosetta("{page}") }}}}' in (ROOT / "docs" / "reading" / f"{page}.md").read_text()
    assert any(row["page"] == page for row in ROWS)


def test_every_function_of_a_row_is_included_on_a_page():
    pages = "".join((ROOT / "docs" / "reading" / f"{page}.md").read_text() for page in READING)
    macros = re.findall(r"\{\{ source\((.*?)\) \}\}", pages)
    shown = {name for arguments in macros for name in re.findall(r'"(.*?)"', arguments)}
    assert {name for row in ROWS for name in row["code"]} <= shown


@pytest.mark.parametrize("module", hooks.LAYERS)
def test_the_place_in_a_docstring_is_in_a_row(module):
    """So is the section of its module."""
    for function in set(functions(module)) - {name.partition(".")[2] for name in hooks.without()}:
        places = "; ".join(row["place"] for row in ROWS if f"{module}.{function}" in row["code"])
        found = getattr(importlib.import_module(f"minigdino.network.{module}"), function)
        own = tree.PLACE.findall((inspect.getdoc(found) or "").partition("\n\n")[0])
        for number in own:
            if not number.startswith("arXiv"):
                assert number.lower() in places.lower(), f"{module}.{function}: {number} is not in {places!r}"
        (section,) = re.findall(r"^§3\.\d", hooks.docstring(module)) or ("§3" if module == "model" else "",)
        assert section in places, f"{module}.{function}: {places}"


def test_rosetta_names_every_figure_of_the_explain_page():
    assert {row["picture"] for row in ROWS if "picture" in row} == {
        figure.slug for figure in (*FIGURES, *TRAINING.figures)}


# The web site.


class Page(HTMLParser):
    """Links, loaded resources and ids of a page."""

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


def test_every_link_of_the_site_has_a_target(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 60
    for path, page in pages.items():
        for link in page.links | page.loads - {None}:
            if not link.startswith(("http://", "https://", "data:", "mailto:", "javascript:")):
                target, _, fragment = unquote(link).partition("#")
                linked = (path.parent / target).resolve() if target else path
                assert linked.exists(), f"{path.relative_to(site)}: {link}"
                if fragment and linked in pages:
                    assert fragment in pages[linked].ids, f"{path.relative_to(site)}: {link}"


def test_the_site_loads_nothing_from_the_network(site):
    for path in site.rglob("*.html"):
        assert not [load for load in Page(path).loads - {None} if load.startswith(("http:", "https:", "//"))], path
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", path.read_text())]


def test_search_works_from_disk(site):
    """Browsers refuse workers in pages that are opened from disk; scripts/iframe-worker.js stands for them."""
    if reason := browser.missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=browser.SWITCHES) as chromium:
        tab = chromium.new_page()
        errors, requests = [], []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        for page in ("index.html", "howto/server.html"):  # in two folders
            tab.goto((site / page).as_uri())
            tab.get_by_role("textbox", name="Search").focus()
            tab.keyboard.type("deformable attention")
            link = tab.locator(".md-search-result__item a").first
            link.wait_for(state="attached", timeout=20_000)
            assert "/reading/deformable.html" in link.get_attribute("href")
        assert not errors
        assert not [url for url in requests if not url.startswith(("file:", "data:"))]


def test_formulas_and_macros_are_expanded(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert path.parent.name == "source" or not hooks.MACRO.search(text), path
        assert "```math" not in text, path
    assert (site / "reading" / "swin.html").read_text(encoding="utf-8").count("<math ") == 2

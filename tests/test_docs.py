"""Snippets, exercises and commands in the documentation run; links have targets; the reading order is consistent."""

import ast
import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml
from PIL import Image

from docs.hooks import slug
from minigdino import cli

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    ROOT / "training" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
READING = [page for page in PAGES if page.parent.name == "reading" and page.stem != "index"]
README = PAGES[0].read_text()
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def name(page):
    return str(page.relative_to(ROOT))


def blocks(text, language=None):
    """Fenced blocks: the texts of one language, or (language, text) of all blocks."""
    found = [(kind, textwrap.dedent(body)) for _, kind, body in FENCE.findall(text)]
    return [body for kind, body in found if kind == language] if language else found


def parts(page):
    """The text of a page before its exercise, and the exercise."""
    before, _, exercise = page.read_text().partition("\n## Exercise\n")
    return before, exercise


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A writable working directory in which the paths used by the pages exist."""
    for folder in ("docs", "minigdino"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # a page changes it
    return tmp_path


WITH_SNIPPETS = [page for page in PAGES if blocks(parts(page)[0], "python")]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name)
def test_snippets_run_and_print_the_output_shown(page, workplace, capsys):
    """Snippets of a page share their variables; the block after a snippet with `print` is its output."""
    names, found = {}, blocks(parts(page)[0])
    for (kind, code), (next_kind, output) in zip(found, [*found[1:], ("", "")]):
        if kind == "python":
            exec(compile(code, name(page), "exec"), names)
            printed = capsys.readouterr().out
            assert ("print(" in code) == bool(printed)
            if printed:
                assert next_kind == "text"
                assert printed == output


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text(), "py")], ids=name)
def test_snippets_of_other_packages_are_valid_python(page):
    """Blocks "py" need packages that the plain suite does not have. tests/parity runs those of transformers."""
    for code in blocks(page.read_text(), "py"):
        ast.parse(code)


def test_the_matrix_of_costs_is_the_one_that_its_snippet_draws(workplace):
    names = {}
    for code in blocks(parts(ROOT / "docs" / "reading" / "losses.md")[0], "python"):
        exec(code, names)
    drawn, shown = (path.read_text() for path in (workplace / "matching.svg", ROOT / "docs/images/matching.svg"))
    assert drawn == shown
    assert drawn.count("#c2410c") == 3  # one match for each box


def test_the_readme_snippet_writes_its_image(workplace):
    exec(blocks(README, "python")[0], {})
    assert (workplace / "found.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", READING, ids=name)
def test_an_exercise_fails_until_solved(page, workplace):
    skeleton, checks, answer = blocks(parts(page)[1], "python")
    names = {}
    exec(skeleton, names)
    with pytest.raises((AssertionError, TypeError, AttributeError, ValueError)):
        exec(checks, dict(names))
    exec(answer, names)
    exec(compile(checks, name(page), "exec"), names)
    (function,) = (node for node in ast.parse(answer).body if isinstance(node, ast.FunctionDef))
    assert ast.get_docstring(function) in skeleton


def commands():
    """Yield the lines of text blocks that start with a program. The prefix `.venv/bin/` and comments are removed."""
    for page in PAGES:
        for block in blocks(page.read_text(), "text"):
            for line in block.splitlines():
                line = line.removeprefix(".venv/bin/")
                if re.match(r"(minigdino|make|python|\.ci/run)( |$)", line):
                    yield line.partition("  ")[0]


COMMANDS = sorted(set(commands()))
MINIGDINO = [command for command in COMMANDS if command.startswith("minigdino ")]
OFFLINE = [command for command in MINIGDINO if ("--model shapes" in command or command == "minigdino info")
           and not command.startswith("minigdino serve")]  # which does not end; see tests/test_serving.py


@pytest.mark.parametrize("command", MINIGDINO)
def test_the_parser_accepts_every_command(command):
    cli.parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", OFFLINE)
def test_commands_without_a_download_run(command, workplace, capsys):
    assert cli.main(shlex.split(command)[1:]) == 0
    assert "".join(capsys.readouterr()) or [file for file in workplace.glob("*.jsonl") if file.stat().st_size]


def test_every_program_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in set(COMMANDS) - set(MINIGDINO):
        program, *words = command.split()
        if program == "make":
            assert words[0] in targets, command
        elif words[:1] == ["-m"]:
            assert importlib.util.find_spec(words[1]), command
        else:
            assert (ROOT / (words[0] if program == "python" else program)).exists(), command


def test_make_targets_in_the_text_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z][\w-]+)`", page.read_text())}
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_in_the_text_exist(page):
    text = FENCE.sub("", page.read_text())
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", text))
    defined = {
        test
        for file in (ROOT / "tests").rglob("*.py")
        for test in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", text)) <= defined


def anchors(page):
    """The anchors of the headings of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_have_a_target(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


ORDER = re.findall(r"^\| \[(\w+)\.py\]\(\S+\) \| (3\.\d) \|", README, re.MULTILINE)


def test_the_reading_order_is_the_order_of_the_model():
    """model.py calls the stages in the order of the table. §3.4 is last in the table, as in the paper."""
    assert [section for _, section in ORDER] == sorted(section for _, section in ORDER)
    body = (ROOT / "minigdino" / "network" / "model.py").read_text().partition("def forward")[2]
    stages = {
        "swin": "swin(",
        "bert": "bert(",
        "enhancer": "enhancer(",
        "queries": "select_queries(",
        "decoder": "decoder(",
    }
    called = sorted(
        stages,
        key=lambda name: body.index(f" {stages[name]}") if f" {stages[name]}" in body else body.index(stages[name]),
    )
    assert sorted(called[:2]) == ["bert", "swin"]
    assert called[2:] == [name for name, _ in ORDER if name in called[2:]]
    assert [name for name, _ in ORDER] == ["swin", "bert", "enhancer", "queries", "decoder", "phrases"]


@pytest.mark.parametrize(("module", "section"), ORDER)
def test_a_module_starts_with_its_section(module, section):
    assert (ROOT / "minigdino" / "network" / f"{module}.py").read_text().startswith(f'"""§{section}  ')


def listed(nav):
    """Paths of the pages in a part of the navigation."""
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from [entry] if isinstance(entry, str) else listed(entry)


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed(nav)) == sorted([*pages, "source/index.md"])  # the last one is generated


def test_the_guide_has_the_order_of_the_readme():
    """The navigation, the table of the guide and the README list the same sequence."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    (guide,) = (entry["Read it beside the paper"] for entry in nav if "Read it beside the paper" in entry)
    pages = [re.fullmatch(r"reading/(\w+)\.md", entry)[1] for entry in guide][1:]
    assert [page for page in pages if page in dict(ORDER)] == [module for module, _ in ORDER]
    table = (ROOT / "docs" / "reading" / "index.md").read_text().partition("Six papers")[0]
    assert re.findall(r"\[\w+\]\((\w+)\.md\)", table) == pages
    assert {page.stem for page in READING} == set(pages)

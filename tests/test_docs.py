"""What README and docs say is run: snippets, commands, links, the reading order."""

import re
import shlex
from pathlib import Path

import pytest

from minigdino.cli import parser

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "training" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = PAGES[0].read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_readmes_snippets_run_and_print_what_they_say(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    first, *more = blocks(README, "python")
    names = {}
    exec(first.replace('"found.png"', repr(str(tmp_path / "found.png"))), names)
    assert capsys.readouterr().out.strip() in [block.strip() for block in blocks(README, "text")]
    assert (tmp_path / "found.png").stat().st_size > 10_000
    for snippet in more:
        runnable = [line for line in snippet.splitlines() if "to_supervision" not in line or "#" in line]
        exec("\n".join(runnable), names)
    assert len(names["found"]) == 3
    assert names["seen"]


def commands():
    for page in PAGES:
        for block in blocks(page.read_text(), "text"):
            for line in block.splitlines():
                if line.startswith("minigdino "):
                    yield line.partition("  ")[0]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_is_one_the_program_takes(command):
    parser().parse_args(shlex.split(command)[1:])


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\bmake ([a-z][\w-]+)", "\n".join(blocks(page.read_text(), "text")))
    }
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), link


def test_the_reading_order_is_the_order_of_the_model():
    """model.py calls each stage in the table's order, §3.4 last in the table because it is last in the paper."""
    rows = re.findall(r"^\| \[(\w+)\.py\]\(\S+\) \| (3\.\d) \|", README, re.MULTILINE)
    assert [section for _, section in rows] == sorted(section for _, section in rows)
    body = (ROOT / "minigdino" / "model.py").read_text().partition("def forward")[2]
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
    assert called[2:] == [name for name, _ in rows if name in called[2:]]
    assert [name for name, _ in rows] == ["swin", "bert", "enhancer", "queries", "decoder", "prompt"]

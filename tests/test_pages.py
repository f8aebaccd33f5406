"""Facts on the pages: figures equal their source, quoted messages exist, the citation is complete."""

import ast
import itertools
import math
import re
from pathlib import Path

import pytest
import yaml

import minigdino
from minigdino.checkpoints.parameters import box_head, parameters
from minigdino.runtime import flops

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
TROUBLESHOOTING = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()


def rows(text, start):
    """Rows of the first table after a piece of text, as lists of cells. The first row has the names of the columns."""
    lines = iter(text.partition(start)[2].splitlines())
    from_table = itertools.dropwhile(lambda line: line[:1] != "|", lines)
    table = itertools.takewhile(lambda line: line[:1] == "|", from_table)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [cells[0], *cells[2:]]


def column(table, name):
    """{first cell of the row: cell} of one column."""
    at = next(i for i, cell in enumerate(table[0]) if cell.startswith(name))
    return {row[0]: row[at] for row in table[1:]}


def starting(values, start):
    """The value of the key that starts with a text."""
    (value,) = (value for key, value in values.items() if key.startswith(start))
    return value


PROGRAMS = {  # column of the README -> start of the row in docs/performance.md
    "minigdino": "minigdino 0", "transformers on PyTorch": "transformers 5", "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino 2026.4.1, f32",
}  # fmt: skip
MEASURED = {  # row of the README -> column of docs/performance.md
    "seconds per image": "seconds", "peak GB": "peak GB", "import, s": "import s", "load, s": "load s",
    "first result after the start of the process, s": "first result, s",
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("figure", MEASURED)
def test_the_comparison_has_the_measured_figures(program, figure):
    measured = column(rows(PERFORMANCE, "On the Intel Xeon, with"), MEASURED[figure])
    assert column(rows(README, "## Comparison"), program)[figure] == starting(measured, PROGRAMS[program])


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_comparison_has_the_measured_sizes(program):
    sizes = column(rows(PERFORMANCE, "### Installed size"), "MB")
    shown = column(rows(README, "## Comparison"), program)["installed packages, MB"]
    assert shown == starting(sizes, program)


def test_the_throughput_on_the_page_about_servers_is_the_measured_one():
    page = (ROOT / "docs" / "howto" / "server.md").read_text()
    shown = rows(page, "Measured without a server")[1:]
    measured = [row[1:] for row in rows(PERFORMANCE, "## Throughput") if row[0] == 'minigdino, "highest"']
    assert shown == measured != []
    (served,) = (row[1:] for row in rows(page, "Measured on two cores") if row[0].startswith("images per core-hour"))
    for hourly, section in zip(served, ("### The embedded checkpoint", "### The tiny geometry"), strict=True):
        (second,) = (row[3] for row in rows(PERFORMANCE, section) if row[:3] == ["server", "2 × 1", "4"])
        assert float(hourly.replace(",", "")) == pytest.approx(1800 * float(second), rel=0.002)  # of two cores


def test_the_costs_of_many_images_are_those_of_the_throughput():
    """Rows of the tiny geometry at 800 x 1066 are measured, the others in proportion to the number of operations."""
    page = (ROOT / "docs" / "howto" / "many-images.md").read_text()
    price = float(re.search(r"example price of ([\d.]+) € per core-hour", page)[1])
    throughput = {row[0]: int(row[3]) for row in rows(PERFORMANCE, "## Throughput")[1:] if row[1] == "2 × 1"}

    def operations(geometry, image):
        family = "grounding-dino" if geometry == "tiny" else "mm-grounding-dino"
        return flops.total(minigdino.Config.published(family, geometry), *map(int, image.split(" × ")), 9)

    shown = rows(page, "## What it costs")[1:]
    assert len(shown) == 12
    for geometry, image, precision, images, hours, euros, source in shown:
        share = operations("tiny", "800 × 1066") / operations(geometry, image)
        expected = throughput[f'minigdino, "{precision}"'] * share
        assert [images, hours, euros] == [f"{expected:.0f}", f"{1e6 / expected:.0f}", f"{1e6 / expected * price:.1f}"]
        assert source == ("measured" if share == 1 else "estimate")
    measured = rows(PERFORMANCE, "### From files to JSON")[1:]
    for (*names, seconds, images, _), shown in zip(measured, rows(page, "### On an AMD EPYC")[1:], strict=True):
        hours = float(seconds) * 1e6 / 3600
        assert images == f"{1e6 / hours:.0f}"
        assert shown == [*names, images, f"{hours:.0f}", f"{hours * price:.1f}"]


CHECKPOINTS = {row[0]: row[1:] for row in rows(README, "### All checkpoints")[1:]}
CHOSEN = rows(README, "### Which model")[1:]


@pytest.mark.parametrize("row", CHOSEN, ids=lambda row: row[1])
def test_the_choice_of_models_has_the_figures_of_its_checkpoints(row):
    name, size, gflop, *accuracy = row[1:]
    assert accuracy == CHECKPOINTS[name][1:]
    family = "grounding-dino" if name.startswith("IDEA-Research") else "mm-grounding-dino"
    config = minigdino.Config.published(family, re.search("tiny|base|large", name)[0])
    heads = config.decoder_layers if family == "mm-grounding-dino" else 1
    shapes = [*parameters(config).values(), *heads * [*box_head(config.d_model).values()]]
    count = sum(map(math.prod, shapes)) + (heads if heads > 1 else 0)  # class biases
    assert CHECKPOINTS[name][0] == f"{count / 1e6:.0f} M"
    assert size == f"{4 * count / 1e9:.2f} GB"
    assert gflop == f"{flops.total(config, 800, 1066, 9) / 1e9:.0f}"


def literals():
    """Every str in the package. A value in an f-string becomes "…"."""
    for path in (ROOT / "minigdino").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


LITERALS = list(literals())
MESSAGES = re.findall(r"^\| `([^`]+)`", TROUBLESHOOTING, re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_exists(message):
    pattern = re.compile(".*".join(map(re.escape, message.rstrip("…").split("…"))), re.DOTALL)
    assert any(pattern.search(text) for text in LITERALS)


def test_an_invented_message_does_not_exist():
    assert len(MESSAGES) > 20
    with pytest.raises(AssertionError):
        test_a_quoted_message_exists("two phrases must … be blue")


def test_the_citation_names_this_version_and_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == minigdino.__version__
    assert citation["license"] == "Apache-2.0"
    for paper in citation["references"]:
        assert paper["authors"] and paper["title"] and paper["year"]
        assert paper["url"] in README
    assert {paper["url"][-10:] for paper in citation["references"]} == {"2303.05499", "2401.02361", "2501.18954"}

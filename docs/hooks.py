"""MkDocs hooks that include code in the pages of the guide.

A page calls a function of MACROS, as in {{ source("swin.windows") }}. An unknown name fails the build.
Formulas in ```math blocks become MathML, which a browser shows without scripts, fonts or network access.
"""

from __future__ import annotations

import ast
import html
import re
import tomllib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minigdino.network import LAYERS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minigdino"
COMPILED = ROOT / "_ext"
EXAMPLE = "explain.html"
LANGUAGES = {".py": "python", ".pyx": "cython", ".pxd": "cython", ".cu": "cuda", ".cuh": "cuda"}

MACRO = re.compile(r"\{\{ (\w+)\((.*?)\) \}\}")
MATH = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LETTERS = re.compile(r"(?!A |a )[A-Za-z](, [A-Za-z])* \w")  # start of the paragraph that defines the letters


@dataclass(frozen=True)
class Piece:
    """A range of lines in a file, from `first` to `last`, counted from 1."""

    path: Path
    first: int
    last: int

    @property
    def text(self) -> str:
        """The text of these lines."""
        return "\n".join(self.path.read_text(encoding="utf-8").splitlines()[self.first - 1 : self.last])

    @property
    def page(self) -> str:
        """Path of the page that shows the whole file."""
        return f"source/{self.path.name}.md"

    @property
    def line(self) -> str:
        """URL fragment of the first line on that page."""
        return f"#__codelineno-0-{self.first}"


def find(name: str) -> Piece:
    """Find the definition of a name.

    Args:
        name: "swin.windows" (module.name or module.Class.name), "swin" (a module), or "deformable.pyx:deform_attn"
            (a function in a file of `_ext`).

    Returns:
        The lines of the definition, with its decorators.

    Raises:
        KeyError: if the name is not defined.
    """
    file, colon, inner = name.partition(":")
    if colon:
        return _compiled(COMPILED / file, inner)
    module, *names = name.split(".")
    return _defined(home(module), names, name)


def home(module: str) -> Path:
    """Find the file of a module in any folder of the package.

    Raises:
        KeyError: if there is no such file, or more than one.
    """
    found = list(PACKAGE.rglob(f"{module}.py"))
    if len(found) != 1:
        raise KeyError(f"{module}: expected one file of that name in minigdino/, found {len(found)}")
    return found[0]


def _defined(path, names, name):
    node = ast.parse(path.read_text(encoding="utf-8"))
    if not names:
        return Piece(path, 1, len(path.read_text(encoding="utf-8").splitlines()))
    for part in names:
        node = next((child for child in getattr(node, "body", []) if part in _names(child)), None)
        if node is None:
            raise KeyError(f"{name}: expected {path.name} to define {part}, found no definition")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return Piece(path, first, node.end_lineno)


def _names(node):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _compiled(path, name):
    """Find a function in a .pyx or .pxd file, or in a .cu or .cuh file with the comment above it."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cuda = path.suffix in (".cu", ".cuh")
    margin, called = ("", r"(?!.*;$)") if cuda else ("[^ #]", "")
    head = re.compile(rf"{margin}[^#/*]*\b{re.escape(name)}\({called}")
    first = next((i for i, line in enumerate(lines) if head.match(line)), None)
    if first is None:
        raise KeyError(f"expected {path.name} to define {name}, found no definition")
    if cuda:
        last = next(i for i in range(first, len(lines)) if lines[i].startswith("}"))
        while first and lines[first - 1].strip():
            first -= 1
    else:
        last = next((i for i in range(first + 1, len(lines)) if re.match(r"[^\s)]", lines[i])), len(lines)) - 1
        while not lines[last].strip():
            last -= 1
    return Piece(path, first + 1, last + 1)


def exists(name: str) -> bool:
    """Return whether `find` finds the name."""
    try:
        return bool(find(name))
    except KeyError:
        return False


def docstring(module: str) -> str:
    """Return the docstring of a module."""
    return ast.get_docstring(ast.parse(home(module).read_text(encoding="utf-8")))


@cache
def letters(module: str) -> dict[str, str]:
    """Read the letters of shapes from a module's docstring.

    They are defined in the paragraph that starts with a letter: "H, W rows and columns of a map, C channels, M heads."

    Returns:
        {"S": "image tokens over all levels", ...}
    """
    paragraph = next((" ".join(p.split()) for p in docstring(module).split("\n\n")[1:] if LETTERS.match(p)), "")
    found: dict[str, str] = {}
    waiting = []
    for part in paragraph.partition(". ")[0].rstrip(".").split(", ") if paragraph else ():
        letter, _, meaning = part.partition(" ")
        if len(letter) > 1:  # the comma was part of the previous meaning
            found[list(found)[-1]] += f", {part}"
        elif not meaning:  # in "H, W rows", H has the meaning of W
            waiting.append(letter)
        else:
            found |= dict.fromkeys([*waiting, letter], meaning)
            waiting = []
    return found


@cache
def differences(module: str) -> tuple[tuple[str, int, str], ...]:
    """Collect the `# != paper:` comments of a module, as (function, line, text)."""
    text = home(module).read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    found = []
    for i, line in enumerate(lines):
        if "# != paper:" in line:
            comment = [line.partition("# != paper:")[2].strip()]
            for more in lines[i + 1 :]:
                if not more.strip().startswith("# ") or "# != paper:" in more:
                    break
                comment.append(more.strip()[2:])
            function = next(f.name for f in functions if f.lineno <= i + 1 <= f.end_lineno)
            found.append((function, i + 1, " ".join(comment)))
    return tuple(found)


def rosetta() -> list[dict]:
    """Return the rows of rosetta.toml."""
    return _table()["row"]


def without() -> dict[str, str]:
    """Return the functions of the network that have no row, with the reason: {"module.function": reason}."""
    return _table()["without"]


@cache
def _table():
    return tomllib.loads((ROOT / "docs" / "rosetta.toml").read_text(encoding="utf-8"))


def slug(text: str) -> str:
    """Return the anchor of a heading or a row, as Python-Markdown computes it."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


# The macros. `link` maps a page such as "source/swin.py.md" and a fragment to a URL relative to the calling page.


def _source(link, *names):
    """Include functions in full, each below a link to its first line in the file."""
    blocks = []
    for name in names:
        piece = find(name)
        blocks.append(f"{_link(link, piece, name)}\n{{ .place }}\n\n"
                      f"```{LANGUAGES[piece.path.suffix]} linenums=\"{piece.first}\"\n{piece.text}\n```")
    return "\n\n".join(blocks)


def _code(link, name):
    """Link a name to its line."""
    return _link(link, find(name), name)


def _line(link, name, mark):
    """Include the one line of a function that contains the mark, as a link."""
    piece = find(name)
    matches = [i for i, line in enumerate(piece.text.splitlines()) if mark in line]
    if len(matches) != 1:
        raise KeyError(f"{name}: expected one line with {mark!r}, found {len(matches)}")
    target = Piece(piece.path, piece.first + matches[0], piece.first + matches[0])
    return _link(link, target, target.text.strip(), "line")


def _link(link, piece, text, kind="name"):
    text = html.escape(text).replace("|", "&#124;")  # a bar would end a table cell
    return f'<a class="{kind}" href="{link(piece.page, piece.line)}"><code>{text}</code></a>'


def _letters(link, module):
    """List the letters of a module's shapes in one line, grouped by meaning."""
    meanings: dict[str, list[str]] = {}
    for letter, meaning in letters(module).items():
        meanings.setdefault(meaning, []).append(f"**{letter}**")
    return " · ".join(f"{', '.join(names)} {meaning}" for meaning, names in meanings.items())


def _all_letters(link):
    """Table of all letters with their longest definition and their modules, grouped by meaning."""
    homes: dict[str, list[str]] = {}
    for module in LAYERS:
        for letter in letters(module):
            homes.setdefault(letter, []).append(module)
    rows: dict[tuple[str, str], list[str]] = {}
    for letter, modules in homes.items():
        meaning = max((letters(module)[letter] for module in modules), key=len)
        rows.setdefault((meaning, ", ".join(_code(link, module) for module in modules)), []).append(letter)
    lines = [f"| {', '.join(names)} | {meaning} | {modules} |" for (meaning, modules), names in rows.items()]
    return "\n".join(["| letter | meaning | introduced in |", "|---|---|---|", *lines])


def _differences(link, *modules):
    """Table of the places where the released weights, and the code, differ from the papers."""
    rows = ["| where | what |", "|---|---|"]
    for module in modules or LAYERS:
        for function, line, text in differences(module):
            target = Piece(home(module), line, line)
            rows.append(f"| {_link(link, target, f'{module}.{function}')} | {text} |")
    return "\n".join(rows)


def _rosetta(link, page=None):
    """Table of all terms, or of the terms of one page."""
    rows = ["| paper's term | place | code | checkpoint tensors | picture |", "|---|---|---|---|---|"]
    pictured = set()
    for row in rosetta():
        if page in (None, row["page"]):
            anchor = slug(row["term"])
            ids = [anchor, *({row.get("picture")} - pictured - {None, anchor})]  # a figure links to its first row
            pictured.add(row.get("picture"))
            here = "".join(f'<span id="{name}"></span>' for name in ids) if page is None else ""
            other = link(f"reading/{row['page']}.md", "") if page is None else link("rosetta.md", f"#{anchor}")
            tensors = "<br>".join(f"`{name}`" for name in row.get("tensors", ())) or "—"
            picture = _figure(link, row["picture"]) if "picture" in row else "—"
            code = "<br>".join(_code(link, name) for name in row["code"])
            term = f'{here}<a href="{other}">{row["term"]}</a>'
            rows.append(f"| {term} | {row['place']} | {code} | {tensors} | {picture} |")
    return "\n".join(rows)


def _figure(link, figure):
    """Link the name of a figure to the figure."""
    return f'<a href="{link(EXAMPLE, f"#{figure}")}"><code>{figure}</code></a>'


MACROS: dict[str, Callable] = {
    "source": _source, "code": _code, "line": _line, "letters": _letters, "all_letters": _all_letters,
    "differences": _differences, "rosetta": _rosetta, "figure": _figure,
}


def expand(markdown: str, link: Callable[[str, str], str]) -> str:
    """Expand the macros of a page; their output keeps the indentation of the call.

    Args:
        markdown: text of the page.
        link: maps a page and a fragment to a URL.

    Raises:
        KeyError: for an unknown macro, function, line or page.
    """

    def call(match):
        return MACROS[match[1]](link, *ast.literal_eval(f"({match[2]},)" if match[2] else "()"))

    def expanded(line):
        return MACRO.sub(call, line).replace("\n", "\n" + line[: len(line) - len(line.lstrip())])

    return "\n".join(map(expanded, markdown.split("\n")))


def source_files() -> list[Path]:
    """List the source files that have their own page."""
    compiled = [path for path in sorted(COMPILED.iterdir()) if path.suffix in LANGUAGES and path.suffix != ".py"]
    package = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and "explain" not in path.parts]
    return [*sorted(package), *compiled]


def source_page(path: Path) -> str:
    """Write the page of a source file, with line numbers."""
    text = path.read_text(encoding="utf-8")
    return f"# {path.relative_to(ROOT)}\n\n~~~~{LANGUAGES[path.suffix]} linenums=\"1\"\n{text.rstrip()}\n~~~~\n"


def example() -> str:
    """Render the page of `minigdino explain` for the drawn scene: the figures that rosetta links to."""
    import minigdino
    from minigdino.inspection.explain import page

    targets = [{"box": [17, 177, 146, 311], "label": "a purple star"},
               {"box": [166, 262, 289, 385], "label": "a green heart"}]
    return page(minigdino.load("shapes"), str(ROOT / "docs" / "images" / "scene.jpg"), "a purple star. a green heart.",
                guide="", targets=targets)


# The functions that MkDocs calls.


def on_files(files, config):
    """Add the pages of the source files and the page of figures."""
    from mkdocs.structure.files import File

    listing = ["# Source", "", "Every source file in full; other pages link to its lines.", ""]
    for path in source_files():
        files.append(File.generated(config, f"source/{path.name}.md", content=source_page(path)))
        listing.append(f"- [{path.relative_to(ROOT)}]({path.name}.md)")
    files.append(File.generated(config, "source/index.md", content="\n".join(listing) + "\n"))
    files.append(File.generated(config, EXAMPLE, content=example()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Expand the macros and convert the formulas."""

    def link(target, fragment):
        file = files.get_file_from_path(target)
        if file is None:
            raise KeyError(f"{page.file.src_uri}: expected a page {target}, found none")
        return file.url_relative_to(page.file) + fragment

    if page.file.src_uri.startswith("source/"):
        return markdown
    return MATH.sub(lambda match: mathml(match[1]), expand(markdown, link))


def mathml(tex: str) -> str:
    """Convert a formula from TeX to MathML, in a block element."""
    from latex2mathml.converter import convert

    return f'<div class="formula">{convert(tex.strip(), display="block")}</div>'


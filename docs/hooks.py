"""What the pages say about the code is taken from the code when they are built: nothing here or there is a copy.

A page calls a function of MACROS, as in {{ source("swin.windows") }}; a name that does not exist fails the build.
Formulas in ```math blocks become MathML, which a browser shows without a script, a font or a network.
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
LETTERS = re.compile(r"(?!A |a )[A-Za-z](, [A-Za-z])* \w")  # how the paragraph of a docstring starts that names them


@dataclass(frozen=True)
class Piece:
    """Some lines of a file, counted from 1."""

    path: Path
    first: int
    last: int

    @property
    def text(self) -> str:
        """The lines themselves."""
        return "\n".join(self.path.read_text(encoding="utf-8").splitlines()[self.first - 1 : self.last])

    @property
    def page(self) -> str:
        """The page that shows the whole file."""
        return f"source/{self.path.name}.md"

    @property
    def line(self) -> str:
        """The fragment of that page which leads to the first line."""
        return f"#__codelineno-0-{self.first}"


def find(name: str) -> Piece:
    """Where a name is defined: "swin.windows" (module.name, module.Class.name), "deformable.pyx:deform_attn".

    Raises KeyError if it is not.
    """
    file, colon, inner = name.partition(":")
    if colon:
        return _compiled(COMPILED / file, inner)
    module, *names = name.split(".")
    return _defined(home(module), names, name)


def home(module: str) -> Path:
    """The file of a module, wherever in the package it lies. Raises KeyError if there is none, or more than one."""
    found = list(PACKAGE.rglob(f"{module}.py"))
    if len(found) != 1:
        raise KeyError(f"{module}: {len(found)} files of that name in minigdino/; expected one")
    return found[0]


def _defined(path, names, name):
    node = ast.parse(path.read_text(encoding="utf-8"))
    if not names:
        return Piece(path, 1, len(path.read_text(encoding="utf-8").splitlines()))
    for part in names:
        node = next((child for child in getattr(node, "body", []) if part in _names(child)), None)
        if node is None:
            raise KeyError(f"{name}: {path.name} defines no {part}")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return Piece(path, first, node.end_lineno)


def _names(node):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _compiled(path, name):
    """A function of a .pyx or .pxd file, or of a .cu or .cuh file with what stands right above it."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cuda = path.suffix in (".cu", ".cuh")
    margin, called = ("", r"(?!.*;$)") if cuda else ("[^ #]", "")
    head = re.compile(rf"{margin}[^#/*]*\b{re.escape(name)}\({called}")
    first = next((i for i, line in enumerate(lines) if head.match(line)), None)
    if first is None:
        raise KeyError(f"{path.name} defines no {name}")
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
    """Whether `find` finds it."""
    try:
        return bool(find(name))
    except KeyError:
        return False


def docstring(module: str) -> str:
    """A module's docstring."""
    return ast.get_docstring(ast.parse(home(module).read_text(encoding="utf-8")))


@cache
def letters(module: str) -> dict[str, str]:
    """What the module's docstring says its letters mean: {"S": "image tokens over all levels", ...}

    It is the paragraph that starts with a letter: "H, W rows and columns of a map, C channels, M heads."
    """
    paragraph = next((" ".join(p.split()) for p in docstring(module).split("\n\n")[1:] if LETTERS.match(p)), "")
    found: dict[str, str] = {}
    waiting = []
    for part in paragraph.partition(". ")[0].rstrip(".").split(", ") if paragraph else ():
        letter, _, meaning = part.partition(" ")
        if len(letter) > 1:  # a comma within a meaning
            found[list(found)[-1]] += f", {part}"
        elif not meaning:  # "H, W rows": H shares the meaning of W
            waiting.append(letter)
        else:
            found |= dict.fromkeys([*waiting, letter], meaning)
            waiting = []
    return found


@cache
def differences(module: str) -> tuple[tuple[str, int, str], ...]:
    """The `# != paper:` comments of a module: (function, line, text)."""
    text = home(module).read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    found = []
    for i, line in enumerate(lines):
        if "# != paper:" in line:
            said = [line.partition("# != paper:")[2].strip()]
            for more in lines[i + 1 :]:
                if not more.strip().startswith("# "):
                    break
                said.append(more.strip()[2:])
            function = next(f.name for f in functions if f.lineno <= i + 1 <= f.end_lineno)
            found.append((function, i + 1, " ".join(said)))
    return tuple(found)


def rosetta() -> list[dict]:
    """The rows of rosetta.toml."""
    return _table()["row"]


def without() -> dict[str, str]:
    """Functions of the layers that are in no row, and why."""
    return _table()["without"]


@cache
def _table():
    return tomllib.loads((ROOT / "docs" / "rosetta.toml").read_text(encoding="utf-8"))


def slug(text: str) -> str:
    """The anchor of a heading or a row, as Python-Markdown makes it."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


# What a page may call. `link` turns "source/swin.py.md" and a fragment into an address as seen from the page.


def _source(link, *names):
    """Functions, whole, each under a link to its first line in the file."""
    blocks = []
    for name in names:
        piece = find(name)
        blocks.append(f"{_link(link, piece, name)}\n{{ .place }}\n\n"
                      f"```{LANGUAGES[piece.path.suffix]} linenums=\"{piece.first}\"\n{piece.text}\n```")
    return "\n\n".join(blocks)


def _code(link, name):
    """A name that leads to its line."""
    return _link(link, find(name), name)


def _line(link, name, mark):
    """The one line of a function that holds the mark, as code that leads to it."""
    piece = find(name)
    held = [i for i, line in enumerate(piece.text.splitlines()) if mark in line]
    if len(held) != 1:
        raise KeyError(f"{name}: {len(held)} lines hold {mark!r}; expected one")
    there = Piece(piece.path, piece.first + held[0], piece.first + held[0])
    return _link(link, there, there.text.strip(), "line")


def _link(link, piece, text, kind="name"):
    text = html.escape(text).replace("|", "&#124;")  # a bar would end the cell of a table
    return f'<a class="{kind}" href="{link(piece.page, piece.line)}"><code>{text}</code></a>'


def _letters(link, module):
    """The letters of a module's shapes, in one line: those of one meaning together."""
    meanings: dict[str, list[str]] = {}
    for letter, meaning in letters(module).items():
        meanings.setdefault(meaning, []).append(f"**{letter}**")
    return " · ".join(f"{', '.join(names)} {meaning}" for meaning, names in meanings.items())


def _all_letters(link):
    """Every letter, its meaning at its fullest, and the modules that introduce it; those of one meaning together."""
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
    """Where the released weights, and so the code, disagree with the papers."""
    rows = ["| where | what |", "|---|---|"]
    for module in modules or LAYERS:
        for function, line, text in differences(module):
            there = Piece(home(module), line, line)
            rows.append(f"| {_link(link, there, f'{module}.{function}')} | {text} |")
    return "\n".join(rows)


def _rosetta(link, page=None):
    """The table of terms, or the rows of one page."""
    rows = ["| paper's term | place | code | checkpoint tensors | picture |", "|---|---|---|---|---|"]
    pictured = set()
    for row in rosetta():
        if page in (None, row["page"]):
            anchor = slug(row["term"])
            ids = [anchor, *({row.get("picture")} - pictured - {None, anchor})]  # a picture leads to its first row
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
    """A picture's name that leads to it."""
    return f'<a href="{link(EXAMPLE, f"#{figure}")}"><code>{figure}</code></a>'


MACROS: dict[str, Callable] = {
    "source": _source, "code": _code, "line": _line, "letters": _letters, "all_letters": _all_letters,
    "differences": _differences, "rosetta": _rosetta, "figure": _figure,
}


def expand(markdown: str, link: Callable[[str, str], str]) -> str:
    """A page with its macros carried out, what they made indented as they were.

    Raises KeyError for an unknown one, and as the macros do.
    """

    def call(match):
        return MACROS[match[1]](link, *ast.literal_eval(f"({match[2]},)" if match[2] else "()"))

    def carried_out(line):
        return MACRO.sub(call, line).replace("\n", "\n" + line[: len(line) - len(line.lstrip())])

    return "\n".join(map(carried_out, markdown.split("\n")))


def source_files() -> list[Path]:
    """The files that get a page of their own."""
    compiled = [path for path in sorted(COMPILED.iterdir()) if path.suffix in LANGUAGES and path.suffix != ".py"]
    package = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and "explain" not in path.parts]
    return [*sorted(package), *compiled]


def source_page(path: Path) -> str:
    """A whole file, its lines numbered."""
    text = path.read_text(encoding="utf-8")
    return f"# {path.relative_to(ROOT)}\n\n~~~~{LANGUAGES[path.suffix]} linenums=\"1\"\n{text.rstrip()}\n~~~~\n"


def example() -> str:
    """What `minigdino explain` makes of the drawn scene: the pictures that rosetta leads to."""
    import minigdino
    from minigdino.inspection.explain import page

    return page(minigdino.load("shapes"), str(ROOT / "docs" / "images" / "scene.jpg"), "a purple star. a green heart.",
                guide="")


# What mkdocs calls.


def on_files(files, config):
    """Add the pages that show whole files, and the page of pictures."""
    from mkdocs.structure.files import File

    listing = ["# Source", "", "Every file as it is; other pages lead to single lines of these.", ""]
    for path in source_files():
        files.append(File.generated(config, f"source/{path.name}.md", content=source_page(path)))
        listing.append(f"- [{path.relative_to(ROOT)}]({path.name}.md)")
    files.append(File.generated(config, "source/index.md", content="\n".join(listing) + "\n"))
    files.append(File.generated(config, EXAMPLE, content=example()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Carry out the macros and set the formulas."""

    def link(target, fragment):
        file = files.get_file_from_path(target)
        if file is None:
            raise KeyError(f"{page.file.src_uri}: no page {target}")
        return file.url_relative_to(page.file) + fragment

    if page.file.src_uri.startswith("source/"):
        return markdown
    return MATH.sub(lambda match: mathml(match[1]), expand(markdown, link))


def mathml(tex: str) -> str:
    """A formula in TeX -> MathML, in a block of its own."""
    from latex2mathml.converter import convert

    return f'<div class="formula">{convert(tex.strip(), display="block")}</div>'


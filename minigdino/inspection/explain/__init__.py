"""A forward pass as one self-contained HTML page, with figures of every stage in the paper's order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ...detector import ImageLike, Model
from ...version import __version__
from ...writing import ends
from ..tree import place
from . import captions
from .assigning import fields, read
from .encode import picture
from .figure import Chapter, Figure
from .figures import CHAPTERS, FIGURES, TRAINING
from .observe import ForwardPass, observe

__all__ = ["CHAPTERS", "FIGURES", "TRAINING", "Chapter", "Figure", "is_page", "page", "read"]

HERE = Path(__file__).parent
LARGEST = (760, 900)  # maximum width and height of the image in the page
MAX_HEAD = 500  # bytes at the start of the page, which contain its mark


def page(model: Model, image: ImageLike, text: str | Sequence[str], guide: str | None = None,
         targets: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Build the page for one image and text, from the recorded steps of one `Model.detect`.

    The function runs the NumPy references, and clears the caches of the model.

    Args:
        model: the model.
        image: as for `Model.detect`.
        text: as for `Model.detect`.
        guide: URL of the built guide, relative to the page: "" or ending in "/". Captions then link to the guide's
            source lines and terms. None: no links.
        targets: annotated boxes of the image, for a figure of their matching and losses. Each has "box" (left, top,
            right, bottom) in pixels and "label", a phrase of the text or its index.

    Returns:
        The HTML text.

    Raises:
        Error: as `Model.detect` and, for the targets, `Model.loss` raise.
    """
    chapters = CHAPTERS if targets is None else (*CHAPTERS, TRAINING)
    figures = [figure for chapter in chapters for figure in chapter.figures]
    recorded = observe(model, image, text, sorted({step for figure in figures for step in figure.steps}),
                       None if targets is None else fields(targets))
    values = {
        "title": escape(f"{recorded.name}, explained"), "name": escape(recorded.name), "version": __version__,
        "text": escape(". ".join(recorded.prompt.phrases)), "model": escape(str(model.source)),
        "contents": "\n".join(map(_contents, chapters)),
        "chapters": "\n".join(_chapter(chapter, recorded, guide) for chapter in chapters),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        # no tag can end the script
        "data": json.dumps(_data(recorded, figures), separators=(",", ":")).replace("<", "\\u003c"),
        "script": "\n".join(path.read_text(encoding="utf-8") for path in _scripts()),
    }
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(values)


def is_page(path: str | Path) -> bool:
    """Return whether a file is a page of `page`, which a later run may replace.

    Args:
        path: a file of any kind.

    Returns:
        False for every other file, and for one that cannot be read.
    """
    return b'<meta name="generator" content="minigdino">' in ends(path, MAX_HEAD)[0]


def _scripts():
    """The scripts, page.js first because the others need it."""
    return sorted(HERE.glob("*.js"), key=lambda path: (path.stem != "page", path.stem))


def _data(recorded: ForwardPass, figures: list[Figure]):
    shown = recorded.image.copy()
    scale = min(LARGEST[0] / shown.width, LARGEST[1] / shown.height)
    size = max(1, round(shown.width * scale)), max(1, round(shown.height * scale))
    return {"image": picture(shown.resize(size)), "width": size[0], "height": size[1],
            "original": [recorded.image.width, recorded.image.height], "tokens": recorded.tokens,
            "phrases": recorded.prompt.phrases, "spans": recorded.prompt.spans, "levels": recorded.sizes,
            "figures": {figure.slug: figure.data(recorded) for figure in figures}}


def _contents(chapter):
    items = "".join(f'<li><a href="#{figure.slug}">{escape(figure.title)}</a></li>' for figure in chapter.figures)
    section = captions.section(chapter.module)
    return f'<li><span>{escape(chapter.title)} <small>{section}</small></span><ol>{items}</ol></li>'


def _chapter(chapter, recorded, guide):
    figures = "\n".join(_figure(figure, recorded, guide) for figure in chapter.figures)
    section = captions.section(chapter.module)
    return (f'<section><h2><small>{section}</small> {escape(chapter.title)}</h2>\n'
            f'<p class="intro">{escape(chapter.text)}</p>\n{figures}</section>')


def _figure(figure, recorded, guide):
    functions = "".join(
        f"<li><code>{name}</code> <span>{_line(captions.where(name), guide)}</span> "
        f"<span>{_linked(place(*name.split('.')))}</span></li>" for name in figure.functions)
    shapes = "".join(
        f"<li><code>{escape(step)}</code> <span>{shape and shape + ' = '}{' × '.join(map(str, sizes))}</span></li>"
        for step, shape, sizes in captions.shapes(figure, recorded))
    rows = "" if guide is None else (f'<p class="guide"><a href="{escape(guide)}rosetta.html#{figure.slug}">'
                                     "terms in the paper and checkpoint tensors</a></p>")
    return (f'<figure id="{figure.slug}"><h3><a href="#{figure.slug}">{escape(figure.title)}</a></h3>\n'
            f'<p>{escape(figure.text)}</p>\n<div class="drawing"></div>\n'
            f'<figcaption><ul class="functions">{functions}</ul><ul class="shapes">{shapes}</ul>{rows}</figcaption>'
            "</figure>")


def _line(where, guide):
    """A location in the code, such as "minigdino/network/fusion.py:14"; a link if there is a guide."""
    file, _, line = where.partition(":")
    target = f"{guide}source/{Path(file).name}.html#__codelineno-0-{line}"
    return where if guide is None else f'<a href="{escape(target)}">{where}</a>'


def _linked(text):
    return re.sub(r"arXiv (\d{4}\.\d{5})", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', text)

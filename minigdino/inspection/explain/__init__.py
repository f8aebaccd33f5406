"""A pass as a page: one HTML file, complete in itself, that walks an image through the model in the paper's order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from ...detector import ImageLike, Model
from ...version import __version__
from . import captions
from .encode import picture
from .figure import Chapter, Figure
from .figures import CHAPTERS, FIGURES
from .observe import Pass, observe

__all__ = ["CHAPTERS", "FIGURES", "Chapter", "Figure", "page"]

HERE = Path(__file__).parent
LARGEST = (760, 900)  # width and height of the image that the page draws on


def page(model: Model, image: ImageLike, text: str | Sequence[str], guide: str | None = None) -> str:
    """The page's HTML, made from the steps of one pass of `Model.detect`. Raises what that raises.

    guide: where the built guide is, seen from the page ("" or ending in "/"): captions then lead to its lines and rows.
    The pass runs on the NumPy formulas. The model forgets the features it keeps of images and prompts.
    """
    seen = observe(model, image, text, sorted({step for figure in FIGURES for step in figure.steps}))
    values = {
        "title": escape(f"{seen.name}, explained"), "name": escape(seen.name), "version": __version__,
        "text": escape(". ".join(seen.prompt.phrases)), "model": escape(str(model.source)),
        "contents": "\n".join(map(_contents, CHAPTERS)),
        "chapters": "\n".join(_chapter(chapter, seen, guide) for chapter in CHAPTERS),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "data": json.dumps(_data(seen), separators=(",", ":")).replace("<", "\\u003c"),  # no tag ends the script
        "script": "\n".join(path.read_text(encoding="utf-8") for path in _scripts()),
    }
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(values)


def _scripts():
    """page.js, which the others need, first."""
    return sorted(HERE.glob("*.js"), key=lambda path: (path.stem != "page", path.stem))


def _data(seen: Pass):
    shown = seen.image.copy()
    scale = min(LARGEST[0] / shown.width, LARGEST[1] / shown.height)
    size = max(1, round(shown.width * scale)), max(1, round(shown.height * scale))
    return {"image": picture(shown.resize(size)), "width": size[0], "height": size[1],
            "original": [seen.image.width, seen.image.height], "tokens": seen.tokens,
            "phrases": seen.prompt.phrases, "spans": seen.prompt.spans, "levels": seen.sizes,
            "figures": {figure.slug: figure.data(seen) for figure in FIGURES}}


def _contents(chapter):
    items = "".join(f'<li><a href="#{figure.slug}">{escape(figure.title)}</a></li>' for figure in chapter.figures)
    section = captions.section(chapter.module)
    return f'<li><span>{escape(chapter.title)} <small>{section}</small></span><ol>{items}</ol></li>'


def _chapter(chapter, seen, guide):
    figures = "\n".join(_figure(figure, seen, guide) for figure in chapter.figures)
    section = captions.section(chapter.module)
    return (f'<section><h2><small>{section}</small> {escape(chapter.title)}</h2>\n'
            f'<p class="intro">{escape(chapter.text)}</p>\n{figures}</section>')


def _figure(figure, seen, guide):
    functions = "".join(
        f"<li><code>{name}</code> <span>{_line(captions.where(name), guide)}</span> "
        f"<span>{_linked(captions.source(name))}</span></li>" for name in figure.functions)
    shapes = "".join(
        f"<li><code>{escape(step)}</code> <span>{said and said + ' = '}{' × '.join(map(str, shape))}</span></li>"
        for step, said, shape in captions.shapes(figure, seen))
    rows = "" if guide is None else (f'<p class="guide"><a href="{escape(guide)}rosetta.html#{figure.slug}">'
                                     "the paper's terms, and the tensors</a></p>")
    return (f'<figure id="{figure.slug}"><h3><a href="#{figure.slug}">{escape(figure.title)}</a></h3>\n'
            f'<p>{escape(figure.text)}</p>\n<div class="drawing"></div>\n'
            f'<figcaption><ul class="functions">{functions}</ul><ul class="shapes">{shapes}</ul>{rows}</figcaption>'
            "</figure>")


def _line(where, guide):
    """"minigdino/network/fusion.py:14", which leads there if there is a guide."""
    file, _, line = where.partition(":")
    there = f"{guide}source/{Path(file).name}.html#__codelineno-0-{line}"
    return where if guide is None else f'<a href="{escape(there)}">{where}</a>'


def _linked(place):
    return re.sub(r"arXiv (\d{4}\.\d{5})", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', place)

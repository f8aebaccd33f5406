"""The report of an evaluation: one HTML file with curves, confused labels and pictures of the worst misses."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import ImageDraw

from ..errors import ImageError
from ..image import open_image
from ..inspection.explain.encode import picture as data_uri
from ..version import __version__
from .analysis import LEVELS, AtThreshold, ByScore, Miss, harmonic
from .candidates import Candidates
from .ground_truth import GroundTruth

HERE = Path(__file__).parent
TILES = 24  # categories with a curve of their own
MATRIX = 24  # categories of a matrix; with more, the most frequent confusions are listed
LISTED = 40
PICTURE = 420, 320  # largest width and height of a picture
OBJECT, DETECTION = "#15803d", "#c2410c"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 240, 150, 30, 22, 8  # of a curve, in units of its drawing


def report(truth: GroundTruth, detections: Callable[[], Iterable[tuple[int, Candidates]]], images: str | Path | None,
           title: str, facts: str, table: Mapping[str, float]) -> str:
    """Make the report of an evaluation.

    The detections are read twice: to find the threshold with the best F1, and to list what is wrong at this threshold.

    Args:
        truth: the annotations of the evaluated images.
        detections: function that returns an iterable of pairs (id of an image, its detections).
        images: folder of the images; None for a report without pictures.
        title: title of the page.
        facts: what was evaluated, in a line.
        table: the result of the evaluation, by the name of each figure.

    Returns:
        The HTML text.
    """
    names = {category.id: category.name for category in truth.categories}
    scores = ByScore(truth, detections())
    threshold, precision, recall, f1 = scores.best()
    wrong = AtThreshold(truth, detections(), threshold)
    by_objects = [row for row in np.argsort(-scores.objects, kind="stable").tolist() if scores.objects[row]]
    rows = sorted(by_objects, key=scores.average_precision)
    shown = sorted(by_objects[:TILES], key=scores.average_precision)
    values = {
        "title": escape(title), "facts": escape(facts), "version": __version__, "summary": _summary(table),
        "style": (HERE / "report.css").read_text(encoding="utf-8"), "at": f"{threshold:.3f}",
        "threshold": f"F1, over all categories together, is highest at a threshold of {threshold:.3f}: precision "
                     f"{precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}.",
        "sweep": _sweep(scores, threshold),
        "categories": "Precision (upwards) over recall (to the right), at every threshold. The number is AP50, the "
                      f"area below the curve.{_most(len(shown), len(rows))} The lowest AP50 comes first.",
        "curves": "\n".join(_tile(scores, row, names) for row in shown),
        "table": "\n".join(_row(scores, row, names) for row in rows),
        "confusion": _confusion_text(len(rows), threshold),
        "matrix": _confusions(wrong.confusions, [scores.categories[row] for row in by_objects], names),
        "missed": _pictures(wrong.missed, images, names), "false": _pictures(wrong.false, images, names),
    }
    return Template((HERE / "report.html").read_text(encoding="utf-8")).substitute(values)


def _most(shown, all_of_them):
    return f" Shown are the {shown} categories with the most objects." if shown < all_of_them else ""


def _summary(table):
    head = "".join(f"<th>{escape(name)}</th>" for name in table)
    cells = "".join(f"<td>{percent(value)}</td>" for value in table.values())
    return f'<div class="scroll"><table class="summary"><thead><tr>{head}</tr></thead><tr>{cells}</tr></table></div>'


def percent(value: float) -> str:
    """Format a figure as the papers do, in percent with one decimal; "–" if it is not defined."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


# Curves.


def _axes(body, width=WIDTH, height=HEIGHT, ticks=(0, 0.5, 1), x_name="", label=""):
    """An SVG drawing with both axes from 0 to 1."""
    grid = []
    for value in ticks:
        x, y = _x(value, width), _y(value, height)
        grid.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - 8}M{x:.1f} {TOP}V{height - BOTTOM}"/>'
                    f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
                    f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{value:g}</text>')
    name = f'<text x="{width - 8}" y="{height - BOTTOM - 5}" text-anchor="end">{x_name}</text>' if x_name else ""
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(grid)}{name}'
            f"{body}</svg>")


def _x(value, width=WIDTH):
    return LEFT + (width - LEFT - 8) * value


def _y(value, height=HEIGHT):
    return height - BOTTOM - (height - BOTTOM - TOP) * value


def _line(xs, ys, kind, width=WIDTH, height=HEIGHT):
    points = " ".join(f"{_x(x, width):.1f},{_y(y, height):.1f}" for x, y in zip(xs, ys))
    return f'<polyline class="curve {kind}" points="{points}"/>'


def _sweep(scores, best):
    """Precision, recall and F1 over the threshold, for all categories together."""
    width, height = 720, 300
    precision, recall = scores.curve()
    levels = np.arange(0, LEVELS, 10)
    body = [f'<path class="mark" d="M{_x(best, width):.1f} {TOP}V{height - BOTTOM}"/>']
    names = {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}
    for i, (kind, values) in enumerate(names.items()):
        body.append(_line(levels / LEVELS, values[levels], kind, width, height))
        body.append(f'<text class="{kind}" x="{width - 90}" y="{TOP + 40 + 16 * i}">'
                    f'{"F1" if kind == "f1" else kind}</text>')
    return _axes("".join(body), width, height, (0, 0.25, 0.5, 0.75, 1), "threshold",
                 "precision, recall and F1 over the threshold")


def _tile(scores, row, names):
    precision, recall = scores.curve(row)
    envelope = np.maximum.accumulate(precision)  # by falling recall
    changes = np.flatnonzero(np.diff(recall, prepend=-1, append=-1))
    chosen = np.unique(np.clip(np.concatenate([changes, changes - 1]), 0, LEVELS - 1))
    chosen = chosen[recall[chosen] > 0]
    value, name = scores.average_precision(row), escape(names[scores.categories[row]])
    drawing = _axes(_line(recall[chosen], envelope[chosen], "precision"), label=f"precision over recall of {name}")
    return f'<figure><h3>{name} <span class="soft">{value:.2f}</span></h3>{drawing}</figure>'


def _row(scores, row, names):
    threshold, precision, recall, f1 = scores.best(row)
    figures = f"{scores.average_precision(row):.3f}", *(f"{v:.3f}" for v in (threshold, precision, recall, f1))
    cells = "".join(f"<td>{figure}</td>" for figure in figures)
    return f"<tr><td>{escape(names[scores.categories[row]])}</td><td>{scores.objects[row]}</td>{cells}</tr>"


# Confused labels.


def _confusion_text(n, threshold):
    text = (f"What is detected at annotated objects, at scores above {threshold:.3f}. The label of an object is that "
            "of the best detection at its place, of any category.")
    if n <= MATRIX:
        return (f"{text} A row is an annotated category, a column what was detected. “missed” are objects without a "
                "detection. The last row has detections at which no object is annotated.")
    return f"{text} Listed are the most frequent confusions of different categories."


def _confusions(confusions, ids, names):
    if len(ids) <= MATRIX:
        return _matrix(confusions, sorted(ids), names)
    pairs = sorted(((n, a, b) for (a, b), n in confusions.items() if None not in (a, b) and a != b),
                   key=lambda entry: -entry[0])[:LISTED]
    rows = "".join(f"<tr><td>{escape(names[a])}</td><td>{escape(names[b])}</td><td>{n}</td></tr>" for n, a, b in pairs)
    return ('<table class="pairs"><thead><tr><th>annotated</th><th>detected</th><th>objects</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>")


def _matrix(confusions, ids, names):
    columns = [*ids, None]
    head = "".join(f"<th><span>{escape(names.get(one, 'missed'))}</span></th>" for one in columns)
    body = []
    for actual in (*ids, None):
        counts = [confusions[actual, found] for found in columns]
        total = max(sum(counts), 1)
        cells = "".join(_cell(n, n / total) for n in (counts if actual is not None else counts[:-1]))
        body.append(f"<tr><th>{escape(names.get(actual, 'nothing'))}</th>{cells}</tr>")
    return (f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def _cell(n, part):
    kind = "zero" if n == 0 else "strong" if part > 0.55 else ""
    return f'<td class="{kind}" style="--part:{part:.2f}">{n}</td>'


# Pictures.


def _pictures(misses, images, names):
    if not misses:
        return "<p>None.</p>"
    return "\n".join(_picture(miss, images, names) for miss in misses)


def _picture(miss: Miss, images, names):
    is_object = miss.score is None
    name, other = escape(names[miss.category]), None if miss.other is None else escape(names[miss.other])
    if is_object:
        text = f"<strong>{name}</strong> is annotated, {other or 'nothing'} detected"
    else:
        text = f"<strong>{name}</strong> detected, score {miss.score:.2f}; {other or 'nothing'} is annotated"
    boxes = [(miss.other_box, DETECTION if is_object else OBJECT), (miss.box, OBJECT if is_object else DETECTION)]
    image = "" if images is None else _image(os.path.join(images, miss.picture.file_name), boxes)
    return f"<figure>{image}<figcaption>{text}<br>{escape(miss.picture.file_name)}</figcaption></figure>"


def _image(path, boxes):
    """An image with boxes as HTML; a message if its file is gone."""
    try:
        picture = open_image(path).copy()
    except ImageError as error:
        return f'<p class="soft">{escape(str(error))}</p>'
    scale = min(PICTURE[0] / picture.width, PICTURE[1] / picture.height)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for box, colour in boxes:
        if box is not None:
            x0, y0, x1, y1 = (v * scale for v in box)
            frame = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
            draw.rectangle([frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1], outline="white", width=1)
            draw.rectangle(frame, outline=colour, width=3)
    return f'<img alt="" src="{data_uri(picture)}">'

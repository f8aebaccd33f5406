"""Boxes and names on a picture, legible on any image: size follows the image, colour follows the label."""

from __future__ import annotations

import colorsys

from PIL import Image, ImageDraw, ImageFont

GOLDEN = 0.618034  # steps of the golden ratio round the colour wheel keep any number of hues apart


def colour(label_id: int) -> tuple[int, int, int]:
    """The same label, the same colour: RGB, dark enough for white letters."""
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb((0.02 + label_id * GOLDEN) % 1, 0.38, 0.85))


def annotate(image: Image.Image, boxes, labels, scores, label_ids) -> Image.Image:
    """A copy of an RGB image with boxes [N, 4] xyxy, named with their scores; the best-scored is drawn on top."""
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    stroke = max(1, round(side / 220))
    font = ImageFont.load_default(size=min(max(10, side / 28), 64))
    taken: list[tuple[float, float, float, float]] = []
    tags = []
    for box, label, score, label_id in zip(boxes, labels, scores, label_ids):
        x0, y0, x1, y1 = _inside(box, picture.size)
        text = f"{label} {score:.2f}"
        tag = _place(draw.textbbox((0, 0), text, font=font), (x0, y0, x1, y1), picture.size, taken, pad=stroke + 1)
        taken.append(tag)
        tags.append(((x0, y0, x1, y1), tag, text, colour(int(label_id))))
    for box, _, _, rgb in reversed(tags):
        draw.rectangle(box, outline=rgb, width=stroke)
    for _, tag, text, rgb in reversed(tags):
        draw.rectangle(tag, fill=rgb)
        draw.text((tag[0] + stroke + 1, tag[1] + stroke + 1), text, fill="white", font=font, anchor="lt")
    return picture


def _inside(box, size):
    """A box clipped to the picture, so that its edges are seen, and never turned inside out."""
    width, height = size
    x0, x1 = (min(max(float(v), 0), width - 1) for v in (box[0], box[2]))
    y0, y1 = (min(max(float(v), 0), height - 1) for v in (box[1], box[3]))
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _place(text, box, size, taken, pad):
    """Where a tag goes: above its box, inside, or below, the first free of earlier tags, and always in the picture."""
    width, height = text[2] - text[0] + 2 * pad, text[3] - text[1] + 2 * pad
    x = min(max(box[0], 0), max(size[0] - 1 - width, 0))
    choices = [box[1] - height, box[1], box[3] - height, box[3]]
    tags = [(x, y, x + width, y + height) for y in choices if 0 <= y <= size[1] - 1 - height]
    tags = tags or [(x, 0, x + width, height)]
    return next((tag for tag in tags if not any(_overlap(tag, other) for other in taken)), tags[0])


def _overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

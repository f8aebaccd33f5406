"""Boxes and names on a picture, legible on any image: size follows the image, colour follows the label."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GOLDEN = 0.618034  # steps of the golden ratio round the colour wheel keep any number of hues apart
PLACES = 12  # steps down a box's side that are tried for its tag


def colour(label_id: int) -> tuple[int, int, int]:
    """The same label, the same colour: RGB, dark enough for white letters."""
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb((0.02 + label_id * GOLDEN) % 1, 0.38, 0.85))


def annotate(image: Image.Image, boxes, labels, scores, label_ids) -> Image.Image:
    """A copy of an RGB image with boxes [N, 4] xyxy, best first, named with their scores.

    Names never cover each other: where there is no room left, a box has its colour alone.
    """
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    stroke = max(1, round(side / 220))
    font = ImageFont.load_default(size=min(max(9, side / 28), 64))
    frames = [_inside(box, picture.size) for box in boxes]
    colours = [colour(int(label_id)) for label_id in label_ids]
    for frame, rgb in reversed(list(zip(frames, colours))):
        draw.rectangle(frame, outline=rgb, width=stroke)
    tags = np.zeros((0, 4))
    for frame, rgb, label, score in zip(frames, colours, labels, scores):
        text = _fitted(draw, font, label, score, picture.width - 2 * (stroke + 1))
        tag = _place(draw.textbbox((0, 0), text, font=font, anchor="lt"), frame, picture.size, tags, pad=stroke + 1)
        if tag is not None:
            tags = np.vstack([tags, tag])
            draw.rectangle(tuple(tag), fill=rgb)
            draw.text((tag[0] + stroke + 1, tag[1] + stroke + 1), text, fill="white", font=font, anchor="lt")
    return picture


def _inside(box, size):
    """A box clipped to the picture, so that its edges are seen, and never turned inside out."""
    x0, x1 = sorted(min(max(float(v), 0), size[0] - 1) for v in (box[0], box[2]))
    y0, y1 = sorted(min(max(float(v), 0), size[1] - 1) for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _fitted(draw, font, label, score, width):
    """The tag's text, its label shortened until it is no wider than the picture."""
    shown = label.replace("\n", " ")
    text = f"{shown} {score:.2f}"
    while shown and draw.textlength(text, font=font) > width:
        shown = shown[:-1]
        text = f"{shown}… {score:.2f}"
    return text


def _place(text, frame, size, taken, pad):
    """Where a tag goes: above its box if that is free of earlier tags, else the first free place down along the box's
    left or right edge, always in the picture; None if there is none. taken [N, 4] -> [4]"""
    width, height = text[2] - text[0] + 2 * pad, text[3] - text[1] + 2 * pad
    right, bottom = max(size[0] - 1 - width, 0), max(size[1] - 1 - height, 0)
    steps = np.array([-height, *(height * np.arange(PLACES)), frame[3] - frame[1]])
    y = np.clip(frame[1] + np.concatenate([steps, steps]), 0, bottom)
    x = np.clip(np.repeat([frame[0], frame[2] - width], len(steps)), 0, right)
    places = np.stack([x, y, x + width, y + height], axis=1)
    low, high = np.maximum(places[:, None, :2], taken[:, :2]), np.minimum(places[:, None, 2:], taken[:, 2:])
    free = ~(low < high).all(axis=2).any(axis=1)
    return places[free.argmax()] if free.any() else None

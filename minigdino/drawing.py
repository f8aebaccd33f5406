"""Draw boxes, labels and scores on an image. Line width and font size follow the image's size."""

from __future__ import annotations

import bisect
import colorsys

import numpy as np
from PIL import Image, ImageDraw

from .fonts import choose

HUE_STEP = 0.618034  # 1 / golden ratio: the hues of consecutive label ids stay far apart, for any number of labels
TAG_STEPS = 12  # positions per side within a box where its name tag may be placed
MAX_COVERED = 0.5  # of the area of any box: a tag must not hide a small object
CONTRAST = 4.5  # of white text to its background, as the guideline WCAG 2 demands for text


def colour(label_id: int) -> tuple[int, int, int]:
    """Return the colour of a label, dark enough for white text on it.

    Args:
        label_id: index of the label's phrase in the prompt.

    Returns:
        Red, green and blue, 0 to 255.
    """
    hue = (0.02 + label_id * HUE_STEP) % 1
    for lightness in np.arange(0.38, 0, -0.01):  # yellow and green must be darker than red and blue
        red, green, blue = (round(255 * v) for v in colorsys.hls_to_rgb(hue, float(lightness), 0.85))
        rgb = red, green, blue
        if 1.05 / (luminance(rgb) + 0.05) >= CONTRAST:
            break
    return rgb


def luminance(rgb) -> float:
    """Return the relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2).

    Args:
        rgb: red, green and blue, 0 to 255.
    """
    values = np.asarray(rgb) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def annotate(image: Image.Image, boxes, labels, scores, label_ids) -> Image.Image:
    """Draw boxes with name tags (label and score) on a copy of an image.

    A dark frame has a white line around it, so that it contrasts with any image. Tags never overlap, and cover at most
    half of any box. A box without such a place for its tag gets none, only its colour.

    Args:
        image: RGB image.
        boxes: [N, 4] (left, top, right, bottom) in pixels, best first. They are clipped to the image.
        labels: N strings.
        scores: [N] scores, 0 to 1.
        label_ids: [N] ints that select the colours.

    Returns:
        The annotated copy.
    """
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    stroke = max(1, round(side / 220))
    font_size = min(max(9, side / 28), 64)
    frames = [_clip(box, picture.size) for box in boxes]
    colours = [colour(int(label_id)) for label_id in label_ids]
    for frame, rgb in reversed(list(zip(frames, colours))):  # the best box on top
        line = max(1, stroke // 2)
        outer = _clip((frame[0] - line, frame[1] - line, frame[2] + line, frame[3] + line), picture.size)
        inner = _clip((outer[0] + line, outer[1] + line, outer[2] - line, outer[3] - line), picture.size)
        draw.rectangle(outer, outline="white", width=line)
        draw.rectangle(inner, outline=rgb, width=stroke)
    tags, corners = np.zeros((0, 4)), np.array(frames).reshape(-1, 4)
    shown = {label: choose(label, font_size) for label in set(labels)}
    for frame, rgb, label, score in zip(frames, colours, labels, scores):
        font, text = shown[label]
        text = _fit(draw, font, text, score, picture.width - 2 * (stroke + 1))
        extent = draw.textbbox((0, 0), text, font=font, anchor="lt")
        tag = _place(extent, frame, picture.size, tags, corners, pad=stroke + 1)
        if tag is not None:
            tags = np.vstack([tags, tag])
            draw.rectangle(tuple(tag), fill=rgb)
            draw.text((tag[0] + stroke + 1, tag[1] + stroke + 1), text, fill="white", font=font, anchor="lt")
    return picture


def _clip(box, size):
    """Clip a box to the image and sort its edges, so that Pillow can draw it."""
    x0, x1 = sorted(min(max(float(v), 0), size[0] - 1) for v in (box[0], box[2]))
    y0, y1 = sorted(min(max(float(v), 0), size[1] - 1) for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _fit(draw, font, label, score, width):
    """Text of a tag. The label is shortened until the text is at most `width` pixels wide."""
    def fits(text):
        return draw.textlength(f"{text} {score:.2f}", font=font) <= width

    end = 16
    while end < len(label) and fits(label[:end]):  # measures no more text than necessary, because that is slow
        end *= 2
    if not label or (end >= len(label) and fits(label)):
        return f"{label} {score:.2f}"
    lengths = range(1, min(end, len(label)))
    kept = bisect.bisect_left(lengths, True, key=lambda n: not fits(f"{label[:n]}…"))
    return f"{label[:kept]}… {score:.2f}"


def _place(text, frame, size, taken, frames, pad):
    """Find a position [4] for a tag, inside the image. None if there is none.

    It is free of the tags in `taken` [N, 4] and leaves at least half of each box in `frames` [M, 4] visible.
    Candidates, in order: above the box, below it, each at its left and right edge; to the right and the left of it;
    inside it, down along the left and the right edge.
    """
    width, height = text[2] - text[0] + 2 * pad, text[3] - text[1] + 2 * pad
    left, top, right, bottom = frame
    inside = top + height * np.arange(TAG_STEPS)
    x = np.array([left, left, right - width, right - width, right, left - width,
                  *[left] * TAG_STEPS, *[right - width] * TAG_STEPS])
    y = np.array([top - height, bottom, top - height, bottom, top, top, *inside, *inside])
    x = np.clip(x, 0, max(size[0] - 1 - width, 0))
    y = np.clip(y, 0, max(size[1] - 1 - height, 0))
    places = np.stack([x, y, x + width, y + height], axis=1)
    areas = (frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1])
    covers = np.any(_overlap(places, frames) > MAX_COVERED * areas, axis=1)
    free = ~covers & ~np.any(_overlap(places, taken) > 0, axis=1)
    return places[free.argmax()] if free.any() else None


def _overlap(a, b):
    """Common area of each of N boxes with each of M: [N, M]."""
    edges = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    return np.maximum(edges, 0).prod(axis=2)

"""Draw boxes, labels and scores on an image. Line width and font size follow the image's size."""

from __future__ import annotations

import bisect
import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HUE_STEP = 0.618034  # 1 / golden ratio: the hues of consecutive label ids stay far apart, for any number of labels
TAG_STEPS = 12  # positions per side of a box where its name tag may be placed


def colour(label_id: int) -> tuple[int, int, int]:
    """Return the colour of a label, dark enough for white text on it.

    Args:
        label_id: index of the label's phrase in the prompt.

    Returns:
        Red, green and blue, 0 to 255.
    """
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb((0.02 + label_id * HUE_STEP) % 1, 0.38, 0.85))


def annotate(image: Image.Image, boxes, labels, scores, label_ids) -> Image.Image:
    """Draw boxes with name tags (label and score) on a copy of an image.

    Tags never overlap. A box without free space beside it gets no tag, only its colour.

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
    font = ImageFont.load_default(size=min(max(9, side / 28), 64))
    frames = [_clip(box, picture.size) for box in boxes]
    colours = [colour(int(label_id)) for label_id in label_ids]
    for frame, rgb in reversed(list(zip(frames, colours))):  # the best box on top
        draw.rectangle(frame, outline=rgb, width=stroke)
    tags = np.zeros((0, 4))
    shown = {label: "".join(c if c.isprintable() else " " for c in label) for label in set(labels)}
    for frame, rgb, label, score in zip(frames, colours, labels, scores):
        text = _fit(draw, font, shown[label], score, picture.width - 2 * (stroke + 1))
        tag = _place(draw.textbbox((0, 0), text, font=font, anchor="lt"), frame, picture.size, tags, pad=stroke + 1)
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


def _place(text, frame, size, taken, pad):
    """Find a position [4] for a tag, inside the image and free of the tags in `taken` [N, 4]. None if there is none.

    Candidates, in order: above the box, down along its left edge, below it, and the same at its right edge.
    """
    width, height = text[2] - text[0] + 2 * pad, text[3] - text[1] + 2 * pad
    right, bottom = max(size[0] - 1 - width, 0), max(size[1] - 1 - height, 0)
    steps = np.array([-height, *(height * np.arange(TAG_STEPS)), frame[3] - frame[1]])
    y = np.clip(frame[1] + np.concatenate([steps, steps]), 0, bottom)
    x = np.clip(np.repeat([frame[0], frame[2] - width], len(steps)), 0, right)
    places = np.stack([x, y, x + width, y + height], axis=1)
    low, high = np.maximum(places[:, None, :2], taken[:, :2]), np.minimum(places[:, None, 2:], taken[:, 2:])
    free = ~(low < high).all(axis=2).any(axis=1)
    return places[free.argmax()] if free.any() else None

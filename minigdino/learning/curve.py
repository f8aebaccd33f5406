"""Draw the course of a training run: the loss, and AP50 on the validation set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 80, 80, 50, 60  # margins
INK, GRID, PALE, LOSS, AP50 = "#1f2937", "#e5e7eb", "#bfd7f2", "#1d4ed8", "#c2410c"
TICKS = 5
WINDOWS = 50  # the smoothed loss is a running mean over a fiftieth of the steps


def curve(losses: Sequence[float], precisions: Sequence[tuple[int, float]] = ()) -> Image.Image:
    """Draw losses (left axis, logarithmic) and AP50 (right axis) over the steps.

    The pale line is the loss of each step, the dark one its running mean.

    Args:
        losses: loss of each step, positive numbers.
        precisions: pairs (steps done, AP50).

    Returns:
        An RGB picture.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    values = np.log10(np.maximum(np.asarray(losses, float), 1e-6))
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    steps = max(len(values), 1)

    def x(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / steps

    def y(fraction):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * fraction

    for fraction in np.linspace(0, 1, TICKS):
        draw.line([(LEFT, y(fraction)), (WIDTH - RIGHT, y(fraction))], GRID)
        draw.text((LEFT - 10, y(fraction)), f"{10 ** (low + fraction * (high - low)):.3g}", LOSS, font, "rm")
        if precisions:
            draw.text((WIDTH - RIGHT + 10, y(fraction)), f"{fraction:.2f}", AP50, font, "lm")
        step = round(fraction * steps)
        draw.text((x(step), HEIGHT - BOTTOM + 12), str(step), INK, font, "mt")
    draw.text((WIDTH / 2, HEIGHT - 12), "steps", INK, font, "mb")
    draw.text((LEFT, TOP - 15), "loss", LOSS, font, "lb")
    if precisions:
        draw.text((WIDTH - RIGHT, TOP - 15), "AP50", AP50, font, "rb")

    scaled = (values - low) / (high - low)
    for series, colour, width in ((scaled, PALE, 1), (smoothed(scaled, max(1, steps // WINDOWS)), LOSS, 3)):
        points = [(x(i + 1), y(value)) for i, value in enumerate(series)]
        draw.line(points, colour, width, joint="curve")
    points = [(x(step), y(value)) for step, value in precisions if np.isfinite(value)]
    draw.line(points, AP50, 2)
    for px, py in points:
        draw.ellipse([px - 4, py - 4, px + 4, py + 4], AP50)
    return picture


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean: element i is the mean of the last `window` elements up to i, or of fewer at the start.

    Args:
        values: [N].
        window: number of elements.

    Returns:
        [N].
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)

"""Data classes for the figures and chapters of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure of the page."""

    slug: str  # id in the page; must not change, because other pages link to it
    title: str
    functions: tuple[str, ...]  # "module.function" of each function whose steps are shown
    steps: tuple[str, ...]  # patterns of the trace paths to record
    data: Callable  # ForwardPass -> the data to draw, as JSON types
    text: str  # caption: what is drawn, how to read the colour, what to notice


@dataclass(frozen=True)
class Chapter:
    """Figures of one stage of the model."""

    title: str
    module: str  # its docstring names the section of the paper
    text: str
    figures: tuple[Figure, ...]

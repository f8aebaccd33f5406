"""What a figure is, and a chapter of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure. Its slug is its id in the page, and never changes: others link to it."""

    slug: str
    title: str
    functions: tuple[str, ...]  # whose steps it shows: "module.function"
    steps: tuple[str, ...]  # trace paths of what it is made from
    data: Callable  # what the page draws: of a Pass, something JSON can hold
    text: str  # what to look at, and why


@dataclass(frozen=True)
class Chapter:
    """A stage of the model: the module that is its home says the section."""

    title: str
    module: str
    text: str
    figures: tuple[Figure, ...]

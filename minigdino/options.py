"""Options of `detect`: the values they accept, and what they do to the detections of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np

from .errors import ArgumentError, brief
from .prompt import as_label

Threshold: TypeAlias = "float | Mapping[str, float]"
Score: TypeAlias = Literal["max", "mean"]

THRESHOLD = 0.25  # of `detect`, also for phrases that a mapping of thresholds does not name
SCORES = ("max", "mean")
TILE_NMS = 0.5  # IoU of `nms` if there are tiles: lower, because the boxes of an object in two tiles differ more
MIN_TILE = 64  # pixels


class DetectOptions(TypedDict, total=False):
    """Options of `Model.detect` that do not change the type of its result."""

    threshold: Threshold
    text_threshold: float
    size: Sequence[int] | None
    chunk: int | None
    score: Score
    max_area: float | None
    nms: float | None
    class_agnostic: bool
    max_detections: int | None
    tile: int | None


@dataclass(frozen=True)
class Options:
    """Checked options of `Model.detect`. Create them with `checked`.

    Attributes:
        threshold: score that a detection must exceed; or {label: score}, where other labels have the default.
        text_threshold: probability that a token must exceed to become part of `Detections.phrases`.
        size: (shortest, longest) edge; None for the checkpoint's.
        chunk: largest number of phrases of a prompt; None for as many as fit.
        score: "max" or "mean".
        max_area: largest fraction of the image that a box may cover; None for no limit.
        nms: IoU of the non-maximum suppression; None for none.
        class_agnostic: whether boxes of different labels suppress each other, too.
        max_detections: largest number of detections of an image; None for no limit.
        tile: side of a tile in pixels; None for the whole image only.
    """

    threshold: float | dict[str, float]
    text_threshold: float
    size: tuple[int, int] | None
    chunk: int | None
    score: str
    max_area: float | None
    nms: float | None
    class_agnostic: bool
    max_detections: int | None
    tile: int | None

    def thresholds(self, phrases: Sequence[str]) -> float | np.ndarray:
        """Return the threshold of each phrase of a prompt, [P]; one number if all have the same."""
        if not isinstance(self.threshold, dict):
            return self.threshold
        return np.array([self.threshold.get(as_label(phrase), THRESHOLD) for phrase in phrases])

    def check_phrases(self, phrases: Iterable[str]) -> None:
        """Check that each threshold is that of a phrase.

        Args:
            phrases: the phrases of all prompts of a call.

        Raises:
            ArgumentError: if a threshold has another key.
        """
        if isinstance(self.threshold, dict):
            labels = {as_label(phrase): phrase for phrase in phrases}
            if unknown := [key for key in self.threshold if key not in labels]:
                raise ArgumentError("threshold must have phrases of the prompt as keys; got "
                                    f"{brief(unknown[0])}. The phrases are {brief(list(labels.values()))}")

    def select(self, found: Any) -> Any:
        """Apply `max_area`, then `nms`, then `max_detections`.

        Args:
            found: the `Detections` of an image above their thresholds.

        Returns:
            The selected ones.
        """
        if self.max_area is not None:
            found = found.filter(max_area=self.max_area)
        if self.nms is not None:
            found = found.nms(self.nms, class_agnostic=self.class_agnostic)
        return found if self.max_detections is None else found.top(self.max_detections)


def checked(*, threshold: Any, text_threshold: Any, size: Any, chunk: Any, score: Any, max_area: Any, nms: Any,
            class_agnostic: Any, max_detections: Any, tile: Any) -> Options:
    """Check the options of `Model.detect`, which documents them.

    Returns:
        The options, as plain Python values.

    Raises:
        ArgumentError: if one has a wrong type or is out of range.
    """
    if not isinstance(score, str) or score not in SCORES:
        raise ArgumentError(f'score must be "max" or "mean"; got {brief(score)}')
    check_flag(class_agnostic, "class_agnostic")
    if class_agnostic and nms is None and tile is None:
        raise ArgumentError("class_agnostic=True needs nms or tile, the suppression that it changes; got neither. Give "
                            "for example nms=0.7")
    if tile is not None and check_count(tile, "tile") < MIN_TILE:
        raise ArgumentError(f"tile must be a side of {MIN_TILE} pixels or more; got {tile}. Use a larger tile: the "
                            "number of forward passes grows with the inverse of its square")
    suppression = TILE_NMS if nms is None and tile is not None else nms
    return Options(
        threshold=(_thresholds(threshold) if isinstance(threshold, Mapping)
                   else check_fraction(threshold, "threshold")),
        text_threshold=check_fraction(text_threshold, "text_threshold"),
        size=checked_size(size),
        chunk=_optional(check_count, chunk, "chunk"),
        score=score,
        max_area=_optional(check_area, max_area, "max_area"),
        nms=_optional(check_fraction, suppression, "nms"),
        class_agnostic=bool(class_agnostic),
        max_detections=_optional(check_count, max_detections, "max_detections"),
        tile=_optional(check_count, tile, "tile"))


def is_number(value: object) -> bool:
    """Return whether a value is an int or a float, of Python or NumPy, and not NaN."""
    return (isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            and bool(value == value))


def check_fraction(value: Any, name: str) -> float:
    """Return a number from 0 to 1 as a float.

    Args:
        value: the value.
        name: name of the argument, for the message.

    Raises:
        ArgumentError: if it is anything else.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ArgumentError(f"{name} must be a number from 0 to 1; got {brief(value)}")
    return float(value)


def check_area(value: Any, name: str) -> float:
    """Return a fraction of an image, above 0 and at most 1, as a float.

    Args:
        value: the value.
        name: name of the argument, for the message.

    Raises:
        ArgumentError: if it is anything else.
    """
    if not is_number(value) or not 0 < value <= 1:
        raise ArgumentError(f"{name} must be a fraction of the image, above 0 and at most 1; got {brief(value)}")
    return float(value)


def check_count(value: Any, name: str) -> int:
    """Return a whole number of 1 or more as an int.

    Args:
        value: the value.
        name: name of the argument, for the message.

    Raises:
        ArgumentError: if it is anything else.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{name} must be a whole number of 1 or more; got {brief(value)}")
    return int(value)


def check_flag(value: Any, name: str) -> None:
    """Refuse a value that is neither True nor False.

    Args:
        value: the value.
        name: name of the argument, for the message.

    Raises:
        ArgumentError: if it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False; got {brief(value)}")


def checked_size(size: Any) -> tuple[int, int] | None:
    """Return (shortest, longest) edge as ints, or None.

    Args:
        size: the argument `size` of `Model.detect`.

    Raises:
        ArgumentError: if it is anything else.
    """
    if size is None:
        return None
    edges = list(size) if isinstance(size, (list, tuple)) else [size]
    all_ints = all(isinstance(edge, (int, np.integer)) and not isinstance(edge, bool) for edge in edges)
    if len(edges) != 2 or not all_ints or min(edges) < 1:
        raise ArgumentError(f"size must be (shortest, longest) edge in pixels, such as (800, 1333); got {brief(size)}")
    shortest, longest = map(int, edges)
    return shortest, longest


def _optional(check, value, name):
    return None if value is None else check(value, name)


def _thresholds(values):
    """{label: threshold} from a mapping with phrases in the caller's wording as keys."""
    thresholds: dict[str, float] = {}
    for phrase, value in values.items():
        if not isinstance(phrase, str):
            raise ArgumentError(f"threshold must have phrases of the prompt as keys; got {brief(phrase)}")
        if (label := as_label(phrase)) in thresholds:
            raise ArgumentError(f"threshold must have each phrase once; {brief(phrase)} is given twice, in different "
                                "spellings. Keep one of them")
        thresholds[label] = check_fraction(value, f"threshold of {brief(phrase)}")
    return thresholds

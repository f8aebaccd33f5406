"""Typical uses of the public API, with the types that a type checker must infer. This file is checked, not run.

The lines at the end must be errors: mypy reports a `type: ignore` that ignores nothing.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from PIL import Image

import minigdino
from minigdino import Config, Detection, Detections, ImageError, Model

array: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros((4, 4, 3), np.uint8)
names = ["a.png", "b.png"]


def photos() -> Iterator[Path]:
    """Yield paths, as a generator of a user does."""
    yield Path("a.png")


model = minigdino.load("shapes", precision="high")
assert_type(model, Model)
assert_type(Model.random(Config(), seed=1), Model)

assert_type(model.detect("a.png", "a cat."), Detections)
assert_type(model.detect(b"", "a cat."), Detections)
assert_type(model.detect(Path("a.png"), ["a cat"], threshold=0.3, size=(400, 600)), Detections)
assert_type(model.detect(array, [["a cat"]]), Detections)
assert_type(model.detect(BytesIO(b""), "a cat"), Detections)
assert_type(model.detect(Image.new("RGB", (3, 3)), "a cat"), Detections)
with open("a.png", "rb") as file:
    assert_type(model.detect(file, "a cat"), Detections)
    assert_type(model.detect([file, file], "a cat"), list[Detections])
assert_type(model.detect(["a.png", array, Path("x")], "a cat"), list[Detections])
assert_type(model.detect(("a.png", "b.png"), "a cat"), list[Detections])
assert_type(model.detect(names, "a cat"), list[Detections])
assert_type(model.detect(photos(), "a cat"), Iterator[Detections])
assert_type(model.detect(map(Image.open, names), "a cat"), Iterator[Detections])
assert_type(model.detect("a.png", "a cat", errors="return"), Detections | ImageError)
assert_type(model.detect(names, "a cat", errors="return"), list[Detections | ImageError])
assert_type(model.detect(Path().glob("*"), "a cat", errors="return"), Iterator[Detections | ImageError])
assert_type(model.detect("a.png", names, threshold={"a cat": 0.4}, chunk=40, score="mean", tile=640), Detections)
assert_type(model.detect(names, "a cat", max_area=0.5, nms=0.7, max_detections=3), list[Detections])
assert_type(minigdino.detect(photos(), names, nms=0.7, class_agnostic=True, chunk=2), Iterator[Detections])
assert_type(minigdino.detect("a.png", "a cat.", model="shapes"), Detections)
assert_type(minigdino.detect(names, "a cat.", model=model, device="cpu"), list[Detections])
assert_type(minigdino.detect(photos(), "a cat.", errors="return"), Iterator[Detections | ImageError])

assert_type(Detections(array, array, ["a"], array, ["a"], (4, 4)).labels == "a", np.ndarray)
assert_type(Detections(array, array, labels=("a",), label_ids=array, phrases=iter("a"), image_size=(4, 4)), Detections)

found = model.detect("a.png", "a cat.")
assert_type(found[0], Detection)
assert_type(found[1:], Detections)
assert_type(found[found.scores > 0.5], Detections)
assert_type([d.label for d in found], list[str])
assert_type(found[found.labels == "a cat"], Detections)
assert_type(found.labels[0], str)
assert_type(found.filter(["a cat"], threshold=0.4), Detections)
assert_type(found.filter(threshold={"a cat": 0.4}, max_area=0.5).nms(0.7, class_agnostic=True).top(3), Detections)
assert_type(found.crops(), list[Image.Image])
assert_type(found.plot(), Image.Image)
assert_type(found.to_json(indent=2), str)
with minigdino.use("reference"), minigdino.trace():
    assert_type(model.forward(model.preprocess("a.png"), [101, 102]), minigdino.Output)
    assert_type(model.forward(array, model.tokenize("a cat.").ids, selected=array), minigdino.Output)
losses = model.loss("a.png", ["a cat", "a dog"], [(0, 0, 9, 9), (0.5, 1, 9, 9)], ["a cat", 1], details=True)
assert_type(losses, minigdino.Losses)
assert_type(model.loss(array, "a cat.", found.boxes, found.labels).total, float)
assert_type(model.loss(array, "a cat.", found.boxes, found.label_ids).terms, dict[str, float])

model.detect("a.png", "a cat", thresold=0.3)  # type: ignore[call-overload]
model.detect("a.png", "a cat", errors="ignore")  # type: ignore[call-overload]
model.detect("a.png", "a cat", score="median")  # type: ignore[call-overload]
model.detect(3, "a cat")  # type: ignore[call-overload]
Detections(array, array, 3, array, ["a"], (4, 4))  # type: ignore[arg-type]

"""Annotation files for training: COCO-format JSON or ODVG JSON Lines, read as a list of samples.

B annotated boxes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.json_file import is_folder, read_text, status, unique
from ..errors import ArgumentError, ImageError, brief
from ..files import MAX_CATEGORIES, MAX_FLOAT, categories_in, known_name
from ..image import is_image, read_size
from ..json_object import JsonObject
from ..prompt import as_label
from ..targets import checked_boxes, clipped, has_area

FORMATS = ('expected COCO annotations, {"images": [...], "annotations": [...], "categories": [...]}, or ODVG, a line '
           '{"filename": ..., "detection": {"instances": [...]}} for each image')
SPACES = re.compile(r"[ \t\r\n]*")  # of JSON
COCO, CORNERS = "[left, top, width, height]", "[left, top, right, bottom]"


@dataclass(frozen=True, eq=False)
class Sample:
    """An annotated image.

    Attributes:
        path: the image file.
        boxes: [B, 4] float32 (left, top, right, bottom) in pixels of the upright image, and inside it.
        labels: B phrases; the same phrase for all boxes of a category.
    """

    path: str
    boxes: np.ndarray
    labels: tuple[str, ...]


@dataclass
class _Entry:
    """The annotations of an image, before its file is read."""

    place: str  # in the annotation file, for error messages
    name: str
    size: tuple[int, int] | None  # (width, height), if the entry has both
    boxes: list[list[float]] = field(default_factory=list)  # (left, top, right, bottom)
    places: list[str] = field(default_factory=list)  # of the boxes
    labels: list[str] = field(default_factory=list)
    captioned: bool = False  # an image can have several captions, each with an entry

    def add(self, place: str, corners: list[float], label: str) -> None:
        """Add a box."""
        self.boxes.append(corners)
        self.places.append(place)
        self.labels.append(label)


def read(source: str | Path, images: str | Path | None = None) -> list[Sample]:
    """Read annotations, and check them together with the image files. Pixels are not decoded.

    Boxes are clipped to the image. Labels that differ only in case, in spaces around them or in dots at their end are
    the same label, in the wording that comes first in the file.

    Args:
        source: a file in one of two formats.

            - COCO: a JSON object with "images", "annotations" and "categories". Annotations with "iscrowd": 1 are
              skipped, since they mark groups of objects.
            - ODVG: a JSON object per line, with "filename" and "detection" or "grounding".

        images: folder of the image files; None for the folder of `source`.

    Returns:
        A sample for each image in the order of the file, also for images without boxes. An image with several captions
        in an ODVG file has a sample for each.

    Raises:
        ArgumentError: if the file cannot be read or has another format; if it has no images, or one twice; if an entry
            is invalid, or refers to an unknown image or category; if an image file is missing or unreadable, or does
            not have the size in the file; or if a box has no area inside its image.
    """
    try:
        text = read_text(source, MAX_CATEGORIES)
    except FileNotFoundError:
        raise ArgumentError(f"{source}: no such file. Give the path of an annotation file") from None
    except (OSError, ValueError) as error:
        if is_image(source):
            raise ArgumentError(f"{source}: {FORMATS}; got an image. Give the file with its annotations") from None
        raise ArgumentError(f"{source}: not a readable annotation file ({brief(error)}); {FORMATS}. Check the "
                            "file") from None
    folder = os.path.dirname(source) if images is None else os.fspath(images)
    if not is_folder(folder or os.curdir):
        raise ArgumentError(f"{folder}: expected the folder of the images; there is none. Check the path")
    entries, form = _entries(text, source)
    paths = [os.path.join(folder, entry.name) for entry in entries]
    _check_names(entries, paths, source)
    return [_sample(entry, path, form) for entry, path in zip(entries, paths)]


def of_image(content: dict[str, Any], source: str | Path, image: str | Path) -> Sample:
    """Return the annotations of one image in the content of a COCO file.

    Args:
        content: the JSON object.
        source: the file, used in error messages.
        image: path of the image. Its entry is the one whose "file_name" is the longest end of this path.

    Raises:
        ArgumentError: if the file has no entry of the image, or several; or as `read` does.
    """
    entries = _coco(JsonObject(content, str(source)))
    names = [entry.name for entry in entries]
    if (name := known_name(os.path.abspath(image), names)) is None or names.count(name) > 1:
        got = "none" if name is None else f"{names.count(name)} of {brief(name)}"
        raise ArgumentError(f'{source}: expected one entry in "images" for {image}; got {got}. The file has '
                            f"{', '.join(map(brief, names[:3]))}{', ...' * (len(names) > 3)}. Give the file with the "
                            "annotations of this image")
    return _sample(entries[names.index(name)], os.fspath(image), COCO)


def checked(samples: Sequence[Sample], place: str) -> list[Sample]:
    """Check samples that were made in Python, as `read` checks those of a file. Pixels are not decoded.

    Args:
        samples: the annotated images.
        place: what has the samples, used in error messages.

    Returns:
        The samples, with boxes in float32, clipped to the image.

    Raises:
        ArgumentError: if the samples have another type; if none has a box; or if the boxes or labels of one are not
            those of a `Sample`, or their numbers differ. The message names the image.
        ImageError: if an image file is missing or unreadable.
    """
    if not isinstance(samples, Sequence) or not all(isinstance(sample, Sample) for sample in samples):
        raise ArgumentError(f"{place}: expected a list of Sample; got {brief(samples)}. Read annotations with "
                            "minigdino.learning.annotations.read")
    found = [_checked(sample) for sample in samples]
    need_boxes(found, place)
    return found


def _checked(sample):
    if not isinstance(sample.path, (str, os.PathLike)):
        raise ArgumentError(f"expected the path of an image file in a Sample; got {brief(sample.path)}. Write the "
                            "image to a file")
    size = read_size(sample.path)
    try:
        inside = checked_boxes(sample.boxes, sample.labels, size)
    except ArgumentError as error:
        raise ArgumentError(f"{sample.path}: {error}") from None
    if others := [label for label in sample.labels if not isinstance(label, str)]:
        raise ArgumentError(f"{sample.path}: expected a phrase for each box; got {brief(others[0])}. Correct the label")
    return replace(sample, boxes=inside.astype(np.float32), labels=tuple(sample.labels))


def need_boxes(samples: Sequence[Sample], place: str | Path) -> None:
    """Check that annotations have a box.

    Args:
        samples: the annotated images.
        place: what has the annotations, used in the error message.

    Raises:
        ArgumentError: if no image has a box.
    """
    if not any(len(sample.labels) for sample in samples):
        got = f"{len(samples)} image{'s' * (len(samples) != 1)} without a box" if samples else "no image"
        raise ArgumentError(f"{place}: expected at least one image with a box; got {got}. Add the boxes of objects")


def _entries(text, source) -> tuple[list[_Entry], str]:
    """The entries of a file, and the order of the numbers in its boxes."""
    first, rest = _first(text, source)
    if isinstance(first, dict) and "filename" in first:
        return list(_odvg(text, source)), CORNERS
    if isinstance(first, dict) and "images" in first and not rest:
        return _coco(JsonObject(first, str(source))), COCO
    raise ArgumentError(f"{source}: {FORMATS}; got {brief(first)}{' and more' if rest else ''}. Convert the file")


def _first(text, source):
    """The first JSON value of a text, and whether more text follows. The values of JSON Lines are separate."""
    try:
        value, stop = json.JSONDecoder(object_pairs_hook=unique).raw_decode(text, _after_spaces(text, 0))
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{source}: {FORMATS}; got no JSON ({brief(error)}). Check the file") from None
    return value, _after_spaces(text, stop) < len(text)


def _after_spaces(text, start):
    match = SPACES.match(text, start)
    assert match is not None  # the pattern matches any text
    return match.end()


def _coco(file: JsonObject) -> list[_Entry]:
    images: dict[int, _Entry] = {}
    for image in file.objects("images"):
        entry = _Entry(image.place, image.text("file_name"), image.size())
        if images.setdefault(number := image.number("id"), entry) is not entry:
            raise ArgumentError(f"{image.place}: expected a different id for each image; "
                                f"{brief(images[number].name)} has the id {brief(number)}, too. Correct the entry")
    if not images:
        raise ArgumentError(f"{file.place}: expected at least one image; got none. Add the images to the file")
    labels = _labels(file)
    for annotation in file.objects("annotations"):
        if annotation.flag("iscrowd"):
            continue
        entry = images[annotation.reference("image_id", images, "images")]
        x, y, width, height = annotation.field("bbox", _is_box, COCO)
        label = labels[annotation.reference("category_id", labels, "categories")]
        entry.add(annotation.place, [x, y, x + width, y + height], label)
    return list(images.values())


def _labels(file: JsonObject) -> dict[int, str]:
    """{category id: label}"""
    categories = categories_in(file.field("categories", lambda value: isinstance(value, list), "a list"), file.place)
    if empty := [name for name in categories if not as_label(name)]:
        raise ArgumentError(f"{file.place}: expected a text as the name of a category; got {brief(empty[0])}. Correct "
                            "the name")
    wordings: dict[str, str] = {}
    return {number: _label(name, wordings) for name, number in categories.items()}


def _label(text, wordings):
    """The label of a text. Of wordings that differ only in case, the first is used."""
    label = as_label(text)
    return wordings.setdefault(label.lower(), label)


def _odvg(text, source) -> Iterator[_Entry]:
    wordings: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{source}: line {number}"
        try:
            image = JsonObject(json.loads(line, object_pairs_hook=unique), place)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"{place}: expected a JSON object; got another text ({brief(error)}). Correct the "
                                "line") from None
        entry = _Entry(place, image.text("filename"), image.size(), captioned="grounding" in image)
        if entry.captioned == ("detection" in image):
            raise ArgumentError(f'{place}: expected either "detection" or "grounding"; got '
                                f"{'both' if entry.captioned else 'neither'}. Correct the line")
        found = _phrases(image.part("grounding")) if entry.captioned else _instances(image.part("detection"))
        for box_place, corners, label in found:
            entry.add(box_place, corners, _label(label, wordings))
        yield entry


def _instances(detection) -> Iterator[tuple]:
    for instance in detection.objects("instances"):
        yield instance.place, instance.field("bbox", _is_box, CORNERS), instance.text("category")


def _phrases(grounding) -> Iterator[tuple]:
    """Boxes of the phrases of a caption. A phrase can have several."""
    for region in grounding.objects("regions"):
        boxes = region.field("bbox", lambda value: _is_box(value) or _are_boxes(value), f"{CORNERS}, or a list of them")
        for box in [boxes] if _is_box(boxes) else boxes:
            yield region.place, box, region.text("phrase")


def _is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(
        type(number) in (int, float) and -MAX_FLOAT <= number <= MAX_FLOAT for number in value)  # no NaN


def _are_boxes(value):
    return isinstance(value, list) and all(map(_is_box, value))


def _check_names(entries: list[_Entry], paths: Iterable[str], source) -> None:
    """Check that the file of each image exists, and that no image has two entries."""
    first: dict[str, _Entry] = {}
    missing = []
    for entry, path in zip(entries, paths):
        other = first.setdefault(os.path.normpath(path), entry)
        if other is entry:
            missing += [] if status(path) else [(entry, path)]
        elif not (entry.captioned and other.captioned):
            raise ArgumentError(f"{entry.place}: expected each image once; {brief(entry.name)} has another entry, "
                                f"{other.place.removeprefix(f'{source}: ')}. Put its boxes into one of the two")
    if missing:
        entry, path = missing[0]
        raise ArgumentError(f"{entry.place}: expected an image file at {path}; {len(missing)} of {len(first)} "
                            "images are missing. Give the folder of the images, or remove the entries")


def _sample(entry: _Entry, path: str, form: str) -> Sample:
    try:
        size = read_size(path)
    except ImageError as error:
        raise ArgumentError(f"{entry.place}: {error}") from None
    if entry.size not in (None, size):
        turned = " A file is rotated by its EXIF orientation first." if entry.size == size[::-1] else ""
        raise ArgumentError(f'{entry.place}: expected the size of the upright image {path} as "width" and "height", '
                            f"{size[0]} and {size[1]}; got {brief(entry.size[0])} and {brief(entry.size[1])}.{turned} "
                            "Convert the boxes to pixels of this image")
    boxes = np.array(entry.boxes, np.float64).reshape(-1, 4)
    inside = clipped(boxes, size).astype(np.float32)
    if len(bad := np.flatnonzero(~has_area(inside, size))):
        raise ArgumentError(f"{entry.places[bad[0]]}: expected a box {form} with an area inside the image {path} of "
                            f"{size[0]} x {size[1]} pixels; got one from {brief(boxes[bad[0], :2].tolist())} to "
                            f"{brief(boxes[bad[0], 2:].tolist())}. Correct it, or remove it")
    return Sample(path, inside, tuple(entry.labels))

"""Annotation files in the format of COCO or LVIS, read as arrays for evaluation.

A annotations.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.json_file import read_text, unique
from ..errors import ArgumentError, brief
from ..files import MAX_CATEGORIES
from ..image import is_image
from ..json_object import JsonObject

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: in at most 10, at most 100, or more images of LVIS's train set
BOX = "[left, top, width, height] with a width and a height of 0 or more"
UNUSED = "segmentation"  # nine tenths of a file; dropped while it is parsed


@dataclass(frozen=True)
class Category:
    """A class of objects.

    Attributes:
        id: its number in the file.
        name: its name as the file has it.
        frequency: "r" (rare), "c" (common) or "f" (frequent) in LVIS; None in COCO.
    """

    id: int
    name: str
    frequency: str | None = None


@dataclass(frozen=True)
class Picture:
    """An image of the set.

    Attributes:
        id: its number in the file.
        file_name: its path in the folder of images, with "/" between its parts.
        width: width of the upright image, in pixels.
        height: height of the upright image, in pixels.
        absent: LVIS: ids of the categories that are known to be absent. Empty in COCO.
        not_exhaustive: LVIS: ids of the categories of which some objects are not annotated. Empty in COCO.
        prompt: ids of the categories that the prompt for this image names, in order; None for all categories.
        phrases: wording of each of them in this prompt; None for the names of the categories.
    """

    id: int
    file_name: str
    width: int
    height: int
    absent: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()
    prompt: tuple[int, ...] | None = None
    phrases: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of a set of images.

    Attributes:
        pictures: the images, in the order of the file.
        categories: the categories, in the order of the file.
        ids: [A] int64 ids of the annotations.
        image_ids: [A] int64 id of the image of each annotation.
        category_ids: [A] int64 id of the category of each annotation.
        boxes: [A, 4] float64 (left, top, width, height) in pixels of the upright image.
        areas: [A] float64 area of each object in pixels: of its mask, in the published files.
        crowd: [A] bool: whether a box surrounds a group of objects.
    """

    pictures: list[Picture]
    categories: list[Category]
    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    def only(self, image_ids: Collection[int]) -> GroundTruth:
        """Return the part of a set that belongs to some images. All categories stay.

        Args:
            image_ids: ids of the images; unknown ones are ignored.

        Returns:
            Their pictures and annotations, in the order of the file.
        """
        wanted = set(image_ids)
        rows = np.array([i in wanted for i in self.image_ids.tolist()], bool)
        return GroundTruth([picture for picture in self.pictures if picture.id in wanted], self.categories,
                           self.ids[rows], self.image_ids[rows], self.category_ids[rows], self.boxes[rows],
                           self.areas[rows], self.crowd[rows])


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read an annotation file of COCO or LVIS, or another one of the same format.

    A file is LVIS's if its categories have a "frequency". The name of an image is then "coco_url" without all but the
    last two parts, such as "val2017/000000397133.jpg", because "file_name" lacks the folder or is missing. In other
    files it is "file_name".

    An annotation without "area" has the area of its box, and one without "iscrowd" is a single object. Boxes are taken
    as they are, also where they leave the image. "segmentation" is not read.

    An image can have a list "prompt" with ids of categories: evaluation then prompts for these categories only. A list
    "phrases" gives their wording in this prompt. These fields are additions of minigdino.

    Args:
        path: the file, at most 512 MB.

    Returns:
        The annotations.

    Raises:
        ArgumentError: if the file cannot be read, has another format, or has no images, categories or annotations; or
            if an entry repeats an id, refers to an unknown image or category, lacks a field, or has a field that is
            invalid, such as a box with a negative width.
    """
    file = read_object(path)
    categories = {category.id: category for category in _categories(file)}
    is_lvis = any(category.frequency for category in categories.values())
    pictures = {picture.id: picture for picture in _pictures(file, categories, is_lvis)}
    rows = list(_rows(file, pictures, categories))
    ids, image_ids, category_ids, boxes, areas, crowd = zip(*rows)
    return GroundTruth(list(pictures.values()), list(categories.values()), np.array(ids, np.int64),
                       np.array(image_ids, np.int64), np.array(category_ids, np.int64), np.array(boxes, np.float64),
                       np.array(areas, np.float64), np.array(crowd, bool))


def read_object(path: str | Path) -> JsonObject:
    """Parse an annotation file that is a JSON object. Masks ("segmentation") are left out.

    Args:
        path: the file, at most 512 MB.

    Returns:
        The object.

    Raises:
        ArgumentError: if the file cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(read_text(path, MAX_CATEGORIES), object_pairs_hook=_without_masks)
    except FileNotFoundError:
        raise ArgumentError(f"{path}: no such file. Give the path of an annotation file") from None
    except (OSError, ValueError, RecursionError) as error:
        if is_image(path):
            raise ArgumentError(f'{path}: expected annotations, a JSON file with "images" and "annotations"; got an '
                                "image. Give the file with its annotations") from None
        raise ArgumentError(f"{path}: expected annotations, a JSON file with \"images\" and \"annotations\"; it is not "
                            f"readable ({brief(error)}). Check the file") from None
    return JsonObject(values, str(path))


def _without_masks(pairs):
    return unique([pair for pair in pairs if pair[0] != UNUSED])


def _categories(file):
    seen: set[int] = set()
    for entry in filled(file, "categories"):
        number = new_id(entry, seen)
        frequency = None
        if "frequency" in entry:
            frequency = entry.field("frequency", lambda value: value in FREQUENCIES, '"r", "c" or "f"')
        yield Category(number, entry.field("name", lambda value: isinstance(value, str), "a text"), frequency)


def _pictures(file, categories, is_lvis):
    seen: set[int] = set()
    for entry in filled(file, "images"):
        number, (width, height) = new_id(entry, seen), image_size(entry)
        absent, not_exhaustive = (frozenset(_known_ids(entry, name, categories)) if is_lvis else frozenset()
                                  for name in ("neg_category_ids", "not_exhaustive_category_ids"))
        prompt = _prompt(entry, categories) if "prompt" in entry else None
        phrases = _phrases(entry, prompt) if "phrases" in entry else None
        yield Picture(number, _file_name(entry, is_lvis), width, height, absent, not_exhaustive, prompt, phrases)


def _file_name(entry, is_lvis):
    if not is_lvis or "coco_url" not in entry:
        return entry.text("file_name")
    return "/".join(entry.text("coco_url").split("/")[-2:])


def _known_ids(entry, name, categories):
    return entry.field(name, lambda values: isinstance(values, list) and all(
        type(value) is int and value in categories for value in values), "a list of category ids")


def _prompt(entry, categories):
    ids = _known_ids(entry, "prompt", categories)
    if not 0 < len(ids) == len(set(ids)):
        raise ArgumentError(f'{entry.place}: expected at least one category id, and each once, as "prompt"; got '
                            f"{brief(ids)}. Correct the entry")
    return tuple(ids)


def _phrases(entry, prompt):
    n = len(prompt or ())
    return tuple(entry.field("phrases", lambda values: isinstance(values, list) and len(values) == n and all(
        isinstance(value, str) for value in values), f'a list of {n} texts, one for each id of "prompt",'))


def _rows(file, pictures, categories):
    """Annotations as tuples: id, image id, category id, box, area, crowd."""
    seen: set[int] = set()
    for entry in filled(file, "annotations"):
        number = new_id(entry, seen)
        image = entry.reference("image_id", pictures, "images")
        category = entry.reference("category_id", categories, "categories")
        box = entry.field("bbox", is_box, BOX)
        area = entry.field("area", is_extent, "a number of 0 or more") if "area" in entry else box[2] * box[3]
        yield number, image, category, box, area, entry.flag("iscrowd")


def filled(file: JsonObject, name: str) -> Iterator[JsonObject]:
    """Return the objects of a list in a file.

    Raises:
        ArgumentError: if there is no list, or it is empty.
    """
    if not file.field(name, lambda value: isinstance(value, list), "a list"):
        raise ArgumentError(f"{file.place}: expected at least one object in {name}; got none. Evaluation needs "
                            "annotated images; check that this is the file with the annotations")
    return file.objects(name)


def new_id(entry: JsonObject, seen: set[int]) -> int:
    """Return the id of an entry, and add it to the ids of the entries before it.

    Raises:
        ArgumentError: if the id is no int of 64 bits, or another entry has it.
    """
    number = entry.field("id", _is_int64, "an int")
    if number in seen:
        raise ArgumentError(f"{entry.place}: expected a different id for each entry; got {number} for the second time. "
                            "Correct the id, or remove the entry")
    seen.add(number)
    return number


def image_size(entry: JsonObject) -> tuple[int, int]:
    """Return width and height of an image.

    Raises:
        ArgumentError: if one of them is missing, or no positive int.
    """
    size = entry.size()
    if size is None:
        raise ArgumentError(f'{entry.place}: expected the size of the image as "width" and "height"; got no such '
                            "fields. Correct the entry")
    return size


def is_box(value: Any) -> bool:
    """Return whether a value is a box (left, top, width, height) with finite numbers, and no negative extent."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value)) and min(value[2:]) >= 0


def is_extent(value: Any) -> bool:
    """Return whether a value is a finite number that is not negative."""
    return _is_finite(value) and value >= 0


MAX_NUMBER = 1e18  # its square is finite, and no image is larger


def _is_finite(value):
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_int64(value):
    return type(value) is int and -(2**63) <= value < 2**63

"""Detection in many image files, for `minigdino detect`: find images, write JSON Lines and COCO files."""

from __future__ import annotations

import glob
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image

from .checkpoints.json_file import read_json
from .detector import Model
from .errors import ArgumentError, CheckpointError, Error, ImageError, brief
from .results import Detections

STDIN = "-"
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow registers, but cannot decode without plugins


def find_images(sources: Sequence[str]) -> list[str]:
    """List the images of some sources.

    Args:
        sources: each one of

            - a file, listed as given, whether it exists or not;
            - a folder: the images in it, sorted by name; subfolders are not searched;
            - a glob pattern: the matching files, sorted; "**" matches any number of folders;
            - "-", for an image on standard input.

    Returns:
        Paths, and "-" for standard input, in the order of the sources.

    Raises:
        ImageError: if a folder contains no images, or a pattern matches no file.
    """
    found: list[str] = []
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - STUBS}
    for source in sources:
        if source != STDIN and Path(source).is_dir():
            images = sorted(str(p) for p in Path(source).iterdir() if p.suffix.lower() in endings and p.is_file())
            if not images:
                raise ImageError(f"{source}: expected a folder with images, such as .jpg or .png files; found none")
            found += images
        elif any(c in source for c in "*?[") and not Path(source).exists():
            if not (matches := sorted(glob.glob(source, recursive=True))):
                raise ImageError(f"{source}: the pattern matches no file")
            found += matches
        else:
            found.append(source)
    return found


def detect_each(model: Model, images: Sequence[str], text, *, on_result: Callable[[str, Detections | Error], None],
                progress: TextIO | None = None, **options) -> int:
    """Detect in one image after the other. An image that cannot be read does not stop the others.

    Args:
        model: the model.
        images: paths, or "-" for standard input, as from `find_images`.
        text: the prompt for all images, as in `Model.detect`.
        on_result: called after each image with its name and its `Detections`, or the `ImageError`.
        progress: terminal on which to show the progress; None for no display.
        options: keyword arguments of `Model.detect`.

    Returns:
        The number of images that failed.

    Raises:
        Error: as `Model.detect` does, except `ImageError`.
    """
    failed, start = 0, time.monotonic()
    for i, image in enumerate(images):
        try:
            result: Detections | Error = model.detect(_opened(image), text, **options)
        except ImageError as error:
            failed += 1
            result = error
        on_result(image, result)
        if progress:
            each = (time.monotonic() - start) / (i + 1)
            left = each * (len(images) - i - 1)
            progress.write(f"\r\033[K{i + 1}/{len(images)} images, {each:.1f} s each, {left:.0f} s left")
            progress.flush()
    if progress:
        progress.write("\n")
    return failed


def _opened(image):
    return io.BytesIO(sys.stdin.buffer.read()) if image == STDIN else image


def record(image: str, result: Detections | Error) -> dict:
    """Return the JSON object of one image.

    Args:
        image: name of the image.
        result: its detections, or the error.

    Returns:
        {"image", "width", "height", "detections"} (see `Detections.to_dict`), or {"image", "error"}.
    """
    return {"image": image, "error": str(result)} if isinstance(result, Error) else {"image": image, **result.to_dict()}


class JsonLines:
    """An append-only, resumable JSON Lines file, with one line per image.

    Each line is written and the file closed as soon as the image is done. An interrupted run loses at most the line
    that was being written.

    Args:
        path: the file.
        resume: whether to continue an existing file.

    Attributes:
        path: the file.
        done: names of the images that the file already has.

    Raises:
        ArgumentError: if the file exists and `resume` is False, if it has a line of another format, or if it cannot
            be written.
    """

    def __init__(self, path: str | Path, resume: bool = False):
        self.path = Path(path)
        if self.path.exists() and not resume:
            raise ArgumentError(f"{path} exists already. Give --resume to continue it, or choose another name")
        self._append("")
        self.done = set(self._finished())

    def _finished(self) -> Iterator[str]:
        """Names of the images in complete lines. An incomplete last line is removed from the file."""
        data = self.path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):
            self.path.write_bytes(complete)
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                yield json.loads(line)["image"]
            except (ValueError, KeyError, TypeError):
                raise ArgumentError(f'{self.path}: each line must be a JSON object with "image"; line {number} is not. '
                                    "Choose another name for --jsonl") from None

    def write(self, line: dict) -> None:
        """Append one line.

        Args:
            line: the JSON object, as from `record`.

        Raises:
            ArgumentError: if the file cannot be written, for example because the disk is full.
        """
        self._append(json.dumps(line) + "\n")

    def _append(self, text):
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ArgumentError(f"{self.path}: the file cannot be written ({error.strerror}). Choose "
                                "another name for --jsonl") from None


def coco(results: Sequence[tuple[str, Detections]], categories: dict[str, int]) -> dict:
    """Convert the detections of several images to a COCO data set.

    Args:
        results: (name of the image, its detections) of each image.
        categories: {label: category id} with every phrase of the prompt.

    Returns:
        {"images", "categories", "annotations"}. Ids of images and annotations start at 1.
    """
    images, annotations = [], []
    for image_id, (name, found) in enumerate(results, start=1):
        images.append({"id": image_id, "file_name": name, "width": found.image_size[0], "height": found.image_size[1]})
        for row in found.to_coco(image_id, categories):
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
    return {"images": images, "categories": [{"id": i, "name": name} for name, i in categories.items()],
            "annotations": annotations}


def read_categories(path: str | Path) -> dict[str, int]:
    """Read category ids from a JSON file.

    Args:
        path: a file that contains {label: id}, a list of {"id", "name"}, or a COCO data set with such a list.

    Returns:
        {label: id}

    Raises:
        ArgumentError: if the file cannot be read, or has another format.
    """
    try:
        values = read_json(path)
    except CheckpointError:
        raise ArgumentError(f'{path}: not a readable JSON file of categories; expected {{"label": id}}') from None
    if isinstance(values, dict) and "categories" in values:
        values = values["categories"]
    try:
        pairs = values.items() if isinstance(values, dict) else ((entry["name"], entry["id"]) for entry in values)
        return {str(name): int(number) for name, number in pairs}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ArgumentError(f'{path}: expected {{"label": id}} or [{{"id": 1, "name": "label"}}]; got '
                            f"{brief(values)}") from None

"""Many images, one prompt: what `minigdino detect` does with files, folders, and images that cannot be read."""

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
from .errors import ArgumentError, CheckpointError, Error, ImageError
from .results import Detections

STDIN = "-"
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names and cannot read them


def find_images(sources: Sequence[str]) -> list[str]:
    """Files as given, a folder's images in order of name, what a glob matches, "-" for standard input.

    Raises ImageError for a folder without images and a pattern that matches nothing.
    """
    found: list[str] = []
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - STUBS}
    for source in sources:
        if source != STDIN and Path(source).is_dir():
            images = sorted(str(p) for p in Path(source).iterdir() if p.suffix.lower() in endings and p.is_file())
            if not images:
                raise ImageError(f"{source}: a folder without images; expected files such as .jpg or .png")
            found += images
        elif any(c in source for c in "*?[") and not Path(source).exists():
            if not (matches := sorted(glob.glob(source, recursive=True))):
                raise ImageError(f"{source}: matches no file")
            found += matches
        else:
            found.append(source)
    return found


def detect_each(model: Model, images: Sequence[str], text, *, seen: Callable[[str, Detections | Error], None],
                progress: TextIO | None = None, **options) -> int:
    """Detect in one image after the other and hand each result, or the error it met, to `seen`. -> number of errors

    An image that cannot be read does not stop the rest. With a terminal as `progress`, a line there says how far it is.
    """
    failed, start = 0, time.monotonic()
    for i, image in enumerate(images):
        try:
            result: Detections | Error = model.detect(_opened(image), text, **options)
        except ImageError as error:
            failed += 1
            result = error
        seen(image, result)
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
    """One line of JSONL: {"image", "width", "height", "detections"}, or {"image", "error"}."""
    return {"image": image, "error": str(result)} if isinstance(result, Error) else {"image": image, **result.to_dict()}


class JsonLines:
    """A file that gains one line an image, on the disk as soon as it is written, and can be gone on with."""

    def __init__(self, path: str | Path, resume: bool = False):
        """Raises ArgumentError if the file exists and is not to be resumed, or cannot be written."""
        self.path = Path(path)
        if self.path.exists() and not resume:
            raise ArgumentError(f"{path} exists; give --resume to go on with it, or another name")
        self._append("")
        self.done = set(self._finished())

    def _finished(self) -> Iterator[str]:
        """Images of the complete lines; a last line that a kill cut short is taken off the file."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                yield json.loads(line)["image"]
            except (ValueError, KeyError, TypeError):
                raise ArgumentError(f"{self.path}: line {number} is none of ours; give --jsonl another name") from None

    def write(self, line: dict) -> None:
        """Append one line. Raises ArgumentError if the file cannot be written, as when the disk is full."""
        self._append(json.dumps(line) + "\n")

    def _append(self, text):
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ArgumentError(f"{self.path}: cannot be written ({error.strerror})") from None


def coco(results: Sequence[tuple[str, Detections]], categories: dict[str, int]) -> dict:
    """A COCO data set of what was found: {"images", "categories", "annotations"}, ids of images and boxes from 1.

    categories: label -> id, of every phrase of the prompt.
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
    """Label -> id from a JSON file: such an object itself, a list of {"id", "name"}, or a COCO file with that list.

    Raises ArgumentError if it is none of these.
    """
    try:
        values = read_json(path)
    except CheckpointError:
        raise ArgumentError(f'{path}: not a readable JSON file of categories, such as {{"a cat": 17}}') from None
    if isinstance(values, dict) and "categories" in values:
        values = values["categories"]
    try:
        pairs = values.items() if isinstance(values, dict) else ((entry["name"], entry["id"]) for entry in values)
        return {str(name): int(number) for name, number in pairs}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ArgumentError(f'{path}: expected {{"label": id}} or [{{"id": 1, "name": "label"}}]') from None

"""A run of an evaluation: detect in each image of a set, and keep the raw detections on disk.

Every image is done once, whatever happens in between: a run that was killed is resumed at the image at which it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.fingerprint import fingerprint
from ..checkpoints.json_file import is_folder, status
from ..detector import Model
from ..errors import ArgumentError, ImageError
from ..files import JsonLines
from ..image import open_image, read_file
from ..line_files import SHARD
from ..runs import shard as shards
from ..runs.shard import Shard
from ..version import __version__
from .ground_truth import Picture
from .tasks import Predict, Task, fields

DETECTIONS = "detections"  # start of the file name


def file_name(shard: Shard | None = None) -> str:
    """Return the name of the file of raw detections, such as "detections-1-of-4.jsonl"."""
    return shards.file_name(DETECTIONS, shard)


def header(model: Model, annotations: str | Path, task: Task, size: Sequence[int] | None,
           shard: Shard | None = None) -> dict[str, Any]:
    """Return all that determines the detections of an image, as the header of their file.

    Args:
        model: the model.
        annotations: the annotation file.
        task: what is evaluated.
        size: (shortest, longest) edge in pixels; None for the checkpoint's.
        shard: the part of the images in this file; None for all.
    """
    return {"minigdino": __version__, "model": str(model.source),
            "fingerprint": fingerprint(model.tensors, model.config, model.settings.to_dict()),
            "annotations": digest(annotations), **task.settings(), "size": None if size is None else list(size),
            "precision": model.precision, SHARD: None if shard is None else str(shard)}


def digest(path: str | Path) -> str:
    """Return a fingerprint of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def check_images(pictures: Sequence[Picture], folder: str | Path) -> None:
    """Check that a folder has images of a set. Some may be missing, which a run reports one by one.

    Args:
        pictures: the images.
        folder: their folder.

    Raises:
        ArgumentError: if there is no such folder, or none of the images is in it.
    """
    if not is_folder(folder):
        got = "a file" if status(folder) else "no such folder"
        raise ArgumentError(f"{folder}: expected the folder of the images for --images; got {got}. Check the path")
    if not any(status(os.path.join(folder, picture.file_name)) for picture in pictures):
        raise ArgumentError(f"{folder}: expected the images of the annotations; none of the {len(pictures)} is there, "
                            f"such as {pictures[0].file_name}. Give the folder in which these names are")


def detect_each(pictures: Iterable[Picture], folder: str | Path, lines: JsonLines,
                predict: Predict) -> Iterator[tuple[Picture, ImageError | None]]:
    """Detect in the images that a file does not have yet, and write a line for each.

    An image that cannot be used gets a line with the error. It is tried again when the run is resumed.

    Args:
        pictures: the images.
        folder: their folder.
        lines: the file of raw detections.
        predict: function of a picture and its image, as from `Task.predictor`.

    Yields:
        Each image that is done, with its error or None.

    Raises:
        Error: as `Model.detect` does, but for an ImageError; or if the file cannot be written.
    """
    for picture in to_do(pictures, lines):
        error = None
        try:
            result = fields(predict(picture, opened(picture, folder)))
        except ImageError as caught:
            error = type(caught)(*caught.args)  # without the traceback, which holds the image
            result = {"error": str(error)}
        lines.write({"image": str(picture.id), "file_name": picture.file_name, **result})
        yield picture, error


def to_do(pictures: Iterable[Picture], lines: JsonLines) -> list[Picture]:
    """Return the images that a file has not, or only with an error."""
    return [picture for picture in pictures if str(picture.id) not in lines.done or str(picture.id) in lines.failed]


def opened(picture: Picture, folder: str | Path) -> Image.Image:
    """Open an image, and check that its size is that of the annotations.

    Args:
        picture: the image.
        folder: folder of the images.

    Returns:
        The upright image in RGB.

    Raises:
        ImageError: if it cannot be read, or has another size.
    """
    path = os.path.join(folder, picture.file_name)
    image = open_image(read_file(path))
    if image.size != (picture.width, picture.height):
        raise ImageError(f"{path}: expected an image of {picture.width} x {picture.height} pixels, as in the "
                         f"annotations; got {image.width} x {image.height}. Use the images of the data set")
    return image

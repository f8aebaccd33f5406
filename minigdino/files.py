"""Detection in many image files, for `minigdino detect`: find images, write JSON Lines and COCO files."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .checkpoints.json_file import open_regular, read_json
from .detector import Model
from .errors import ArgumentError, CheckpointError, Error, ImageError, brief, from_signal_handler
from .image import endings
from .results import Detections

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STDIN = "-"
MAX_STDIN = 2**30  # bytes; more than the pixels of the largest image that Pillow accepts
MAX_CATEGORIES = 2**29  # bytes; the largest COCO annotation file fits
MAX_LINE = 2**26  # bytes; a longer line is not from this program, so it is not read into memory
MAX_FLOAT = float(np.finfo(np.float32).max)


def find_images(sources: Sequence[str]) -> list[str]:
    """List the images of some sources. A path that occurs several times is listed once.

    Paths are compared as text: "a.jpg" and "./a.jpg" are two images, as they are two names in the output.

    Args:
        sources: each one of

            - a file, listed as given, whether it exists or not;
            - a folder: the images in it, sorted by name; subfolders are not searched;
            - a glob pattern: the matching files, sorted; "**" matches any number of folders;
            - "-", for an image on standard input.

    Returns:
        Different paths, and "-" for standard input, in the order of the sources.

    Raises:
        ImageError: if a folder contains no images, or a pattern matches no file.
    """
    found: list[str] = []
    for source in sources:
        if source != STDIN and os.path.isdir(source):
            if not (images := _images(source)):
                raise ImageError(f"{source}: expected a folder with images, such as .jpg or .png files; found none")
            found += images
        elif any(c in source for c in "*?[") and "\0" not in source and not os.path.exists(source):
            if not (matches := sorted(filter(os.path.isfile, _matches(source)))):
                raise ImageError(f"{source}: the pattern matches no file")
            found += matches
        else:
            found.append(source)
    return list(dict.fromkeys(found))


def _images(folder):
    """The images in a folder, sorted by name."""
    try:
        entries = list(Path(folder).iterdir())
    except OSError as error:
        raise ImageError(f"{folder}: expected a readable folder ({error.strerror}). Check its permissions") from None
    known = endings()
    return sorted(str(path) for path in entries if path.suffix.lower() in known and os.path.isfile(path))


_SEP = re.escape(os.sep + (os.altsep or ""))
RECURSIVE = re.compile(rf"(^|(?<=[{_SEP}]))(\*\*([{_SEP}]+|$))+")  # "**" as a whole part of a pattern, or several


def _matches(pattern):
    """Paths that match a pattern, as `glob.glob` finds them, except that "**" visits each folder once.

    So links to folders cannot make the search endless.
    """
    if not (recursive := RECURSIVE.search(pattern)):
        return set(glob.glob(pattern))
    head, tail = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
    tops = glob.glob(os.path.join(os.path.dirname(head), "")) if head else [""]
    return {path for folder in _folders(tops) for path in _matches(glob.escape(folder) + tail)}


def _folders(tops) -> Iterator[str]:
    """Yield folders and all folders below them, except hidden ones. Links are followed last."""
    folders, links, seen = list(tops), [], set()
    while folders or links:
        folder = (folders or links).pop()
        with contextlib.suppress(OSError):  # an unreadable folder has no matches
            status = os.stat(folder or ".")
            if (key := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(key)
            yield folder
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # a link to itself
                        if entry.is_dir() and not entry.name.startswith("."):
                            (links if entry.is_symlink() else folders).append(os.path.join(folder, entry.name, ""))


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
            end = "" if i + 1 < len(images) else "\n"
            with contextlib.suppress(OSError):  # the terminal was closed, but the run goes on
                progress.write(f"\r\033[K{i + 1}/{len(images)} images, {each:.1f} s each, {left:.0f} s left{end}")
                progress.flush()
    return failed


def _opened(image):
    if image != STDIN:
        return image
    try:
        data = sys.stdin.buffer.read(MAX_STDIN + 1) if sys.stdin else b""
    except OSError as error:
        raise ImageError(f"-: standard input cannot be read ({error.strerror}). Give the path of an image") from None
    if len(data) > MAX_STDIN:
        raise ImageError(f"-: expected an image of at most {MAX_STDIN} bytes on standard input; got more. Give the "
                         "path of an image")
    if not data:
        raise ImageError("-: expected an image on standard input, which is empty or closed. Write for example: "
                         "minigdino detect - TEXT < cat.jpg")
    return io.BytesIO(data)


def record(image: str, result: Detections | Error) -> dict:
    """Return the JSON object of one image.

    Args:
        image: name of the image.
        result: its detections, or the error.

    Returns:
        {"image", "width", "height", "detections"} (see `Detections.to_dict`), or {"image", "error"}.
    """
    return {"image": image, "error": str(result)} if isinstance(result, Error) else {"image": image, **result.to_dict()}


def detections(line: dict, path: str | Path) -> Detections:
    """Return the detections of a JSON object, as the inverse of `record`.

    Args:
        line: an object without "error".
        path: its file, used in error messages.

    Returns:
        Detections that are equal to the recorded ones, without an image.

    Raises:
        ArgumentError: if the object has another format, or a value out of range.
    """
    try:
        rows, size = line["detections"], (line["width"], line["height"])
        if not (isinstance(rows, list) and all(map(_is_detection, rows))
                and all(type(edge) is int and edge > 0 for edge in size)):
            raise ValueError
        return Detections(boxes=np.array([row["box"] for row in rows], np.float32).reshape(len(rows), 4),
                          scores=np.array([row["score"] for row in rows], np.float32).reshape(len(rows)),
                          labels=[row["label"] for row in rows],
                          label_ids=np.array([row["label_id"] for row in rows], np.int64).reshape(len(rows)),
                          phrases=[row["phrase"] for row in rows], image_size=size)
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ArgumentError(f'{path}: with --coco, each line must have "width", "height" and "detections"; the line of '
                            f"{line['image']} has another format. Choose another name for --jsonl") from None


def _is_detection(row):
    """Whether the values of an object are those of a `Detection`. Raises LookupError or TypeError for another kind."""
    return (len(row["box"]) == 4 and all(_is_number(v, -MAX_FLOAT, MAX_FLOAT) for v in row["box"])
            and _is_number(row["score"], 0, 1) and type(row["label_id"]) is int and row["label_id"] >= 0
            and isinstance(row["label"], str) and isinstance(row["phrase"], str))


def _is_number(value, low, high):
    return type(value) in (int, float) and low <= value <= high  # False for NaN


class JsonLines:
    """An append-only, resumable JSON Lines file, with one line per image.

    Each line is on the disk as soon as the image is done. An interrupted run loses at most the line that was being
    written. The file is locked until `close`, or until the process ends, so that two runs never write to it. On a file
    system without locks, the file is not locked.

    Args:
        path: the file.
        resume: whether to continue an existing file. An incomplete last line is then removed.

    Attributes:
        path: the file.
        done: names of the images that the file already has.

    Raises:
        ArgumentError: if the file exists and `resume` is False, if another process writes to it, if it has a line of
            another format, or if it cannot be written.
    """

    def __init__(self, path: str | Path, resume: bool = False):
        self.path = Path(path)
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe could wait without end
            raise ArgumentError(f"{path}: expected a regular file for --jsonl; got a folder, a pipe or a device. "
                                "Choose another name")
        exclusive = 0 if resume else os.O_EXCL
        try:
            self._file = open(path, "ab", buffering=0,  # noqa: SIM115  closed by `close`
                              opener=lambda name, flags: os.open(name, flags | exclusive, 0o666))
        except FileExistsError:
            raise ArgumentError(f"{path} exists already. Give --resume to continue it, or choose another "
                                "name") from None
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None
        try:
            if not _lock(self._file):
                raise ArgumentError(f"{path}: another process is writing to this file. Wait until it ends, or choose "
                                    "another name for --jsonl")
            self.done = self._finished()
        except BaseException:
            self.close()
            raise

    def _finished(self) -> set[str]:
        """Names of the images in complete lines. After that check, an incomplete last line is cut off."""
        names: set[str] = set()
        complete = number = 0
        try:
            with open(self.path, "rb") as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    if not line.endswith(b"\n") and _starts_a_line(line):
                        os.truncate(self._file.fileno(), complete)
                        break
                    names.add(_image_of(line))
                    complete += len(line)
        except OSError as error:
            raise self._unwritable(error) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ArgumentError(f'{self.path}: each line must be a JSON object with "image"; line {number} is not. '
                                "Choose another name for --jsonl") from None
        return names

    def records(self) -> Iterator[dict]:
        """Yield the JSON object of each line, one by one.

        Raises:
            ArgumentError: if the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                yield from map(json.loads, file)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, line: dict) -> None:
        """Append one line, and wait until it is on the disk.

        Args:
            line: the JSON object, as from `record`.

        Raises:
            ValueError: if a number is not finite, which JSON cannot represent.
            ArgumentError: if the file cannot be written, for example because the disk is full.
        """
        rest = memoryview((json.dumps(line, allow_nan=False) + "\n").encode())
        try:
            while rest:  # a disk that becomes full takes a part of the line, and refuses the rest
                rest = rest[self._file.write(rest):]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Close the file, and release its lock."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _unwritable(self, error):
        return ArgumentError(f"{self.path}: the file cannot be written ({_reason(error)}). Choose another name for "
                             "--jsonl")


def _image_of(line):
    """Name of the image of a complete line. Raises ValueError, LookupError or TypeError for another format."""
    name = json.loads(line)["image"]
    if not line.endswith(b"\n") or not isinstance(name, str):
        raise ValueError
    return name


def _starts_a_line(text):
    """Return whether bytes are the start of a line of `JsonLines`. A power failure can leave zeros in place of text."""
    text, start = text.rstrip(b"\0"), b'{"image": "'
    return len(text) < MAX_LINE and text.startswith(start[: len(text)])


def _lock(file) -> bool:
    """Lock a file until it is closed. Return False if another process has locked it.

    The system releases the lock when the process ends, for whatever reason. Without support for locks, return True.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(file.fileno(), 2**31 - 2, os.SEEK_SET)  # Windows locks bytes; one that no reader needs
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def replace_file(path: str | Path, data: bytes) -> None:
    """Write a file, and create its folder. An existing file keeps its content unless all data can be written.

    Args:
        path: the file. The target of a link is replaced, not the link. A device or a pipe is written to.
        data: the new content.

    Raises:
        ArgumentError: if the file cannot be written, for example because the disk is full.
    """
    _put(path, data)


def check_writable(path: str | Path) -> None:
    """Check that `replace_file` can write a file, and create its folder. An existing file keeps its content.

    Args:
        path: as in `replace_file`. A device or a pipe is not opened.

    Raises:
        ArgumentError: if the path is a folder, or if the file or its folder is protected from writing.
    """
    _put(path, None)


def _put(path, data):
    """Write a file; with None as the data, do all steps that come before the writing."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if data is None and os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if (os.path.exists(path) and not os.path.isfile(path)) or os.path.abspath(path).startswith(STREAMS):
            if data is not None:  # opening a pipe waits for its reader
                with open(path, "wb") as file:
                    file.write(data)
        else:
            _replace(os.path.realpath(path), data)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot write there ({_reason(error)}). Choose another path") from None


STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # names of open files, which must not be replaced by other files


def _replace(path, data):
    exists = os.path.exists(path)
    if exists:
        open(path, "r+b").close()  # a file that is protected from writing stays as it is
    part = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.part")
    try:
        mode = 0o600 if exists else 0o666  # other users must not read a private file
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if data is None:
                return
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exists:
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def drawn_mark() -> PngInfo:
    """Return the PNG text "Software: minigdino". It marks a picture that a later run may replace."""
    mark = PngInfo()
    mark.add_text("Software", "minigdino")
    return mark


def is_drawn(path: str | Path) -> bool:
    """Return whether a file is a PNG with the text of `drawn_mark`.

    Args:
        path: a file of any kind.

    Returns:
        False for every other file, and for one that cannot be read.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as picture:
            return picture.info.get("Software") == "minigdino"
    except Exception as error:  # Pillow raises many types for damaged files
        if from_signal_handler(error):
            raise
        return False


def _reason(error):
    return getattr(error, "strerror", None) or brief(error)


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
        ArgumentError: if the file cannot be read, has another format or no category, if a label is no str or an id no
            int, or if a label or an id occurs twice.
    """
    try:
        values = read_json(path, MAX_CATEGORIES)
    except CheckpointError:
        raise ArgumentError(f'{path}: not a readable JSON file of categories; expected {{"label": id}}, each label '
                            "once") from None
    if isinstance(values, dict) and "categories" in values:
        values = values["categories"]
    try:
        pairs = values.items() if isinstance(values, dict) else ((entry["name"], entry["id"]) for entry in values)
        pairs = [(name, number) for name, number in pairs]
    except (TypeError, KeyError, ValueError):
        raise ArgumentError(f'{path}: expected {{"label": id}} or [{{"id": 1, "name": "label"}}]; got '
                            f"{brief(values)}") from None
    if not pairs:
        raise ArgumentError(f'{path}: expected at least one category, such as {{"label": 1}}; got none. Add an id for '
                            "each phrase of the prompt")
    categories: dict[str, int] = {}
    labels: dict[int, str] = {}
    for label, number in pairs:
        if not isinstance(label, str):
            raise ArgumentError(f"{path}: expected a str as the name of a category; got {brief(label)}. Correct the "
                                "name")
        if type(number) is not int:
            raise ArgumentError(f"{path}: expected an int as the id of {brief(label)}; got {brief(number)}. Correct "
                                "the id")
        if label in categories:
            raise ArgumentError(f"{path}: expected each label once; got {brief(label)} twice. Remove one of the two")
        if number in labels:
            raise ArgumentError(f"{path}: expected a different id for each label; got {brief(number)} for "
                                f"{brief(labels[number])} and {brief(label)}. Change one of the two")
        categories[label], labels[number] = number, label
    return categories

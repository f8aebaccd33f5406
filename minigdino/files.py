"""Files of a run of `minigdino detect`: find images, read and write JSON Lines, and read ids."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import urls
from .checkpoints.json_file import is_file, is_folder, read_json, read_text, status
from .errors import ArgumentError, CheckpointError, Error, ImageError, brief, from_signal_handler
from .image import endings
from .results import Detections, Labels
from .writing import check_writable, is_stream, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

STDIN = STDOUT = "-"
MAX_CATEGORIES = 2**29  # bytes; the largest COCO annotation file fits
MAX_LINE = 2**26  # bytes; a longer line is not from this program, so it is not read into memory
MAX_FLOAT = float(np.finfo(np.float32).max)


def find_images(sources: Sequence[str], *, recursive: bool = False,
                on_error: Callable[[ImageError], None] | None = None) -> list[str]:
    """List the images of some sources. A path that occurs several times is listed once.

    Paths are compared as text: "a.jpg" and "./a.jpg" are two images, as they are two names in the output.

    Args:
        sources: each one of

            - a file, such as an image or a video, listed as given, whether it exists or not;
            - a folder: the images in it, sorted by name; hidden files, such as "._a.jpg", are left out;
            - a glob pattern: the matching files, sorted; "**" matches any number of folders;
            - a URL, as in `urls.download`;
            - "-", for an image on standard input.

        recursive: whether the subfolders of a folder are searched too, except hidden ones.
        on_error: called with the error of each subfolder that cannot be read, in a recursive search or for "**"; the
            search continues without it. None to raise the error.

    Returns:
        Different paths and URLs, and "-" for standard input, in the order of the sources.

    Raises:
        ImageError: if a folder does not exist, cannot be read or contains no images, if a pattern matches no file, or
            if a URL is invalid.
    """
    found: list[str] = []
    for source in sources:
        if urls.is_url(source):  # before the patterns: a query starts with "?"
            urls.check(source)
            found.append(source)
        elif source != STDIN and is_folder(source):
            found += _in_folder(source, recursive, on_error or _raise)
        elif is_pattern(source):
            if not (matches := sorted(filter(is_file, _matches(source, on_error or _raise)))):
                raise ImageError(f"{source}: the pattern matches no file. Check its folder and its ending; ** matches "
                                 "any number of folders")
            found += matches
        elif source.endswith(_SEPARATORS) and not status(source):
            raise ImageError(f"{source}: no such folder. Check its name, and the working directory")
        else:
            found.append(source)
    return list(dict.fromkeys(found))


def is_pattern(source: str) -> bool:
    """Return whether a source is a glob pattern, and not a URL or the name of an existing file."""
    return (any(c in source for c in "*?[") and "\0" not in source and not urls.is_url(source)
            and status(source) is None)


def _raise(error):
    raise error


def _in_folder(folder, recursive, on_error):
    """The images in a folder, sorted. The folder itself must be readable, and contain one."""
    images = _images(folder)
    subfolders = [found for found in _folders([folder], on_error) if found != folder] if recursive else []
    for subfolder in subfolders:
        with contextlib.suppress(ImageError):  # reported by the search for folders
            images += _images(subfolder)
    if not images:
        more = "" if recursive else ". With --recursive, its subfolders are searched too"
        raise ImageError(f"{folder}: expected a folder with images, such as .jpg or .png files; found none{more}")
    return sorted(images)


def _images(folder):
    """The images in a folder, except hidden files. macOS stores its attributes of a.jpg in ._a.jpg."""
    try:
        entries = list(Path(folder).iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    known = endings()
    return [str(path) for path in entries
            if path.suffix.lower() in known and not path.name.startswith(".") and is_file(path)]


def _unreadable(folder, error):
    return ImageError(f"{folder}: expected a readable folder ({reason(error)}). Check its permissions")


_SEPARATORS = (os.sep, os.altsep or os.sep)
_SEP = re.escape("".join(_SEPARATORS))
RECURSIVE = re.compile(rf"(^|(?<=[{_SEP}]))(\*\*([{_SEP}]+|$))+")  # "**" as a whole part of a pattern, or several


def _matches(pattern, on_error):
    """Paths that match a pattern, as `glob.glob` finds them, except that "**" visits each folder once.

    So links to folders cannot make the search endless.
    """
    if not (recursive := RECURSIVE.search(pattern)):
        return set(glob.glob(pattern))
    head, tail = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
    tops = glob.glob(os.path.join(os.path.dirname(head), "")) if head else [""]
    return {path for folder in _folders(tops, on_error) for path in _matches(glob.escape(folder) + tail, on_error)}


def _folders(tops, on_error) -> Iterator[str]:
    """Yield folders and all folders below them, except hidden ones. Links are followed last."""
    folders, links, seen = list(tops), [], set()
    while folders or links:
        folder = (folders or links).pop()
        if not (found := status(folder or ".")) or (key := (found.st_dev, found.st_ino)) in seen:
            continue
        seen.add(key)
        yield folder
        for entry, is_link in _subfolders(folder, on_error):
            (links if is_link else folders).append(os.path.join(folder, entry, ""))


def _subfolders(folder, on_error):
    """Names of the folders in a folder, except hidden ones, each with whether it is a link."""
    found = []
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(".") and is_folder(entry.path):
                    found.append((entry.name, entry.is_symlink()))
    except OSError as error:
        on_error(_unreadable(folder, error))
    return found


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
        if not is_result(line):
            raise ValueError
        rows, size = line["detections"], (line["width"], line["height"])
        return Detections(boxes=np.array([row["box"] for row in rows], np.float32).reshape(len(rows), 4),
                          scores=np.array([row["score"] for row in rows], np.float32).reshape(len(rows)),
                          labels=Labels(row["label"] for row in rows),
                          label_ids=np.array([row["label_id"] for row in rows], np.int64).reshape(len(rows)),
                          phrases=Labels(row["phrase"] for row in rows), image_size=size)
    except (ValueError, OverflowError):
        raise ArgumentError(f'{path}: with --coco or --csv, each line must have "width", "height" and "detections"; '
                            f"the line of {line['image']} has another format. Choose another name for "
                            "--jsonl") from None


def is_result(line: dict) -> bool:
    """Return whether a JSON object has the detections of an image, as `record` writes them, with values in range."""
    try:
        return (isinstance(line["detections"], list) and all(map(_is_detection, line["detections"]))
                and all(type(line[edge]) is int and line[edge] > 0 for edge in ("width", "height")))
    except (LookupError, TypeError):
        return False


def _is_detection(row):
    """Whether the values of an object are those of a `Detection`. Raises LookupError or TypeError for another kind."""
    return (len(row["box"]) == 4 and all(_is_number(v, -MAX_FLOAT, MAX_FLOAT) for v in row["box"])
            and _is_number(row["score"], 0, 1) and type(row["label_id"]) is int and row["label_id"] >= 0
            and isinstance(row["label"], str) and isinstance(row["phrase"], str))


def _is_number(value, low, high):
    return type(value) in (int, float) and low <= value <= high  # False for NaN


class JsonLines:
    """An append-only, resumable JSON Lines file: a header, then one line per image.

    Each line is on the disk as soon as the image is done. An interrupted run loses at most the lines that were being
    written. The file is locked until `close`, or until the process ends, so that two runs never write to it. On a file
    system without locks, the file is not locked.

    Args:
        path: the file.
        resume: whether to continue an existing file. An incomplete last line is then removed.
        header: all that determines the lines, such as the model and the prompt: a JSON object with the key "minigdino".
            It is the first line of a new file, and must agree with that of an existing one. None for no header, and
            no comparison.
        overwrite: whether to replace an existing file. With `resume`, it is continued nevertheless.
        option: option of the command line that names the file, for error messages.
        continues: what continues a file, for error messages.
        on_line: function that receives the JSON object of each earlier line but the header, instead of `done` and
            `failed`, whose memory grows with the number of images.

    Attributes:
        path: the file.
        done: {name of an image that the file already has: number of its last line}.
        failed: names of those whose last line is an error.

    Raises:
        ArgumentError: if the file exists and neither `resume` nor `overwrite` is set, if it was begun with another
            header, if another process writes to it, if it has a line of another format, or if it cannot be written.
    """

    def __init__(self, path: str | Path, resume: bool = False, *, header: dict | None = None, overwrite: bool = False,
                 option: str = "--jsonl", continues: str = "--resume", on_line: Callable[[dict], None] | None = None):
        self.path, self._option, self._continues = Path(path), option, continues
        _check_kind(path, option)
        self._file, is_new = _open_to_append(self.path, resume or overwrite, option)
        try:
            if not _lock(self._file):
                is_new = False  # the other process may have written to it
                raise ArgumentError(f"{path}: another process is writing to this file. Wait until it ends, or choose "
                                    f"another name for {option}")
            if not resume:
                os.truncate(self._file.fileno(), 0)  # after the lock: no other run loses its lines
            self.done: dict[str, int] = {}
            self.failed: set[str] = set()
            earlier, rest, complete = self._read(on_line)
            if header:
                self._check(earlier, complete, rest, header)
            if rest is not None:
                os.truncate(self._file.fileno(), complete)
            elif complete and not self._ends_a_line(complete):  # an editor has removed the line break
                self._file.write(b"\n")
            if header and earlier is None:
                self.write(header)
        except BaseException:
            self.close()
            if is_new:  # without a header, so that the next run would need another option
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            raise

    def _read(self, on_line) -> tuple[dict | None, bytes | None, int]:
        """The header, an incomplete last line or None, and the bytes before that."""
        header, rest = None, None
        complete = number = 0
        try:
            with open(self.path, "rb") as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    try:
                        values = _object(line)
                    except ValueError:
                        if line.endswith(b"\n") or not _starts_a_line(line):
                            raise
                        rest = line
                        break
                    if number == 1 and "minigdino" in values:
                        header = values
                    else:
                        name = _image_of(values)
                        if on_line:
                            on_line(values)
                        else:
                            self.done[name] = number
                            (self.failed.add if "error" in values else self.failed.discard)(name)
                    complete += len(line)
        except OSError as error:
            raise _unwritable(self.path, error, self._option) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ArgumentError(f'{self.path}: each line must be a JSON object with "image"; line {number} is not. '
                                f"Choose another name for {self._option}") from None
        return header, rest, complete

    def _ends_a_line(self, size):
        with open(self.path, "rb") as file:
            file.seek(size - 1)
            return file.read() == b"\n"

    def _check(self, earlier, complete, rest, header):
        """Refuse a file whose lines have another header, or that this program did not begin. It stays as it is."""
        if earlier is None and (complete or not (rest is None or _starts_a_header(rest))):
            raise ArgumentError(f"{self.path}: expected a first line that names the model and the prompt, because "
                                f"{self._continues} adds lines for the same ones; got none, as in files of earlier "
                                f"versions. Choose another name for {self._option}")
        if earlier and (found := differences(earlier, json.loads(json.dumps(header)))):
            old, new = (" and ".join(parts) for parts in zip(*found))
            raise ArgumentError(f"{self.path}: {self._continues} needs the model and the options with which the file "
                                f"was begun, {old}; got {new}. Give the same ones, or choose another name for "
                                f"{self._option}")

    def records(self) -> Iterator[dict]:
        """Yield the JSON object of each image, one by one: the last one, if the file has several for an image.

        Raises:
            ArgumentError: if the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    values = json.loads(line)
                    if self.done.get(values.get("image")) == number:
                        yield values
        except OSError as error:
            raise _unwritable(self.path, error, self._option) from None

    def write(self, *lines: dict) -> None:
        """Append lines, and wait until they are on the disk.

        Args:
            lines: the JSON objects, as from `record`, or a header.

        Raises:
            ValueError: if a number is not finite, which JSON cannot represent.
            ArgumentError: if the file cannot be written, for example because the disk is full.
        """
        rest = memoryview("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())
        try:
            while rest:  # a disk that becomes full takes a part of them, and refuses the rest
                rest = rest[self._file.write(rest):]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error, self._option) from None

    def close(self) -> None:
        """Close the file, and release its lock."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _open_to_append(path, may_exist, option):
    """Open a file without a buffer. Returns the file, and whether it is new."""
    try:
        return open(path, "ab", buffering=0, opener=_create), True
    except FileExistsError:
        if not may_exist:
            raise _exists(path) from None
    except (OSError, ValueError) as error:
        raise _unwritable(path, error, option) from None
    try:
        return open(path, "ab", buffering=0), False
    except OSError as error:
        raise _unwritable(path, error, option) from None


def _create(path, flags):
    return os.open(path, flags | os.O_EXCL, 0o666)


def check_lines(path: str | Path, resume: bool, overwrite: bool, option: str = "--jsonl") -> None:
    """Check that `JsonLines` can open a file, as far as that is possible without its header. Creates its folder.

    Args:
        path: the file.
        resume: as in `JsonLines`.
        overwrite: as in `JsonLines`.
        option: as in `JsonLines`.

    Raises:
        ArgumentError: as `JsonLines` does.
    """
    _check_kind(path, option)
    if status(path) is None:
        check_writable(path)
    elif not (resume or overwrite):
        raise _exists(path)
    else:
        try:
            open(path, "ab").close()
        except OSError as error:
            raise _unwritable(path, error, option) from None


def _check_kind(path, option):
    if (status(path) and not is_file(path)) or is_stream(path):  # opening a pipe could wait without end
        stdout = ", or - for standard output" if option == "--jsonl" else ""
        raise ArgumentError(f"{path}: expected a regular file for {option}; got a folder, a pipe or a device. "
                            f"Choose another name{stdout}")


def _exists(path):
    return ArgumentError(f"{path} exists already. Give --resume to continue it, --overwrite to replace it, or choose "
                         "another name")


def _unwritable(path, error, option):
    return ArgumentError(f"{path}: the file cannot be written ({reason(error)}). Choose another name for {option}")


def differences(earlier: dict, header: dict) -> list[tuple[str, str]]:
    """Compare two headers of JSON Lines.

    The version and the name of the model may differ: the fingerprint shows whether the model is the same. The tokens
    differ too where the phrases do, or how many of them a prompt has.

    Args:
        earlier: the old header.
        header: the new one.

    Returns:
        Pairs (old, new) of the values that differ, in words.
    """
    def words(values, name):
        name_of_model = f"model {brief(values.get('model'))} with " if name == "fingerprint" else ""
        return f"{name_of_model}{name} {brief(values.get(name))}"

    names = [name for name in {**earlier, **header}
             if name not in ("minigdino", "model") and earlier.get(name) != header.get(name)]
    if {"text", "chunk"}.intersection(names) and "tokens" in names:
        names.remove("tokens")
    return [(words(earlier, name), words(header, name)) for name in names]


def _object(line):
    """The JSON object of a line. Raises ValueError for another format."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError
    return values


def _image_of(values):
    """Name of the image of a line. Raises LookupError or ValueError for another format."""
    if not isinstance(values["image"], str):
        raise ValueError
    return values["image"]


def _starts_a_line(text):
    """Return whether bytes are the start of a line of `JsonLines`. A power failure can leave zeros in place of text."""
    text = text.rstrip(b"\0")
    return len(text) < MAX_LINE and any(text.startswith(start[: len(text)]) for start in LINE_STARTS)


def _starts_a_header(text):
    text = text.rstrip(b"\0")
    return bool(text) and text[: len(HEADER_START)] == HEADER_START[: len(text)]


HEADER_START = b'{"minigdino": "'
LINE_STARTS = (b'{"image": "', HEADER_START)


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
        if from_signal_handler(error):
            raise
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def read_image_ids(path: str | Path) -> dict[str, int]:
    """Read the ids of images from a COCO data set, such as the ground truth of an evaluation.

    Args:
        path: a JSON file with "images": [{"file_name", "id"}, ...].

    Returns:
        {file_name: id}

    Raises:
        ArgumentError: if the file cannot be read or has another format, or if a name or an id occurs twice.
    """
    expected = 'expected {"images": [{"file_name": "a.jpg", "id": 1}, ...]}'
    try:
        entries = [(entry["file_name"], entry["id"]) for entry in read_json(path, MAX_CATEGORIES)["images"]]
    except CheckpointError:
        raise ArgumentError(f"{path}: not a readable JSON file of images; {expected}") from None
    except (TypeError, LookupError):
        raise ArgumentError(f"{path}: {expected}; got another format. Give the annotations of a data set") from None
    for name, number in entries:
        if not isinstance(name, str) or type(number) is not int:
            raise ArgumentError(f"{path}: expected a str as file_name and an int as id; got {brief(name)} and "
                                f"{brief(number)}. Correct the entry")
    if not len(entries) == len(ids := dict(entries)) == len(set(ids.values())):
        raise ArgumentError(f"{path}: expected each file_name and each id once; got one twice. Remove one of the two")
    return ids


def image_id(image: str, ids: Mapping[str, int]) -> int:
    """Return the id of an image: that of its path, else of the longest end of its path that has one.

    Args:
        image: name of the image, such as "photos/a.jpg".
        ids: {file_name: id}

    Raises:
        ArgumentError: if no end of the path has an id.
    """
    if (name := known_name(image, ids)) is None:
        raise ArgumentError(f"{image}: expected a name with an id, such as "
                            f"{', '.join(map(brief, itertools.islice(ids, 3))) or 'none, because there are none'}. Add "
                            "its id, or leave the image out")
    return ids[name]


def known_name(image: str, names: Container[str]) -> str | None:
    """Return the name of an image among known ones: its path, else the longest end of its path; None if it has none.

    Args:
        image: name of the image, such as "photos/a.jpg".
        names: known names.
    """
    parts = Path(image).parts
    ends = (image, *("/".join(parts[i:]) for i in range(len(parts))))
    return next((end for end in ends if end in names), None)


def check_new_id(number: int, image: str, names: dict[int, str]) -> None:
    """Add the id of an image to `names`, {id: image}.

    Raises:
        ArgumentError: if another image has the id.
    """
    if (other := names.setdefault(number, image)) != image:
        raise ArgumentError(f"{image}: expected a different id for each image; {other} has the id {number}, too. Add "
                            "folders to the names with an id")


def read_phrases(path: str | Path, option: str = "--phrases") -> list[str]:
    """Read the phrases of a prompt from a text file with a phrase on each line. Empty lines are skipped.

    Args:
        path: the file, in UTF-8.
        option: the option that names the file, used in error messages.

    Returns:
        The phrases, at least one.

    Raises:
        ArgumentError: if the file cannot be read, or has no phrase.
    """
    expected = "expected a text file in UTF-8 with a phrase on each line"
    try:
        lines = read_text(path).removeprefix("\ufeff").splitlines()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: {expected} ({brief(error)}). Check the path of {option}") from None
    if not (phrases := [line.strip() for line in lines if line.strip()]):
        raise ArgumentError(f"{path}: {expected}; it has none. Write for example: a cat")
    return phrases


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
    return categories_in(values, path)


def categories_in(values: Any, path: str | Path) -> dict[str, int]:
    """Return the category ids in the content of a JSON file.

    Args:
        values: the content, in one of the formats of `read_categories`.
        path: the file, used in error messages.

    Returns:
        {label: id}

    Raises:
        ArgumentError: as `read_categories` does, for a file that can be read.
    """
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

"""Reasons why a path is not that of an image file, and what to give instead: the ends of error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from itertools import islice

from .checkpoints.json_file import is_file, is_folder, status
from .errors import ArgumentError, brief, from_signal_handler

MAX_ENTRIES = 10_000  # of a folder; more are not searched for similar names
SEPARATORS = os.sep + (os.altsep or "")


def check_order(image: object, text: object) -> None:
    """Refuse an image and a text that are swapped: the text is the path of a file, and there is no such image.

    Args:
        image: an image of any kind, such as a path or a URL.
        text: a prompt of any kind.

    Raises:
        ArgumentError: if they are swapped.
    """
    if not isinstance(image, str) or not isinstance(text, str):
        return
    if (re.search(r"[/\\.]", text) and not re.match("https?:/", image, re.IGNORECASE)
            and status(image) is None and is_file(text)):
        raise ArgumentError(f"expected the image first, then the text; got the text {brief(text)}, which is a file, "
                            f"and the image {brief(image)}, which is none. Swap them")


def why_folder(path: str) -> str:
    """Return what to give instead of a folder.

    Args:
        path: the folder.
    """
    return ("expected an image file; got a folder. Give one of its images, or in Python a list of them: "
            f'sorted(pathlib.Path({path!r}).glob("*.jpg"))')


def why_missing(path: str, endings: Collection[str]) -> str:
    """Return why there is no file at a path, and the next step: a similar name, if there is one.

    Args:
        path: a path without a file.
        endings: those of image files, lower-case and with their dot.
    """
    if not path:
        return "expected a path; got an empty text. Give the path of an image"
    folder, name = os.path.split(path.rstrip(SEPARATORS))
    if re.match(r"https?:[/\\][^/\\]", path, re.IGNORECASE):
        return "no such file. To download a URL, give it as a str: a Path drops one of its slashes"
    if (full := os.path.expanduser(path)) != path:
        return f'no such file; "~" is not expanded. Give the full path, {full!r}'
    if "*" in path or "?" in path:
        return ("no such file; patterns are not expanded here. Give a list, sorted(glob.glob("
                f"{path!r})), or use `minigdino detect`, which accepts patterns")
    if status(path, follow=False):
        return "no such file; the path is a link to one that does not exist. Replace the link"
    if found := _similar(folder, name, endings):
        return f"no such file. Did you mean {found!r}?"
    if is_folder(folder or os.curdir):
        return f"no such file in the folder {_absolute(folder)}. Check the name"
    problem = "is not a folder" if status(folder) else "does not exist"
    return f"no such file; {_absolute(folder)} {problem}. Check the path"


def _similar(folder, name, endings):
    """Path of an image in a folder whose name differs in case, in its ending or in spaces around it; None if none."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            names = [entry.name for entry in islice(entries, MAX_ENTRIES)]
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        if from_signal_handler(error):
            raise
        return None
    wanted = _key(name)
    same = [other for other in names if _key(other) == wanted]
    stem = os.path.splitext(wanted)[0]
    images = [other for other in names if os.path.splitext(_key(other)) in {(stem, ending) for ending in endings}]
    return next((os.path.join(folder, other) for other in (*sorted(same), *sorted(images))), None)


def _key(name):
    return name.strip().casefold()


def _absolute(folder):
    """The absolute path, which shows the working directory. The path itself if that directory was deleted."""
    try:
        return os.path.abspath(folder)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return folder or os.curdir

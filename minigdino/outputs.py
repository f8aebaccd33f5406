"""Where `minigdino detect` writes: paths are checked before the model is loaded, and no input is ever replaced."""

from __future__ import annotations

import argparse
import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import urls
from .checkpoints import hub
from .checkpoints.json_file import is_file, is_folder, status
from .detector import EMBEDDED, EMBEDDED_MODELS, default_source
from .errors import ArgumentError, from_signal_handler
from .files import STDIN, is_pattern
from .inputs import Input, is_video
from .writing import is_drawn


def check_paths(inputs: Iterable[tuple], outputs: Iterable[tuple]) -> None:
    """Check that no output is an input or another output, under whatever name.

    Args:
        inputs: pairs (what it is, path or None).
        outputs: the same. A device can take several outputs.

    Raises:
        ArgumentError: if two of them are the same file.
    """
    taken = {_real(path): name for name, path in inputs if path is not None}
    for name, path in outputs:
        if path is None or (status(path) and not is_file(path)):
            continue
        if (other := taken.setdefault(_real(path), name)) != name:
            raise _same_file(other, name, path)


def check_ids(arguments: argparse.Namespace) -> None:
    """Check that the options which give ids are beside --coco, the only output with ids.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message.
    """
    for option, path in (("categories", arguments.categories), ("image-ids", arguments.image_ids)):
        if path and not arguments.coco:
            arguments.error(f"--{option} needs --coco, whose ids it gives")


def check_folder(option: str, path: str | Path) -> None:
    """Check that a path can be that of a folder, which may not exist yet.

    Args:
        option: the option of the command line.
        path: its value.

    Raises:
        ArgumentError: if the path is that of a file.
    """
    if status(path) and not is_folder(path):
        raise ArgumentError(f"{path}: expected a folder for {option}; got a file. Choose another name")


def _same_file(one, other, path):
    return ArgumentError(f"expected different files for {one} and {other}; got {path} for both. Choose another name "
                         "for one of them")


def model_files(source: str | None) -> list[tuple[str, str]]:
    """List the files that a model has, or that `load` would prefer if it had them.

    Args:
        source: as in `load`.

    Returns:
        Pairs ("the model", path), as inputs of `check_paths`; none for a model that is not on this machine.
    """
    source = hub.resolved(default_source() if source is None else source)
    if source in EMBEDDED_MODELS:
        place = str(EMBEDDED / source)
    else:
        place = str(hub.snapshot(source)) if hub.is_model_id(source) else source
    if not status(place):
        return []
    folder = place if is_folder(place) else os.path.dirname(place)
    names = ["special_tokens_map.json", *itertools.chain(*hub.PARTS), *glob.glob("*.safetensors", root_dir=folder)]
    return [("the model", path) for path in (place, *(os.path.join(folder, name) for name in names))]


class Folder:
    """Files of pictures or crops in a folder. It reproduces the folders of the images, below their common one.

    Args:
        option: "--out" or "--crops".
        folder: the folder.
        images: sources, as from `files.find_images`.
        overwrite: whether a file may replace one that minigdino did not draw.
        others: files of other outputs.

    Raises:
        ArgumentError: if the folder is a file, or looks like the name of one.
    """

    def __init__(self, option: str, folder: str, images: Sequence[str], overwrite: bool, others: Iterable[str] = ()):
        self._option, self._folder, self._overwrite = option, folder, overwrite
        self._verb, self._product = ("drawn", "drawing") if option == "--out" else ("cropped", "crop")
        if is_file(folder) or (Path(folder).suffix and not folder.endswith(("/", os.sep)) and not status(folder)):
            files = "several images" if option == "--out" else "crops"
            raise ArgumentError(f"{Path(folder)}: {files} need a folder to write to. Give {option} the name of a "
                                "folder, with a slash at its end")
        # not Path.absolute, which keeps "..": the outputs would leave the folder
        paths = {image: os.path.abspath(_local_name(image)) for image in images}
        top = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        # a str takes a fifth of the memory of a Path, and there may be many
        self._stems = {image: str(Path(folder, Path(path).relative_to(top).with_suffix("")))
                       for image, path in paths.items()}
        self._inputs = {_real(image) for image in images}
        self._others = {_place(path) for path in others}

    def picture(self, image: Input) -> str:
        """Return the file of a picture: "a.png" for a.jpg, and "clip/000012.png" for frame 12 of clip.mp4.

        Raises:
            ArgumentError: if the file is one of the images, another output, or another file of the user.
        """
        return self._checked(image, f"{self._stem(image)}.png")

    def crop(self, image: Input, index: int, label: str) -> str:
        """Return the file of a crop: "a-0-a_cat.png" for the first detection of a.jpg, with the label "a cat".

        Different crops have different files.

        Args:
            image: the image.
            index: index of the detection, from 0.
            label: its label. Characters that are no letters or digits are replaced, and long labels cut.

        Raises:
            ArgumentError: as for `picture`.
        """
        words = re.sub(r"[\W_]+", "_", label).strip("_")  # no hyphen, so that two images cannot have the same crop
        start = f"{self._stem(image)}-{index}-"
        space = max(MAX_NAME - len(os.fsencode(os.path.basename(start) + ".png")), 0)
        words = (words[:MAX_LABEL] or "object").encode()[:space].decode(errors="ignore")
        return self._checked(image, f"{start}{words}.png")

    def _stem(self, image):
        stem = self._stems[image.source]
        return stem if image.frame is None else os.path.join(stem, f"{image.frame:06}")

    def check(self, sources: Sequence[str], recursive: bool) -> list[str]:
        """Check the files of all images as far as they are known, before the first one is detected.

        Args:
            sources: the sources in which `find_images` found the images.
            recursive: as in `find_images`.

        Returns:
            The files of pictures that are known: those of images.

        Raises:
            ArgumentError: if a file would replace an image, a file of another image, or a file of the user, or if the
                next run would take it for an image.
        """
        self._check_folders()
        is_searched, known = _searched(sources, recursive), []
        taken = {stem: image for image, stem in self._stems.items() if is_video(image)}  # folders of frames
        for image, stem in self._stems.items():
            folder, name = os.path.split(stem)
            if is_video(image):
                output, searched = stem, os.path.join(stem, "*.png")
            elif self._option == "--crops":
                output, searched = f"{stem}-*.png", os.path.join(folder, "*.png")
            else:
                output = searched = self.picture(Input(image))
                known.append(output)
            if is_searched(searched):
                raise ArgumentError(f"{self._writes(image, output)}, where the next run would take the "
                                    f"{self._product} for an image. Give {self._option} another folder")
            for other in (taken.setdefault(output, image), taken.get(folder, image) if name.isdigit() else image):
                if other != image and _real(other) != _real(image):
                    raise ArgumentError(f"{other} and {image} would both be {self._verb} to {output}. Draw them in two "
                                        "runs")
        return known

    def _check_folders(self):
        """Check that no folder which will be created in this one is the file of another output."""
        others = self._others - {_place(self._folder)}  # which `check_paths` names
        for folder in {stem if is_video(image) else os.path.dirname(stem) for image, stem in self._stems.items()}:
            place = Path(_place(folder))
            if not others.isdisjoint(map(str, (place, *place.parents))):
                raise _same_file("another output", self._option, folder)

    def _checked(self, image, path):
        if _real(path) in self._inputs:
            raise ArgumentError(f"{self._writes(image.name, path)}, which is one of the images. Give {self._option} "
                                "another folder")
        if _place(path) in self._others:
            raise _same_file("another output", self._option, path)
        if status(path) and not (self._overwrite and is_file(path)) and not is_drawn(path):
            raise ArgumentError(f"{self._writes(image.name, path)}, which exists and was not drawn by minigdino. Give "
                                f"{self._option} another folder, move that file, or give --overwrite to replace it")
        return path

    def _writes(self, image, output):
        return f"{image} would be {self._verb} to {output}"


MAX_LABEL = 40  # characters of a label in the name of a crop
MAX_NAME = 255  # bytes of the name of a file, on most file systems


def _local_name(image):
    if image == STDIN:
        return "stdin"
    return urls.local_name(image) if urls.is_url(image) else image


def _searched(sources, recursive):
    """A function that says whether the sources contain the picture of a path, or any in PNG if its name is "*.png"."""
    folders = {_real(source) for source in sources if is_folder(source)}
    patterns = [searched for source in sources if is_pattern(source) for searched in _searched_by(source)]

    def is_searched(path):
        folder, name = os.path.split(path)
        places = [Path(absolute(folder)) for absolute in (os.path.abspath, os.path.realpath)]
        above = [place.parents for place in places if recursive]
        return (any(_real(place) in folders for place in itertools.chain([folder or "."], *above))
                or any(_can_be(name, names) and _reaches(parts, place.parts)
                       for parts, names in patterns for place in places))

    return is_searched


def _searched_by(pattern):
    """The parts of the folder of a pattern, as given and without links, each with the pattern of the names in it."""
    folder, names = os.path.split(pattern)
    if names == "**":
        folder, names = pattern, "*"
    as_given = os.path.normpath(os.path.join(glob.escape(os.getcwd()), folder))
    return [(Path(path).parts, names) for path in (as_given, os.path.realpath(folder))]


def _can_be(name, names):
    """Return whether a pattern matches a name, or if the name is "*.png", a name with that ending."""
    ends = [names[i:] for i in range(len(names))] if name == "*.png" else []
    return fnmatch.fnmatch(name, names) or any(fnmatch.fnmatch(".png", end) for end in ends)


def _reaches(pattern, folder):
    """Return whether a pattern in parts matches the parts of a folder. "**" and "*" match no hidden folder."""
    if not pattern or not folder:
        return not folder and all(part == "**" for part in pattern)
    is_hidden = folder[0].startswith(".")
    if pattern[0] == "**":
        return _reaches(pattern[1:], folder) or (not is_hidden and _reaches(pattern, folder[1:]))
    return (fnmatch.fnmatchcase(folder[0], pattern[0]) and (pattern[0].startswith(".") or not is_hidden)
            and _reaches(pattern[1:], folder[1:]))


def _real(path):
    """What identifies a file: its number, which all its names share, or its path without links if it does not exist."""
    found = status(path)
    return (found.st_dev, found.st_ino) if found else _place(path)


def _place(path):
    """The path of a file without links, whether it exists or not."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return os.path.normpath(path)  # a deleted working directory, or a null byte; opening the file is an error

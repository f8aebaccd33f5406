"""Where `minigdino detect` writes: paths are checked before the model is loaded, and no input is ever replaced."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from . import urls
from .checkpoints import hub
from .checkpoints.json_file import is_file, is_folder, status
from .detector import EMBEDDED_MODELS, default_source
from .errors import ArgumentError, from_signal_handler
from .files import STDIN, STDOUT
from .writing import encoded, is_drawn


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
            raise ArgumentError(f"expected different files for {other} and {name}; got {path} for both. Choose another "
                                "name for one of them")


def model_files(source: str | None) -> list[tuple[str, str]]:
    """List the files that a local model has, or that `load` would prefer if it had them.

    Args:
        source: as in `load`.

    Returns:
        Pairs ("the model", path), as inputs of `check_paths`; none for a model from the hub or the embedded one.
    """
    source = default_source() if source is None else source
    if source in EMBEDDED_MODELS or not status(source):  # also a model id
        return []
    folder = source if is_folder(source) else os.path.dirname(source)
    names = ["special_tokens_map.json", *itertools.chain(*hub.PARTS), *glob.glob("*.safetensors", root_dir=folder)]
    return [("the model", path) for path in (source, *(os.path.join(folder, name) for name in names))]


def picture_paths(out: str, images: Sequence[str], many: bool, sources: Sequence[str], *, recursive: bool,
                  overwrite: bool) -> dict[str, str]:
    """Choose the files of the pictures: one file, or a folder that reproduces the folders of the images.

    Args:
        out: the file, or a folder, which must exist or end in a slash if there is one image.
        images: paths of the images.
        many: whether there may be several images.
        sources: the sources in which `find_images` found the images.
        recursive: as in `find_images`.
        overwrite: whether a picture in the folder may replace a file that minigdino did not draw.

    Returns:
        {image: path of its picture}

    Raises:
        ArgumentError: if a picture would replace an image, another picture, or a file of the user, if the next run
            would take it for an image, or if the format of the one file cannot be written.
    """
    folder = Path(out)
    if out == STDOUT:
        raise ArgumentError("--out - is not possible: pictures are not written to standard output. Give --out a file "
                            "or a folder")
    is_named_folder = out.endswith(("/", os.sep))
    if not many and not is_named_folder and not is_folder(folder):
        encoded(Image.new("RGB", (64, 64)), out)  # a format that cannot be written is an error before the first pass
        return {images[0]: str(folder)}
    if is_file(folder) or (folder.suffix and not is_named_folder and not status(folder)):
        raise ArgumentError(f"{folder}: several images need a folder to write to. Give --out the name of a folder, "
                            "with a slash at its end")
    outputs = _in_folder(folder, images)
    _check_folder(outputs, _searched(sources, recursive), overwrite)
    return outputs


def _in_folder(folder, images):
    """{image: file in a folder}, with the images' folders below the one that contains all of them."""
    # not Path.absolute, which keeps "..": the outputs would leave the folder
    paths = {image: os.path.abspath(_local_name(image)) for image in images}
    top = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    # a str takes a fifth of the memory of a Path, and there may be many
    return {image: str(folder / Path(path).relative_to(top).with_suffix(".png")) for image, path in paths.items()}


def _local_name(image):
    if image == STDIN:
        return "stdin"
    return urls.local_name(image) if urls.is_url(image) else image


def _searched(sources, recursive):
    """A function that says whether the sources contain the images in a folder."""
    folders = {_real(source) for source in sources if is_folder(source)}

    def is_searched(folder):
        above = [Path(absolute(folder)).parents for absolute in (os.path.abspath, os.path.realpath) if recursive]
        return any(_real(place) in folders for place in itertools.chain([folder], *above))

    return is_searched


def _check_folder(outputs, is_searched, overwrite):
    """Refuse pictures that would replace an image, another picture or a file of the user, or be an image next time."""
    taken, originals = {}, {_real(image) for image in outputs}
    for image, output in outputs.items():
        if _real(output) in originals:
            raise ArgumentError(f"{image} would be drawn to {output}, which is one of the images. Give --out another "
                                "folder")
        if is_searched(os.path.dirname(output) or "."):
            raise ArgumentError(f"{image} would be drawn to {output}, where the next run would take the drawing for an "
                                "image. Give --out another folder")
        if status(output) and not (overwrite and is_file(output)) and not is_drawn(output):
            raise ArgumentError(f"{image} would be drawn to {output}, which exists and was not drawn by minigdino. "
                                "Give --out another folder, move that file, or give --overwrite to replace it")
        if (other := taken.setdefault(output, image)) != image and _real(other) != _real(image):
            raise ArgumentError(f"{other} and {image} would both be drawn to {output}. Draw them in two runs")


def _real(path):
    """What identifies a file: its number, which all its names share, or its path without links if it does not exist."""
    if found := status(path):
        return found.st_dev, found.st_ino
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return os.path.normpath(path)  # a deleted working directory, or a null byte; opening the file is an error

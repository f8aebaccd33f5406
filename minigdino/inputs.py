"""The images of a run of `minigdino detect`, one after the other: files, standard input, and frames of videos."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import urls, video
from .detector import Model
from .errors import Error, ImageError
from .files import STDIN
from .progress import Progress
from .results import Detections

MAX_STDIN = 2**30  # bytes; more than the pixels of the largest image that Pillow accepts
CAMERA = re.compile(r"/dev/video(0|[1-9]\d{0,8})")


@dataclass(frozen=True)
class Input:
    """One image of a run.

    Attributes:
        source: a path or URL as given, or "-" for standard input.
        frame: number of a frame in a video, from 0; None for an image, and for a video that cannot be read.
    """

    source: str
    frame: int | None = None

    @property
    def name(self) -> str:
        """The name in all outputs: the source, for a frame with its number, as in "clip.mp4#12"."""
        return self.source if self.frame is None else f"{self.source}#{self.frame}"


def is_camera(source: str) -> bool:
    """Return whether a source is a camera of Linux, such as "/dev/video0"."""
    return CAMERA.fullmatch(source) is not None


def is_video(source: str) -> bool:
    """Return whether a source is a camera, or a file with the ending of a video."""
    return is_camera(source) or Path(source).suffix.lower() in video.ENDINGS


def frames(source: str, every: int) -> Iterator[Any]:
    """Return the frames of a video source, as `video.frames` does.

    Args:
        source: a source for which `is_video` is true.
        every: step between the frames.
    """
    camera = CAMERA.fullmatch(source)
    return video.frames(int(camera[1]) if camera else source, every)


def detect_each(model: Model, sources: Sequence[str], text: str | Sequence[str], *, every: int = 1,
                done: Collection[str] = (), progress: Progress | None = None, **options: Any,
                ) -> Iterator[tuple[Input, Detections | Error]]:
    """Detect in one image after the other. An image that cannot be read does not stop the others.

    One image is in memory at a time, if the caller drops each result before it requests the next one.

    Args:
        model: the model.
        sources: sources, as from `files.find_images`.
        text: the prompt for all images, as in `Model.detect`.
        every: step between the frames of a video.
        done: names of images that are skipped.
        progress: display that is updated after each image; None for no display.
        options: keyword arguments of `Model.detect`.

    Yields:
        Each image with its detections, or its `ImageError`. After an error, a video has no more frames: the error has
        the number of the first frame that is missing.

    Raises:
        Error: as `Model.detect` does, except `ImageError`.
    """
    for image, content in itertools.chain.from_iterable(_opened(source, every, done) for source in sources):
        result = content if isinstance(content, Error) else model.detect(content, text, errors="return", **options)
        if progress:
            progress.clear()
        del content
        yield image, _named(image, result)
        del result  # which holds a frame
        if progress:
            progress.step()
    if progress:
        progress.close()


def _named(image, result):
    """A result, where the message of an error names the image."""
    name, start = image.name, f"{image.source}: "
    if urls.is_url(image.source):
        name = start = urls.shown(image.source)
    is_unnamed = isinstance(result, Error) and not str(result).startswith(start)
    return type(result)(f"{name}: {result}") if is_unnamed else result


def _opened(source, every, done):
    """Yield the images of a source that are not done, each with the input of `Model.detect`, or its ImageError."""
    if source in done:
        return
    if not is_video(source):
        yield Input(source), _standard_input() if source == STDIN else source
        return
    images = _frames(source, every)
    for number in itertools.count(0, every):
        content = next(images, None)
        failed = isinstance(content, Error)
        # without any frame, the video itself is named
        image = Input(source, None if failed and number == 0 else number)
        if content is not None and image.name not in done:
            yield image, content
        if content is None or failed:
            return
        del content  # before the next frame is decoded


def _frames(source, every):
    """Yield the frames of a video, then the ImageError that ends it early, if any."""
    try:
        yield from frames(source, every)
    except ImageError as error:
        yield type(error)(*error.args)  # without the traceback, which holds a frame


def _standard_input():
    """The bytes of standard input, or an ImageError."""
    try:
        data = sys.stdin.buffer.read(MAX_STDIN + 1) if sys.stdin else b""
    except OSError as error:
        return ImageError(f"-: standard input cannot be read ({error.strerror}). Give the path of an image")
    if len(data) > MAX_STDIN:
        return ImageError(f"-: expected an image of at most {MAX_STDIN} bytes on standard input; got more. Give the "
                          "path of an image")
    if not data:
        return ImageError("-: expected an image on standard input, which is empty or closed. Write for example: "
                          "minigdino detect - TEXT < cat.jpg")
    return io.BytesIO(data)

"""Video: frames of a file or a camera as images, and pictures as a video. Needs the package PyAV (extra `video`)."""

from __future__ import annotations

import contextlib
import itertools
import numbers
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .checkpoints.json_file import open_regular, status
from .errors import ArgumentError, ImageError, brief, from_signal_handler
from .extras import require
from .image import open_image
from .missing import why_missing
from .urls import is_url, shown
from .writing import MARK, check_writable, reason, replace_file

# Containers that are read, by FFmpeg's names. Others, such as playlists, can name further files and servers.
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "ogg", "flv", "asf",
              "mxf", "gif")
# of files that the command line takes for videos; .gif is an image
ENDINGS = frozenset((".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
                     ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"))
OUTPUTS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # ending of a file -> container that is written
PACKAGE = "av>=17.1,<19"
OLDEST, NEWEST = (17, 1), (18,)  # versions of PyAV that are supported; 19 opens files by other arguments
BLOCK = 2**20  # bytes
THREADS = 1  # of FFmpeg: a forked child would wait forever for more, at the latest when it exits


def frames(source: str | os.PathLike[str] | int, every: int = 1) -> Iterator[np.ndarray]:
    """Yield the frames of a video, as images for `detect`. One frame is in memory at a time.

    The file is opened when the first frame is requested, and closed after the last one, or with the iterator. All
    frames must be requested in one process.

    Args:
        source: path of a video file, or number of a camera on Linux: 0 for /dev/video0. Frames of a camera wait in a
            queue of its driver, and the camera drops those that do not fit.
        every: step between the frames. With 5, the frames 0, 5, 10, ... are yielded.

    Returns:
        An iterator of uint8 arrays [H, W, 3] in RGB order. The rotation that a file asks for, in steps of 90 degrees,
        is applied.

    Raises:
        ArgumentError: if an argument is invalid, or PyAV is not installed; also for a frame, in a forked process.
        ImageError: if the file is missing; also for a frame, if the file or the camera cannot be read there.
    """
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise ArgumentError(f"every must be an int of 1 or more; got {brief(every)}")
    _av()
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        if not 0 <= source < 2**16:
            raise ArgumentError(f"a camera must have a number of 0 to 65535; got {brief(source)}")
        return _camera_frames(int(source), int(every))
    return _file_frames(_checked_path(source), int(every))


def rate(path: str | os.PathLike[str]) -> float:
    """Return the mean number of frames per second of a video file.

    Args:
        path: the file.

    Raises:
        ArgumentError: if PyAV is not installed.
        ImageError: if the file cannot be read, or does not state its rate.
    """
    _av()
    with _opened(_checked_path(path)) as (_, stream, _):
        if found := stream.average_rate or stream.guessed_rate:  # ASF and MPEG-TS may state only that of the codec
            return float(found)
    raise ImageError(f"{path}: expected a video that states its number of frames per second; got none. Choose a rate "
                     "yourself, or convert the file with another program")


def write(path: str | os.PathLike[str], pictures: Iterable[Image.Image | np.ndarray], rate: float = 25, *,
          overwrite: bool = False) -> None:
    """Write pictures as a video in H.264, or in MPEG-4 Part 2 where PyAV has no encoder for H.264.

    The file is complete, or is not written. An odd width or height is enlarged by one pixel, as the format needs. The
    comment "minigdino" marks the file.

    Args:
        path: the file. Its ending is .mp4, .mov or .mkv.
        pictures: at least one image, as in `detect`, all of the same size, such as
            `(found.plot() for found in model.detect(frames("clip.mp4"), "a cat."))`. One is in memory at a time.
        rate: frames per second.
        overwrite: whether to replace an existing file.

    Raises:
        ArgumentError: if the file exists and `overwrite` is not set, if it cannot be written, if an argument is
            invalid, or PyAV is not installed.
        ImageError: if a picture cannot be read.
    """
    av, path = _av(), _checked_output(path, overwrite)
    if isinstance(rate, bool) or not isinstance(rate, (numbers.Real, Fraction)) or not 0.01 <= rate <= 1000:
        raise ArgumentError(f"rate must be a number of frames per second, 0.01 to 1000; got {brief(rate)}")
    single = isinstance(pictures, (str, bytes, os.PathLike, Image.Image)) or getattr(pictures, "ndim", 4) != 4
    if single or not isinstance(pictures, Iterable):
        raise ArgumentError(f"pictures must be a list or another iterable of images; got {type(pictures).__name__}")
    check_writable(path)  # before the first picture, which may take long
    folder = os.path.dirname(os.path.realpath(path))  # a link can be in a folder that is protected from writing
    with tempfile.TemporaryFile(dir=folder, buffering=0) as temporary:
        file = _File(temporary)
        try:
            with av.open(file, "w", format=OUTPUTS[path.suffix.lower()]) as container:
                container.metadata["comment"] = MARK
                for _ in _encode(av, container, pictures, Fraction(float(rate)).limit_denominator(10_000)):
                    _check_written(file, path)
        except av.error.FFmpegError as error:
            _check_written(file, path)
            raise ArgumentError(f"{path}: the video cannot be encoded ({reason(error)}). Choose another size or "
                                "rate") from None
        _check_written(file, path)
        _checked_output(path, overwrite)  # another program can have written it meanwhile
        temporary.seek(0)
        replace_file(path, iter(partial(temporary.read, BLOCK), b""))


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a video with the mark of `write`.

    Args:
        path: a file of any kind.

    Returns:
        False for every other file, and for one that cannot be read.

    Raises:
        ArgumentError: if PyAV is not installed.
    """
    try:
        with _opened(path) as (container, _, _):
            return MARK in (container.metadata.get(name) for name in ("comment", "COMMENT"))  # Matroska has capitals
    except ImageError:
        return False


def _checked_output(path, overwrite) -> Path:
    """Check the path of a video that is to be written."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ArgumentError(f"a video must be written to a path; got {type(path).__name__}")
    if is_url(path):
        raise ArgumentError(f"{shown(str(path))}: a video must be written to this machine; got a URL. Choose a path")
    path = Path(path)
    if path.suffix.lower() not in OUTPUTS:
        raise ArgumentError(f"{path}: expected a video with one of the endings {', '.join(OUTPUTS)}; got "
                            f"{brief(path.suffix)}. Choose another name")
    if not overwrite and status(path, follow=False):
        raise ArgumentError(f"{path} exists already, and is not replaced. Choose another name, or delete it first")
    return path


def _check_written(file, path):
    try:
        file.check()
    except OSError as error:
        raise ArgumentError(f"{path}: cannot write there ({reason(error)}). Choose another path") from None


def _encode(av, container, pictures, rate):
    """Encode pictures. Yields after each."""
    codec, stream = "libx264" if "libx264" in av.codecs_available else "mpeg4", None
    for picture in pictures:
        pixels = np.asarray(open_image(picture))  # [H, W, 3]
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
        if stream is None:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.thread_count = THREADS
        if (width, height) != (stream.width, stream.height):
            raise ArgumentError(f"all pictures of a video must have the size of the first, {stream.width} x "
                                f"{stream.height}; got {width} x {height}. Resize them first")
        container.mux(stream.encode(_converted(av.VideoFrame.from_ndarray(pixels, format="rgb24"), stream.pix_fmt)))
        yield
    if stream is None:
        raise ArgumentError("a video must have at least one picture; got none")
    container.mux(stream.encode())


def _av() -> Any:
    av = require("av", "video", PACKAGE)
    version = tuple(map(int, re.findall(r"\d+", av.__version__)[:2]))
    if version < OLDEST or version[:1] > NEWEST:  # in older ones, options for streams corrupt memory
        raise ArgumentError(f"video needs PyAV 17.1 to 18; got {av.__version__}. Run: pip install --upgrade "
                            f'"{PACKAGE}"')
    return av


def _checked_path(path) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ArgumentError("a video must be the path of a file, or the number of a camera; got "
                            f"{type(path).__name__}")
    if is_url(path):
        raise ImageError("a video must be a file on this machine; got a URL. Download it first")
    if status(path := Path(path)) is None:
        raise ImageError(f"{path}: {why_missing(os.fsdecode(path), ENDINGS)}")
    return path


class _File:
    """A file for PyAV, which drops or prints most exceptions of a file. So the first one is kept, for `check`.

    It has no effect in a forked child: when the child ends, PyAV would write the end of a video there, too.
    """

    def __init__(self, file):
        self._file, self._process, self._error = file, os.getpid(), None
        self.tell = file.tell

    def read(self, n):
        """Read at most n bytes; none after an exception."""
        return self._kept(self._file.read, n) or b""

    def write(self, data):
        """Write all bytes, or as many as fit, and return the number of all."""
        left = memoryview(data)
        while left and (n := self._kept(self._file.write, left)):
            left = left[n:]
        return len(data)

    def seek(self, offset, whence=os.SEEK_SET):
        """Change the position, and return it; -1 if there is no such position, as in damaged files."""
        position = self._kept(self._file.seek, offset, whence, ignored=(OSError, ValueError))
        return -1 if position is None else position

    def check(self):
        """Raise the exception that was kept, if any."""
        if self._error:
            raise self._error

    def _kept(self, function, *args, ignored=()):
        """Call a function. Returns None if it raises, did so before, or in a forked child."""
        try:
            return function(*args) if os.getpid() == self._process and not self._error else None
        except BaseException as error:
            if not isinstance(error, ignored) or from_signal_handler(error):
                self._error = error


def _file_frames(path, every):
    with _opened(path) as (container, stream, file):
        yield from _decoded(container, stream, path, every, file)


def _camera_frames(number, every):
    if sys.platform != "linux":
        raise ArgumentError("cameras are read on Linux only. On other systems, pass the frames of another library as "
                            "arrays to detect")
    av, name = _av(), f"/dev/video{number}"
    try:
        container = av.open(name, format="v4l2")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{name}: the camera cannot be opened ({reason(error)}). Check its number and its "
                         "permissions") from None
    with container:
        yield from _decoded(container, container.streams.video[0], name, every)


@contextlib.contextmanager
def _opened(path):
    """A video file as a container of PyAV, its video stream, and its `_File`."""
    av = _av()
    with contextlib.ExitStack() as stack:
        try:
            file = _File(stack.enter_context(open_regular(path)))
            with _checked(file):
                # FFmpeg gets no path, which it could take for a protocol, and opens no other file. It already decodes
                # frames here. Metadata are often not UTF-8.
                container = stack.enter_context(av.open(
                    file, metadata_errors="replace", options=_pixel_limit(Image.MAX_IMAGE_PIXELS),
                    container_options={"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{path}: not a readable video ({reason(error)}); expected a complete file, such as .mp4, "
                             ".mkv or .avi") from None
        stream = next((s for s in container.streams.video if not s.disposition.value & COVER), None)
        if stream is None:
            raise ImageError(f"{path}: expected a video; got a file without pictures, or with a cover only")
        if stream.codec_context is None:
            raise ImageError(f"{path}: expected a video in a codec that PyAV decodes; got another one, or damaged "
                             "data. Convert it with another program")
        yield container, stream, file


COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC


def _pixel_limit(limit):
    """Options of a decoder. The limit is doubled, because its buffers have a margin."""
    return {"max_pixels": str(2 * limit)} if limit else {}


def _decoded(container, stream, name, every, file=None):
    """Yield every n-th frame of a container as an upright RGB array. A camera has no `_File`."""
    context, limit, process = stream.codec_context, Image.MAX_IMAGE_PIXELS, os.getpid()
    if limit and (n := context.width * context.height) > limit:
        raise ImageError(f"{name}: expected frames of at most {limit} pixels; got {n}. If you trust the file, raise "
                         "PIL.Image.MAX_IMAGE_PIXELS")
    context.options = _pixel_limit(limit)  # the size can change in the middle
    context.thread_count = THREADS
    decoding = container.decode(stream)
    for number in itertools.count():
        if os.getpid() != process:  # both have one position in the file
            raise ArgumentError(f"{name}: expected all frames to be requested in one process; got a fork in between. "
                                "Call frames in the new process")
        with _reading(name, number), _checked(file):
            frame = next(decoding, None)
        if frame is None and number == 0:
            raise ImageError(f"{name}: expected a video with frames; got none. The file may be damaged")
        if frame is None:
            return
        if number % every == 0:
            yield _upright(frame, name, number)  # without a variable, which would keep the array in memory


@contextlib.contextmanager
def _checked(file):
    """Raise the exception that a `_File` has kept, if any, instead of that of PyAV."""
    try:
        yield
    finally:
        if file:
            file.check()


@contextlib.contextmanager
def _reading(name, number):
    """Turn exceptions of FFmpeg into an ImageError."""
    try:
        yield
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        too_large = f", or have frames of more than {limit} pixels" if (limit := Image.MAX_IMAGE_PIXELS) else ""
        raise ImageError(f"{name}: frame {number} cannot be decoded ({reason(error)}). The file may be damaged"
                         f"{too_large}; convert it with another program") from None


def _upright(frame, name, number):
    with _reading(name, number):
        turns = round(frame.rotation / 90)  # counterclockwise
        return np.ascontiguousarray(np.rot90(_converted(frame, "rgb24").to_ndarray(), turns))


def _converted(frame, pixel_format):
    """Convert a frame. The converter is not kept, because it can have threads; see THREADS."""
    return _av().video.reformatter.VideoReformatter().reformat(frame, format=pixel_format)

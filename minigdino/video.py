"""Video: frames of a file or a camera as images, and pictures as a video. Needs the package PyAV (extra `video`)."""

from __future__ import annotations

import contextlib
import itertools
import os
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
from .errors import ArgumentError, ImageError, brief
from .extras import require
from .image import open_image
from .urls import is_url
from .writing import replace_file

# Containers that are read, by FFmpeg's names. Others, such as playlists, can name further files and servers.
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "ogg", "flv", "asf",
              "mxf", "gif")
OUTPUTS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # ending of a file -> container that is written
BLOCK = 2**20  # bytes


def frames(source: str | os.PathLike[str] | int, every: int = 1) -> Iterator[np.ndarray]:
    """Yield the frames of a video, as images for `detect`. One frame is in memory at a time.

    The file is opened when the first frame is requested, and closed after the last one, or with the iterator.

    Args:
        source: path of a video file, or number of a camera on Linux: 0 for /dev/video0. Frames of a camera wait in a
            queue of its driver, and the camera drops those that do not fit.
        every: step between the frames. With 5, the frames 0, 5, 10, ... are yielded.

    Returns:
        An iterator of uint8 arrays [H, W, 3] in RGB order. The rotation that a file asks for, in steps of 90 degrees,
        is applied.

    Raises:
        ArgumentError: if an argument is invalid, or PyAV is not installed.
        ImageError: if the file is missing; also for a frame, if the file or the camera cannot be read there.
    """
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise ArgumentError(f"every must be an int of 1 or more; got {brief(every)}")
    _av()
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
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
    with _opened(_checked_path(path)) as container:
        if found := container.streams.video[0].average_rate:
            return float(found)
    raise ImageError(f"{path}: expected a video that states its number of frames per second; got none")


def write(path: str | os.PathLike[str], pictures: Iterable[Image.Image | np.ndarray], rate: float = 25) -> None:
    """Write pictures as a video in H.264, or in MPEG-4 Part 2 where PyAV has no encoder for H.264.

    The file is complete, or is not written. An odd width or height is enlarged by one pixel, as the format needs.

    Args:
        path: the file, which must not exist. Its ending is .mp4, .mov or .mkv.
        pictures: at least one image, as in `detect`, all of the same size, such as
            `(found.plot() for found in model.detect(frames("clip.mp4"), "a cat."))`. One is in memory at a time.
        rate: frames per second.

    Raises:
        ArgumentError: if the file exists or cannot be written, if an argument is invalid, or PyAV is not installed.
        ImageError: if a picture cannot be read.
    """
    av, path = _av(), Path(path)
    if (container_format := OUTPUTS.get(path.suffix.lower())) is None:
        raise ArgumentError(f"{path}: expected a video with one of the endings {', '.join(OUTPUTS)}; got "
                            f"{brief(path.suffix)}. Choose another name")
    if status(path, follow=False):
        raise ArgumentError(f"{path} exists already, and is not replaced. Choose another name, or delete it first")
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)) or not 0.01 <= rate <= 1000:
        raise ArgumentError(f"rate must be a number of frames per second, 0.01 to 1000; got {brief(rate)}")
    with tempfile.TemporaryFile() as file:
        try:
            with av.open(file, "w", format=container_format) as container:
                _encode(av, container, pictures, Fraction(rate).limit_denominator(10_000))
        except av.error.FFmpegError as error:
            raise ArgumentError(f"{path}: the video cannot be encoded ({brief(error)}). Choose another size or "
                                "rate") from None
        file.seek(0)
        replace_file(path, iter(partial(file.read, BLOCK), b""))


def _encode(av, container, pictures, rate):
    codec, stream = "libx264" if "libx264" in av.codecs_available else "mpeg4", None
    for picture in pictures:
        pixels = np.asarray(open_image(picture))  # [H, W, 3]
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
        if stream is None:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if (width, height) != (stream.width, stream.height):
            raise ArgumentError(f"all pictures of a video must have the size of the first, {stream.width} x "
                                f"{stream.height}; got {width} x {height}. Resize them first")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    if stream is None:
        raise ArgumentError("a video must have at least one picture; got none")
    container.mux(stream.encode())


def _av() -> Any:
    return require("av", "video")


def _checked_path(path) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ArgumentError("a video must be the path of a file, or the number of a camera; got "
                            f"{type(path).__name__}")
    if is_url(path):
        raise ImageError("a video must be a file on this machine; got a URL. Download it first")
    if status(path := Path(path)) is None:
        raise ImageError(f"{path}: no such file")
    return path


def _file_frames(path, every):
    with _opened(path) as container:
        yield from _decoded(container, path, every)


def _camera_frames(number, every):
    if sys.platform != "linux":
        raise ArgumentError("cameras are read on Linux only. On other systems, pass the frames of another library as "
                            "arrays to detect")
    av, name = _av(), f"/dev/video{number}"
    try:
        container = av.open(name, format="v4l2")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{name}: the camera cannot be opened ({brief(error)}). Check its number and its "
                         "permissions") from None
    with container:
        yield from _decoded(container, name, every)


@contextlib.contextmanager
def _opened(path):
    """A video file as a container of PyAV with a video stream."""
    av = _av()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            # FFmpeg gets no path, which it could take for a protocol, and opens no other file
            container = stack.enter_context(av.open(file, container_options={
                "format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{path}: not a readable video ({brief(error)}); expected a complete file, such as .mp4, "
                             ".mkv or .avi") from None
        if not container.streams.video:
            raise ImageError(f"{path}: expected a video; got a file without pictures")
        if container.streams.video[0].codec_context is None:
            raise ImageError(f"{path}: expected a video in a codec that PyAV decodes; got another one, or damaged "
                             "data. Convert it with another program")
        yield container


def _decoded(container, name, every):
    """Yield every n-th frame of a container as an upright RGB array."""
    stream = container.streams.video[0]
    if limit := Image.MAX_IMAGE_PIXELS:
        if (n := stream.codec_context.width * stream.codec_context.height) > limit:
            raise ImageError(f"{name}: expected frames of at most {limit} pixels; got {n}. If you trust the file, "
                             "raise PIL.Image.MAX_IMAGE_PIXELS")
        # the size can change in the middle; twice the limit, because the buffers of a decoder have a margin
        stream.codec_context.options = {"max_pixels": str(2 * limit)}
    decoding = container.decode(stream)
    for number in itertools.count():
        with _reading(name, number):
            frame = next(decoding, None)
        if frame is None and number == 0:
            raise ImageError(f"{name}: expected a video with frames; got none. The file may be damaged")
        if frame is None:
            return
        if number % every == 0:
            yield _upright(frame, name, number)  # without a variable, which would keep the array in memory


@contextlib.contextmanager
def _reading(name, number):
    """Turn exceptions of FFmpeg into an ImageError."""
    try:
        yield
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{name}: frame {number} cannot be decoded ({brief(error)}). The file may be damaged; convert "
                         "it with another program") from None


def _upright(frame, name, number):
    with _reading(name, number):
        turns = round(frame.rotation / 90)  # counterclockwise
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))

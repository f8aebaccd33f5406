"""A worker process: it receives images and prompts, detects, and answers with JSON or a picture.

All heavy steps of a request run here: decoding, detection, drawing, and writing JSON.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .. import tiles
from ..detector import Model, prompts
from ..errors import ArgumentError, CheckpointError, Error, ImageError, PromptError, PromptWarning
from ..image import endings, open_image
from ..runtime.spawning import end_with_parent
from ..runtime.threads import set_threads
from ..version import __version__
from ..writing import encoded
from .messages import packed, receive
from .refusals import FAILED

MAX_PASSES = 64  # forward passes of an image: prompts times tiles
PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Setup:
    """What a worker needs at its start.

    Attributes:
        model: the pickled model, which is loaded from its path again, so that workers share its mapped weights.
        name: name of the model in answers.
        precision: precision of requests that name none.
        threads: number of threads.
        max_pixels: largest number of pixels of an image.
    """

    model: bytes
    name: str
    precision: str
    threads: int
    max_pixels: int


def run(connection: socket.socket, setup: Setup) -> None:
    """Process messages until the web process closes the connection.

    Args:
        connection: the worker's end of the connection.
        setup: model and limits.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the web process decides on the end
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    with connection, connection.makefile("rwb") as file:
        def send(header, blocks=()):
            file.writelines(packed({**header, "memory": own_memory()}, blocks))
            file.flush()

        try:
            model = _prepared(setup)
        except Error as error:
            send({"error": str(error)})
            return
        send({})
        while message := receive(file):
            if message[0]["kind"] == "ping":
                send({})
                continue
            send({"begun": True})  # a request is not tried any number of times after this
            header, content = answer(model, setup, *message)
            send(header, [content])
            if header.get("ends"):
                return


def _prepared(setup):
    """The model, after the settings of the process."""
    set_threads(setup.threads)
    Image.MAX_IMAGE_PIXELS = setup.max_pixels
    endings()  # imports the decoders, so that the first request does not wait for them
    model = pickle.loads(setup.model)
    model.tokenize("a cat")  # an error of the tokenizer ends the start, and not each request
    return model


class TooLarge(ImageError):
    """An image has more pixels than the server accepts."""


def answer(model: Model, setup: Setup, header: dict[str, Any], images: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Process a request.

    Args:
        model: the model.
        setup: name and limits.
        header: "text", "options" of `Model.detect`, "precision" or None, "draw" or None, and "waited", the seconds in
            the queue.
        images: contents of image files.

    Returns:
        The header of the answer, and its content. The header has "status" and "seconds"; "type" or "error"; and "ends",
        if this process must be replaced.
    """
    seconds = {"waited": header["waited"], "decoded": 0.0, "computed": 0.0}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only refuses twice as many pixels
            warnings.simplefilter("always", PromptWarning)
            model.precision = header["precision"] or setup.precision
            kind, content = _content(model, setup, header, images, seconds, caught)
        return {"status": 200, "seconds": seconds, "type": kind}, content
    except (ImageError, PromptError, ArgumentError) as error:
        status = 413 if isinstance(error, TooLarge) else 422
        return {"status": status, "seconds": seconds, "error": public(str(error))}, b""
    except MemoryError:
        text = "the server has too little memory for this request. Send a smaller image, or a smaller size"
        return {"status": 500, "seconds": seconds, "error": text, "ends": True}, b""
    except Exception as error:
        traceback.print_exc()
        ends = {"ends": True} if isinstance(error, CheckpointError) else {}  # a new process loads changed weights
        return {"status": 500, "seconds": seconds, "error": FAILED, **ends}, b""


def _content(model, setup, header, images, seconds, caught):
    """Type and content of the answer: a picture or JSON."""
    text, options, draw = header["text"], header["options"], header["draw"]
    passes = len(prompts(model, text))
    results: list[dict[str, Any]] = []
    errors = []
    for image in images:
        try:
            with _timed(seconds, "decoded"):
                picture = _opened(image, setup.max_pixels)
                _check_passes(passes, picture.size, options.get("tile"))
            with _timed(seconds, "computed"):
                found = model.detect(picture, text, **options)
                if draw:
                    return PICTURES[draw], _drawn(found, draw)
            results.append(found.to_dict())
        except ImageError as error:  # does not stop the other images
            results.append({"error": public(str(error))})
            errors.append(error)
    if len(errors) == len(images):
        raise errors[0]
    warned = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, PromptWarning))
    content = {"model": setup.name, "version": __version__, "results": results, "seconds": seconds,
               "warnings": list(warned)}
    return "application/json", json.dumps(content, allow_nan=False).encode()


@contextlib.contextmanager
def _timed(seconds, name):
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - began


def _opened(image, max_pixels):
    """Decode an image. Pillow reads its size first."""
    try:
        picture = open_image(image)
    except ImageError as error:
        if "MAX_IMAGE_PIXELS" not in str(error):
            raise
        raise _too_large(max_pixels) from None
    if picture.width * picture.height > max_pixels:  # of a format whose size is known after decoding
        raise _too_large(max_pixels)
    return picture


def _too_large(max_pixels):
    return TooLarge(f"an image must have at most {max_pixels} pixels; got more. Send a smaller one")


def _check_passes(prompts_of_image, size, tile):
    if (passes := prompts_of_image * len(tiles.views(size, tile))) > MAX_PASSES:
        raise ArgumentError(f"an image must take at most {MAX_PASSES} forward passes; got {passes}, for {size[0]} x "
                            f"{size[1]} pixels, tile={tile} and {prompts_of_image} prompt"
                            f"{'s' * (prompts_of_image != 1)}. Use a larger tile, or fewer phrases")


def _drawn(found, kind):
    try:
        return encoded(found.plot(), f"picture.{kind}")
    except ArgumentError:  # a WebP has at most 16383 pixels a side
        width, height = found.image_size
        raise ArgumentError(f"draw must be a format for {width} x {height} pixels; got {kind}. Use png") from None


def public(text: str) -> str:
    """Return a message for a client: one with a path of this machine becomes a general one, and goes to the log."""
    if not any(path in text for path in PRIVATE):
        return text
    print(text, file=sys.stderr, flush=True)
    return FAILED


PRIVATE = {str(path) for path in (Path(__file__).parent.parent, sys.prefix, tempfile.gettempdir(), Path.home())
           if len(Path(path).parts) > 1}


def own_memory() -> int:
    """Return the bytes of memory of this process that it does not share, without mapped files; 0 if unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return 0
    return 1024 * sum(int(size) for size in re.findall(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE))

"""Bodies of requests: multipart forms and JSON, checked and turned into what a worker needs."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .. import options
from ..errors import ArgumentError, brief
from ..prompt import MAX_CHARACTERS
from ..runtime.precision import PRECISIONS
from ..urls import is_url
from .refusals import Refused

MAX_IMAGES = 16
MAX_PHRASES = 2000
MAX_RESIZED = 2**22  # pixels of a resized image; a forward pass needs about 250 bytes of memory for each
MAX_PARTS = MAX_PHRASES + MAX_IMAGES + 32  # of a form
MAX_FIELD = 2**19  # bytes of a field that is no image: 8 for each character of the longest prompt
MAX_URL = 2**13  # characters
MAX_MARKS = 200_000  # of a JSON body: more than the longest prompt with its thresholds has, even of commas
DRAWN = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp", True: "png", False: None}
FLAGS = {"true": True, "false": False}
DEFAULTS: dict[str, Any] = {  # options of `Model.detect` in requests
    "threshold": 0.25, "text_threshold": 0.25, "size": None, "score": "max", "max_area": None, "nms": None,
    "class_agnostic": False, "max_detections": None, "tile": None}


@dataclass(frozen=True)
class Query:
    """A request for detections.

    Attributes:
        images: contents of files, or URLs as str.
        text: the prompt, a str or a list of phrases.
        options: options of `Model.detect`.
        precision: precision of the matrix products; None for that of the server.
        draw: "png", "jpeg" or "webp" if the answer is a picture; None for JSON.
        model: name of the model that the client expects; None for any.
        digests: digests of the images that are no URLs, by which repeated ones are known.
    """

    images: Sequence[bytes | str]
    text: str | list[str]
    options: dict[str, Any]
    precision: str | None
    draw: str | None
    model: str | None
    digests: Sequence[str]


def parse(body: bytes, content_type: str, allow_urls: bool) -> Query:
    """Parse and check the body of a request.

    Args:
        body: the complete body.
        content_type: the header Content-Type.
        allow_urls: whether images may be URLs.

    Returns:
        The request.

    Raises:
        Refused: 415 for another content type, 422 for anything else that is not as documented.
    """
    kind, parameters = parse_options_header(content_type)
    try:
        if kind == b"multipart/form-data":
            return _query(*_form(body, parameters.get(b"boundary", b"")), allow_urls)
        if kind == b"application/json":
            return _query(*_json(body), allow_urls)
    except ArgumentError as error:
        raise Refused(422, str(error)) from None
    raise Refused(415, "expected the content type multipart/form-data or application/json; got "
                  f"{brief(content_type) if content_type else 'none'}. See /docs for examples")


def _json(body):
    """Images and fields of a JSON body."""
    # each value follows one of these marks, which base64 lacks. json.loads blocks all threads, and needs up to 64 bytes
    # of memory for each value
    if (marks := sum(map(body.count, b",:[{"))) > MAX_MARKS:
        raise ArgumentError(f"expected JSON with at most {MAX_MARKS} of the characters , : [ {{; got {marks}. Send "
                            "several requests")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"expected JSON; got something else ({brief(error)}). See /docs for an example") from None
    if not isinstance(fields, dict):
        raise ArgumentError(f"expected a JSON object; got {brief(fields)}. See /docs for an example")
    images = fields.pop("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ArgumentError(f"images must be a list of texts in base64; got {brief(images)}")
    return [_decoded(image) for image in images], fields


def _decoded(image):
    """The bytes of an image in base64; a URL unchanged."""
    if image[:5].lower() == "data:":
        image = image.partition(",")[2]
    elif is_url(image):
        if len(image) > MAX_URL:
            raise ArgumentError(f"a URL must have at most {MAX_URL} characters; got {len(image)}. Send the bytes of "
                                "the image")
        return image
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArgumentError(f"images must be in base64; got {brief(image)} ({brief(error)}). Encode the bytes of the "
                            "file, without line breaks") from None


def _form(body, boundary):
    """Images and fields of a multipart form."""
    images: list[bytes] = []
    phrases: list[str] = []
    fields: dict[str, Any] = {}
    for name, is_file, content in _parts(body, boundary):
        if name == "image":
            images.append(content)
            continue
        if is_file:
            raise ArgumentError(f"a file must be in the field image; got one in {brief(name)}. Rename the field")
        if len(content) > MAX_FIELD:
            raise ArgumentError(f"the field {brief(name)} must have at most {MAX_FIELD} bytes; got {len(content)}. "
                                "Only image can be longer")
        try:
            value = content.decode()
        except UnicodeDecodeError:
            raise ArgumentError(f"the field {brief(name)} must be text in UTF-8; got other bytes") from None
        if name == "phrase":
            phrases.append(value)
        elif name == "phrases":
            raise ArgumentError("a form must have each phrase in a field phrase; got the field phrases. Rename it")
        elif name in fields:
            raise ArgumentError(f"the field {brief(name)} must be given once; got it twice. Only image and phrase can "
                                "be repeated")
        else:
            fields[name] = READ[name](value, name) if name in READ else value
    return images, {**fields, **({"phrases": phrases} if phrases else {})}


def _parts(body, boundary):
    """[(name, whether it is a file, content)] of each part of a form."""
    found: list[tuple[str, bool, bytes]] = []
    header, headers, content = [b"", b""], {}, bytearray()

    def begin():
        headers.clear()
        content.clear()
        if len(found) == MAX_PARTS:
            raise ArgumentError(f"a form must have at most {MAX_PARTS} parts; got more. Send several requests")

    def add(i):
        def callback(data, start, end):
            header[i] += data[start:end]
        return callback

    def end_header():
        headers[header[0].lower()] = header[1]
        header[:] = b"", b""

    def add_content(data, start, end):
        content.extend(memoryview(data)[start:end])

    def end():
        _, parameters = parse_options_header(headers.get(b"content-disposition", b""))
        name = parameters.get(b"name", b"").decode(errors="replace")
        found.append((name, b"filename" in parameters, bytes(content)))

    ended = []
    try:
        parser = MultipartParser(boundary, {
            "on_part_begin": begin, "on_header_field": add(0), "on_header_value": add(1), "on_header_end": end_header,
            "on_part_data": add_content, "on_part_end": end, "on_end": lambda: ended.append(True)})
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError, UnicodeError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"expected a multipart form; got something else ({brief(error)}). Let your HTTP library "
                            "write the form and its content type") from None
    if not ended:
        raise ArgumentError("expected a complete multipart form; its end is missing. Send it again")
    return found


def _number(text, name):
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{name} must be a number; got {brief(text)}. Write for example 0.3") from None


def _count(text, name):
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} must be a whole number; got {brief(text)}. Write for example 100") from None


def _threshold(text, name):
    """A number, or a JSON object with one for each phrase."""
    if not text.lstrip().startswith("{"):
        return _number(text, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"threshold must be a number, or JSON such as {{\"a cat\": 0.4}}; got {brief(text)} "
                            f"({brief(error)})") from None


def _flag(text, name):
    if text.lower() not in FLAGS:
        raise ArgumentError(f"{name} must be true or false; got {brief(text)}. Write one of them")
    return FLAGS[text.lower()]


def _format(text, _):
    return FLAGS.get(text.lower(), text)


def _edges(text, _):
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text


READ: Mapping[str, Callable[[str, str], Any]] = {  # how fields of a form are read; the others stay text
    "threshold": _threshold, "text_threshold": _number, "size": _edges, "max_area": _number, "nms": _number,
    "class_agnostic": _flag, "max_detections": _count, "tile": _count, "draw": _format}


def _query(images, fields, allow_urls):
    """Check images and fields, and return the request. A field that is null counts as absent."""
    fields = {name: value for name, value in fields.items() if value is not None}
    known = {"text", "phrases", "precision", "draw", "model", *DEFAULTS}
    if unknown := sorted(fields.keys() - known):
        raise ArgumentError(f"expected fields of the names {', '.join(sorted(known))}; got {brief(unknown[0])}")
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ArgumentError(f"expected 1 to {MAX_IMAGES} images; got {len(images) or 'none'}. "
                            "A form has them in the field image, JSON in the list images")
    if not allow_urls and any(isinstance(image, str) for image in images):
        raise ArgumentError("images must be in base64; got a URL, which this server does not download. Send the bytes "
                            "of the file, or start the server with --allow-urls")
    if not all(images):
        raise ArgumentError("an image must have bytes; got an empty one. Choose a file")
    draw = _draw(fields.get("draw", False))
    if draw and len(images) > 1:
        raise ArgumentError(f"draw expects one image, because the answer is a picture; got {len(images)}. Send a "
                            "request for each")
    precision = fields.get("precision")
    if precision is not None and precision not in PRECISIONS:
        raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}; got {brief(precision)}")
    if "size" in fields:
        _check_size(fields["size"])
    chosen = {name: fields.get(name, default) for name, default in DEFAULTS.items()}
    if isinstance(chosen["threshold"], dict):
        _check_characters("threshold", chosen["threshold"])
    options.checked(**chosen, chunk=None)
    digests = [hashlib.blake2b(image, digest_size=16).hexdigest() for image in images if isinstance(image, bytes)]
    return Query(images, _text(fields), chosen, precision, draw, fields.get("model"), digests)


def _check_size(size):
    if not isinstance(size, list) or [type(edge) for edge in size] != [int, int] or min(size) < 1:
        raise ArgumentError(f"size must be the shortest and the longest edge in pixels; got {brief(size)}. Write for "
                            "example 800,1333 in a form, and [800, 1333] in JSON")
    if size[0] * size[1] > MAX_RESIZED:
        raise ArgumentError(f"size must be two edges whose product is at most {MAX_RESIZED}; got {brief(size)}. Use a "
                            "smaller size")


def _draw(value):
    """The format of the picture; None for JSON."""
    if not isinstance(value, (str, bool)) or value not in DRAWN:
        raise ArgumentError(f"draw must be png, jpeg or webp; got {brief(value)}")
    return DRAWN[value]


def _text(fields: Mapping[str, Any]) -> str | list[str]:
    """The prompt: a str or a list of phrases."""
    text, phrases = fields.get("text"), fields.get("phrases")
    if (text is None) == (phrases is None):
        raise ArgumentError(f"expected either text or phrases; got {'neither' if text is None else 'both'}. Give for "
                            'example the text "a cat. a dog."')
    if isinstance(text, str):
        _check_characters("text", [text])
        return text
    if text is not None:
        raise ArgumentError(f"text must be a text such as \"a cat. a dog.\"; got {brief(text)}")
    if not isinstance(phrases, list) or not all(isinstance(one, str) for one in phrases):
        raise ArgumentError(f'phrases must be a list such as ["a cat", "a dog"]; got {brief(phrases)}')
    if len(phrases) > MAX_PHRASES:
        raise ArgumentError(f"expected at most {MAX_PHRASES} phrases; got {len(phrases)}. Send several requests")
    _check_characters("phrases", phrases)
    return phrases


def _check_characters(name, texts):
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise ArgumentError(f"{name} must have at most {MAX_CHARACTERS} characters in total; got more. Send several "
                            "requests")

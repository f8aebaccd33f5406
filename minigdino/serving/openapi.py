"""The description of the API: the parts that FastAPI cannot derive, and the page /docs."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any

from ..runtime.precision import PRECISIONS
from .bodies import DRAWN, MAX_CHARACTERS, MAX_IMAGES, MAX_PHRASES, MAX_RESIZED, MAX_URL

DESCRIPTION = "Open-set object detection: images and a prompt in, boxes with the phrases of the prompt out."


def _number(text, low=0.0, high=1.0, **more):
    return {"type": "number", "minimum": low, "maximum": high, "description": text, **more}


SIZE = f"Shortest and longest edge of the resized image, in pixels. Their product is at most {MAX_RESIZED}."
THRESHOLD = _number("Score that a detection must exceed.", default=0.25)
COMMON: dict[str, Any] = {  # fields of both kinds of bodies
    "text": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS,
             "description": 'The prompt, such as "a cat. a dog."', "examples": ["a cat. a dog."]},
    "text_threshold": _number('Probability that a token must exceed to become part of "phrase".', default=0.25),
    "score": {"enum": ["max", "mean"], "default": "max",
              "description": "Whether the score is the highest probability of a token, or the mean of a phrase."},
    "max_area": _number("Largest fraction of the image that a box may cover.", exclusiveMinimum=0),
    "nms": _number("IoU above which non-maximum suppression removes the box with the lower score."),
    "class_agnostic": {"type": "boolean", "description": "With nms or tile: also between different labels."},
    "max_detections": {"type": "integer", "minimum": 1, "description": "Largest number of detections of an image."},
    "tile": {"type": "integer", "minimum": 64, "description": "Side in pixels of tiles in which small objects are "
             "searched, too. Each takes a forward pass."},
    "precision": {"enum": list(PRECISIONS), "description": "Precision of the matrix products."},
    "draw": {"enum": list(DRAWN), "description": "Format of a picture with the boxes, which is then the "
             "answer; true for png. For one image."},
    "model": {"type": "string", "description": "Name of the model that is expected; see /v1/models."}}
PHRASES = {"type": "array", "minItems": 1, "maxItems": MAX_PHRASES, "uniqueItems": True,
           "items": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}}
OF_PHRASES = f"Phrases of the prompt, instead of text, of {MAX_CHARACTERS} characters in total"
FORM = {"type": "object", "required": ["image"], "additionalProperties": False,
        "oneOf": [{"required": ["text"]}, {"required": ["phrase"]}], "properties": {
    "image": {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES,
              "items": {"type": "string", "format": "binary"}, "description": "Image files; repeat the field."},
    "phrase": {**PHRASES, "description": f"{OF_PHRASES}; repeat the field."},
    "threshold": {"type": "string", "default": "0.25",
                  "description": "Score that a detection must exceed, or JSON with one for each phrase."},
    "size": {"type": "string", "pattern": r"^[1-9]\d*,[1-9]\d*$", "examples": ["800,1333"], "description": SIZE},
    **COMMON, "draw": {**COMMON["draw"], "enum": [str(kind).lower() for kind in DRAWN]}}}
OBJECT = {"type": "object", "required": ["images"], "additionalProperties": False,
          "oneOf": [{"required": ["text"]}, {"required": ["phrases"]}], "properties": {
    "images": {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES,
               "items": {"anyOf": [{"type": "string", "contentEncoding": "base64", "minLength": 4},
                                   {"type": "string", "format": "uri", "pattern": "^https?://", "maxLength": MAX_URL}]},
               "description": "Images in base64, or URLs if the server allows them."},
    "phrases": {**PHRASES, "description": f"{OF_PHRASES}.", "examples": [["a cat", "a dog"]]},
    "threshold": {"oneOf": [THRESHOLD, {"type": "object", "additionalProperties": _number("Threshold of a phrase.")}],
                  "description": "Score that a detection must exceed, or one for each phrase.", "default": 0.25},
    "size": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2,
             "description": SIZE}, **COMMON}}
DETECTION = {"type": "object", "required": ["box", "score", "label", "label_id", "phrase"], "properties": {
    "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
            "description": "Left, top, right, bottom in pixels of the upright image, not clipped to it."},
    "score": {"type": "number"}, "label": {"type": "string", "description": "One of the phrases."},
    "label_id": {"type": "integer", "description": "Index of the label in the phrases, from 0."},
    "phrase": {"type": "string", "description": "Tokens above text_threshold."}}}
ERROR = {"type": "object", "required": ["error"], "properties": {
    "error": {"type": "string", "description": "What was expected, what came, and the next step."}}}
RESULT = {"oneOf": [{"type": "object", "required": ["width", "height", "detections"], "properties": {
    "width": {"type": "integer"}, "height": {"type": "integer"},
    "detections": {"type": "array", "items": DETECTION}}}, ERROR]}
ANSWER = {"type": "object", "required": ["model", "version", "results", "seconds", "warnings"], "properties": {
    "model": {"type": "string"}, "version": {"type": "string", "description": "Version of minigdino."},
    "results": {"type": "array", "items": RESULT, "description": "One entry per image, in their order. An image that "
                "cannot be used has an error, if there are others."},
    "seconds": {"type": "object", "required": ["waited", "decoded", "computed"], "properties": {
        "waited": {"type": "number"}, "decoded": {"type": "number"}, "computed": {"type": "number"}}},
    "warnings": {"type": "array", "items": {"type": "string"}, "description": "Warnings about the prompt."}}}
REFUSALS = {
    403: "A web page of another origin sent the request.",
    408: "The request did not arrive in time, or too slowly while the memory for requests was full.",
    413: "The request has too many bytes, or an image too many pixels.", 415: "The content type is not supported.",
    422: "A field or an image cannot be used.", 500: "The server failed.",
    503: "The queue, the memory for requests or the queue for downloads is full, or the server ends. Retry-After "
         "states the seconds to wait.",
    504: "There was no answer in time."}
KEYS = {"bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}


def _json(text, schema):
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _object(**kinds):
    return {"type": "object", "required": list(kinds), "properties": {
        name: {"type": kind} for name, kind in kinds.items()}}


LIVE = {200: _json("The web process answers.", _object(live="boolean"))}
READY = {status: _json(text, _object(ready="boolean", queue="integer", workers="integer", busy="integer"))
         for status, text in ((200, "A worker has made progress lately."),
                              (503, "No worker has made progress lately, or the server ends."))}
MODELS = {200: _json("The model.", {"type": "object", "required": ["models"], "properties": {"models": {
    "type": "array", "items": _object(name="string", version="string", precision="string")}}})}
METRICS = {200: {"description": "The figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
PICTURE = {"schema": {"type": "string", "format": "binary"}}
DETECT: dict[str, Any] = {  # arguments of the route
    "operation_id": "detect",
    "responses": {
        200: {"description": "The detections, or the picture with draw.", "content": {
            "application/json": {"schema": ANSWER}, "image/png": PICTURE, "image/jpeg": PICTURE,
            "image/webp": PICTURE}},
        **{status: _json(text, ERROR) for status, text in REFUSALS.items()}},
    "openapi_extra": {"requestBody": {"required": True, "content": {
        "multipart/form-data": {"schema": FORM}, "application/json": {"schema": OBJECT}}}}}


def add_key(description: dict[str, Any], is_open: Callable[[str], bool]) -> None:
    """Add the key of the server to the description of the API.

    Args:
        description: the OpenAPI description, which is changed.
        is_open: function that returns whether a path needs no key.
    """
    description.setdefault("components", {})["securitySchemes"] = KEYS
    for path, methods in description["paths"].items():
        for route in () if is_open(path) else methods.values():
            route["security"] = [{name: []} for name in KEYS]
            route["responses"]["401"] = _json("The key is missing or wrong.", ERROR)


def page(description: dict[str, Any]) -> str:
    """Return the page /docs: the description of the API as HTML, without scripts.

    Args:
        description: the OpenAPI description.

    Returns:
        The HTML page.
    """
    routes = "".join(_route(path, method, route) for path, methods in description["paths"].items()
                     for method, route in methods.items())
    info = description["info"]
    title = f"{info['title']} {info['version']}"
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}: API</title>'
            '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="static/docs.css">'
            f"<main><h1>{html.escape(title)}</h1><p>{html.escape(info['description'])} "
            'As JSON: <a href="openapi.json">openapi.json</a>. To try it: <a href="./">the page</a>.</p>'
            f"{routes}</main></html>")


def _route(path, method, route):
    parts = [f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(route['description'])}</p>"]
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body: {html.escape(kind)}</h3>{_fields(content['schema'])}")
    for status, answer in route["responses"].items():
        parts.append(f"<h3>{status}</h3><p>{html.escape(answer['description'])}</p>")
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        if status == "200" and "properties" in schema:
            parts.append(_fields(schema))
    return f"<section>{''.join(parts)}</section>"


def _fields(schema):
    """A table of the fields of an object."""
    rows = "".join(f"<tr><td><code>{html.escape(name)}</code>{' *' * (name in schema.get('required', ()))}</td>"
                   f"<td>{html.escape(_kind(field))}</td><td>{html.escape(field.get('description', ''))}</td></tr>"
                   for name, field in schema["properties"].items())
    return f"<table><tr><th>field</th><th>type</th><th></th></tr>{rows}</table>"


def _kind(field):
    kind = field.get("type") or ", ".join(map(json.dumps, field.get("enum", ())))
    return kind or " or ".join(map(_kind, field["oneOf"]))

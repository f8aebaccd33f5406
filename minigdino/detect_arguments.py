"""Arguments that `minigdino detect` and `minigdino run` share: sources, prompt, and options of detection."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from . import __version__, files
from .checkpoints.fingerprint import fingerprint
from .detector import Model
from .errors import ArgumentError, brief
from .misplaced import misplaced
from .prompt import Prompt, as_label

# option -> value that leaves the result as it is. Such an option is not in the header of JSON Lines, so that files of
# versions without it can be resumed
OPTIONAL = {"chunk": None, "score": "max", "max_area": None, "nms": None, "class_agnostic": False,
            "max_detections": None, "tile": None}


def sources_and_text(arguments: argparse.Namespace) -> tuple[list[str], str | list[str]]:
    """Separate the sources from the prompt, which is TEXT or the phrases of --phrase or --phrases.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message, and `verb` is the name of
            the command.

    Returns:
        The sources, at least one, and the prompt.

    Raises:
        ArgumentError: if the file of --phrases cannot be used.
        SystemExit: with status 2, if the arguments do not fit together.
    """
    phrases = _listed(arguments)
    *sources, text = arguments.source if not phrases else [*arguments.source, phrases]
    if not sources:
        arguments.error(f'give an image and a text: minigdino {arguments.verb} cat.jpg "a cat."')
    if mistake := misplaced(sources, text, arguments.verb):
        arguments.error(mistake)
    if arguments.chunk is not None and isinstance(text, str):
        arguments.error("--chunk needs the phrases by --phrase or --phrases; got TEXT, which is always one prompt")
    return sources, text


def _listed(arguments):
    """The phrases of --phrase or of --phrases; None for TEXT."""
    if arguments.phrase and arguments.phrases:
        arguments.error("expected --phrase or --phrases; got both. Add the phrase to the file")
    return files.read_phrases(arguments.phrases) if arguments.phrases else arguments.phrase


def check_limits(arguments: argparse.Namespace, limits: Mapping[str, tuple[float, float]]) -> None:
    """Check the values of options. One that is not given is None.

    Args:
        arguments: the parsed arguments.
        limits: {name in `arguments`: (lowest value, highest value)}.

    Raises:
        ArgumentError: if a value is out of its range.
    """
    for name, (low, high) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            raise ArgumentError(f"--{name.replace('_', '-')} must be {low} to {high}; got {value}")


def options(arguments: argparse.Namespace, phrases: Sequence[str]) -> dict[str, Any]:
    """Return the options of `Model.detect`.

    Args:
        arguments: the parsed arguments.
        phrases: the phrases of the prompt.

    Raises:
        SystemExit: with status 2, if --phrase-threshold names a phrase twice.
    """
    threshold = arguments.threshold
    if arguments.phrase_threshold:
        named: dict[str, float] = {}
        for phrase, value in arguments.phrase_threshold:
            if (label := as_label(phrase)) in named:
                arguments.error(f"expected --phrase-threshold once for a phrase; got {brief(label)} twice. Keep one of "
                                "them")
            named[label] = value
        threshold = {**dict.fromkeys(phrases, threshold), **named}
    return {"threshold": threshold, "text_threshold": arguments.text_threshold, "size": arguments.size,
            **{name: value for name, default in OPTIONAL.items()
               if (value := getattr(arguments, name)) != default}}


def header(model: Model, parts: Sequence[Prompt], options: dict[str, Any]) -> dict[str, Any]:
    """Return all that determines the result of an image, as the header of JSON Lines.

    Args:
        model: the model.
        parts: the prompts of an image, as from `detector.prompts`.
        options: result of `options`.
    """
    tokens = [prompt.ids.tolist() for prompt in parts]
    return {"minigdino": __version__, "model": str(model.source),
            "fingerprint": fingerprint(model.tensors, model.config, model.settings.to_dict()),
            "text": [phrase for prompt in parts for phrase in prompt.phrases],
            "tokens": tokens if len(tokens) > 1 else tokens[0], **options, "precision": model.precision}

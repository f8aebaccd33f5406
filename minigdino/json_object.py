"""JSON objects whose fields are checked when they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from .errors import ArgumentError, brief
from .prompt import as_label


class JsonObject:
    """An object in a file that a user wrote, such as annotations.

    Its methods return fields, and raise an ArgumentError for one that is invalid.

    Args:
        values: the object.
        place: its file, and its place in it, for error messages.

    Raises:
        ArgumentError: if `values` is not a dict.
    """

    def __init__(self, values: Any, place: str):
        if not isinstance(values, dict):
            raise ArgumentError(f"{place}: expected a JSON object; got {brief(values)}. Correct the entry")
        self.values, self.place = values, place

    def __contains__(self, name):
        return name in self.values

    def field(self, name: str, is_valid: Callable[[Any], bool], expected: str) -> Any:
        """Return the value of a field if it is valid."""
        value = self.values.get(name)
        if not is_valid(value):
            got = brief(value) if name in self else "no such field"
            raise ArgumentError(f'{self.place}: expected {expected} as "{name}"; got {got}. Correct the entry')
        return value

    def text(self, name: str) -> str:
        """Return a str that is not empty as a label."""
        return self.field(name, lambda value: isinstance(value, str) and bool(as_label(value)), "a text")

    def number(self, name: str) -> int:
        """Return an int. JSON has bools, too, which Python counts as ints."""
        return self.field(name, lambda value: type(value) is int, "an int")

    def flag(self, name: str) -> bool:
        """Return whether a field is 1. It may be 0, or missing."""
        return bool(name in self and self.field(name, lambda value: value in (0, 1), "0 or 1"))

    def reference(self, name: str, known: Collection[int], what: str) -> int:
        """Return an id in a field that refers to another object.

        Args:
            name: the field.
            known: the ids that exist.
            what: name of the list of the objects that have them, for the message.
        """
        if (number := self.number(name)) not in known:
            raise ArgumentError(f'{self.place}: expected the id of one of the {len(known)} {what} as "{name}"; got '
                                f"{brief(number)}. Correct the entry, or remove it")
        return number

    def size(self) -> tuple[int, int] | None:
        """Return width and height of an image; None if the object has neither."""
        if not ("width" in self or "height" in self):
            return None
        width, height = (self.field(name, lambda value: type(value) is int and value > 0, "a positive int")
                         for name in ("width", "height"))
        return width, height

    def part(self, name: str) -> JsonObject:
        """Return an object in a field."""
        return JsonObject(self.values.get(name), f"{self.place}: {name}")

    def objects(self, name: str) -> Iterator[JsonObject]:
        """Return the objects of a list in a field."""
        values = self.field(name, lambda value: isinstance(value, list), "a list")
        return (JsonObject(value, f"{self.place}: {name}[{i}]") for i, value in enumerate(values))

"""A shard: one of n parts of many images, by a hash of their names.

The hash depends on the name alone. So images that are added later change no other image's shard, and processes that
know nothing of each other agree on the parts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..errors import ArgumentError, brief


@dataclass(frozen=True)
class Shard:
    """A part of the images.

    Attributes:
        number: number of the part, from 1.
        of: number of parts.
    """

    number: int
    of: int

    def __post_init__(self):
        if not (type(self.number) is type(self.of) is int and 1 <= self.number <= self.of):
            raise ArgumentError(f"a shard must be i/n with 1 <= i <= n, such as 1/4; got {brief(self.number)}/"
                                f"{brief(self.of)}")

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """Read a shard from a text such as "1/4".

        Raises:
            ArgumentError: for any other text.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and len(text) < 40):  # Python limits the digits of an int
            raise ArgumentError(f"a shard must be i/n with 1 <= i <= n, such as 1/4; got {brief(text)}")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def __contains__(self, name: str | int) -> bool:
        digest = hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.of == self.number - 1


def file_name(start: str, shard: Shard | None = None) -> str:
    """Return the name of the JSON Lines of a shard, such as "found-2-of-4.jsonl".

    Args:
        start: the start of the name, such as "found".
        shard: the shard; None for all images.
    """
    return f"{start}.jsonl" if shard is None else f"{start}-{shard.number}-of-{shard.of}.jsonl"

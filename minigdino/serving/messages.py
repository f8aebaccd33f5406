"""Messages between the web process and a worker: a JSON header, then blocks of bytes such as images.

The header is not pickled: a worker decodes images of strangers, and its messages must not run code in the web process.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = "tuple[dict[str, Any], list[bytes]]"
PREFIX = 4  # bytes that state the length of the header


def packed(header: dict[str, Any], blocks: Sequence[bytes] = ()) -> Iterable[bytes]:
    """Return a message as parts of bytes.

    Args:
        header: values that JSON can represent.
        blocks: further contents.

    Returns:
        The bytes to send, one part after the other.
    """
    text = json.dumps({**header, "sizes": [len(block) for block in blocks]}).encode()
    return [len(text).to_bytes(PREFIX, "big") + text, *blocks]


def receive(file: io.BufferedReader | io.BufferedRWPair) -> Message | None:
    """Read a message from a blocking file.

    Args:
        file: buffered file of a socket.

    Returns:
        The header and the blocks; None at the end of the file.
    """
    header = json.loads(file.read(int.from_bytes(file.read(PREFIX), "big")) or "null")
    return header and (header, [file.read(size) for size in header.pop("sizes")])


async def read(reader: asyncio.StreamReader) -> Message:
    """Read a message from a stream.

    Args:
        reader: the stream.

    Returns:
        The header and the blocks.

    Raises:
        IncompleteReadError: if the stream has ended.
    """
    header = json.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(PREFIX), "big")))
    return header, [await reader.readexactly(size) for size in header.pop("sizes")]

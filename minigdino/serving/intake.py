"""Requests on their way into the web process: bodies and URLs of images, with limits on bytes and seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from .. import urls
from ..errors import ImageError
from . import bodies
from .refusals import LATE, LEFT, Refused

HELD = 16  # requests of the largest size that may be in memory before others are refused
SMALL = 2**16  # bytes of a body that is parsed at once; others are parsed in a thread
DOWNLOADS = 4  # URLs that are downloaded at the same time


@dataclass(eq=False)
class _Share:
    """What one request has of the memory for all.

    Attributes:
        size: its bytes in memory.
        has_arrived: whether its body is complete.
    """

    size: int = 0
    has_arrived: bool = False


class Intake:
    """Reads requests, with limits for each and for all of them together.

    Args:
        max_bytes: largest number of bytes of a body.
        timeout: seconds from the head of a request to its answer.
        allow_urls: whether images may be URLs.
    """

    def __init__(self, max_bytes: int, timeout: float, allow_urls: bool):
        self._max_bytes, self._timeout, self._allow_urls = max_bytes, timeout, allow_urls
        self._held = 0  # bytes in memory
        self._parser = ThreadPoolExecutor(1)  # one body at a time: parsing needs several times its memory

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bodies.Query]:
        """Read and parse a body, which counts as held until the end of the block. The time limit includes the block.

        Args:
            request: the request.

        Yields:
            What the body asks for.

        Raises:
            Refused: 408, 413 or 503 for a limit of the body, 504 if the block takes too long, 499 if the client leaves,
                or as `bodies.parse` does.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_large()
        share = _Share()
        try:
            async with asyncio.timeout(self._timeout):
                yield await self._parsed(await self._body(request, share), request.headers.get("content-type", ""))
        except TimeoutError:
            if share.has_arrived:
                raise Refused(504, LATE.format(self._timeout)) from None
            raise Refused(408, f"expected the whole request within {self._timeout:g} s; a part is missing. Send it "
                          "again", {"Connection": "close"}) from None
        finally:
            self._held -= share.size

    async def _body(self, request, share):
        body = bytearray()
        try:
            async for part in request.stream():
                if len(body) + len(part) > self._max_bytes:
                    raise self._too_large()
                self._take(share, len(part))
                body += part
        except ClientDisconnect:
            raise Refused(LEFT, "the client has left") from None
        share.has_arrived = True
        return bytes(body)

    def _take(self, share, size):
        """Count bytes of a request."""
        if self._held + size > HELD * self._max_bytes:
            raise Refused(503, "the server is busy: it receives many large images. Try again in 1 s",
                          {"Retry-After": "1"})
        self._held += size
        share.size += size

    async def _parsed(self, body, content_type):
        arguments = body, content_type, self._allow_urls
        if len(body) <= SMALL:
            return bodies.parse(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._parser, bodies.parse, *arguments)

    def _too_large(self):
        return Refused(413, f"a request must have at most {self._max_bytes} bytes; got more. Send a smaller or more "
                       "compressed image")


class Downloads:
    """Downloads images, in threads.

    Args:
        max_bytes: largest number of bytes of an image.
    """

    def __init__(self, max_bytes):
        self._max_bytes, self._free = max_bytes, asyncio.Semaphore(DOWNLOADS)

    async def all(self, images: Sequence[bytes | str]) -> list[bytes]:
        """Return images as bytes: those of a URL are downloaded."""
        try:
            return [image if isinstance(image, bytes) else await self._one(image) for image in images]
        except ImageError as error:
            raise Refused(422, str(error)) from None

    async def _one(self, url):
        async with self._free:
            found = await asyncio.to_thread(urls.download, url)
        if len(found) > self._max_bytes:
            raise Refused(413, f"an image must have at most {self._max_bytes} bytes; the one of the URL has "
                          f"{len(found)}. Use a smaller one")
        return bytes(found)

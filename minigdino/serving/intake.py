"""Requests on their way into the web process: bodies and URLs of images, with limits on bytes and seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import ClientDisconnect, Request

from .. import urls
from ..errors import ImageError
from . import bodies
from .refusals import LEFT, Refused

HELD = 16  # bodies of the largest size that may be in memory before others are refused
SMALL = 2**16  # bytes of a body that is parsed at once; others are parsed in a thread
DOWNLOADS = 4  # URLs that are downloaded at the same time


class Intake:
    """Reads bodies, with limits for each and for all of them together.

    Args:
        max_bytes: largest number of bytes of a body.
        timeout: seconds in which a body must arrive.
        allow_urls: whether images may be URLs.
    """

    def __init__(self, max_bytes: int, timeout: float, allow_urls: bool):
        self._max_bytes, self._timeout, self._allow_urls = max_bytes, timeout, allow_urls
        self._held = 0  # bytes in memory

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bodies.Query]:
        """Read and parse a body, which counts as held until the end of the block.

        Args:
            request: the request.

        Yields:
            What the body asks for.

        Raises:
            Refused: 408, 413 or 503 for a limit, 499 if the client leaves, or as `bodies.parse` does.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_large()
        body, size = bytearray(), 0
        try:
            await self._collect(request, body)
            size = len(body)
            arguments = bytes(body), request.headers.get("content-type", ""), self._allow_urls
            body.clear()  # the images are copies
            query = bodies.parse(*arguments) if size <= SMALL else await asyncio.to_thread(bodies.parse, *arguments)
            del arguments
            yield query
        finally:
            self._held -= size or len(body)

    async def _collect(self, request, body):
        """Append the parts of a body."""
        try:
            async with asyncio.timeout(self._timeout):
                async for part in request.stream():
                    body += part
                    self._held += len(part)
                    if len(body) > self._max_bytes:
                        raise self._too_large()
                    if self._held > HELD * self._max_bytes:
                        raise Refused(503, "the server is busy: it receives many large images. Try again in 1 s",
                                      {"Retry-After": "1"})
        except TimeoutError:
            raise Refused(408, f"expected the whole request within {self._timeout:g} s; a part is missing. Send it "
                          "again", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise Refused(LEFT, "the client has left") from None

    def _too_large(self):
        return Refused(413, f"a request must have at most {self._max_bytes} bytes; got more. Send a smaller or more "
                       "compressed image")


class Downloads:
    """Downloads images, in threads.

    Args:
        max_bytes: largest number of bytes of an image.
        timeout: seconds for all images of a request.
    """

    def __init__(self, max_bytes, timeout):
        self._max_bytes, self._timeout, self._free = max_bytes, timeout, asyncio.Semaphore(DOWNLOADS)

    async def all(self, images: Sequence[bytes | str]) -> list[bytes]:
        """Return images as bytes: those of a URL are downloaded."""
        try:
            async with asyncio.timeout(self._timeout):
                return [image if isinstance(image, bytes) else await self._one(image) for image in images]
        except TimeoutError:
            raise Refused(504, f"expected to download all images within {self._timeout:g} s; some are missing. Send "
                          "their bytes") from None
        except ImageError as error:
            raise Refused(422, str(error)) from None

    async def _one(self, url):
        async with self._free:
            found = await asyncio.to_thread(urls.download, url)
        if len(found) > self._max_bytes:
            raise Refused(413, f"an image must have at most {self._max_bytes} bytes; the one of the URL has "
                          f"{len(found)}. Use a smaller one")
        return bytes(found)

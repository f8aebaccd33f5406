"""Requests on their way into the web process: bodies and URLs of images, with limits on bytes and seconds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

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
        max_bytes: largest number of bytes of a request: of its body, and of the images of its URLs.
        timeout: seconds from the head of a request to its answer.
        allow_urls: whether images may be URLs.
    """

    def __init__(self, max_bytes: int, timeout: float, allow_urls: bool):
        self._max_bytes, self._timeout, self._allow_urls = max_bytes, timeout, allow_urls
        self._held = 0  # bytes in memory
        self._places = asyncio.Semaphore(DOWNLOADS)
        self._parser = ThreadPoolExecutor(1)  # one body at a time: parsing needs several times its memory

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bodies.Query]:
        """Read and parse a body, and download its images. All of it counts as held until the end of the block.

        The time limit includes the block.

        Args:
            request: the request.

        Yields:
            What the body asks for, without URLs.

        Raises:
            Refused: 408, 413, 503 or 504 for a limit, 499 if the client leaves, 422 if a URL cannot be downloaded, or
                as `bodies.parse` does.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_large()
        share = _Share()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                query = await self._parsed(await self._body(request, share), request.headers.get("content-type", ""))
                if not all(isinstance(image, bytes) for image in query.images):
                    images = await unless_gone(request, self._downloaded(query.images, share, limit.when()))
                    query = replace(query, images=images)
                yield query
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
        return Refused(413, f"a request must have at most {self._max_bytes} bytes, images of URLs included; got more. "
                       "Send a smaller or more compressed image")

    async def _downloaded(self, images, share, deadline):
        """Images as bytes: those of a URL are downloaded."""
        try:
            return [image if isinstance(image, bytes) else await self._download(image, share, deadline)
                    for image in images]
        except urls.TooLarge:
            raise self._too_large() from None
        except ImageError as error:
            raise Refused(422, str(error)) from None

    async def _download(self, url, share, deadline):
        """Download an image in a thread, which keeps its place and its memory until it ends, also without the request.

        Neither parsing nor the end of the process waits for the thread: a name server can take any time.
        """
        loop = asyncio.get_running_loop()
        await self._places.acquire()
        room, found = _Share(), loop.create_future()

        def finish(content, error):
            """Free the place and the memory, in the event loop."""
            self._places.release()
            self._held -= room.size
            if not found.done():  # else the request has ended
                self._held += len(content)
                share.size += len(content)
                found.set_result((content, error))

        def work(seconds):
            """Download, in the thread."""
            content, error = b"", None
            try:
                content = urls.download(url, max_bytes=room.size, seconds=seconds)
            except Exception as problem:
                error = problem
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(finish, content, error)

        try:
            self._take(room, self._max_bytes - share.size)
            seconds = min(urls.MAX_SECONDS, deadline - loop.time())
            threading.Thread(target=work, args=[seconds], daemon=True).start()
        except Exception as error:
            finish(b"", error)
        content, error = await found
        if error:
            raise error
        return content


async def unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """Await an answer, and cancel it if the client leaves.

    Args:
        request: the request, whose body has arrived.
        answer: the answer.

    Returns:
        The result of the answer.

    Raises:
        Refused: 499 if the client leaves.
    """
    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Refused(LEFT, "the client has left")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

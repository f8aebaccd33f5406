"""Requests on their way into the web process: bodies and URLs of images, with limits on bytes and seconds."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request

from .. import urls
from . import bodies
from .refusals import LATE, LEFT, Refused, busy

HELD = 16  # requests of the largest size that may be in memory before others are refused
SLOW, STEP = 2.0, 2**16  # a body is slow if its next STEP bytes take more than SLOW seconds
SMALL = 2**16  # bytes of a body that is parsed at once; others are parsed in a thread
DOWNLOADS = 4  # URLs that are downloaded at the same time
PENDING = 4 * DOWNLOADS  # requests that wait for a download; others are refused


@dataclass(eq=False)
class _Upload:
    """Memory and time limit of one request.

    Attributes:
        limit: its time limit.
        size: its bytes in memory.
        mark: its bytes at the last step of its body.
        since: the time of that step.
        has_arrived: whether its body is complete.
        is_ended: whether it had to make room.
    """

    limit: asyncio.Timeout
    size: int = 0
    mark: int = 0
    since: float = 0.0
    has_arrived: bool = False
    is_ended: bool = False


class Intake:
    """Reads requests, with limits for each and for all of them together.

    Args:
        max_bytes: largest number of bytes of a request: of its body, and of the images of its URLs.
        timeout: seconds from the head of a request to its answer.
        allow_urls: whether images may be URLs.
        wait_seconds: function that estimates the seconds until a request in memory is answered.
    """

    def __init__(self, max_bytes: int, timeout: float, allow_urls: bool, wait_seconds: Callable[[], int]):
        self._max_bytes, self._timeout, self._allow_urls = max_bytes, timeout, allow_urls
        self._wait_seconds = wait_seconds
        self._held = 0  # bytes in memory
        self._arriving: set[_Upload] = set()
        self._places = asyncio.Semaphore(DOWNLOADS)
        self._pending = 0  # requests that wait for a place
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
        upload = _Upload(asyncio.timeout(self._timeout))
        try:
            async with upload.limit:
                query = await self._parsed(await self._body(request, upload), request.headers.get("content-type", ""))
                if not all(isinstance(image, bytes) for image in query.images):
                    images = await unless_gone(request, self._downloaded(query.images, upload))
                    query = replace(query, images=images)
                yield query
        except TimeoutError:
            if upload.has_arrived:
                raise Refused(504, LATE.format(self._timeout)) from None
            if upload.is_ended:
                raise Refused(408, f"the server is busy: it expected {STEP} bytes within {SLOW:g} s; got fewer. Send "
                              "the request again", {"Connection": "close"}) from None
            raise Refused(408, f"expected the whole request within {self._timeout:g} s; a part is missing. Send it "
                          "again", {"Connection": "close"}) from None
        finally:
            self._held -= upload.size

    async def _body(self, request, upload):
        body, time = bytearray(), asyncio.get_running_loop().time
        upload.since = time()
        self._arriving.add(upload)
        try:
            async for part in request.stream():
                if len(body) + len(part) > self._max_bytes:
                    raise self._too_large()
                body += part
                self._held += len(part)
                upload.size += len(part)
                self._make_room()
                if upload.is_ended:  # by its limit at the next pause only; the body may be complete before
                    raise TimeoutError
                if upload.size >= upload.mark + STEP:
                    upload.mark, upload.since = upload.size, time()
        except ClientDisconnect:
            raise Refused(LEFT, "the client has left") from None
        finally:
            self._arriving.discard(upload)
        upload.has_arrived = True
        return bytes(body)

    def _make_room(self):
        """If the bytes in memory are too many, end slow bodies, the largest first."""
        if (missing := self._held - HELD * self._max_bytes) <= 0:
            return
        before = asyncio.get_running_loop().time() - SLOW
        slow = sorted((one for one in self._arriving if one.since < before and not one.limit.expired()),
                      key=lambda one: one.size)
        if sum(one.size for one in slow) < missing:
            seconds = max(self._wait_seconds(), math.ceil(SLOW))
            raise busy("it receives many large images", seconds)
        while missing > 0:
            one = slow.pop()
            missing -= one.size
            self._held -= one.size
            one.size, one.is_ended = 0, True
            self._arriving.discard(one)
            one.limit.reschedule(0)  # which ends it as its deadline does

    async def _parsed(self, body, content_type):
        arguments = body, content_type, self._allow_urls
        if len(body) <= SMALL:
            return bodies.parse(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._parser, bodies.parse, *arguments)

    def _too_large(self):
        return Refused(413, f"a request must have at most {self._max_bytes} bytes, images of URLs included; got more. "
                       "Send a smaller or more compressed image")

    async def _downloaded(self, images, upload):
        """Images as bytes: those of a URL are downloaded."""
        try:
            return [image if isinstance(image, bytes) else await self._download(image, upload)
                    for image in images]
        except urls.TooLarge:
            raise self._too_large() from None
        except urls.UrlError as error:  # its next step is one for users of this machine
            raise Refused(422, f"{error.cause}. Send the bytes of the image") from None

    async def _download(self, url, upload):
        """Download an image in a thread."""
        if self._pending >= PENDING:  # without this bound, they would take all connections
            raise busy(f"{PENDING} requests wait for downloads", self._wait_seconds())
        self._pending += 1
        try:
            await self._places.acquire()
        finally:
            self._pending -= 1
        download = _Download(self, upload, self._max_bytes - upload.size)
        self._held += download.room
        try:
            self._make_room()
            left = upload.limit.when() - asyncio.get_running_loop().time()
            seconds = min(urls.MAX_SECONDS, left + 1)  # the limit of the request comes first
            threading.Thread(target=download.run, args=[url, seconds], daemon=True).start()
        except Exception as error:
            download.finish(b"", error)
        content, error = await download.result
        if error:
            raise error
        return content


class _Download:
    """A download in a thread. It keeps its place and its memory until it ends, also without the request.

    Neither parsing nor the end of the process waits for the thread: a name server can take any time.

    Args:
        intake: has the places and the memory.
        upload: the request.
        room: largest number of bytes, which are held for the download.

    Attributes:
        result: future of the bytes and an exception or None; cancelled if the request has ended.
    """

    def __init__(self, intake, upload, room):
        self._intake, self._upload, self.room = intake, upload, room
        self._loop = asyncio.get_running_loop()
        self.result = self._loop.create_future()

    def run(self, url, seconds):
        """Download, in the thread."""
        content, error = b"", None
        try:
            content = urls.download(url, max_bytes=self.room, seconds=seconds)
        except Exception as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self.finish, content, error)

    def finish(self, content, error):
        """Free the place and the memory, and pass the result to the request, in the event loop."""
        self._intake._places.release()
        self._intake._held -= self.room
        if not self.result.done():
            self._intake._held += len(content)
            self._upload.size += len(content)
            self.result.set_result((content, error))


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

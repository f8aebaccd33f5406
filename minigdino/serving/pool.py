"""The workers of the server and the requests that wait for them: bounds, retries and replacement.

A `Pool` knows neither HTTP nor processes. It gets a function that starts a worker, so tests run it with workers that
compute nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..detector import IMAGE_CACHE
from ..errors import Error
from .messages import Message
from .refusals import Refused, busy

PING = 2.0  # seconds between two checks of an idle worker
STALE = 3 * PING  # seconds without a sign of life after which an idle worker does not count as ready
PING_LIMIT = 30.0  # seconds after which an idle worker that gives no answer is replaced
PAUSE, MAX_PAUSE = 0.1, 5.0  # seconds before a worker is started again, if it ended without an answer
SMOOTHING = 0.1  # weight of the newest request in the mean of the computing seconds


class WorkerEnded(Exception):
    """A worker has ended, and gives no answer any more.

    Args:
        begun: whether it had begun the message.
    """

    def __init__(self, begun: bool = True):
        super().__init__()
        self.begun = begun


class Worker(Protocol):
    """One worker, which processes a message at a time.

    Attributes:
        pid: its process id.
        ended: a future that is done once the worker has ended.
    """

    pid: int
    ended: asyncio.Future[None]

    async def ask(self, header: dict[str, Any], blocks: Sequence[bytes] = ()) -> Message:
        """Send a message, and return the answer. Raises WorkerEnded if the worker ends before it answers."""
        ...

    def kill(self) -> None:
        """End the worker at once. An ended one is left alone."""
        ...


@dataclass(eq=False)
class _Job:
    """A request on its way to an answer.

    Attributes:
        given: workers that were to process it, and have ended.
        begun: those of them that had begun.
    """

    header: dict[str, Any]
    blocks: Sequence[bytes]
    digests: Sequence[str]
    arrived: float
    answer: asyncio.Future[Message]
    given: int = 0
    begun: int = 0


@dataclass(eq=False)
class _Slot:
    """The place of a worker, which its successors take over.

    Attributes:
        worker: the worker; None while it is started.
        offer: future of the next job, while the worker is idle.
        job: the job that the worker processes.
        began: when it began.
        seen: when the worker gave its last sign of life.
        memory: bytes of the worker's own memory, as it reported last.
        recent: digests of the images whose features the worker has.
    """

    worker: Worker | None = None
    offer: asyncio.Future[_Job] | None = None
    job: _Job | None = None
    began: float = 0.0
    seen: float = 0.0
    memory: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=IMAGE_CACHE))


class Pool:
    """Worker processes and a bounded queue of requests.

    Args:
        start: function that starts a worker.
        workers: number of workers.
        queue: largest number of requests that wait for a worker.
        timeout: seconds after which a worker without an answer is replaced.
        max_memory: bytes of a worker's own memory above which it is replaced after the request; None for no limit.
        log: function that receives a line for each worker that ended.
        clock: function that returns the time in seconds.

    Attributes:
        tasks: a task for each worker. Until `close`, it ends only with an error.
        restarts: number of workers that were replaced, by reason: a key of `REASONS`.
        draining: whether new requests are refused.
        waited: function that receives the seconds of each request in the queue, also of one that no worker begins.
    """

    def __init__(self, start: Callable[[], Awaitable[Worker]], workers: int, *, queue: int, timeout: float,
                 max_memory: int | None = None, log: Callable[[str], object] = lambda _: None,
                 clock: Callable[[], float] = time.monotonic):
        self._start, self._log, self._clock = start, log, clock
        self._queue, self._timeout, self._max_memory = queue, timeout, max_memory
        self._slots = [_Slot() for _ in range(workers)]
        self._idle: list[_Slot] = []  # the one that is idle longest comes first
        self._waiting: deque[_Job] = deque()
        self._open = 0  # requests without an answer
        self._seconds = 0.0  # mean time of a request in a worker
        self.tasks: list[asyncio.Task[None]] = []
        self.restarts = Counter(died=0, stuck=0, memory=0, broken=0)
        self.draining = False
        self.waited: Callable[[float], object] = lambda _: None

    async def start(self) -> None:
        """Start all workers, and wait until they are ready.

        Raises:
            Error: that of the first worker which cannot start.
        """
        started = [asyncio.get_running_loop().create_future() for _ in self._slots]
        self.tasks = [asyncio.create_task(self._keep(*pair)) for pair in zip(self._slots, started)]
        try:
            await asyncio.gather(*started)
        except BaseException:
            await self.close()
            raise

    async def ask(self, header: dict[str, Any], blocks: Sequence[bytes] = (), digests: Sequence[str] = ()) -> Message:
        """Process a request in a worker.

        The caller sets the time limit, of at most the timeout of the pool. If the caller is cancelled, a request that
        no worker has begun is dropped.

        Args:
            header: header of the message to the worker, which also gets "waited", the seconds in the queue.
            blocks: blocks of the message.
            digests: digests of the images. A worker with features of the first one is preferred.

        Returns:
            The answer of the worker.

        Raises:
            Refused: 503 if the queue is full or the pool drains, 500 if two workers have ended that had begun it.
        """
        self.check_open()
        job = _Job(header, blocks, digests, self._clock(), asyncio.get_running_loop().create_future())
        job.answer.add_done_callback(_retrieve)
        if not self._give(job):
            if len(self._waiting) >= self._queue:
                raise busy(f"its queue of {self._queue} requests is full", self.wait_seconds())
            self._waiting.append(job)
        self._open += 1
        try:
            return await job.answer
        finally:
            self._open -= 1
            job.answer.cancel()
            if job in self._waiting:
                self._waiting.remove(job)
                self._count(job)

    def check_open(self) -> None:
        """Raise Refused, 503, if the pool drains."""
        if self.draining:
            raise Refused(503, "the server is shutting down. Send the request to another server, or try again later",
                          {"Retry-After": str(self.wait_seconds()), "Connection": "close"})

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """The number of workers that process a request."""
        return sum(slot.job is not None for slot in self._slots)

    @property
    def memory(self) -> list[int]:
        """Bytes of the own memory of each worker, as it reported them last."""
        return [slot.memory for slot in self._slots]

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have started."""
        return [slot.worker.pid for slot in self._slots if slot.worker]

    @property
    def ready(self) -> int:
        """The number of workers that have made progress lately.

        An idle worker has answered a message within the last seconds. A busy one has begun its request within the
        timeout.
        """
        now = self._clock()
        return sum(slot.worker is not None and
                   (now - slot.began < self._timeout if slot.job else now - slot.seen < STALE) for slot in self._slots)

    def wait_seconds(self) -> int:
        """Estimate the seconds after which a new request would be answered, from the measured ones; at least 1."""
        return max(1, math.ceil(self._seconds * (self.waiting + self.busy) / len(self._slots)))

    async def drain(self) -> None:
        """Refuse new requests, and wait until all accepted ones are answered or cancelled."""
        self.draining = True
        while self._open:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End all workers."""
        self.draining = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.kill()

    def kill(self) -> None:
        """Kill all workers, without an event loop."""
        for slot in self._slots:
            if slot.worker:
                slot.worker.kill()

    def _give(self, job):
        """Give a job to an idle worker, preferably one that knows its first image. Returns whether there is one."""
        idle = [slot for slot in self._idle if slot.worker and not slot.worker.ended.done()]
        if not idle:
            return False
        first = job.digests[0] if job.digests else None
        slot = next((slot for slot in idle if first in slot.recent), idle[0])
        self._idle.remove(slot)
        assert slot.offer is not None  # of every idle one
        slot.offer.set_result(job)
        return True

    async def _keep(self, slot, started):
        """Keep a worker running: start one, and a new one whenever it ends. Only an error of the first start is raised.

        A later one is logged, once in a row.
        """
        pause, said = PAUSE, ""
        while True:
            try:
                worker = await self._start()
            except Exception as error:
                if not started.done():
                    started.set_exception(error)
                    return
                text = str(error) if isinstance(error, Error) else repr(error)
                if text != said:
                    self._log(f"a worker cannot start, and is tried again: {text}")
                said = text
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE)
                continue
            if not started.done():
                started.set_result(None)
            try:
                slot.worker, slot.seen = worker, self._clock()
                reason, answers = await self._work(slot, worker)
            finally:
                slot.worker, slot.job, slot.memory = None, None, 0
                slot.recent.clear()
                worker.kill()
            said = ""
            self.restarts[reason] += 1
            self._log(f"worker {worker.pid} is replaced: {REASONS[reason]}")
            pause = PAUSE if answers else min(2 * pause, MAX_PAUSE)
            if not answers:
                await asyncio.sleep(pause)

    async def _work(self, slot, worker):
        """Give one job after the other to a worker. Returns why it must be replaced, and its number of answers."""
        answers = 0
        while True:
            try:
                job = await self._next(slot, worker)
                if job is None:
                    async with asyncio.timeout(PING_LIMIT):
                        header, _ = await worker.ask({"kind": "ping"})
                else:
                    header = await self._process(slot, worker, job)
                slot.seen, slot.memory = self._clock(), int(header.get("memory", 0))
            except WorkerEnded:
                return "died", answers
            except TimeoutError:
                return "stuck", answers
            except Exception as error:
                self._log(f"worker {worker.pid} gave no valid answer: {error!r}")
                return "broken", answers
            answers += 1
            if self._max_memory is not None and slot.memory > self._max_memory:
                return "memory", answers
            if header.get("ends"):
                return "died", answers

    async def _next(self, slot, worker):
        """Wait for the next job of a worker. Returns None if the worker is idle for so long that it is checked."""
        if worker.ended.done():
            raise WorkerEnded
        if self._waiting:
            return self._waiting.popleft()
        slot.offer = asyncio.get_running_loop().create_future()
        self._idle.append(slot)
        try:
            await asyncio.wait({slot.offer, worker.ended}, timeout=PING, return_when=asyncio.FIRST_COMPLETED)
            if slot.offer.done():
                return slot.offer.result()
            if worker.ended.done():
                raise WorkerEnded
            return None
        finally:
            if slot in self._idle:
                self._idle.remove(slot)
            slot.offer = None

    async def _process(self, slot, worker, job):
        """Have a worker process a job. Returns the header of its answer."""
        slot.job, slot.began = job, self._clock()
        self._count(job)
        slot.recent.extend(job.digests)
        header = {**job.header, "waited": slot.began - job.arrived}
        try:
            async with asyncio.timeout(self._timeout):  # `wait_for` can lose a cancellation in Python 3.11
                message = await worker.ask(header, job.blocks)
        except TimeoutError:  # the time limit of the caller was earlier
            raise
        except WorkerEnded as error:
            self._again(job, error.begun)
            raise
        except Exception:
            self._again(job, begun=True)
            raise
        finally:
            slot.job = None
        if not job.answer.done():
            job.answer.set_result(message)
        seconds = self._clock() - slot.began
        self._seconds += (seconds - self._seconds) * (SMOOTHING if self._seconds else 1)
        return message[0]

    def _count(self, job):
        """Report the seconds in the queue, unless the job is tried again."""
        if not job.given:
            self.waited(self._clock() - job.arrived)

    def _again(self, job, begun):
        """Try a job again whose worker has ended. One that two workers had begun fails.

        The death of a worker that had not begun proves nothing, but each worker can be lost only once in that way.
        """
        job.given += 1
        job.begun += begun
        if job.answer.done():
            return
        if job.begun > 1 or job.given > len(self._slots) + 1:
            job.answer.set_exception(Refused(500, f"the server could not process this request: {job.given} workers "
                                             "that were to process it have ended. Send a smaller image, or another "
                                             "format"))
        elif not self._give(job):
            self._waiting.appendleft(job)


def _retrieve(answer):
    """Mark the exception of a future as seen, also if its caller has left in the meantime."""
    if not answer.cancelled():
        answer.exception()


REASONS = {"died": "it has ended", "stuck": "it gave no answer in time", "memory": "its memory exceeds --max-memory",
           "broken": "it broke the protocol"}

"""Several processes that detect in images. They share the mapped weights, and one that ends is replaced.

The parent gives each worker one image after the other, and gets a line of JSON for each. No image is lost with a
worker: another one gets the images that it had.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from ..checkpoints.fingerprint import fingerprint
from ..errors import CheckpointError, Error, ImageError, PromptWarning
from ..runtime.spawning import SPAWN, end_with_parent
from ..runtime.threads import set_threads
from ..writing import reason
from .items import Item, record
from .lines import line
from .remote import shown_name

AHEAD = 2  # images that a worker has: the one that it processes, and the next one
TRIES = 2  # workers that may end while they process an image
STOP = "stop"  # key of a message with an error that ends the run
MAX_STARTS = 5  # workers that may end one after the other before any becomes ready


@dataclass(frozen=True)
class Setup:
    """What a worker needs at its start.

    Attributes:
        model: the pickled model, which is loaded from its path again, so that workers share its mapped weights.
        fingerprint: its fingerprint. A worker that starts hours later must not load another model.
        text: the prompt, as in `Model.detect`.
        options: keyword arguments of `Model.detect`.
        threads: number of threads.
    """

    model: bytes
    fingerprint: str
    text: str | list[str]
    options: dict[str, Any]
    threads: int

    def detector(self) -> Callable[[Item], dict[str, Any]]:
        """Load the model, and return `lines.line` as a function of an image.

        Raises:
            Error: as `load` does, or if the model has changed.
        """
        set_threads(self.threads)
        model = pickle.loads(self.model)
        if fingerprint(model.tensors, model.config, model.settings.to_dict()) != self.fingerprint:
            raise CheckpointError(f"{model.source}: expected the model with which the run began; its files have "
                                  "changed since. Put the old ones back, or begin a run in another folder")
        return partial(line, model, self.text, self.options)


@dataclass(eq=False)
class _Worker:
    """A worker process, as the parent sees it.

    Attributes:
        process: the process.
        connection: the parent's end of the connection.
        ready: whether it has loaded the model.
        items: the images that it has, in the order in which it processes them.
    """

    process: Any
    connection: Any
    ready: bool = False
    items: deque[Item] = field(default_factory=deque)

    @classmethod
    def start(cls, setup: Setup) -> _Worker:
        """Start a worker. It sends an empty message once it has loaded the model, then a line for each image."""
        try:
            ours, theirs = SPAWN.Pipe()
            with theirs, _interrupts_wait():  # without this copy, the end of the worker closes the connection
                process = SPAWN.Process(target=work, args=(theirs, setup), daemon=True)
                process.start()
        except OSError as error:
            raise CheckpointError(f"expected to start a worker process; the system refused ({reason(error)}). Use "
                                  "fewer --workers") from None
        return cls(process, ours)

    def give(self, item: Item) -> None:
        """Give an image to the worker."""
        self.items.append(item)
        with contextlib.suppress(OSError):  # the worker has ended, which `wait` reports
            self.connection.send_bytes(json.dumps(asdict(item)).encode())

    def received(self) -> dict[str, Any] | None:
        """Return the next message; None if the worker has ended."""
        try:
            return json.loads(self.connection.recv_bytes())
        except (OSError, EOFError, ValueError):  # ValueError: a message that was cut
            return None

    def end(self) -> str:
        """End the process at once, and return how it ended."""
        self.process.join(1)  # it has closed its connection, and its exit status comes next
        self.process.kill()
        self.process.join(10)
        self.connection.close()
        code = self.process.exitcode
        with contextlib.suppress(ValueError, TypeError):
            return signal.Signals(-code).name
        return f"exit status {code}"


class Workers:
    """Worker processes. Use them as a context, at whose end they end.

    Args:
        setup: model, prompt and options.
        count: number of workers.
        log: function that receives a line for each worker that is replaced.

    Raises:
        CheckpointError: if the system refuses to start a process.
    """

    def __init__(self, setup: Setup, count: int, log: Callable[[str], object]):
        self._setup, self._log = setup, log
        self._again: deque[Item] = deque()  # images of workers that have ended
        self._ended: Counter[Item] = Counter()  # number of workers that ended while they processed an image
        self._starts = 0  # workers that ended before they were ready, since one was
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker.start(setup))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once. Images that they have are dropped."""
        for worker in self._workers:
            worker.process.kill()  # all of them, before the first is waited for
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def detect_each(self, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
        """Detect in images. One during which a worker ends is tried again, once.

        Args:
            items: the images.

        Yields:
            The JSON object of each image, as from `lines.line`, as soon as it is done.

        Raises:
            Error: if workers cannot load the model, or as `lines.line` does.
        """
        source = iter(items)
        while True:
            self._give(source)
            if any(worker.ready for worker in self._workers) and not any(worker.items for worker in self._workers):
                return
            readable = set(wait([worker.connection for worker in self._workers]))
            for worker in [worker for worker in self._workers if worker.connection in readable]:
                if result := self._result(worker):
                    yield result

    def _give(self, source):
        """Give images to all workers that are ready, as far as there are any."""
        for worker in self._workers:
            while worker.ready and len(worker.items) < AHEAD:
                item = self._again.popleft() if self._again else next(source, None)
                if item is None:
                    return
                worker.give(item)

    def _result(self, worker):
        """The line of the image that a worker has processed; None if there is none."""
        message = worker.received()
        if message is None:
            return self._replaced(worker)
        if STOP in message:
            raise Error(message[STOP])
        if worker.ready:
            worker.items.popleft()
            return message
        worker.ready, self._starts = True, 0
        return None

    def _replaced(self, worker):
        """Replace a worker that has ended. Returns the line of its image if that is not tried again."""
        how, place = worker.end(), self._workers.index(worker)
        self._starts += not worker.ready
        if self._starts == MAX_STARTS:
            raise CheckpointError(f"expected workers that load the model; {MAX_STARTS} in a row have ended before, the "
                                  f"last one by {how}. Check that there is enough memory for each worker, or use fewer "
                                  "--workers")
        self._workers[place] = _Worker.start(self._setup)
        if not worker.items:
            self._log(f"worker {worker.process.pid} has ended by {how}, and is replaced")
            return None
        first, *others = worker.items
        name = shown_name(first.uri)
        self._again.extendleft(reversed(others))
        self._ended[first] += 1
        if self._ended[first] == TRIES:
            return record(first, ImageError(f"{name}: two workers have ended while they processed it, the last one by "
                                            f"{how}. Use fewer --workers if memory is short, or leave the image out"))
        self._again.appendleft(first)
        self._log(f"worker {worker.process.pid} has ended by {how}, and is replaced. {name} is tried again")
        return None


@contextlib.contextmanager
def _interrupts_wait():
    """Make Ctrl-C, which a terminal sends to all processes, wait while a process starts.

    The new process would end with a traceback: of its own, or because this one was interrupted while sending its
    arguments. The signal is blocked for the new process until it ignores it, and in this one its handler runs later.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield  # handlers run in the main thread only, and Windows has no mask
        return
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        resource_tracker.ensure_running()  # whose start would end the blocking
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        signal.signal(signal.SIGINT, handler)
    if waiting:
        signal.raise_signal(signal.SIGINT)


def work(connection: Connection, setup: Setup) -> None:
    """Detect in images until the parent closes the connection. The worker process runs this function.

    Args:
        connection: the worker's end of the connection.
        setup: model, prompt and options.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    end_with_parent()
    warnings.simplefilter("ignore", PromptWarning)  # the parent has shown them

    def send(values):
        with contextlib.suppress(OSError):  # the parent has ended
            connection.send_bytes(json.dumps(values).encode())

    def receive():
        with contextlib.suppress(OSError, EOFError):
            return Item(**json.loads(connection.recv_bytes()))

    try:
        detect = setup.detector()
        send({})
        for item in iter(receive, None):
            send(detect(item))
    except Error as error:
        send({STOP: str(error)})
    except MemoryError:
        sys.exit("minigdino: a worker has too little memory. Use fewer --workers, or a smaller --size")

"""Workers on a Ray cluster: this process deals out images, actors detect, and the results come back to be written.

Images are dealt out one by one, as their names, so that a slow image delays no other and an ended actor loses little.
Only this process writes, so that a file of results is the same as without Ray, and can be continued without it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoints.json_file import status
from ..detector import default_source
from ..errors import ArgumentError, CheckpointError, Error, ImageError, brief
from ..extras import require
from ..version import __version__
from .batches import DetectBatch
from .items import Item, record
from .remote import shown_name

RAY = "ray>=2.60"
WORDS = ("", "auto", "local")  # addresses that Ray looks up itself
REACH = 10.0  # seconds in which a cluster must accept a connection
DEVICES = {"cpu": 0, "cuda": 1}  # GPUs of an actor
LOOK_AHEAD = 3  # images of an actor: one in progress, and others that it need not wait for
GATHER = 0.02  # seconds in which further results are gathered, so that fewer calls and writes are needed
PROVEN_ENDS = 2  # actors known to have begun an image and ended, after which it gets an error
ENDS = 5  # times the number of actors that may end in a row while none of them finishes an image
CHECK = 10.0  # seconds between two looks at the nodes of the cluster
PATIENCE = 60.0  # seconds without an actor after which a message says so


class Actor:
    """The part of a run that is on the cluster."""

    def start(self, folder: str, fingerprint: str, arguments: dict[str, Any]) -> Error | None:
        """Load the model.

        Args:
            folder: working directory of the run, from which relative paths start.
            fingerprint: that of the model which the run has loaded.
            arguments: of `DetectBatch`.

        Returns:
            What is wrong; None if nothing is.
        """
        with contextlib.suppress(OSError):  # only relative paths need it, and their errors name them
            os.chdir(folder)
        try:
            self._detect = DetectBatch(**arguments)
        except Error as error:
            return error
        if (got := self._detect.header["fingerprint"]) != fingerprint:
            name = self._detect.header["model"]
            return CheckpointError(f"{name}: expected the model with the fingerprint {fingerprint} on each node; got "
                                   f"{got}. Copy the same checkpoint to all nodes")
        return None

    def begin(self) -> None:
        """Return at once. Calls run in their order, so an answer proves that the actor lived to begin the next one."""

    def line(self, item: Item) -> dict[str, Any] | Error:
        """Detect in an image.

        Args:
            item: the image.

        Returns:
            Its line; or the error that ends the run.
        """
        try:
            return self._detect.lines([item])[0]
        except Error as error:
            return error


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments of a run on Ray, before anything is computed.

    Args:
        arguments: the parsed arguments of `minigdino run`. Their `error` ends the process with a usage message.

    Raises:
        ArgumentError: if Ray is not installed, or a GPU is named.
        SystemExit: with status 2, if --ray stands before a source.
    """
    if arguments.ray and status(arguments.ray):
        arguments.error(f"--ray needs the address of a cluster, or none; got {brief(arguments.ray)}, which exists. "
                        "Write --ray at the end")
    if arguments.device not in DEVICES:
        raise ArgumentError(f"--device must be cpu or cuda with --ray, which chooses the GPUs; got {arguments.device}. "
                            "Give --device cuda")
    _ray()


def _ray() -> Any:
    return require("ray", "--ray", RAY)


@contextlib.contextmanager
def results(arguments: argparse.Namespace, text: str | Sequence[str], options: dict[str, Any], header: dict[str, Any],
            items: Iterable[Item], to_do: int, log: Callable[[str], object],
            ) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Connect to the cluster and detect in images. All actors have ended at the end of the context.

    Args:
        arguments: the parsed arguments of `minigdino run`.
        text: the prompt.
        options: of `Model.detect`.
        header: of the file, with the model's fingerprint.
        items: the images.
        to_do: their number.
        log: as in `detect_each`.

    Yields:
        The lines, as from `detect_each`.

    Raises:
        ArgumentError: if there is no cluster at the address.
    """
    if not to_do:
        yield iter(())
        return
    start = {"text": text, "model": default_source() if arguments.model is None else arguments.model,
             "device": arguments.device, "precision": header["precision"], **options}
    with (_cluster(arguments.ray) as ray,
          contextlib.closing(detect_each(ray, items, start, header["fingerprint"], threads=arguments.threads or 1,
                                         gpus=DEVICES[arguments.device], workers=arguments.workers,
                                         log=log)) as groups):
        yield groups


@contextlib.contextmanager
def _cluster(address):
    """The package ray, connected to the cluster at an address. Without one, Ray chooses."""
    ray = _ray()
    address = address or os.environ.get("RAY_ADDRESS", "")
    _reach(address)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ray.exceptions.RayError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise _no_cluster(address, error) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address):
    """Check that something listens at an address. Ray would wait for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if address in WORDS:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, ValueError, OverflowError) as error:  # ValueError: no number
        raise _no_cluster(address, error) from None


def _no_cluster(address, error):
    return ArgumentError(f"--ray {address}: expected a running cluster, with the same versions of Ray and Python; got "
                         f"an error ({brief(error)}). Check the address, such as 10.0.0.1:6379, or leave it out for "
                         "this machine")


def detect_each(ray: Any, items: Iterable[Item], arguments: dict[str, Any], fingerprint: str, *, threads: int = 1,
                gpus: int = 0, workers: int | None = None,
                log: Callable[[str], object] = str) -> Generator[list[dict[str, Any]], None, None]:
    """Detect in each image once, in no particular order.

    An actor that ends is replaced, and its images are given to others. An image becomes a line with an error once two
    further actors have begun it and ended. Actors are added while nodes join the cluster.

    Args:
        ray: the package, connected to a cluster.
        items: the images, which are taken as they are needed.
        arguments: of `DetectBatch`.
        fingerprint: that of the model.
        threads: CPUs, and threads, of an actor.
        gpus: GPUs of an actor.
        workers: number of actors; None for as many as the nodes have room for.
        log: function that receives a line for each actor that is replaced.

    Yields:
        Lines of images that are done, as from `lines.line`, one or several at a time.

    Raises:
        Error: if the model cannot be loaded on a node, if no node has room for an actor, if actors end one after the
            other, or as `Model.detect` does.
    """
    pool = _Pool(ray, {**arguments, "threads": threads}, fingerprint, threads, gpus, workers, log)
    further, waiting = iter(items), deque[Item]()
    try:
        while True:
            waiting.extend(itertools.islice(further, max(LOOK_AHEAD * pool.wanted() - len(waiting), 0)))
            if not (left := len(waiting) + pool.in_progress()):
                return
            pool.fill(left)
            pool.deal(waiting)
            lines, lost = pool.collect()
            waiting.extendleft(lost)  # the last one is the next
            if lines:
                yield lines
    finally:
        pool.close()


@dataclass(frozen=True)
class _Call:
    """An image that an actor has.

    Attributes:
        item: the image.
        begun: reference of the answer to `Actor.begin`, which precedes `Actor.line`; None if the actor was not asked.
        line: reference of the line.
    """

    item: Item
    begun: Any
    line: Any


@dataclass(eq=False)
class _Worker:
    """An actor, as this process sees it.

    Attributes:
        actor: its handle.
        started: reference of the answer to `Actor.start`; None once it is ready.
        calls: images whose lines it has not returned, in their order.
    """

    actor: Any
    started: Any
    calls: deque[_Call] = field(default_factory=deque)

    def give(self, item: Item, ask: bool) -> None:
        """Give an image to the actor, and ask whether it begins it."""
        self.calls.append(_Call(item, self.actor.begin.remote() if ask else None, self.actor.line.remote(item)))

    def references(self) -> list[Any]:
        """Return the references that the actor will fulfil."""
        return [call.line for call in self.calls] if self.started is None else [self.started]


class _Pool:
    """The actors of a run. The arguments are those of `detect_each`.

    An actor that ended while it had no image is noticed only when it is given one. So the first loss of an image says
    nothing about the image. Every further actor is asked whether it begins the image, and counts only if it did.
    """

    def __init__(self, ray, arguments, fingerprint, threads, gpus, workers, log):
        self._ray, self._threads, self._gpus, self._log = ray, threads, gpus, log
        self._start = os.getcwd(), fingerprint, arguments
        self._kind = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0,
                                scheduling_strategy="SPREAD")(Actor)
        self._given, self._wanted = workers, workers or 0
        self._workers: list[_Worker] = []
        self._deaths: dict[int, int] = {}  # {id of an image that was lost: asked actors that began it and ended}
        self._ends = self._most = 0  # actors that ended since the last line; actors at once
        self._looked = -CHECK
        self._last_ready = time.monotonic()

    def wanted(self) -> int:
        """Return the number of actors that the run should have."""
        if self._given is None and (now := time.monotonic()) - self._looked >= CHECK:
            self._looked = now
            room = self._room()
            if not room and not self._wanted:
                raise ArgumentError(f"--ray: expected a node with {self._resources()} for a worker; the cluster has "
                                    "none. Use fewer --threads, or give --workers for a cluster that adds nodes")
            self._wanted = max(room, 1)
        return self._wanted

    def _room(self):
        """The number of actors for which the nodes have room, if nothing else runs there."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(int(min(node.get("CPU", 0) // self._threads,
                           node.get("GPU", 0) // self._gpus if self._gpus else float("inf"))) for node in nodes)

    def _resources(self):
        cpus = f"{self._threads} CPU{'s' * (self._threads != 1)}"
        return f"{cpus} and a GPU" if self._gpus else cpus

    def in_progress(self) -> int:
        """Return the number of images that actors have."""
        return sum(len(worker.calls) for worker in self._workers)

    def fill(self, left: int) -> None:
        """Start actors that are missing, for a number of images that are left."""
        while len(self._workers) < min(self._wanted, left):
            actor = self._kind.remote()
            self._workers.append(_Worker(actor, actor.start.remote(*self._start)))
        self._most = max(self._most, len(self._workers))

    def deal(self, waiting: deque[Item]) -> None:
        """Give images to ready actors, so that all have equally many. One that was lost needs an idle actor."""
        for worker in self._with_room():
            if not waiting:
                return
            was_lost = waiting[0].id in self._deaths
            if was_lost and worker.calls:
                return
            worker.give(waiting.popleft(), ask=was_lost)

    def _with_room(self):
        """Yield a ready actor for each further image."""
        for n in range(LOOK_AHEAD):
            yield from (worker for worker in self._workers if worker.started is None and len(worker.calls) == n)

    def collect(self) -> tuple[list[dict[str, Any]], list[Item]]:
        """Wait for actors. Return lines that are done, and images whose actor has ended."""
        references = [reference for worker in self._workers for reference in worker.references()]
        ready, rest = self._ray.wait(references, timeout=1.0)
        ready = {*ready, *self._ray.wait(rest, num_returns=len(rest), timeout=GATHER)[0]} if rest else set(ready)
        lines: list[dict[str, Any]] = []
        lost: list[Item] = []
        ends: list[Exception] = []
        for worker in [worker for worker in self._workers if not ready.isdisjoint(worker.references())]:
            try:
                self._take(worker, ready, lines)
            except self._ray.exceptions.RayTaskError:  # an error of the program, with its traceback
                raise
            except self._ray.exceptions.RayError as error:
                ends.append(error)
                self._lose(worker, error, lines, lost)
        self._check_ends(ends, lines)
        self._check_patience()
        return lines, lost

    def _take(self, worker, ready, lines):
        """Add the lines that an actor has returned."""
        if worker.started is not None:
            self._checked(self._ray.get(worker.started))
            worker.started = None
        while worker.calls and worker.calls[0].line in ready:
            lines.append(self._checked(self._ray.get(worker.calls[0].line)))
            worker.calls.popleft()

    @staticmethod
    def _checked(answer):
        if isinstance(answer, Error):
            raise answer
        return answer

    def _lose(self, worker, error, lines, lost):
        """Remove an actor that has ended."""
        self._workers.remove(worker)
        self._kill(worker)
        if getattr(error, "actor_init_failed", False):
            raise CheckpointError(f"--ray: expected minigdino {__version__} on each node; a worker cannot import it "
                                  f"({brief(error)}). Install the same version on all nodes") from None
        if worker.started is not None:
            return
        call = worker.calls.popleft()
        self._deaths[call.item.id] = self._deaths.get(call.item.id, 0) + self._had_begun(call)
        lost[:0] = [other.item for other in worker.calls]
        if self._deaths[call.item.id] < PROVEN_ENDS:
            lost.append(call.item)  # is given again before all others
        else:
            name = shown_name(call.item.uri)
            lines.append(record(call.item, ImageError(f"{name}: two workers on the cluster have ended while they "
                                                      "processed it. Give each more memory by more --threads, or leave "
                                                      "the image out")))
        self._log(f"a worker on the cluster has ended, and is replaced ({brief(error)})")

    def _had_begun(self, call):
        """Whether an actor that has ended is known to have begun an image."""
        if call.begun is None:
            return False
        try:
            self._ray.get(call.begun, timeout=GATHER)  # the end of an actor fulfils all references
        except self._ray.exceptions.RayError:
            return False
        return True

    def _check_ends(self, ends, lines):
        """Give up if actors end one after the other and no image is finished."""
        self._ends = 0 if lines else self._ends + len(ends)
        if ends and self._ends >= ENDS * self._most:
            raise CheckpointError(f"--ray: expected workers that finish images; {self._ends} have ended in a row and "
                                  f"none has finished one ({brief(ends[-1])}). Check that each node has enough memory, "
                                  "or use fewer --workers") from None

    def _check_patience(self):
        """Say so if the cluster has had no ready actor for some time."""
        now = time.monotonic()
        if any(worker.started is None for worker in self._workers):
            self._last_ready = now
        elif now - self._last_ready > PATIENCE:
            self._last_ready = now
            self._log(f"waiting for a node with {self._resources()} that are free")

    def _kill(self, worker):
        with contextlib.suppress(Exception):  # it may have ended, or the connection to the cluster
            self._ray.kill(worker.actor)

    def close(self) -> None:
        """End all actors."""
        for worker in self._workers:
            self._kill(worker)

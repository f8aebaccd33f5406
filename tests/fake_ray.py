"""A Ray in this process, whose actors run one call at a time, in an order and with deaths that a test decides."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

LONG = 1.0  # seconds; a shorter timeout ends before anything happens


class Dies(BaseException):
    """Raised by a method to end its actor, as a signal would."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorDiedError(RayError):
    actor_init_failed = False


class GetTimeoutError(RayError):
    pass


class exceptions:  # a module of ray
    RayError, RayTaskError, ActorDiedError = RayError, RayTaskError, ActorDiedError


@dataclass(eq=False)
class Reference:
    is_done: bool = False
    value: Any = None
    error: Exception | None = None


@dataclass(eq=False)
class Handle:
    """An actor. A method is called as `handle.method.remote(...)`."""

    ray: FakeRay
    target: Any
    queue: deque[tuple[Reference, str, tuple]] = field(default_factory=deque)
    is_alive: bool = True

    def __getattr__(self, name):
        return Method(self, name)

    def end(self, error):
        self.is_alive = False
        while self.queue:
            reference, _, _ = self.queue.popleft()
            reference.is_done, reference.error = True, error


@dataclass(frozen=True)
class Method:
    handle: Handle
    name: str

    def remote(self, *arguments):
        reference = Reference()
        self.handle.queue.append((reference, self.name, arguments))
        if not self.handle.is_alive:
            self.handle.end(ActorDiedError("called after its end"))
        return reference


class FakeRay:
    """The functions of the package ray that a run uses.

    Args:
        cpus: CPUs of each node. Only as many actors can run; the others wait.
        chance: probability that an actor dies during a call of its method `line`.
        outages: probability that some actors die at once before a call, whether they are idle or not.
        seed: of all decisions.
    """

    exceptions = exceptions

    def __init__(self, cpus=(2,), chance=0.0, outages=0.0, seed=0):
        self.cpus, self.chance, self.outages, self.random = list(cpus), chance, outages, random.Random(seed)
        self.actors: list[Handle] = []
        self.options: dict[str, Any] = {}
        self.deaths: Counter = Counter()  # of actors that had begun a call, by its argument
        self.most = 0  # calls that an actor had at once

    def remote(self, **options):
        self.options = options

        def decorated(kind):
            class Factory:
                @staticmethod
                def remote():
                    self.actors.append(Handle(self, kind()))
                    return self.actors[-1]
            return Factory
        return decorated

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(n)}} for n in self.cpus]

    def running(self):
        """The actors for which there are CPUs."""
        alive = [actor for actor in self.actors if actor.is_alive]
        return alive[: sum(self.cpus) // self.options["num_cpus"]]

    def wait(self, references, num_returns=1, timeout=None):
        assert len(set(references)) == len(references) >= num_returns > 0
        while (timeout is None or timeout >= LONG) and not any(reference.is_done for reference in references):
            self.step()
        ready = [reference for reference in references if reference.is_done][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def step(self):
        if self.random.random() < self.outages:
            running = self.running()
            for actor in self.random.sample(running, self.random.randint(0, len(running))):
                self.die(actor, "its node ended")
            return
        busy = [actor for actor in self.running() if actor.queue]
        assert busy, "the run waits without end"
        actor = self.random.choice(busy)
        self.most = max(self.most, len(actor.queue))
        reference, name, arguments = actor.queue[0]
        try:
            if name == "line" and self.random.random() < self.chance:
                raise Dies
            reference.value = getattr(actor.target, name)(*arguments)
        except Dies:
            self.die(actor, "killed")
            return
        except Exception as error:
            reference.error = RayTaskError(repr(error))
        reference.is_done = True
        actor.queue.popleft()

    def die(self, actor, reason):
        """End an actor, which has begun its first call."""
        if actor.queue and actor.queue[0][1] == "line":
            self.deaths[actor.queue[0][2][0]] += 1
        actor.end(ActorDiedError(reason))

    def get(self, reference, timeout=None):
        if not reference.is_done:
            assert timeout is not None, "the run waits without end"
            raise GetTimeoutError
        if reference.error:
            raise reference.error
        return reference.value

    def kill(self, actor):
        actor.end(ActorDiedError("killed by the run"))

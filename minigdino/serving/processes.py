"""Worker processes, as the web process sees them: start, messages, end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CheckpointError
from ..runtime.spawning import SPAWN
from ..writing import reason
from .messages import Message, packed, read
from .pool import WorkerEnded

START_LIMIT = 300.0  # seconds in which a worker loads its model


class Process:
    """A worker process. Create one with `start`.

    Attributes:
        pid: its process id.
        ended: a future that is done once the process has closed its end of the connection, or broken the protocol.
    """

    def __init__(self, process: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.pid = process.pid
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process, self._writer = process, writer
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()  # the first message
        self._begun = False  # whether the process works on the answer
        self._listener = asyncio.create_task(self._listen(reader))

    @classmethod
    async def start(cls, target: Callable[..., object], *arguments: Any) -> Process:
        """Start a worker, and wait until it is ready.

        Args:
            target: function that the process runs, with its end of the connection as the first argument.
            arguments: further arguments, which can be pickled.

        Returns:
            The worker.

        Raises:
            CheckpointError: if it cannot load its model, or ends before it is ready.
        """
        try:
            process, ours = _spawned(target, arguments)
        except OSError as error:
            raise CheckpointError(f"expected to start a worker process; the system refused ({reason(error)}). Use "
                                  "fewer --workers, or raise the limits that `ulimit -a` lists") from None
        try:
            worker = cls(process, *await asyncio.open_connection(sock=ours))
        except BaseException:
            process.kill()
            ours.close()
            raise
        try:
            async with asyncio.timeout(START_LIMIT):
                header, _ = await worker._answered()
        except (WorkerEnded, TimeoutError) as error:
            await asyncio.to_thread(process.join, 10)
            worker.kill()
            problem = "did not become ready" if isinstance(error, TimeoutError) else f"ended ({process.exitcode})"
            raise CheckpointError(f"expected a worker that loads the model; the process {problem}. Check that there is "
                                  "enough memory for each worker, or use fewer --workers") from None
        except BaseException:
            worker.kill()
            raise
        if "error" in header:
            worker.kill()
            raise CheckpointError(header["error"])
        return worker

    async def ask(self, header: dict[str, Any], blocks: Sequence[bytes] = ()) -> Message:
        """Send a message, and return the answer. One message is processed at a time.

        Raises:
            WorkerEnded: if the process ends before it answers.
            Exception: of any other kind if its answer breaks the protocol.
        """
        self._answer, self._begun = asyncio.get_running_loop().create_future(), False
        try:
            self._writer.writelines(packed(header, blocks))
            await self._writer.drain()
        except OSError:
            raise WorkerEnded(self._begun) from None
        return await self._answered()

    async def _answered(self):
        await asyncio.wait({self._answer, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not self._answer.done():
            raise WorkerEnded(self._begun)
        return self._answer.result()

    async def _listen(self, reader):
        try:
            while True:
                message = await read(reader)
                if "begun" in message[0]:
                    self._begun = True
                elif not self._answer.done():
                    self._answer.set_result(message)
        except (OSError, EOFError):  # the connection has ended
            pass
        except Exception as error:  # a message that breaks the protocol
            if not self._answer.done():
                self._answer.set_exception(error)
        self.ended.set_result(None)

    def kill(self) -> None:
        """End the process at once."""
        self._listener.cancel()
        self._writer.transport.abort()
        self._process.kill()
        if not self.ended.done():
            self.ended.cancel()


def _spawned(target, arguments):
    """A new process, and this end of its connection."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
            process.start()
    except BaseException:
        ours.close()
        raise
    return process, ours

"""The web server: connections, the start of the workers, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..writing import reason
from .pool import Pool
from .refusals import HEADERS

HEAD_SECONDS = 20.0  # in which the head of a request must arrive, and the rest of a body that is refused
SEND_SECONDS = 120.0  # in which a client must accept an answer that fills the buffers
KEEP_ALIVE = 15  # seconds after which a connection without requests is closed
FLUSH = 5  # seconds after the last answer in which connections must end
ACCEPT_PAUSE = 1.0  # seconds without new connections after the system refused one


NO_HTTP = JSONResponse({"error": "expected a request of HTTP/1.1; got other bytes, or a head that is damaged or too "
                        "long. Let an HTTP library write it"}, 400, {**HEADERS, "Connection": "close"})


class _Protocol(H11Protocol):
    """Connections as uvicorn handles them, but with an end for clients that stop to send or to receive.

    Attributes:
        seen: when data came last.
        unsent: since when a part of an answer waits for the client; None if none does.
    """

    seen = 0.0
    unsent: float | None = None
    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether this connection waits for a request, or for the rest of one, and has sent all of its answers."""
        return (self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
                and self.unsent is None)

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that writing pauses while any byte waits for the client
        self.seen = self.loop.time()
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Process data. The time runs on if a head is incomplete after it, or if it belongs to a refused body."""
        super().data_received(data)
        self.seen = self.loop.time()
        if h11.IDLE is self.conn.their_state or h11.DONE is self.conn.our_state:
            self._expect()
        else:
            self._receiving = _cancelled(self._receiving)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 as uvicorn calls it
        """Refuse what is no HTTP, which the application does not see. After the start of an answer, only close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=NO_HTTP.status_code, headers=NO_HTTP.raw_headers)
            for event in (head, h11.Data(data=bytes(NO_HTTP.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._receiving, self._sending = _cancelled(self._receiving), _cancelled(self._sending)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time in which the client must accept the answer."""
        super().pause_writing()
        self.unsent = self.loop.time()
        self._sending = self._sending or self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that time."""
        super().resume_writing()
        self.unsent = None
        self._sending = _cancelled(self._sending)

    def _expect(self):
        self._receiving = self._receiving or self.loop.call_later(HEAD_SECONDS, self.transport.close)


def _cancelled(timer) -> None:
    """Cancel a timer, if there is one. The result is the new value of its attribute."""
    if timer:
        timer.cancel()


def _most_silent(connections, newest):
    """The connection that waits longest for a request, else for its client to receive an answer, else the newest."""
    others = connections - {newest}
    if waiting := [one for one in others if one.waits]:
        return min(waiting, key=lambda one: one.seen)
    return min((one for one in others if one.unsent is not None), key=lambda one: one.unsent, default=newest)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the command."""

    def capture_signals(self) -> Any:
        """Do nothing."""
        return contextlib.nullcontext()


class Service:
    """Workers and web server in one event loop.

    Args:
        pool: the workers.
        app: the web application.
        listener: the listening socket.
        connections: largest number of connections. One more closes the connection that has been silent longest: that
            has sent no request, or has received no answer.
        log: function that receives a line if connections cannot be accepted.
    """

    def __init__(self, pool: Pool, app: Any, listener: socket.socket, connections: int = 1000,
                 log: Callable[[str], object] = lambda _: None):
        self._pool, self._listener, self._limit, self._log = pool, listener, connections, log
        self._server = _Server(uvicorn.Config(
            app, http=_Protocol, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=FLUSH))
        self._stopped = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def run(self, on_start: Callable[[], object]) -> None:
        """Serve until `stop` is called, then answer all accepted requests. Before the workers are ready, end at once.

        Args:
            on_start: function that is called when requests are accepted.

        Raises:
            Error: if the workers cannot start.
            Exception: of another kind if connections cannot be accepted or workers not be replaced any more.
            CancelledError: after the second call of `stop`.
        """
        self._running = asyncio.current_task()
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            if await self._start(stopped):
                await self._serve(stopped, on_start)
        finally:
            stopped.cancel()
            await self._pool.close()

    async def _start(self, stopped):
        """Start the workers. Returns whether they are ready; not if the end is asked for before."""
        starting = asyncio.create_task(self._pool.start())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises its error
            return starting.done()
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def _serve(self, stopped, on_start):
        """Serve until the end is asked for or a task fails, whose error is raised after the answers."""
        serving = asyncio.create_task(self._server.serve([]))  # `_accept` has the socket
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.01)
        accepting = asyncio.create_task(self._accept())
        if self._server.started:
            on_start()
        endless = {accepting, *self._pool.tasks}
        await asyncio.wait({serving, stopped, *endless}, return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in endless if task.done()]
        await self._pool.drain()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        self._listener.close()
        self._server.should_exit = True
        await serving
        for task in failed:
            task.result()  # raises its error

    async def _accept(self):
        """Accept connections one at a time, so that many at once take no descriptors beyond the limit."""
        loop, config, state = asyncio.get_running_loop(), self._server.config, self._server.server_state
        connections: set[Any] = state.connections
        self._listener.setblocking(False)
        said = ""
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
                _, newest = await loop.connect_accepted_socket(lambda: _Protocol(config, state, {}), accepted)
            except ConnectionError:  # the client has left
                continue
            except Exception as error:
                if reason(error) != said:
                    self._log(f"cannot accept connections ({reason(error)}), and tries again")
                said = reason(error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            said = ""
            if len(connections) > self._limit:
                _most_silent(connections, newest).transport.abort()

    def stop(self) -> None:
        """Refuse new requests, and end once the accepted ones are answered. A second call ends at once."""
        self._pool.draining = True
        if self._stopped.is_set() and self._running:
            self._running.cancel()
        self._stopped.set()

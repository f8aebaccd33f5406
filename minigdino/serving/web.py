"""The web server: connections, the start of the workers, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .pool import Pool

HEAD_SECONDS = 10.0  # in which the head of a request must arrive
KEEP_ALIVE = 15  # seconds after which a connection without requests is closed
FLUSH = 5  # seconds after the last answer in which connections must end


class _Protocol(H11Protocol):
    """Connections as uvicorn handles them, which also end if the head of a request does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first request."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Process data. If a head is incomplete after it, its time runs on."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._start()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        super().connection_lost(exc)

    def _start(self):
        self._timer = self._timer or self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop(self):
        if self._timer:
            self._timer.cancel()
        self._timer = None


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
    """

    def __init__(self, pool: Pool, app: Any, listener: socket.socket):
        self._pool, self._listener = pool, listener
        self._server = _Server(uvicorn.Config(
            app, http=_Protocol, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=FLUSH))
        self._stopped = asyncio.Event()

    async def run(self, on_start: Callable[[], object]) -> None:
        """Serve until `stop` is called, then answer all accepted requests.

        Args:
            on_start: function that is called when requests are accepted.

        Raises:
            Error: if the workers cannot start.
        """
        try:
            await self._pool.start()
            serving = asyncio.create_task(self._server.serve([self._listener]))
            while not (self._server.started or serving.done()):
                await asyncio.sleep(0.01)
            on_start()
            stopped = asyncio.create_task(self._stopped.wait())
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            await self._pool.drain()
            self._server.should_exit = True
            await serving
        finally:
            await self._pool.close()

    def stop(self) -> None:
        """Refuse new requests, and end once the accepted ones are answered. A second call ends at once."""
        if self._stopped.is_set():
            self._server.force_exit = self._server.should_exit = True
            self._pool.kill()
        self._pool.draining = True
        self._stopped.set()

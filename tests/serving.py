"""Workers that need no process, and clients of the server, for tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import tiny
from PIL import Image

from minigdino.serving import worker as real
from minigdino.serving.app import Settings, create
from minigdino.serving.pool import Pool, WorkerEnded
from minigdino.serving.web import Service

ROOT = Path(__file__).parent.parent
SCENE = (ROOT / "docs" / "images" / "scene.jpg").read_bytes()
BOUNDARY = "----x"
ORIGIN = "http://127.0.0.1"


class Fake:
    """A worker in this process. `answer(header)` computes; it may be a coroutine, and may raise WorkerEnded."""

    pids = itertools.count(1)
    dead = False  # also before `ended` is done

    def __init__(self, answer):
        self.pid, self.answer = next(self.pids), answer
        self.ended = asyncio.get_running_loop().create_future()
        self.asked = []

    async def ask(self, header, blocks=()):
        if self.dead or self.ended.done():
            raise WorkerEnded(begun=False)
        if header["kind"] == "ping":
            return {}, []
        self.asked.append(header)
        task = asyncio.ensure_future(self.answer(header))
        try:
            await asyncio.wait({task, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise WorkerEnded
            return task.result(), []
        finally:
            task.cancel()

    def kill(self):
        if not self.ended.done():
            self.ended.set_result(None)


def fake_pool(answer, workers=1, **options):
    """A pool of `Fake`s, and the list to which each one is appended when it is started."""
    started = []

    async def start():
        started.append(Fake(answer))
        return started[-1]

    return Pool(start, workers, **{"queue": 10, "timeout": 5.0, **options}), started


class Local(Fake):
    """A worker in this process that detects with a small model."""

    def __init__(self, model, setup):
        async def compute(header):
            head, content = real.answer(model, setup, header, self.blocks)
            self.blocks = [content]
            return head

        super().__init__(compute)

    async def ask(self, header, blocks=()):
        self.blocks = list(blocks)
        head, _ = await super().ask(header)
        return head, self.blocks


def setup(**changes):
    """What a worker needs, without the model."""
    return real.Setup(**{"model": b"", "name": "tiny", "precision": "highest", "threads": 1,
                         "max_pixels": 10_000, **changes})


@contextlib.asynccontextmanager
async def running(pool):
    """A pool, from its start to its end."""
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def settle():
    """Let all tasks run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


def call(app, method, path, body=b"", headers=None, leave=False):
    """Send a request to an ASGI application. Returns (status, {header: value}, content)."""
    return asyncio.run(acall(app, method, path, body, headers, leave))


async def acall(app, method, path, body=b"", headers=None, leave=False):
    """The same as a coroutine. With `leave`, the client leaves once the body is sent."""
    sent, messages = asyncio.Event(), []
    parts = iter([body] if isinstance(body, bytes) else body)
    following = next(parts, b"")

    async def receive():
        nonlocal following
        if following is not None:
            part, following = following, next(parts, None)
            await asyncio.sleep(0)
            return {"type": "http.request", "body": part, "more_body": following is not None}
        if not leave:
            await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            sent.set()

    path, _, query = path.partition("?")
    await app({"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
               "path": urllib.parse.unquote(path), "raw_path": path.encode(), "query_string": query.encode(),
               "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
               "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]},
              receive, send)
    headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, b"".join(message.get("body", b"") for message in messages[1:])


def form(parts):
    """A multipart body with its headers. `parts` are pairs (name, text or bytes of a file)."""
    lines = []
    for name, value in parts:
        file = '; filename="a.png"' if isinstance(value, bytes) else ""
        lines.append(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
                     + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def as_json(images=None, **fields):
    """A JSON body with its headers."""
    encoded = [base64.b64encode(image).decode() for image in (images or [picture()])]
    return json.dumps({"images": encoded, **fields}).encode(), {"Content-Type": "application/json"}


def picture(height=40, width=60, kind="PNG", seed=0):
    """The content of an image file."""
    file = io.BytesIO()
    Image.fromarray(tiny.photo(height, width, seed)).save(file, kind)
    return file.getvalue()


def local_app(pool_options=None, setup_options=None, **settings):
    """An application with one worker in this process, and its pool, which `running` starts."""
    async def start():
        return Local(tiny.model(), setup(**(setup_options or {})))

    pool = Pool(start, 1, **{"queue": 4, "timeout": 10.0, **(pool_options or {})})
    return create(pool, Settings(**{"model": "tiny", **settings})), pool


@contextlib.contextmanager
def served(app, pool, **options):
    """Serve an application in a thread, without processes. Yields the port and the service."""
    started = threading.Event()
    found = []

    async def serve():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = Service(pool, app, listener, **options)
            found.append((listener.getsockname()[1], service, asyncio.get_running_loop()))
            await service.run(started.set)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(20)
        port, service, loop = found[0]
        yield port, service
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(service.stop)
        thread.join(30)
        assert not thread.is_alive()


class Server:
    """A server in a process of its own: `minigdino serve` with the embedded checkpoint."""

    def __init__(self, *options, **environment):
        env = {k: v for k, v in os.environ.items() if not k.startswith("MINIGDINO")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minigdino", "serve", "--port", "0", *(options or ("--model", "shapes"))], cwd=ROOT,
            env={**env, **environment}, stderr=subprocess.PIPE, text=True)
        self.lines, self.started = [], threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.started.wait(60), self.lines
        (self.port,) = (int(found[1]) for line in self.lines if (found := re.search(r"http://\S+:(\d+) with", line)))

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("serving"):
                self.started.set()
        self.started.set()

    def ask(self, method, path, body=b"", headers=None, timeout=60):
        """Send a request. Returns (status, headers, content)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def detect(self, body_and_headers, **more):
        """Send a request for detections."""
        return self.ask("POST", "/v1/detect", *body_and_headers, **more)

    def workers(self):
        """Process ids of the workers."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and "spawn_main" in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
        return found

    def stop(self, number=signal.SIGTERM, timeout=30):
        """Send a signal, unless the server has ended. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def kill(self):
        """End the server, if it still runs, and close what belongs to it."""
        for worker in self.workers():  # a stopped one would never end
            os.kill(worker, signal.SIGKILL)
        self.process.kill()
        self.process.wait(10)
        self._reader.join()
        self.process.stderr.close()

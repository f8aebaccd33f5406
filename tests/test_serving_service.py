"""The server as a service: killed workers and clients, slow and lost clients, the end under load, saturation."""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import serving
import tiny
from PIL import Image

import minigdino
from benchmarks import case
from benchmarks import serving as benchmark
from minigdino.serving import intake, web

resource = pytest.importorskip("resource")  # which Windows lacks
pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")]

TEXT = "a cat. a red dog."
PICTURES = 12  # more than a worker caches
WAIT = 60.0  # seconds for an answer
CLIENT = """
import socket, sys
data = sys.stdin.buffer.read()
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(data)
        print("sent", flush=True)
        connection.recv(1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save(folder)
    return folder


@contextlib.contextmanager
def running(folder, workers=2, **options):
    """A server of a small model."""
    options = {"workers": workers, "threads": 1, "queue": 100, "max_bytes": 100_000, **options}
    server = serving.Server("--model", str(folder), *itertools.chain.from_iterable(
        (f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as server:
        yield server


@pytest.fixture(scope="module")
def expected(folder):
    """A function that returns the results of the bare detector for the request of a number."""
    model = minigdino.load(folder)

    @functools.cache
    def results(picture, threshold):
        found = model.detect(Image.open(io.BytesIO(serving.picture(seed=picture))), TEXT, threshold=threshold)
        return json.loads(json.dumps([found.to_dict()]))

    return lambda number: results(*variant(number))


def variant(number):
    """Picture and threshold of the request of a number."""
    return number % PICTURES, number % 7 / 10


def request(number=0, **more):
    """The bytes of a request. The server closes the connection after its answer."""
    picture, threshold = variant(number)
    body, headers = serving.form([("image", serving.picture(seed=picture)), ("text", TEXT),
                                  ("threshold", str(threshold)), *more.items()])
    lines = ["POST /v1/detect HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}",
             *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(line + "\r\n" for line in lines).encode() + b"\r\n" + body


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), WAIT)


def exchange(server, data):
    """Send a request, and return what is `received`."""
    with connect(server) as connection:
        connection.sendall(data)
        return received(connection)


def received(connection):
    """(status, content) of an answer. Fails if the stream has more or less than one."""
    stream = b"".join(iter(functools.partial(connection.recv, 2**16), b""))
    head, _, content = stream.partition(b"\r\n\r\n")
    if not head:
        raise ConnectionResetError("the connection ended without an answer")
    assert len(content) == int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    return int(head.split()[1]), json.loads(content)


def figure(server, name):
    """A figure of /metrics, summed over its labels."""
    text = server.ask("GET", "/metrics")[2].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def until(condition, seconds=WAIT):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Clients:
    """Threads that send numbered requests one after the other, until `stop` is set."""

    def __init__(self, server, count):
        self.server, self.stop = server, threading.Event()
        self.open, self.outcomes = set(), {}
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        while not self.stop.is_set():
            with self._lock:
                number = next(self._numbers)
                self.open.add(number)
            try:
                outcome = exchange(self.server, request(number))
            except Exception as error:
                outcome = error
            with self._lock:
                self.outcomes[number] = outcome
                self.open.discard(number)

    def settle(self):
        """Wait until the requests that are open now have an outcome."""
        with self._lock:
            waiting = set(self.open)
        until(lambda: not waiting & self.open)


def check(outcomes, expected):
    """Each outcome is the answer of the bare detector."""
    for number, outcome in outcomes.items():
        assert isinstance(outcome, tuple), (number, outcome)
        status, content = outcome
        assert status == 200, content
        assert content["results"] == expected(number)


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_workers_and_clients_lose_no_request(folder, expected, kills):
    """Each round kills a worker and a client with SIGKILL. Every second worker is stopped first, within a request."""
    rng = random.Random(0)
    with running(folder) as server:
        with Clients(server, 6) as clients:
            for i in range(kills):
                until(lambda: figure(server, "minigdino_workers_ready") == 2)
                victim = rng.choice(server.workers())
                command = [sys.executable, "-S", "-c", CLIENT, str(server.port)]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
                    client.stdin.write(request())
                    client.stdin.close()
                    assert client.stdout.readline() == b"sent\n"
                    if i % 2:
                        os.kill(victim, signal.SIGSTOP)
                        until(lambda: figure(server, "minigdino_workers_busy") == 2)
                    else:
                        time.sleep(rng.random() * 0.02)
                    os.kill(victim, signal.SIGKILL)
                    client.kill()
                clients.settle()  # so that no request meets a second kill
                until(lambda: figure(server, "minigdino_worker_restarts_total") == i + 1)  # noqa: B023
        assert len(clients.outcomes) >= 6 * kills
        check(clients.outcomes, expected)
        until(lambda: figure(server, "minigdino_workers_ready") == 2)
        until(lambda: figure(server, "minigdino_workers_busy") == 0)
        assert figure(server, "minigdino_queue_length") == 0
        assert server.stop() == 0
        assert len(server.lines) == 1 + kills  # a line for each worker


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_all_workers_at_once_lose_no_request(folder, expected, kills):
    with running(folder, workers=3) as server:
        with Clients(server, 6) as clients:
            for i in range(kills):
                until(lambda: figure(server, "minigdino_workers_ready") == 3)
                for victim in server.workers():
                    os.kill(victim, signal.SIGKILL)
                until(lambda: figure(server, "minigdino_worker_restarts_total") == 3 * (i + 1))  # noqa: B023
                clients.settle()  # so that no request meets a second kill
        check(clients.outcomes, expected)
        assert server.stop() == 0


def test_a_request_survives_the_end_of_workers_that_do_not_begin_it(folder, expected):
    """All workers are stopped, so that the request goes from one to the next."""
    with running(folder, workers=3) as server:
        for number in range(3):
            until(lambda: figure(server, "minigdino_workers_ready") == 3)
            victims = server.workers()
            for victim in victims:
                os.kill(victim, signal.SIGSTOP)
            with connect(server) as connection:
                connection.sendall(request(number))
                until(lambda: figure(server, "minigdino_workers_busy") == 1)
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
                    time.sleep(0.02)
                check({number: received(connection)}, expected)


def test_the_end_under_load_answers_all_accepted_requests(folder, expected):
    """SIGTERM comes while workers are stopped, so that each client has a request in the queue or in a worker."""
    head, body = request().split(b"\r\n\r\n", 1)
    with running(folder) as server:
        with Clients(server, 8) as clients, connect(server) as late:
            until(lambda: len(clients.outcomes) > 20)
            workers = server.workers()
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            until(lambda: figure(server, "minigdino_workers_busy") == 2)
            until(lambda: figure(server, "minigdino_queue_length") == 6)
            accepted = set(clients.open)
            late.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
            assert late.recv(2**16).startswith(b"HTTP/1.1 100 ")
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.ask("GET", "/health/ready")[0] == 503)
            late.sendall(body)
            status, content = received(late)
            assert status == 503
            assert "is shutting down" in content["error"]
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            assert server.process.wait(30) == 0
            clients.stop.set()
        assert len(accepted) == 8
        after = [clients.outcomes.pop(number) for number in list(clients.outcomes) if number > max(accepted)]
        check(clients.outcomes, expected)
        for outcome in after:
            if isinstance(outcome, tuple):
                assert outcome[0] == 503
                assert "is shutting down" in outcome[1]["error"]
            else:
                assert isinstance(outcome, ConnectionError)  # the port is closed
        assert len(server.lines) == 1  # no traceback


@pytest.mark.slow
def test_the_end_waits_for_work_that_takes_long(folder, expected):
    """The only worker is stopped for longer than connections may take to close."""
    with running(folder, workers=1) as server, contextlib.ExitStack() as stack:
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        connections = [stack.enter_context(connect(server)) for _ in range(3)]
        for number, connection in enumerate(connections):
            connection.sendall(request(number))
        until(lambda: figure(server, "minigdino_queue_length") == 2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(web.FLUSH + 2)
        os.kill(worker, signal.SIGCONT)
        for number, connection in enumerate(connections):
            check({number: received(connection)}, expected)
        assert server.process.wait(30) == 0


def test_slow_clients_do_not_keep_others_waiting(server, expected):
    data = request()
    head = data.index(b"\r\n\r\n")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(150)]
        for i, connection in enumerate(slow):
            connection.sendall(data[: (0, head // 2, head + 4, len(data) // 2, len(data) - 1)[i % 5]])
        for number in range(10):
            for connection in slow[1::5]:
                connection.sendall(b"x")
            began = time.monotonic()
            check({number: exchange(server, request(number))}, expected)
            assert time.monotonic() - began < 10
        assert figure(server, "minigdino_queue_length") == 0
        slow[4].sendall(data[-1:])  # its other bytes have waited
        assert slow[4].recv(12) == b"HTTP/1.1 200"


def test_a_worker_that_ends_while_clients_hold_all_connections_is_replaced(folder, expected):
    """The process may open few files, and 200 clients never complete the head of a request."""
    files, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limit))  # the server gets it, too
        try:
            server = stack.enter_context(running(folder, workers=1, queue=4))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, limit))
        for _ in range(200):
            stack.enter_context(connect(server)).sendall(b"GET /health/live HTTP/1.1\r\n")
        assert server.ask("GET", "/health/live")[0] == 200
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 80
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.workers() not in ([], [worker]) and figure(server, "minigdino_workers_ready") == 1)
        check({0: exchange(server, request())}, expected)
        assert len(server.lines) == 2  # of the start and of the worker


@pytest.mark.slow
def test_slow_clients_are_sent_away(folder):
    data = request()
    head = data.index(b"\r\n\r\n")
    with running(folder, timeout=2) as server, contextlib.ExitStack() as stack:
        silent, in_head, in_body = (stack.enter_context(connect(server)) for _ in range(3))
        in_head.sendall(data[: head // 2])
        in_body.sendall(data[: len(data) // 2])
        began = time.monotonic()
        ended = {}
        while len(ended) < 3:
            assert time.monotonic() - began < web.HEAD_SECONDS + 10
            for name, connection in (("silent", silent), ("head", in_head), ("body", in_body)):
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if name not in ended:
                        ended[name] = connection.recv(12), time.monotonic() - began
            with contextlib.suppress(OSError):
                in_head.sendall(b"x")  # a client that sends a byte now and then gets no more time
    assert ended["body"][0] == b"HTTP/1.1 408"
    assert ended["body"][1] < 10
    assert ended["silent"][0] == ended["head"][0] == b""
    assert ended["head"][1] > web.HEAD_SECONDS - 1


def test_uploads_that_stall_do_not_keep_others_from_an_answer(server, expected):
    """They fill the memory for bodies, and send a byte now and then. Others wait as Retry-After says."""
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    ended = functools.partial(figure, server, 'minigdino_requests_total{path="/v1/detect",status="408"}')
    before = ended()
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connect(server)) for _ in range(intake.HELD + 1)]
        for connection in stalled:
            connection.sendall(head + bytes(99_900))
        began = time.monotonic()
        for number in itertools.count():
            for connection in stalled:
                with contextlib.suppress(OSError):  # it was ended
                    connection.sendall(b"x")
            status, content = exchange(server, request(number))
            if status == 200:
                assert content["results"] == expected(number)
                break
            assert (status, bool(re.search(r"Try again in \d+ s", content["error"]))) == (503, True)
            assert time.monotonic() - began < intake.SLOW + 10
            time.sleep(0.1)
        assert ended() > before
        for number in range(3):
            check({number: exchange(server, request(number))}, expected)


def test_bodies_that_end_early_leave_nothing_behind(server, expected):
    data = request()
    left = figure(server, "minigdino_requests_total")
    count = 2 * intake.HELD  # half of them would fill the memory for bodies
    for _ in range(count):
        with connect(server) as connection:
            connection.sendall(data[: data.index(b"\r\n\r\n")] + b"\r\nX: y\r\n\r\n")
            connection.sendall(bytes(len(data) // 2))
        with connect(server) as connection:  # also with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
            connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(90_000))
    until(lambda: figure(server, "minigdino_requests_total") >= left + 2 * count)
    for number in range(3):
        check({number: exchange(server, request(number))}, expected)


def test_work_of_clients_that_have_left_is_not_begun(folder, expected):
    with running(folder, workers=1) as server:
        def computed():
            return figure(server, "minigdino_computing_seconds_count")

        with connect(server) as first:
            first.sendall(request(size="1500,2000"))
            until(lambda: figure(server, "minigdino_workers_busy") == 1)
            for number in range(30):
                with connect(server) as connection:
                    connection.sendall(request(number))
            until(lambda: figure(server, 'minigdino_requests_total{path="/v1/detect",status="499"}') == 30)
            assert first.recv(12) == b"HTTP/1.1 200"
        check({1: exchange(server, request(1))}, expected)
        assert computed() == 2


@pytest.mark.slow
def test_saturation_does_not_make_the_memory_grow(tmp_path):
    where = case.case(tmp_path, "shapes")
    options = argparse.Namespace(size=(64, 85), text="a star.", threads=2, clients=[100], minutes=1.0)
    benchmark.write_once(where, options.size)
    found = benchmark.endure(where, options)
    before, after = benchmark.growth(found["samples"])
    assert found["statuses"].keys() == {"200", "503"}
    assert all(len(digests) == 1 for digests in found["digests"].values())
    assert not found["replaced"]
    assert after - before < 0.03 * before

"""`minigdino serve` as a process: its workers, signals, and what clients and kills do to it."""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import functools
import http.client
import io
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import serving
import tiny
from PIL import Image
from serving import SCENE, Server, as_json, fake_pool, form, local_app, served

import minigdino
from minigdino import ArgumentError, CheckpointError, cli, urls
from minigdino.checkpoints import hub
from minigdino.serving import intake, processes, server, web, worker
from minigdino.serving.app import Settings, create
from minigdino.serving.messages import packed, read, receive
from minigdino.serving.pool import Pool, WorkerEnded
from minigdino.serving.processes import Process
from minigdino.serving.refusals import HEADERS

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
PHRASES = ["a red star", "a blue circle"]
SHAPES = form([("image", SCENE), *(("phrase", phrase) for phrase in PHRASES), ("size", "96,160")])


@contextlib.contextmanager
def started(*options, **environment):
    """A server, which must end with status 0."""
    server = Server(*options, **environment)
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.fixture(scope="module")
def shapes():
    """A server with one worker."""
    with started("--model", "shapes", "--workers", "1", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "tiny-model"
    tiny.model().save(path)
    return path


@pytest.fixture(scope="module")
def pair(directory):
    """A server with two workers and a model whose weights are mapped."""
    with started("--model", str(directory), "--workers", "2", "--threads", "1", "--queue", "100") as server:
        yield server


def test_the_server_answers_as_detect_does(shapes):
    status, headers, content = shapes.detect(SHAPES)
    answer = json.loads(content)
    expected = minigdino.detect(SCENE, PHRASES, model="shapes", size=(96, 160))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert answer["model"] == "shapes"
    assert answer["results"] == [expected.to_dict()]
    assert answer["seconds"]["computed"] > 0


def test_the_start_states_model_address_and_workers(shapes):
    assert re.fullmatch(r"serving shapes at http://127\.0\.0\.1:\d+ with 1 worker of 1 thread\. Ctrl-C ends the "
                        r"server\n", shapes.lines[0])


def test_the_examples_of_the_page_run_and_print_what_it_shows(shapes, capsys):
    page = (serving.ROOT / "docs" / "howto" / "server.md").read_text()
    python, shown = re.search(r"```py\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL).groups()
    assert "127.0.0.1:8000" in python
    with contextlib.chdir(serving.ROOT):
        exec(python.replace(":8000", f":{shapes.port}"), {})
        assert capsys.readouterr().out == shown
        if shutil.which("curl"):
            (command,) = re.findall(r"```sh\n(curl.*?)```", page, re.DOTALL)
            done = subprocess.run(command.replace(":8000", f":{shapes.port}"), shell=True, capture_output=True,
                                  check=True)
            labels = [found["label"] for found in json.loads(done.stdout)["results"][0]["detections"]]
            assert labels == ["a red star", "a blue circle"]


@pytest.mark.parametrize("edge", [8000, 11_000])  # Pillow warns of the first, and refuses the second
def test_an_image_with_too_many_pixels_is_refused(shapes, edge):
    file = io.BytesIO()
    Image.new("1", (edge, edge)).save(file, "PNG", compress_level=1)
    status, _, content = shapes.detect(form([("image", file.getvalue()), ("text", "a star.")]))
    assert (status, json.loads(content)["error"]) == (413, "an image must have at most 50000000 pixels; got more. Send "
                                                           "a smaller one")


def test_several_requests_of_one_connection(shapes):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", shapes.port, timeout=30)) as connection:
        for _ in range(3):
            connection.request("POST", "/v1/detect", *SHAPES)
            answer = connection.getresponse()
            assert (answer.status, len(json.loads(answer.read())["results"])) == (200, 1)
        connection.request("HEAD", "/health/ready")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")


@pytest.mark.parametrize("sent", [b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000,
                                  b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"])
def test_what_is_no_http_gets_an_error_of_the_server(shapes, sent):
    with socket.create_connection(("127.0.0.1", shapes.port), 30) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert json.load(answer)["error"].startswith("expected a request of HTTP/1.1")
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@LINUX
def test_the_memory_of_a_worker_is_measured(shapes):
    shapes.detect(SHAPES)
    text = shapes.ask("GET", "/metrics")[2].decode()
    (size,) = re.findall(r'^minigdino_worker_memory_bytes{worker="0"} (\S+)$', text, re.MULTILINE)
    assert 10**7 < float(size) < 10**9


@LINUX
def test_workers_share_the_mapped_weights_and_answers_name_no_path(pair, directory):
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in pair.workers()]
    assert len(maps) == 2
    inodes = {line.split()[4] for text in maps for line in text.splitlines() if "model.safetensors" in line}
    assert len(inodes) == 1
    for path in ("/v1/models", "/openapi.json", "/metrics", "/docs"):
        assert str(directory.parent).encode() not in pair.ask("GET", path)[2]
    assert json.loads(pair.ask("GET", "/v1/models")[2])["models"][0]["name"] == "tiny-model"


@LINUX
def test_workers_do_not_copy_mapped_weights(tmp_path):
    """A large vocabulary makes the weights larger than all else in a worker."""
    text = dataclasses.asdict(tiny.config().text_config) | {"vocab_size": 10**6}
    minigdino.Model.random(tiny.config(text_config=text), tokenizer=tiny.tokenizer(),
                           settings=tiny.SETTINGS).save(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    with started("--model", str(tmp_path / "model"), "--workers", "1", "--threads", "1") as server:
        assert server.detect(form([("image", serving.picture()), ("text", "a cat.")]))[0] == 200
        (pid,) = server.workers()
        sizes = Path(f"/proc/{pid}/smaps_rollup").read_text()
    assert 0 < 1024 * int(re.search(r"^Private_Dirty: +(\d+) kB", sizes, re.MULTILINE)[1]) < weights


@LINUX
def test_a_killed_worker_is_replaced_and_no_request_is_lost(pair):
    """While clients send requests, workers are killed. Each request gets one answer, that of its own prompt."""
    results = []

    def client(number):
        for i in range(8):
            phrase = tiny.WORDS[3 + (number + i) % 5]
            status, _, content = pair.detect(form([("image", serving.picture(seed=number)), ("phrase", phrase),
                                                   ("threshold", "0"), ("max_detections", "1")]))
            results.append((status, json.loads(content), phrase))
            if number == 0 and i % 4 == 2:
                os.kill(pair.workers()[0], signal.SIGKILL)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 48
    for status, answer, phrase in results:
        if status == 200:
            assert answer["results"][0]["detections"][0]["label"] == phrase
        else:  # two workers of one request were killed
            assert (status, "have ended" in answer["error"]) == (500, True)
    assert sum(status == 200 for status, *_ in results) >= 46
    text = pair.ask("GET", "/metrics")[2].decode()
    assert float(re.search(r'restarts_total{reason="died"} (\S+)', text)[1]) >= 1
    assert any("is replaced: it has ended" in line for line in pair.lines)


@LINUX
def test_a_worker_with_too_much_memory_is_replaced_between_requests_and_ctrl_c_ends_the_server(directory):
    """The key comes from the environment."""
    body, headers = as_json(text="a cat.")
    with started("--model", str(directory), "--workers", "1", "--max-memory", "1", MINIGDINO_API_KEY="k") as server:
        assert server.detect((body, headers))[0] == 401
        for _ in range(2):
            status, _, content = server.detect((body, {**headers, "X-API-Key": "k"}))
            assert (status, len(json.loads(content)["results"])) == (200, 1)
        text = server.ask("GET", "/metrics", headers={"X-API-Key": "k"})[2].decode()
        assert float(re.search(r'restarts_total{reason="memory"} (\S+)', text)[1]) >= 1
        assert server.stop(signal.SIGINT) == 0
    assert not server.workers()


@LINUX
def test_sigterm_answers_accepted_requests_and_refuses_new_ones():
    results, lost = [], []

    def client(server):
        while True:
            sent = time.monotonic()
            try:
                status, _, content = server.detect(form([("image", SCENE), ("text", "a star."), ("size", "192,320")]))
            except (ConnectionError, http.client.HTTPException) as error:
                lost.append((sent, error))
                return
            results.append(status)
            if status == 503:
                assert "shutting down" in json.loads(content)["error"]
                return
            assert json.loads(content)["results"]

    with started("--model", "shapes", "--workers", "1", "--threads", "1", "--timeout", "30") as server:
        threads = [threading.Thread(target=client, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while results.count(200) < 4:
            time.sleep(0.01)
        for pid in server.workers():  # a service manager signals the whole group
            os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    for thread in threads:
        thread.join()
    assert results.count(200) >= 4 + 7  # those that were accepted, too
    assert {*results} <= {200, 503}
    assert all(sent > began and isinstance(error, ConnectionError) for sent, error in lost), (began, lost)


@LINUX
def test_workers_end_when_the_server_is_killed(directory):
    server = Server("--model", str(directory), "--workers", "1", "--threads", "1")
    workers = server.workers()
    assert len(workers) == 1
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server.kill()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a worker is left")


def raw(port, data, seconds=5):
    """Send bytes, and return all that comes until the server closes the connection, and the seconds until then."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return answer, time.monotonic() - began


@pytest.mark.parametrize("start", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n", b"POST"])
def test_a_connection_without_a_complete_head_ends(monkeypatch, start):
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.2)
    with served(*local_app()) as (port, _):
        answer, seconds = raw(port, start)
        assert answer == b""
        assert 0.1 < seconds < 3


def test_a_head_that_arrives_slowly_is_answered(monkeypatch):
    monkeypatch.setattr(web, "HEAD_SECONDS", 1.0)
    with served(*local_app()) as (port, _), socket.create_connection(("127.0.0.1", port), 5) as connection:
        for _ in range(2):
            for part in (b"GET /health/live HT", b"TP/1.1\r\n", b"Host: x\r\n\r\n"):
                connection.sendall(part)
                time.sleep(0.02)
            answer = b""
            while b'{"live":true}' not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_in_the_middle_of_a_body_costs_nothing():
    body, headers = SHAPES
    head = "POST /v1/detect HTTP/1.1\r\nHost: x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with served(*local_app()) as (port, _):
        for n in (0, 1, 5000):
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:n])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.closing(connection):
            for _ in range(100):
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
                if 'status="499"} 3.0' in text:
                    break
                time.sleep(0.02)
            assert 'minigdino_requests_total{path="/v1/detect",status="499"} 3.0' in text
            connection.request("POST", "/v1/detect", *as_json(text="a cat."))
            assert connection.getresponse().status == 200


def test_a_body_that_stops_gets_408_and_the_connection_ends():
    with served(*local_app(timeout=0.2)) as (port, _):
        answer, seconds = raw(port, b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert seconds < 3


def test_the_rest_of_a_refused_body_is_not_awaited_for_long(monkeypatch):
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.3)
    with (served(*local_app(max_bytes=1000)) as (port, _),
          socket.create_connection(("127.0.0.1", port), 5) as connection):
        connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x" * 100)
                time.sleep(0.03)


def test_an_answer_that_a_client_does_not_take_is_dropped(monkeypatch):
    monkeypatch.setattr(web, "SEND_SECONDS", 0.2)

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000})

    pool, _ = fake_pool(None)
    with served(large, pool) as (port, service), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(100):
            time.sleep(0.05)
            if not service._server.server_state.connections:
                break
        assert not service._server.server_state.connections


def test_a_connection_above_the_limit_ends_the_one_that_is_silent_longest():
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    live = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    async def test():
        opened = asyncio.Event()

        async def app(scope, receive, send):
            if scope["path"] == "/v1/detect":
                await receive()
                await opened.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        async def seen(action):
            """Do something, and wait until the server has seen it."""
            began = asyncio.get_running_loop().time()
            result = await action
            while not any(one.seen > began for one in service._server.server_state.connections):
                await asyncio.sleep(0.001)
            return result

        async def write(writer, data):
            writer.write(data)

        async def connect(data):
            reader, writer = await seen(asyncio.open_connection("127.0.0.1", port))
            writers.append(writer)
            if data:
                await seen(write(writer, data))
            return reader

        async def ended(reader, seconds):
            try:
                async with asyncio.timeout(seconds):
                    await reader.read()
            except TimeoutError:
                return False
            except ConnectionError:
                pass
            return True

        writers = []
        pool, _ = fake_pool(None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            service = web.Service(pool, app, listener, connections=5)
            running = asyncio.create_task(service.run(lambda: None))
            complete = await connect(head + b"123456789")  # it is in process, and never ended
            in_head, in_body, idle, silent = [await connect(data) for data in (live[:9], head + b"123", live, b"")]
            assert await idle.readexactly(15) == b"HTTP/1.1 200 OK"
            await seen(write(writers[1], live[9:12]))  # the head goes on, so that the body is silent longest
            for oldest in (in_body, idle, silent, in_head):
                assert not await ended(oldest, 0.1)
                reader = await connect(live)
                assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
                assert await ended(oldest, 10)
            opened.set()
            assert await complete.readexactly(15) == b"HTTP/1.1 200 OK"
            service.stop()
            await running
            for writer in writers:
                writer.close()

    asyncio.run(test())


@contextlib.contextmanager
def unread(port, path):
    """A client that does not receive its answer."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        connection.connect(("127.0.0.1", port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1)
        yield connection


def is_live(port):
    """Whether a health check gets its answer."""
    return raw(port, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0].startswith(
        b"HTTP/1.1 200 ")


def test_answers_that_clients_do_not_take_leave_connections_for_others():
    """Among them, the oldest one ends."""
    async def app(scope, receive, send):
        size = 20_000_000 if scope["path"] == "/large" else 2
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    pool, _ = fake_pool(None)
    with served(app, pool, connections=5) as (port, _), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(unread(port, "/large")) for _ in range(5)]
        for oldest in clients[:3]:
            assert is_live(port)
            assert sum(map(len, iter(functools.partial(oldest.recv, 2**20), b""))) < 20_000_000
            stack.enter_context(unread(port, "/large"))


def test_requests_that_wait_for_downloads_leave_connections_for_others(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(urls, "download", lambda *_, **__: end.wait(20) and b"x")
    body, headers = json.dumps({"images": ["https://example.org/a"], "text": "a"}).encode(), as_json()[1]
    many = intake.DOWNLOADS + intake.PENDING
    app, pool = local_app({"queue": many}, allow_urls=True)
    with served(app, pool, connections=many + 2) as (port, _), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)))
                   for _ in range(many + 10)]
        for client in clients:
            client.request("POST", "/v1/detect", body, headers)
            assert is_live(port)
        answers = [client.getresponse() for client in clients[many:]]
        assert {(answer.status, answer.headers["Retry-After"]) for answer in answers} == {(503, "1")}
        assert json.load(answers[0])["error"] == "the server is busy: 16 requests wait for downloads. Try again in 1 s"
        end.set()
        assert {client.getresponse().status for client in clients[:many]} == {422}  # b"x" is no image


def test_a_system_that_refuses_connections_is_tried_again_with_one_line(monkeypatch):
    monkeypatch.setattr(web, "ACCEPT_PAUSE", 0.01)

    async def test():
        loop, refusals, lines = asyncio.get_running_loop(), [], []
        accept = loop.sock_accept

        async def refuse(listener):
            if len(refusals) < 5:
                refusals.append(True)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", refuse)
        app, pool = local_app()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = web.Service(pool, app, listener, log=lines.append)
            running = asyncio.create_task(service.run(lambda: None))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
            writer.close()
            service.stop()
            await running
        assert len(refusals) == 5
        assert lines == ["cannot accept connections (Too many open files), and tries again"]

    asyncio.run(test())


@pytest.mark.parametrize("broken", ["accept", "worker"])
def test_an_error_that_would_leave_the_server_deaf_ends_it(monkeypatch, broken):
    """Such as that of writing a line to a closed stream. Accepted requests are answered before."""
    def log(line):
        raise ValueError("closed")

    async def test():
        opened = asyncio.Event()

        async def answer(header):
            await opened.wait()
            return {}

        async def refuse(listener):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        pool, started = fake_pool(answer, workers=2, log=log)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = web.Service(pool, create(pool, Settings("tiny")), listener, log=log)
            running = asyncio.create_task(service.run(lambda: None))
            while pool.ready < 2:
                await asyncio.sleep(0.01)
            asked = asyncio.create_task(pool.ask({"kind": "detect"}))
            await asyncio.sleep(0)
            if broken == "accept":
                monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", refuse)
                socket.create_connection(listener.getsockname()).close()  # the last one that is accepted
            else:
                started[1].kill()  # the idle one
            async with asyncio.timeout(5):
                while not pool.draining:
                    await asyncio.sleep(0.01)
            opened.set()
            with pytest.raises(ValueError, match="closed"):
                await asyncio.wait_for(running, 5)
            assert asked.done()
            await asked

    asyncio.run(test())


def test_a_signal_during_the_start_ends_the_server():
    async def test():
        ended = []

        async def start():
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(True)

        pool = Pool(start, 2, queue=1, timeout=1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = web.Service(pool, create(pool, Settings("tiny")), listener)
            running = asyncio.create_task(service.run(pytest.fail))
            await asyncio.sleep(0.02)
            service.stop()
            await asyncio.wait_for(running, 5)
            assert len(ended) == 2

    asyncio.run(test())


def test_a_second_signal_ends_the_server_at_once():
    async def forever(header):
        await asyncio.sleep(100)

    async def test():
        pool, _ = fake_pool(forever, timeout=100)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = web.Service(pool, create(pool, Settings("tiny")), listener)
            running = asyncio.create_task(service.run(lambda: None))
            while not pool.ready:
                await asyncio.sleep(0.01)
            asked = asyncio.create_task(pool.ask({"kind": "detect"}))
            await asyncio.sleep(0.02)
            service.stop()
            await asyncio.sleep(0.05)
            assert not running.done()
            service.stop()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(running, 5)
            asked.cancel()

    asyncio.run(test())


@LINUX
def test_a_second_signal_is_an_error_of_the_command(directory):
    server = Server("--model", str(directory), "--workers", "1", "--threads", "1")
    try:
        os.kill(server.workers()[0], signal.SIGSTOP)
        body, headers = as_json(text="a cat.")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.request("POST", "/v1/detect", body, headers)
            while not json.loads(server.ask("GET", "/health/ready")[2])["busy"]:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            while server.ask("GET", "/health/ready")[0] == 200:
                time.sleep(0.01)
            assert server.stop() == 1
    finally:
        server.kill()
    assert server.lines[1:] == ["minigdino: a second signal ended the server, without waiting for accepted requests\n"]


# --- worker processes ---


def echo(connection, kind):
    """A worker that answers with what it gets."""
    with connection, connection.makefile("rwb") as file:
        def send(*message):
            file.writelines(packed(*message))
            file.flush()

        if kind == "ends":
            return
        send({"error": "no model"} if kind == "fails" else {})
        while message := receive(file):
            if message[0]["kind"] in ("break", "answer and break"):
                file.writelines([*packed(*message)] * (message[0]["kind"] != "break") + [b"\0\0\0\4{no}"])
                file.flush()
                continue
            if message[0]["kind"] in ("end", "begin and end"):
                if message[0]["kind"] != "end":
                    send({"begun": True})
                return
            send(*message)


def test_a_worker_process_answers_and_ends():
    async def test():
        process = await Process.start(echo, "works")
        for blocks in ([], [b""], [b"a" * 3_000_000, b"\x00\xff"]):
            assert await process.ask({"kind": "x", "text": "é\ud800"}, blocks) == ({"kind": "x", "text": "é\ud800"},
                                                                                  blocks)
        with pytest.raises(WorkerEnded):
            await process.ask({"kind": "end"})
        await asyncio.wait_for(process.ended, 10)
        with pytest.raises(WorkerEnded):
            await process.ask({"kind": "x"})
        process.kill()
        process.kill()

    asyncio.run(test())


def test_a_worker_process_that_breaks_the_protocol_states_how_and_is_not_used_again():
    async def test():
        process = await Process.start(echo, "works")
        with pytest.raises(json.JSONDecodeError):
            await process.ask({"kind": "break"})
        assert process.ended.done()
        with pytest.raises(WorkerEnded):
            await process.ask({"kind": "x"})
        process.kill()
        process = await Process.start(echo, "works")
        assert (await process.ask({"kind": "answer and break"}))[0] == {"kind": "answer and break"}
        await asyncio.wait_for(process.ended, 10)
        process.kill()

    asyncio.run(test())


def test_a_worker_process_that_ends_states_whether_it_had_begun():
    async def ended(header, *numbers):
        process = await Process.start(echo, "works")
        for number in numbers[:1]:
            os.kill(process.pid, number)
        asked = asyncio.create_task(process.ask(header, [b"x" * 300]))
        await asyncio.sleep(0.05)
        for number in numbers[1:]:
            os.kill(process.pid, number)
        with pytest.raises(WorkerEnded) as caught:
            await asyncio.wait_for(asked, 10)
        process.kill()
        return caught.value.begun

    assert asyncio.run(ended({"kind": "begin and end"}))
    assert not asyncio.run(ended({"kind": "x"}, signal.SIGSTOP, signal.SIGKILL))
    assert not asyncio.run(ended({"kind": "x"}, signal.SIGKILL))


@pytest.mark.parametrize(("kind", "text"), [("fails", "^no model$"), ("ends", r"the process ended \(0\). Check that")])
def test_a_worker_that_cannot_start_is_an_error(kind, text):
    async def test():
        with pytest.raises(CheckpointError, match=text):
            await Process.start(echo, kind)

    asyncio.run(test())


def test_a_system_without_room_for_a_process_is_an_error(monkeypatch):
    class Refusing:
        def __init__(self, **_):
            pass

        def start(self):
            raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "SPAWN", argparse.Namespace(Process=Refusing))
    with pytest.raises(CheckpointError, match=r"refused \(Resource temporarily unavailable\). Use fewer --workers"):
        asyncio.run(Process.start(echo, "works"))


def test_a_system_without_a_free_descriptor_is_an_error():
    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def test():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "socketpair", refuse)
            with pytest.raises(CheckpointError, match=r"refused \(Too many open files\). Use fewer --workers"):
                await Process.start(echo, "works")

    asyncio.run(test())


def test_a_message_that_is_cut_is_the_end(tmp_path):
    whole = b"".join(packed({"kind": "x"}, [b"abc"]))
    (tmp_path / "m").write_bytes(whole)
    with open(tmp_path / "m", "rb") as file:
        assert receive(file) == ({"kind": "x"}, [b"abc"])
        assert receive(file) is None

    async def cut(n):
        reader = asyncio.StreamReader()
        reader.feed_data(whole[:n])
        reader.feed_eof()
        return await read(reader)

    assert asyncio.run(cut(len(whole))) == ({"kind": "x"}, [b"abc"])
    for n in range(len(whole)):
        with pytest.raises(EOFError):
            asyncio.run(cut(n))


# --- the command ---


@pytest.mark.parametrize(("options", "text"), [
    (["--workers", "0"], "--workers must be 1 to 1024; got 0"),
    (["--threads", "-1"], "--threads must be 1 to 1024; got -1"),
    (["--port", "70000"], "--port must be 0 to 65535; got 70000"),
    (["--max-pixels", "0"], "--max-pixels must be 1 to"), (["--max-bytes", "0"], "--max-bytes must be 1 to"),
    (["--queue", "-1"], "--queue must be 0 to"), (["--timeout", "nan"], "--timeout must be 0.001 to 86400; got nan"),
    (["--max-memory", "0"], "--max-memory must be 1 to"),
    (["--api-key", " "], "--api-key or $MINIGDINO_API_KEY must not be empty; got ' '"),
    (["--host", "no.such.host.invalid"], "no.such.host.invalid:8000: cannot listen there"),
    (["--port", "0", "--model", "nowhere/at/all"], "nowhere/at/all: no such file or directory")])
def test_wrong_options_are_errors(options, text, capsys):
    assert cli.main(["serve", *options]) == 1
    assert f"minigdino: {text}" in capsys.readouterr().err


@pytest.mark.parametrize(("files", "queue", "workers", "connections"), [
    (140, 32, 1, 73), (1024, 32, 1, 957), (10**6, 32, 8, 1040), (10**6, 5000, 8, 6008)])
def test_connections_leave_descriptors_for_workers(monkeypatch, files, queue, workers, connections):
    monkeypatch.setattr(server, "_open_files", lambda: files)
    assert server._connections(queue, workers) == connections
    assert connections - queue - workers >= 2 * (intake.DOWNLOADS + intake.PENDING)  # also for health checks


@LINUX
def test_a_queue_that_needs_more_open_files_is_an_error():
    code = ("import resource, sys, minigdino.cli\nresource.setrlimit(resource.RLIMIT_NOFILE, (139, 139))\n"
            "sys.exit(minigdino.cli.main(['serve', '--port', '0', '--workers', '1']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=serving.ROOT)
    assert done.returncode == 1
    assert done.stderr == ("minigdino: --queue 32 and --workers 1 need 140 open files; the system allows 139. Raise "
                           "that limit by `ulimit -n 140`, or use a smaller --queue\n")


def test_a_port_in_use_is_an_error(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 1
    assert re.search(rf"127\.0\.0\.1:{port}: cannot listen there \(Address already in use.*\)\. Choose another",
                     capsys.readouterr().err)


def test_private_urls_are_not_served(monkeypatch, capsys):
    monkeypatch.setenv(urls.PRIVATE, "1")
    assert cli.main(["serve", "--allow-urls"]) == 1
    assert "Unset the variable" in capsys.readouterr().err


@pytest.mark.parametrize("name", server.PACKAGES)
def test_a_missing_package_is_named(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["serve"]) == 1
    text = capsys.readouterr().err
    assert f"minigdino serve needs the package {server.PACKAGES[name]}, which is not installed" in text
    assert 'pip install "minigdino[serve]"' in text


@pytest.mark.parametrize(("cached", "given", "set_to", "expected"), [
    ([], None, None, "shapes"), (["a/b"], None, None, "a/b"), (["a/b", hub.DEFAULT], None, None, hub.DEFAULT),
    ([], "folder", "other", "folder"), ([], None, "other", "other")])
def test_the_model_without_a_name_is_a_cached_one_or_the_embedded_one(monkeypatch, capsys, cached, given, set_to,
                                                                    expected):
    monkeypatch.setattr(hub, "cached", lambda: cached)
    monkeypatch.delenv("MINIGDINO_MODEL", raising=False)
    if set_to:
        monkeypatch.setenv("MINIGDINO_MODEL", set_to)
    assert server._source(given) == expected
    assert ("serving the embedded checkpoint" in capsys.readouterr().err) == (expected == "shapes")


@pytest.mark.parametrize(("source", "name"), [
    ("shapes", "shapes"), ("llmdet_tiny", "iSEE-Laboratory/llmdet_tiny"), ("owner/model", "owner/model"),
    ("/srv/models/mine", "mine"), ("/srv/models/mine/", "mine"), ("/srv/mine/model.safetensors", "model"),
    (".", Path.cwd().name)])
def test_the_name_of_a_model_has_no_path(source, name):
    assert server.model_name(source) == name


@pytest.mark.parametrize(("host", "key", "warned"), [("127.0.0.1", None, False), ("0.0.0.0", None, True),
                                                     ("0.0.0.0", "k", False)])
def test_an_open_server_without_a_key_is_announced_with_a_warning(capsys, host, key, warned):
    with server._listener(host, 0) as listener:
        server._announce("shapes", listener, 2, 1, key)
    lines = capsys.readouterr().err.splitlines()
    assert f"http://{host}:" in lines[0]
    assert "with 2 workers of 1 thread." in lines[0]
    assert (len(lines) == 2 and "everyone who reaches" in lines[1]) == warned


def test_the_import_of_the_package_stays_light():
    code = ("import sys, minigdino, minigdino.cli\n"
            "print([m for m in ('fastapi', 'uvicorn', 'asyncio') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=serving.ROOT, check=True)
    assert done.stdout == "[]\n"


def test_own_memory_counts_what_is_allocated():
    before = worker.own_memory()
    if not before:
        pytest.skip("unknown on this system")
    with mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        assert worker.own_memory() - before > 40_000_000


def test_an_argument_error_has_its_type():
    with pytest.raises(ArgumentError, match="cannot listen"):
        server._listener("256.256.256.256", 1)

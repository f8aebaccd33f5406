"""The web application with a worker in this process: answers, limits, keys, headers, and what clients may do wrong."""

import asyncio
import http.client
import io
import json
import re
import socket
import threading
import time

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import acall, as_json, fake_pool, form, local_app, picture, running, served, settle

import minigdino
from minigdino import urls
from minigdino.network import model as network
from minigdino.serving import app as apps
from minigdino.serving import bodies, intake, worker
from minigdino.serving.app import Settings, create
from minigdino.serving.refusals import Refused
from minigdino.writing import encoded

PHOTO = picture()
IMAGE = ("image", PHOTO)
LOW = ("threshold", "0.01")
URL = "https://example.org/cat.png"


def with_app(test, *options, **more):
    """Run a coroutine with a function that sends requests to an application, and its pool."""
    async def whole():
        app, pool = local_app(*options, **more)
        async with running(pool):
            async def ask(method, path, body=b"", headers=None, **kinds):
                return await acall(app, method, path, body, headers, **kinds)

            ask.app = app
            return await test(ask, pool)

    return asyncio.run(asyncio.wait_for(whole(), 60))


def ask(method, path, body=b"", headers=None, options=(), **settings):
    """Send one request to a new application. Returns status, headers and content."""
    return with_app(lambda send, _: send(method, path, body, headers), *options, **settings)


def detect(request, **more):
    """Send one request for detections. JSON is decoded."""
    status, headers, content = ask("POST", "/v1/detect", *request, **more)
    return status, json.loads(content) if headers["content-type"] == "application/json" else content


def test_the_answer_is_that_of_detect():
    status, answer = detect(form([IMAGE, ("phrase", "a cat"), ("phrase", "a dog"), LOW, ("max_detections", "7")]))
    expected = tiny.model().detect(PHOTO, ["a cat", "a dog"], threshold=0.01, max_detections=7)
    assert status == 200
    assert len(expected) == 7
    assert answer["results"] == [expected.to_dict()]
    assert (answer["model"], answer["version"], answer["warnings"]) == ("tiny", minigdino.__version__, [])
    assert answer["seconds"].keys() == {"waited", "decoded", "computed"}
    assert all(value >= 0 for value in answer["seconds"].values())


@pytest.mark.parametrize(("fields", "options"), [
    ({"text": "a cat. a dog."}, {}),
    ({"phrases": ["a cat", "a dog"], "threshold": {"a cat": 0.01}}, {}),
    ({"text": "a cat.", "threshold": 0.01, "text_threshold": 0.1, "size": [50, 80]}, {}),
    ({"text": "a cat.", "threshold": 0.01, "nms": 0.5, "class_agnostic": True, "max_area": 0.5}, {}),
    ({"phrases": ["a cat"], "threshold": 0.01, "score": "mean"}, {}),
    ({"text": "a cat.", "threshold": 0.01, "model": "tiny", "nms": None}, {})])
def test_each_option_is_that_of_detect(fields, options):
    status, answer = detect(as_json([PHOTO], **fields))
    more = {name: value for name, value in fields.items() if name not in ("text", "phrases", "model")}
    expected = tiny.model().detect(PHOTO, fields.get("text") or fields["phrases"], **more)
    assert (status, answer["results"]) == (200, [expected.to_dict()])


def test_tiles_are_those_of_detect():
    image = picture(120, 160)
    status, answer = detect(as_json([image], text="a cat.", threshold=0.01, tile=100),
                            options=({}, {"max_pixels": 10**6}))
    assert (status, answer["results"]) == (200, [tiny.model().detect(image, "a cat.", threshold=0.01,
                                                                     tile=100).to_dict()])


def test_several_images_have_a_result_each_and_a_bad_one_does_not_stop_the_others():
    images = [picture(seed=1), b"no image", picture(seed=2)]
    status, answer = detect(as_json(images, text="a cat.", threshold=0.01))
    assert status == 200
    assert answer["results"][1].keys() == {"error"}
    assert "not a readable image" in answer["results"][1]["error"]
    for i in (0, 2):
        assert answer["results"][i] == tiny.model().detect(images[i], "a cat.", threshold=0.01).to_dict()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_drawn_answer_is_the_picture(kind):
    status, headers, content = ask("POST", "/v1/detect", *form([IMAGE, ("text", "a cat."), LOW, ("draw", kind)]))
    assert (status, headers["content-type"]) == (200, f"image/{kind}")
    with Image.open(io.BytesIO(content)) as drawn:
        assert (drawn.format, drawn.size) == (kind.upper(), (60, 40))
    assert content == encoded(tiny.model().detect(PHOTO, "a cat.", threshold=0.01).plot(), f"a.{kind}")
    assert re.fullmatch(r"waited;dur=\d+\.\d, decoded;dur=\d+\.\d, computed;dur=\d+\.\d", headers["server-timing"])


def test_the_precision_of_one_request_does_not_stay():
    async def test(send, pool):
        seen = []
        for precision in ("medium", None):
            await send("POST", "/v1/detect", *as_json(text="a cat.", precision=precision))
            seen.append(tiny.model().precision)
        return seen

    assert with_app(test) == ["medium", "highest"]


def test_a_warning_about_the_prompt_is_part_of_the_answer():
    status, answer = detect(form([IMAGE, ("text", "a cat, a dog.")]))
    assert status == 200
    assert len(answer["warnings"]) == 1
    assert "a cat, a dog" in answer["warnings"][0]


def test_a_second_prompt_on_a_picture_skips_the_backbone(monkeypatch):
    calls, original = [], network.swin

    def counted(*arguments, **more):
        calls.append(True)
        return original(*arguments, **more)

    monkeypatch.setattr(network, "swin", counted)
    tiny.model().clear()

    async def test(send, pool):
        for text in ("a cat.", "a dog.", "a red hat."):
            assert (await send("POST", "/v1/detect", *form([("image", picture(seed=5)), ("text", text)])))[0] == 200
        first = len(calls)
        await send("POST", "/v1/detect", *form([("image", picture(seed=6)), ("text", "a cat.")]))
        return first, len(calls)

    assert with_app(test) == (1, 2)


REFUSALS = {
    "no image": (form([("image", b"x"), ("text", "a cat.")]), 422, "not a readable image"),
    "all images bad": (as_json([b"x", b"y"], text="a cat."), 422, "not a readable image"),
    "no phrase": (form([IMAGE, ("text", " . ")]), 422, "phrase"),
    "a phrase twice": (form([IMAGE, ("phrase", "a cat"), ("phrase", "A cat.")]), 422, "a cat"),
    "a long text": (form([IMAGE, ("text", "a cat. " * 300)]), 422, "Give its phrases as a list"),
    "surrogates": (as_json(phrases=["\ud800"]), 422, "surrogates"),
    "a threshold of no phrase": (as_json(text="a cat.", threshold={"a dog": 0.5}), 422, "a dog"),
    "another model": (as_json(text="a cat.", model="large"), 422, "model must be 'tiny'"),
    "too many pixels": (form([("image", picture(101, 100)), ("text", "a cat.")]), 413, "at most 10000 pixels"),
    "far too many pixels": (form([("image", picture(300, 300)), ("text", "a cat.")]), 413, "at most 10000 pixels"),
    "another type": ((b"x", {"Content-Type": "text/plain"}), 415, "text/plain"),
    "too many bytes": ((b"x" * 200_001, {"Content-Type": "application/json"}), 413, "at most 200000 bytes")}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_json_with_the_text_of_the_error(case):
    request, expected, text = REFUSALS[case]
    status, answer = detect(request, max_bytes=200_000)
    assert answer.keys() == {"error"}
    assert (status, text in answer["error"]) == (expected, True), answer


def test_an_image_takes_a_limited_number_of_forward_passes(monkeypatch):
    monkeypatch.setattr(worker, "MAX_PASSES", 9)
    wide = picture(64, 156)
    for tile, expected in ((64, 200), (None, 200)):
        assert detect(as_json([wide], text="a cat.", tile=tile))[0] == expected
    many = [f"{'a ' * 60}{word}" for word in ("cat", "dog", "hat", "star", "man", "person", "blue", "red", "green")]
    status, answer = detect(as_json([wide], phrases=many, tile=64))
    assert status == 422
    assert re.search(r"at most 9 forward passes; got \d\d, for 156 x 64 pixels, tile=64 and \d prompts",
                     answer["error"])


def test_a_picture_that_its_format_cannot_hold_is_an_error():
    nothing = minigdino.Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], np.zeros(0, np.int64),
                                   [], (17_000, 10), Image.new("RGB", (17_000, 10)))
    assert worker._drawn(nothing, "png")
    with pytest.raises(minigdino.ArgumentError, match="a format for 17000 x 10 pixels; got webp. Use png"):
        worker._drawn(nothing, "webp")


@pytest.mark.parametrize("limit", [1000, 2000])  # of 2400 pixels; Pillow refuses twice as many, and warns of fewer
def test_an_image_with_too_many_pixels_is_not_decoded(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # as the worker process does
    monkeypatch.setattr(minigdino.image, "to_rgb", None)
    assert detect(as_json(text="a cat."), options=({}, {"max_pixels": limit})) == (
        413, {"error": f"an image must have at most {limit} pixels; got more. Send a smaller one"})


def test_a_body_that_is_announced_as_too_large_is_not_read():
    taken = []
    body = (taken.append(i) or b"x" for i in range(3))
    status, _, content = ask("POST", "/v1/detect", body, {**as_json()[1], "Content-Length": "1000000000000"})
    assert status == 413
    assert b"at most 20000000 bytes" in content
    assert len(taken) == 1  # which the client itself takes first


def test_a_body_without_a_length_is_refused_once_it_is_too_long():
    taken = []

    def parts():
        for i in range(1000):
            taken.append(i)
            yield b"x" * 1000

    _, headers = as_json()
    assert ask("POST", "/v1/detect", parts(), headers, max_bytes=10_000)[0] == 413
    assert len(taken) < 15


def test_a_body_that_does_not_arrive_in_time_is_refused():
    async def test():
        pool, _ = fake_pool(None)
        app = create(pool, Settings("tiny", timeout=0.05))

        async def receive():
            await asyncio.sleep(10)

        sent = []

        async def send(message):
            sent.append(message)

        await app({"type": "http", "method": "POST", "path": "/v1/detect", "query_string": b"", "headers": [],
                   "root_path": "", "http_version": "1.1"}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])[b"connection"]

    assert asyncio.run(test()) == (408, b"close")


@pytest.mark.parametrize("slow", ["body", "parsing", "download"])
def test_one_time_limit_includes_every_step(monkeypatch, slow):
    """Each of two steps takes 6 s on the clock of the event loop. The limit of both is 10 s."""
    passed = 0
    body, headers = form([("image", b"x" * intake.SMALL), ("text", "a")])

    def work(result=None):
        nonlocal passed
        passed += 6
        return result

    def parts():
        yield body[:9]
        work()
        yield body[9:]

    request, parse = (body, headers), bodies.parse
    if slow == "body":
        request = parts(), headers
    elif slow == "parsing":
        monkeypatch.setattr(bodies, "parse", lambda *arguments: work(parse(*arguments)))
    else:
        monkeypatch.setattr(urls, "download", lambda *_, **__: work(b"x"))
        request = with_urls()

    async def test(send, pool):
        loop_with_clock(lambda: passed)

        async def late(header):
            work()
            await asyncio.sleep(0.1)
            return {"status": 422, "error": "late", "seconds": {"waited": 0, "decoded": 0, "computed": 0}}

        pool._slots[0].worker.answer = late
        status, _, content = await send("POST", "/v1/detect", *request)
        return status, json.loads(content)["error"]

    status, error = with_app(test, {"timeout": 100}, timeout=10, allow_urls=True)
    assert (status, "expected an answer within 10 s" in error, passed) == (504, True, 12), error


def loop_with_clock(passed):
    """Add seconds to the clock of the running event loop, as if they had passed."""
    asyncio.get_running_loop().time = lambda: time.monotonic() + passed()


def closed_worker(pool):
    """Let the first worker keep its requests until the returned event is set. Its answers have the status 422."""
    opened = asyncio.Event()

    async def wait(header):
        await opened.wait()
        return {"status": 422, "error": "late", "seconds": {"waited": 0, "decoded": 0, "computed": 0}}

    pool._slots[0].worker.answer = wait
    return opened


def test_many_large_bodies_at_once_are_refused(monkeypatch):
    monkeypatch.setattr(intake, "HELD", 2)

    async def test(send, pool):
        opened = closed_worker(pool)
        body, headers = form([("image", b"x" * 900), ("text", "a")])
        held = [asyncio.create_task(send("POST", "/v1/detect", body, headers)) for _ in range(2)]
        await settle()
        status, answer_headers, _ = await send("POST", "/v1/detect", body, headers)
        opened.set()
        await asyncio.gather(*held)
        after = await send("POST", "/v1/detect", body, headers)
        return status, answer_headers["retry-after"], after[0]

    assert with_app(test, max_bytes=1200) == (503, "2", 422)


def test_slow_bodies_make_room_for_others(monkeypatch):
    """Of three bodies that fill the memory, the largest makes progress. The larger one of the others is ended."""
    monkeypatch.setattr(intake, "HELD", 3)
    monkeypatch.setattr(intake, "SLOW", 20)
    monkeypatch.setattr(intake, "STEP", 100)
    request = form([("image", b"x" * 9000), ("text", "a cat.")])
    passed = 0

    async def test(send, pool):
        nonlocal passed
        loop_with_clock(lambda: passed)
        active, large, small = [Upload(send.app, b"x" * size) for size in (10_000, 9900, 9600)]
        await settle()
        first, headers, content = await send("POST", "/v1/detect", *request)
        assert (first, headers["retry-after"]) == (503, "20"), content  # no body is slow yet
        passed = 21
        active.send(b"x" * 100)
        small.send(b"x")
        await settle()
        assert (await send("POST", "/v1/detect", *request))[0] == 422
        await settle()
        assert (active.status, large.status, small.status) == (None, 408, None)
        for upload in (active, small):
            upload.task.cancel()
        await asyncio.gather(active.task, small.task, return_exceptions=True)
        assert (await send("POST", "/v1/detect", *request))[0] == 422

    with_app(test, max_bytes=12_000)


def test_a_slow_body_whose_last_bytes_exceed_the_memory_is_ended(monkeypatch):
    monkeypatch.setattr(intake, "HELD", 1)
    passed = 0

    async def test(send, pool):
        nonlocal passed
        loop_with_clock(lambda: passed)
        large, small = Upload(send.app, b"x" * 700), Upload(send.app, b"x" * 200)
        await settle()
        passed = intake.SLOW + 1
        large.send(b"x" * 200, more_body=False)
        await settle()
        assert (large.status, small.status) == (408, None)

    with_app(test, max_bytes=1000)


class Upload:
    """A request whose body begins with some bytes, and goes on with those of `send`."""

    def __init__(self, app, begin):
        self.status, self._messages = None, asyncio.Queue()
        self.send(begin)
        self.task = asyncio.create_task(app({
            "type": "http", "method": "POST", "path": "/v1/detect", "query_string": b"", "headers": [],
            "root_path": "", "http_version": "1.1"}, self._messages.get, self._answered))

    def send(self, part, more_body=True):
        self._messages.put_nowait({"type": "http.request", "body": part, "more_body": more_body})

    async def _answered(self, message):
        self.status = message.get("status", self.status)


def test_a_client_that_leaves_frees_its_place():
    async def test(send, pool):
        opened = closed_worker(pool)
        first = asyncio.create_task(send("POST", "/v1/detect", *as_json(text="a cat.")))
        await settle()
        status, _, _ = await send("POST", "/v1/detect", *as_json(text="a cat."), leave=True)
        waiting = pool.waiting
        opened.set()
        await first
        metrics = (await send("GET", "/metrics"))[2].decode()
        return status, waiting, 'minigdino_requests_total{path="/v1/detect",status="499"} 1.0' in metrics

    assert with_app(test) == (499, 0, True)


def test_a_full_queue_and_a_draining_pool_are_503():
    async def test(send, pool):
        pool._queue = 0
        opened = closed_worker(pool)
        first = asyncio.create_task(send("POST", "/v1/detect", *as_json(text="a cat.")))
        await settle()
        full = await send("POST", "/v1/detect", *as_json(text="a cat."))
        opened.set()
        await first
        ready = await send("GET", "/health/ready")
        await pool.drain()
        return full, ready, await send("POST", "/v1/detect", *as_json()), await send("GET", "/health/ready")

    full, ready, refused, ended = with_app(test)
    assert (full[0], int(full[1]["retry-after"]) >= 1) == (503, True)
    assert json.loads(ready[2]) == {"ready": True, "queue": 0, "workers": 1, "busy": 0}
    assert (refused[0], refused[1]["connection"]) == (503, "close")
    assert (ready[0], ended[0], json.loads(ended[2])["ready"]) == (200, 503, False)


def test_metrics_count_requests_and_seconds():
    async def test(send, pool):
        await send("POST", "/v1/detect", *as_json(text="a cat."))
        await send("POST", "/v1/detect", *as_json([b"x"], text="a cat."))
        await send("GET", "/nowhere")
        pool.restarts["died"] += 2
        return (await send("GET", "/metrics"))[1:]

    headers, text = with_app(test)
    lines = text.decode().splitlines()
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in ('minigdino_requests_total{path="/v1/detect",status="200"} 1.0',
                 'minigdino_requests_total{path="/v1/detect",status="422"} 1.0',
                 'minigdino_requests_total{path="other",status="404"} 1.0',
                 "minigdino_waiting_seconds_count 2.0", "minigdino_computing_seconds_count 2.0",
                 "minigdino_queue_length 0.0", "minigdino_workers_ready 1.0",
                 'minigdino_worker_restarts_total{reason="died"} 2.0'):
        assert line in lines
    (memory,) = (line for line in lines if line.startswith('minigdino_worker_memory_bytes{worker="0"}'))
    (computed,) = (line for line in lines if line.startswith("minigdino_computing_seconds_sum"))
    assert float(computed.split()[1]) > 0
    assert memory


@pytest.mark.parametrize(("path", "status", "content"), [
    ("/health/live", 200, {"live": True}), ("/v2/health/live", 200, {"live": True}),
    ("/health/ready", 200, {"ready": True, "queue": 0, "workers": 1, "busy": 0}),
    ("/v2/health/ready", 200, {"ready": True, "queue": 0, "workers": 1, "busy": 0}),
    ("/v1/models", 200, {"models": [{"name": "owner/tiny", "version": minigdino.__version__,
                                     "precision": "highest"}]}),
    ("/v2", 200, {"name": "minigdino", "version": minigdino.__version__, "extensions": []}),
    ("/v2/models/owner/tiny/ready", 200, {"ready": True, "queue": 0, "workers": 1, "busy": 0}),
    ("/v2/models/large/ready", 404, None), ("/v2/models/large", 404, None), ("/nowhere", 404, None),
    ("/static/../app.py", 404, None), ("/static/%2e%2e/app.py", 404, None), ("/v1/detect", 405, None)])
def test_state_of_the_server(path, status, content):
    found, _, answer = ask("GET", path, model="owner/tiny")
    answer = json.loads(answer)
    assert found == status
    assert answer == content if content else answer.keys() == {"error"}


def test_the_metadata_of_the_model_are_those_of_the_open_inference_protocol():
    answer = json.loads(ask("GET", "/v2/models/owner/tiny", model="owner/tiny")[2])
    assert answer.keys() == {"name", "versions", "platform", "inputs", "outputs"}
    assert answer["name"] == "owner/tiny"
    assert {tensor["datatype"] for tensor in answer["inputs"] + answer["outputs"]} == {"BYTES"}


def test_head_is_answered_as_get():
    assert ask("HEAD", "/health/live")[0] == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/health/live", "/nowhere", "/v1/detect",
                                  "/static/docs.css"])
def test_every_answer_has_security_headers(path):
    _, headers, _ = ask("GET", path)
    assert apps.HEADERS.items() <= {name: headers.get(name.lower()) for name in apps.HEADERS}.items()
    assert ("cache-control" in headers) == (not path.startswith("/static"))
    assert "server" not in headers
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 401), ({"Authorization": "Bearer other"}, 401), ({"Authorization": "Basic secret"}, 401),
    ({"Authorization": "Bearer"}, 401), ({"X-API-Key": "secre"}, 401), ({"X-API-Key": "secret\xe9"}, 401),
    ({"Authorization": "Bearer secret"}, 200), ({"authorization": "bearer secret"}, 200),
    ({"X-API-Key": "secret"}, 200)])
def test_a_key_is_needed_where_one_is_set(headers, status):
    found, answer_headers, content = ask("GET", "/v1/models", headers=headers, key="secret")
    assert found == status
    if status == 401:
        assert answer_headers["www-authenticate"] == "Bearer"
        assert b"secre" not in content


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/health/live", 200), ("GET", "/v2/health/ready", 200), ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200), ("GET", "/static/docs.css", 200), ("POST", "/v1/detect", 401),
    ("GET", "/metrics", 401), ("GET", "/v2/models/tiny", 401), ("GET", "//v1/models", 401),
    ("GET", "/static/../v1/models", 404), ("GET", "/docs/../v1/models", 404)])
def test_health_and_pages_need_no_key(method, path, status):
    assert ask(method, path, key="secret")[0] == status


def test_pages_of_other_origins_are_refused_unless_named():
    ours, other = "https://example.org", "https://example.com"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", headers={"Origin": ours})[1]
    for origin, allowed in ((ours, ours), (other, None)):
        _, headers, _ = ask("GET", "/v1/models", headers={"Origin": origin, "X-API-Key": "k"}, origins=[ours], key="k")
        assert headers.get("access-control-allow-origin") == allowed
        status, headers, _ = ask("OPTIONS", "/v1/detect", headers={"Origin": origin, **asked}, origins=[ours], key="k")
        assert (status == 200, headers.get("access-control-allow-origin")) == (bool(allowed), allowed)


@pytest.mark.parametrize(("headers", "is_refused"), [
    ({}, False),  # a program
    ({"Origin": "http://Test", "Sec-Fetch-Site": "same-origin"}, False), ({"Sec-Fetch-Site": "none"}, False),
    ({"Origin": "https://example.org", "Sec-Fetch-Site": "cross-site"}, True),
    ({"Origin": "http://test:81", "Sec-Fetch-Site": "same-site"}, True),
    # browsers without Sec-Fetch-Site; the port may be lost in a proxy
    ({"Origin": "http://Test:8000"}, False), ({"Origin": "http://test"}, False), ({"Origin": "http://test.org"}, True),
    ({"Origin": "null"}, True), ({"Origin": "http://[::1]:80"}, True), ({"Origin": ""}, True)])
def test_a_form_of_another_origin_costs_no_computing_time(headers, is_refused, monkeypatch):
    calls = []

    def detect(*_, **__):
        calls.append(1)
        raise minigdino.ImageError("not this one")

    monkeypatch.setattr(minigdino.Model, "detect", detect)
    body, kind = form([IMAGE, ("text", "a cat.")])
    status, _, content = ask("POST", "/v1/detect", body, {**kind, "Host": "test", **headers})
    assert (status == 403, not calls) == (is_refused, is_refused)
    if is_refused:
        assert "--cors" in json.loads(content)["error"]
        allowed = {**kind, "Host": "test", **headers}
        for origin in (headers["Origin"], "*"):
            assert ask("POST", "/v1/detect", body, allowed, origins=[origin])[0] == 422
        assert ask("GET", "/health/live", headers=headers)[0] == 200  # whose answer the page cannot read


def test_a_url_is_downloaded_if_the_server_allows_it(monkeypatch):
    def download(url, **_):
        assert url == "https://example.org/cat.png"
        return urls.Download(PHOTO)

    monkeypatch.setattr(urls, "download", download)
    body = json.dumps({"images": ["https://example.org/cat.png"], "text": "a cat.", "threshold": 0.01}).encode()
    request = body, {"Content-Type": "application/json"}
    assert detect(request)[0] == 422
    status, answer = detect(request, allow_urls=True)
    assert (status, answer["results"]) == (200, [tiny.model().detect(PHOTO, "a cat.", threshold=0.01).to_dict()])


@pytest.mark.parametrize("url", ["http://127.0.0.1/cat.png", "http://[::1]/", "http://169.254.169.254/latest/",
                                 "http://10.0.0.1/", "http://localhost/", "file:///etc/passwd"])
def test_a_private_address_is_never_downloaded(url):
    status, answer = detect(with_urls(url), allow_urls=True)
    assert status == 422
    expected = "that starts with http:// or https://; got file:" if "file" in url else (
        "with a public address; its host has none")
    assert answer["error"] == f"{url}: expected a URL {expected}. Send the bytes of the image"


def test_the_answer_does_not_tell_whether_a_private_host_exists(monkeypatch):
    def resolve(host, port, **_):
        if host == "none.internal":
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    answers = {host: detect(with_urls(f"http://{host}/"), allow_urls=True)
               for host in ("none.internal", "wiki.internal")}
    assert {(status, answer["error"].replace(host, "HOST")) for host, (status, answer) in answers.items()} == {
        (422, "http://HOST/: expected a URL with a public address; its host has none. Send the bytes of the image")}


@pytest.mark.parametrize("url", ["ftp://example.org/cat.png", "http://me:secret@example.org/", "http:///", "http://[::1",
                                 "http://93.184.216.34/timeout", "http://93.184.216.34/refused"])
def test_a_url_that_cannot_be_downloaded_has_a_next_step_for_clients(monkeypatch, url):
    def connect(*_):
        raise TimeoutError if url.endswith("timeout") else ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    status, answer = detect(with_urls(url), allow_urls=True)
    assert (status, answer["error"].endswith(". Send the bytes of the image")) == (422, True)
    assert not re.search(f"path|another program|secret|{urls.PRIVATE}", answer["error"])


def test_slow_downloads_end_with_the_timeout(monkeypatch):
    """A download that ends at its own limit, or a little before, comes later."""
    def download(url, seconds, **_):
        time.sleep(max(0, seconds - 0.5))
        raise urls.UrlError("too slow")

    monkeypatch.setattr(urls, "download", download)
    status, answer = detect(with_urls(), allow_urls=True, timeout=0.05)
    assert (status, "expected an answer within 0.05 s" in answer["error"]) == (504, True)


def with_urls(*images):
    """A request with images at URLs."""
    body = json.dumps({"images": images or [URL], "text": "a cat."}).encode()
    return body, {"Content-Type": "application/json"}


@pytest.fixture
def downloads(monkeypatch):
    """Downloads that wait for the event `end`, and do not know their limits. `running` are under way."""
    class Downloads:
        end, running, most, limits = threading.Event(), 0, 0, []

        def __call__(self, url, **limits):
            self.running += 1
            self.most = max(self.most, self.running)
            self.limits.append(limits)
            assert threading.current_thread().daemon  # so that the end of the process does not wait
            self.end.wait(20)
            self.running -= 1
            return PHOTO

    found = Downloads()
    monkeypatch.setattr(urls, "download", found)
    yield found
    found.end.set()


def test_downloads_that_outlive_their_requests_keep_their_places(downloads):
    """Their threads cannot be ended. They delay other downloads only."""
    async def test(send, pool):
        waves = [await asyncio.gather(*(send("POST", "/v1/detect", *with_urls()) for _ in range(6))) for _ in range(2)]
        assert {status for wave in waves for status, _, _ in wave} == {504}
        assert downloads.running == downloads.most == intake.DOWNLOADS
        large = form([("image", b"x" * 2 * intake.SMALL), ("text", "a cat.")])  # which is parsed in a thread
        assert (await send("POST", "/v1/detect", *large))[0] == 422
        downloads.end.set()
        while downloads.running:
            await asyncio.sleep(0.01)
        assert (await send("POST", "/v1/detect", *with_urls(*[URL] * 2)))[0] == 200

    with_app(test, timeout=0.5, allow_urls=True)
    assert all(1 < limits["seconds"] <= 1.5 for limits in downloads.limits)


def test_the_end_does_not_wait_for_downloads(downloads):
    app, pool = local_app(timeout=0.3, allow_urls=True)
    with served(app, pool) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/detect", *with_urls())
        while not downloads.running:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert connection.getresponse().status == 504
    connection.close()
    assert downloads.running == 1


def test_a_client_that_leaves_ends_its_download(downloads):
    async def test(send, pool):
        began = time.monotonic()
        status, _, _ = await send("POST", "/v1/detect", *with_urls(*[URL] * 3), leave=True)
        return status, time.monotonic() - began

    status, seconds = with_app(test, allow_urls=True)
    assert (status, len(downloads.limits)) == (499, 1)
    assert seconds < 2


def test_downloads_count_as_bytes_of_their_request(monkeypatch):
    """A download can need what its request may have left, which is kept for it."""
    limits, body = [], with_urls()[0]

    def download(url, max_bytes, seconds):
        limits.append(max_bytes)
        if max_bytes < 6000:
            raise urls.TooLarge("too large")
        return b"x" * 6000

    monkeypatch.setattr(urls, "download", download)
    monkeypatch.setattr(intake, "HELD", 2)

    async def test(send, pool):
        opened = closed_worker(pool)
        held = []
        for _ in range(2):
            held.append(asyncio.create_task(send("POST", "/v1/detect", *with_urls())))
            while pool.busy + pool.waiting < len(held):
                await asyncio.sleep(0.01)
        assert limits == [10_000 - len(body)] * 2
        full, _, content = await send("POST", "/v1/detect", *with_urls())  # 12,000 of 20,000 bytes are in use
        assert (full, len(limits)) == (503, 2), content
        opened.set()
        assert [status for status, _, _ in await asyncio.gather(*held)] == [422, 422]
        status, _, content = await send("POST", "/v1/detect", *with_urls(*[URL] * 2))
        assert (status, "images of URLs included" in json.loads(content)["error"]) == (413, True)
        assert (await send("POST", "/v1/detect", *with_urls()))[0] == 422

    with_app(test, allow_urls=True, max_bytes=10_000)


def test_an_unexpected_error_is_a_500_without_details(monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("the secret is in /srv/secret")

    monkeypatch.setattr(minigdino.Model, "detect", broken)
    assert detect(as_json(text="a cat.")) == (500, {"error": "the server failed to process this request. Its log has "
                                                            "the reason"})
    assert "/srv/secret" in capsys.readouterr().err
    monkeypatch.setattr(bodies, "parse", broken)
    status, headers, content = ask("POST", "/v1/detect", *as_json(text="a cat."))
    assert (status, b"secret" in content, headers["x-frame-options"]) == (500, False, "DENY")
    assert "/srv/secret" in capsys.readouterr().err


def test_changed_weights_end_the_worker(monkeypatch):
    def changed(*_, **__):
        raise minigdino.CheckpointError("/srv/model.safetensors: has changed")

    monkeypatch.setattr(minigdino.Model, "detect", changed)

    async def test(send, pool):
        status, _, content = await send("POST", "/v1/detect", *as_json(text="a cat."))
        await settle()
        return status, b"/srv" in content, pool.restarts["died"]

    assert with_app(test) == (500, False, 1)


@pytest.mark.parametrize("text", ["{tmp}/x: cannot be read", "see {package}/image.py"])
def test_a_path_of_the_machine_is_in_no_answer(monkeypatch, text, capsys):
    import tempfile

    shown = text.format(tmp=tempfile.gettempdir(), package=apps.PAGE.parent.parent)

    def failing(*_, **__):
        raise minigdino.ImageError(shown)

    monkeypatch.setattr(minigdino.Model, "detect", failing)
    status, answer = detect(as_json(text="a cat."))
    assert (status, answer["error"].startswith("the server failed")) == (422, True)
    assert shown in capsys.readouterr().err


def test_the_description_names_every_field_and_status():
    description = json.loads(ask("GET", "/openapi.json")[2])
    route = description["paths"]["/v1/detect"]["post"]
    kinds = route["requestBody"]["content"]
    fields = {"text", "precision", "draw", "model", *bodies.DEFAULTS}
    assert set(kinds["application/json"]["schema"]["properties"]) == {"images", "phrases", *fields}
    assert set(kinds["multipart/form-data"]["schema"]["properties"]) == {"image", "phrase", *fields}
    assert set(route["responses"]) == {"200", "403", "408", "413", "415", "422", "500", "503", "504"}
    assert {"/v1/models", "/health/live", "/health/ready", "/metrics"} <= description["paths"].keys()
    status, answer = detect(as_json(text="a cat.", threshold=0.01))
    documented = route["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert answer.keys() == documented.keys()
    detection = documented["results"]["items"]["oneOf"][0]["properties"]["detections"]["items"]
    assert answer["results"][0]["detections"][0].keys() == detection["properties"].keys()


def test_the_description_states_the_limits_of_bodies():
    """A body at a limit is accepted, and one beyond it is not."""
    kinds = json.loads(ask("GET", "/openapi.json")[2])["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    fields, parts = (kinds[kind]["schema"]["properties"] for kind in ("application/json", "multipart/form-data"))
    texts, phrases, images = fields["text"], fields["phrases"], fields["images"]
    (url,) = (kind for kind in images["items"]["anyOf"] if kind.get("format") == "uri")
    assert (parts["text"], parts["phrase"]["items"], parts["image"]["maxItems"]) == (
        texts, phrases["items"], images["maxItems"])
    assert parts["phrase"]["maxItems"] == phrases["maxItems"]
    for most, body in (
            (texts["maxLength"], lambda n: {"images": ["AAAA"], "text": "a" * n}),
            (phrases["maxItems"], lambda n: {"images": ["AAAA"], "phrases": [str(i) for i in range(n)]}),
            (phrases["items"]["maxLength"], lambda n: {"images": ["AAAA"], "phrases": ["a" * n]}),
            (images["maxItems"], lambda n: {"images": ["AAAA"] * n, "text": "a"}),
            (url["maxLength"], lambda n: {"images": [URL.ljust(n, "a")], "text": "a"})):
        assert bodies.parse(json.dumps(body(most)).encode(), "application/json", True)
        with pytest.raises(Refused, match=str(most)):
            bodies.parse(json.dumps(body(most + 1)).encode(), "application/json", True)


def test_the_description_names_the_key_where_it_is_needed():
    paths = json.loads(ask("GET", "/openapi.json", key="secret")[2])
    kinds = paths["components"]["securitySchemes"]
    for path, methods in paths["paths"].items():
        for method, route in methods.items():
            needed = ask(method.upper(), path, key="secret")[0] == 401
            assert ("401" in route["responses"], len(route.get("security", []))) == (needed, 2 * needed), path
            assert all(option.keys() <= kinds.keys() for option in route.get("security", []))
    assert "components" not in json.loads(ask("GET", "/openapi.json")[2])


def test_the_documentation_needs_nothing_from_elsewhere():
    status, headers, content = ask("GET", "/docs")
    text = content.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "POST /v1/detect" in text
    assert "text_threshold" in text
    assert not re.search(r"https?://|<script|style=", text)
    (sheet,) = re.findall(r'rel="stylesheet" href="([^"]+)"', text)
    assert ask("GET", f"/{sheet}")[1]["content-type"] == "text/css; charset=utf-8"


def test_scripts_have_the_type_that_browsers_need(monkeypatch, tmp_path):
    (tmp_path / "page.js").write_text("1")
    (tmp_path / "index.html").write_text("<p>the page</p>")
    monkeypatch.setattr(apps, "PAGE", tmp_path)
    assert ask("GET", "/static/page.js")[1]["content-type"].startswith("text/javascript")
    status, headers, content = ask("GET", "/")
    assert (status, headers["content-type"], content) == (200, "text/html; charset=utf-8", b"<p>the page</p>")
    assert ask("GET", "/", key="secret")[0] == 200


VALID = st.sampled_from([form([IMAGE, ("text", "a cat."), LOW]), as_json(text="a cat."),
                         form([IMAGE, ("phrase", "a cat"), ("draw", "png")])])


@given(st.lists(st.tuples(VALID, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
                          st.floats(0, 1), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=10, deadline=None)
def test_damaged_requests_get_an_answer_and_leave_the_server_working(requests):
    async def test(send, pool):
        for (body, headers), changes, cut, is_cut in requests:
            damaged = bytearray(body)
            for place, value in changes:
                damaged[int(place * (len(body) - 1))] = value
            sent = bytes(damaged[: int(cut * len(body))] if is_cut else damaged)
            status, _, content = await send("POST", "/v1/detect", sent, headers)
            assert status in (200, 413, 415, 422), content
            if status != 200:
                assert json.loads(content)["error"]
        assert (await send("POST", "/v1/detect", *as_json(text="a cat.")))[0] == 200
        assert pool.restarts.total() == 0

    with_app(test)

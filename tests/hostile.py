"""Send hostile requests to `minigdino serve`, and check every answer.

    python tests/hostile.py --requests 100000 --seed 0      prints a table; status 1 after a failure
    python tests/hostile.py --seed 0 --only 1234            one request again, with its answer

(seed, number) determine a request. A request fails if

- it gets no answer within HANG seconds, or none although it is complete;
- its status is not in EXPECTED: no request may make the server fail;
- its error is no JSON with one short, printable text, or names a path of this machine;
- a header that protects browsers is missing.

After every CHECK requests, an intact request must get the same answer as at the start. At the end, every worker must be
the one of the start, the log of the server must have no traceback, and the server must not have connected to TRAP.

Finally, a server with the default of --max-bytes gets the requests of `large`. It must answer /health/live within LIVE
seconds meanwhile, and the web process must not grow by more than GROWTH bytes.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import functools
import http.client
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import fuzz
import serving

import minigdino
from minigdino.serving.app import Settings
from minigdino.serving.refusals import HEADERS

HANG = 30.0  # seconds for an answer
CHECK = 500  # requests between two intact ones
TRAP = b"12345"  # in requests, in place of a port of this machine to which the server must not connect
CLIENTS = 4  # requests at the same time
PIXELS = 20_000  # limit of the server for an image
BYTES = 200_000  # limit of the server for a body
LARGE = Settings.max_bytes  # of bodies near the default of that limit
LIVE = 3.0
GROWTH = 20 * LARGE
MESSAGE = 600  # characters of the longest allowed error
EXPECTED = {200, 206, 400, 403, 404, 405, 413, 415, 416, 422}
JSON = "application/json"
HOST = "Host: 127.0.0.1"
PRIVATE = re.compile(r"Traceback|site-packages|\.py\b|(?<!\w)/(tmp|root|home|usr|work|var|opt)/")
NUMBERS = ("", " ", "0", "-1", "1e400", "nan", "inf", "-inf", "0x10", "1_0", "١", "9" * 5000, "0.5,0.5", "1e-320",
           "½", "\0")
TEXTS = ("", ".", "?", "a" * 50_000, "a. " * 3000, "[SEP]", "[CLS] [MASK]", "\0", "é" * 300, "\u202e", "😀" * 99,
         "null", "a cat. a cat.", "<script>alert(1)</script>", "{{7*7}}", "../../etc/passwd", "'; --", '{"a": 1}')
FIELDS = ("image", "images", "text", "phrase", "phrases", "threshold", "text_threshold", "size", "score", "max_area",
          "nms", "class_agnostic", "max_detections", "tile", "precision", "draw", "model", "chunk", "", "__proto__",
          "x" * 3000)
VALID = (("text", "a cat. a dog."), ("threshold", "0.3"), ("text_threshold", "0"), ("size", "64,85"),
         ("score", "mean"), ("max_area", "0.9"), ("nms", "0.5"), ("class_agnostic", "true"), ("max_detections", "3"),
         ("precision", "medium"), ("draw", "png"), ("phrase", "a cat"), ("phrase", "a dog"), ("tile", "64"))
PATHS = ("/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/detect", "/health/ready", "/static/docs.css",
         "/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%00",
         "/static/" + "a/" * 999, "//", "/%ff", "/v2/models/" + "x" * 3000, "/v2/models/%2e%2e/ready",
         "/v2/models//ready", "/v1/detect/", "/V1/DETECT", "/static/\\..\\app.py", "/static/%252e%252e/app.py",
         "/.git/config", "/?" + "a=1&" * 3000, "/static//etc/passwd", "/" + "a" * 60_000, "*", "http://x/", "")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "CONNECT", "get", "G\tT", "",
           "X" * 3000)
LINES = ("Content-Length: -1", "Content-Length: 5, 6", "Content-Length: 1e3", "Content-Length: 99999999999999999999",
         "Content-Length: 0", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
         "Transfer-Encoding: identity", "Expect: 100-continue", "Connection: upgrade\r\nUpgrade: websocket",
         "Connection: upgrade\r\nUpgrade: h2c", "X: " + "y" * 70_000, ": y", " folded", "X\0: y",
         "Content-Type: multipart/form-data", "Content-Type: " + ";" * 3000, "Content-Encoding: gzip",
         "Authorization: Bearer " + "é" * 99, "Range: bytes=0-0,1-1,2-2", "If-Modified-Since: x", "Host: y",
         "Origin: null", "Cookie: " + "a=b;" * 999, "Accept: ,;q=,")
CHUNKS = (b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"zz\r\n", b"5\nhello", b"",
          b"5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n")
HOSTS = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "0", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]",
         "x@127.0.0.1", "127.0.0.1.", "[::]", "127.0.0.1:80@127.0.0.1")
FORM = f"multipart/form-data; boundary={serving.BOUNDARY}"


class Attack(NamedTuple):
    """A request.

    Attributes:
        data: its bytes.
        method: its method.
        complete: whether it must get an answer.
        rest: bytes that follow the answer.
    """

    data: bytes
    method: str = "POST"
    complete: bool = True
    rest: bytes = b""


# ---- kinds of requests


def post(body, content_type=JSON):
    """A complete request for detections."""
    lines = "POST /v1/detect HTTP/1.1", HOST, f"Content-Type: {content_type}", f"Content-Length: {len(body)}"
    return Attack("".join(line + "\r\n" for line in lines).encode() + b"\r\n" + body)


@functools.cache
def photo():
    """An intact image."""
    return serving.picture()


def picked(rng, choices):
    """Some of the choices, in their order."""
    return [one for one in choices if rng.random() < 2 / len(choices)]


def values(rng):
    """Valid JSON of a wrong shape, or almost JSON."""
    fields = {"images": [base64.b64encode(photo()).decode()], "phrases": ["a cat", "a dog"], "threshold": 0.3,
              "nms": 0.5, "size": [64, 85], "max_detections": 3, "tile": 64, "draw": None, "text": None,
              "precision": "high"}
    body = fuzz.change_json(rng, json.dumps(fields).encode())
    if rng.random() < 0.1:
        body = body.decode(errors="replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    return post(body[:BYTES], rng.choice((JSON, JSON, JSON, JSON + "; charset=utf-16", "APPLICATION/JSON")))


def fields(rng):
    """A well-formed form with other fields and values than documented."""
    parts = [("image", photo()) for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 17)))] + picked(rng, VALID)
    for _ in range(rng.randint(0, 3)):
        name, value = rng.choice(FIELDS), rng.choice((*NUMBERS, *TEXTS, b"", b"\xff\xfe", photo()))
        parts.insert(rng.randint(0, len(parts)), (name, value))
    return post(serving.form(parts)[0], FORM)


def bombs(rng):
    """Forms with very many or very large parts and headers."""
    line, n = f"--{serving.BOUNDARY}\r\n".encode(), rng.choice((1, 10, 3000))
    part = line + b'Content-Disposition: form-data; name="phrase"\r\n\r\na\r\n'
    body = rng.choice((part * n, line * n, line + b"X: y\r\n" * n, line + b"X" * 20 * n, line + b"X:" + b"y" * 60 * n,
                       part + b"\r\n" * n, line + b'Content-Disposition: form-data; name="' + b"\\" * n, b"-" * n,
                       part[:-1] * n, line + b"Content-Disposition: " + b"a=b;" * n + b"\r\n\r\n"))
    body += rng.choice((b"", line[:-2] + b"--\r\n", b"\0" * n, line))
    kind, _, boundary = FORM.partition("=")
    return post(body[:BYTES], f"{kind}={rng.choice((boundary, boundary, '', '-' * 300, chr(34) + 'é'))}")


def forms(rng):
    """A form with changed bytes."""
    body = fuzz.change_bytes(rng, serving.form([("image", photo()), *VALID[:3]])[0], photo())
    return post(body[:BYTES], FORM)


def images(rng):
    """A form with a corrupted or another kind of image."""
    image = rng.choice(fuzz.pictures())
    image = rng.choice((fuzz.change_picture(rng, image), image, bomb(rng), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", rng.randbytes(99), b"GIF89a"))
    more = picked(rng, [("draw", "webp"), ("threshold", "0")])
    return post(serving.form([("image", image), ("text", "a cat."), *more])[0][:BYTES], FORM)


def bomb(rng):
    """A PNG of a few bytes that states a large size."""
    png, at = bytearray(photo()), photo().index(b"IHDR") + 4
    png[at : at + 8] = b"".join(rng.choice((0, 1, 200, 70_000, 2**31 - 1)).to_bytes(4, "big") for _ in range(2))
    return fuzz.with_checksums(bytes(png))


def sizes(rng):
    """A body that is larger than allowed."""
    body = b"x" * rng.choice((BYTES + 1, 2 * BYTES, 5 * BYTES))
    return post(body, rng.choice((JSON, "multipart/form-data; boundary=x", "text/plain", "")))


def large():
    """{name: request} with bodies of almost LARGE bytes that could take long to parse, or much memory."""
    def filled(kind, start, unit, end):
        return post(start + unit * ((LARGE - len(start) - len(end)) // len(unit)) + end, kind)

    name = b'--' + serving.BOUNDARY.encode() + b'\r\nContent-Disposition: form-data; name="'
    image, end = name + b'image"; filename="a"\r\n\r\n', f"\r\n--{serving.BOUNDARY}--\r\n".encode()
    as_json = {"lists": (b'{"text": "a", "images": [', b"[],", b"[]]}"), "nested": (b'{"images":', b"[", b""),
               "objects": (b'{"images": ["aaaa"], "phrases": [', b"{},", b"{}]}"),
               "numbers": (b'{"images": ["aaaa"], "size": [', b"1.5,", b"1]}"),
               "keys": (b'{', b'"":0,', b'"": 1}'), "digits": (b'{"threshold": ', b"9", b"}"),
               "wide text": (b'{"images": ["aaaa"], "text": "\xf0\x9f\x98\x80', b"a", b'"}'),
               "escapes": (b'{"images": ["aaaa"], "text": "', b"\\n", b'"}'),
               "a URL": (b'{"text": "a", "images": ["http://', b"a.", b'"]}'),
               "base64": (b'{"text": "a", "images": ["', b"AAAA", b'"]}')}
    as_form = {"a threshold": (name + b'threshold"\r\n\r\n{"a": [', b"[],", b"0]}" + end),
               "a size": (name + b'size"\r\n\r\n', b"9,", b"9" + end), "a text": (name + b'text"\r\n\r\n', b"a ", end),
               "parts": (b"", name + b'phrase"\r\n\r\na\r\n', end[2:]), "half a boundary": (image, b"\r\n--", end),
               "line ends": (image, b"\r", end), "a header": (name, b"a", b'"\r\n\r\na' + end),
               "headers": (name[: name.index(b"\r\n") + 2], b"A: b\r\n", b"\r\n\r\na" + end)}
    return {**{f"JSON: {name}": filled(JSON, *parts) for name, parts in as_json.items()},
            **{f"form: {name}": filled(FORM, *parts) for name, parts in as_form.items()}}


def routes(rng):
    """Other paths and methods."""
    method, path = rng.choice(METHODS), rng.choice(PATHS)
    first = f"{method} {path} HTTP/{rng.choice(('1.1', '1.1', '1.1', '1.0', '2.0', '9'))}"
    return Attack(f"{first}\r\n{HOST}\r\nConnection: close\r\n\r\n".encode(), method)


def heads(rng):
    """Wrong, doubled and very long headers, and bodies in chunks."""
    lines = [HOST, *picked(rng, LINES), *(picked(rng, LINES) if rng.random() < 0.3 else [])]
    method = rng.choice(METHODS[:3])
    head = f"{method} {rng.choice(PATHS[:8])} HTTP/1.1\r\n" + "".join(line + "\r\n" for line in lines) + "\r\n"
    return Attack(head.encode() + rng.choice(CHUNKS), method, False)


def late(rng):
    """A request that is answered before its body comes, in chunks."""
    head = f"POST {rng.choice(PATHS[:5])} HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Attack(head.encode(), rest=rng.choice((*CHUNKS, rng.randbytes(60))))


def changed(rng):
    """Any bytes of a request changed, its head included."""
    intact = rng.choice((values, fields, routes))(rng)
    return Attack(fuzz.change_bytes(rng, intact.data[:BYTES], rng.randbytes(600)), intact.method, False)


def addresses(rng):
    """Images at URLs of this machine, which the server must not request."""
    urls = [f"{rng.choice(('http', 'http', 'HTTP', 'https', 'file', 'ftp'))}://{rng.choice(HOSTS)}:{TRAP.decode()}/"
            for _ in range(rng.choice((1, 1, 3)))]
    return post(json.dumps({"images": urls, "text": "a cat."}).encode())


KINDS = {"values": values, "fields": fields, "bombs": bombs, "forms": forms, "images": images, "sizes": sizes,
         "routes": routes, "heads": heads, "late": late, "bytes": changed, "addresses": addresses}


def attack(seed: int, number: int) -> tuple[str, Attack]:
    """Return a request and its kind."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(KINDS))
    return kind, KINDS[kind](rng)


# ---- answers


class Answer(NamedTuple):
    """An answer, or why there is none: "closed" or "hang"."""

    status: int | str
    headers: dict[str, str] = {}  # noqa: RUF012
    content: bytes = b""


def send(port: int, request: Attack) -> Answer:
    """Send a request over a connection of its own. One that may be incomplete ends with the end of the stream."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), HANG)) as connection:
        with contextlib.suppress(OSError):  # the server may refuse, and close, before it has read everything
            connection.sendall(request.data)
            if not request.complete:
                connection.shutdown(socket.SHUT_WR)
        try:
            answer = http.client.HTTPResponse(connection, method=request.method.upper())
            answer.begin()
            found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
            if request.rest:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(request.rest)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(2**16):
                        pass
            return found
        except TimeoutError:
            return Answer("hang")
        except (http.client.HTTPException, ConnectionError):
            return Answer("closed")


def fault(request: Attack, answer: Answer) -> str | None:
    """Return what is wrong with an answer; None for nothing."""
    if answer.status == "closed":
        return "no answer" if request.complete else None
    if answer.status not in EXPECTED:
        return f"status {answer.status}"
    if missing := [name for name in HEADERS if name.lower() not in answer.headers]:
        return f"the header {missing[0]} is missing"
    if answer.status >= 400 and request.method.upper() != "HEAD":
        try:
            (text,) = json.loads(answer.content).values()
        except (ValueError, AttributeError):
            return "the error is not JSON with one text"
        if not (isinstance(text, str) and 0 < len(text) <= MESSAGE and text.isprintable()):
            return "the error is not a short, printable text"
        if PRIVATE.search(text):
            return "the error names a path"
    return None


@dataclass
class Tally:
    """Counts of the answers to one kind of requests."""

    statuses: collections.Counter = field(default_factory=collections.Counter)
    slowest: float = 0.0

    def row(self, kind: str) -> str:
        """Return the row of the table."""
        counts = ", ".join(f"{n} × {status}" for status, n in sorted(self.statuses.items(), key=lambda one: -one[1]))
        return f"| {kind} | {self.statuses.total()} | {counts} | {self.slowest:.2f} s |"


@contextlib.contextmanager
def trap():
    """Listen. Yields the port as bytes, of as many digits as TRAP, and a function: whether there was a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def connected():
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield b"%05d" % listener.getsockname()[1], connected


@contextlib.contextmanager
def target(max_bytes=BYTES):
    """A server with low limits and a model of few channels."""
    with tempfile.TemporaryDirectory() as folder:
        minigdino.Model.random(fuzz.config(), tokenizer=fuzz.tiny.tokenizer(), settings=fuzz.SETTINGS).save(folder)
        server = serving.Server("--model", folder, "--workers", "2", "--threads", "1", "--max-pixels", str(PIXELS),
                                "--max-bytes", str(max_bytes), "--queue", "100", "--timeout", str(HANG), "--allow-urls")
        try:
            yield server
        finally:
            server.kill()


def known(server) -> bytes:
    """The answer to an intact request, without its seconds."""
    intact = serving.form([("image", photo()), ("text", "a cat. a dog."), ("threshold", "0")])
    status, _, content = server.detect(intact)
    return b"%d " % status + re.sub(rb'"seconds": {[^}]*}', b"", content)


def run(server, requests: int, seed: int, seconds: float = float("inf")) -> tuple[dict[str, Tally], list[str]]:
    """Send requests 0, 1, ... Returns the counts of each kind, and what failed."""
    tallies = {kind: Tally() for kind in KINDS}
    failures: list[str] = []
    expected, workers, started, logged = known(server), sorted(server.workers()), time.monotonic(), len(server.lines)

    def one(number):
        kind, request = attack(seed, number)
        began = time.monotonic()
        answer = send(server.port, request._replace(data=request.data.replace(TRAP, port)))
        return number, kind, fault(request, answer), answer, time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads, trap() as (port, connected):
        for first in range(0, requests, CHECK):
            if time.monotonic() - started > seconds:
                break
            for number, kind, problem, answer, took in threads.map(one, range(first, min(first + CHECK, requests))):
                tallies[kind].statuses[answer.status] += 1
                tallies[kind].slowest = max(tallies[kind].slowest, took)
                if problem:
                    failures.append(f"{problem}: python tests/hostile.py --seed {seed} --only {number}   ({kind})")
            if known(server) != expected:
                failures.append(f"after request {first + CHECK}, an intact request got another answer")
                break
        failures += ["the server has requested a URL of this machine"] * connected()
    if sorted(server.workers()) != workers:
        failures.append("workers were replaced")
    failures += [f"log: {line.rstrip()}" for line in server.lines[logged:] if "Error" in line or "Traceback" in line]
    return tallies, failures


def run_large(server, requests: dict[str, Attack]) -> list[str]:
    """Send requests of `large`, several at a time. Returns what failed."""
    status = Path(f"/proc/{server.process.pid}/status")

    def memory(name):
        return 1024 * int(re.search(rf"{name}:\s*(\d+)", status.read_text())[1])

    def watch():
        while not done.is_set():
            began = time.monotonic()
            server.ask("GET", "/health/live")
            waits.append(time.monotonic() - began)
            done.wait(0.02)

    expected, before, waits, done = known(server), memory("VmRSS"), [], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(threads.map(lambda request: send(server.port, request), requests.values()))
    finally:
        done.set()
        watcher.join()
    failures = [f"{problem}: {name}" for name, answer in zip(requests, answers)
                if (problem := fault(requests[name], answer))]
    failures += [f"status {answer.status}: {name}" for name, answer in zip(requests, answers) if answer.status == 200]
    if max(waits) > LIVE:
        failures.append(f"/health/live took {max(waits):.1f} s")
    if (growth := memory("VmHWM") - before) > GROWTH:
        failures.append(f"the web process grew by {growth / 1e6:.0f} MB")
    if known(server) != expected:
        failures.append("after large requests, an intact request got another answer")
    return failures


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end earlier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="send one request, and print it with its answer")
    options = parser.parse_args()
    with target() as server:
        if options.only is not None:
            kind, request = attack(options.seed, options.only)
            answer = send(server.port, request)
            print(kind, request.data[:3000], *answer, fault(request, answer), *server.lines[1:], sep="\n")
            return 0
        tallies, failures = run(server, options.requests, options.seed, options.seconds)
    with target(LARGE) as server:
        failures += run_large(server, large())
    print("| requests | sent | answers | slowest |\n|---|---|---|---|")
    print(*(tally.row(kind) for kind, tally in tallies.items()), sep="\n")
    print(f"\n{sum(tally.statuses.total() for tally in tallies.values())} requests, {len(failures)} failures")
    print(*failures[:40], sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Send requests to a server from many clients at once, and time the answers.

    python -m benchmarks.load PORT PICTURE ... --text TEXT --clients N (--requests N | --seconds S)

All clients run in this process, which imports the standard library only. Each has a connection of its own, and sends
the next request when its last one is answered. After the status 503, it waits as long as Retry-After says. Request
number i has picture i modulo their number. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

BOUNDARY = b"benchmark"
WAIT = 600.0  # seconds for an answer
PAUSE = 0.1  # seconds before a client connects again


def body(picture: bytes, fields: dict[str, str]) -> bytes:
    """Return a multipart form."""
    parts = [b'name="image"; filename="picture"\r\n\r\n' + picture,
             *(f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items())]
    return b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n" % (BOUNDARY, part) for part in parts) + (
        b"--%b--\r\n" % BOUNDARY)


def request(content: bytes) -> bytes:
    """Return a request for detections, with its head."""
    return b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=%b\r\n" \
           b"Content-Length: %d\r\n\r\n%b" % (BOUNDARY, len(content), content)


def digest(results: list) -> str:
    """Return a short text that identifies results."""
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()[:16]


async def answered(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read an answer. Returns (status, headers in lower case, content)."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


class Load:
    """Clients of one server.

    Args:
        port: port of the server on this machine.
        requests: the request of each picture.

    Attributes:
        latencies: seconds from a request to its answer, of those with status 200.
        statuses: number of answers of each status. "broken": connections that ended without an answer.
        digests: results of each picture, as `digest` returns them; several if they differ.
    """

    def __init__(self, port: int, requests: Sequence[bytes]):
        self._port, self._requests = port, requests
        self.latencies: list[float] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self.digests: dict[int, set[str]] = collections.defaultdict(set)

    async def run(self, clients: int, count: int | None = None, seconds: float = float("inf")) -> float:
        """Send `count` requests, or as many as are answered in some seconds. Returns the seconds that this took."""
        started = time.perf_counter()
        numbers = itertools.count() if count is None else iter(range(count))
        await asyncio.gather(*(self._client(numbers, started + seconds) for _ in range(clients)))
        return time.perf_counter() - started

    async def _client(self, numbers, end):
        writer = None
        for number in numbers:
            if time.perf_counter() > end:
                break
            picture = number % len(self._requests)
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                began = time.perf_counter()
                writer.write(self._requests[picture])
                status, headers, content = await asyncio.wait_for(answered(reader), WAIT)
            except (OSError, EOFError):
                self.statuses["broken"] += 1
                if writer:
                    writer.close()
                writer = None
                await asyncio.sleep(PAUSE)
                continue
            self.statuses[str(status)] += 1
            if status == 200:
                self.latencies.append(time.perf_counter() - began)
                self.digests[picture].add(digest(json.loads(content)["results"]))
            elif status == 503:
                await asyncio.sleep(float(headers["retry-after"]))
            if status == 503 or headers.get("connection") == "close":  # the server closes idle connections meanwhile
                writer.close()
                writer = None
        if writer:
            writer.close()


def main() -> None:
    """Run the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("port", type=int)
    options.add_argument("pictures", nargs="+", type=Path)
    options.add_argument("--text", required=True)
    options.add_argument("--edges", type=int, nargs=2, required=True, metavar=("SHORTEST", "LONGEST"))
    options.add_argument("--clients", type=int, default=1)
    options.add_argument("--requests", type=int)
    options.add_argument("--seconds", type=float, default=float("inf"))
    options = options.parse_args()
    fields = {"text": options.text, "size": "{},{}".format(*options.edges)}
    load = Load(options.port, [request(body(path.read_bytes(), fields)) for path in options.pictures])
    seconds = asyncio.run(load.run(options.clients, options.requests, options.seconds))
    print(json.dumps({"seconds": seconds, "latencies": load.latencies, "statuses": load.statuses,
                      "digests": {picture: sorted(found) for picture, found in sorted(load.digests.items())}}))


if __name__ == "__main__":
    main()

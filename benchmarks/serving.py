"""Measure `minigdino serve` beside the bare detector: throughput, latency, memory, repeated pictures, start and growth.

    python -m benchmarks.serving [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                                 [--rounds N] [--clients N ...] [--requests N] [--minutes M]

Both process the same image files, whose number is larger than that of cached images, and their results must be equal.
The bare detector is as many processes as the server has workers. They decode, detect and write JSON in a loop. The
clients of the server (`load.py`) run in one more process on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import case as cases
from . import load
from .peers import machine, median_ratio
from .processes import add_options, add_rounds, alternate, call, prepared, start

PICTURES = 24  # more than the cached images of all workers
WORKERS = (1, 2, 4)  # rows of the table of memory
PROMPTS = ("a star. a green heart.", "a ring. a purple cross.")  # of a repeated picture
SAMPLE = 1.0  # seconds between two measurements of memory
LONG = 86400  # seconds; no request of a measurement is late


class Server(NamedTuple):
    """A running server."""

    process: subprocess.Popen
    port: int
    start: float  # seconds from the start of the process until it accepts requests

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextlib.contextmanager
def served(model, workers: int, threads: int, *more) -> Iterator[Server]:
    """Run `minigdino serve` in a process of its own."""
    began = time.perf_counter()
    command = ["minigdino", "serve", "--model", model, "--workers", workers, "--threads", threads, "--port", 0,
               "--timeout", LONG, "--queue", 10_000, *more]
    with subprocess.Popen([sys.executable, "-m", *map(str, command)], cwd=cases.ROOT, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://\S+:(\d+) with", line):
                    yield Server(process, int(found[1]), time.perf_counter() - began)
                    break
            else:
                raise SystemExit(f"minigdino serve failed:\n{''.join(lines)}")
        finally:
            process.kill()  # the workers end with it


def drive(server: Server, case: cases.Case, options, text: str, clients: int, requests: int | None = None
          ) -> subprocess.Popen:
    """Start the clients in a process of their own."""
    amount = ("--seconds", 60 * options.minutes) if requests is None else ("--requests", requests)
    return start("load", server.port, *files(case), "--text", text, "--edges", *cases.edges(options.size), "--clients",
                 clients, *amount)


def finished(process: subprocess.Popen) -> dict:
    """Return what the clients print, once they have ended."""
    with process:
        return json.loads(process.communicate()[0])


def files(case: cases.Case) -> list[Path]:
    """Return the paths of the image files."""
    return [case.folder / f"{i}.jpg" for i in range(PICTURES)]


def write_pictures(folder: Path, size) -> None:
    """Write the image files."""
    from PIL import Image

    for i, picture in enumerate(cases.pictures(size, PICTURES)):
        Image.fromarray(picture).save(folder / f"{i}.jpg", quality=95)


def write_once(case: cases.Case, size) -> None:
    """Write the image files in a new process, if they do not exist."""
    if not files(case)[-1].exists():
        call("serving", "--write", case.folder, "--size", *size)


# ---- the bare detector


def detect_all(checkpoint, folder: Path, size, text: str, threads: int, numbers: range) -> dict:
    """Detect in this process, in the pictures of these numbers. Waits for the other processes after the first one.

    Returns:
        {"began", "ended": times of the clock, "digests": {number of a picture: `load.digest` of its results}}.
    """
    import minigdino
    from minigdino.image import open_image

    from .worker import wait_for_others

    minigdino.set_threads(threads)
    model = minigdino.load(checkpoint)
    digests = {}

    def one(number):
        picture = open_image((folder / f"{number % PICTURES}.jpg").read_bytes())
        found = model.detect(picture, text, size=cases.edges(size)).to_dict()
        digests[number % PICTURES] = load.digest(json.loads(json.dumps([found])))

    one(numbers[0] + 1)  # not the first one, which would be cached
    wait_for_others()
    began = time.perf_counter()
    for number in numbers:
        one(number)
    return {"began": began, "ended": time.perf_counter(), "digests": digests}


def bare(case: cases.Case, options, workers: int, threads: int, requests: int) -> dict:
    """Run the bare detector. Returns {"seconds", "digests"}, as the clients of a server do."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(start(
            "serving", "--inside", case.checkpoint, case.folder, i, requests, workers, "--size", *options.size,
            "--text", options.text, "--threads", threads, threads=threads, stdin=subprocess.PIPE))
            for i in range(workers)]
        for process in running:
            if "ready\n" not in iter(process.stdout.readline, ""):
                raise SystemExit("the bare detector failed")
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.read().splitlines()[-1]) for process in running]
    return {"seconds": max(one["ended"] for one in found) - min(one["began"] for one in found),
            "digests": {number: [result] for one in found for number, result in one["digests"].items()}}


# ---- throughput and latency


def under_load(case, options, workers, threads, clients, requests) -> dict:
    """Run a server with clients. Returns what the clients found."""
    with served(case.checkpoint, workers, threads) as server:
        finished(drive(server, case, options, options.text, 2 * workers, 2 * workers))  # so that no worker is new
        return finished(drive(server, case, options, options.text, clients, requests))


def throughput(case, options) -> dict[tuple, list[dict]]:
    """Measure. Returns {(workers, threads, clients; 0 for the bare detector): one result per round}."""
    arrangements = dict.fromkeys([(1, options.threads), (options.threads, 1)])
    rows = [(*pair, clients) for pair in arrangements for clients in (0, *options.clients)]
    found = {row: [] for row in rows}
    for workers, threads, clients in alternate(tuple(rows), options.rounds):
        requests = max(options.requests, 2 * clients)
        measure = functools.partial(under_load, clients=clients) if clients else bare
        result = measure(case, options, workers, threads, requests=requests)
        check(result, clients)
        found[workers, threads, clients].append({**result, "rate": requests / result["seconds"]})
    for results in zip(*found.values()):
        if len({json.dumps(same_pictures(results, result)) for result in results}) > 1:
            raise SystemExit("the results of the server and of the bare detector differ")
    return found


def check(result: dict, clients: int) -> None:
    """End the benchmark if a request failed, or if a picture got two results."""
    if clients and set(result["statuses"]) != {"200"}:
        raise SystemExit(f"expected answers with status 200; got {result['statuses']}")
    if any(len(digests) > 1 for digests in result["digests"].values()):
        raise SystemExit("two answers for the same picture differ")


def same_pictures(results, result) -> dict:
    """The digests of the pictures that all results have."""
    common = set.intersection(*({int(number) for number in one["digests"]} for one in results))
    return {number: digests for number, digests in sorted((int(n), d) for n, d in result["digests"].items())
            if number in common}


def throughput_table(found: dict[tuple, list[dict]], cpus: int) -> list[str]:
    """Make the table, as lines of Markdown.

    Args:
        found: result of `throughput`.
        cpus: number of CPUs that this process may use.
    """
    lines = ["| | workers × threads | clients | images per second | images per core-hour | ÷ bare | p50, s | p99, s |",
             "|---|---|---|---|---|---|---|---|"]
    for (workers, threads, clients), results in found.items():
        rates = [result["rate"] for result in results]
        ratio = median_ratio(rates, [result["rate"] for result in found[workers, threads, 0]])
        # without the first answers of each client: fewer requests were before them in the queue
        seconds = sorted(second for result in results for second in result.get("latencies", ())[clients:])
        latency = [f"{quantile(seconds, q):.3g}" for q in (0.5, 0.99)] if clients else ["", ""]
        rate = statistics.median(rates)
        lines.append(f"| {'server' if clients else 'bare detector'} | {workers} × {threads} | {clients or ''} | "
                     f"{rate:.3g} | {3600 * rate / min(cpus, workers * threads):.0f} | {ratio:.2f} | "
                     f"{' | '.join(latency)} |")
    return lines


def quantile(values, q: float) -> float:
    """Return the smallest of the sorted values that is not exceeded by a fraction q of them."""
    return values[min(len(values) - 1, int(q * len(values)))]


# ---- memory


class Memory(NamedTuple):
    """Bytes of memory of a process."""

    pss: int  # its own memory, and its part of the memory that it shares
    own: int  # shared with no other process


def memory(pid: int) -> Memory:
    """Return the memory of a process, on Linux."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return Memory(sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def memory_rows(case, options) -> dict[int, tuple[Memory, list[Memory]]]:
    """Measure. Returns {number of workers: (memory of the web process, memory of each worker)}."""
    found = {}
    for workers in WORKERS:
        with served(case.checkpoint, workers, 1) as server:
            check(finished(drive(server, case, options, options.text, 2 * workers, 6 * workers)), 1)
            found[workers] = memory(server.process.pid), [memory(pid) for pid in server.pids()]
    return found


def memory_table(found) -> list[str]:
    """Make the table, as lines of Markdown: sums of the proportional set size, and memory that is not shared."""
    lines = ["| workers | all processes, MB | per further worker, MB | own memory of a worker, MB | web process, MB |",
             "|---|---|---|---|---|"]
    before = None
    for workers, (web, each) in found.items():
        total = (web.pss + sum(one.pss for one in each)) / 1e6
        more = f"{(total - before[1]) / (workers - before[0]):.0f}" if before else ""
        lines.append(f"| {workers} | {total:.0f} | {more} | {statistics.median(one.own for one in each) / 1e6:.0f} | "
                     f"{web.own / 1e6:.0f} |")
        before = workers, total
    return lines


# ---- one request


def asked(port: int, picture: Path, text: str, size) -> tuple[float, dict]:
    """Send a request. Returns (seconds to its answer, the answer)."""
    content = load.body(picture.read_bytes(), {"text": text, "size": "{},{}".format(*cases.edges(size))})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)) as connection:
        began = time.perf_counter()
        connection.request("POST", "/v1/detect", content,
                           {"Content-Type": f"multipart/form-data; boundary={load.BOUNDARY.decode()}"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"expected an answer with status 200; got {answer.status}: {content.decode()}")
        return time.perf_counter() - began, json.loads(content)


def single(case, options) -> dict[str, list[float]]:
    """Measure the start, and prompts on one picture. Returns {what: seconds of each round}."""
    found = {name: [] for name in ("start", "first answer", "new picture", "same picture, new prompt")}
    for _ in range(options.rounds):
        with served(case.checkpoint, 1, options.threads) as server:
            found["start"].append(server.start)
            found["first answer"].append(server.start + asked(server.port, files(case)[0], PROMPTS[0], options.size)[0])
            for name, prompt in zip(("new picture", "same picture, new prompt"), PROMPTS):
                _, answer = asked(server.port, files(case)[1], prompt, options.size)
                found[name].append(answer["seconds"]["computed"])
    return found


def single_table(found) -> list[str]:
    """Make the table, as lines of Markdown."""
    ratio = median_ratio(found["same picture, new prompt"], found["new picture"])
    cells = [f"{statistics.median(seconds):.3g}" for seconds in found.values()]
    return ["| start of the server, s | start and first answer, s | new picture, s | same picture, new prompt, s | ÷ |",
            "|---|---|---|---|---|", f"| {' | '.join(cells)} | {ratio:.2f} |"]


# ---- growth


def endure(case, options) -> dict:
    """Run a server whose queue is always full. Returns its answers, and the memory of its processes over time."""
    workers, threads, queue = options.threads, 1, 8
    with served(case.checkpoint, workers, threads, "--queue", queue) as server:
        workers_before = server.pids()
        clients = max(4 * (queue + workers), *options.clients)
        samples, output = [], None
        with drive(server, case, options, options.text, clients) as process:
            while output is None:
                samples.append((time.perf_counter(), [memory(pid).pss for pid in (server.process.pid, *server.pids())]))
                with contextlib.suppress(subprocess.TimeoutExpired):  # `wait` would not read the output
                    output, _ = process.communicate(timeout=SAMPLE)
        return {**json.loads(output), "samples": samples, "replaced": server.pids() != workers_before}


def growth(samples) -> tuple[float, float]:
    """Return the median memory in the second and in the last quarter of the time, in bytes. The first is a warm-up."""
    totals = [sum(each) for _, each in samples]
    n = len(totals) // 4
    return statistics.median(totals[n : 2 * n] or totals), statistics.median(totals[-n:])


def growth_table(found) -> list[str]:
    """Make the table, as lines of Markdown."""
    before, after = growth(found["samples"])
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(found["statuses"].items()))
    return ["| minutes | answers | memory of all processes, second quarter, MB | last quarter, MB | growth, MB |",
            "|---|---|---|---|---|", f"| {found['seconds'] / 60:.1f} | {counts} | {before / 1e6:.1f} | "
                                    f"{after / 1e6:.1f} | {(after - before) / 1e6:+.1f} |"]


def report(options) -> None:
    """Measure, and print all tables."""
    with prepared(options) as case:
        write_once(case, options.size)
        print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}; {options.rounds} rounds",
              end="\n\n")
        cpus = len(os.sched_getaffinity(0))
        for table in (lambda: throughput_table(throughput(case, options), cpus),
                      lambda: single_table(single(case, options)), lambda: memory_table(memory_rows(case, options)),
                      lambda: growth_table(endure(case, options)) if options.minutes else []):
            print(*table(), sep="\n", end="\n\n", flush=True)


def add_serving(options: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    options.add_argument("--clients", type=int, nargs="+", default=(4, 100), metavar="N",
                         help="numbers of clients at the same time")
    options.add_argument("--requests", type=int, default=48,
                         help="smallest number of requests of a measurement; there are at least two for each client")
    options.add_argument("--minutes", type=float, default=1.0,
                         help="minutes at a full queue, to measure the growth of memory; 0 for none")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_serving):
        add(options)
    options.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--inside", nargs=5, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.write:
        write_pictures(options.write, options.size)
    elif options.inside:
        checkpoint, folder, *numbers = options.inside
        print(json.dumps(detect_all(checkpoint, Path(folder), options.size, options.text, options.threads,
                                    range(*map(int, numbers)))))
    else:
        report(options)

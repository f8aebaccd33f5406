"""Runs on a real Ray cluster of two nodes on this machine: the command, and `DetectBatch` in Ray Data."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq  # noqa: E402
from minigdino._ext.cpus import affinity  # noqa: E402

from minigdino import ArgumentError  # noqa: E402
from minigdino.runs.items import Item  # noqa: E402
from minigdino.runs.lines import line  # noqa: E402
from minigdino.runs.table import header_of, lines  # noqa: E402
from minigdino.runtime.device import find_device  # noqa: E402
from training.scenes import scenes  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
TEXT = "a red star. a blue ring. a green heart."
FEW, SOME, MANY = 40, 400, 2000
LIMIT = 900  # seconds for a command


def environment(folder):
    """Variables with which Ray writes nothing outside a folder, reports no usage, and finds no other cluster."""
    rest = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**rest, "HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


class Cluster:
    """Nodes of Ray on this machine, as processes."""

    def __init__(self, *cpus):
        self.folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # names of sockets must be short
        self.environment = environment(self.folder)
        script = [sys.executable, Path(__file__).with_name("ray_nodes.py"), *map(str, cpus)]
        self.process = subprocess.Popen(script, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().strip()

    def ask(self, text):
        print(text, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def actors(self):
        """Process ids of actors, which have the name of their class."""
        return [pid for pid in descendants(self.process.pid) if re.match(r"ray::(Actor|MapWorker)\b", name(pid))]

    def close(self):
        started = descendants(self.process.pid)
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        for pid in started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def name(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def descendants(pid):
    """The processes that a process has started, and those that they have started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(2, 2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Function that returns a manifest of drawn pictures, and the lines of one process for them."""
    folder, expected = tmp_path_factory.mktemp("pictures"), {}
    import minigdino

    model, drawn = minigdino.load("shapes"), scenes("seen", MANY)

    def manifest(n):
        for i in range(len(expected), n):
            path = folder / f"{i}.png"
            if i == 7:
                path.write_bytes(b"no picture")
            else:
                Image.fromarray(next(drawn)[0].image).save(path, compress_level=1)
            expected[1000 - i] = line(model, TEXT, {}, Item(1000 - i, str(path)))
        items = list(expected.values())[:n]
        path = folder / f"{n}.parquet"
        pq.write_table(pa.table({"id": [item["id"] for item in items], "uri": [item["image"] for item in items]}), path,
                       row_group_size=512)
        return path, {item["id"]: item for item in items}

    return manifest


def command(cluster, manifest, out, *more):
    """Start `minigdino run` on the cluster."""
    words = [sys.executable, "-m", "minigdino", "run", manifest, TEXT, "--out", out, "--model", "shapes", *more,
             "--ray", cluster.address]
    return subprocess.Popen(list(map(str, words)), env=cluster.environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def written(path):
    """The header and the lines of a file of results."""
    header, *rest = map(json.loads, path.read_text().splitlines())
    return header, rest


def once(rows):
    """{id: line}, where each image has one line without an error at most, and the last line counts."""
    good = Counter(row["id"] for row in rows if "error" not in row)
    assert not good or max(good.values()) == 1
    return {row["id"]: row for row in rows}


def test_a_run_on_two_nodes_gives_the_lines_of_one_process(cluster, manifests, tmp_path):
    manifest, expected = manifests(FEW)
    out = tmp_path / "found"
    process = command(cluster, manifest, out)
    output, shown = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and not output, shown
    header, rows = written(out / "found.jsonl")
    assert len(rows) == FEW and once(rows) == expected
    assert header["shard"] is None and header["sources"] == [str(manifest)]
    bad = next(row["error"] for row in rows if "error" in row)
    assert shown == (f"minigdino: {bad}\nwrote {out}/found.jsonl\nminigdino: 1 of {FEW} images has an error. The same "
                     "command tries again\n")
    again = command(cluster, manifest, out)
    assert again.communicate(timeout=LIMIT)[1] == shown
    assert written(out / "found.jsonl")[1] == [*rows, next(row for row in rows if "error" in row)]
    plain = [sys.executable, "-m", "minigdino", "run", manifest, TEXT, "--out", out, "--model", "shapes"]
    assert subprocess.run(plain, capture_output=True, text=True).stderr == shown  # also without Ray
    assert not cluster.actors()


@contextlib.contextmanager
def slow_image(png):
    """Yield the URL of an image whose first reader waits until the end, and a list of the requests."""
    requests, end = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if len(requests) == 1:
                end.wait(LIMIT)
            with contextlib.suppress(OSError):  # the reader has ended
                self.send_response(200)
                self.send_header("Content-Length", str(len(png)))
                self.end_headers()
                self.wfile.write(png)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/slow.png", requests
    finally:
        end.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_end_of_an_idle_worker_is_no_fault_of_an_image(manifests, tmp_path, monkeypatch):
    """A node ends with two workers, of which one is idle. Only the other one has begun the image that is left."""
    monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", "1")
    _, expected = manifests(FEW)
    quick = next(iter(expected.values()))
    manifest, file = tmp_path / "two.csv", tmp_path / "found.jsonl"
    with slow_image(Path(quick["image"]).read_bytes()) as (url, requests), contextlib.closing(Cluster(0, 2)) as cluster:
        manifest.write_text(f"id,uri\n1,{quick['image']}\n2,{url}\n")
        process = command(cluster, manifest, tmp_path)
        until(lambda: requests and file.exists() and len(file.read_text().splitlines()) == 2, process)
        cluster.ask("kill")
        cluster.ask("add 2")
        output, shown = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, shown
    assert written(file)[1] == [{**quick, "id": 1}, {**quick, "id": 2, "image": url}]
    assert len(requests) == 2 and "minigdino" not in output  # only Ray writes there


def test_no_node_is_large_enough(cluster, manifests, tmp_path):
    manifest, _ = manifests(FEW)
    process = command(cluster, manifest, tmp_path, "--threads", 3)
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1 and "expected a node with 3 CPUs for a worker; the cluster has none" in shown


@pytest.fixture(scope="module")
def gpu_cluster():
    """A node with 2 CPUs that declares a GPU, and on which the user allows one thread to libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster("2:1")
    yield cluster
    cluster.close()


def actors(cluster, *words):
    """Run the script with actors that count their threads."""
    words = map(str, [sys.executable, Path(__file__).with_name("ray_actors.py"), *words])
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    return subprocess.run(list(words), env=environment, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.skipif(affinity() < 2, reason="needs two processors")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_actor_uses_as_many_threads_as_it_has_cpus(gpu_cluster, manifests, tmp_path, threads):
    counts = {"threads": threads, "OMP_NUM_THREADS": 1}
    assert json.loads(actors(gpu_cluster, threads, 0).stdout) == counts
    _, expected = manifests(FEW)
    image = next(iter(expected.values()))["image"]
    actors(gpu_cluster, "run", image, TEXT, "--out", tmp_path, "--model", "shapes", "--threads", threads, "--ray")
    assert [{key: row[key] for key in counts} for row in written(tmp_path / "found.jsonl")[1]] == [counts]


def why_no_gpu():
    """The error of device "cuda"."""
    try:
        find_device("cuda")
    except ArgumentError as error:
        return str(error)
    pytest.skip("this machine has a GPU")


def test_an_actor_with_a_gpu_computes_on_it(gpu_cluster, manifests, tmp_path):
    """Without a GPU, the error of its device arrives."""
    reason = why_no_gpu()
    process = command(gpu_cluster, manifests(FEW)[0], tmp_path, "--device", "cuda")
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1 and shown == f"minigdino: {reason}\n"
    assert f"ArgumentError: {reason}" in actors(gpu_cluster, 1, 1).stderr


def test_no_node_has_a_gpu(cluster, manifests, tmp_path):
    process = command(cluster, manifests(FEW)[0], tmp_path, "--device", "cuda")
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1
    assert "expected a node with 1 CPU and a GPU for a worker; the cluster has none" in shown


TOO_MANY_GPUS = """
import ray
from ray.data import ActorPoolStrategy, DataContext
from minigdino.runs.batches import DetectBatch
DataContext.get_current().wait_for_min_actors_s = 5
images = ray.data.from_items([{"id": 1, "uri": "image.jpg"}])
images.map_batches(DetectBatch, fn_constructor_kwargs={"text": "a star.", "model": "shapes"}, num_gpus=2,
                   compute=ActorPoolStrategy(min_size=1, max_size=1), batch_size=8).take_all()
"""


def test_ray_data_gives_up_on_an_actor_for_which_there_is_no_node(gpu_cluster):
    environment = {**gpu_cluster.environment, "RAY_ADDRESS": gpu_cluster.address}
    shown = subprocess.run([sys.executable, "-c", TOO_MANY_GPUS], env=environment, capture_output=True, text=True,
                           timeout=LIMIT).stderr
    assert "Timed out while starting actors. This may mean that the cluster does not have enough resources" in shown


def ray_data(cluster, manifest, out, *more):
    """Start the example with Ray Data on the cluster."""
    words = [sys.executable, ROOT / "examples" / "ray_data.py", manifest, TEXT, out, "--model", "shapes", *more]
    return subprocess.Popen(list(map(str, words)), env={**cluster.environment, "RAY_ADDRESS": cluster.address},
                            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def parts(out):
    """The lines in the Parquet files of a folder. Each file is complete, and has the header."""
    found = []
    for path in sorted((out / "parts").glob("*.parquet")):
        table = pq.read_table(path)
        assert header_of(table.schema)["text"] == ["a red star", "a blue ring", "a green heart"]
        found += lines(table, path)
    return found


def done(out):
    """The number of ids that Ray has stored as done."""
    return sum(pq.read_metadata(path).num_rows for path in (out / "done").glob("*.parquet")
               if not path.name.endswith(".pending.parquet"))


def test_ray_data_gives_the_lines_of_one_process(cluster, manifests, tmp_path):
    manifest, expected = manifests(FEW)
    process = ray_data(cluster, manifest, tmp_path)
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 0, shown
    rows = parts(tmp_path)
    assert len(rows) == FEW and once(rows) == expected
    merged = tmp_path / "merged.jsonl"
    merge = [sys.executable, "-m", "minigdino", "merge", tmp_path / "parts", "--sources", manifest, "--jsonl", merged]
    assert subprocess.run(merge, cwd=ROOT).returncode == 1  # an image has an error
    assert written(merged)[1] == [expected[key] for key in sorted(expected)]


@pytest.mark.parametrize(("more", "got", "room"), [(["--actors", 4], "4 actors with 1 CPUs", 3),
                                                   (["--cpus", 3], "1 actors with 3 CPUs", 0),
                                                   (["--actors", 2, "--cpus", 2], "2 actors with 2 CPUs", 1)])
def test_ray_data_does_not_wait_for_cpus_that_its_actors_hold(cluster, manifests, tmp_path, more, got, room):
    manifest, _ = manifests(FEW)
    process = ray_data(cluster, manifest, tmp_path, *more)
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 2, shown
    assert f"expected room for {got} each, and a free CPU to read the manifest; the nodes have room for {room}" in shown


def test_ray_data_on_two_cpus(manifests, tmp_path):
    """One actor is the most that leaves a CPU free."""
    manifest, expected = manifests(FEW)
    with contextlib.closing(Cluster(2)) as cluster:
        process = ray_data(cluster, manifest, tmp_path)
        shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 0, shown
    assert once(parts(tmp_path)) == expected


def test_a_model_that_is_missing_ends_ray_data(cluster, manifests, tmp_path):
    manifest, _ = manifests(FEW)
    process = ray_data(cluster, manifest, tmp_path, "--model", tmp_path / "none")
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1 and "none: no such file or directory" in shown


def until(condition, process=None):
    """Wait for a condition while a process runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.05)


def kill_some(cluster, process, times, seed):
    """Kill actors while a process runs, some time after each other."""
    chance = random.Random(seed)
    for _ in range(times):
        until(cluster.actors, process)
        time.sleep(chance.uniform(0.3, 2.0))
        for pid in cluster.actors()[:1]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_actor(cluster, manifests, tmp_path, number):
    manifest, _ = manifests(SOME)
    process, file = command(cluster, manifest, tmp_path), tmp_path / "found.jsonl"
    until(lambda: file.exists() and len(file.read_text().splitlines()) > 5, process)
    process.send_signal(number)
    shown = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number) and "Traceback" not in shown
    until(lambda: not cluster.actors())
    assert len(written(file)[1]) < SOME


@pytest.mark.slow
def test_workers_a_node_and_the_driver_are_killed(manifests, tmp_path):
    manifest, expected = manifests(MANY)
    out, file = tmp_path / "found", tmp_path / "found" / "found.jsonl"
    cluster = Cluster(2, 2)
    try:
        process = command(cluster, manifest, out)
        kill_some(cluster, process, 8, seed=1)
        cluster.ask("kill")  # a node
        kill_some(cluster, process, 4, seed=2)
        count = len(file.read_text().splitlines())
        until(lambda: len(file.read_text().splitlines()) > count + 50, process)
        process.kill()  # the driver
        process.communicate()
        until(lambda: not cluster.actors())  # Ray ends them
        assert FEW < len(file.read_text().splitlines()) < MANY
        cluster.ask("add 2")
        process = command(cluster, manifest, out)
        shown = process.communicate(timeout=LIMIT)[1]
    finally:
        cluster.close()
    assert process.returncode == 1 and shown.endswith("1 of 2000 images has an error. The same command tries again\n")
    assert once(written(file)[1]) == expected


@pytest.mark.slow
def test_ray_data_when_workers_a_node_and_the_driver_are_killed(manifests, tmp_path):
    manifest, expected = manifests(SOME)
    cluster = Cluster(2, 2)
    try:
        process = ray_data(cluster, manifest, tmp_path)
        kill_some(cluster, process, 3, seed=3)
        until(lambda: done(tmp_path) > FEW, process)
        process.kill()
        process.communicate()
        until(lambda: not cluster.actors())
        count = done(tmp_path)
        assert FEW < count < SOME
        process = ray_data(cluster, manifest, tmp_path)
        kill_some(cluster, process, 1, seed=4)
        until(lambda: done(tmp_path) > count, process)  # the manifest is read; before, the run would end with the node
        cluster.ask("kill")
        shown = process.communicate(timeout=LIMIT)[1]
    finally:
        cluster.close()
    assert process.returncode == 0, shown
    rows = parts(tmp_path)
    assert len(rows) == SOME and once(rows) == expected


def test_a_cluster_of_this_machine(manifests, tmp_path):
    """Without an address and a cluster, Ray starts one, which ends with the run."""
    manifest, expected = manifests(FEW)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    local = SimpleNamespace(address="", environment=environment(folder))
    process = command(local, manifest, tmp_path)
    started = set()
    while process.poll() is None:
        started.update(descendants(process.pid))
        time.sleep(0.1)
    shown = process.communicate()[1]
    shutil.rmtree(folder, ignore_errors=True)
    assert process.returncode == 1 and shown.endswith("The same command tries again\n"), shown
    assert once(written(tmp_path / "found.jsonl")[1]) == expected
    until(lambda: not any(re.match("ray::|.*(raylet|gcs_server)", name(pid)) for pid in started))



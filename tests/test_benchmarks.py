"""The benchmarks of minigdino, and beside other programs, on small inputs; benchmarks.gpu has tests of its own."""

import argparse
import asyncio
import contextlib
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigdino
from benchmarks import (
    agreement,
    case,
    learning,
    listing,
    load,
    long_lists,
    many_images,
    peers,
    processes,
    products,
    serving,
    stages,
    throughput,
    worker,
)
from minigdino.learning.optimizer import BACKBONES, GROUPS, group
from minigdino.runtime.bench import STAGES

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
TINY = ("--model", "shapes", "--size", "64", "85")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A file of pixels and ids."""
    where = case.case(tmp_path_factory.mktemp("case"), "shapes")
    case.write(where, "shapes", (64, 85), "a star.")
    return where.inputs


def result(*seconds, uncached=None):
    """What `peers.run` finds of a program in one round."""
    return {"version": "1", "seconds": [9.0, *seconds], "peak": 1e9, "import": 0.1, "load": 0.2, "first result": 3.0,
            "first result, uncached": uncached}


def test_every_program_exists():
    assert {*processes.PEERS, *processes.INEXACT} <= set(worker.PROGRAMS)


@pytest.mark.parametrize("precision", processes.MINIGDINO)
def test_a_program_has_its_precision_whatever_the_environment_says(precision, monkeypatch):
    seen = []
    monkeypatch.setenv("MINIGDINO_PRECISION", "medium")
    monkeypatch.setattr(minigdino, "load", lambda source, precision: seen.append(precision))
    monkeypatch.setattr(minigdino, "set_threads", lambda n: None)
    worker.PROGRAMS[processes.MINIGDINO[precision]]("folder", 1)
    assert seen == [precision]


ORDER = """
import sys
from benchmarks.worker import PROGRAMS
class Watch:
    def find_spec(name, *_):
        if name in ("minigdino", "numpy"):
            print(name)
sys.meta_path.insert(0, Watch)
PROGRAMS[sys.argv[1]](sys.argv[2], 1)
"""


@pytest.mark.parametrize(("peer", "order"), [("minigdino", ["minigdino", "numpy"]),
                                             ("minigdino-after-numpy", ["numpy", "minigdino"])])
def test_the_order_of_imports(peer, order):
    run = subprocess.run([sys.executable, "-c", ORDER, peer, case.SHAPES], cwd=ROOT, check=True, capture_output=True,
                         text=True)
    assert run.stdout.split() == order


def test_the_first_result_counts_from_the_start_of_the_process(inputs):
    found = processes.measure("minigdino", case.SHAPES, inputs, 1, 2)
    assert len(found["seconds"]) == len(found["ends"]) == 2
    assert found["first result"] > found["import"] + found["load"] + found["seconds"][0]
    assert found["ends"][1] - found["ends"][0] >= found["seconds"][1]


def test_a_failing_program_shows_its_error(inputs):
    with pytest.raises(SystemExit, match="(?s)worker minigdino /missing .* failed.*CheckpointError"):
        processes.measure("minigdino", "/missing", inputs, 1, 1)


def test_ratios_are_taken_within_a_round():
    found = {"minigdino": [result(2), result(20)], "minigdino-medium": [result(1), result(5)],
             "transformers": [result(4), result(80)]}
    header, _, *rows = peers.matrix(found)
    assert header == "| minigdino's time ÷ this | highest | medium |"
    assert rows[0] == "| minigdino | 1.00 | 0.38 |"
    assert rows[2] == "| transformers | 0.38 | 0.16 |"


def test_the_table_of_programs_has_the_time_to_the_first_result():
    header, line, row, other = peers.table({"minigdino": [result(2, uncached=4.0)], "onnxruntime": [result(2)]},
                                           {"onnxruntime": "sdpa"})
    assert header.count("|") == line.count("|") == row.count("|")
    assert row.endswith("| 3 | 4 |")
    assert other.startswith("| onnxruntime 1, sdpa graph |")
    assert other.endswith("| 3 |  |")  # the weights could not be dropped from the page cache


def test_a_file_is_dropped_from_the_page_cache_unless_it_is_mapped(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1 << 20))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[1 << 19] == 0
        assert not processes.uncache(file)
        assert not processes.uncache(tmp_path)
    if not processes.uncache(file):
        pytest.skip("this system cannot drop the file")
    assert file.read_bytes() == bytes(1 << 20)
    assert processes.uncache(tmp_path)


def test_only_float32_programs_must_agree():
    def found(*programs):
        return {peer: {name: np.full(4, 1 + shift) for name in ("vision", "scores")} for peer, shift in programs}

    lines, agree = agreement.compare(found(("minigdino", 0), ("minigdino-medium", 0.1), ("openvino-bf16", 0.2),
                                           ("openvino", 0)))
    assert agree
    assert [line.rpartition("| ")[2] for line in lines[2:]] == ["lower precision |", "lower precision |", "agree |"]
    assert not agreement.compare(found(("minigdino", 0), ("transformers", 0.1)))[1]


def test_a_worker_waits_for_the_others(inputs):
    arguments = ("worker", "minigdino", case.SHAPES, inputs, "--passes", 2, "--together")
    streams = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "threads": 1}
    with processes.start(*arguments, **streams) as process:
        assert process.stdout.readline() == "ready\n"
        assert len(json.loads(process.communicate("\n")[0])["seconds"]) == 2
    with processes.start(*arguments, **streams) as process:
        assert process.stdout.readline() == "ready\n"
        assert "the process that started this one ended" in process.communicate()[1]
    assert process.returncode == 1


def test_throughput_of_processes_at_once(inputs):
    assert 0 < throughput.together("minigdino", case.SHAPES, inputs, processes=2, threads=1, passes=2) < 60


def test_throughput_is_per_core_and_ratios_are_taken_within_a_round():
    assert throughput.arrangements(2) == ((1, 2), (2, 1), (1, 8))
    found = {("minigdino", 1, 2): [2.0, 4.0], ("minigdino", 2, 1): [1.0, 4.0], ("minigdino", 1, 8): [4.0, 4.0]}
    rows = throughput.table(found, cpus=2)[2:]
    assert rows == ["| minigdino | 1 × 2 | 3 | 600 | 1.00 |", "| minigdino | 2 × 1 | 2.5 | 720 | 1.50 |",
                    "| minigdino | 1 × 8 | 4 | 450 | 0.75 |"]


def test_many_images_are_measured_in_every_row(tmp_path):
    (tmp_path / "tiny").symlink_to(case.SHAPES)
    run = subprocess.run([sys.executable, "-m", "benchmarks.many_images", "--folder", tmp_path, "--models", "tiny",
                          "--sizes", "64,96", "--precisions", "highest", "medium", "--rounds", "1", "--pictures", "3"],
                         cwd=ROOT, check=True, capture_output=True, text=True)
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if line.startswith("| tiny")]
    assert [row[:3] for row in rows] == [["tiny", "64, 96", "highest"], ["tiny", "64, 96", "medium"]]
    assert rows[0][6] == "1.00" and 0.1 < float(rows[1][6]) < 10
    assert "\ntiny, 64,96, highest: mean 0." in run.stdout
    assert len(list(tmp_path.glob("*.jpg"))) == 2 * len(many_images.ASPECTS)


def test_the_costs_of_many_images_are_per_core_and_ratios_of_rounds():
    def runs(*seconds):
        return [{"seconds": [second, second], "elapsed": 3 * second, "peak": 2e9} for second in seconds]

    found = {many_images.Row("tiny", (8, 9), "high"): runs(1.0, 0.5, 2.0),
             many_images.Row("base", (8, 9), "high"): runs(2.0, 2.0, 2.0)}
    assert many_images.table(found)[2:] == ["| tiny | 8, 9 | high | 1 | 3600 | 278 | 1.00 | 2.00 | 1.50 |",
                                            "| base | 8, 9 | high | 2 | 1800 | 556 | 2.00 | 2.00 | 1.50 |"]
    assert many_images.quantiles([3, 1, 2])[:: many_images.QUANTILES // 2] == [1, 2, 3]


def test_stages_of_every_precision_are_side_by_side():
    run = subprocess.run([sys.executable, "-m", "benchmarks.stages", *TINY, "--rounds", "1", "--passes", "1"], cwd=ROOT,
                         check=True, capture_output=True, text=True)
    header, _, *rows = (line for line in run.stdout.splitlines() if line.startswith("|"))
    assert header == "| | GFLOP | highest, s | GFLOP/s | high, s | GFLOP/s | medium, s | GFLOP/s |"
    assert [row.split(" | ")[0][2:] for row in rows] == [*STAGES.values(), "other", "forward pass"]


def test_stages_are_medians_over_the_rounds():
    runs = [{"flop": {"decoder": 6e9}, "seconds": {"decoder": s}} for s in (1.0, 2.0, 9.0)]
    assert stages.table({"highest": runs, "high": runs[:1]})[2] == "| decoder | 6.00 | 2.000 | 3.0 | 1.000 | 6.0 |"


def test_steps_of_learning_with_and_without_frozen_parts(inputs):
    for trained, program in learning.RUNS:
        if program != "transformers":
            found = learning.measure(program, trained, case.SHAPES, inputs, 1)
            assert len(found["seconds"]) == 2 and found["peak"] > 1e6


def changes(step):
    """{group: largest change of a number} by a step."""
    before, after = ({name: np.array(array) for name, array in step().items()} for _ in range(2))
    largest = {}
    for name, array in after.items():
        largest[group(name)] = max(largest.get(group(name), 0), abs(array - before[name]).max())
    return largest


@pytest.mark.parametrize(("trained", "program"), [run for run in learning.RUNS if run[1] != "transformers"])
def test_a_step_of_learning_changes_what_is_trained_at_its_rate(inputs, trained, program):
    """A step of AdamW changes no number by much more than the rate, and some by about it."""
    with np.load(inputs) as given:
        step = learning.minigdino_step(case.SHAPES, given["pixels"], given["ids"], program, trained == "frozen")
    backbones = 0 if trained == "frozen" else 0.1 * learning.RATE
    expected = {part: backbones if part in BACKBONES else learning.RATE for part in GROUPS}
    assert changes(step) == pytest.approx(expected, rel=0.1)


def test_steps_of_learning_are_compared_within_a_round():
    def runs(*seconds):
        return [{"seconds": [9, s], "peak": 2e9} for s in seconds]

    found = {("all", "minigdino"): runs(3, 4, 1), ("all", "transformers"): runs(2, 8, 2)}
    assert learning.table(found)[2:] == ["| all | minigdino | 3.00 | 0.50 | 2.0 GB |",
                                         "| all | transformers | 2.00 | 1.00 | 2.0 GB |"]


def test_a_long_list_is_measured_beside_its_parts():
    run = subprocess.run([sys.executable, "-m", "benchmarks.long_lists", *TINY, "--names", "3", "120", "--rounds", "1"],
                         cwd=ROOT, check=True, capture_output=True, text=True)
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["3", "1"], ["120", "2"]]
    assert all(0.2 < float(row[-1]) < 20 for row in rows)


def test_a_row_of_a_long_list_has_medians_and_ratios_of_rounds():
    found = {"prompts": 2, "first": 9.0, "seconds": [4.0, 6.0, 5.0], "parts": [4.0, 3.0, 4.0]}
    assert long_lists.row(120, found) == "| 120 | 2 | 9 s | 5 s | 2.5 s | 1.250 |"


def test_rates_of_products():
    ours, numpy = products.seconds(300, 64, 96, rounds=3)
    assert len(ours) == len(numpy) == 3
    assert min(*ours, *numpy) > 0
    assert products.row("a", (1000, 1000, 500), [1e-3, 2e-3, 4e-3], [1e-3, 4e-3, 2e-3]) == (
        "| a | [1000, 1000] @ [1000, 500] | 500 | 500 | 1.00 |")


@pytest.fixture
def device(tmp_path):
    """A function that runs device.sh without a GPU, and returns its exit status and its report."""
    if not (shutil.which("bash") and shutil.which("timeout")):
        pytest.skip("needs bash and timeout")
    if minigdino.info()["missing"]:
        pytest.skip("would build the compiled modules that are missing")

    def run(*options):
        report = tmp_path / "report.md"
        environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(["bash", ROOT / "benchmarks" / "device.sh", report, *options], cwd=tmp_path,
                              env=environment, check=False, capture_output=True, text=True)
        assert report.read_text() == done.stdout
        return done.returncode, done.stdout

    return run


def test_the_device_report_without_a_gpu(device):
    status, report = device(*TINY)
    assert status == 0, report
    assert "No GPU was found" in report
    assert "FAILED" not in report
    for program in processes.MINIGDINO.values():
        assert f"\n{program}\n\n| | GFLOP per thread | seconds |" in report
    assert report.count("| 1 thread |") == 3


def test_the_device_report_shows_a_part_that_failed(device):
    status, report = device("--size", "64", "wide")
    assert status == 1
    assert "FAILED with exit status 2" in report
    assert "invalid int value: 'wide'" in report


def test_clients_count_every_answer_and_wait_as_the_server_says():
    """A server that answers a request, refuses the next, and breaks off at the third. A refusal ends the connection."""
    answered, connections, numbers = [], [], itertools.cycle(range(3))

    async def serve(reader, writer):
        connections.append(i := 0)
        with contextlib.suppress(EOFError):  # the client closes after a refusal
            while i < 2:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                answered.append(i := next(numbers))
                content = json.dumps({"results": [i]}).encode()
                writer.write((b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content,
                              b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 1\r\n\r\nx",
                              b"HTTP/1.1 200")[i])
        writer.close()

    async def test():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            clients = load.Load(port, [load.request(load.body(b"picture", {"text": "a"}))])
            seconds = await clients.run(1, count=6)
            assert 0 < max(clients.latencies) <= seconds
            assert clients.statuses == {"200": 2, "503": 2, "broken": 2}
            assert clients.digests == {0: {load.digest([0])}}
            assert await load.Load(port, [b""]).run(2, seconds=0) < 1  # no time, no request

    asyncio.run(asyncio.wait_for(test(), 20))
    assert answered == [0, 1, 2, 0, 1, 2]
    assert len(connections) == 4  # one for each answer and its refusal, and one for each break


def test_the_server_beside_the_bare_detector(inputs):
    where = case.Case(inputs.parent, case.SHAPES, inputs)
    options = argparse.Namespace(size=(64, 85), text="a star.", threads=1, rounds=1, clients=[3], requests=6)
    serving.write_once(where, options.size)
    found = serving.throughput(where, options)
    assert found.keys() == {(1, 1, 0), (1, 1, 3)}
    ((server,), (bare,)) = found[1, 1, 3], found[1, 1, 0]
    assert server["statuses"] == {"200": 6}
    assert server["digests"] == bare["digests"]
    assert len(server["digests"]) == len(server["latencies"]) == 6
    with serving.served(where.checkpoint, 1, 1) as running:
        web, (worker,) = serving.memory(running.process.pid), [serving.memory(pid) for pid in running.pids()]
        assert all(0 < one.own <= one.pss for one in (web, worker))
        seconds, answer = serving.asked(running.port, serving.files(where)[0], "a star.", options.size)
        assert seconds > answer["seconds"]["computed"] > 0
    with pytest.raises(SystemExit, match="serve failed:\n.*/missing"), serving.served("/missing", 1, 1):
        pass


def test_a_server_that_refuses_or_differs_ends_the_benchmark():
    with pytest.raises(SystemExit, match="'503': 1"):
        serving.check({"statuses": {"200": 5, "503": 1}, "digests": {}}, clients=1)
    with pytest.raises(SystemExit, match="two answers"):
        serving.check({"statuses": {"200": 5}, "digests": {"0": ["a", "b"]}}, clients=1)
    one, other = {"digests": {"0": ["a"], "1": ["b"]}}, {"digests": {"1": ["b"], "2": ["c"]}}
    assert serving.same_pictures([one, other], one) == serving.same_pictures([one, other], other) == {1: ["b"]}


def test_the_tables_of_the_server():
    def results(*rates, latencies=()):
        return [{"rate": rate, "latencies": list(latencies)} for rate in rates]

    found = {(2, 1, 0): results(2.0, 4.0), (2, 1, 1): results(1.0, 4.0, latencies=[9.0, 3.0, 1.0, 2.0])}
    assert serving.throughput_table(found, cpus=2)[2:] == ["| bare detector | 2 × 1 |  | 3 | 5400 | 1.00 |  |  |",
                                                           "| server | 2 × 1 | 1 | 2.5 | 4500 | 0.75 | 2 | 3 |"]
    megabytes = {n: (serving.Memory(50 * 10**6, 40 * 10**6), n * [serving.Memory((30 + 70 // n) * 10**6, 30 * 10**6)])
                 for n in (1, 2)}
    assert serving.memory_table(megabytes)[2:] == ["| 1 | 150 |  | 30 | 40 |", "| 2 | 180 | 30 | 30 | 40 |"]
    times = {"start": [1.0], "first answer": [3.0], "new picture": [2.0], "same picture, new prompt": [0.5]}
    assert serving.single_table(times)[2] == "| 1 | 3 | 2 | 0.5 | 0.25 |"


def test_memory_is_measured_until_the_clients_have_ended(monkeypatch):
    """Their output is longer than a pipe holds."""
    server = serving.Server(argparse.Namespace(pid=os.getpid()), 0, 0.0)
    monkeypatch.setattr(serving.Server, "pids", lambda _: [os.getpid()])
    monkeypatch.setattr(serving, "served", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(serving, "SAMPLE", 0.05)
    code = "import json, time; time.sleep(0.2); print(json.dumps({'latencies': 50_000 * [0.5]}))"
    monkeypatch.setattr(serving, "drive", lambda *_: subprocess.Popen([sys.executable, "-c", code], text=True,
                                                                      stdout=subprocess.PIPE))
    where = case.Case(Path(), Path(), Path())
    found = serving.endure(where, argparse.Namespace(threads=1, clients=[1], text=""))
    assert len(found["latencies"]) == 50_000
    assert len(found["samples"]) > 1
    assert min(min(sizes) for _, sizes in found["samples"]) > 0
    assert not found["replaced"]


@pytest.mark.parametrize(("totals", "expected"), [(range(8), 4.0), ([9, 9] + 6 * [5], 0.0), ([5], 0.0)])
def test_growth_is_between_the_second_and_the_last_quarter(totals, expected):
    before, after = serving.growth([(0.0, [total // 2, total - total // 2]) for total in totals])
    assert after - before == expected


def test_listing_and_merging_are_measured():
    pytest.importorskip("pyarrow")
    run = subprocess.run([sys.executable, "-m", "benchmarks.listing", "--images", "500", "--shards", "3"], cwd=ROOT,
                         check=True, capture_output=True, text=True)
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in run.stdout.splitlines()[4:])}
    assert [rows[f"list {kind}"][-1] for kind in listing.FORMATS] == 3 * ["500"]
    assert len({rows[f"list {kind}, shard 1/3"][-1] for kind in listing.FORMATS} - {"500"}) == 1  # the same images
    assert {"merge, jsonl", "merge, parquet"} <= rows.keys()
    assert all(float(row[0]) > 0 for row in rows.values())

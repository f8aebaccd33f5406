"""One number of threads, for our loops and for BLAS."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from minigdino._ext import threads
from minigdino._ext.quota import grants

import minigdino
from minigdino.runtime import kernels
from minigdino.runtime.memory import reused


def test_rows_are_covered_once_whatever_the_number_of_threads():
    try:
        for n_threads in (1, 2, 3):
            threads.limit(n_threads)
            for n in (0, 1, 5, 100):
                times = np.zeros(n, int)

                def visit(first, last, times=times):
                    times[first:last] += 1

                threads.for_rows(visit, n)
                assert (times == 1).all()
    finally:
        threads.limit(None)


def test_an_error_in_a_loop_comes_out():
    def fail(first, last):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        threads.for_rows(fail, 100)


def test_a_loop_within_a_loop_runs_where_it_was_asked_for():
    inner = []

    def visit(first, last):
        here = threading.get_ident()
        threads.for_rows(lambda *rows: inner.append((rows, threads.count(), threading.get_ident() == here)), 100)

    try:
        threads.limit(2)
        threads.for_rows(visit, 8)
        assert set(inner) == {((0, 100), 1, True)}
        assert threads.count() == 2  # and so again outside
        with pytest.raises(ZeroDivisionError):
            threads.for_rows(lambda first, last: 1 / 0, 8)
        assert threads.count() == 2
    finally:
        threads.limit(None)


def test_what_holds_for_the_caller_holds_for_its_helpers():
    """Two parts that wait for each other, so that it takes two threads."""
    meet, modes = threading.Barrier(2, timeout=30), []

    def visit(first, last):
        meet.wait()
        modes.append((kernels.mode(), np._core.multiarray.get_handler_name()))

    try:
        threads.limit(2)
        with minigdino.use("reference"), reused():
            threads.for_rows(visit, 2)
        assert modes == [("reference", "minigdino")] * 2
    finally:
        threads.limit(None)


def test_set_threads_reaches_both_pools():
    code = (
        "import minigdino, threadpoolctl; print(minigdino.info()['threads'], "
        "*{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIGDINO_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["1", "1"]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIGDINO_THREADS": "two"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "MINIGDINO_THREADS must be a number of threads; 'two' is ignored" in run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_a_number_of_threads_is_a_positive_int(bad):
    with pytest.raises(minigdino.ArgumentError, match="positive int"):
        minigdino.set_threads(bad)


def in_fresh_process(code, **env):
    """What a new interpreter prints."""
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("MINIGDINO", "OPENBLAS"))}, **env}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="asks for one processor")
def test_the_default_obeys_affinity():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import minigdino, threadpoolctl; "
        "print(minigdino.info()['threads'], *{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    assert in_fresh_process(code).split() == ["1", "1"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a quota of one processor binds only beside a second")
def test_a_quota_reaches_both_pools():
    code = (
        "from minigdino._ext import quota, threads; threads.quota = lambda: 1; import minigdino, threadpoolctl; "
        "minigdino.runtime.threads.follow_environment(); "
        "print(minigdino.info()['threads'], *{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    assert in_fresh_process(code).split() == ["1", "1"]


def test_quotas_are_read_as_both_versions_write_them(tmp_path):
    member = tmp_path / "cgroup"

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def read(text):
        member.write_text(text)
        return sorted(grants(tmp_path / "fs", member))

    write("fs/cpu.max", "max 100000\n")
    write("fs/a/cpu.max", "150000 100000\n")
    write("fs/a/b/cpu.max", "400000 100000\n")
    assert read("0::/a/b\n") == [1.5, 4.0]
    assert read("0::/\n") == []
    assert read("0::/not/here\n") == []
    write("fs/cpu,cpuacct/c/cpu.cfs_quota_us", "50000\n")
    write("fs/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n")
    write("fs/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write("fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert read("5:memory:/c\n4:cpu,cpuacct:/c\n") == [0.5]
    assert list(grants(tmp_path, tmp_path / "no such file")) == []


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        # so a product after a loop runs at full rate: whoever spins takes its processor from BLAS
        ("from minigdino.network.ops import gelu; gelu(np.ones((4000, 512), np.float32))", 0.05),
        # so a loop after a product has both processors: by default OpenBLAS's threads spin for tens of milliseconds
        ("a = np.ones((800, 800), np.float32); a @ a", 0.02),
    ],
    ids=["loop", "product"],
)
def test_idle_threads_use_no_processor(work, seconds):
    code = f"""
import minigdino, time, numpy as np
{work}
used = time.process_time()
time.sleep(0.3)
print(time.process_time() - used)
"""
    assert float(in_fresh_process(code)) < seconds


def test_many_detecting_threads_share_one_pool():
    code = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import tiny, minigdino, threadpoolctl
minigdino.set_threads(2)
model = tiny.model()
detectors = [threading.Thread(target=lambda: model.forward(tiny.pixels(90, 120), tiny.IDS)) for _ in range(6)]
for d in detectors: d.start()
for d in detectors: d.join()
ours = [t.name for t in threading.enumerate() if t.name.startswith("minigdino")]
print(len(ours), *{p["num_threads"] for p in threadpoolctl.threadpool_info()})
"""
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["1", "2"]  # the caller is the second thread of a loop


def test_loops_of_several_threads_take_turns():
    """Each uses every processor by itself."""
    inside, most = [0], [0]

    def visit(first, last):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)
        inside[0] -= 1

    try:
        threads.limit(2)
        callers = [threading.Thread(target=threads.for_rows, args=(visit, 100)) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert most[0] <= 2
    finally:
        threads.limit(None)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread needs no such arrangement")
def test_in_a_loop_of_products_each_belongs_to_the_thread_that_asks():
    code = """
import minigdino, threadpoolctl
from minigdino._ext import threads
minigdino.set_threads(2)
def blas(): return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}
seen = []
threads.for_rows(lambda first, last: seen.append(blas()), 8, products=True)
try:
    threads.for_rows(lambda first, last: 1 / 0, 8, products=True)
except ZeroDivisionError:
    print(all(s == {1} for s in seen), blas() == {2})
"""
    assert in_fresh_process(code).split() == ["True", "True"]

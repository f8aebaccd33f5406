"""The number of threads of compiled loops and BLAS."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from minigdino._ext import pool
from minigdino._ext.quota import grants

import minigdino
from minigdino.runtime import kernels
from minigdino.runtime.memory import reused


def test_each_row_is_visited_once_with_any_number_of_threads():
    try:
        for n_threads in (1, 2, 3):
            pool.limit(n_threads)
            for n in (0, 1, 5, 100):
                times = np.zeros(n, int)

                def visit(first, last, times=times):
                    times[first:last] += 1

                pool.for_rows(visit, n)
                assert (times == 1).all()
    finally:
        pool.limit(None)


def test_an_exception_in_a_loop_is_raised_to_the_caller():
    def fail(first, last):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        pool.for_rows(fail, 100)


def test_a_nested_loop_runs_in_the_calling_thread():
    inner = []

    def visit(first, last):
        caller = threading.get_ident()
        pool.for_rows(lambda *rows: inner.append((rows, pool.count(), threading.get_ident() == caller)), 100)

    try:
        pool.limit(2)
        pool.for_rows(visit, 8)
        assert set(inner) == {((0, 100), 1, True)}
        assert pool.count() == 2  # restored outside the loop
        with pytest.raises(ZeroDivisionError):
            pool.for_rows(lambda first, last: 1 / 0, 8)
        assert pool.count() == 2
    finally:
        pool.limit(None)


def test_helper_threads_use_the_settings_of_the_caller():
    """The two parts wait for each other, so each runs in its own thread."""
    meet, modes = threading.Barrier(2, timeout=30), []

    def visit(first, last):
        meet.wait()
        modes.append((kernels.mode(), np._core.multiarray.get_handler_name()))

    try:
        pool.limit(2)
        with minigdino.use("reference"), reused():
            pool.for_rows(visit, 2)
        assert modes == [("reference", "minigdino")] * 2
    finally:
        pool.limit(None)


def test_the_environment_variable_limits_both_pools():
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
    assert "MINIGDINO_THREADS must be a positive number of threads; 'two' is ignored" in run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_invalid_numbers_of_threads_are_rejected(bad):
    with pytest.raises(minigdino.ArgumentError, match="positive int"):
        minigdino.set_threads(bad)


def in_fresh_process(code, **env):
    """Run code in a new interpreter and return its output."""
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("MINIGDINO", "OPENBLAS"))}, **env}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_the_default_follows_the_affinity():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import minigdino, threadpoolctl; "
        "print(minigdino.info()['threads'], *{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    assert in_fresh_process(code).split() == ["1", "1"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a quota of one processor has no effect on a machine with one")
def test_a_quota_limits_both_pools():
    code = (
        "from minigdino._ext import quota, pool; pool.quota = lambda: 1; import minigdino, threadpoolctl; "
        "minigdino.runtime.threads.follow_environment(); "
        "print(minigdino.info()['threads'], *{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    assert in_fresh_process(code).split() == ["1", "1"]


def test_quotas_of_both_cgroup_versions_are_read(tmp_path):
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
        # a thread that spins after a loop would take a processor from the matrix product that follows
        ("from minigdino.network.ops import gelu; gelu(np.ones((4000, 512), np.float32))", 0.05),
        # by default, OpenBLAS threads spin for tens of milliseconds after a product, which slows down the next loop
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
helpers = [t.name for t in threading.enumerate() if t.name.startswith("minigdino")]
print(len(helpers), *{p["num_threads"] for p in threadpoolctl.threadpool_info()})
"""
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["1", "2"]  # the calling thread is the second one


def test_loops_of_several_threads_run_one_at_a_time():
    """Each loop already uses all processors."""
    running, maximum = [0], [0]

    def visit(first, last):
        running[0] += 1
        maximum[0] = max(maximum[0], running[0])
        time.sleep(0.001)
        running[0] -= 1

    try:
        pool.limit(2)
        callers = [threading.Thread(target=pool.for_rows, args=(visit, 100)) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert maximum[0] <= 2
    finally:
        pool.limit(None)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_blas_uses_one_thread_inside_a_loop_of_products():
    code = """
import minigdino, threadpoolctl
from minigdino._ext import pool
minigdino.set_threads(2)
def blas(): return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}
seen = []
pool.for_rows(lambda first, last: seen.append(blas()), 8, products=True)
try:
    pool.for_rows(lambda first, last: 1 / 0, 8, products=True)
except ZeroDivisionError:
    print(all(s == {1} for s in seen), blas() == {2})
"""
    assert in_fresh_process(code).split() == ["True", "True"]

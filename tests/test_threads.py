"""The threads of the compiled loops: how many, what they share, and that nothing else in the process changes."""

import dis
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from minigdino._ext import cpus, pool
from minigdino._ext.quota import grants, quota

import minigdino
from minigdino.network.ops import feed_forward
from minigdino.runtime import kernels

linux = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    """Loops may start as many threads as a test sets, on every machine. Afterwards the number is the default again."""
    monkeypatch.setattr(cpus, "affinity", lambda: 64)
    yield
    cpus.limit(None)


def test_a_loop_starts_no_more_threads_than_there_are_processors(monkeypatch):
    monkeypatch.setattr(cpus, "affinity", lambda: 2)
    cpus.limit(8)
    threads, ranges = set(), []

    def visit(first, last):
        threads.add(threading.get_ident())
        ranges.append((first, last))
        time.sleep(0.002)

    pool.for_rows(visit, 100)
    assert len(threads) == 2
    assert len(ranges) == 16  # but the rows are divided for eight
    assert sorted(ranges)[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(sorted(ranges)))


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_each_row_is_visited_once(threads, n):
    cpus.limit(threads)
    times = np.zeros(n, int)

    def visit(first, last):
        times[first:last] += 1

    pool.for_rows(visit, n)
    assert (times == 1).all()


def test_an_exception_in_a_loop_is_raised_to_the_caller():
    def fail(first, last):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        pool.for_rows(fail, 100)


@pytest.mark.parametrize("threads", [2, 4, 8])
@pytest.mark.parametrize("fails_in", ["caller", "helper"])
def test_a_loop_that_fails_ends_only_when_all_its_threads_have_stopped(threads, fails_in):
    """The thread that fails does so at once. The others are in the middle of a range by then."""
    cpus.limit(threads)
    caller, everybody = threading.get_ident(), threading.Barrier(threads, timeout=30)
    running, started = set(), []

    def visit(first, last):
        me = threading.get_ident()
        started.append(first)
        running.add(me)
        if len(started) <= threads:
            everybody.wait()
        if (me == caller) == (fails_in == "caller"):
            running.discard(me)
            raise ZeroDivisionError
        time.sleep(0.05)
        running.discard(me)

    with pytest.raises(ZeroDivisionError):
        pool.for_rows(visit, 100 * threads)
    assert not running
    n = len(started)
    assert n < 4 * threads  # the other ranges are not processed
    time.sleep(0.1)
    assert len(started) == n
    pool.for_rows(lambda first, last: None, 100)  # and the pool still works


def test_a_nested_loop_runs_in_the_calling_thread():
    inner = []

    def visit(first, last):
        caller = threading.get_ident()
        pool.for_rows(lambda *rows: inner.append((rows, threading.get_ident() == caller)), 100)

    cpus.limit(4)
    pool.for_rows(visit, 8)
    assert set(inner) == {((0, 100), True)}
    with pytest.raises(ZeroDivisionError):
        pool.for_rows(lambda first, last: 1 / 0, 8)
    met = threading.Barrier(4, timeout=30)
    pool.for_rows(lambda first, last: met.wait(), 4)  # outside of a loop there are four threads again


def test_helper_threads_use_the_settings_of_the_caller():
    """The four parts wait for each other, so each runs in its own thread."""
    meet, modes = threading.Barrier(4, timeout=30), []

    def visit(first, last):
        meet.wait()
        modes.append(kernels.mode())

    cpus.limit(4)
    with minigdino.use("reference"):
        pool.for_rows(visit, 4)
    assert modes == ["reference"] * 4


def test_the_number_of_threads_may_change_while_a_loop_runs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 32), np.float32)
    fc1, fc2 = ({"weight": rng.standard_normal(shape, np.float32), "bias": rng.standard_normal(shape[0], np.float32)}
                for shape in ((300, 32), (32, 300)))
    expected, stop = feed_forward(x, fc1, fc2, "relu"), threading.Event()

    def change():
        while not stop.is_set():
            for n in (8, 1, 4, 2):
                minigdino.set_threads(n)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            np.testing.assert_array_equal(feed_forward(x, fc1, fc2, "relu"), expected)
    finally:
        stop.set()
        changing.join()


def passes(model):
    """The results of a forward pass, as bytes."""
    output = model.forward(tiny.pixels(90, 120), tiny.IDS)
    return output.logits.tobytes() + output.boxes.tobytes()


def in_threads(n, function):
    """Run a function in n threads at once, and return the results."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(function())) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_results_do_not_depend_on_the_threads():
    """To the last bit: for any number of threads, from any thread, and from eight threads at once."""
    model = tiny.model()
    expected = passes(model)
    for n in (1, 2, 3, 4, 8):
        minigdino.set_threads(n)
        assert passes(model) == expected, n
        assert in_threads(1, lambda: passes(model)) == [expected]
        assert set(in_threads(8, lambda: passes(model))) == {expected}


def test_passes_of_both_modes_at_once_do_not_affect_each_other():
    """NumPy's products run in the reference mode only. A fast pass does not change the number of their threads."""
    model = tiny.model()
    fast = passes(model)
    with minigdino.use("reference"):
        reference = passes(model)

    def one(i):
        with minigdino.use("reference" if i % 2 else "fast"):
            return {passes(model) for _ in range(5)} == {reference if i % 2 else fast}

    turns = iter(range(8))
    assert in_threads(8, lambda: one(next(turns))) == [True] * 8


def in_fresh_process(code, **env):
    """Run code in a new interpreter and return its output."""
    dropped = ("MINIGDINO", "OPENBLAS", "OMP")
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(dropped)}, **env}
    start = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    run = subprocess.run([sys.executable, "-c", start + code], env=env, check=True, capture_output=True, text=True,
                         timeout=120)
    return run.stdout + run.stderr


def test_the_environment_variable_limits_the_threads():
    code = "import minigdino; print(minigdino.info()['threads'])"
    assert in_fresh_process(code, MINIGDINO_THREADS="1") == "1\n"
    assert in_fresh_process(code, MINIGDINO_THREADS="7") == "7\n"
    output = in_fresh_process(code, MINIGDINO_THREADS="two")
    assert "MINIGDINO_THREADS must be a positive number of threads" in output
    assert "'two'" in output
    assert "at most 1024; '999999999999' is ignored" in in_fresh_process(code, MINIGDINO_THREADS="9" * 12)


@pytest.mark.parametrize(("value", "limits"), [("1", True), ("1,4", True), (" 1 ", True), ("0", False), ("", False),
                                               ("x", False), ("-1", False), ("100000", False), ("9" * 5000, False)])
def test_the_variable_of_openmp_is_respected(value, limits, monkeypatch):
    """Job schedulers and worker processes set it, so that the processes of a machine share its CPUs."""
    monkeypatch.setattr(cpus, "affinity", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    default = cpus.count()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cpus.count() == (1 if limits else default)
    minigdino.set_threads(3)
    assert cpus.count() == 3  # an explicit number takes precedence


def test_the_environment_and_blas_stay_as_they_are():
    """Neither an import nor a pass changes a variable, a signal handler or the threads of another library."""
    code = """
import os, signal, numpy, threadpoolctl
def state():
    libraries = {(p["filepath"], p["num_threads"]) for p in threadpoolctl.threadpool_info()}
    return dict(os.environ), libraries, [signal.getsignal(s) for s in signal.valid_signals()]
before = state()
import minigdino, tiny
minigdino.set_threads(2)
seen = []
from minigdino._ext import pool
pool.for_rows(lambda first, last: seen.append(state()), 8)
tiny.model().forward(tiny.pixels(90, 120), tiny.IDS)
minigdino.set_threads(1)
print(state() == before, all(s == before for s in seen))
"""
    assert in_fresh_process(code).split() == ["True", "True"]


def test_a_pass_calls_no_product_of_numpy():
    """So it runs no thread of BLAS, and needs no version of BLAS that is correct in several threads."""
    executed = set()

    def profile(frame, event, _):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("minigdino."):
            executed.add(frame.f_code)

    model = tiny.model()
    sys.setprofile(profile)
    try:
        model.forward(tiny.pixels(90, 120), tiny.IDS)
    finally:
        sys.setprofile(None)
    assert "fusion_layer" in {code.co_name for code in executed}
    for code in executed:
        instructions = list(dis.get_instructions(code))
        assert not [i for i in instructions if i.opname == "BINARY_OP" and i.argrepr in ("@", "@=")], code
        assert not {"dot", "einsum", "tensordot", "inner", "vdot", "linalg"} & set(code.co_names), code
    for source in Path(pool.__file__).parent.glob("*.pyx"):
        code = re.sub(r'""".*?"""', "", source.read_text(), flags=re.DOTALL)
        code = re.sub(r"#.*", "", code)
        assert not re.findall(r".* @ .*|.*np\.(?:matmul|dot).*", code), source


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None, 1025, 10**30])
def test_invalid_numbers_of_threads_are_rejected(bad):
    with pytest.raises(minigdino.ArgumentError, match="positive int"):
        minigdino.set_threads(bad)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_the_default_follows_the_affinity():
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import minigdino; "
            "print(minigdino.info()['threads'])")
    assert in_fresh_process(code) == "1\n"


def test_the_default_follows_the_quota(monkeypatch):
    monkeypatch.setattr(cpus, "quota", lambda: 1)
    assert cpus.count() == 1


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


def test_malformed_cgroup_files_mean_no_quota(tmp_path):
    """Names of groups may be in any encoding, and no line may stop the import."""
    member, folder = tmp_path / "cgroup", tmp_path / "fs" / "größe"
    folder.mkdir(parents=True)
    for text in (b"", b"\n", b"0", b"0:", b"0::", b"::::", b"0::/\xff\xfe", b"0::/\0", b"\xff" * 100, b"0::/../..\n"):
        member.write_bytes(text)
        assert list(grants(tmp_path / "fs", member)) == []
    member.write_text("0::/größe\n", encoding="utf-8")
    for limit in (b"", b"1", b"1 2 3", b"x y", b"100 0", b"-1 100000", b"\xff 1", b"1e3 10", b"0 100"):
        (folder / "cpu.max").write_bytes(limit)
        assert list(grants(tmp_path / "fs", member)) == []
    (folder / "cpu.max").write_bytes(b"50000 100000")
    assert list(grants(tmp_path / "fs", member)) == [0.5]
    assert quota() >= 1


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        # a thread that spins after a loop would take a processor from the rest of the program
        ("from minigdino.network.ops import gelu; gelu(np.ones((4000, 512), np.float32))", 0.05),
        ("from minigdino.network.ops import linear; a = np.ones((800, 800), np.float32); linear(a, a)", 0.05),
    ],
    ids=["loop", "product"],
)
def test_idle_threads_use_no_processor(work, seconds):
    code = f"""
import numpy as np
import minigdino, time
{work}
used = time.process_time()
time.sleep(0.3)
print(time.process_time() - used)
"""
    assert float(in_fresh_process(code)) < seconds


@linux
def test_many_detecting_threads_share_one_pool():
    code = """
import os, threading, time, numpy
before = len(os.listdir("/proc/self/task"))
import tiny, minigdino
from minigdino._ext import cpus
cpus.affinity = lambda: 3
minigdino.set_threads(3)
model = tiny.model()
detectors = [threading.Thread(target=lambda: model.forward(tiny.pixels(90, 120), tiny.IDS)) for _ in range(6)]
for d in detectors: d.start()
for d in detectors: d.join()
for _ in range(100):  # a joined thread may exist for a moment longer
    if (n := len(os.listdir("/proc/self/task")) - before) <= 2: break
    time.sleep(0.05)
print(n)
"""
    assert in_fresh_process(code) == "2\n"  # the calling thread is the third one


def test_loops_of_several_threads_run_one_at_a_time():
    """Each loop already uses all processors."""
    running, maximum = [0], [0]

    def visit(first, last):
        running[0] += 1
        maximum[0] = max(maximum[0], running[0])
        time.sleep(0.001)
        running[0] -= 1

    cpus.limit(2)
    in_threads(5, lambda: pool.for_rows(visit, 100))
    assert maximum[0] <= 2


def test_a_loop_runs_where_no_thread_can_be_started():
    """At a limit of the system: here there is no memory for the stack of a thread."""
    pytest.importorskip("resource")
    code = """
import resource, threading, numpy as np
import minigdino
from minigdino._ext import pool
from minigdino.network.ops import gelu
x = np.ones((4000, 512), np.float32)
minigdino.set_threads(1)
gelu(x)
minigdino.set_threads(8)
threading.stack_size(2**40)
resource.setrlimit(resource.RLIMIT_AS, (2**38, 2**38))
idents = set()
pool.for_rows(lambda first, last: idents.add(threading.get_ident()), 100)
print(gelu(x).shape, len(idents))
"""
    assert in_fresh_process(code) == "(4000, 512) 1\n"


def test_libraries_that_replace_threads_do_not_stop_a_loop():
    """gevent and eventlet start a coroutine instead of a thread. It could not run while a loop waits for it."""
    code = """
import _thread
_thread.start_new_thread = lambda *args, **more: 1
import numpy as np, minigdino
from minigdino.network.ops import gelu
minigdino.set_threads(4)
print(gelu(np.ones((4000, 512), np.float32)).shape)
"""
    assert in_fresh_process(code) == "(4000, 512)\n"


def test_a_loop_runs_while_the_interpreter_ends():
    """Helper threads cannot run any more by then."""
    code = """
import atexit, numpy as np, minigdino
from minigdino.network.ops import gelu
minigdino.set_threads(4)
x, write = np.ones((4000, 512), np.float32), print
class Last:
    def __del__(self): write(gelu(x).shape)
gelu(x)
last = Last()
atexit.register(lambda: write(gelu(x).shape))
"""
    assert in_fresh_process(code) == "(4000, 512)\n" * 2


def test_a_destructor_that_runs_a_loop_may_run_inside_one():
    """The garbage collector may run it anywhere, also while the lock of the loops is held."""
    code = """
import gc, threading, numpy as np, minigdino
from minigdino._ext.pool import for_rows
minigdino.set_threads(2)
gc.set_threshold(5)
done = []
class Cycle:
    def __init__(self): self.me = self
    def __del__(self):
        for_rows(lambda first, last: None, 8)
        done.append(1)
def work():
    for i in range(300):
        Cycle()
        for_rows(lambda first, last: [[] for _ in range(20)], 8)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done) > 100)
"""
    assert in_fresh_process(code) == "True\n"

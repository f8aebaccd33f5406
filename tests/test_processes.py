"""Forks, worker processes and interrupts: a child works at full speed, and an exception arrives without a deadlock.

Every test runs the code of a user in a new interpreter, because a fault would stop the tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")

START = f"""
import os, signal, sys, threading, time, warnings
sys.path.insert(0, {os.path.dirname(__file__)!r})
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*")  # the warning of Python 3.12 and later
import numpy as np, tiny, minigdino
from minigdino._ext import cpus
cpus.affinity = lambda: 3  # three threads, also on two processors
minigdino.set_threads(3)
model, pixels = tiny.model(), tiny.pixels(90, 120)
def one_pass():
    return model.forward(pixels, tiny.IDS).boxes.tobytes()
def n_threads():
    return len(os.listdir("/proc/self/task"))
def in_child(function, *more):
    "Run a function in a forked child, which must return True within a minute"
    if (child := os.fork()) == 0:
        signal.alarm(60)  # ends the child
        os._exit(0 if function(*more) is True else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
expected = one_pass()
"""


def run(code):
    """Run code after START in a new interpreter, and return its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MINIGDINO", "OMP"))}
    done = subprocess.run([sys.executable, "-c", START + code], env=env, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_a_child_forked_while_other_threads_compute_works_at_full_speed():
    """At thirty moments of other threads' passes: in a loop, between two loops, while waiting for a turn."""
    assert run("""
stop = threading.Event()
def compute():
    while not stop.is_set(): one_pass()
threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads: thread.start()
def check():
    return one_pass() == expected and one_pass() == expected and n_threads() == 3  # itself and two helpers of its own
failed = 0
for i in range(30):
    time.sleep(0.0007 * i)
    failed += in_child(check) != 0
stop.set()
for thread in threads: thread.join()
print(failed, one_pass() == expected)
""").split() == ["0", "True"]


@linux
def test_a_child_forked_inside_a_loop_finishes_the_loop():
    """The helpers of the parent do not exist in the child."""
    assert run("""
from minigdino._ext import pool
main, done = threading.get_ident(), np.zeros(60)
children = []
def fill(first, last):
    if threading.get_ident() == main and not children:
        children.append(os.fork())
        if children == [0]: signal.alarm(60)
    else:
        time.sleep(0.01)
    done[first:last] = 1
pool.for_rows(fill, 60)
complete = bool(done.all()) and one_pass() == expected and n_threads() == 3
if children == [0]: os._exit(0 if complete else 1)
print(complete, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
""").split() == ["True", "0"]


@linux
@pytest.mark.parametrize("moment", ["helpers are working", "helpers are starting"])
def test_a_child_forked_inside_a_loop_that_works_in_place_changes_each_row_once(moment):
    """At the fork, a helper can be in the middle of its rows. A child that repeated them would add 1 twice."""
    assert run(f"""
from minigdino._ext import cpus, pool
main, sums, children = threading.get_ident(), np.zeros(60), []
def fork():
    if not children:
        children.append(os.fork())
        if children == [0]: signal.alarm(60)
def affinity(real=cpus.affinity):
    {moment == "helpers are starting"} and fork()
    return real()
cpus.affinity = affinity
def add(first, last):
    middle = (first + last) // 2
    sums[first:middle] += 1
    time.sleep(0.05)
    if threading.get_ident() == main:
        time.sleep(0.02)  # now the helper is in the middle of its second range
        fork()
    sums[middle:last] += 1
pool.for_rows(add, 60)
complete = bool((sums == 1).all()) and one_pass() == expected and n_threads() == 3
if children == [0]: os._exit(0 if complete else 1)
print(complete, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
""").split() == ["True", "0"]


def test_a_child_forked_in_a_signal_handler_in_a_pass_finishes_the_pass():
    assert run("""
children = []
def handler(*_):
    children.append(os.fork())
    if children[-1] == 0: signal.alarm(60); signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, handler)
parent, statuses = os.getpid(), []
for i in range(20):
    timer = threading.Timer(0.001 * i, os.kill, (parent, signal.SIGUSR1))
    timer.start()
    same = one_pass() == expected
    if 0 in children: os._exit(0 if same else 1)
    timer.join()
    time.sleep(0.005)
    if 0 in children: os._exit(0)  # forked after the pass
    statuses += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] + [int(not same)]
    children.clear()
print(sum(statuses), len(statuses))
""").split() == ["0", "40"]


@linux
def test_workers_of_a_server_that_forks_after_loading_work_at_full_speed():
    """As gunicorn does with a preloaded application."""
    assert run("""
def serve():
    results = [one_pass() for _ in range(3)]
    threads = [threading.Thread(target=lambda: results.append(one_pass())) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return results == [expected] * 7
workers = []
for _ in range(4):
    if (pid := os.fork()) == 0:
        signal.alarm(60)
        os._exit(0 if serve() and in_child(serve) == 0 else 1)  # a worker may fork again
    workers.append(pid)
print(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers), one_pass() == expected)
""").split() == ["0", "True"]


# For a script, because worker processes import it: `one` is their task, and the rest runs in the main process only.
WORKER = f"""sys.path.insert(0, {os.path.dirname(__file__)!r})
import tiny

def one(i):
    return tiny.model().forward(tiny.pixels(90, 120), tiny.IDS).boxes.tobytes()

if __name__ == "__main__":
    expected = one(0)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_process_pools_give_the_same_results(method, tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(f"""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
{WORKER}    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
        print(set(pool.map(one, range(6))) == {{expected}})
""")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=120,
                          check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_workers_of_joblib_give_the_same_results(tmp_path):
    pytest.importorskip("joblib")
    script = tmp_path / "workers.py"
    script.write_text(f"""
import sys
import joblib
{WORKER}    print(*(set(joblib.Parallel(2, prefer=kind)(joblib.delayed(one)(i) for i in range(6))) == {{expected}}
            for kind in ("processes", "threads")))
""")
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=120,
                          env=env, check=False)
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


@pytest.mark.parametrize("error", ["TimeoutError", "KeyboardInterrupt"])
def test_an_exception_of_a_signal_handler_ends_the_pass_and_nothing_else(error):
    """As the timeouts of job queues do, and Ctrl-C in a notebook: two hundred times, at any moment of a pass."""
    assert run(f"""
class Stop({error}): pass
raising = False
def handler(*_):
    if raising: raise Stop
signal.signal(signal.SIGALRM, handler)
stopped = 0
rng = np.random.default_rng(0)
deadline = time.monotonic() + 60
while stopped < 200 and time.monotonic() < deadline:
    try:
        raising = True
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0002, 0.02))
        while True: one_pass()
    except Stop:
        raising = False
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    if stopped % 20 == 0:
        assert one_pass() == expected
print(stopped >= 20, one_pass() == expected)
""").split() == ["True", "True"]


def test_an_interrupt_while_other_threads_wait_for_the_loop_stops_none_of_them():
    assert run("""
class Stop(Exception): pass
def handler(*_): raise Stop
results, stop = [], threading.Event()
def compute():
    while not stop.is_set(): results.append(one_pass() == expected)
threads = [threading.Thread(target=compute) for _ in range(2)]
for thread in threads: thread.start()
signal.signal(signal.SIGALRM, handler)
for i in range(50):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0005 * i)
        while True: one_pass()
    except Stop:
        pass
stop.set()
for thread in threads: thread.join(60)
print(all(results), len(results) > 0, any(thread.is_alive() for thread in threads))
""").split() == ["True", "True", "False"]


def test_a_handler_may_detect_while_it_interrupts_a_detection():
    assert run("""
photo = tiny.photo(30, 40)
expected = model.detect(photo, "a cat.", threshold=0.1).scores.tobytes()
results = []
def handler(*_): results.append(model.detect(photo, "a cat.", threshold=0.1).scores.tobytes() == expected)
signal.signal(signal.SIGALRM, handler)
end = time.monotonic() + 60
while len(results) <= 20 and time.monotonic() < end:
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    for i in range(5): model.detect(photo, "a dog.", threshold=0.1)
signal.setitimer(signal.ITIMER_REAL, 0)
print(all(results), len(results) > 20)
""").split() == ["True", "True"]


@pytest.mark.parametrize("delay", [0.0005, 0.001, 0.002, 0.005])
def test_a_child_forked_during_the_first_pass_of_another_thread_works(delay):
    """The kernels are imported then. A fork waits until an import has ended."""
    code = START.replace("expected = one_pass()", f"""
thread = threading.Thread(target=one_pass)
thread.start()
time.sleep({delay})
status = in_child(lambda: len(one_pass()) > 0)
thread.join()
print(status)
""")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MINIGDINO", "OMP"))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120,
                          check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr

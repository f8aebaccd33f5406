"""Worker processes of a run: replacement, poison images, errors, and their end. They load no model."""

import multiprocessing
import os
import random
import signal
import sys
import warnings

import pytest
from acting import Acting

from minigdino import ArgumentError, CheckpointError, Error
from minigdino.runs import workers as module
from minigdino.runs.items import MAX_URI, Item
from minigdino.runs.workers import AHEAD, MAX_STARTS, Workers

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")]


@pytest.fixture(autouse=True)
def unchanged():
    """Workers leave no process, signal handler, mask or environment variable behind."""
    def state():
        return ([signal.getsignal(number) for number in signal.valid_signals()],
                signal.pthread_sigmask(signal.SIG_BLOCK, ()), multiprocessing.active_children(), warnings.filters[:])

    def environment():
        return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}

    before, variables = state(), environment()
    yield
    assert state() == before
    assert environment() == variables


def detected(tmp_path, names, count=2, start="ready"):
    """Run workers over images of some names. Returns {name: line}, and what was logged."""
    items = [Item(i, name) for i, name in enumerate(names)]
    logged = []
    with Workers(Acting(os.fsencode(tmp_path), "", start, {}, 1), count, logged.append) as running:
        lines = list(running.detect_each(items))
    assert len(lines) == len(items)
    found = {line["image"]: line for line in lines}
    assert {(line["id"], name) for name, line in found.items()} == {(item.id, item.uri) for item in items}
    return found, logged


def test_each_image_is_processed_once(tmp_path):
    names = [*(f"meet-{i}" for i in range(AHEAD + 1)), *(f"ok-{i}" for i in range(200))]  # one worker gets AHEAD images
    found, logged = detected(tmp_path, names, count=3)
    assert len({line["pid"] for line in found.values()}) > 1
    assert os.getpid() not in {line["pid"] for line in found.values()}
    assert all(line["ignores Ctrl-C"] for line in found.values())
    assert not logged


def test_the_longest_names_fill_no_buffer(tmp_path):
    """The parent would wait for a worker that waits for the parent, which has its line and no room for it."""
    names = [f"ok-{i}-".ljust(MAX_URI, "\U0001f995") for i in range(20)]  # 12 bytes each in JSON
    assert detected(tmp_path, names)[0].keys() == set(names)


def test_whatever_workers_do_each_image_has_one_line(tmp_path):
    """An image that ends one worker is tried again. One that ends two is an error. Those after it are not affected."""
    names = [f"{name}-{i}" for i, name in enumerate(["ok"] * 20 + ["die"] * 2 + ["once"] * 3 + ["exit", "memory"])]
    random.Random(0).shuffle(names)
    found, logged = detected(tmp_path, names)
    failed = {name: line["error"] for name, line in found.items() if "error" in line}
    how = {"die": "SIGKILL", "exit": "exit status 3", "memory": "exit status 1"}
    assert failed.keys() == {name for name in names if name.partition("-")[0] in how}
    for name, message in failed.items():
        assert message == (f"{name}: two workers have ended while they processed it, the last one by "
                           f"{how[name.partition('-')[0]]}. Use fewer --workers if memory is short, or leave the image "
                           "out")
    assert len(logged) == len([name for name in names if not name.startswith("ok")])
    assert all(line.endswith("is tried again") for line in logged)


def test_a_worker_without_memory_says_so(tmp_path, capfd):
    detected(tmp_path, ["memory-0"])
    assert capfd.readouterr().err == ("minigdino: a worker has too little memory. Use fewer --workers, or a smaller "
                                      "--size\n") * 2


def test_an_error_that_is_not_of_an_image_ends_the_run(tmp_path):
    with pytest.raises(Error, match="^expected another argument$"):
        detected(tmp_path, ["ok-0", "stop-1", *(f"slow-{i}" for i in range(9))])


def test_an_error_of_the_list_of_images_ends_the_run(tmp_path):
    def items():
        yield Item(1, "ok-1")
        yield Item(2, "slow-2")
        raise ArgumentError("row 3 is invalid")

    running = Workers(Acting(os.fsencode(tmp_path), "", "ready", {}, 1), 2, print)
    with running, pytest.raises(ArgumentError, match="row 3 is invalid"):
        list(running.detect_each(items()))


@pytest.mark.parametrize(("start", "message"), [
    ("refuse", "^no model$"), ("die", f"expected workers that load the model; {MAX_STARTS} in a row have ended before, "
                                      "the last one by SIGKILL. Check that there is enough memory for each worker")])
def test_workers_that_cannot_start_end_the_run(tmp_path, start, message):
    with pytest.raises(Error, match=message):
        detected(tmp_path, ["ok-1"], start=start)


def test_a_process_that_the_system_refuses_is_an_error(tmp_path, monkeypatch):
    started = []

    def start(self):
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(self)
        original(self)

    original = module.SPAWN.Process.start
    monkeypatch.setattr(module.SPAWN.Process, "start", start)
    with pytest.raises(CheckpointError, match="the system refused .Resource temporarily unavailable.. Use fewer"):
        detected(tmp_path, ["ok-1"])


def test_busy_workers_end_at_once_with_the_context(tmp_path):
    with Workers(Acting(os.fsencode(tmp_path), "", "ready", {}, 1), 2, print) as running:
        lines = running.detect_each([Item(0, "ok-0"), *(Item(i, f"slow-{i}") for i in range(1, 9))])
        assert next(lines)["image"] == "ok-0"


def test_no_images_need_no_answer(tmp_path):
    assert detected(tmp_path, []) == ({}, [])

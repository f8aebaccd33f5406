"""Exceptions of signal handlers, such as timeouts, reach the caller unchanged, whatever they interrupt."""

import contextlib
import ctypes
import functools
import io
import json
import os
import signal
import tempfile
import threading
import types

import numpy as np
import pytest
import safetensors
import tiny
from minigdino._ext import instruction_sets
from PIL import Image

import minigdino
from minigdino import ArgumentError, CheckpointError, ImageError, console, datasets, files, outputs, writing
from minigdino.evaluation.candidates import Candidates, as_arrays
from minigdino.evaluation.ground_truth import read_ground_truth
from minigdino.image import open_image
from minigdino.learning import state
from minigdino.learning.features import FeatureStore
from minigdino.progress import Progress
from minigdino.runtime import kernels

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")

TYPES = (TimeoutError, OSError, ValueError, RuntimeError, KeyError)  # each is also raised by libraries


def plain(error):
    def handler(signum, frame):
        raise error

    return handler


def of_any_arguments(error):
    def handler(*_):
        raise error

    return handler


def without_arguments(error):
    def handler(signum, frame):
        del signum, frame
        raise error

    return handler


def partial(error):
    def handler(number, signum, frame):
        raise error

    return functools.partial(handler, 1)


def decorated(error):
    handler = plain(error)

    @functools.wraps(handler)
    def wrapper(*args):
        return handler(*args)

    return wrapper


def called_once(error):
    def handler(signum, frame):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        raise error

    return handler


def with_call(error):
    class Handler:
        def __call__(self, signum, frame):
            self.fail()

        def fail(self):
            raise error

    return Handler()


def bound(error):
    return with_call(error).__call__


HANDLERS = [plain, of_any_arguments, without_arguments, partial, decorated, called_once, with_call, bound]


@pytest.fixture
def interrupt(monkeypatch):
    """A function that lets calls of `owner.name` run a signal handler instead."""

    def place(owner, name, handler):
        signal.signal(signal.SIGALRM, handler)
        monkeypatch.setattr(owner, name, lambda *_, **__: signal.raise_signal(signal.SIGALRM))

    before = signal.getsignal(signal.SIGALRM)
    yield place
    monkeypatch.undo()
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A saved model."""
    path = tmp_path_factory.mktemp("model")
    tiny.model().save(path)
    return path


def write_line(directory):
    with files.JsonLines(directory / "found.jsonl", resume=True) as lines:
        lines.write({"image": "a"})


def leave_part(directory):
    part = directory / "run" / "training" / ".0123.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    state.open_folder(directory / "run", {}, resume=True)


def read_features(directory):
    store = FeatureStore(directory / "features", 1)
    for _ in range(2):  # the second call finds what the first one has written, if a handler does not interrupt it
        store.get(tiny.pixels(4, 4), lambda pixels: [pixels])


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


TERMINAL = Terminal()


def complain(_):
    with contextlib.redirect_stderr(TERMINAL):
        console.complain("x")


CALLS = {  # name: (what the signal interrupts, a call of minigdino)
    "decode": (Image, "open", lambda _: open_image(io.BytesIO(b"x"))),
    "load": (safetensors, "safe_open", minigdino.load),
    "config": (json, "loads", minigdino.load),
    "save": (os, "replace", lambda directory: minigdino.load(directory).save(directory)),
    "lines": (os, "fsync", write_line),
    "lock": (files.fcntl, "flock", write_line),
    "message": (TERMINAL, "flush", complain),
    "progress": (TERMINAL, "flush", lambda _: Progress(TERMINAL, 1).clear()),
    "drawn": (Image, "open", lambda directory: writing.is_drawn(directory / "config.json")),
    "mark": (writing, "open_regular", lambda directory: datasets.is_coco(directory / "config.json")),
    "same": (os.path, "realpath", lambda directory: outputs.check_paths([("an image", directory / "void")], [])),
    "collect": (tempfile.SpooledTemporaryFile, "write", lambda _: datasets.Csv()),
    "run": (os, "listdir", lambda directory: state.open_folder(directory, {}, resume=True)),
    "parts": (os, "unlink", leave_part),
    "features": (np, "load", read_features),
    "write": (os, "fsync", lambda directory: writing.replace_file(directory / "found.json", b"{}")),
    "phrases": (files, "read_text", lambda directory: files.read_phrases(directory / "config.json")),
    "annotations": (json, "loads", lambda directory: read_ground_truth(directory / "config.json")),
    "candidates": (np, "asarray", lambda _: as_arrays(Candidates([], [], []), "image id 1")),
    "array": (np, "asarray", lambda directory: minigdino.load(directory).forward(np.zeros((3, 64, 64)), [1]))}


@pytest.mark.parametrize(("make", "call", "kind"), [
    *((make, "decode", TimeoutError) for make in HANDLERS),
    *((plain, call, kind) for call in CALLS for kind in TYPES)])
def test_the_exception_of_a_handler_is_not_converted(interrupt, directory, make, call, kind):
    owner, name, run = CALLS[call]
    error = kind("the job took too long")
    interrupt(owner, name, make(error))
    with pytest.raises(kind) as raised:
        run(directory)
    assert raised.value is error


@pytest.mark.parametrize("make", HANDLERS)
def test_an_error_while_the_program_handles_a_timeout_is_minigdinos_own(directory, make):
    before = signal.signal(signal.SIGALRM, make(TimeoutError("late")))
    try:
        signal.raise_signal(signal.SIGALRM)
    except TimeoutError:
        with pytest.raises(ImageError, match="no such file"):
            open_image("missing.png")
        with pytest.raises(CheckpointError):
            minigdino.load(directory / "missing")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_error_while_an_exception_without_a_traceback_is_handled():
    try:
        raise ValueError
    except ValueError as error:
        error.__traceback__ = None  # avoids a cycle of references
        with pytest.raises(ImageError, match="no such file"):
            open_image("missing.png")


@pytest.mark.parametrize("replaced", [5, np.zeros(5), None])
def test_arguments_that_a_function_has_replaced_are_not_read(replaced):
    class Lazy:
        def __array__(self, *args, **_):
            args = replaced  # noqa: F841
            raise KeyError("cannot be loaded")

    with pytest.raises(ArgumentError, match="must be an array on the host"):
        tiny.model().forward(Lazy(), [101, 102])


def test_the_exception_of_another_thread_is_no_fault_of_the_image(monkeypatch):
    class JobTimeout(Exception):
        pass

    def slow(*_, **__):
        thread = ctypes.c_ulong(threading.get_ident())
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(JobTimeout))
        for _ in range(1000):
            pass

    monkeypatch.setattr(Image, "open", slow)
    with pytest.raises(JobTimeout):
        open_image(io.BytesIO(b"x"))


def test_an_exception_of_another_thread_that_is_no_error_passes_through_a_file_object():
    class Stop(BaseException):
        pass

    def read(_):
        thread = ctypes.c_ulong(threading.get_ident())
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Stop))
        for _ in range(1000):
            pass

    with pytest.raises(Stop):
        open_image(types.SimpleNamespace(read=read))


@pytest.mark.parametrize("kind", [*TYPES, AttributeError, ImportError])
def test_an_interrupted_import_is_no_fault_of_the_module(interrupt, monkeypatch, kind):
    path = "minigdino._ext.products:matmul"
    instruction_sets.load.cache_clear()
    with monkeypatch.context() as patched:
        before = signal.signal(signal.SIGALRM, plain(kind("the job took too long")))
        patched.setattr(instruction_sets.importlib, "import_module", lambda _: signal.raise_signal(signal.SIGALRM))
        with pytest.raises(kind, match="too long"):
            instruction_sets.load(path)
        signal.signal(signal.SIGALRM, before)
    assert not instruction_sets.problems
    assert instruction_sets.load(path) is instruction_sets.load_for(kernels.levels()[0], path)


def test_a_module_that_failed_once_is_reported_and_stays_unused(monkeypatch):
    """A kernel is chosen once per process, so the report must not show another one that could be loaded by now."""
    best, path = kernels.levels()[0], "minigdino._ext.products:matmul"
    original, failed = instruction_sets.importlib.import_module, []

    def import_module(name, *package):
        if name.endswith(".products") and not failed:
            failed.append(name)
            raise OSError("too many open files")
        return original(name, *package)

    monkeypatch.setattr(instruction_sets, "problems", {})
    monkeypatch.setattr(kernels, "problems", instruction_sets.problems)
    monkeypatch.setattr(instruction_sets.importlib, "import_module", import_module)
    instruction_sets.load.cache_clear()
    try:
        used = instruction_sets.load(path)
        info = minigdino.info()
        assert used is not instruction_sets.load_for(best, path)
        assert info["missing"] == [f"{failed[0]} cannot be loaded (OSError: too many open files)"]
        assert "products: " in info["vectors"] or len(kernels.levels()) == 1
    finally:
        instruction_sets.load.cache_clear()

"""The exception of a signal handler that interrupts a look at a file reaches the caller."""

import os
import signal

import pytest
import safetensors
import tiny
from test_hub import write_cache

import minigdino
from minigdino import CheckpointError
from minigdino.checkpoints import hub
from minigdino.checkpoints.json_file import absolute, is_file, is_folder, status

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")

LOOKS = ("stat", "lstat", "listdir", "open")
NAMES = ("model", "config.json", "model.safetensors", hub.INDEX, "main")


@pytest.fixture
def interrupts(monkeypatch):
    """A function that runs a call again and again, each time with a signal at another look at a file."""

    def check(call, names=NAMES):
        class Late(TimeoutError):
            pass

        def handler(signum, frame):
            raise Late

        count = number = 0

        def looking(real):
            def look(path, *args, **more):
                nonlocal count
                if isinstance(path, (str, os.PathLike)) and os.path.basename(path) in names:
                    count += 1
                    if count == number:
                        signal.raise_signal(signal.SIGALRM)
                return real(path, *args, **more)

            return look

        signal.signal(signal.SIGALRM, handler)
        with monkeypatch.context() as patch:
            for name in LOOKS:
                patch.setattr(os, name, looking(getattr(os, name)))
            for number in range(1, 100):
                count = 0
                try:
                    call()
                except Late:
                    continue
                assert count < number, f"the exception at look {number} is lost"
                return number - 1
        raise AssertionError("the call does not end")

    before = signal.getsignal(signal.SIGALRM)
    yield check
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def saved(tmp_path):
    tiny.model().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("mmap", [True, False])
def test_load_passes_the_exception_on(interrupts, saved, mmap):
    assert interrupts(lambda: minigdino.load(saved, mmap=mmap)) > 10
    assert interrupts(lambda: minigdino.load(saved / "model.safetensors", mmap=mmap)) > 10


def test_the_check_of_a_mapped_file_passes_the_exception_on(interrupts, saved):
    model = minigdino.load(saved)
    assert interrupts(model._check_files) == 1


def test_a_search_in_the_hub_cache_passes_the_exception_on(interrupts, tmp_path, monkeypatch, saved):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    snapshot = write_cache(tmp_path, "owner/model", files)
    monkeypatch.setattr(hub, "cache", lambda: tmp_path)
    monkeypatch.setattr(hub, "_fetch", None)
    assert interrupts(lambda: hub.find("owner/model")) > 3
    assert hub.find("owner/model") == snapshot
    assert interrupts(hub.cached) > 0


def test_an_interrupted_look_at_weights_is_no_damage(tmp_path, monkeypatch, saved):
    class Late(TimeoutError):
        pass

    def handler(signum, frame):
        raise Late

    before = signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(safetensors, "safe_open", lambda *_, **__: signal.raise_signal(signal.SIGALRM))
    try:
        with pytest.raises(Late):
            hub._is_complete(saved / "model.safetensors")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_saving_passes_the_exception_on(interrupts, saved):
    model = tiny.model()
    assert interrupts(lambda: model.save(saved)) > 5
    minigdino.load(saved)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "nowhere", "\ud800"])
def test_a_path_that_cannot_be_used_has_no_status(path):
    assert status(path) is None and not is_file(path) and not is_folder(path)


def test_files_and_folders_differ(saved):
    assert is_folder(saved) and not is_file(saved)
    assert is_file(saved / "config.json") and not is_folder(saved / "config.json")
    (saved / "link").symlink_to("nowhere")
    assert status(saved / "link") is None and status(saved / "link", follow=False)


def test_a_path_in_a_folder_that_cannot_be_read_is_still_absolute(monkeypatch, saved):
    def refuse(*_, **__):
        raise PermissionError(13, "denied")

    monkeypatch.chdir(saved)
    assert absolute("config.json") == str(saved.resolve() / "config.json")
    monkeypatch.setattr(os.path, "realpath", refuse)
    assert absolute("config.json") == os.path.join(os.getcwd(), "config.json")
    assert minigdino.load(".").config == tiny.config()


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or directory"):
        minigdino.load(tmp_path / "nowhere")

"""Mapped weights: a file that changes under a model is noticed, one that is replaced does no harm."""

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors import SafetensorError
from safetensors.numpy import save_file

import minigdino
from minigdino import CheckpointError, Model
from minigdino.checkpoints import saving, weights

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="other systems do not let a mapped file change")
CHANGED = r"model\.safetensors: a mapped weight file must not change; .*Load the model again"


def random(seed=0):
    return Model.random(tiny.config(), seed, tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


def answer(model):
    return model.forward(tiny.pixels(), tiny.IDS).boxes


@pytest.fixture
def saved(tmp_path):
    random().save(tmp_path / "model")
    return tmp_path / "model"


def overwrite(path):
    """Write other weights into the same file, as `cp` does."""
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(len(data) // 2)
        file.write(bytes(1000))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # file systems round the time


def truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def touch(path):
    """The check cannot tell a new time from new weights."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@posix
@pytest.mark.parametrize("change", [overwrite, truncate, touch])
def test_a_changed_file_is_refused(saved, change):
    model = minigdino.load(saved)
    model.detect(tiny.photo(), "a cat")
    change(saved / "model.safetensors")
    for call in (
        lambda: model.forward(tiny.pixels(), tiny.IDS),
        lambda: model.detect(tiny.photo(), "a cat"),
        lambda: model.save(saved.parent / "other"),
    ):
        with pytest.raises(CheckpointError, match=CHANGED):
            call()


@posix
def test_a_file_that_changes_during_a_pass_is_refused(saved, monkeypatch):
    model = minigdino.load(saved)
    network = sys.modules["minigdino.detector"].forward

    def changing(*args, **more):
        touch(saved / "model.safetensors")
        return network(*args, **more)

    monkeypatch.setattr("minigdino.detector.forward", changing)
    with pytest.raises(CheckpointError, match=CHANGED):
        answer(model)


@posix
def test_a_changed_shard_is_refused(saved):
    tensors = random().tensors
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: np.asarray(tensors[name], order="C") for name in part}, saved / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (saved / weights.INDEX).write_text(json.dumps(index))
    model = minigdino.load(saved)
    assert sorted(Path(file.path).name for file in model._files) == sorted(parts)
    touch(saved / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: a mapped weight file must not change"):
        answer(model)


@posix
def test_a_file_that_is_replaced_moved_or_deleted_does_no_harm(saved):
    want = answer(random())
    model = minigdino.load(saved)
    random(7).save(saved)
    assert np.array_equal(answer(model), want)
    again = minigdino.load(saved)
    shutil.move(saved, saved.parent / "moved")
    assert np.array_equal(answer(again), answer(random(7)))
    shutil.rmtree(saved.parent / "moved")
    assert np.array_equal(answer(again), answer(random(7)))
    assert np.array_equal(answer(model), want)


@posix
def test_without_mmap_a_changed_file_has_no_effect(saved):
    want = answer(minigdino.load(saved))
    model = minigdino.load(saved, mmap=False)
    assert not model._files
    leaf = model.weights["text_backbone"]["embeddings"]["word_embeddings"]["weight"]
    assert not leaf.flags.writeable
    os.truncate(saved / "model.safetensors", 10)
    assert np.array_equal(answer(model), want)


@posix
def test_a_checkpoint_of_16_bit_floats_is_not_mapped(saved):
    """Its tensors are converted, so a later change has no effect."""
    path = saved / "model.safetensors"
    save_file({name: np.asarray(a, np.float16, order="C") for name, a in random().tensors.items()}, path)
    model = minigdino.load(saved)
    want = answer(model)
    assert not model._files
    touch(path)
    assert np.array_equal(answer(model), want)


@posix
def test_detect_loads_a_changed_file_again(saved):
    """The call that notices the change fails; the next one uses the new file."""
    photo, path = tiny.photo(), saved / "model.safetensors"
    minigdino.detect(photo, "a cat", model=saved)
    random(7).save(saved.parent / "other")
    path.write_bytes((saved.parent / "other" / path.name).read_bytes())
    touch(path)
    with pytest.raises(CheckpointError, match=CHANGED):
        minigdino.detect(photo, "a cat", model=saved)
    found = minigdino.detect(photo, "a cat", model=saved, threshold=0)
    assert np.array_equal(found.boxes, random(7).detect(photo, "a cat", threshold=0).boxes)


@posix
def test_a_read_only_checkpoint_loads(saved):
    for path in (*saved.iterdir(), saved):
        path.chmod(0o555 if path == saved else 0o444)
    try:
        assert np.array_equal(answer(minigdino.load(saved)), answer(random()))
    finally:
        saved.chmod(0o755)


@linux
def test_unloaded_models_leave_no_mapping_and_no_descriptor(saved):
    def used():
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count(str(saved)), len(sys.modules["minigdino.cache"]._caches)

    model = minigdino.load(saved)
    model.detect(tiny.photo(40, 60), "a cat")
    before = used()
    for i in range(200):
        other = minigdino.load(saved, mmap=i % 4 > 0)
        if i % 50 == 1:
            other.detect(tiny.photo(40, 60), "a cat")
    del other
    assert used() == before
    assert before[1] == 1


WITH_LIMIT = """
import resource, sys, minigdino
models = [minigdino.load(sys.argv[1])]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
models += [minigdino.load(sys.argv[1]) for _ in range(100)]
"""


@linux
def test_a_loaded_model_holds_one_descriptor(saved):
    """That of the mapping, which Python keeps."""
    subprocess.run([sys.executable, "-c", WITH_LIMIT, saved], check=True, timeout=60)


# ---- saving


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_saved_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        random().save(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert "model.safetensors" in modes


@posix
def test_a_reader_of_any_saved_file_keeps_the_old_one(saved):
    old = {path.name: path.read_bytes() for path in saved.iterdir()}
    with contextlib.ExitStack() as stack:
        readers = {name: stack.enter_context(open(saved / name, "rb")) for name in old}
        Model.random(tiny.config("mm-grounding-dino"), tokenizer=tiny.tokenizer(clean_up=True)).save(saved)
        assert {name: file.read() for name, file in readers.items()} == old
    assert {path.name for path in saved.iterdir()} == set(old)
    assert minigdino.load(saved).config.model_type == "mm-grounding-dino"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SafetensorError("no space left")])
@pytest.mark.parametrize("step", ["safetensors.numpy.save_file", "minigdino.prompt.Tokenizer.save"])
def test_a_failed_save_leaves_the_old_checkpoint_and_no_other_file(saved, monkeypatch, error, step):
    def fail(*args, **more):
        raise error

    want, files = answer(random()), {path: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(step, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError):
        random(7).save(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == files
    assert np.array_equal(answer(minigdino.load(saved)), want)


FULL = """
import resource, signal, sys, minigdino
from minigdino import Model
sys.path.insert(0, sys.argv[2])
import tiny
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    Model.random(tiny.config(), 7, tokenizer=tiny.tokenizer()).save(sys.argv[1])
except minigdino.CheckpointError as error:
    print(error)
"""


@linux
@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_file_that_cannot_be_written_whole_is_not_saved(saved, limit):
    files = {path: path.read_bytes() for path in saved.iterdir()}
    command = [sys.executable, "-c", FULL, saved, Path(__file__).parent, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "the model cannot be written there" in done.stdout, done.stderr
    assert {path: path.read_bytes() for path in saved.iterdir()} == files


def test_two_threads_may_save_to_one_folder(tmp_path):
    model, errors = random(), []

    def save():
        try:
            model.save(tmp_path / "model")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert np.array_equal(answer(minigdino.load(tmp_path / "model")), answer(model))
    assert not any(path.is_dir() for path in (tmp_path / "model").iterdir())


def other():
    """A model whose config differs from that of `random`: files of both do not belong together."""
    config = dataclasses.replace(tiny.config(), positional_embedding_temperature=33)
    return Model.random(config, 7, tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


def after_the_weights(monkeypatch, action):
    """Call `action` in the next save, after the new weights and before the new config.json."""
    real, actions = os.replace, [action]

    def replace(source, target):
        real(source, target)
        if str(target).endswith("model.safetensors") and actions:
            actions.pop()()

    monkeypatch.setattr(os, "replace", replace)


@posix
def test_two_models_saved_to_one_folder_are_not_mixed(saved, monkeypatch):
    second = threading.Thread(target=other().save, args=(saved,))

    def start():
        second.start()
        second.join(0.5)

    after_the_weights(monkeypatch, start)
    random(3).save(saved)
    second.join(20)
    assert minigdino.load(saved).config == other().config
    assert np.array_equal(answer(minigdino.load(saved)), answer(other()))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import tiny
from minigdino import Model
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Model.random(tiny.config(), 7, tokenizer=tiny.tokenizer()).save(sys.argv[1])
"""


def killed(saved):
    """What a save leaves in a folder if its process is killed."""
    command = [sys.executable, "-c", KILLED, saved, Path(__file__).parent]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    left, = (path for path in saved.iterdir() if path.is_dir())
    return left


@linux
def test_a_save_removes_what_killed_saves_left(saved):
    killed(saved)
    (saved / ".saving-notes123").mkdir()  # not a name of `save`
    (saved / ".minigdino-saving-a1b2c3d4").mkdir()
    random(3).save(saved)
    assert [path.name for path in saved.iterdir() if path.is_dir()] == [".saving-notes123"]
    assert np.array_equal(answer(minigdino.load(saved)), answer(random(3)))


@posix
@pytest.mark.parametrize("function", ["os.open", "fcntl.flock"])
def test_without_locks_a_save_removes_no_files_of_others(saved, monkeypatch, function):
    """They may belong to a save of another host. Windows cannot open a folder; some file systems have no locks."""
    real = os.open

    def refuse(path, *args, **more):
        if isinstance(path, int) or path == saved:
            raise OSError(13, "not supported")
        return real(path, *args, **more)

    (saved / ".minigdino-saving-a1b2c3d4").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(f"minigdino.checkpoints.saving.{function}", refuse)
        random(3).save(saved)
    assert (saved / ".minigdino-saving-a1b2c3d4").exists()
    assert np.array_equal(answer(minigdino.load(saved)), answer(random(3)))


@posix
def test_a_save_inside_a_save_is_refused_after_a_while(saved, monkeypatch):
    """A signal handler may save the model whose save it interrupted."""

    def save():
        with pytest.raises(CheckpointError, match="other saves into this folder to end within 0.1 s; one still holds"):
            random(7).save(saved)

    monkeypatch.setattr(saving, "MAX_WAIT", 0.1)
    after_the_weights(monkeypatch, save)
    random(3).save(saved)
    assert np.array_equal(answer(minigdino.load(saved)), answer(random(3)))
    assert not any(path.is_dir() for path in saved.iterdir())


@posix
def test_a_save_releases_its_lock_although_another_process_has_the_descriptor(saved, monkeypatch):
    """As a child that was forked during the save does. A duplicate stands for its descriptor."""
    kept, real = [], saving.fcntl.flock

    def flock(descriptor, operation):
        kept.append(os.dup(descriptor))
        real(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(saving.fcntl, "flock", flock)
        random(3).save(saved)
    try:
        monkeypatch.setattr(saving, "MAX_WAIT", 0.1)
        monkeypatch.setattr(saving.time, "sleep", None)  # so a wait fails
        random(3).save(saved)
    finally:
        for descriptor in kept:
            os.close(descriptor)


@posix
def test_a_timeout_ends_a_save_that_waits(saved, monkeypatch):
    def handler(signum, frame):
        raise TimeoutError("out of time")

    before = {path: path.read_bytes() for path in saved.iterdir()}
    owner = os.open(saved, os.O_RDONLY)
    saving.fcntl.flock(owner, saving.fcntl.LOCK_EX)
    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeoutError, match="out of time"):
            random(3).save(saved)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        os.close(owner)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before

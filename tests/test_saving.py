"""A save that is killed, refused or concurrent never leads to a mixture of two models."""

import dataclasses
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import minigdino
from minigdino import CheckpointError, Model
from minigdino.checkpoints import reading, saving
from minigdino.checkpoints.weights import INDEX

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
STEPS = ["mkdir", "link", "rename", "replace", "unlink", "rmdir"]  # calls that change a folder's entries


def random(seed):
    """Models of different weights, settings and tokenizers, but of equal config."""
    settings = dataclasses.replace(tiny.SETTINGS, image_mean=(seed / 10,) * 3)
    return Model.random(tiny.config(), seed, tokenizer=tiny.tokenizer(clean_up=seed % 2 == 1), settings=settings)


MODELS = {seed: random(seed) for seed in (1, 2)}


def parts(directory):
    """The models to which weights, settings and tokenizer of a checkpoint belong."""
    model = minigdino.load(directory)
    name = "model.level_embed"
    return {
        seed
        for seed, other in MODELS.items()
        if np.array_equal(model.tensors[name], other.tensors[name])
        or model.settings == other.settings
        or model.tokenizer.clean_up == other.tokenizer.clean_up
    }


@pytest.fixture
def saved(tmp_path):
    MODELS[1].save(tmp_path / "model")
    return tmp_path / "model"


def before_step(number, action):
    """Call `action` before one of the calls that change a folder, counted from 0."""
    done = []

    def counted(real):
        def step(*args, **more):
            if len(done) == number:
                action()
            done.append(args)
            return real(*args, **more)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def killed_before(number, directory):
    """Save in a child that ends before a step. Return whether the save got to that step."""
    child = os.fork()
    if child == 0:
        try:
            before_step(number, lambda: os._exit(9))
            MODELS[2].save(directory)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@posix
def test_a_save_killed_at_any_step_leaves_one_model_or_a_refused_folder(saved, monkeypatch):
    monkeypatch.setattr(reading, "ATTEMPTS", 1)
    (saved / INDEX).write_text("")  # so the save removes it, too
    seen, step = [], 0
    while killed_before(step, saved):
        (saved / INDEX).unlink(missing_ok=True)
        try:
            seen.append(parts(saved))
        except CheckpointError as error:
            assert "Save the model again" in str(error)
            seen.append("refused")
        MODELS[1].save(saved)
        assert parts(saved) == {1}
        (saved / INDEX).write_text("")
        step += 1
    (saved / INDEX).unlink(missing_ok=True)
    assert parts(saved) == {2}
    first, last = seen.index("refused"), seen.index({2})
    assert seen == [{1}] * first + ["refused"] * (last - first) + [{2}] * (len(seen) - last)
    assert last - first >= 6


@posix
def test_a_save_killed_after_a_killed_one_leaves_a_refused_folder(saved, monkeypatch):
    monkeypatch.setattr(reading, "ATTEMPTS", 1)
    seen = []
    for step in range(100):
        MODELS[1].save(saved)
        killed_before(10, saved)
        with pytest.raises(CheckpointError, match="belong together, delete that folder"):
            minigdino.load(saved)
        if not killed_before(step, saved):
            break
        try:
            seen.append(parts(saved))
        except CheckpointError:
            seen.append("refused")
    assert seen.count("refused") > 10
    assert seen == ["refused"] * seen.count("refused") + [{2}] * seen.count({2})  # after all files were moved
    assert parts(saved) == {2}
    assert [path for path in saved.iterdir() if path.is_dir()] == []


def test_an_interrupted_save_is_refused_for_a_file_as_well(saved, monkeypatch):
    (saved / ".minigdino-moving-a1b2c3d4").mkdir()
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    for source in (saved, saved / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"expected files of one model; \.minigdino-moving-a1b2c3d4 shows"):
            minigdino.load(source)
    (saved / ".minigdino-moving-a1b2c3d4").rmdir()
    assert parts(saved / "model.safetensors") == {1}


def test_a_load_waits_until_all_files_are_moved(saved, monkeypatch):
    real, loaded = os.replace, []

    def replace(source, target):
        real(source, target)
        if str(target).endswith("model.safetensors"):
            loaded.append(threading.Thread(target=lambda: loaded.append(parts(saved))))
            loaded[0].start()
            loaded[0].join(0.15)

    monkeypatch.setattr(os, "replace", replace)
    MODELS[2].save(saved)
    loaded[0].join(20)
    assert loaded[1] == {2}


@pytest.mark.parametrize("place", ["Tokenizer", "ImageSettings"])
def test_a_load_during_which_a_whole_save_takes_place_starts_again(saved, monkeypatch, place):
    kind = getattr(reading, place)
    real, saves = kind.from_directory, [MODELS[2].save]

    def from_directory(directory):
        if saves:
            saves.pop()(saved)
        return real(directory)

    monkeypatch.setattr(kind, "from_directory", from_directory)
    assert parts(saved) == {2}


def test_files_that_change_during_each_attempt_are_refused(saved, monkeypatch):
    real = reading.Tokenizer.from_directory

    def from_directory(directory):
        path = saved / "config.json"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
        return real(directory)

    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    monkeypatch.setattr(reading.Tokenizer, "from_directory", from_directory)
    with pytest.raises(CheckpointError, match="must not change while they are read; they did. Load the model again"):
        minigdino.load(saved)


def test_other_files_of_the_folder_may_change_during_a_load(saved, monkeypatch):
    real = reading.Tokenizer.from_directory

    def from_directory(directory):
        (saved / f"{time.monotonic_ns()}.jsonl").write_text("{}")
        return real(directory)

    monkeypatch.setattr(reading, "ATTEMPTS", 1)
    monkeypatch.setattr(reading.Tokenizer, "from_directory", from_directory)
    assert parts(saved) == {1}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", INDEX])
def test_a_folder_in_the_place_of_a_file_is_found_before_any_file_is_moved(saved, name):
    before = {path: path.read_bytes() for path in saved.iterdir() if path.name != name}
    (saved / name).unlink(missing_ok=True)
    (saved / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} must be a file; it is a folder"):
        MODELS[2].save(saved)
    assert {path: path.read_bytes() for path in saved.iterdir() if path.name != name} == before


def fail_at(monkeypatch, number, error, also=()):
    """Let calls of os.replace raise an error: one, counted from 1, and later ones to files of these names."""
    calls, real = [], os.replace

    def replace(source, target):
        calls.append(target)
        if len(calls) == number or (len(calls) > number and target.name in also):
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def contents(directory):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("error", [OSError("stale handle"), KeyboardInterrupt("ctrl-c")])
def test_a_save_that_fails_while_it_moves_files_puts_the_old_ones_back(saved, monkeypatch, number, error):
    (saved / INDEX).write_text("the index of old shards")
    (saved / "preprocessor_config.json").unlink()  # a file without an old one
    before = contents(saved)
    with monkeypatch.context() as patch:
        fail_at(patch, number, error)
        with pytest.raises((CheckpointError, KeyboardInterrupt), match=str(error)):
            MODELS[2].save(saved)
    assert contents(saved) == before
    MODELS[2].save(saved)
    assert parts(saved) == {2}


def test_old_files_that_are_links_are_put_back(saved, tmp_path, monkeypatch):
    """As in a hub cache."""
    saved.rename(tmp_path / "blobs")
    saved.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (saved / path.name).symlink_to(f"../blobs/{path.name}")
    before = contents(saved)
    fail_at(monkeypatch, 4, OSError("stale handle"))
    with pytest.raises(CheckpointError, match="stale handle"):
        MODELS[2].save(saved)
    assert contents(saved) == before
    assert parts(saved) == {1}


def test_a_model_loaded_before_a_failed_save_stays_in_use(saved, monkeypatch):
    model = minigdino.load(saved)
    fail_at(monkeypatch, 4, OSError("stale handle"))
    with pytest.raises(CheckpointError, match="stale handle"):
        MODELS[2].save(saved)
    model.forward(tiny.pixels(), tiny.IDS)


@pytest.mark.parametrize("links", [True, False])
def test_a_failed_save_that_cannot_be_undone_says_where_the_files_are(saved, monkeypatch, links):
    def refuse(*_):
        raise OSError("no links")

    old = (saved / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", refuse)
        fail_at(patch, 3, OSError("stale handle"), also=["model.safetensors"])
        with pytest.raises(CheckpointError, match=r"\(stale handle\) when some were replaced already") as caught:
            MODELS[2].save(saved)
    moving, = saving.unfinished(saved)
    assert f"are in {moving}, the old ones with a hard link in its folder `old`. Save the" in str(caught.value)
    assert (saved / "model.safetensors").read_bytes() != old
    assert (moving / "tokenizer.json").exists()
    assert not links or (moving / "old/model.safetensors").read_bytes() == old
    monkeypatch.setattr(reading, "ATTEMPTS", 1)
    with pytest.raises(CheckpointError, match="Save the model again"):
        minigdino.load(saved)
    MODELS[2].save(saved)
    assert parts(saved) == {2}


def test_without_links_a_save_that_replaced_nothing_changes_nothing(saved, monkeypatch):
    def refuse(*_):
        raise OSError("no links")

    before = contents(saved)
    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch:
        fail_at(patch, 1, OSError("stale handle"))
        with pytest.raises(CheckpointError, match="cannot be written there"):
            MODELS[2].save(saved)
    assert contents(saved) == before
    MODELS[2].save(saved)
    assert parts(saved) == {2}


def test_a_load_during_which_a_save_fails_starts_again(saved, monkeypatch):
    """All files are the old ones before and after it."""
    real, mixed = reading.Tokenizer.from_directory, []

    def from_directory(directory):
        rename = os.rename

        def fail(source, target):
            if source.name.startswith(saving.MOVING):  # after all files were moved
                os.rename = rename
                mixed.append(real(directory))
                raise OSError("stale handle")
            rename(source, target)

        if mixed:
            return real(directory)
        time.sleep(0.02)  # more than the resolution of file times
        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(CheckpointError, match="stale handle"):
            MODELS[2].save(saved)
        return mixed[0]

    monkeypatch.setattr(reading.Tokenizer, "from_directory", from_directory)
    assert parts(saved) == {1}
    assert mixed


@posix
@pytest.mark.parametrize("age", [0, 100])
def test_without_locks_a_save_removes_only_old_folders_of_killed_saves(saved, monkeypatch, age):
    """A young one can belong to a save that runs on another host."""
    def refuse(*_):
        raise OSError("no locks")

    left = saved / ".minigdino-moving-a1b2c3d4"
    left.mkdir()
    (left / "tokenizer.json").write_text("")
    os.utime(left, (time.time() - age,) * 2)
    monkeypatch.setattr(saving.fcntl, "flock", refuse)
    monkeypatch.setattr(reading, "ATTEMPTS", 1)
    MODELS[2].save(saved)
    if age:
        assert parts(saved) == {2}
    else:
        with pytest.raises(CheckpointError, match="Save the model again. If this message stays, .* delete that folder"):
            minigdino.load(saved)


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_saved_file_keeps_the_mode_of_the_file_it_replaces(saved, mode):
    (saved / "config.json").chmod(mode)
    (saved / "model.safetensors").chmod(mode)
    other = stat.S_IMODE((saved / "tokenizer.json").stat().st_mode)
    MODELS[2].save(saved)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}
    assert modes.pop("config.json") == modes.pop("model.safetensors") == mode
    assert set(modes.values()) == {other}
    assert parts(saved) == {2}


@posix
def test_a_save_that_cannot_get_the_folder_changes_nothing(saved, monkeypatch):
    monkeypatch.setattr(saving, "MAX_WAIT", 0.1)
    before = {path: path.read_bytes() for path in saved.iterdir()}
    owner = os.open(saved, os.O_RDONLY)
    try:
        saving.fcntl.flock(owner, saving.fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="one still holds it. End that process, or choose another folder"):
            MODELS[2].save(saved)
    finally:
        os.close(owner)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    MODELS[2].save(saved)
    assert parts(saved) == {2}


@posix
def test_a_child_forked_during_a_save_does_not_hold_the_folder(saved, monkeypatch):
    """The saver is killed; its child lives on."""
    ready, end = os.pipe(), os.pipe()
    saver = os.fork()
    if saver == 0:

        def fork(*_):
            if os.fork() == 0:
                os.close(end[1])
                os.write(ready[1], b"x")
                os.read(end[0], 1)  # until the test ends
            os._exit(9)

        saving._write = fork
        try:
            MODELS[2].save(saved)
        finally:
            os._exit(0)
    os.waitpid(saver, 0)
    assert os.read(ready[0], 1) == b"x"
    monkeypatch.setattr(saving, "MAX_WAIT", 1)
    try:
        MODELS[2].save(saved)
    finally:
        for descriptor in (*ready, *end):
            os.close(descriptor)
    assert parts(saved) == {2}
    assert not saving._locks


@posix
def test_a_folder_of_the_user_with_a_similar_name_stays(saved):
    for name in (".saving-for2025", ".saving-notes_12", ".minigdino"):
        (saved / name).mkdir()
        Path(saved, name, "mine").write_text("mine")
    MODELS[2].save(saved)
    assert sum(path.is_dir() and (path / "mine").exists() for path in saved.iterdir()) == 3

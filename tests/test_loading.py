"""What `load` refuses, and what a refused load leaves behind."""

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tiny

import minigdino
from minigdino import CheckpointError, Model, detector
from minigdino.checkpoints import reading
from minigdino.checkpoints.weights import HIDDEN, INDEX, first_non_finite, read_safetensors

posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
TEXT = "a cat"


def random():
    return Model.random(tiny.config(), tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


@pytest.fixture
def saved(tmp_path):
    random().save(tmp_path / "model")
    return tmp_path / "model"


def in_time(call):
    """The exception of a call, which must end within 20 seconds."""
    caught = []

    def run():
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the call does not end"
    return caught[0] if caught else None


# ---- files


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def empty(path):
    path.write_bytes(b"")


def dangling(path):
    path.symlink_to("nowhere")


ODD = [fifo, folder, loop, device, empty, dangling]


@posix
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "shard.safetensors"])
def test_only_regular_files_are_read_as_weights(saved, name, odd):
    """The file of a directory, a file given by its path, and a shard."""
    path, source = saved / name, saved
    path.unlink(missing_ok=True)
    odd(path)
    if name.startswith("other"):
        source = path
    elif name.startswith("shard"):
        (saved / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert isinstance(in_time(lambda: minigdino.load(source)), CheckpointError)
    assert isinstance(in_time(lambda: minigdino.load(source, mmap=False)), CheckpointError)
    assert isinstance(in_time(lambda: read_safetensors(path)), CheckpointError)


@posix
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "name", ["config.json", INDEX, "tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"]
)
def test_odd_files_beside_the_weights_raise_an_error_or_count_as_missing(saved, name, odd):
    path = saved / name
    path.unlink(missing_ok=True)
    odd(path)
    error = in_time(lambda: minigdino.load(saved))
    missing = odd in (loop, dangling) and name != "config.json"
    assert error is None if missing else isinstance(error, minigdino.Error)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "..", ".", "", "/etc/passwd", "a/b.safetensors", "no\0name", "x" * 300, "\ud800", None, 7],
)
def test_an_index_cannot_name_a_file_elsewhere(saved, shard):
    (saved / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError):
        minigdino.load(saved)


@pytest.mark.parametrize("shard", ["", "..", "folder.safetensors"])
def test_a_folder_is_not_a_shard(saved, shard):
    (saved / "folder.safetensors").mkdir()
    (saved / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match=f"names '{re.escape(shard)}', which is not in"):
        minigdino.load(saved)


def header(text, length=None, data=bytes(8)):
    raw = text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


ENTRY = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        header("{" + ENTRY + "}", length=2**63),
        header("{" + ENTRY + "}", length=2**64 - 1),
        header("{" + ENTRY + "}", length=100_000_001),
        header("{" + ENTRY + ", " + ENTRY + "}"),
        header("{" + ENTRY + ", " + ENTRY.replace('"F32", "shape": [2]', '"BF16", "shape": [4]') + "}"),
        header("{" + ENTRY.replace('"shape": [2]', '"shape": [9], "shape": [2]') + "}"),
        header("[" * 50_000),
        header('{"a": ' * 50_000),
        header('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}'),
        header('{"a": {"dtype": "F32", "shape": [2, 9223372036854775807], "data_offsets": [0, 8]}}'),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}'),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9223372036854775808]}}'),
        header('{"a": {"dtype": "F32", "shape": ' + str([1] * 99 + [2]) + ', "data_offsets": [0, 8]}}'),
    ],
)
def test_a_corrupted_header_is_refused(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert isinstance(in_time(lambda: read_safetensors(path)), CheckpointError)
    assert isinstance(in_time(lambda: read_safetensors(path, mmap=False)), CheckpointError)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    assert isinstance(in_time(lambda: minigdino.load(path)), CheckpointError)


def test_repeated_names_in_a_header_are_refused(tmp_path):
    """Two readers could choose different ones."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(header("{" + ENTRY + ", " + ENTRY.replace('"F32", "shape": [2]', '"BF16", "shape": [4]') + "}"))
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_safetensors(path)


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import minigdino, safetensors, tokenizers
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for mmap in (True, False):
    try:
        minigdino.load(sys.argv[1], mmap=mmap)
    except minigdino.CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_lack_of_memory_is_an_error_of_the_package(saved, dtype):
    shape = [2**30 // (2 if dtype == "BF16" else 4)]
    text = json.dumps({"junk": {"dtype": dtype, "shape": shape, "data_offsets": [0, 2**30]}})
    path = saved / "model.safetensors"
    path.write_bytes(header(text, data=b""))
    os.truncate(path, path.stat().st_size + 2**30)
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, saved]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("loading needs more memory than there is. Use a machine with more") == 2, done.stderr


# ---- models kept by `detect`


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(detector, "_models", models := {})
    return models


def test_a_failed_load_leaves_nothing_behind(saved, kept):
    weights = saved / "model.safetensors"
    weights.rename(saved / "away")
    for _ in range(2):
        with pytest.raises(CheckpointError):
            minigdino.detect(tiny.photo(), TEXT, model=saved)
    assert (kept, detector._loading) == ({}, {})
    (saved / "away").rename(weights)
    minigdino.detect(tiny.photo(), TEXT, model=saved)
    assert len(kept) == 1
    assert detector._loading == {}


def test_an_interrupted_load_leaves_the_lock_free(saved, kept, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    load = detector.load
    monkeypatch.setattr(detector, "load", interrupted)
    assert isinstance(in_time(lambda: minigdino.detect(tiny.photo(), TEXT, model=saved)), KeyboardInterrupt)
    assert (kept, detector._loading) == ({}, {})
    monkeypatch.setattr(detector, "load", load)
    assert in_time(lambda: minigdino.detect(tiny.photo(), TEXT, model=saved)) is None


def test_a_load_that_hangs_holds_up_no_other_model(saved, kept, monkeypatch):
    load, begun, go_on = detector.load, threading.Event(), threading.Event()

    def slow(source, **more):
        if source == "shapes":
            begun.set()
            assert go_on.wait(30)
        return load(source, **more)

    monkeypatch.setattr(detector, "load", slow)
    hanging = threading.Thread(target=minigdino.detect, args=(tiny.photo(), TEXT), kwargs={"model": "shapes"})
    hanging.start()
    assert begun.wait(20)
    try:
        assert in_time(lambda: minigdino.detect(tiny.photo(), TEXT, model=saved)) is None
    finally:
        go_on.set()
        hanging.join()
    assert len(kept) == 2


def test_threads_that_need_one_model_load_it_once(saved, kept, monkeypatch):
    load, calls = detector.load, []

    def counted(source, **more):
        calls.append(source)
        return load(source, **more)

    monkeypatch.setattr(detector, "load", counted)
    threads = [
        threading.Thread(target=minigdino.detect, args=(tiny.photo(), TEXT), kwargs={"model": saved}) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(kept) == 1


def failing_together(monkeypatch, error, threads=4):
    """Errors of threads that need one model, of which the first waits for the others and fails. Returns calls, too."""
    entered, calls, caught = threading.Semaphore(0), [], []

    class Lock:
        """An RLock that counts the threads that come to it."""

        def __init__(self):
            self.real = rlock()

        def __enter__(self):
            entered.release()
            self.real.acquire()

        def __exit__(self, *_):
            self.real.release()

    def fail(*_, **__):
        for _ in range(0 if calls else threads):
            assert entered.acquire(timeout=10)
        calls.append(threading.current_thread())
        raise error

    def detect():
        try:
            minigdino.detect(tiny.photo(), TEXT, model="shapes")
        except BaseException as raised:
            caught.append(raised)

    rlock = threading.RLock
    with monkeypatch.context() as patch:
        patch.setattr(detector, "load", fail)
        patch.setattr(detector.threading, "RLock", Lock)
        started = [threading.Thread(target=detect) for _ in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(20)
    assert detector._loading == {}
    return caught, calls


@pytest.mark.parametrize("kind", [CheckpointError, minigdino.ConfigError])
def test_threads_that_wait_for_a_load_share_its_error(kept, monkeypatch, kind):
    error = kind("no such file")
    caught, calls = failing_together(monkeypatch, error)
    assert len(calls) == 1
    assert [(type(other), str(other)) for other in caught] == [(kind, "no such file")] * 4
    assert len({id(other) for other in caught}) == 4  # threads must not share a traceback
    minigdino.detect(tiny.photo(), TEXT, model="shapes")
    assert len(kept) == 1


def test_threads_do_not_share_the_exception_of_a_signal_handler(kept, monkeypatch):
    caught, calls = failing_together(monkeypatch, KeyboardInterrupt())
    assert len(calls) == len(caught) == 4


def test_a_mended_checkpoint_is_loaded_again(saved, kept):
    (saved / "tokenizer.json").rename(saved / "away")
    with pytest.raises(CheckpointError, match="Copy one of them"):
        minigdino.detect(tiny.photo(), TEXT, model=saved)
    (saved / "away").rename(saved / "tokenizer.json")
    minigdino.detect(tiny.photo(), TEXT, model=saved)


# ---- NaN and infinity


def planted(model, name, value):
    """The model with one value of a tensor replaced."""
    bad = np.array(model.tensors[name])
    bad.reshape(-1)[bad.size // 2] = value
    return Model({**model.tensors, name: bad}, model.config, tokenizer=model.tokenizer, settings=model.settings)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("grounding-dino", "model.encoder.layers.0.deformable_layer.self_attn.sampling_offsets.weight", np.nan),
        ("grounding-dino", "model.decoder.layers.1.encoder_attn.sampling_offsets.bias", np.inf),
        ("grounding-dino", "model.level_embed", np.nan),
        ("grounding-dino", "model.decoder.layers.1.encoder_attn.attention_weights.bias", -np.inf),
        ("grounding-dino", "model.decoder.layers.1.fc1.bias", -np.inf),
        ("grounding-dino", "model.decoder.layers.2.fc1.weight", -np.inf),
        ("grounding-dino", "bbox_embed.0.layers.2.bias", np.inf),
        ("mm-grounding-dino", "model.encoder_output_class_embed.bias", np.nan),
        ("mm-grounding-dino", "model.decoder.bbox_embed.2.layers.2.bias", np.nan),
    ],
)
def test_values_that_would_not_reach_the_scores_are_refused(family, name, value):
    bad = planted(tiny.model(family), name, value)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinity"):
            bad.detect(tiny.photo(), TEXT)


def test_unused_tensors_may_hold_anything():
    model, unused = tiny.model(), "model.text_backbone.pooler.dense.bias"
    tensors = {**model.tensors, unused: np.full(3, np.nan, np.float32)}
    other = Model(tensors, model.config, tokenizer=model.tokenizer, settings=model.settings)
    assert np.array_equal(other.detect(tiny.photo(), TEXT).boxes, model.detect(tiny.photo(), TEXT).boxes)
    assert first_non_finite(tensors) is None


def test_weights_are_checked_once(monkeypatch):
    model, calls = random(), []
    monkeypatch.setattr(detector, "first_non_finite", lambda *args, **more: calls.append(args))
    for _ in range(3):
        model.detect(tiny.photo(), TEXT)
    assert len(calls) == 1


def test_few_weights_are_checked():
    """The first detection reads them. Loading reads none."""
    from minigdino.checkpoints.parameters import parameters

    sizes = {name: int(np.prod(shape)) for name, shape in parameters(minigdino.Config()).items()}
    assert sum(size for name, size in sizes.items() if HIDDEN.search(name)) < 0.06 * sum(sizes.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_other_tensor_hides_nan_or_infinity(family, value):
    """Except the rows of embeddings that a prompt does not use."""
    config = dataclasses.replace(fuzz.config(), model_type=family)
    model = Model.random(config, tokenizer=tiny.tokenizer(), settings=fuzz.SETTINGS)
    photo = tiny.photo(30, 40)
    names = [name for name in model.tensors if not HIDDEN.search(name) and ".embeddings." not in name]
    assert len(names) > 90
    for name in names:
        with pytest.raises(CheckpointError, match=re.escape(f"tensor {name} holds NaN or infinity")):
            planted(model, name, value).detect(photo, TEXT, threshold=0)


# ---- arguments


class Bytes:
    def __fspath__(self):
        return b"x"


class Refusing:
    """An object that cannot be shown or converted."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __array__(self, *args, **more):
        raise TypeError("no array")


ANYTHING = [
    [], {}, (), set(), b"x", object(), Bytes(), Refusing(), lambda: 0, int, ..., slice(1), range(3), (c for c in "ab"),
    memoryview(b"ab"), np.float32(1), np.array(3), np.array([1, 2]), np.zeros((2, 2)), np.array([None, 1]),
    np.datetime64("now"), 1 + 2j, np.complex64(1), float("nan"), float("inf"), -1, 10**30, 10**5000, True, [None],
    [[]], [[[]]], [float("nan")] * 2, "", "\0", "x" * 5000, "a/" + "b" * 300, "\ud800",
]  # fmt: skip


def refused(call, values=ANYTHING):
    """Call with each value, and pass if it returns or raises `Error`."""
    for value in values:
        try:
            call(value)
        except minigdino.Error as error:
            assert str(error)


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # some values are texts of unknown words
@pytest.mark.parametrize(
    "call",
    [
        lambda m, v: m.detect(v, TEXT),
        lambda m, v: m.detect([v], TEXT),
        lambda m, v: m.detect(tiny.photo(), v),
        lambda m, v: m.detect([tiny.photo()], [v]),
        lambda m, v: m.detect(tiny.photo(), TEXT, threshold=v),
        lambda m, v: m.detect(tiny.photo(), TEXT, text_threshold=v),
        lambda m, v: m.detect(tiny.photo(), TEXT, size=v),
        lambda m, v: m.detect(tiny.photo(), TEXT, size=(v, v)),
        lambda m, v: m.preprocess(v),
        lambda m, v: m.tokenize(v),
        lambda m, v: m.forward(v, tiny.IDS),
        lambda m, v: m.forward(tiny.pixels(), v),
        lambda m, v: m.forward(tiny.pixels(), [v, v]),
        lambda m, v: m.forward(tiny.pixels(), tiny.IDS, selected=v),
        lambda m, v: m.forward(tiny.pixels(), tiny.IDS, selected=[v] * 20),
        lambda m, v: m.forward(tiny.pixels(), tiny.IDS, details=v),
        lambda m, v: Model(v, m.config),
        lambda m, v: Model({"a": v}, m.config),
        lambda m, v: Model({**m.tensors, "model.level_embed": v}, m.config),
        lambda m, v: Model({**m.tensors, 7: m.tensors["model.level_embed"]}, m.config),
        lambda m, v: Model(m.tensors, v),
        lambda m, v: Model(m.tensors, m.config, tokenizer=v),
        lambda m, v: Model(m.tensors, m.config, settings=v),
        lambda m, v: Model.random(v),
        lambda m, v: Model.random(fuzz.config(), v),
        lambda m, v: m.save(v),
        lambda m, v: minigdino.load(v),
        lambda m, v: minigdino.load("shapes", mmap=v),
        lambda m, v: minigdino.load("shapes", device=v),
        lambda m, v: minigdino.use(v).__enter__(),
        lambda m, v: minigdino.detect(tiny.photo(), TEXT, model=v),
    ],
)
def test_any_argument_may_raise_only_errors_of_the_package(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("minigdino.checkpoints.hub.cache", lambda: tmp_path / "hub")
    refused(lambda value: call(tiny.model(), value))


@pytest.mark.parametrize("model", [["x"], b"x", {}, 0, False, 7, (), np.array(3), Bytes()])
def test_a_model_must_be_a_source(model):
    """`detect` used to look it up in a dict first, and `load` took any empty value for the default."""
    for call in (lambda: minigdino.detect(tiny.photo(), TEXT, model=model), lambda: minigdino.load(model)):
        with pytest.raises(minigdino.ArgumentError, match="a model must be a str or a path; got "):
            call()


def test_an_empty_source_is_not_the_default():
    for call in (lambda: minigdino.detect(tiny.photo(), TEXT, model=""), lambda: minigdino.load("")):
        with pytest.raises(minigdino.ArgumentError, match="got an empty text"):
            call()


# ---- links


@posix
@pytest.mark.parametrize("name", [INDEX, "model.safetensors"])
def test_a_link_to_a_long_name_is_an_error_of_the_package(saved, name):
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to("x" * 300)
    if name == INDEX:  # cannot exist, so it counts as absent
        minigdino.load(saved)
    else:
        with pytest.raises(CheckpointError):
            minigdino.load(saved)


@pytest.mark.parametrize("name", [INDEX, "model.safetensors"])
def test_a_link_into_an_unreadable_folder_is_an_error_of_the_package(saved, name, monkeypatch):
    """Root may read every folder, so `os.stat` refuses here."""
    real = os.stat

    def stat(path, *args, **more):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "stat", stat)
    caught = in_time(lambda: minigdino.load(saved))
    assert caught is None or isinstance(caught, CheckpointError)


def test_a_header_has_a_limited_size(tmp_path):
    entries = ", ".join(f'"{i:050}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}' for i in range(200_000))
    (tmp_path / "a.safetensors").write_bytes(header("{" + entries + "}", data=b""))
    with pytest.raises(CheckpointError, match="expected a header of at most 16777216 bytes; got 2"):
        read_safetensors(tmp_path / "a.safetensors")


# ---- config and weights of one checkpoint


def other():
    """A model whose weights have the shapes of `random`, but whose geometry differs."""
    model = random()
    config = dataclasses.replace(model.config, positional_embedding_temperature=33)
    return Model(model.tensors, config, tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_of_different_checkpoints_are_refused(saved, tmp_path, name):
    other().save(tmp_path / "other")
    os.replace(tmp_path / "other" / name, saved / name)
    with pytest.raises(CheckpointError, match="belong to different checkpoints, or config.json was edited. Save"):
        minigdino.load(saved)
    random().save(saved)
    minigdino.load(saved)


def test_config_json_may_be_formatted_and_extended_by_hand(saved):
    values = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(dict(reversed(values.items())) | {"id2label": {"0": "cat"}}))
    assert minigdino.load(saved).config == tiny.config()


def test_a_load_during_a_save_waits_for_its_end(saved, monkeypatch):
    """The reader gets the old config and the new weights at first."""
    new, real = other(), os.replace
    loaded = []

    def replace(source, target):
        real(source, target)
        if str(target).endswith("model.safetensors"):
            thread = threading.Thread(target=lambda: loaded.append(minigdino.load(saved)))
            thread.start()
            loaded.append(thread)
            thread.join(0.05)

    monkeypatch.setattr(os, "replace", replace)
    new.save(saved)
    loaded[0].join(20)
    assert loaded[1].config == new.config


def test_a_running_save_is_noticed_even_over_published_files(saved, monkeypatch):
    """Published weights do not say which config they belong to."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "shard.safetensors")
    (saved / "model.safetensors").unlink()
    (saved / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "shard.safetensors")}))
    real, new, seen = os.replace, other(), []

    def replace(source, target):
        real(source, target)
        try:
            seen.append(minigdino.load(saved).config)
        except CheckpointError:
            seen.append(None)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    new.save(saved)
    assert len(seen) == 5 and not any(seen)
    assert minigdino.load(saved).config == new.config


@pytest.mark.parametrize("entry", ["", "[", "[]", "{}", "[" * 50_000, "null", "7", "{\"d_model\": [1]}"])
def test_a_damaged_entry_in_the_weights_is_refused(saved, monkeypatch, entry):
    from safetensors.numpy import load_file, save_file

    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors", {"minigdino_config": entry})
    with pytest.raises(CheckpointError, match="different checkpoints"):
        minigdino.load(saved)


def test_a_saved_model_leaves_other_files_of_the_folder(saved):
    """They may be the only copy, such as a tokenizer beside a model without one."""
    (saved / "notes.txt").write_text("mine")
    Model.random(tiny.config()).save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert minigdino.load(saved).tokenizer

"""Checkpoints by name: the real client against a hub on 127.0.0.1, and caches laid out by hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from local_hub import LOOP, Client, LocalHub, environment, files_of
from safetensors.numpy import save

import minigdino
from minigdino import CheckpointError
from minigdino.checkpoints import hub

NEEDED = ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors"]
CLOSED = "http://127.0.0.1:1"  # nobody listens there


def tensors(seed=0, size=50_000):
    """A file of weights that no model has: enough for everything but `load`."""
    return save({"weight": np.random.default_rng(seed).standard_normal(size, np.float32)})


def small(seed=0, **changes):
    """A repository of a few files; None takes one out."""
    files = {"config.json": b'{"model_type": "grounding-dino"}', "model.safetensors": tensors(seed)}
    files |= dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"), b"{}")
    files |= {name.replace("__", "."): data for name, data in changes.items()}
    return {name: data for name, data in files.items() if data is not None}


@pytest.fixture(scope="module")
def served():
    """A hub, for all tests of this file: each has its own models there."""
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """HF_HOME, shared likewise."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(served, home):
    """A process that reaches the hub."""
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home)) as client:
        yield client


@pytest.fixture(scope="module")
def offline(served, home):
    """A process told not to, with the same cache."""
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home), HF_HUB_OFFLINE="1") as client:
        yield client


@pytest.fixture(scope="module")
def unreachable(home):
    """A process whose hub does not answer, with the same cache."""
    with Client(HF_ENDPOINT=CLOSED, HF_HOME=str(home)) as client:
        yield client


def lay(cache, model_id, files, revision="main", commit="c0ffee"):
    """A model as any program leaves it in a hub cache."""
    folder = cache / f"models--{model_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for this process, where nothing may be asked of any hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


# what is fetched


def test_a_model_is_downloaded_once_and_only_its_needed_files(served, online, unreachable, offline, tmp_path):
    tiny.model().save(tmp_path)
    more = {"pytorch_model.bin": b"\0" * 5_000_000, "onnx/model.onnx": b"\0" * 1000, "README.md": b"", "vocab.txt": b""}
    more |= {"groundingdino.pth": b"\0" * 1000, "special_tokens_map.json": b"{}", "processor_config.json": b"{}"}
    served.add("owner/first", files_of(tmp_path) | more)
    path = online.path("find", "owner/first")
    assert sorted(file.name for file in path.iterdir()) == sorted(NEEDED)
    assert served.fetched("owner/first") == NEEDED  # the weights last
    found = minigdino.load(path).detect(tiny.photo(), "a cat. a dog.")
    np.testing.assert_array_equal(found.boxes, tiny.model().detect(tiny.photo(), "a cat. a dog.").boxes)

    asked = len(served.requests)
    assert [client.path("find", "owner/first") for client in (online, unreachable, offline)] == [path] * 3
    assert len(served.requests) == asked


def test_shards_come_with_their_index(served, online, offline):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {name: tensors(i) for i, name in enumerate(sorted(index["weight_map"].values()))}
    files = small(model__safetensors=None) | shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    served.add("owner/shards", files)
    path = online.path("find", "owner/shards")
    assert {name: (path / name).read_bytes() for name in files} == files
    assert offline.path("find", "owner/shards") == path
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model.safetensors missing or cut short" in offline.error("find", "owner/shards")


def test_a_vocabulary_will_do_and_image_settings_may_be_nested(served, online, offline):
    files = small(tokenizer__json=None, vocab__txt=b"[PAD]")
    files["processor_config.json"] = files.pop("preprocessor_config.json")
    served.add("owner/vocab", files)
    path = online.path("find", "owner/vocab")
    assert sorted(file.name for file in path.iterdir()) == sorted(files)
    assert offline.path("find", "owner/vocab") == path


def test_what_the_hub_does_not_have_is_asked_for_once(served, online):
    files = small(tokenizer__json=None, tokenizer_config__json=None, preprocessor_config__json=None)
    served.add("owner/bare", files)
    path = online.path("find", "owner/bare")
    assert sorted(file.name for file in path.iterdir()) == sorted(files)
    asked = len(served.requests)
    assert online.path("find", "owner/bare") == path
    assert len(served.requests) == asked


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_model_without_config_or_safetensors_is_refused(served, online, lost):
    name = f"owner/no-{lost}"
    served.add(name, {key: data for key, data in (small() | {"pytorch_model.bin": b""}).items() if key != lost})
    message = online.error("find", name)
    assert message.startswith(f"{name}: the hub's copy has no ")
    assert lost in message
    assert "convert" in message
    assert "pytorch_model.bin" not in served.fetched(name)


def test_a_terminal_shows_the_clients_progress_bar(served, tmp_path):
    termios = pytest.importorskip("termios")
    served.add("owner/bars", small())
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path)) | {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    try:
        code = "from minigdino.checkpoints import hub; hub.find('owner/bars')"
        done = subprocess.run([sys.executable, "-c", code], stderr=theirs, stdout=theirs, env=env, check=False)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, shown
    assert "model.safetensors: 100%" in shown


# revisions


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_stays(served, online, unreachable):
    old = served.add("owner/moves", small(1), "main", "v1")
    new = served.add("owner/moves", small(2), "main", "refs/pr/1")
    assert online.path("find", "owner/moves", "v1").name == old
    for revision in ("v1", old):  # a cached commit needs no name of its own
        path = unreachable.path("find", "owner/moves", revision)
        assert (path / "model.safetensors").read_bytes() == tensors(1)
    assert "cannot be reached" in unreachable.error("find", "owner/moves")  # main is another revision
    assert online.path("find", "owner/moves").name == new
    assert online.path("find", "owner/moves", "refs/pr/1").name == new
    assert online.path("find", "owner/moves", old).name == old
    assert unreachable.path("find", "owner/moves", "refs/pr/1").name == new


def test_a_cached_branch_is_used_as_it_is_until_download_asks(served, online):
    old = served.add("owner/newer", small(1))
    assert online.path("find", "owner/newer").name == old
    new = served.add("owner/newer", small(2))
    assert online.path("find", "owner/newer").name == old
    assert online.path("download", "owner/newer").name == new
    assert online.path("find", "owner/newer").name == new
    asked = served.fetched("owner/newer")
    assert online.path("download", "owner/newer").name == new
    assert served.fetched("owner/newer") == asked  # asked about, but nothing fetched again
    assert asked.count("tokenizer.json") == 1  # unchanged between the two


# what can go wrong: each message names what was looked for, where, and the ways out


def ways_out(message, model_id, place, home):
    assert message.startswith(model_id)
    assert f"\nLocal cache: {home / 'hub'}" in message
    assert f"; hub: {place}\n---> hint: give a directory that holds config.json" in message
    assert 'model="shapes"' in message
    assert f"`minigdino download {model_id}`" in message
    return True


def test_offline_and_not_cached(served, offline, home):
    asked = len(served.requests)
    for call in (("find",), ("download",)):
        message = offline.error(*call, "owner/absent")
        assert message.startswith("owner/absent: HF_HUB_OFFLINE forbids asking the hub")
        assert ways_out(message, "owner/absent", served.url, home)
    assert len(served.requests) == asked


def test_an_unreachable_hub(unreachable, home):
    message = unreachable.error("find", "owner/absent")
    assert re.match(r"owner/absent: the hub cannot be reached \(Connect.*refused", message)
    assert ways_out(message, "owner/absent", CLOSED, home)


def test_an_unknown_name(served, online, home):
    message = online.error("find", "owner/absent")
    assert message.startswith("owner/absent: the hub has no model of that name (a private one needs HF_TOKEN), nor is")
    assert ways_out(message, "owner/absent", served.url, home)


@pytest.mark.parametrize("revision", ["v9", "../../..", "/etc/hostname"])
def test_an_unknown_revision(served, online, home, revision):
    served.add("owner/known", small())
    message = online.error("find", "owner/known", revision)
    assert f"owner/known at revision {revision!r}: the hub has the model, but no branch, tag or commit" in message
    assert ways_out(message, "owner/known", served.url, home)


@pytest.mark.parametrize("token", [None, "wrong", "right"])
def test_a_gated_model_needs_a_token(served, tmp_path, token):
    served.add("owner/gated", small())
    served.gated["owner/gated"] = "right"
    env = {"HF_TOKEN": token} if token else {}
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path), **env) as client:
        if token == "right":
            assert client.path("find", "owner/gated").is_dir()
        else:
            message = client.error("find", "owner/gated")
            assert "those who accepted its terms" in message
            assert "HF_TOKEN" in message
            assert ways_out(message, "owner/gated", served.url, tmp_path)


def test_a_hub_out_of_order(served, online, home):
    served.add("owner/down", small())
    served.down.add("owner/down")
    message = online.error("find", "owner/down")
    assert message.startswith("owner/down: the hub answered 503; try again later")
    assert ways_out(message, "owner/down", served.url, home)


def test_a_hub_that_never_answers_is_given_up(served, tmp_path):
    served.silent.add("owner/silent")
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path), HF_HUB_ETAG_TIMEOUT="1") as client:
        message = client.error("find", "owner/silent")
    assert message.startswith("owner/silent: the hub cannot be reached (ReadTimeout")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "a/b c", "/a", "a/", "a--b/c", "../b", "https://a/b", "", None])
def test_a_name_that_is_none(name):
    for call in (hub.find, hub.download):
        with pytest.raises(CheckpointError, match=r"is not the name of a model; expected owner/name") as raised:
            call(name)
        assert str(raised.value).startswith(repr(name))


def test_a_cache_that_cannot_be_written(served):
    """Below a device no user can make a folder, not even root, whom permissions do not stop."""
    served.add("owner/unwritable", small())
    with Client(HF_ENDPOINT=served.url, HF_HUB_CACHE="/dev/null/hub") as client:
        message = client.error("find", "owner/unwritable")
    assert message.startswith("owner/unwritable: the local cache cannot be used (")
    assert "/dev/null" in message
    assert "\nLocal cache: /dev/null/hub; hub: http" in message


def test_a_full_disk(served, tmp_path):
    """The system's limit on the size of a file stands for it."""
    served.add("owner/large", small())
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with Client(limit + LOOP, HF_ENDPOINT=served.url, HF_HOME=str(tmp_path)) as client:
        message = client.error("find", "owner/large")
        assert message.startswith("owner/large: the local cache has no room for it (File too large)")
        assert client.call("cached") == {"value": []}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the local cache has no room for it (No space left on device)"),
        (OSError(30, "Read-only file system", "/c"), "the local cache cannot be used (OSError: [Errno 30] Read-only"),
        (TimeoutError("10 s"), "the hub cannot be reached (TimeoutError: 10 s)"),
        (RuntimeError("of the\nclient"), "it could not be fetched (RuntimeError: of the)"),
    ],
)
def test_an_error_in_the_middle_is_told_in_words(cache, monkeypatch, error, reason):
    import huggingface_hub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(CheckpointError) as raised:
        hub.download("a/b")
    assert str(raised.value).startswith(f"a/b: {reason}")
    assert raised.value.__cause__ is error
    assert isinstance(raised.value, OSError)


# what counts as cached


def kill_in_the_middle(served, home, name, *call):
    """Begin a call, and kill its process once the weights have begun to arrive."""
    served.stalled["model.safetensors"] = 100_000
    try:
        with Client(HF_ENDPOINT=served.url, HF_HOME=str(home)) as client:
            client.start(name, *call)
            assert served.hanging.get(timeout=30) == "model.safetensors"
    finally:
        served.stalled.clear()


def test_an_interrupted_download_is_not_cached_and_can_be_taken_up_again(served, online, offline, home):
    served.add("owner/cut", small(3))
    kill_in_the_middle(served, home, "find", "owner/cut")
    assert "owner/cut: HF_HUB_OFFLINE forbids" in offline.error("find", "owner/cut")
    assert "owner/cut" not in offline.call("cached")["value"]
    path = online.path("find", "owner/cut")
    assert (path / "model.safetensors").read_bytes() == tensors(3)
    assert served.fetched("owner/cut").count("tokenizer.json") == 1  # what had arrived is kept
    assert offline.path("find", "owner/cut") == path


def test_an_interrupted_update_leaves_the_old_model_in_use(served, online, offline, home):
    old = served.add("owner/update", small(1))
    online.path("find", "owner/update")
    new = served.add("owner/update", small(2, config__json=b'{"model_type": "grounding-dino", "new": 1}'))
    kill_in_the_middle(served, home, "download", "owner/update")
    path = offline.path("find", "owner/update")
    assert path.name == old
    assert (path / "model.safetensors").read_bytes() == tensors(1)
    assert online.path("download", "owner/update").name == new


def test_weights_cut_short_are_not_cached_and_are_fetched_again(served, online, offline):
    served.add("owner/short", small(4))
    weights = online.path("find", "owner/short") / "model.safetensors"
    os.truncate(weights.resolve(), 1000)
    assert "(model.safetensors missing or cut short); hub: " in offline.error("find", "owner/short")
    assert "owner/short" not in offline.call("cached")["value"]
    assert online.path("find", "owner/short") == weights.parent
    assert weights.read_bytes() == tensors(4)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"tokenizer.json": "vocab.txt"},
        {"preprocessor_config.json": "processor_config.json"},
        {"model.safetensors": "shard.safetensors"},
    ],
)
def test_any_programs_cache_will_do(cache, other):
    """No notes of what the hub lacks, no links to blobs: a whole copy all the same."""
    files = {other.get(name, name): data for name, data in small().items()}
    if "shard.safetensors" in files:
        files["model.safetensors.index.json"] = b'{"weight_map": {"weight": "shard.safetensors"}}'
    snapshot = lay(cache, "owner/model", files)
    assert hub.find("owner/model") == hub.find("owner/model", "c0ffee") == snapshot
    assert hub.cached() == ["owner/model"]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_without_config_or_weights_a_model_is_not_cached(cache, lost):
    snapshot = lay(cache, "owner/part", small())
    (snapshot / lost).unlink()
    with pytest.raises(CheckpointError, match=rf"\({lost} missing or cut short\); hub"):
        hub.find("owner/part")
    assert hub.cached() == []


@pytest.mark.parametrize("lost", NEEDED[1:4])
def test_what_load_can_do_without_is_fetched_if_the_hub_answers_and_else_done_without(cache, monkeypatch, lost):
    snapshot = lay(cache, "owner/part", small())
    (snapshot / lost).unlink()
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        raise ConnectionError

    assert hub.find("owner/part") == snapshot
    monkeypatch.setattr(hub, "_fetch", fetch)
    assert hub.find("owner/part") == snapshot
    assert asked == [("owner/part", None)]


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_not_cached(cache, index):
    lay(cache, "owner/index", small(model__safetensors=None) | {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        hub.find("owner/index")
    assert hub.cached() == []


WATCHED = """
import os, sys
written = []
CHANGES = {f"os.{call}" for call in "mkdir rename remove rmdir symlink link chmod utime truncate".split()}
def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if (writes or event in CHANGES) and "__pycache__" not in str(arguments[0]):
        written.append((event, str(arguments[0])))
from huggingface_hub import constants
import minigdino, safetensors
from minigdino.checkpoints import hub
sys.addaudithook(watch)
minigdino.load(hub.find("owner/model"))
hub.cached()
print(written, "huggingface_hub.file_download" in sys.modules)
"""


def test_a_cached_model_loads_without_a_single_write_and_without_the_client(tmp_path):
    """Shown by the interpreter's audit events, since permissions do not stop root."""
    tiny.model().save(tmp_path / "model")
    lay(tmp_path / "hub", "owner/model", files_of(tmp_path / "model"))
    env = environment(HF_ENDPOINT=CLOSED, HF_HUB_CACHE=str(tmp_path / "hub"), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def test_a_read_only_cache_will_do(cache):
    snapshot = lay(cache, "owner/model", small())
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    try:
        for folder in folders:
            folder.chmod(0o555)
        if os.access(snapshot, os.W_OK):
            pytest.skip("this user, root perhaps, may write anyway")
        assert hub.find("owner/model") == snapshot
        assert hub.cached() == ["owner/model"]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_hf_home_and_hf_hub_cache_say_where_the_cache_is(served, online, home, tmp_path):
    served.add("owner/where", small())
    assert online.path("find", "owner/where").is_relative_to(home / "hub" / "models--owner--where")
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home), HF_HUB_CACHE=str(tmp_path / "here")) as client:
        assert client.path("find", "owner/where").is_relative_to(tmp_path / "here" / "models--owner--where")


def test_threads_may_look_for_the_same_model(served, tmp_path):
    served.add("owner/threads", small())
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from minigdino.checkpoints import hub\n"
        "with ThreadPoolExecutor(4) as pool: print(len(set(pool.map(hub.find, ['owner/threads'] * 4))))"
    )
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# names


def test_cached_lists_models_of_ours_that_are_whole(cache):
    assert hub.cached() == []
    lay(cache, "owner/gd", small())
    lay(cache, "owner/mm", small(config__json=b'{"model_type": "mm-grounding-dino"}'), revision="v1")
    for i, config in enumerate((b'{"model_type": "bert"}', b"{}", b"[]", b"{", b"\xff", None)):
        lay(cache, f"other/model{i}", small(config__json=config))
    lay(cache, "owner/part", small(model__safetensors=None))
    (cache / "models--owner--empty").mkdir()
    (cache / "models--owner--file").write_text("")
    (cache / "datasets--owner--data").mkdir()
    assert hub.cached() == ["owner/gd", "owner/mm"]


def test_a_model_id_is_owner_and_name_and_nothing_that_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (hub.DEFAULT, "openmmlab-community/mm_grounding_dino_base_all", "a/b", "a.b/c-d", "_a/b"):
        assert hub.is_model_id(text), text
    for text in ("shapes", "a/b/c", "./b", "../b", "a/.b", "/b", "a/", "", "~/b", "a b/c", "a/b.", "a--b/c", "a/b..c",
                 "a/b.git", "a/model.safetensors", "c:/b", "a\\b", "é/b", None, 3, Path("a/b")):  # fmt: skip
        assert not hub.is_model_id(text), text
    (tmp_path / "a").mkdir()
    assert hub.is_model_id("a/b")
    (tmp_path / "a" / "b").mkdir()
    assert not hub.is_model_id("a/b")


def test_importing_minigdino_and_hub_imports_no_client():
    code = "import minigdino.checkpoints.hub, minigdino.evaluation.verify, sys; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Checkpoints by name: the real hub client against a local server, and cache directories written by hand."""

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
CLOSED = "http://127.0.0.1:1"  # no server listens there


def tensors(seed=0, size=50_000):
    """A safetensors file that `load` rejects, but that is complete for the hub module."""
    return save({"weight": np.random.default_rng(seed).standard_normal(size, np.float32)})


def small(seed=0, **changes):
    """Files of a small repository. A keyword replaces a file; None removes it."""
    files = {"config.json": b'{"model_type": "grounding-dino"}', "model.safetensors": tensors(seed)}
    files |= dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"), b"{}")
    files |= {name.replace("__", "."): data for name, data in changes.items()}
    return {name: data for name, data in files.items() if data is not None}


@pytest.fixture(scope="module")
def served():
    """One hub for all tests of this file. Each test adds its own models."""
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One HF_HOME for all tests of this file."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(served, home):
    """A client process that can reach the hub."""
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home)) as client:
        yield client


@pytest.fixture(scope="module")
def offline(served, home):
    """A client process in offline mode, with the same cache."""
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home), HF_HUB_OFFLINE="1") as client:
        yield client


@pytest.fixture(scope="module")
def unreachable(home):
    """A client process whose hub refuses connections, with the same cache."""
    with Client(HF_ENDPOINT=CLOSED, HF_HOME=str(home)) as client:
        yield client


def write_cache(cache, model_id, files, revision="main", commit="c0ffee"):
    """Write a model to a hub cache, in the public layout."""
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
    """An empty cache for this process, in offline mode."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


# files to download


def test_only_the_needed_files_are_downloaded_and_only_once(served, online, unreachable, offline, tmp_path):
    tiny.model().save(tmp_path)
    more = {"pytorch_model.bin": b"\0" * 5_000_000, "onnx/model.onnx": b"\0" * 1000, "README.md": b"", "vocab.txt": b""}
    more |= {"groundingdino.pth": b"\0" * 1000, "special_tokens_map.json": b"{}", "processor_config.json": b"{}"}
    served.add("owner/first", files_of(tmp_path) | more)
    path = online.path("find", "owner/first")
    assert sorted(file.name for file in path.iterdir()) == sorted(NEEDED)
    assert served.fetched("owner/first") == NEEDED  # weights last
    found = minigdino.load(path).detect(tiny.photo(), "a cat. a dog.")
    np.testing.assert_array_equal(found.boxes, tiny.model().detect(tiny.photo(), "a cat. a dog.").boxes)

    n_requests = len(served.requests)
    assert [client.path("find", "owner/first") for client in (online, unreachable, offline)] == [path] * 3
    assert len(served.requests) == n_requests


def test_shards_are_downloaded_with_their_index(served, online, offline):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {name: tensors(i) for i, name in enumerate(sorted(index["weight_map"].values()))}
    files = small(model__safetensors=None) | shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    served.add("owner/shards", files)
    path = online.path("find", "owner/shards")
    assert {name: (path / name).read_bytes() for name in files} == files
    assert offline.path("find", "owner/shards") == path
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model.safetensors missing or incomplete" in offline.error("find", "owner/shards")


def test_vocab_txt_and_processor_config_are_alternatives(served, online, offline):
    files = small(tokenizer__json=None, vocab__txt=b"[PAD]")
    files["processor_config.json"] = files.pop("preprocessor_config.json")
    served.add("owner/vocab", files)
    path = online.path("find", "owner/vocab")
    assert sorted(file.name for file in path.iterdir()) == sorted(files)
    assert offline.path("find", "owner/vocab") == path


def test_files_that_the_hub_lacks_are_requested_once(served, online):
    files = small(tokenizer__json=None, tokenizer_config__json=None, preprocessor_config__json=None)
    served.add("owner/bare", files)
    path = online.path("find", "owner/bare")
    assert sorted(file.name for file in path.iterdir()) == sorted(files)
    n_requests = len(served.requests)
    assert online.path("find", "owner/bare") == path
    assert len(served.requests) == n_requests


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_a_model_without_config_or_safetensors_is_rejected(served, online, absent):
    name = f"owner/no-{absent}"
    served.add(name, {key: data for key, data in (small() | {"pytorch_model.bin": b""}).items() if key != absent})
    message = online.error("find", name)
    assert message.startswith(f"{name}: the hub's copy has no ")
    assert absent in message
    assert "convert" in message
    assert "pytorch_model.bin" not in served.fetched(name)


def test_a_progress_bar_is_shown_in_a_terminal(served, tmp_path):
    termios = pytest.importorskip("termios")
    served.add("owner/bars", small())
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path)) | {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    terminal, console = os.openpty()
    termios.tcsetwinsize(console, (24, 100))
    try:
        code = "from minigdino.checkpoints import hub; hub.find('owner/bars')"
        done = subprocess.run([sys.executable, "-c", code], stderr=console, stdout=console, env=env, check=False)
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(terminal)
        os.close(console)
    assert done.returncode == 0, shown
    assert "model.safetensors: 100%" in shown


# revisions


def test_a_revision_may_be_a_branch_a_tag_or_a_commit(served, online, unreachable):
    old = served.add("owner/moves", small(1), "main", "v1")
    new = served.add("owner/moves", small(2), "main", "refs/pr/1")
    assert online.path("find", "owner/moves", "v1").name == old
    for revision in ("v1", old):  # a cached commit is found without a reference
        path = unreachable.path("find", "owner/moves", revision)
        assert (path / "model.safetensors").read_bytes() == tensors(1)
    assert "cannot be reached" in unreachable.error("find", "owner/moves")  # main is another revision
    assert online.path("find", "owner/moves").name == new
    assert online.path("find", "owner/moves", "refs/pr/1").name == new
    assert online.path("find", "owner/moves", old).name == old
    assert unreachable.path("find", "owner/moves", "refs/pr/1").name == new


def test_a_cached_branch_changes_only_when_download_is_called(served, online):
    old = served.add("owner/newer", small(1))
    assert online.path("find", "owner/newer").name == old
    new = served.add("owner/newer", small(2))
    assert online.path("find", "owner/newer").name == old
    assert online.path("download", "owner/newer").name == new
    assert online.path("find", "owner/newer").name == new
    fetched = served.fetched("owner/newer")
    assert online.path("download", "owner/newer").name == new
    assert served.fetched("owner/newer") == fetched  # checked, but not downloaded again
    assert fetched.count("tokenizer.json") == 1  # the same in both commits


# errors: each message names the model, the cache and the hub, and suggests alternatives


def gives_alternatives(message, model_id, hub_url, home):
    assert message.startswith(model_id)
    assert f"\nLocal cache: {home / 'hub'}" in message
    assert f"; hub: {hub_url}\n---> hint: give a directory that holds config.json" in message
    assert 'model="shapes"' in message
    assert f"`minigdino download {model_id}`" in message
    return True


def test_a_model_that_is_not_cached_is_an_error_offline(served, offline, home):
    n_requests = len(served.requests)
    for call in (("find",), ("download",)):
        message = offline.error(*call, "owner/absent")
        assert message.startswith("owner/absent: HF_HUB_OFFLINE is set, so the hub is not contacted")
        assert gives_alternatives(message, "owner/absent", served.url, home)
    assert len(served.requests) == n_requests


def test_an_unreachable_hub_is_reported(unreachable, home):
    message = unreachable.error("find", "owner/absent")
    assert re.match(r"owner/absent: the hub cannot be reached \(Connect.*refused", message)
    assert gives_alternatives(message, "owner/absent", CLOSED, home)


def test_an_unknown_name_is_reported(served, online, home):
    message = online.error("find", "owner/absent")
    assert message.startswith("owner/absent: the hub has no model of that name (a private one needs HF_TOKEN), and no")
    assert gives_alternatives(message, "owner/absent", served.url, home)


@pytest.mark.parametrize("revision", ["v9", "../../..", "/etc/hostname"])
def test_an_unknown_revision_is_reported(served, online, home, revision):
    served.add("owner/known", small())
    message = online.error("find", "owner/known", revision)
    assert f"owner/known at revision {revision!r}: the hub has the model, but no branch, tag or commit" in message
    assert gives_alternatives(message, "owner/known", served.url, home)


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
            assert "requires that you accept this model's terms" in message
            assert "HF_TOKEN" in message
            assert gives_alternatives(message, "owner/gated", served.url, tmp_path)


def test_a_server_error_is_reported(served, online, home):
    served.add("owner/down", small())
    served.down.add("owner/down")
    message = online.error("find", "owner/down")
    assert message.startswith("owner/down: the hub answered 503; try again later")
    assert gives_alternatives(message, "owner/down", served.url, home)


def test_a_request_without_an_answer_times_out(served, tmp_path):
    served.silent.add("owner/silent")
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path), HF_HUB_ETAG_TIMEOUT="1") as client:
        message = client.error("find", "owner/silent")
    assert message.startswith("owner/silent: the hub cannot be reached (ReadTimeout")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "a/b c", "/a", "a/", "a--b/c", "../b", "https://a/b", "", None])
def test_an_invalid_name_is_rejected(name):
    for call in (hub.find, hub.download):
        with pytest.raises(CheckpointError, match=r"a model id must be owner/name, for example") as raised:
            call(name)
        assert str(raised.value).endswith(f"; got {name!r}")


def test_a_cache_that_cannot_be_written_is_reported(served):
    """Even root, whom permissions do not restrict, cannot make a folder below a device."""
    served.add("owner/unwritable", small())
    with Client(HF_ENDPOINT=served.url, HF_HUB_CACHE="/dev/null/hub") as client:
        message = client.error("find", "owner/unwritable")
    assert message.startswith("owner/unwritable: the local cache cannot be read or written (")
    assert "/dev/null" in message
    assert "\nLocal cache: /dev/null/hub; hub: http" in message


def test_a_full_disk_is_reported(served, tmp_path):
    """Simulated by a limit on the size of files."""
    served.add("owner/large", small())
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with Client(limit + LOOP, HF_ENDPOINT=served.url, HF_HOME=str(tmp_path)) as client:
        message = client.error("find", "owner/large")
        assert message.startswith("owner/large: no space is left for the local cache (File too large)")
        assert client.call("cached") == {"value": []}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "no space is left for the local cache (No space left on device)"),
        (OSError(30, "Read-only file system", "/c"), "the local cache cannot be read or written (OSError: [Errno 30]"),
        (TimeoutError("10 s"), "the hub cannot be reached (TimeoutError: 10 s)"),
        (RuntimeError("of the\nclient"), "the download failed (RuntimeError: of the)"),
    ],
)
def test_errors_of_the_client_are_described_in_words(cache, monkeypatch, error, reason):
    import huggingface_hub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(CheckpointError) as raised:
        hub.download("a/b")
    assert str(raised.value).startswith(f"a/b: {reason}")
    assert raised.value.__cause__ is error
    assert isinstance(raised.value, OSError)


# complete and incomplete models in the cache


def kill_during_download(served, home, name, *call):
    """Start a call, and kill its process once part of the weights has arrived."""
    served.stalled["model.safetensors"] = 100_000
    try:
        with Client(HF_ENDPOINT=served.url, HF_HOME=str(home)) as client:
            client.start(name, *call)
            assert served.hanging.get(timeout=30) == "model.safetensors"
    finally:
        served.stalled.clear()


def test_an_interrupted_download_is_not_cached_and_can_be_resumed(served, online, offline, home):
    served.add("owner/cut", small(3))
    kill_during_download(served, home, "find", "owner/cut")
    assert "owner/cut: HF_HUB_OFFLINE is set" in offline.error("find", "owner/cut")
    assert "owner/cut" not in offline.call("cached")["value"]
    path = online.path("find", "owner/cut")
    assert (path / "model.safetensors").read_bytes() == tensors(3)
    assert served.fetched("owner/cut").count("tokenizer.json") == 1  # complete files are not downloaded again
    assert offline.path("find", "owner/cut") == path


def test_an_interrupted_update_leaves_the_old_model_cached(served, online, offline, home):
    old = served.add("owner/update", small(1))
    online.path("find", "owner/update")
    new = served.add("owner/update", small(2, config__json=b'{"model_type": "grounding-dino", "new": 1}'))
    kill_during_download(served, home, "download", "owner/update")
    path = offline.path("find", "owner/update")
    assert path.name == old
    assert (path / "model.safetensors").read_bytes() == tensors(1)
    assert online.path("download", "owner/update").name == new


def test_truncated_weights_are_downloaded_again(served, online, offline):
    served.add("owner/short", small(4))
    weights = online.path("find", "owner/short") / "model.safetensors"
    os.truncate(weights.resolve(), 1000)
    assert "(model.safetensors missing or incomplete); hub: " in offline.error("find", "owner/short")
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
def test_a_cache_written_by_another_program_is_used(cache, other):
    """Neither links to blobs nor records of files that the hub lacks are required."""
    files = {other.get(name, name): data for name, data in small().items()}
    if "shard.safetensors" in files:
        files["model.safetensors.index.json"] = b'{"weight_map": {"weight": "shard.safetensors"}}'
    snapshot = write_cache(cache, "owner/model", files)
    assert hub.find("owner/model") == hub.find("owner/model", "c0ffee") == snapshot
    assert hub.cached() == ["owner/model"]


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_without_config_or_weights_a_model_is_not_cached(cache, absent):
    snapshot = write_cache(cache, "owner/part", small())
    (snapshot / absent).unlink()
    with pytest.raises(CheckpointError, match=rf"\({absent} missing or incomplete\); hub"):
        hub.find("owner/part")
    assert hub.cached() == []


@pytest.mark.parametrize("absent", NEEDED[1:4])
def test_a_missing_optional_file_is_no_error_without_a_hub(cache, monkeypatch, absent):
    snapshot = write_cache(cache, "owner/part", small())
    (snapshot / absent).unlink()
    calls = []

    def fetch(*arguments):
        calls.append(arguments)
        raise ConnectionError

    assert hub.find("owner/part") == snapshot
    monkeypatch.setattr(hub, "_fetch", fetch)
    assert hub.find("owner/part") == snapshot
    assert calls == [("owner/part", None)]


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}'])
def test_a_model_with_a_corrupted_index_is_not_cached(cache, index):
    write_cache(cache, "owner/index", small(model__safetensors=None) | {"model.safetensors.index.json": index})
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


def test_a_cached_model_loads_without_writes_and_without_the_client(tmp_path):
    """Checked with audit events of the interpreter, because permissions do not restrict root."""
    tiny.model().save(tmp_path / "model")
    write_cache(tmp_path / "hub", "owner/model", files_of(tmp_path / "model"))
    env = environment(HF_ENDPOINT=CLOSED, HF_HUB_CACHE=str(tmp_path / "hub"), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def test_a_read_only_cache_is_used(cache):
    snapshot = write_cache(cache, "owner/model", small())
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    try:
        for folder in folders:
            folder.chmod(0o555)
        if os.access(snapshot, os.W_OK):
            pytest.skip("this user can write despite the permissions, as root can")
        assert hub.find("owner/model") == snapshot
        assert hub.cached() == ["owner/model"]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_hf_home_and_hf_hub_cache_set_the_cache_directory(served, online, home, tmp_path):
    served.add("owner/where", small())
    assert online.path("find", "owner/where").is_relative_to(home / "hub" / "models--owner--where")
    with Client(HF_ENDPOINT=served.url, HF_HOME=str(home), HF_HUB_CACHE=str(tmp_path / "here")) as client:
        assert client.path("find", "owner/where").is_relative_to(tmp_path / "here" / "models--owner--where")


def test_several_threads_can_find_the_same_model(served, tmp_path):
    served.add("owner/threads", small())
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from minigdino.checkpoints import hub\n"
        "with ThreadPoolExecutor(4) as pool: print(len(set(pool.map(hub.find, ['owner/threads'] * 4))))"
    )
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# model names


def test_cached_lists_complete_models_of_supported_types(cache):
    assert hub.cached() == []
    write_cache(cache, "owner/gd", small())
    write_cache(cache, "owner/mm", small(config__json=b'{"model_type": "mm-grounding-dino"}'), revision="v1")
    for i, config in enumerate((b'{"model_type": "bert"}', b"{}", b"[]", b"{", b"\xff", None)):
        write_cache(cache, f"other/model{i}", small(config__json=config))
    write_cache(cache, "owner/part", small(model__safetensors=None))
    (cache / "models--owner--empty").mkdir()
    (cache / "models--owner--file").write_text("")
    (cache / "datasets--owner--data").mkdir()
    assert hub.cached() == ["owner/gd", "owner/mm"]


@pytest.mark.parametrize("closed", ["", "models--owner--model", "models--owner--model/snapshots/c0ffee"])
def test_what_cannot_be_accessed_is_not_cached(cache, monkeypatch, closed):
    """Simulated, because permissions do not restrict root."""
    write_cache(cache, "a/other", small())
    write_cache(cache, "owner/model", small())

    def refusing(real):
        def look(path, *args, **more):
            if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(cache / closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **more)

        return look

    for name in ("stat", "lstat", "listdir", "scandir", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    assert hub.cached() == (["a/other"] if closed else [])
    assert minigdino.info()["models"] == ["shapes", *hub.cached()]


def test_a_model_id_is_owner_and_name_and_not_an_existing_path(tmp_path, monkeypatch):
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


def test_importing_the_hub_module_does_not_import_the_client():
    code = "import minigdino.checkpoints.hub, minigdino.evaluation.verify, sys; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_wrong_variable_of_the_client_is_named():
    code = (
        "import minigdino\nfrom minigdino.checkpoints import hub\n"
        "for call in (hub.cache, hub.cached, lambda: hub.find('a/b'), lambda: hub.download('a/b')):\n"
        "    try:\n        call()\n    except minigdino.CheckpointError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"HF_HUB_ETAG_TIMEOUT": "abc"},
                          capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all("environment variables HF_HUB_*" in line and "'abc'" in line for line in lines)

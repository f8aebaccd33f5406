"""A damaged hub cache, and impossible names: an error or a new download, never a wait or a foreign exception."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import environment
from safetensors.numpy import save

import minigdino
from minigdino import CheckpointError
from minigdino.checkpoints import hub


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A cache with one complete model, in offline mode. Returns the folder of the model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--owner--model"
    snapshot = folder / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (snapshot / name).write_text("{}")
    (snapshot / "config.json").write_text('{"model_type": "grounding-dino"}')
    (snapshot / "model.safetensors").write_bytes(save({}))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("c0ffee")
    assert hub.find("owner/model") == snapshot
    return folder


def fails():
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set") as caught:
        hub.find("owner/model")
    assert len(str(caught.value)) < 2000


REFS = [b"\xff", b"../../elsewhere", b"/etc", b"", b"c0ffee\0", b"x" * 70_000, b"no such commit"]


@pytest.mark.parametrize("data", REFS, ids=range(len(REFS)))
def test_a_corrupted_ref_is_a_model_that_is_not_cached(data, room):
    (room / "refs/main").write_bytes(data)
    fails()


def test_a_ref_does_not_lead_out_of_the_cache(room, tmp_path):
    (room / "snapshots/c0ffee").rename(tmp_path / "elsewhere")
    (room / "refs/main").write_text("../../elsewhere")
    fails()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("name", ["refs/main", "snapshots/c0ffee/model.safetensors", f"snapshots/c0ffee/{hub.INDEX}"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_devices_and_folders_in_the_cache_are_not_read(make, name, room):
    (room / "snapshots/c0ffee/model.safetensors").unlink(missing_ok=True)
    (room / name).unlink(missing_ok=True)
    make(room / name)
    fails()
    assert hub.cached() == []


SHARDS = ["../../../elsewhere.safetensors", "/elsewhere.safetensors", "a/b", "x" * 9000, "\0", ""]


@pytest.mark.parametrize("shard", SHARDS, ids=range(len(SHARDS)))
def test_an_index_names_only_files_of_its_folder(shard, room, tmp_path):
    (tmp_path / "elsewhere.safetensors").write_bytes(save({}))
    (room / "snapshots/c0ffee/model.safetensors").unlink()
    (room / "snapshots/c0ffee" / hub.INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    fails()


@pytest.mark.parametrize("name", ["o/" + "n" * 97, "o" * 97 + "/n", "o/" + "n" * 70_000], ids=range(3))
def test_a_name_longer_than_the_hub_allows_is_no_model_id(name, room):
    assert not hub.is_model_id(name)
    for call in (hub.find, hub.download):
        with pytest.raises(CheckpointError, match="a model id must be owner/name") as caught:
            call(name)
        assert len(str(caught.value)) < 300
    with pytest.raises(CheckpointError, match="no such file or directory"):
        minigdino.load(name)
    assert hub.is_model_id("o" * 96 + "/" + "n" * 96)


@pytest.mark.parametrize("revision", [3, b"main", ["main"], "\0", "x" * 70_000, "../x", "/etc", "\udc80"], ids=range(8))
def test_an_impossible_revision_is_an_error(revision, room):
    for call in (hub.find, hub.download):
        with pytest.raises(CheckpointError) as caught:
            call("owner/model", revision)
        assert len(str(caught.value)) < 2000


NO_HOME = """
import os
os.getuid = lambda: 54321  # a user without an entry in the list of users, as in some containers
import minigdino
from minigdino.checkpoints import hub
print(hub.cached())
for call in (hub.find, hub.download, minigdino.load):
    try:
        call("owner/model")
    except minigdino.CheckpointError as error:
        print(str(error).partition("\\n")[0])
"""


@pytest.mark.parametrize("cache", [None, "", "file", "/dev/null", "/proc/none"])
def test_without_a_home_or_with_an_impossible_cache_the_errors_are_the_usual_ones(cache, tmp_path):
    (tmp_path / "file").write_text("")
    env = environment(HF_HUB_OFFLINE="1")
    for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "USERPROFILE"):
        env.pop(name, None)
    if cache is not None:
        env["HF_HUB_CACHE"] = cache
    done = subprocess.run([sys.executable, "-c", NO_HOME], capture_output=True, text=True, env=env, cwd=tmp_path,
                          timeout=60, check=False)  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines == ["[]"] + ["owner/model: HF_HUB_OFFLINE is set, so the hub is not contacted."] * 3, done.stderr

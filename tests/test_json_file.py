"""Reading the JSON files of a model: only regular files of bounded size, and one class of error."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import tiny

import minigdino
from minigdino import ArgumentError, CheckpointError, Config, ConfigError
from minigdino.checkpoints.json_file import MAX_BYTES, read_json, read_text
from minigdino.errors import brief
from minigdino.files import read_categories

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


def folder(path):
    path.mkdir()


def text_of_another_encoding(path):
    path.write_bytes('{"ä": 1}'.encode("utf-16"))


def large(path):
    path.touch()
    os.truncate(path, MAX_BYTES + 1)


def deep(path):
    path.write_text("[" * 10**6)


def a_number_of_many_digits(path):
    path.write_text("9" * 10**6)


UNREADABLE = (pipe, device, loop, folder, text_of_another_encoding, large, deep, a_number_of_many_digits)


@pytest.mark.parametrize("make", UNREADABLE)
def test_what_is_not_a_json_file_is_an_error_at_once(make, tmp_path):
    make(tmp_path / "config.json")
    for read in (read_json, Config.from_file):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / "config.json")
        assert str(caught.value).startswith(f"{tmp_path}/config.json: not a readable JSON file (")
        assert str(caught.value).endswith("); download it again")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\udc80" * 300], ids=range(3))
def test_impossible_paths_are_an_error(name, tmp_path):
    for read in (read_json, Config.from_file):
        with pytest.raises(CheckpointError):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", fuzz.INDEX])
@pytest.mark.parametrize("make", [pipe, device, folder, large])
def test_a_model_with_such_a_file_is_an_error_at_once(make, name, tmp_path):
    for file, data in fuzz.model_files().items():
        if file != name:
            (tmp_path / file).write_bytes(data)
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: not a readable JSON file"):
        minigdino.load(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"cat": 1, "cat": 2}', '{"cat": 1, "cat": 1}', '[{"a": {"b": 1, "cat": 2, "cat": 3}}]']
)
def test_an_object_that_repeats_a_key_is_refused(text, tmp_path):
    """Another reader could choose the other value."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="config.json: not a readable JSON file .an object repeats the key 'cat'"):
        read_json(path)
    with pytest.raises(ArgumentError, match="not a readable JSON file of categories"):
        read_categories(path)


def test_a_repeated_key_among_many_is_found_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{" + ", ".join(f'"{i}": 0' for i in range(10**5)) + ', "99999": 1}')
    with pytest.raises(CheckpointError, match="an object repeats the key '99999'"):
        read_json(path)


def test_a_large_file_needs_a_larger_limit(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text('"' + " " * MAX_BYTES + '"')
    with pytest.raises(CheckpointError, match="expected at most 16777216 bytes; got 16777218"):
        read_json(path)
    assert read_json(path, limit=2**25) == " " * MAX_BYTES
    (tmp_path / "link").symlink_to(path)
    assert len(read_text(tmp_path / "link", limit=2**25)) == MAX_BYTES + 2


def test_reading_files_leaves_no_descriptor_open(tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    for i, make in enumerate(UNREADABLE):
        make(tmp_path / str(i))
    before = descriptors()
    for i in range(len(UNREADABLE)):
        with pytest.raises(CheckpointError):
            read_json(tmp_path / str(i))
    assert not descriptors() - before


def descriptors():
    """Open descriptors, with their files. The garbage collector may close those of other tests at any time."""
    return {(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")}  # without the one of listdir


def test_a_device_does_not_fill_memory():
    code = (
        "import resource, minigdino; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "try: minigdino.Config.from_file('/dev/zero')\n"
        "except minigdino.CheckpointError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "expected a regular file; got a pipe or a device" in done.stdout, done.stderr


# values in messages


class Odd:
    def __repr__(self):
        raise RuntimeError


HUGE = 10**5000  # more digits than Python converts to text
VALUES = [HUGE, [HUGE], {1: HUGE}, Odd(), [Odd()], "x" * 10**6, [[[[[[[[1]]]]]]]], b"x" * 10**6, "\0\x1b"]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_is_shortened_for_a_message(value):
    text = brief(value)
    assert 0 < len(text) <= 300 and text.isprintable()


def test_values_with_too_many_digits_are_named_in_errors():
    with pytest.raises(ConfigError, match="d_model must be positive and at most 1e.07; got a very large int"):
        Config(d_model=HUGE)
    with pytest.raises(ArgumentError, match="got a very large list"):
        tiny.tokenizer().decode([HUGE])

"""`minigdino run`: results that do not depend on processes and shards, and runs that are stopped, killed or refused."""

import contextlib
import functools
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_streams import ENV, in_process, objects

from minigdino import cli
from minigdino.runs import run_command
from minigdino.runs.items import stable_id
from minigdino.runs.shard import Shard

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")]

PICTURES = 12
PROMPT = ["a cat. a dog.", "--model", "model", "--threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, images, and the lines of one process for them."""
    folder = tmp_path_factory.mktemp("run")
    tiny.model().save(folder / "model")
    (folder / "images").mkdir()
    for i in range(PICTURES - 1):
        Image.fromarray(tiny.photo(60, 80, seed=i)).save(folder / "images" / f"{i}.png")
    (folder / "images" / "bad.png").write_text("no picture")
    with contextlib.chdir(folder):
        assert cli.main(["run", "images", *PROMPT, "--out", "whole"]) == 1
    return folder


@pytest.fixture(scope="module")
def whole(home):
    """The header and the set of the other lines, as text."""
    return content(home / "whole" / "found.jsonl")


@pytest.fixture
def run(home, monkeypatch, capsys):
    """A function that runs the command in this process. Returns the exit status and standard error."""
    def run(*arguments):
        status, out, err = in_process(home, monkeypatch, capsys, "run", *arguments)
        assert out == ""
        return status, err
    return run


def content(path):
    """The header of a file, and the set of its other lines. No line is there twice."""
    header, *lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines))
    return json.loads(header), set(lines)


def names(path):
    """The images of a file whose last line has no error, each with its number of lines."""
    last = {}
    for values in objects(path)[1:]:
        last.setdefault(values["image"], []).append("error" not in values)
    return {name: len(each) for name, each in last.items() if each[-1]}


# ---- results


def test_a_line_is_that_of_detect_with_an_id(home, whole, monkeypatch, capsys):
    in_process(home, monkeypatch, capsys, "detect", "images", *PROMPT, "--jsonl", "detect.jsonl")
    header, *lines = objects(home / "detect.jsonl")
    for values in lines:
        name = values.pop("image")
        assert json.dumps({"image": name, "id": stable_id(name), **values}) in whole[1]
    assert len(lines) == len(whole[1]) == PICTURES
    more = {"sources": ["images"], "recursive": False, "shard": None}
    assert whole[0] == {**header, **more}


@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_give_the_same_lines(home, whole, run, workers):
    status, err = run("images", *PROMPT, "--out", f"workers{workers}", "--workers", str(workers))
    assert status == 1
    assert content(home / f"workers{workers}" / "found.jsonl") == whole
    assert "images/bad.png: not a readable image" in err
    assert err.endswith(f"wrote workers{workers}/found.jsonl\nminigdino: 1 of {PICTURES} images has an error. The same "
                        "command tries again\n")


def test_shards_give_the_lines_of_the_whole(home, whole, run):
    lines = []
    for i in range(1, 4):
        run("images", *PROMPT, "--out", "shards", "--shard", f"{i}/3", "--workers", str(i))
        header, part = content(home / "shards" / f"found-{i}-of-3.jsonl")
        assert header == {**whole[0], "shard": f"{i}/3"}
        assert all(json.loads(line)["image"] in Shard(i, 3) for line in part)
        lines += part
    assert sorted(lines) == sorted(whole[1])


def test_a_shard_without_images_is_a_file_without_lines(home, run):
    of = next(i for i in itertools.count(2) if "images/0.png" not in Shard(1, i))
    status, err = run("images/0.png", *PROMPT, "--out", "empty", "--shard", f"1/{of}", "--workers", "2")
    assert (status, err) == (0, f"wrote empty/found-1-of-{of}.jsonl\n")
    assert len(objects(home / "empty" / f"found-1-of-{of}.jsonl")) == 1


def test_a_manifest_gives_the_ids(home, run):
    rows = [{"id": 10 - i, "uri": f"images/{i}.png"} for i in range(3)]
    (home / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("list.jsonl", *PROMPT, "--out", "manifest")[0] == 0
    assert [(line["id"], line["image"]) for line in objects(home / "manifest" / "found.jsonl")[1:]] == [
        (row["id"], row["uri"]) for row in rows]


# ---- a run that is continued


@settings(max_examples=10)
@given(st.data())
def test_a_run_that_was_killed_at_any_byte_continues(home, whole, data):
    path = home / "killed" / "found.jsonl"
    complete = (home / "whole" / "found.jsonl").read_bytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(complete[: data.draw(st.integers(0, len(complete)))])
    with contextlib.chdir(home):
        cli.main(["run", "images", *PROMPT, "--out", "killed"])
    header, lines = path.read_text().split("\n", 1)
    assert (json.loads(header), set(lines.splitlines())) == whole
    assert set(names(path).values()) == {1}


def test_an_image_with_an_error_is_tried_again(home, run):
    copy = home / "again.png"
    copy.write_text("no picture")
    sources = ["images/0.png", "again.png"]
    assert run(*sources, *PROMPT, "--out", "again")[0] == 1
    shutil.copy(home / "images" / "1.png", copy)
    assert run(*sources, *PROMPT, "--out", "again") == (0, "wrote again/found.jsonl\n")
    assert names(home / "again" / "found.jsonl") == {"images/0.png": 1, "again.png": 2}
    before = (home / "again" / "found.jsonl").read_bytes()
    assert run(*sources, *PROMPT, "--out", "again", "--workers", "2")[0] == 0
    assert (home / "again" / "found.jsonl").read_bytes() == before


def test_an_id_that_is_that_of_another_image_now_ends_the_run(home, run):
    """Such as a number of a row, after a row was added before it. Without an error, the image would be skipped."""
    def write(*names):
        rows = [f"{i},images/{name}.png" for i, name in enumerate(names)]
        (home / "moved.csv").write_text("\n".join(["id,uri", *rows, ""]))

    write(0, 1)
    assert run("moved.csv", *PROMPT, "--out", "moved")[0] == 0
    before = (home / "moved" / "found.jsonl").read_bytes()
    write(0, 2, 1)
    status, err = run("moved.csv", *PROMPT, "--out", "moved")
    assert status == 1
    assert ("images/2.png: expected an id of its own; the file of this run has another image with the id 1. Correct "
            "the manifest, or begin a run in another folder") in err
    assert (home / "moved" / "found.jsonl").read_bytes() == before


def test_errors_of_images_can_be_allowed(home, run):
    status, err = run("images", *PROMPT, "--out", "allowed", "--allow-errors")
    assert status == 0 and "1 of 12 images has an error" in err
    assert run("none.csv", *PROMPT, "--out", "allowed", "--allow-errors")[0] == 1


@pytest.mark.parametrize(("change", "message"), [
    (["--threshold", "0.3"], "threshold 0.25; got threshold 0.3."), (["--recursive"], "got recursive True."),
    (["--nms", "0.5"], "nms None; got nms 0.5."),
    (["images/0.png"], "sources ['images']; got sources ['images/0.png', ")])
def test_another_run_in_the_same_folder_is_refused(home, run, change, message):
    before = (home / "whole" / "found.jsonl").read_bytes()
    status, err = run(*change, "images", *PROMPT, "--out", "whole")
    assert (status, err.count("\n")) == (1, 1)
    assert "whole/found.jsonl: a run that continues needs the model and the options with which the file was" in err
    assert message in err
    assert (home / "whole" / "found.jsonl").read_bytes() == before


def test_the_lines_of_detect_are_not_continued(home, run, monkeypatch, capsys):
    (home / "other").mkdir()
    in_process(home, monkeypatch, capsys, "detect", "images/0.png", *PROMPT, "--jsonl", "other/found.jsonl")
    status, err = run("images/0.png", *PROMPT, "--out", "other")
    assert status == 1 and "sources None" in err
    (home / "other" / "found.jsonl").write_text('{"image": "a"}\n')
    status, err = run("images/0.png", *PROMPT, "--out", "other")
    assert status == 1 and "expected a first line that names the model and the prompt, because a run that" in err


# ---- arguments


@pytest.mark.parametrize(("arguments", "message"), [
    (["--shard", "0/4"], "a shard must be i/n with 1 <= i <= n, such as 1/4; got 0/4"), (["--shard", ""], "got ''"),
    (["--workers", "0"], "--workers must be 1 to 1024; got 0"), (["--threads", "0"], "--threads must be 1 to 1024"),
    (["--threshold", "2"], "threshold must be"), (["--model", "void"], "void: no such file"),
    (["--device", "cuda:x"], "device"), (["images/*.gif"], "the pattern matches no file"),
    (["clip.mp4"], "got the video"), (["-"], "got standard input"), (["wrong.jsonl"], "wrong.jsonl"),
    (["new/found.jsonl"], "a source and --out")])
def test_wrong_arguments_leave_no_file(home, run, arguments, message):
    (home / "wrong.jsonl").write_text('{"id": 1, "uri": "images/0.png"}\n{"id": "2", "uri": "images/0.png"}\n')
    prompt = [*PROMPT, "--out", "new"]
    status, err = run("images/0.png", *(prompt + arguments if arguments[0].startswith("--") else arguments + prompt))
    assert (status, err.count("\n")) == (1, 1), err
    assert message in err
    assert not list(home.glob("new/*"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["images", "cat"], "the following arguments are required: --out"),
    (["cat", "--out", "usage"], "give an image and a text"),
    (["images", "cat", "--chunk", "2", "--out", "usage"], "--chunk needs the phrases by --phrase"),
    (["cat", "images", "--out", "usage"], 'Write: minigdino run images "cat"'),
    (["images", "cat", "--out", ""], "got ''"),
    (["images", "cat", "--out", "usage", "--jsonl", "a"], "unrecognized arguments: --jsonl")])
def test_arguments_that_do_not_fit_together_are_a_wrong_usage(home, run, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (home / "usage").exists()


def test_a_file_is_no_folder_of_results(home, run):
    status, err = run("images", *PROMPT, "--out", "images/0.png")
    assert status == 1
    assert err == "minigdino: images/0.png: expected a folder for --out; got a file. Choose another name\n"


# ---- what happens to the processes


@pytest.fixture(scope="module")
def many(home):
    """A function that returns the name of a folder with some number of images."""
    def folder(pictures):
        name = home / f"many{pictures}"
        if not name.exists():
            name.mkdir()
            for i in range(pictures):
                Image.fromarray(tiny.photo(60, 80, seed=i)).save(name / f"{i}.png")
        return name.name
    return folder


@pytest.fixture(scope="module")
def expected(home):
    """A function that returns the header and the lines of one process for a folder."""
    def lines(folder):
        with running(home, folder, "--out", f"expected-{folder}") as process:
            assert process.wait() == 0
        return content(home / f"expected-{folder}" / "found.jsonl")
    return lines


@contextlib.contextmanager
def running(home, *arguments, limit=None):
    """A process that runs the command, in a group of its own."""
    # a background job of a shell ignores SIGINT, and its children inherit that: restore the default handler
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from minigdino.cli import main; sys.exit(main())")
    command = [sys.executable, "-c", code, "run", *arguments, *PROMPT]
    with subprocess.Popen(command, cwd=home, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          preexec_fn=limit) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def workers(process):
    """The process ids of the workers."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


def until(condition):
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def count(path):
    """The number of lines of a file, which may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_gone(pid):
    """Return whether a process has ended. A zombie has, too."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def finish(home, folder, out):
    """Continue a run until all images are done. Returns its header, and the lines without an error."""
    with running(home, folder, "--out", out, "--workers", "2") as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    path = home / out / "found.jsonl"
    assert set(names(path).values()) <= {1, 2}
    header, lines = content(path)
    return header, {line for line in lines if '"error"' not in line}


@pytest.mark.parametrize(("kills", "pictures"), [(3, 60), pytest.param(25, 500, marks=pytest.mark.slow)])
def test_killed_workers_lose_no_image(home, many, expected, kills, pictures):
    """They are killed at random moments. An image during which two are killed is an error, and tried again later."""
    rng, folder, path = random.Random(0), many(pictures), home / f"kills{kills}" / "found.jsonl"
    with running(home, folder, "--out", path.parent.name, "--workers", "2") as process:
        for i in range(kills):
            until(lambda done=i * pictures // (kills + 1): count(path) > done and len(workers(process)) == 2)
            time.sleep(0.02 * rng.random())
            os.kill(rng.choice(workers(process)), signal.SIGKILL)
        _, err = process.communicate()
    assert err.count("has ended by SIGKILL, and is replaced") + err.count("two workers have ended") == kills, err
    assert process.returncode == ("two workers have ended" in err)
    assert set(names(path).values()) == {1}
    assert finish(home, folder, path.parent.name) == expected(folder)


@pytest.mark.parametrize(("moment", "number"), [(9, signal.SIGKILL), (9, signal.SIGTERM), (9, signal.SIGINT),
                                                (0, signal.SIGINT)])
def test_a_run_that_is_stopped_leaves_no_process_and_continues(home, many, expected, moment, number):
    """At a number of lines: killed, ended, or interrupted by Ctrl-C, which a terminal sends to all processes."""
    out, folder = f"stopped-{moment}-{number}", many(60)
    path = home / out / "found.jsonl"
    with running(home, folder, "--out", out, "--workers", "2") as process:
        until(lambda: workers(process) and count(path) >= moment)
        processes = workers(process)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, err = process.communicate()
        until(lambda: all(map(is_gone, processes)))
        assert (process.returncode, err) == ((130, "\nminigdino: stopped\n") if number == signal.SIGINT
                                             else (-number, ""))
    assert count(path) < 61
    assert finish(home, folder, out) == expected(folder)


@pytest.mark.slow
def test_control_c_at_any_moment_gives_no_traceback(home, many):
    """From the start of the first worker on."""
    rng = random.Random(0)
    for i in range(25):
        with running(home, many(60), "--out", f"any{i}", "--workers", "2") as process:
            until(functools.partial(workers, process))
            time.sleep(0.5 * rng.random())
            processes = workers(process)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate()
        assert (process.returncode, err) in ((130, "\nminigdino: stopped\n"), (0, f"wrote any{i}/found.jsonl\n"))
        assert all(map(is_gone, processes))


def test_two_runs_of_one_shard_do_not_write_to_the_same_file(home, many):
    with running(home, many(60), "--out", "both") as first:
        until(lambda: count(home / "both" / "found.jsonl"))
        with running(home, many(60), "--out", "both") as second:
            _, err = second.communicate()
        assert second.returncode == 1
        assert err == ("minigdino: both/found.jsonl: another process is writing to this file. Wait until it ends, or "
                       "choose another name for --out\n")
        assert first.wait() == 0
    assert len(names(home / "both" / "found.jsonl")) == 60


def test_a_full_disk_ends_the_run_and_all_processes(home, many, expected):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with running(home, many(60), "--out", "full", "--workers", "2", limit=small_files) as process:
        until(lambda: len(workers(process)) == 2)
        processes = workers(process)
        _, err = process.communicate()
        assert process.returncode == 1
        until(lambda: all(map(is_gone, processes)))
    assert err == ("minigdino: full/found.jsonl: the file cannot be written (File too large). Choose another name for "
                   "--out\n")
    assert (home / "full" / "found.jsonl").stat().st_size == 20_000
    assert finish(home, many(60), "full") == expected(many(60))


def test_a_terminal_shows_one_line_of_progress(home):
    master, slave = os.openpty()
    subprocess.run([sys.executable, "-m", "minigdino", "run", "images", *PROMPT, "--out", "shown", "--workers", "2"],
                   cwd=home, stderr=slave, check=False, env=ENV)
    os.close(slave)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert shown.count(f"/{PICTURES} images, ") == PICTURES
    assert shown.replace("\r\n", "\n").count("\n") == 4  # the image with an error, the progress, and two at the end


@pytest.mark.parametrize(("change", "message"), [
    (shutil.rmtree, "changing: no such file"),
    (tiny.model(seed=1).save, "changing: expected the model with which the run began; its files have changed since")])
def test_a_model_that_changes_before_a_worker_starts_ends_the_run(home, run, monkeypatch, change, message):
    """A worker that replaces another one can start days after the run."""
    tiny.model().save(home / "changing")
    dumps = pickle.dumps

    def dumps_and_change(model):
        data = dumps(model)
        change(home / "changing")
        return data

    monkeypatch.setattr(run_command.pickle, "dumps", dumps_and_change)
    out = f"changing-{len(message)}"
    status, err = run("images", "cat", "--model", "changing", "--out", out, "--workers", "2")
    assert (status, err.count("\n")) == (1, 1)
    assert message in err

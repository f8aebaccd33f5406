"""The command line with closed, full and broken outputs, with little memory, and with file names that hold commands."""

import errno
import io
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import tiny
from PIL import Image

from minigdino import ArgumentError, cli, console, detect_run, files, outputs, writing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


# without PYTHONUNBUFFERED, a failure to write can occur as late as at the end of the process
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("MINIGDINO", "PYTHONUNBUFFERED"))} | {
    "HF_HUB_OFFLINE": "1"}


def shell(home, arguments, redirections="", limit=None, **env):
    """Run a command with the redirections of a shell."""
    return subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m minigdino {arguments} {redirections}"],
        cwd=home, capture_output=True, check=False, timeout=60, preexec_fn=limit, env={**ENV, **env})


def in_process(home, monkeypatch, capsys, *arguments):
    """Run a command in this process. Returns the exit status, standard output and standard error."""
    monkeypatch.chdir(home)
    status = cli.main(list(arguments))
    return status, *capsys.readouterr()


DETECT = "detect photo.png cat --model model"


def objects(path):
    """The JSON objects of a JSON Lines file: the header, and one per image."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def images_of(path):
    """The names of the images in a JSON Lines file."""
    return [line["image"] for line in objects(path)[1:]]


@pytest.fixture(scope="module")
def header(home):
    """The first line of the JSON Lines that DETECT writes."""
    return shell(home, f"{DETECT} --jsonl -").stdout.decode().splitlines(keepends=True)[0]


@pytest.mark.parametrize(("arguments", "redirections", "status"), [
    (DETECT, ">&-", 0), (DETECT, "2>&-", 0), (DETECT, "<&- >&- 2>&-", 0), ("detect - cat --model model", "<&-", 1),
    ("detect photo.png photo.png cat --model model", "2>&-", 0), ("void", "2>&- >&-", 2),
    ("detect void.png cat --model model", "2>/dev/full", 1),
    (DETECT, ">/dev/full", 1), (f"{DETECT} --json", ">/dev/full", 1), ("--help", ">/dev/full", 1)])
def test_closed_and_full_streams_give_no_traceback(home, arguments, redirections, status):
    done = shell(home, arguments, redirections)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    if "/dev/full" in redirections and "2>" not in redirections:
        assert b"standard output: cannot write there (No space left on device)" in done.stderr
    if arguments.startswith("detect -"):
        assert b"expected an image on standard input, which is empty or closed" in done.stderr


def test_a_file_does_not_take_the_number_of_a_closed_stream(home):
    """Otherwise messages of C libraries would be written into the file."""
    done = shell(home, f"{DETECT} --jsonl numbers.jsonl", "<&- >&- 2>&-")
    assert done.returncode == 0
    assert images_of(home / "numbers.jsonl") == ["photo.png"]


@pytest.mark.parametrize("arguments", ["--help", f"{DETECT} --json"])
def test_a_reader_that_ends_early_gives_no_message(home, arguments):
    receiver, sender = os.pipe()
    os.close(receiver)
    done = subprocess.run([sys.executable, "-m", "minigdino", *arguments.split()], cwd=home, stdout=sender,
                          stderr=subprocess.PIPE, check=False, env=ENV)
    os.close(sender)
    assert (done.returncode, done.stderr) == (1, b"")


def test_labels_that_the_terminal_cannot_encode_are_escaped(home):
    done = shell(home, "detect photo.png 猫 --model model", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"\u732b  0.")


def test_messages_for_a_stream_without_their_characters_are_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    console.complain("猫.png: no such file")
    assert stream.buffer.getvalue() == rb"\u732b.png: no such file" + os.linesep.encode()


def test_file_names_and_labels_cannot_send_commands_to_the_terminal(home, monkeypatch, capsys):
    evil = "e\x1b]0;owned\x07\n\x9b31m.png"
    (home / evil).write_bytes((home / "photo.png").read_bytes())
    status, out, err = in_process(home, monkeypatch, capsys, "detect", evil, "photo.png", "a \x1b cat", "--model",
                                  "model", "--out", "drawn", "--threshold", "0.6")
    assert status == 0, err
    _, lost, missing = in_process(home, monkeypatch, capsys, "detect", f"void{evil}", "cat", "--model", "model")
    _, _, pattern = in_process(home, monkeypatch, capsys, "detect", f"*void{evil}", "cat", "--model", "model")
    for text in (out, err, lost, missing, pattern):
        assert text.replace("\n", "").isprintable()
    assert r"wrote drawn/e\x1b]0;owned\x07\n\x9b31m.png" in err
    assert r"e\x1b]0;owned\x07\n\x9b31m.png:" in out.splitlines()
    assert missing.count("\n") == pattern.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["info", "\x1b[2J"])
    assert r"unrecognized arguments: \x1b[2J" in capsys.readouterr().err


def test_names_that_are_not_unicode_reach_all_outputs(home, monkeypatch, capsys):
    name = os.fsdecode(b"\xff.png")
    try:
        (home / name).write_bytes((home / "photo.png").read_bytes())
    except OSError:
        pytest.skip("the file system has Unicode names only")
    status, out, err = in_process(home, monkeypatch, capsys, "detect", name, "photo.png", "cat", "--model", "model",
                                  "--jsonl", "raw.jsonl", "--coco", "raw.json", "--out", "raw")
    assert status == 0, err
    assert (home / "raw" / name).exists()
    assert json.loads((home / "raw.json").read_text())["images"][0]["file_name"] == name
    assert files.JsonLines(home / "raw.jsonl", resume=True).__exit__() is None
    status, _, err = in_process(home, monkeypatch, capsys, "detect", name, "photo.png", "cat", "--model", "model",
                                "--jsonl", "raw.jsonl", "--resume", "--json")
    assert (status, err) == (0, "")


def test_printable_keeps_ordinary_text():
    for text in ("a cat", "/tmp/ä 猫.png", "שלום", "🐱", ""):
        assert console.printable(text) == text
    assert console.printable("a\n\x1b\udcff\u202e\tb") == r"a\n\x1b\udcff\u202e\tb"
    assert console.printable("a\n\t", keep="\n") == "a\n\\t"


def small_files():
    """Limit files to 1 kB, as a full disk would. A write beyond the limit is partial, then fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_disk_gives_a_message_and_keeps_existing_files(home):
    for name in ("old.json", "old.png"):
        (home / name).write_bytes(b"old")
    for option in ("--coco old.json", "--out old.png"):
        done = shell(home, f"{DETECT} {option} --threshold 0 --overwrite", limit=small_files)
        assert done.returncode == 1
        assert b"cannot write there (File too large)" in done.stderr and b"Traceback" not in done.stderr
    assert (home / "old.json").read_bytes() == (home / "old.png").read_bytes() == b"old"
    assert not list(home.glob(".*.part"))


def test_a_line_cut_by_a_full_disk_is_removed_on_resume(home):
    done = shell(home, f"{DETECT} --jsonl cut.jsonl --threshold 0", limit=small_files)
    assert done.returncode == 1
    assert b"cut.jsonl: the file cannot be written (File too large)" in done.stderr and b"Traceback" not in done.stderr
    assert len(cut := (home / "cut.jsonl").read_bytes()) == 1000
    done = shell(home, f"{DETECT} --jsonl cut.jsonl --resume --threshold 0")
    assert done.returncode == 0, done.stderr
    assert (home / "cut.jsonl").read_bytes().startswith(cut)
    assert images_of(home / "cut.jsonl") == ["photo.png"]


def test_too_little_memory_gives_a_message(home, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(detect_run, "detect_each", fail)
    status, _, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "cat", "--model", "model")
    assert (status, err) == (1, "minigdino: there is not enough memory. Use a smaller --size, or a machine with more "
                                "memory\n")


HOLD = """
import json, sys, time
from minigdino.files import JsonLines
lines = JsonLines(sys.argv[1], header=json.loads(sys.argv[2]))
lines.write({"image": "a.png"})
lines._file.write(b'{"image": "b.p')
print("ready", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_run_can_be_resumed(home, header):
    path = home / "shared.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), header], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        refused = [shell(home, f"{DETECT} --jsonl shared.jsonl {how}") for how in ("--resume", "--overwrite")]
        process.send_signal(signal.SIGKILL)
    for second in refused:
        assert second.returncode == 1
        assert b"shared.jsonl: another process is writing to this file" in second.stderr
    assert path.read_text() == header + '{"image": "a.png"}\n{"image": "b.p'
    assert shell(home, f"{DETECT} --jsonl shared.jsonl --resume").returncode == 0
    assert images_of(path) == ["a.png", "photo.png"]


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.JsonLines(tmp_path / "a.jsonl") as lines:
        lines.write({"image": "a"})
    assert (tmp_path / "a.jsonl").read_text() == '{"image": "a"}\n'


def test_an_empty_path_is_a_wrong_argument_and_no_output_goes_missing(home, capsys):
    for option in ("--coco", "--jsonl", "--csv", "--out", "--categories"):
        with pytest.raises(SystemExit) as end:
            cli.main(["detect", "photo.png", "cat", option, ""])
        assert end.value.code == 2
        assert f"{option}: expected a path; got ''" in capsys.readouterr().err


def test_images_are_never_drawn_over_images(home, monkeypatch, capsys):
    (home / "inputs").mkdir()
    Image.fromarray(tiny.photo(60, 80)).save(home / "inputs" / "x.png")
    before = (home / "inputs" / "x.png").read_bytes()
    status, _, err = in_process(home, monkeypatch, capsys, "detect", "inputs", "cat", "--model", "model", "--out",
                                "inputs")
    assert status == 1
    assert "inputs/x.png would be drawn to inputs/x.png, which is one of the images" in err
    assert (home / "inputs" / "x.png").read_bytes() == before


@pytest.mark.parametrize(("arguments", "message"), [
    (["bench", "--model", "model", "--tokens", "-1"], "--tokens must be 1 to"),
    (["bench", "--model", "model", "--tokens", "1" * 30], "--tokens must be 1 to"),
    (["bench", "--model", "model", "--size", "1" * 30, "64"], "--size must be HEIGHT and WIDTH in pixels, each 1 to"),
    (["detect", "photo.png", "cat", "--model", "model", "--out", "x" * 5000], "cannot write there"),
    (["detect", "photo.png", "cat", "--model", "model", "--coco", "x" * 5000], "there (File name too long)"),
    (["detect", "photo.png", "cat", "--model", "model", "--coco", "\0"], "embedded null"),
    (["detect", "photo.png", "cat", "--model", "model", "--jsonl", "\0"], "embedded null"),
    (["detect", "photo.png", "cat", "--model", "model", "--jsonl", "/dev/full"], "expected a regular file for --jsonl"),
    (["detect", "photo.png", "cat", "--model", "model", "--threads", "1" * 30], "positive int, at most 1024"),
    (["detect", "x" * 5000, "cat", "--model", "model"], "not a readable image"),
    (["detect", "\0*", "cat", "--model", "model"], "embedded null")])
def test_odd_arguments_give_a_message(home, monkeypatch, capsys, arguments, message):
    status, _, err = in_process(home, monkeypatch, capsys, *arguments)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1


def test_a_pipe_is_an_output_like_a_file(home, monkeypatch, capsys):
    os.mkfifo(home / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((home / "pipe").read_text()), daemon=True)
    reader.start()
    status, _, err = in_process(home, monkeypatch, capsys, *DETECT.split(), "--coco", "pipe")
    reader.join(20)
    assert status == 0, err
    assert list(json.loads(read[0])) == ["images", "categories", "annotations", "info"]


def test_a_replaced_file_keeps_its_mode_and_links(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    writing.replace_file(link, b"new")
    assert (target.read_text(), link.is_symlink(), target.stat().st_mode & 0o777) == ("new", True, 0o640)
    writing.replace_file(tmp_path / "a" / "b" / "c.json", b"new")
    assert (tmp_path / "a" / "b" / "c.json").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "link.json", "target.json"]
    with open(tmp_path / "out", "wb") as stream:
        writing.replace_file(f"/dev/fd/{stream.fileno()}", b"through the open file")
    assert (tmp_path / "out").read_bytes() == b"through the open file"


def detect(home, monkeypatch, capsys, *arguments):
    """Run `detect` with the model in this process. Returns the exit status and standard error."""
    status, _, err = in_process(home, monkeypatch, capsys, "detect", *arguments, "--model", "model")
    return status, err


def copies(home, folder, *paths):
    """A new folder with copies of an image."""
    for path in paths:
        (home / folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.photo(60, 80)).save(home / folder / path)
    return home / folder


def test_drawings_stay_in_the_folder_of_out(home, monkeypatch, capsys):
    top = copies(home, "dots", "sub/x.jpg", "other/y.jpg")
    (top / "drawn").mkdir()
    for work, sources in ((top, ["sub/x.jpg", "sub/../other/y.jpg"]), (top / "sub", ["x.jpg", "../other/y.jpg"])):
        status, _, err = in_process(work, monkeypatch, capsys, "detect", *sources, "cat", "--model",
                                    str(home / "model"), "--out", str(top / "drawn"))
        assert status == 0, err
    found = sorted(str(p.relative_to(top)) for p in top.rglob("*.png"))
    assert found == ["drawn/other/y.png", "drawn/sub/x.png"]


def test_an_image_can_be_given_twice_under_two_names(home, monkeypatch, capsys):
    copies(home, "twice", "x.jpg")
    status, err = detect(home, monkeypatch, capsys, "twice/x.jpg", "./twice/x.jpg", "cat", "--out", "twice_drawn")
    assert status == 0, err
    assert [p.name for p in (home / "twice_drawn").iterdir()] == ["x.png"]


def test_outputs_have_an_image_once_if_its_path_is_given_twice(home, monkeypatch, capsys):
    status, out, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "photo.png", "cat", "--model",
                                  "model", "--json", "--jsonl", "single.jsonl", "--coco", "single.json")
    assert status == 0, err
    assert [line["image"] for line in json.loads(out)] == ["photo.png"]
    header, line = (home / "single.jsonl").read_text().splitlines()
    assert [image["file_name"] for image in json.loads((home / "single.json").read_text())["images"]] == ["photo.png"]
    old = json.dumps({**json.loads(line), "detections": []})
    (home / "single.jsonl").write_text("\n".join([header, old, line, ""]))
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--jsonl", "single.jsonl", "--resume", "--coco",
                         "resumed.json")
    assert status == 0, err
    assert (home / "resumed.json").read_bytes() == (home / "single.json").read_bytes()


@pytest.fixture
def photos(home, tmp_path):
    """A folder with an image a.jpg, which `--out` would draw to a.png."""
    Image.fromarray(tiny.photo(60, 80)).save(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize("source", ["a.jpg", "*.jpg"])
@pytest.mark.parametrize("kind", ["picture", "text", "empty", "folder", "pipe", "link"])
def test_a_folder_of_drawings_keeps_every_other_file(photos, monkeypatch, capsys, kind, source):
    path, other = photos / "a.png", photos / "other.png"
    Image.fromarray(tiny.photo(50, 40)).save(other)
    {"picture": lambda: path.write_bytes(other.read_bytes()), "text": lambda: path.write_text("notes"),
     "empty": path.touch, "folder": path.mkdir, "pipe": lambda: os.mkfifo(path),
     "link": lambda: path.symlink_to(other)}[kind]()
    before = {p: p.is_file() and p.read_bytes() for p in photos.iterdir()}
    monkeypatch.setattr(detect_run, "load", None)  # the error comes before the model is loaded
    status, _, err = in_process(photos, monkeypatch, capsys, "detect", source, "cat", "--out", ".", "--jsonl",
                                "new.jsonl")
    assert (status, err.count("\n")) == (1, 1), err
    assert "a.jpg would be drawn to a.png, which exists and was not drawn by minigdino. Give --out another" in err
    assert {p: p.is_file() and p.read_bytes() for p in photos.iterdir()} == before


@pytest.mark.parametrize(("source", "out"), [(".", "."), ("../photos", "."), (".", "../photos")])
def test_a_folder_of_images_is_not_one_for_drawings(photos, monkeypatch, capsys, source, out):
    """The next run would take the drawings for images."""
    monkeypatch.setattr(detect_run, "load", None)
    source, out = (one.replace("photos", photos.name) for one in (source, out))
    status, _, err = in_process(photos, monkeypatch, capsys, "detect", source, "cat", "--out", out)
    assert status == 1
    assert "where the next run would take the drawing for an image. Give --out another folder" in err


@pytest.mark.parametrize("profile", [b"", b"profile" * 1000])
def test_a_folder_of_drawings_is_drawn_again(home, photos, monkeypatch, capsys, profile):
    Image.fromarray(tiny.photo(60, 80)).save(photos / "a.jpg", icc_profile=profile)
    drawn = []
    for out in (".", "a.png", "."):  # a picture of one image, under the same name, counts too
        status, _, err = in_process(photos, monkeypatch, capsys, "detect", "a.jpg", "cat", "--model",
                                    str(home / "model"), "--out", out)
        assert status == 0, err
        drawn.append((photos / "a.png").read_bytes())
    assert drawn[0] == drawn[1] == drawn[2]
    with Image.open(photos / "a.png") as picture:
        picture.load()
        assert (picture.info["Software"], picture.info.get("icc_profile", b"")) == ("minigdino", profile)


@pytest.mark.parametrize("name", [f"mine.{ending}" for ending in ("png", "jpg", "webp", "gif", "tif", "json", "csv")])
def test_a_named_file_is_replaced_only_if_minigdino_wrote_it(home, photos, monkeypatch, capsys, name):
    """The model is loaded only after that check."""
    option = {".json": "--coco", ".csv": "--csv"}.get((photos / name).suffix, "--out")
    arguments = "photo.png", "cat", option, str(photos / name)
    (photos / name).write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(detect_run, "load", None)
        status, err = detect(home, patch, capsys, *arguments)
        assert (status, err.count("\n")) == (1, 1)
        assert f"{name} exists, and is not marked as written by minigdino. Choose another name, or give --over" in err
        assert (photos / name).read_text() == "old"
    for more in (["--overwrite"], ["--overwrite"] if name == "mine.csv" else []):  # CSV has no place for a mark
        status, err = detect(home, monkeypatch, capsys, *arguments, *more)
        assert status == 0, err
        assert (photos / name).read_bytes() != b"old"


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_a_resumed_run_writes_the_coco_file_of_an_uninterrupted_run(home, monkeypatch, capsys, done):
    folder = copies(home, f"coco{done}", "a.png", "c.png", "d.png")
    (folder / "b.png").write_bytes(b"broken")
    options = [folder.name, "cat. dog.", "--threshold", "0.3", "--jsonl", f"{folder}.jsonl", "--coco", f"{folder}.json"]
    assert detect(home, monkeypatch, capsys, *options)[0] == 1
    want = json.loads((home / f"{folder}.json").read_text())
    assert len(want["images"]) == 3 and want["annotations"]
    lines = (home / f"{folder}.jsonl").read_text().splitlines(keepends=True)
    (home / f"{folder}.jsonl").write_text("".join(lines[: 1 + done]) + '{"image": "')
    status, err = detect(home, monkeypatch, capsys, *options, "--resume")
    assert status == 1  # for the broken image, of this run or of the earlier one
    assert ("has an error of an earlier run for 1 image. To try again, delete its line" in err) == (done >= 2)
    assert json.loads((home / f"{folder}.json").read_text()) == want


@pytest.mark.parametrize(("line", "message"), [
    ({}, 'each line must have "width", "height" and "detections"; the line of photo.png has another format'),
    ({"width": 1, "height": 1, "detections": [{"box": [1, 2]}]}, "has another format"),
    ({"width": 1, "height": 1, "detections": 7}, "has another format"),
    ({"width": "x", "height": 1, "detections": []}, "has another format"),
    ({"width": 1, "height": 1, "detections": [
        {"box": [1, 2, 3, 4], "score": 0.5, "label": ["a"], "label_id": 0, "phrase": ""}]}, "has another format"),
    ({"width": 1, "height": 1, "detections": [
        {"box": [float("nan"), float("inf"), 3, 4], "score": 0.5, "label": "cat", "label_id": 0, "phrase": ""}]},
     "has another format"),
    ({"width": 1, "height": 1, "detections": [
        {"box": [1, 2, 3, 4], "score": 0.5, "label": "dog", "label_id": 0, "phrase": "dog"}]},
     "each label must be a phrase of the prompt; 'dog' of photo.png is not. Delete its line, so that --resume")])
def test_lines_that_do_not_fit_a_coco_file_are_refused_before_it_is_replaced(
        home, header, monkeypatch, capsys, line, message):
    (home / "unfit.jsonl").write_text(header + json.dumps({"image": "photo.png", **line}) + "\n")
    (home / "unfit.json").write_text("old")
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--jsonl", "unfit.jsonl", "--resume", "--coco",
                         "unfit.json", "--overwrite")
    assert (status, message in err, err.count("\n")) == (1, True, 1), err
    assert (home / "unfit.json").read_text() == "old"


def test_a_line_is_written_after_the_picture(home, monkeypatch, capsys):
    """A run that is killed between the two draws the picture again when it is resumed."""
    write = files.JsonLines.write

    def killed(*given):
        if not (isinstance(given[-1], dict) and "minigdino" in given[-1]):  # the header is written
            raise KeyboardInterrupt
        write(*given)

    arguments = ["photo.png", "cat", "--out", "killed.png", "--jsonl", "killed.jsonl", "--resume"]
    for owner, name in ((writing, "replace_file"), (files.JsonLines, "write")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            assert detect(home, monkeypatch, capsys, *arguments)[0] == 130
        assert images_of(home / "killed.jsonl") == []
    (home / "killed.png").unlink()
    status, err = detect(home, monkeypatch, capsys, *arguments)
    assert status == 0, err
    assert (home / "killed.png").exists() and images_of(home / "killed.jsonl") == ["photo.png"]


@pytest.mark.parametrize("options", [
    "--jsonl same.x --coco same.x", "--jsonl same.x --coco ./void/../same.x", "--out same.png --coco same.png",
    "--out same.png --jsonl same.png", "--out me.png", "--coco me.png", "--jsonl me.png --resume", "--coco link.png",
    "--categories ids.json --coco ids.json", "--categories ids.json --coco new.json --jsonl ids.json --resume",
    "you.png --out folder --coco folder/me.png", "you.png --out new --jsonl new",
    "--csv me.png --overwrite", "--out me.png --overwrite", "--out link.png --overwrite", "--coco hard.png --overwrite",
    "--csv same.x --coco same.x", "--jsonl me.png --overwrite",
    "you.png --out folder --csv folder/you.png --overwrite"])
def test_an_output_never_replaces_an_input_or_another_output(home, monkeypatch, capsys, options):
    work = copies(home, "same", "me.png", "you.png", "folder/old.png")
    (work / "ids.json").write_text('{"cat": 17}')
    if not (work / "link.png").is_symlink():
        (work / "link.png").symlink_to("me.png")
        (work / "hard.png").hardlink_to(work / "me.png")
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    monkeypatch.setattr(detect_run, "load", None)  # the error comes before the model is loaded
    status, _, err = in_process(work, monkeypatch, capsys, "detect", "me.png", *options.split(), "--phrase", "cat")
    assert status == 1
    assert "expected different files for " in err and " for both. Choose another name" in err
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before


def test_a_page_never_replaces_its_image(home, monkeypatch, capsys):
    status, _, err = in_process(home, monkeypatch, capsys, "explain", "photo.png", "cat", "--model", "model", "--out",
                                "./photo.png")
    assert status == 1
    assert "expected different files for the image and --out; got photo.png for both" in err
    Image.open(home / "photo.png").load()


@pytest.fixture
def blocked(home, tmp_path, monkeypatch):
    """Targets that cannot be written. The model is not loaded before the error."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "old.png").write_text("old")
    real = os.open

    def refuse(path, flags, *mode, **options):  # root may write to every folder
        if flags & os.O_CREAT and os.path.dirname(path) == str(tmp_path / "sealed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(detect_run, "load", None)
    return tmp_path


@pytest.mark.parametrize(("target", "reason", "command"), [
    (target, reason, command)
    for target, reason in (("folder.png", "Is a directory"), ("file/new.png", ""), ("file/a/new.png", ""),
                           ("sealed/new.png", "Permission denied"), ("sealed/old.png", "Permission denied"))
    for command in ("detect photo.png cat --coco", "explain photo.png cat --out", "detect photo.png cat --out")
    if (target, command) != ("folder.png", "detect photo.png cat --out")])  # --out can be a folder
def test_a_target_that_cannot_be_written_is_refused_before_the_model_is_loaded(
        home, blocked, monkeypatch, capsys, target, reason, command):
    status, _, err = in_process(home, monkeypatch, capsys, *command.split(), str(blocked / target), "--overwrite")
    assert (status, err.count("\n")) == (1, 1), err
    assert f"{target}: cannot write there ({reason}" in err and "Choose another path" in err
    assert sorted(p.name for p in blocked.rglob("*")) == ["file", "folder.png", "old.png", "sealed"]
    assert (blocked / "file").read_text() == (blocked / "sealed" / "old.png").read_text() == "old"


def test_the_folder_of_one_drawing_is_checked_before_the_model_is_loaded(home, blocked, monkeypatch, capsys):
    copies(home, "sources", "a.jpg")
    status, _, err = in_process(home, monkeypatch, capsys, "detect", "sources/a.jpg", "cat", "--out",
                                str(blocked / "sealed"))
    assert (status, err.count("\n")) == (1, 1), err
    assert "sealed/a.png: cannot write there (Permission denied)" in err


def test_a_check_leaves_files_and_pipes_as_they_are(tmp_path):
    (tmp_path / "old.json").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for name in ("old.json", "pipe", "new.json", "a/b/new.json"):
        writing.check_writable(tmp_path / name)
    for stream in ("/dev/stdout", "/dev/null", "/dev/full"):
        writing.check_writable(stream)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "old.json", "pipe"]
    assert (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize("redirection", [">/dev/full", "| true"])
def test_a_coco_file_is_written_even_if_the_reader_of_the_json_has_ended(home, redirection):
    (home / "kept.json").unlink(missing_ok=True)
    done = shell(home, f"{DETECT} --json --coco kept.json", redirection)
    assert b"wrote kept.json" in done.stderr, done.stderr
    assert len(json.loads((home / "kept.json").read_text())["images"]) == 1


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.txt", "special_tokens_map.json", "model.safetensors", "model.safetensors.index.json", "shard.safetensors"])
@pytest.mark.parametrize("given", ["folder", "file", "variable"])
def test_an_output_never_replaces_a_file_of_the_model(home, tmp_path, monkeypatch, capsys, name, given):
    """Files that the model lacks are protected, too: `load` would prefer some of them to the existing ones."""
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    (model / "shard.safetensors").write_bytes(b"x")
    before = contents(tmp_path)
    monkeypatch.setattr(detect_run, "load", None)  # the error comes before the model is loaded
    source = model / "model.safetensors" if given == "file" else model
    monkeypatch.setenv("MINIGDINO_MODEL", str(source) if given == "variable" else "void")
    options = [] if given == "variable" else ["--model", str(source)]
    for command in (["detect", "photo.png", "cat", "--coco"], ["detect", "photo.png", "cat", "--resume", "--jsonl"],
                    ["explain", "photo.png", "cat", "--out"]):
        status, _, err = in_process(home, monkeypatch, capsys, *command, f"{model}/../model/{name}", *options)
        assert (status, err.count("\n")) == (1, 1), err
        assert "expected different files for the model and --" in err and f"{name} for both. Choose another" in err
    assert contents(tmp_path) == before


def test_a_picture_never_replaces_the_weights(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "model", tmp_path / "model")
    os.rename(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "weights.png")
    (tmp_path / "model" / "model.safetensors").symlink_to("weights.png")
    before = contents(tmp_path)
    status, _, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "cat", "--model",
                                str(tmp_path / "model"), "--out", str(tmp_path / "model" / "weights.png"))
    assert status == 1
    assert "expected different files for the model and --out" in err
    assert contents(tmp_path) == before


def test_other_files_can_be_written_to_the_folder_of_a_model(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "model", tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert outputs.model_files("owner/name") == outputs.model_files("void") == []
    status, _, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "cat", "--model",
                                str(tmp_path / "shapes"), "--coco", str(tmp_path / "shapes" / "found.json"))
    assert status == 0, err
    monkeypatch.chdir(tmp_path / "shapes")
    assert ("the model", "model.safetensors") in outputs.model_files("model.safetensors")


def test_a_null_byte_in_a_name_is_an_unreadable_image(home, monkeypatch, capsys):
    status, err = detect(home, monkeypatch, capsys, "a\0.png", "photo.png", "cat", "--out", "null_drawn")
    assert status == 1
    assert "embedded null" in err and "wrote null_drawn/photo.png" in err


def test_lines_are_read_again_only_for_a_coco_file(home, monkeypatch, capsys):
    monkeypatch.setattr(files.JsonLines, "records", None)
    for _ in range(2):
        status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--jsonl", "once.jsonl", "--resume")
        assert status == 0, err


def test_a_device_takes_several_outputs(home, monkeypatch, capsys):
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--coco", "/dev/null")
    assert status == 0, err
    outputs.check_paths([], [("--out", "/dev/null"), ("--coco", "/dev/null")])


@pytest.mark.parametrize("name", ["x.psd", "x.xyz", "x", "x.wmf", "x.xbm", "x.fits"])
def test_a_format_that_cannot_be_written_is_refused_before_the_model_is_loaded(home, monkeypatch, capsys, name):
    monkeypatch.setattr(detect_run, "load", None)
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--out", name)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{name}: cannot write there (" in err and "Choose an ending, such as .png" in err


@pytest.mark.parametrize("ending", ["gif", "tga", "pcx", "sgi", "avif", "webp", "jpg"])
def test_a_picture_that_is_too_large_for_its_format_gives_a_message(ending):
    if f".{ending}" not in Image.registered_extensions():
        pytest.skip("this Pillow lacks the format")
    with pytest.raises(ArgumentError, match="cannot write there"):
        writing.encoded(Image.new("RGB", (70_000, 1)), f"x.{ending}")


@pytest.mark.parametrize("option", ["--threshold 7", "--text-threshold -1", "--size 0 0"])
def test_a_wrong_option_leaves_no_file(home, monkeypatch, capsys, option):
    for _ in range(2):
        status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--jsonl", "wrong.jsonl", *option.split())
        assert status == 1
        assert "exists already" not in err
    assert not (home / "wrong.jsonl").exists()


def test_the_new_content_of_a_private_file_is_private_at_all_times(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.json").chmod(0o600)
    modes = []
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(os.fstat(number).st_mode & 0o777))
    writing.replace_file(tmp_path / "a.json", b"new")
    assert (modes, (tmp_path / "a.json").stat().st_mode & 0o777) == ([0o600], 0o600)


@pytest.mark.parametrize("more", [[], ["--out", "y.png"], ["--coco", "y.json"]])
def test_a_deleted_working_directory_is_an_error(home, tmp_path, monkeypatch, capsys, more):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    from minigdino.cli import main

    assert main(["detect", "x.jpg" if not more else str(home / "photo.png"), "cat", "--model", str(home / "model"),
                 *more]) == 1
    assert capsys.readouterr().err.startswith("minigdino: ")


COMMAND = (sys.executable, "-m", "minigdino", "detect")


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="needs /dev/stdin")
@pytest.mark.parametrize("option", ["--out", "--csv", "--coco", "--jsonl"])
def test_standard_input_is_an_input(home, tmp_path, option):
    photo = tmp_path / "mine.jpg"
    Image.open(home / "photo.png").convert("RGB").save(photo)
    data = photo.read_bytes()
    with open(photo, "rb") as file:
        run = subprocess.run([*COMMAND, "-", "cat", "--model", home / "model", option, photo, "--overwrite"], cwd=home,
                             stdin=file, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "expected different files for an image and" in run.stderr, run.stderr
    assert photo.read_bytes() == data


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
@pytest.mark.parametrize("option", ["--csv", "--coco", "--jsonl"])
def test_a_file_that_is_standard_output_keeps_its_content(home, tmp_path, option):
    (tmp_path / "all").write_text("mine\n")
    with open(tmp_path / "all", "ab") as file:
        run = subprocess.run([*COMMAND, "photo.png", "cat", "--model", home / "model", option, "/dev/stdout",
                              "--overwrite"], cwd=home, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == (option == "--jsonl"), run.stderr
    assert (tmp_path / "all").read_text().startswith("mine\n")


def test_standard_input_cannot_be_resumed(home, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        detect(home, monkeypatch, capsys, "-", "cat", "--jsonl", "stdin.jsonl", "--resume")
    assert "--resume does not work with standard input" in capsys.readouterr().err

"""The command line, run as a separate process."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino


def run(home, *arguments, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MINIGDINO")}
    return subprocess.run(
        [sys.executable, "-m", "minigdino", *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        env={**clean, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub"), **env},
        check=False,
    )


def test_detect_prints_the_detections_of_the_library(home):
    done = run(home, "detect", "photo.png", "a cat. remote control.", "--model", "model", "--json")
    assert done.returncode == 0, done.stderr
    want = tiny.model().detect(tiny.photo(), "a cat. remote control.")
    got = json.loads(done.stdout)
    assert (got["width"], got["height"]) == (120, 90)
    assert [d["label"] for d in got["detections"]] == want.labels
    np.testing.assert_allclose([d["box"] for d in got["detections"]], want.boxes, rtol=1e-4, atol=1e-3)


def test_detect_prints_a_table_and_draws_the_detections(home):
    done = run(home, "detect", "photo.png", "cat", "--model", "model", "--out", "found.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("cat  ")
    assert "wrote found.png" in done.stderr
    with Image.open(home / "found.png") as picture:
        assert picture.size == (120, 90)
        assert abs(np.asarray(picture).astype(int) - tiny.photo()).max() > 50


def test_options_reach_the_model(home):
    done = run(home, "detect", "photo.png", "cat", "--threshold", "1", "--size", "64", "96", MINIGDINO_MODEL="model")
    assert (done.returncode, done.stdout.strip()) == (0, "nothing scores above 1.0")


@pytest.fixture(scope="module")
def many(home):
    """A folder of three images, the second one corrupted."""
    folder = home / "many"
    folder.mkdir()
    for i, name in enumerate("abc"):
        Image.fromarray(tiny.photo(60, 80, seed=i)).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"broken")
    return folder


def test_a_corrupted_image_is_reported_and_the_others_are_processed(home, many):
    done = run(home, "detect", "many", "cat", "--model", "model", "--jsonl", "found.jsonl", "--out", "drawn")
    assert done.returncode == 1
    assert "b.png: not a readable image" in done.stderr
    _, *lines = [json.loads(line) for line in (home / "found.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["many/a.png", "many/b.png", "many/c.png"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert sorted(p.name for p in (home / "drawn").iterdir()) == ["a.png", "c.png"]


def test_resume_skips_images_that_the_file_has(home, many):
    path = home / "resumed.jsonl"
    header = run(home, "detect", "many/a.png", "cat", "--model", "model", "--jsonl", "-").stdout.splitlines()[0]
    path.write_text(header + '\n{"image": "many/a.png", "width": 1}\n{"image": "many/b')
    done = run(
        home, "detect", "many/a.png", "many/c.png", "cat", "--model", "model", "--jsonl", "resumed.jsonl", "--resume"
    )
    assert done.returncode == 0, done.stderr
    _, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["image"], "detections" in line) for line in lines] == [("many/a.png", False), ("many/c.png", True)]
    again = run(home, "detect", "many", "cat", "--model", "model", "--jsonl", "resumed.jsonl")
    assert again.returncode == 1
    assert "exists already. Give --resume" in again.stderr


def test_resume_with_no_image_left_prints_an_empty_list(home, many):
    arguments = ["detect", "many/a.png", "cat", "--model", "model", "--jsonl", "once.jsonl", "--resume", "--json"]
    assert run(home, *arguments).returncode == 0
    again = run(home, *arguments)
    assert (again.returncode, again.stdout.strip()) == (0, "[]"), again.stderr


def test_phrases_globs_json_and_coco_can_be_combined(home, many):
    done = run(
        home,
        "detect",
        "many/[ac].png",
        "--phrase",
        "a cat",
        "--phrase",
        "st. bernard",
        "--model",
        "model",
        "--json",
        "--coco",
        "found.json",
        "--threads",
        "1",
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [r["image"] for r in records] == ["many/a.png", "many/c.png"]
    labels = {d["label"] for r in records for d in r["detections"]}
    assert labels <= {"a cat", "st. bernard"}
    data = json.loads((home / "found.json").read_text())
    assert len(data["annotations"]) == sum(len(r["detections"]) for r in records)


def test_an_image_can_come_from_standard_input(home):
    done = subprocess.run(
        [sys.executable, "-m", "minigdino", "detect", "-", "cat", "--model", "model", "--json"],
        cwd=home,
        input=(home / "photo.png").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = tiny.model().detect(tiny.photo(), "cat")
    assert len(json.loads(done.stdout)["detections"]) == len(want)


def test_drawings_reproduce_the_folders_of_the_images_and_never_overwrite_each_other(home, many):
    for side in ("left", "right"):
        (home / "tree" / side).mkdir(parents=True)
        Image.fromarray(tiny.photo(60, 80)).save(home / "tree" / side / "x.png")
    done = run(home, "detect", "tree/*/x.png", "cat", "--model", "model", "--out", "tree_drawn")
    assert done.returncode == 0, done.stderr
    assert sorted(str(p.relative_to(home / "tree_drawn")) for p in (home / "tree_drawn").rglob("*.png")) == [
        "left/x.png",
        "right/x.png",
    ]
    Image.fromarray(tiny.photo(60, 80)).save(home / "tree" / "left" / "x.jpg")
    done = run(home, "detect", "tree/left", "cat", "--model", "model", "--out", "tree_drawn")
    assert done.returncode == 1
    assert "would both be drawn to" in done.stderr


def test_a_folder_of_one_image_is_treated_as_a_folder(home):
    (home / "one").mkdir()
    Image.fromarray(tiny.photo(60, 80)).save(home / "one" / "x.png")
    done = run(home, "detect", "one", "cat", "--model", "model", "--out", "one_drawn", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)
    assert (home / "one_drawn" / "x.png").exists()


def test_errors_that_concern_all_images_come_before_the_first_image(home):
    (home / "ids.json").write_text('{"cat": 17}')
    done = run(
        home, "detect", "photo.png", "cat. dog.", "--model", "model", "--coco", "a.json", "--categories", "ids.json"
    )
    assert done.returncode == 1
    assert "ids.json must have an id for each phrase; it has no id for 'dog', only for 'cat'" in done.stderr
    run(home, "detect", "photo.png", "cat", "--model", "void", "--jsonl", "early.jsonl")
    assert not (home / "early.jsonl").exists()  # otherwise the next run would need --resume


def test_coco_ids_follow_the_prompt_even_without_detections(home):
    run(home, "detect", "photo.png", "cat. dog.", "--model", "model", "--coco", "none.json", "--threshold", "1")
    data = json.loads((home / "none.json").read_text())
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert data["annotations"] == []


def test_standard_input_is_read_like_a_file(home):
    """Rotated by its EXIF orientation, and rejected with the same message if it is corrupted."""
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(tiny.photo(60, 80)).save(home / "turned.png", exif=exif)
    command = [sys.executable, "-m", "minigdino", "detect", "-", "cat", "--model", "model", "--json"]
    done = subprocess.run(command, cwd=home, input=(home / "turned.png").read_bytes(), capture_output=True, check=True)
    assert json.loads(done.stdout)["width"] == 60
    bad = subprocess.run(command, cwd=home, input=b"nothing", capture_output=True, text=False, check=False)
    assert bad.returncode == 1
    assert b"not a readable image" in bad.stderr
    assert b"Traceback" not in bad.stderr


def test_a_terminal_shows_the_progress(home, many):
    master, slave = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "minigdino", "detect", "many", "cat", "--model", "model", "--jsonl", "shown.jsonl"],
        cwd=home,
        stderr=slave,
        check=False,
    )
    os.close(slave)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert done.returncode == 1
    assert "1/3 images" in shown
    assert "3/3 images, " in shown
    without_terminal = run(home, "detect", "many", "cat", "--model", "model")
    assert "images, " not in without_terminal.stderr


def test_control_c_ends_cleanly_and_keeps_the_finished_lines(home):
    """After Ctrl-C between images: exit status 130, no traceback, complete lines."""
    folder = home / "lots"
    folder.mkdir()
    for i in range(60):
        Image.fromarray(tiny.photo(60, 80, seed=i)).save(folder / f"{i:03}.png")
    process = subprocess.Popen(
        # a background job of a shell ignores SIGINT, and its children inherit that: restore the default handler
        [
            sys.executable,
            "-c",
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from minigdino.cli import main; sys.exit(main())",
            "detect",
            "lots",
            "cat",
            "--model",
            "model",
            "--jsonl",
            "lots.jsonl",
            "--size",
            "300",
            "400",
        ],
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = home / "lots.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (lines.exists() and lines.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (130, "minigdino: stopped")
    _, *done = [json.loads(line) for line in lines.read_text().splitlines()]
    assert 2 <= len(done) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "photo.png", "cat"), "HF_HUB_OFFLINE is set, so the hub is not contacted"),
        (("download", "no model"), "a model id must be owner/name, for example IDEA-Research/"),
        (("download", "someone/something"), "HF_HUB_OFFLINE is set"),
        (("verify", "someone/something"), "verify needs a model with published results; got 'someone/something'"),
        (("detect", "photo.png", "cat", "--model", "void"), "void: no such file"),
        (("detect", "void.png", "cat", "--model", "model"), "void.png: no such file"),
        (("detect", "photo.png", " . ", "--model", "model"), "names nothing to look for"),
        (("detect", "photo.png", "cat", "--model", "model", "--out", "photo.png/a.png"), "cannot write there"),
        (
            ("detect", "photo.png", "photo.png", "cat", "--model", "model", "--out", "photo.png"),
            "need a folder to write to",
        ),
        (("detect", "photo.png", "cat", "--model", "model", "--device", "tpu"), "device must be"),
        (("detect", "photo.png", "cat", "--model", "model", "--threads", "0"), "positive int"),
        (("detect", "photo.png", "cat", "--model", "model", "--coco", "/dev/full"), "No space left on device"),
        (
            ("detect", "photo.png", "cat", "--model", "model", "--coco", "a.json", "--categories", "void"),
            "void: not a readable JSON file of categories",
        ),
        (("detect", "model/tokenizer.json/*", "cat", "--model", "model"), "matches no file"),
        (("detect", "photo.png", "cat", "--model", "model", "--out", "a.xyz"), "cannot write there"),
    ],
)
def test_errors_are_one_message_and_exit_status_1(home, arguments, message):
    done = run(home, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_info_version_and_help_are_printed(home):
    done = run(home, "info")
    assert done.returncode == 0, done.stderr
    assert f"numpy      {np.__version__}" in done.stdout
    assert "deform_attn yes" in done.stdout
    assert run(home, "--version").stdout == f"minigdino {minigdino.__version__}\n"
    for verb in ("detect", "info", "download", "verify"):
        assert "example" in run(home, verb, "--help").stdout
    for wrong in (
        (),
        ("detect",),
        ("detect", "photo.png"),
        ("void",),
        ("detect", "photo.png", "cat", "--threshold", "x"),
    ):
        assert run(home, *wrong).returncode == 2

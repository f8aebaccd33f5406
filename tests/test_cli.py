"""The command line, run as a process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and a photograph."""
    folder = tmp_path_factory.mktemp("home")
    tiny.model().save(folder / "model")
    Image.fromarray(tiny.photo()).save(folder / "photo.png")
    return folder


def run(home, *arguments, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MINIGDINO")}
    return subprocess.run(
        [sys.executable, "-m", "minigdino", *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        env={**clean, **env},
        check=False,
    )


def test_detect_prints_what_the_library_finds(home):
    done = run(home, "detect", "photo.png", "a cat. remote control.", "--model", "model", "--json")
    assert done.returncode == 0, done.stderr
    want = tiny.model().detect(tiny.photo(), "a cat. remote control.")
    got = json.loads(done.stdout)
    assert (got["width"], got["height"]) == (120, 90)
    assert [d["label"] for d in got["detections"]] == want.labels
    np.testing.assert_allclose([d["box"] for d in got["detections"]], want.boxes, rtol=1e-4, atol=1e-3)


def test_detect_prints_a_table_and_writes_the_picture(home):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "photo.png", "cat"), "no model given"),
        (("detect", "photo.png", "cat", "--model", "void"), "void: no such file"),
        (("detect", "void.png", "cat", "--model", "model"), "void.png: no such file"),
        (("detect", "photo.png", " . ", "--model", "model"), "names nothing to look for"),
        (("detect", "photo.png", "cat", "--model", "model", "--out", "void/a.png"), "cannot write a picture there"),
        (("detect", "photo.png", "cat", "--model", "model", "--out", "a.xyz"), "cannot write a picture there"),
    ],
)
def test_errors_are_one_message_and_exit_status_1(home, arguments, message):
    done = run(home, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_info_and_version_and_help(home):
    done = run(home, "info")
    assert done.returncode == 0, done.stderr
    assert f"numpy      {np.__version__}" in done.stdout
    assert "twins      bilinear yes, deform_attn yes" in done.stdout
    assert run(home, "--version").stdout == f"minigdino {minigdino.__version__}\n"
    assert "example: minigdino detect cat.jpg" in run(home, "detect", "--help").stdout
    assert run(home).returncode == 2

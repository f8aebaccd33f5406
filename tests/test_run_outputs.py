"""Outputs of `minigdino detect`: crops, drawings that a pattern would find again, files of the model, a full disk."""

import json
import os
import re
import shutil
import sys
from operator import mul
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_streams import DETECT, copies, detect, images_of, in_process, shell, small_files

from minigdino import cli, detect_run, files, outputs, writing
from minigdino.checkpoints import hub
from minigdino.errors import ArgumentError
from minigdino.inputs import Input, detect_each

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


# ---- --out


@pytest.mark.parametrize("name", ["found", "v1.2", "found.xyz"])
def test_a_picture_without_the_ending_of_one_may_be_meant_as_a_folder(home, monkeypatch, capsys, name):
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--out", name)
    assert status == 1 and re.match(rf"minigdino: --out {name}: .*, such as \.png\. For a folder, add a slash: --out "
                                    rf"{name}/\n$", err)
    assert not (home / name).exists()
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--out", f"{name}/")
    assert (status, err) == (0, f"wrote {name}/photo.png\n")


# ---- --crops


def test_crops_are_those_of_the_library(home, monkeypatch, capsys):
    copies(home, "sources", "a.png", "deep/a.jpg")
    status, err = detect(home, monkeypatch, capsys, "sources", "--recursive", "a cat. st bernard.", "--crops", "crops",
                         "--threshold", "0.4")
    assert status == 0, err
    wanted = {}
    for name in ("a.png", "deep/a.jpg"):
        found = tiny.model().detect(home / "sources" / name, "a cat. st bernard.", threshold=0.4)
        assert len(found) > 1
        for i, (label, crop) in enumerate(zip(found.labels, found.crops())):
            wanted[f"{name[:-4]}-{i}-{label.replace(' ', '_')}.png"] = crop
    assert {str(p.relative_to(home / "crops")) for p in (home / "crops").rglob("*.png")} == wanted.keys()
    for name, crop in wanted.items():
        assert f"wrote crops/{name}\n" in err
        assert writing.is_drawn(home / "crops" / name)
        with Image.open(home / "crops" / name) as picture:
            np.testing.assert_array_equal(picture, crop)


def test_an_image_without_detections_has_no_crops(home, monkeypatch, capsys):
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--crops", "none", "--threshold", "1")
    assert (status, err, os.listdir(home / "none")) == (0, "", [])


NAMES = st.text(st.sampled_from("a-0é_ "), min_size=1, max_size=6).filter(lambda name: name.strip())


@given(names=st.lists(st.builds("{}.png".format, NAMES), min_size=1, max_size=3, unique=True),
       crops=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200), st.text(max_size=80)), max_size=8))
def test_different_crops_have_different_names_that_every_file_system_takes(tmp_path_factory, names, crops):
    top = tmp_path_factory.getbasetemp() / "labels"
    folder = outputs.Folder("--crops", str(top), names, overwrite=False)
    crops = {(names[number % len(names)], index): label for number, index, label in crops}
    paths = [folder.crop(Input(name), index, label) for (name, index), label in crops.items()]
    assert len(set(paths)) == len(paths)
    for path, (name, index) in zip(paths, crops):
        assert Path(path).parent == top
        stem, number, words = Path(path).stem.rsplit("-", 2)
        assert (stem, number) == (Path(name).stem, str(index))
        assert re.fullmatch(r"\w{1,40}", words)


@pytest.mark.parametrize(("label", "words"), [
    ("a cat", "a_cat"), ("../../etc", "etc"), ("st. bernard", "st_bernard"), ("t-shirt", "t_shirt"), ("猫", "猫"),
    ("🐱", "object"), ("con\0\n\x1b", "con"), ("x" * 300, "x" * 40), ("\udcff", "object")])
def test_labels_in_names_of_crops(tmp_path, label, words):
    folder = outputs.Folder("--crops", str(tmp_path), ["p/a.b.jpg"], overwrite=False)
    assert folder.crop(Input("p/a.b.jpg"), 3, label) == str(tmp_path / f"a.b-3-{words}.png")


@pytest.mark.parametrize(("sources", "crops", "message"), [
    (["a.png", "a.jpg"], "crops", "a.png and a.jpg would both be cropped to crops/a-*.png. Draw them in two runs"),
    (["."], ".", "a.jpg would be cropped to a-*.png, where the next run would take the crop for an image. Give --c"),
    (["a*.jpg", "*/*.png"], "deep", "would be cropped to deep/a-*.png, where the next run would take the crop for an"),
    (["a.jpg"], "-", "--crops - is not possible: pictures are not written to standard output. Give --crops a folder"),
    (["a.jpg"], "file", "file: crops need a folder to write to. Give --crops the name of a folder"),
    (["a.jpg"], "new.png", "new.png: crops need a folder to write to"),
    (["a.jpg", "--jsonl", "crops"], "crops", "expected different files for --crops and --jsonl; got crops for both"),
    (["a.jpg", "--out", "new/"], "new", "expected different files for --out and --crops; got new for both"),
    (["a.jpg", "--out", "deep"], "deep/", "expected different folders for --out and --crops; got deep/ for both")])
def test_wrong_folders_of_crops_are_refused_before_the_model_is_loaded(
        home, tmp_path, monkeypatch, capsys, sources, crops, message):
    for name in ("a.png", "a.jpg", "deep/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(tiny.photo(60, 80)).save(tmp_path / name)
    if sources == ["."]:
        (tmp_path / "a.png").unlink()
    (tmp_path / "file").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(detect_run, "load", None)
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", *sources, "--phrase", "cat", "--crops", crops)
    assert (status, err.count("\n"), message in err) == (1, 1, True), err
    assert sorted(tmp_path.rglob("*")) == before


def test_crops_never_replace_an_image_or_a_file_of_the_user(home, monkeypatch, capsys):
    work = copies(home, "mine", "a.jpg", "c/a-0-cat.png")
    run = ["mine/a.jpg", "cat", "--crops", "mine/c"]
    before = (work / "c/a-0-cat.png").read_bytes()
    status, err = detect(home, monkeypatch, capsys, *run)
    assert status == 1 and "mine/a.jpg would be cropped to mine/c/a-0-cat.png, which exists and was not drawn" in err
    status, err = detect(home, monkeypatch, capsys, "mine/c/a-0-cat.png", *run, "--overwrite")
    assert status == 1 and "mine/c/a-0-cat.png, which is one of the images. Give --crops another folder" in err
    assert (work / "c/a-0-cat.png").read_bytes() == before
    for more in (["--overwrite"], []):  # then it has the mark
        status, err = detect(home, monkeypatch, capsys, *run, *more)
        assert status == 0 and writing.is_drawn(work / "c/a-0-cat.png"), err


@pytest.mark.parametrize("option", ["--jsonl", "--coco", "--csv"])
def test_a_crop_is_never_written_to_another_output(home, monkeypatch, capsys, option):
    path = home / f"both{option}/photo-0-cat.png"
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", "--crops", f"./both{option}", option, str(path),
                         "--overwrite")
    assert status == 1
    assert f"different files for another output and --crops; got both{option}/photo-0-cat.png for both. Choose" in err
    assert not writing.is_drawn(path)


@pytest.mark.parametrize(("sources", "options", "path"), [
    (["clip.mp4"], ["--out", "drawn"], "drawn/clip"), (["clip.mp4"], ["--crops", "c"], "c/clip"),
    (["a.png", "x/y/b.png"], ["--out", "drawn"], "drawn/x"),
    (["a.png", "x/y/b.png"], ["--crops", "./c"], "c/../c/x/y"),
    (["a.png"], ["--crops", "new/deep"], "new")])
@pytest.mark.parametrize("option", ["--jsonl", "--coco", "--csv"])
def test_a_folder_of_pictures_is_not_the_file_of_another_output(
        tmp_path, monkeypatch, capsys, sources, options, path, option):
    """At the end of the run, the results could not be written."""
    copies(tmp_path, ".", "a.png", "x/y/b.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setattr(detect_run, "load", None)
    monkeypatch.setattr(detect_run, "frames", lambda *_: None)
    before = sorted(tmp_path.rglob("*"))
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", *sources, "cat", *options, option, path,
                                "--overwrite")
    assert (status, err.count("\n")) == (1, 1), err
    assert f"expected different files for another output and {options[0]}; got " in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("sources", "out", "crops"), [
    (["a.png"], "d/x/a-0-cat.png", "./d/x"), (["a.png", "x/a-0-cat.jpg"], "d/", "d/x")])
def test_a_crop_never_replaces_a_picture(home, tmp_path, monkeypatch, capsys, sources, out, crops):
    copies(tmp_path, ".", *sources)
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", *sources, "cat", "--model",
                                str(home / "model"), "--out", out, "--crops", crops)
    assert status == 1
    assert "expected different files for another output and --crops; got d/x/a-0-cat.png for both" in err
    for picture in tmp_path.glob("d/**/*.png"):
        with Image.open(picture) as opened:
            assert opened.size == (80, 60)  # as the image; a crop is smaller


@given(stem=st.builds(mul, st.sampled_from("aé猫𠀀"), st.integers(1, 240)),
       label=st.builds(mul, st.sampled_from("aé猫𠀀."), st.integers(0, 60)))
def test_a_crop_of_an_image_with_a_long_name_can_be_written(tmp_path_factory, stem, label):
    top, stem = tmp_path_factory.getbasetemp() / "long", stem.encode()[:240].decode(errors="ignore")
    path = outputs.Folder("--crops", str(top), [f"{stem}.jpg"], overwrite=False).crop(Input(f"{stem}.jpg"), 123, label)
    assert Path(path).name.startswith(f"{stem}-123-") and path.endswith(".png")
    top.mkdir(exist_ok=True)
    with open(path, "wb"):
        os.unlink(path)


@pytest.mark.parametrize(("option", "name"), [("--coco", "x.json"), ("--csv", "x.csv"), ("--out", "x.png")])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_file_that_appears_during_the_run_is_not_replaced(home, monkeypatch, capsys, option, name, more):
    def late(*arguments, **options):
        (home / name).write_bytes(b"of the user")
        return detect_each(*arguments, **options)

    (home / name).unlink(missing_ok=True)
    monkeypatch.setattr(detect_run, "detect_each", late)
    status, err = detect(home, monkeypatch, capsys, "photo.png", "cat", option, name, *more)
    assert status == (not more)
    assert ((home / name).read_bytes() == b"of the user") == (not more)
    assert (f"{name} exists, and is not marked as written by minigdino" in err) == (not more)


def test_an_output_that_cannot_be_written_does_not_stop_the_others(home, monkeypatch, capsys):
    def late(*arguments, **options):
        (home / "folder.json").mkdir()
        return detect_each(*arguments, **options)

    monkeypatch.setattr(detect_run, "detect_each", late)
    status, out, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "cat", "--model", "model",
                                  "--coco", "folder.json", "--csv", "kept.csv", "--json")
    assert status == 1 and json.loads(out)["image"] == "photo.png"
    assert "folder.json: cannot write there (Is a directory)" in err and "wrote kept.csv" in err


def test_a_line_is_written_after_the_crops(home, monkeypatch, capsys):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "replace_file", fail)
        arguments = "photo.png", "cat", "--crops", "late", "--jsonl", "late.jsonl"
        assert detect(home, monkeypatch, capsys, *arguments)[0] == 130
    assert images_of(home / "late.jsonl") == []


# ---- drawings that a pattern would find again

PARTS = st.sampled_from(["p", "q", ".h", "*", "**", "p*", "[pq]", ".*", "?"])


@settings(max_examples=100)
@given(pattern=st.lists(PARTS, max_size=4), name=st.sampled_from(["*.png", "*", "**", "[a-z].png", "x.pn?", "*.jpg"]),
       folder=st.lists(st.sampled_from(["p", "q", ".h", "pq"]), max_size=4), absolute=st.booleans(),
       exact=st.booleans())
def test_a_folder_is_searched_if_a_pattern_finds_a_picture_there(
        tmp_path_factory, pattern, name, folder, absolute, exact):
    top = tmp_path_factory.getbasetemp() / "odd [name]"
    shutil.rmtree(top, ignore_errors=True)
    top.joinpath(*folder).mkdir(parents=True)
    top.joinpath(*folder, "x.png").write_bytes(b"")
    source = os.path.join(files.glob.escape(str(top)) if absolute else "", *pattern, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        if not files.is_pattern(source):
            return
        found = {os.path.abspath(path) for path in files._matches(source, lambda error: None)}
        is_found = str(top.joinpath(*folder, "x.png")) in found
        for out in (top.joinpath(*folder), os.path.join(".", *folder)):
            path = os.path.join(out, "x.png" if exact else "*.png")
            assert outputs._searched([source], recursive=False)(path) == is_found


@pytest.mark.parametrize(("source", "out"), [
    ("p/*/*.png", "p/drawn"), ("p/**/*.png", "p/drawn"), ("p/**", "p/drawn/x/"), ("**/*", "drawn"),
    ("p/*/*", "away/new"),
    ("away/*/*.png", "p/drawn"), ("./p/../p/*/*.png", "p/drawn"), ("p/*/a.*", "p/q/../drawn")])
@pytest.mark.parametrize("option", ["--out", "--crops"])
def test_a_folder_that_the_pattern_searches_is_not_one_for_drawings(
        tmp_path, monkeypatch, capsys, source, out, option):
    (tmp_path / "p/q").mkdir(parents=True)
    Image.fromarray(tiny.photo(60, 80)).save(tmp_path / "p/q/a.png")
    (tmp_path / "away").symlink_to("p")
    monkeypatch.setattr(detect_run, "load", None)
    before = sorted(tmp_path.rglob("*"))
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", source, "cat", option, out)
    assert (status, err.count("\n")) == (1, 1), err
    assert f"where the next run would take the {'drawing' if option == '--out' else 'crop'} for an image. Give " in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("source", "out"), [("p/*.jpg", "p"), ("p/*.png", "p/drawn"), ("p/*/*.png", "drawn"),
                                             ("p/**/*.png", "p/.drawn"), ("p/*.jp*g", "p/")])
def test_other_folders_can_be_drawn_to(home, tmp_path, monkeypatch, capsys, source, out):
    for name in ("p/q/a.png", "p/b.jpg", "p/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.photo(60, 80)).save(tmp_path / name)
    status, _, err = in_process(tmp_path, monkeypatch, capsys, "detect", source, "cat", "--model", str(home / "model"),
                                "--out", out)
    assert status == 0 and f"wrote {out.rstrip('/')}/" in err, err


# ---- files of the model


def test_files_of_a_cached_and_of_the_embedded_model_are_never_replaced(home, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "hub/models--owner--name"
    shutil.copytree(home / "model", folder / "snapshots/abc")
    (folder / "blobs").mkdir()
    os.replace(folder / "snapshots/abc/model.safetensors", folder / "blobs/123")
    os.symlink("../../blobs/123", folder / "snapshots/abc/model.safetensors")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    monkeypatch.setattr(hub, "cache", lambda: tmp_path / "hub")
    monkeypatch.setattr(detect_run, "load", None)
    (tmp_path / "shapes").write_text("a file of the user")
    cases = [("owner/name", folder / name) for name in ("snapshots/abc/config.json", "blobs/123")]
    cases += [("shapes", Path(cli.__file__).parent / "models/shapes/model.safetensors")]
    for model, path in cases:
        before = path.read_bytes()
        for option in ("--jsonl", "--coco"):
            status, _, err = in_process(home, monkeypatch, capsys, "detect", "photo.png", "cat", "--model", model,
                                        option, str(path), "--overwrite")
            assert status == 1 and f"expected different files for the model and {option}" in err, err
        assert path.read_bytes() == before
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "shapes") not in {os.path.abspath(path) for _, path in outputs.model_files("shapes")}
    assert outputs.model_files("owner/other") == []


# ---- a full disk


def test_a_header_that_cannot_be_written_leaves_no_file(home):
    phrases = " ".join(f"--phrase {'x' * 12}{c}" for c in "abcdefghij")
    done = shell(home, f"{DETECT.replace(' cat', '')} {phrases} --jsonl header.jsonl", limit=small_files)
    assert done.returncode == 1 and b"header.jsonl: the file cannot be written (File too large)" in done.stderr
    assert not (home / "header.jsonl").exists()


def test_only_a_new_file_is_removed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "old.jsonl").write_text('{"minigdino": "1"')
    monkeypatch.setattr(os, "fsync", fail)
    for name, options in (("old.jsonl", {"resume": True}), ("new.jsonl", {}), ("new.jsonl", {"resume": True}),
                          ("new.jsonl", {"overwrite": True})):
        with pytest.raises(ArgumentError, match=f"{name}: the file cannot be written"):
            files.JsonLines(tmp_path / name, header={"minigdino": "1"}, **options)
        assert os.listdir(tmp_path) == ["old.jsonl"]


def test_a_new_file_of_another_process_is_not_removed(tmp_path, monkeypatch):
    """Another run took the lock of the file between its creation and our lock."""
    monkeypatch.setattr(files, "_lock", lambda _: False)
    with pytest.raises(ArgumentError, match="another process is writing to this file"):
        files.JsonLines(tmp_path / "new.jsonl", header={"minigdino": "1"})
    assert (tmp_path / "new.jsonl").exists()


# ---- errors of images


def test_every_error_names_its_image(home, monkeypatch, capsys):
    Image.new("RGB", (3000, 3)).save(home / "thin.png")
    status, err = detect(home, monkeypatch, capsys, "photo.png", "thin.png", "cat")
    assert status == 1 and err.startswith("minigdino: thin.png: a resized image must have at least one row"), err

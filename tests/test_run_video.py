"""Runs of `minigdino detect` over the frames of videos: names, pictures, an annotated video, damage, interruptions."""

import gc
import itertools
import json
import os
import signal
import sys
import weakref

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_streams import copies, images_of, in_process, objects
from test_video import HEIGHT, WIDTH, N, av, encoded

import minigdino
from minigdino import detect_run, inputs, video, writing
from minigdino.image import endings
from minigdino.inputs import Input, detect_each

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
MODEL = ["--model", "model", "--threshold", "0.4"]


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """A working directory with the model, a video of N frames, and an image."""
    (tmp_path / "model").symlink_to(home / "model")
    (tmp_path / "clip.mp4").write_bytes(encoded())
    Image.fromarray(tiny.photo(60, 80)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, monkeypatch, capsys):
    """Run `detect` there. Returns the exit status, standard output and standard error."""
    def detect(*arguments):
        try:
            return in_process(here, monkeypatch, capsys, "detect", *arguments, *MODEL)
        except SystemExit as end:
            return end.code, *capsys.readouterr()
    return detect


@pytest.fixture
def damaged(here, monkeypatch):
    """The video has 30 frames, and cannot be decoded from frame 20 on."""
    (here / "clip.mp4").write_bytes(encoded(n=30))

    def frames(path, every):
        for number, image in enumerate(minigdino.frames(path, every)):
            if number * every >= 20:
                raise minigdino.ImageError(f"{path}: frame 20 cannot be decoded (damaged)")
            yield image

    monkeypatch.setattr(video, "frames", frames)


def test_endings_of_videos_are_not_those_of_images():
    assert not video.ENDINGS & endings()
    assert set(video.OUTPUTS) <= video.ENDINGS


# ---- frames as images


@settings(max_examples=15)
@given(every=st.integers(1, N + 2), done=st.sets(st.integers(0, N)))
def test_frames_have_the_results_of_the_frames_in_python(tmp_path_factory, every, done):
    path = str(tmp_path_factory.getbasetemp() / "clip.mp4")
    if not os.path.exists(path):
        video.write(path, [tiny.photo(48, 64, seed=i) for i in range(N)])
    names = {f"{path}#{number}" for number in done}
    found = list(detect_each(tiny.model(), [path], "a cat.", every=every, done=names))
    numbers = [number for number in range(0, N, every) if number not in done]
    assert [image for image, _ in found] == [Input(path, number) for number in numbers]
    assert [image.name for image, _ in found] == [f"{path}#{number}" for number in numbers]
    frames = dict(enumerate(minigdino.frames(path)))
    for (image, result) in found:
        np.testing.assert_array_equal(result.boxes, tiny.model().detect(frames[image.frame], "a cat.").boxes)


def test_images_and_whole_videos_that_are_done_are_skipped(here):
    found = detect_each(tiny.model(), ["a.png", "void.mp4", "clip.mp4"], "a cat.", every=5, done={"a.png", "void.mp4"})
    assert [image.name for image, _ in found] == ["clip.mp4#0", "clip.mp4#5"]


def test_every_output_names_the_frames(here, run):
    status, out, err = run("a.png", "clip.mp4", "cat", "--every", "3", "--jsonl", "x.jsonl", "--coco", "x.json",
                           "--csv", "x.csv", "--json")
    assert status == 0, err
    names = ["a.png", "clip.mp4#0", "clip.mp4#3", "clip.mp4#6"]
    assert images_of(here / "x.jsonl") == names
    assert [line["image"] for line in json.loads(out)] == names
    assert [image["file_name"] for image in json.loads((here / "x.json").read_text())["images"]] == names
    assert {line.partition(",")[0] for line in (here / "x.csv").read_text().splitlines()} <= {"image", *names}
    status, out, err = run("clip.mp4", "cat", "--every", "4")
    assert (status, [line for line in out.splitlines() if line.endswith(":")]) == (0, ["clip.mp4#0:", "clip.mp4#4:"])


def test_a_pattern_takes_videos_and_a_folder_takes_images(here, run):
    for sources, names in ((["*.*"], ["a.png", "clip.mp4#0"]), (["."], ["a.png"]), (["*.mp4"], ["clip.mp4#0"])):
        status, _, err = run(*sources, "cat", *(["--every", "9"] if len(names) == 2 or sources == ["*.mp4"] else []),
                             "--jsonl", "x.jsonl", "--overwrite")
        assert status == 0, err
        assert images_of(here / "x.jsonl") == names


@pytest.mark.parametrize("done", range(4))
def test_a_resumed_run_skips_the_frames_that_are_done(here, run, done):
    options = ["clip.mp4", "a.png", "cat", "--every", "3", "--jsonl", "x.jsonl", "--out", "drawn", "--coco", "x.json"]
    assert run(*options)[0] == 0
    lines, data_set = (here / "x.jsonl").read_text(), (here / "x.json").read_text()
    for path in (here / "drawn").rglob("*.png"):
        path.unlink()
    (here / "x.jsonl").write_text("".join(lines.splitlines(keepends=True)[: 1 + done]))
    status, _, err = run(*options, "--resume")
    assert status == 0, err
    assert ((here / "x.jsonl").read_text(), (here / "x.json").read_text()) == (lines, data_set)
    drawn = {str(path.relative_to(here / "drawn")) for path in (here / "drawn").rglob("*.png")}
    assert drawn == {*["clip/000000.png", "clip/000003.png", "clip/000006.png"][done:], "a.png"}


def test_one_frame_is_in_memory_at_a_time(tmp_path):
    video.write(tmp_path / "clip.mp4", [tiny.photo(48, 64, seed=i) for i in range(N)])
    alive, most = weakref.WeakSet(), []
    frames = minigdino.frames

    class Frame(np.ndarray):
        """An array that can be in a set."""

        __hash__ = object.__hash__

    def watched(*arguments):
        for image in frames(*arguments):
            gc.collect()
            most.append(len(alive))
            image = image.view(Frame)
            alive.add(image)
            yield image
            del image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "frames", watched)
        results = detect_each(tiny.model(), [str(tmp_path / "clip.mp4")], "cat.")
        assert len(list(itertools.starmap(lambda image, result: result.plot(), results))) == N  # as in `run`
    assert most == [0] * N


# ---- pictures, crops, and the annotated video


@pytest.mark.parametrize(("every", "name"), [(1, "found.mp4"), (2, "found.mov"), (3, "found.MKV")])
def test_an_annotated_video_plays_in_real_time(here, run, every, name):
    status, out, err = run("clip.mp4", "cat", "--out", name, "--every", str(every))
    assert (status, err) == (0, f"wrote {name}\n")
    assert video.rate(name) == pytest.approx(10 / every, rel=1e-3)
    frames, drawn = list(minigdino.frames("clip.mp4", every)), list(minigdino.frames(name))
    assert len(drawn) == len(frames)
    found = [tiny.model().detect(frame, "cat", threshold=0.4) for frame in frames]
    assert sum(map(len, found)) and "cat  0." in out
    for one, picture in zip(found, drawn):
        np.testing.assert_allclose(picture.astype(float).mean(), np.asarray(one.plot()).mean(), atol=4)
    assert video.is_marked(name) and not video.is_marked("clip.mp4")


def test_the_frames_of_a_video_are_drawn_into_its_folder(here, run):
    copies(here, "sub", "a.png")
    (here / "sub" / "clip.mkv").write_bytes(encoded("matroska", 2))
    status, _, err = run("clip.mp4", "sub/clip.mkv", "sub/a.png", "cat", "--every", "4", "--out", "drawn", "--crops",
                         "crops")
    assert status == 0, err
    drawn = sorted(str(path.relative_to(here / "drawn")) for path in (here / "drawn").rglob("*.png"))
    assert drawn == ["clip/000000.png", "clip/000004.png", "sub/a.png", "sub/clip/000000.png"]
    crops = {str(path.relative_to(here / "crops")).rpartition("-")[0] for path in (here / "crops").rglob("*.png")}
    assert crops and {crop.rpartition("-")[0] for crop in crops} <= {name.removesuffix(".png") for name in drawn}
    for path in [*(here / "drawn").rglob("*.png"), *(here / "crops").rglob("*.png")]:
        assert writing.is_drawn(path)
    with Image.open(here / "drawn/clip/000004.png") as picture:
        assert picture.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["foreign", "video", "ours", "overwrite"])
def test_an_existing_video_is_replaced_only_if_minigdino_wrote_it(here, run, monkeypatch, kind):
    before = {"foreign": b"old", "video": encoded(), "overwrite": b"old"}.get(kind)
    if before is None:
        video.write("found.mp4", [tiny.photo(60, 80)])
        before = (here / "found.mp4").read_bytes()
    (here / "found.mp4").write_bytes(before)
    is_refused = kind in ("foreign", "video")
    if is_refused:
        monkeypatch.setattr(detect_run, "load", None)  # the error comes before the model is loaded
    status, _, err = run("clip.mp4", "cat", "--out", "found.mp4", *["--overwrite"] * (kind == "overwrite"))
    assert status == is_refused
    assert ((here / "found.mp4").read_bytes() == before) == is_refused
    assert ("found.mp4 exists, and is not marked as written by minigdino. Choose" in err) == is_refused


@pytest.mark.parametrize("out", ["clip.mp4", "./clip.mp4", "link.mp4", "hard.mp4"])
def test_a_video_is_never_replaced_by_its_drawing(here, run, monkeypatch, out):
    video.write("marked.mp4", [tiny.photo(60, 80)])
    os.replace("marked.mp4", "clip.mp4")
    os.symlink("clip.mp4", "link.mp4")
    os.link("clip.mp4", "hard.mp4")
    before = (here / "clip.mp4").read_bytes()
    monkeypatch.setattr(detect_run, "load", None)
    status, _, err = run("clip.mp4", "cat", "--out", out, "--overwrite")
    assert (status, (here / "clip.mp4").read_bytes()) == (1, before)
    assert f"expected different files for a video and --out; got {out} for both" in err


@pytest.mark.parametrize(("sources", "out"), [
    (["clip.mp4", "a.png"], "found.mp4"), (["*.mp4"], "found.mp4"), (["clip.mp4"], "found.webm"),
    (["clip.mp4", "other.mp4"], "found.mkv"), (["/dev/video0"], "found.mp4")])
def test_an_annotated_video_needs_one_video(here, run, monkeypatch, sources, out):
    monkeypatch.setattr(detect_run, "load", None)
    status, _, err = run(*sources, "cat", "--out", out)
    assert status == 1 and not (here / out).exists()
    assert f"--out {out}: an annotated video needs one video file as the only source, and one of the endings" in err
    assert "Give --out a folder" in err


@pytest.mark.parametrize(("sources", "files", "message"), [
    (["clip.mp4", "clip.mkv"], [], "clip.mkv and clip.mp4 would both be drawn to drawn/clip"),
    (["clip.mp4", "clip/000000.png"], ["clip/000000.png"],
     "clip.mp4 and clip/000000.png would both be drawn to drawn/clip/000000.png"),
    (["clip.mp4"], ["drawn/clip/000003.png"], "clip.mp4#3 would be drawn to drawn/clip/000003.png, which exists and "
                                              "was not drawn by minigdino"),
    (["clip.mp4", "drawn/clip/000003.png", "--overwrite"], ["drawn/clip/000003.png"],
     "clip.mp4#3 would be drawn to drawn/clip/000003.png, which is one of the images"),
    (["clip.mp4", "drawn/*/*"], ["drawn/x/y.png"], "where the next run would take the drawing for an image"),
    (["clip.mp4", "drawn/clip"], ["drawn/clip/x.png"], "where the next run would take the drawing for an image")])
def test_frames_are_never_drawn_over_other_files(here, run, sources, files, message):
    copies(here, ".", *files)
    (here / "clip.mkv").write_bytes(encoded("matroska", 2))
    before = {name: (here / name).read_bytes() for name in files}
    status, _, err = run(*sources, "cat", "--every", "3", "--out", "drawn")
    assert status == 1 and message in err, err
    assert {name: (here / name).read_bytes() for name in files} == before


def test_pictures_beside_those_of_a_video_are_allowed(here, run):
    copies(here, "clip", "cover.png")
    status, _, err = run("clip.mp4", "clip/cover.png", "cat", "--every", "9", "--out", "drawn")
    assert status == 0, err
    assert sorted(os.listdir("drawn/clip")) == ["000000.png", "cover.png"]


# ---- damage and interruptions


def test_a_frame_that_cannot_be_decoded_is_an_error_of_that_frame(here, run, damaged):
    options = ["clip.mp4", "a.png", "cat", "--every", "8", "--jsonl", "x.jsonl"]
    status, _, err = run(*options)
    assert (status, err) == (1, "minigdino: clip.mp4: frame 20 cannot be decoded (damaged)\n")
    assert images_of(here / "x.jsonl") == ["clip.mp4#0", "clip.mp4#8", "clip.mp4#16", "clip.mp4#24", "a.png"]
    assert ["error" in line for line in objects(here / "x.jsonl")[1:]] == [False, False, False, True, False]
    before = (here / "x.jsonl").read_text()
    status, _, err = run(*options, "--resume")
    assert (status, (here / "x.jsonl").read_text()) == (1, before)
    assert "x.jsonl has an error of an earlier run for 1 image. To try again, delete its line" in err


def test_the_frames_before_a_damaged_one_are_drawn(here, run, damaged):
    status, _, err = run("clip.mp4", "cat", "--every", "8", "--out", "found.mp4")
    assert status == 1 and err.endswith("wrote found.mp4\n")
    assert len(list(minigdino.frames(here / "found.mp4"))) == 3


def test_a_really_damaged_video_ends_with_a_message(here, run):
    data = bytearray(encoded("mpegts", 40, codec="mpeg2video", scale=4))
    (here / "clip.ts").write_bytes(data[: len(data) // 2] + np.random.default_rng(0).bytes(3000))
    status, _, err = run("clip.ts", "cat", "--every", "10", "--jsonl", "x.jsonl")
    lines = objects(here / "x.jsonl")[1:]
    assert status == any("error" in line for line in lines) and "Traceback" not in err
    assert [line["image"] for line in lines] == [f"clip.ts#{10 * i}" for i in range(len(lines))]


@pytest.mark.parametrize("content", [None, b"no video", b""])
def test_a_video_that_cannot_be_read_does_not_stop_the_others(here, run, content):
    if content is not None:
        (here / "bad.mp4").write_bytes(content)
    for more in ([], ["--resume"]):
        status, _, err = run("bad.mp4", "clip.mp4", "cat", "--every", "6", "--jsonl", "x.jsonl", *more)
        assert status == 1
        assert ("bad.mp4: no" in err) == (not more)
        assert images_of(here / "x.jsonl") == ["bad.mp4", "clip.mp4#0", "clip.mp4#6"]
    assert "error of an earlier run for 1 image" in err
    status, _, err = run("bad.mp4", "cat", "--out", "found.mp4")
    assert status == 1 and err.count("\n") == 1 and "bad.mp4: no" in err
    assert not (here / "found.mp4").exists()


def test_a_frame_that_the_model_cannot_use_is_named(here, run):
    video.write("thin.mp4", [np.zeros((4, 3000, 3), np.uint8)])
    status, _, err = run("thin.mp4", "cat")
    assert status == 1 and err.startswith("minigdino: thin.mp4#0: a resized image must have at least one row")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_keeps_the_old_video_and_the_lines(here, run, monkeypatch, interrupt):
    video.write("found.mp4", [tiny.photo(60, 80)])
    before = (here / "found.mp4").read_bytes()
    write, drawn = minigdino.files.JsonLines.write, []

    def write_some(lines, line):
        write(lines, line)
        drawn.append(line)
        if len(drawn) == 4:  # the header is one
            raise interrupt

    monkeypatch.setattr(minigdino.files.JsonLines, "write", write_some)
    status, _, err = run("clip.mp4", "cat", "--out", "found.mp4", "--jsonl", "x.jsonl")
    assert status == (130 if interrupt is KeyboardInterrupt else 1)
    assert (here / "found.mp4").read_bytes() == before
    assert images_of(here / "x.jsonl") == ["clip.mp4#0", "clip.mp4#1", "clip.mp4#2"]
    assert sorted(os.listdir(here)) == ["a.png", "clip.mp4", "found.mp4", "model", "x.jsonl"]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
def test_an_exception_of_a_signal_handler_is_unchanged(here, run, monkeypatch):
    error = OSError("the job took too long")

    def handler(signum, frame):
        raise error

    def alarm(path):
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(video, "open_regular", alarm)
    try:
        for options in ([], ["--out", "found.mp4"]):
            with pytest.raises(OSError, match="took too long") as raised:
                run("clip.mp4", "cat", *options)
            assert raised.value is error
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- a camera


@pytest.fixture
def camera(here, monkeypatch):
    """A file stands in for the camera. It ends with Ctrl-C."""
    opened = []

    def frames(source, every):
        opened.append(source)
        yield from minigdino.frames("clip.mp4", every)
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "frames", frames)
    return opened


def test_a_camera_ends_with_control_c_and_what_was_written_is_valid(here, run, camera):
    status, _, err = run("/dev/video3", "cat", "--every", "2", "--jsonl", "x.jsonl", "--out", "drawn", "--crops", "c")
    assert status == 130 and err.endswith("minigdino: stopped\n")
    assert images_of(here / "x.jsonl") == [f"/dev/video3#{number}" for number in range(0, N, 2)]
    assert set(camera) == {3}
    assert sorted(os.listdir(here / "drawn/video3")) == [f"{number:06}.png" for number in range(0, N, 2)]
    for path in (here / "drawn/video3").iterdir():
        Image.open(path).load()


@pytest.mark.parametrize("options", [["--coco", "x"], ["--csv", "x"], ["--json"], ["--jsonl", "x", "--resume"]])
def test_a_camera_has_no_end(run, options):
    status, _, err = run("/dev/video3", "cat", *options)
    assert status == 2
    assert f"{options[0] if len(options) < 3 else '--resume'} need a run with an end, which a camera does not" in err


def test_only_devices_of_video_are_cameras():
    assert all(map(inputs.is_camera, ("/dev/video0", "/dev/video12")))
    assert not any(map(inputs.is_camera, ("/dev/video", "/dev/video0/x", "video0", "0", "/dev/video01", "/dev/video٣")))


# ---- wrong options


def test_an_image_with_the_name_of_a_frame_is_refused(here, run, monkeypatch):
    for name in ("clip.mp4#3", "clip.mp4#x", "#3"):
        (here / name).write_bytes((here / "a.png").read_bytes())
    assert run("clip.mp4", "clip.mp4#x", "#3", "cat", "--every", "9")[0] == 0
    monkeypatch.setattr(detect_run, "load", None)
    status, _, err = run("clip.mp4#3", "clip.mp4", "cat", "--every", "9", "--jsonl", "x.jsonl")
    assert status == 1 and not (here / "x.jsonl").exists()
    assert "clip.mp4#3 has the name of a frame of clip.mp4. Rename it, or process the two in different runs" in err


def test_a_fast_video_needs_fewer_frames(here, run, monkeypatch):
    (here / "clip.mp4").write_bytes(encoded(rate=2000))
    assert run("clip.mp4", "cat", "--every", "2", "--out", "found.mp4")[0] == 0
    monkeypatch.setattr(detect_run, "load", None)
    status, _, err = run("clip.mp4", "cat", "--out", "found.mp4")
    assert status == 1
    assert "--every 1 would give an annotated video of 2000 frames per second; expected 0.01 to 1000. Choose" in err


def test_frames_of_several_sizes_give_pictures_but_no_video(here, run):
    (here / "clip.ts").write_bytes(b"".join(encoded("mpegts", 4, "mpeg2video", scale=scale) for scale in (1, 2)))
    sizes = [frame.shape for frame in minigdino.frames("clip.ts")]
    changed = next(i for i, size in enumerate(sizes) if size != sizes[0])
    status, _, err = run("clip.ts", "cat", "--out", "found.mp4", "--jsonl", "x.jsonl")
    assert status == 1 and not (here / "found.mp4").exists()
    assert f"clip.ts#{changed}: an annotated video needs frames of one size, 64 x 48 as the first one; got 128 x" in err
    assert "Give --out a folder, with a slash at its end, for a picture of each frame" in err
    status, _, err = run("clip.ts", "cat", "--out", "found/", "--jsonl", "x.jsonl", "--overwrite")
    assert status == 0 and len(os.listdir("found/clip")) == len(sizes), err


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_video_that_appears_during_the_run_is_not_replaced(here, run, monkeypatch, options):
    def late(*arguments, **options):
        (here / "found.mp4").write_bytes(b"of the user")
        return detect_each(*arguments, **options)

    monkeypatch.setattr(detect_run, "detect_each", late)
    status, _, err = run("clip.mp4", "cat", "--out", "found.mp4", *options)
    assert status == (not options)
    assert ((here / "found.mp4").read_bytes() == b"of the user") == (not options)
    assert ("found.mp4 exists already, and is not replaced" in err) == (not options)


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (["a.png", "cat", "--every", "2"], 2, "--every needs a video among the sources, such as clip.mp4; got none"),
    (["clip.mp4", "cat", "--every", "0"], 1, "--every must be 1 or more; got 0"),
    (["clip.mp4", "cat", "--every", "1001", "--out", "x.mp4"], 1,
     "--every 1001 would give an annotated video of 0.00999 frames per second; expected 0.01 to 1000. Choose another"),
    (["clip.mp4", "cat", "--jsonl", "x", "--resume", "--out", "y.mp4"], 2,
     "--resume does not work with an annotated video, which would lack the frames of the earlier run. Give --out"),
    (["clip.mp4", "cat", "--coco", "x", "--image-ids", "ids.json"], 2, "--image-ids does not work with a video"),
    (["clip.mp4", "cat", "--out", "a.png", "--overwrite"], 1, "several images need a folder to write to")])
def test_options_that_do_not_fit_a_video_are_refused(here, run, monkeypatch, arguments, status, message):
    monkeypatch.setattr(detect_run, "load", None)
    before = sorted(os.listdir(here))
    found, _, err = run(*arguments)
    assert (found, message in err) == (status, True), err
    assert sorted(os.listdir(here)) == before


def test_the_missing_package_is_named_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(detect_run, "load", None)
    for name in ("clip.mp4", "void.mp4", "/dev/video0"):
        status, _, err = run("a.png", name, "cat")
        assert (status, err.count("\n")) == (1, 1)
        assert "video needs the package " in err and "which is not installed. Run: pip install " in err


def test_a_url_of_a_video_is_refused_by_name(run):
    status, _, err = run("https://example.org/clip.mp4", "cat")
    assert status == 1
    assert "https://example.org/clip.mp4: a video must be a file on this machine; got a URL. Download it first" in err


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.mov"])
def test_only_a_marked_video_counts_as_written(tmp_path, name):
    path = tmp_path / name
    with open(path, "wb") as file, av.open(file, "w", format=video.OUTPUTS[path.suffix]) as output:
        output.metadata["comment"] = "minigdino 2"
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(tiny.photo(48, 64), format="rgb24")))
        output.mux(stream.encode())
    assert not video.is_marked(path)
    video.write(path, [tiny.photo(48, 64)], overwrite=True)
    assert video.is_marked(path)
    path.write_bytes(path.read_bytes()[:40])
    assert not any(map(video.is_marked, (path, tmp_path, tmp_path / "void", "\0")))

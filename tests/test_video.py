"""Video: frames as images, upright and one at a time; damaged files; pictures as a video."""

import contextlib
import errno
import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino import ArgumentError, ImageError, video
from minigdino.checkpoints.json_file import open_regular

av = pytest.importorskip("av", reason="video needs PyAV, which is not installed")

HEIGHT, WIDTH, N = 48, 64, 7


def picture(number):
    """A picture whose red grows with its number; its left upper quarter is blue."""
    pixels = np.full((HEIGHT, WIDTH, 3), (30 * number, 120, 0), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = (0, 0, 250)
    return pixels


def encoded(container="mp4", n=N, codec="mpeg4", rate=10, scale=1, title=None):
    """The bytes of a video with N pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = scale * WIDTH, scale * HEIGHT, "yuv420p"
        for number in range(n):
            pixels = picture(number).repeat(scale, 0).repeat(scale, 1)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def turned(data, matrix):
    """An MP4 file whose track header has a display matrix, as phones write it."""
    data, start = bytearray(data), data.index(b"tkhd") + 44
    a, b, c, d = matrix
    for i, value in enumerate([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]):
        data[start + 4 * i : start + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    return bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(encoded())
    return path


def close_to(one, other):
    assert one.shape == other.shape and one.dtype == np.uint8
    np.testing.assert_allclose(one.astype(int), other, atol=12)  # compression, and its colours at half the resolution


# ---- frames


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts", "flv"])
def test_frames_are_the_pictures_of_a_file(tmp_path, container):
    (tmp_path / "clip").write_bytes(encoded(container, codec="flv1" if container == "flv" else "mpeg4"))
    found = list(minigdino.frames(tmp_path / "clip"))  # the content decides, not the name
    assert len(found) == N
    for number, image in enumerate(found):
        assert image.flags.c_contiguous
        interior = np.s_[4:12, 4:28], np.s_[34:, :]  # away from the edge between the colours
        for part in interior:
            close_to(image[part], picture(number)[part])


@settings(max_examples=20)
@given(every=st.integers(1, 2 * N), path_type=st.sampled_from([str, Path]))
def test_every_nth_frame_is_the_same_as_that_of_all(clip, every, path_type):
    for one, other in itertools.zip_longest(minigdino.frames(path_type(clip), every),
                                            itertools.islice(minigdino.frames(clip), 0, None, every)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("matrix", "turns"), [((1, 0, 0, 1), 0), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2),
                                               ((0, 1, -1, 0), 3)])
def test_a_rotation_is_applied(tmp_path, clip, matrix, turns):
    (tmp_path / "turned.mp4").write_bytes(turned(encoded(), matrix))
    for one, other in zip(minigdino.frames(tmp_path / "turned.mp4"), minigdino.frames(clip), strict=True):
        np.testing.assert_array_equal(one, np.rot90(other, turns))
    assert one.flags.c_contiguous


def test_a_phone_held_upright(tmp_path):
    """The blue quarter is at the left top of the stored frames, and at the right top after a clockwise turn."""
    (tmp_path / "turned.mp4").write_bytes(turned(encoded(), (0, 1, -1, 0)))
    image = next(minigdino.frames(tmp_path / "turned.mp4"))
    assert image.shape == (WIDTH, HEIGHT, 3)
    close_to(image[4, -5], np.array([0, 0, 250]))


def test_frames_are_images_for_detect(clip):
    model = tiny.model()
    found = list(model.detect(minigdino.frames(clip, every=3), "a cat.", threshold=0))
    for one, image in zip(found, minigdino.frames(clip, every=3), strict=True):
        np.testing.assert_array_equal(one.boxes, model.detect(image, "a cat.", threshold=0).boxes)
        assert one.image_size == (WIDTH, HEIGHT)


def test_one_frame_is_in_memory_at_a_time(clip):
    images = minigdino.frames(clip)
    references = []
    for _ in range(N):
        references.append(weakref.ref(next(images)))
        gc.collect()
        assert references[-1]() is None


def test_a_file_is_closed_with_its_iterator(clip, monkeypatch):
    opened = []
    monkeypatch.setattr(video, "open_regular", lambda path: opened.append(open_regular(path)) or opened[-1])
    unused = minigdino.frames(clip)
    assert not opened
    assert len(list(unused)) == N and opened[0].closed
    images = minigdino.frames(clip)
    next(images)
    assert not opened[1].closed
    images.close()
    assert opened[1].closed
    images = minigdino.frames(clip)
    next(images)
    del images
    gc.collect()
    assert opened[2].closed


def test_an_exception_of_the_caller_is_unchanged(clip):
    images = minigdino.frames(clip)
    next(images)
    error = OSError("of the caller")
    with pytest.raises(OSError) as raised:
        images.throw(error)
    assert raised.value is error


def test_the_rate(clip):
    assert video.rate(clip) == 10


@pytest.mark.parametrize("container", ["asf", "mpegts"])
def test_the_rate_of_a_container_that_states_none_is_that_of_the_codec(tmp_path, container):
    (tmp_path / "clip").write_bytes(encoded(container))
    with video._opened(tmp_path / "clip") as (_, stream, _):
        assert stream.average_rate is None
    assert video.rate(tmp_path / "clip") == 10


def test_a_video_without_a_rate_is_an_error_with_the_next_step(clip, monkeypatch):
    @contextlib.contextmanager
    def opened(path):
        yield None, types.SimpleNamespace(average_rate=None, guessed_rate=None), None

    monkeypatch.setattr(video, "_opened", opened)
    with pytest.raises(minigdino.ImageError, match="expected a video that states .*; got none. Choose a rate"):
        video.rate(clip)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_title_in_another_encoding_than_utf8(tmp_path, container):
    data = encoded(container, title="A title")
    (tmp_path / "clip").write_bytes(data.replace(b"A title", b"caf\xe9 \xff\xfe"))
    assert len(list(minigdino.frames(tmp_path / "clip"))) == N
    assert video.rate(tmp_path / "clip") == 10


def with_cover(path, other):
    """Write a file whose first stream is a cover, and whose second stream is sound or a video."""
    cover = io.BytesIO()
    Image.new("RGB", (32, 32)).save(cover, "JPEG")
    with av.open(path, "w") as output:
        stream = output.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        if other == "video":
            second = output.add_stream("mpeg4", rate=10)
            second.width, second.height, second.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            packets = second.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24"))
        else:
            second = output.add_stream("aac", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 8000
            packets = second.encode(sound)
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1)
        for one in (packet, *packets, *second.encode()):
            output.mux(one)


def test_a_cover_is_no_frame(tmp_path):
    with_cover(tmp_path / "clip.mp4", "video")
    image, = minigdino.frames(tmp_path / "clip.mp4")
    close_to(image[30:, :], picture(1)[30:, :])
    with_cover(tmp_path / "song.mp4", "sound")
    for read in (video.rate, lambda path: next(minigdino.frames(path))):
        with pytest.raises(ImageError, match=r"song.mp4: expected a video; got a file without pictures, or with a cov"):
            read(tmp_path / "song.mp4")


# ---- processes


def exit_status(pid):
    """The status of a child process, which is ended after some seconds."""
    end = time.monotonic() + 20
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def in_child(function):
    """Call a function in a forked process. Returns its status: 0 without an exception."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return exit_status(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("container", "codec"), [("mp4", "mpeg4"), ("matroska", "ffv1"), ("mp4", "libx264")])
def test_a_forked_process_can_close_and_open_but_not_continue(tmp_path, container, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"needs {codec}")
    (tmp_path / "clip").write_bytes(encoded(container, codec=codec, scale=4))
    want = list(minigdino.frames(tmp_path / "clip"))
    images = minigdino.frames(tmp_path / "clip")
    found = [next(images)]

    def continued():
        with pytest.raises(ArgumentError, match="expected all frames to be requested in one process; got a fork"):
            next(images)

    def opened():
        assert len(list(minigdino.frames(tmp_path / "clip"))) == N

    assert [in_child(continued), in_child(images.close), in_child(opened)] == [0, 0, 0]
    found += images  # undisturbed
    np.testing.assert_array_equal(found, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_video_is_written_can_end(tmp_path):
    """The child ends as by `sys.exit`: the exception leaves `write`, which closes the video in the child, too."""
    statuses, parent = [], os.getpid()

    def pictures():
        for number in range(60):  # an encoder starts its threads late
            yield np.roll(picture(1).repeat(4, 0).repeat(4, 1), number, 1)
        if (pid := os.fork()) == 0:
            raise SystemExit
        statuses.append(exit_status(pid))

    try:
        video.write(tmp_path / "found.mp4", pictures())
    except SystemExit:
        assert os.getpid() != parent
        os._exit(0)
    assert statuses == [0]
    assert len(list(minigdino.frames(tmp_path / "found.mp4"))) == 60


# ---- refused


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", None, True])
def test_another_step_is_refused_at_the_call(clip, every):
    with pytest.raises(ArgumentError, match="every must be an int of 1 or more; got "):
        minigdino.frames(clip, every)


@pytest.mark.parametrize(("source", "kind", "expected"), [
    ("missing.mp4", ImageError, "missing.mp4: no such file in the folder /.*. Check the name"),
    ("void/clip.mp4", ImageError, "void/clip.mp4: no such file; /.*void does not exist. Check the path"),
    ("https://example.org/clip.mp4", ImageError, "a video must be a file on this machine; got a URL"),
    (-1, ArgumentError, "a camera must have a number of 0 to 65535; got -1"), (2**16, ArgumentError, "got 65536"),
    (None, ArgumentError, "a video must be the path of a file, or the number of a camera; got NoneType"),
    (True, ArgumentError, "got bool"), (b"clip.mp4", ArgumentError, "got bytes")])
def test_another_source_is_refused_at_the_call(source, kind, expected):
    with pytest.raises(kind, match=expected):
        minigdino.frames(source)


def test_a_missing_video_gives_that_of_a_similar_name(tmp_path):
    (tmp_path / "clip.MP4").touch()
    (tmp_path / "holiday.jpg").touch()
    for name in ("clip.mp4", "Clip.mov"):
        with pytest.raises(ImageError, match=r"no such file\. Did you mean '.*clip\.MP4'\?$"):
            minigdino.frames(tmp_path / name)
    with pytest.raises(ImageError, match="Check the name"):
        minigdino.frames(tmp_path / "holiday.mp4")


def test_a_number_with_more_digits_than_python_prints_is_refused():
    with pytest.raises(ArgumentError, match="got a very large int"):
        minigdino.frames(10**5000)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("name", ["clip.m3u8", "clip.mp4", "clip.txt"])
@pytest.mark.parametrize("content", [
    b"", b"no video", bytes(5000), PLAYLIST % b"clip.ts", b"ffconcat version 1.0\nfile clip.mp4\n",
    b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n"], ids=["empty", "text", "zeros", "hls", "concat", "sdp"])
def test_a_file_that_is_no_video_is_refused(tmp_path, clip, content, name):
    (tmp_path / "clip.ts").write_bytes(encoded("mpegts"))
    (tmp_path / name).write_bytes(content)
    for read in (video.rate, lambda path: next(minigdino.frames(path))):
        with pytest.raises(ImageError, match=rf"{name}: not a readable video \(.*\); expected a complete file"):
            read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ImageError, match="not a readable video"):
            next(minigdino.frames(path))


def test_a_file_with_sound_only_is_refused(tmp_path):
    with av.open(tmp_path / "sound.mkv", "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    for read in (video.rate, lambda path: next(minigdino.frames(path))):
        with pytest.raises(ImageError, match="sound.mkv: expected a video; got a file without pictures"):
            read(tmp_path / "sound.mkv")


def test_an_unknown_codec_is_refused(tmp_path):
    data = encoded("avi")
    assert data.count(b"FMP4") == 2
    (tmp_path / "clip.avi").write_bytes(data.replace(b"FMP4", b"\0\0\0\1"))
    with pytest.raises(ImageError, match=r"clip.avi: expected a video in a codec that PyAV decodes; got another one"):
        next(minigdino.frames(tmp_path / "clip.avi"))


DATA = {container: encoded(container, 4) for container in ("mp4", "matroska", "avi")}


@settings(max_examples=60)
@given(st.sampled_from(sorted(DATA)), st.data())
def test_a_damaged_file_gives_fewer_frames_or_an_error_of_the_image(tmp_path_factory, container, data):
    damaged = bytearray(DATA[container])
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(damaged) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=30))
        damaged[start : start + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))])
    try:
        for image in itertools.islice(minigdino.frames(path), 20):
            assert image.dtype == np.uint8 and image.ndim == 3
    except ImageError as error:
        assert "damaged: " in str(error)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_positions_that_a_file_does_not_have_print_nothing(clip, monkeypatch, capfd, container):
    """FFmpeg goes to positions that a damaged file states. PyAV prints the exceptions of these attempts."""
    class File(io.BytesIO):
        def seek(self, *args):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(video, "open_regular", lambda path: File(encoded(container, 60, scale=4)))
    with contextlib.suppress(ImageError):
        list(minigdino.frames(clip))
    gc.collect()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reads", [0, 1])
def test_an_error_of_the_disk_is_named(clip, monkeypatch, reads):
    class File(io.BytesIO):
        left = reads

        def read(self, n=-1):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(n, 1000))

    monkeypatch.setattr(video, "open_regular", lambda path: File(clip.read_bytes()))
    with pytest.raises(ImageError, match="clip.mp4: .*Input/output error"):
        list(minigdino.frames(clip))


def test_frames_with_too_many_pixels_are_refused(clip, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="frame 0 cannot be decoded .* or have frames of more than 1000 pixels; conv"):
        next(minigdino.frames(clip))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ImageError, match=f"expected frames of at most 3071 pixels; got {HEIGHT * WIDTH}.*raise"):
        next(minigdino.frames(clip))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(list(minigdino.frames(clip))) == N


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from Linux")
def test_a_large_frame_is_not_decoded_when_the_file_is_opened(tmp_path):
    """FFmpeg decodes the first frames to find the parameters that the header lacks."""
    size, file = 4096, io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    with av.open(tmp_path / "clip.avi", "w") as output:
        stream = output.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
        packet = av.Packet(file.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 10)
        output.mux(packet)
    code = ("import sys, minigdino\nfrom PIL import Image\nImage.MAX_IMAGE_PIXELS = 10**5\n"
            "peak = lambda: int(next(x for x in open('/proc/self/status') if x[:6] == 'VmHWM:').split()[1])\n"
            "import av\nbefore = peak()\n"
            "try: next(minigdino.frames(sys.argv[1]))\nexcept minigdino.ImageError: print(peak() - before)")
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "clip.avi"], cwd=Path(__file__).parent.parent,
                         capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 3 * size**2 / 1024 / 4  # KiB; a frame has 3 bytes per pixel


def test_frames_that_grow_are_limited_too(tmp_path, monkeypatch):
    small, large = ((scale * HEIGHT, scale * WIDTH, 3) for scale in (4, 16))
    (tmp_path / "clip.ts").write_bytes(encoded("mpegts", 2, scale=4) + encoded("mpegts", 2, scale=16))
    assert {image.shape for image in minigdino.frames(tmp_path / "clip.ts")} == {small, large}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * small[0] * small[1])
    images = minigdino.frames(tmp_path / "clip.ts")
    assert next(images).shape == small
    with pytest.raises(ImageError, match=r"clip.ts: frame \d+ cannot be decoded"):
        list(images)


def test_another_container_is_refused(tmp_path):
    (tmp_path / "clip.nut").write_bytes(encoded("nut"))
    with pytest.raises(ImageError, match="clip.nut: not a readable video"):
        next(minigdino.frames(tmp_path / "clip.nut"))


@pytest.mark.parametrize("call", [minigdino.frames, video.rate, lambda path: video.write(path, [])])
def test_a_message_names_the_missing_package(clip, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "av", None)
    expected = 'video needs the package av, which is not installed. Run: pip install "av>=17'
    with pytest.raises(ArgumentError, match=expected):
        call(clip)


def test_the_message_names_the_versions_of_the_extra():
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"]["video"] == [video.PACKAGE]


@pytest.mark.parametrize(("content", "expected"), [
    (b"no video", "Invalid data found when processing input"), (None, "Is a directory")])
def test_a_file_that_is_no_video_has_a_reason_without_numbers(tmp_path, content, expected):
    path = tmp_path
    if content:
        (path := tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=rf": not a readable video \({expected}\); expected a complete file"):
        next(minigdino.frames(path))


@pytest.mark.parametrize("version", ["15.0.0", "17.0.1rc1", "19.0.2"])
def test_a_package_of_another_version_is_refused(clip, monkeypatch, version):
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(ArgumentError, match=f"video needs PyAV 17.1 to 18; got {version}. Run: pip install --upg"):
        minigdino.frames(clip)


def test_the_package_is_imported_only_for_a_video():
    code = "import sys, minigdino; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, OSError, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["open", "read", "later", "seek", "write"])
def test_an_exception_of_a_signal_handler_is_unchanged(tmp_path, clip, monkeypatch, capfd, name, kind):
    """PyAV drops those that are no `Exception`, and prints all but the last one."""
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    class File(io.BytesIO):
        reads = 0

        def read(self, n=-1):
            self.reads += 1
            if name == "read" or (name == "later" and self.reads > 1):
                signal.raise_signal(signal.SIGALRM)
            return super().read(min(n, 10_000))

        def seek(self, *args):
            if name == "seek":
                signal.raise_signal(signal.SIGALRM)
            return super().seek(*args)

        def write(self, data):
            signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        if name == "open":
            monkeypatch.setattr(video, "open_regular", lambda _: signal.raise_signal(signal.SIGALRM))
        elif name == "write":
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: File())
        else:
            data = clip.read_bytes()
            if name in ("later", "seek"):
                data = encoded("mp4", 60, scale=4)  # more than a block, with the index behind the frames
            monkeypatch.setattr(video, "open_regular", lambda path: File(data))
        with pytest.raises(kind) as raised:
            if name == "write":
                video.write(tmp_path / "found.mp4", [picture(0)] * 5)
            for _ in minigdino.frames(clip):
                pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error
    assert not os.listdir(tmp_path)
    assert not capfd.readouterr().err


# ---- cameras


def test_a_camera_is_read_by_its_number(clip, monkeypatch):
    """A file stands in for the camera."""
    original, opened = av.open, []

    def open_camera(name, format):
        opened.append((name, format))
        return original(str(clip))

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(av, "open", open_camera)
    images = minigdino.frames(3, every=2)
    assert not opened
    assert len(list(images)) == (N + 1) // 2
    assert opened == [("/dev/video3", "v4l2")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_camera_that_is_missing():
    with pytest.raises(ImageError, match=r"/dev/video987: the camera cannot be opened \(.*\). Check its number"):
        next(minigdino.frames(987))


def test_cameras_of_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ArgumentError, match="cameras are read on Linux only"):
        next(minigdino.frames(0))


# ---- write


@pytest.mark.parametrize("name", ["found.mp4", "found.MOV", "found.mkv"])
@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray])
@pytest.mark.parametrize("rate", [10, 2.5, 30000 / 1001])
def test_pictures_become_frames(tmp_path, name, kind, rate):
    video.write(tmp_path / name, (kind(picture(number)) for number in range(N)), rate)
    assert video.rate(tmp_path / name) == pytest.approx(rate, rel=1e-3)
    found = list(minigdino.frames(tmp_path / name))
    assert len(found) == N
    for number, image in enumerate(found):
        close_to(image[30:, :], picture(number)[30:, :])
    assert os.listdir(tmp_path) == [name]


def test_an_odd_size_is_enlarged(tmp_path):
    video.write(tmp_path / "found.mp4", [picture(1)[:31, :33]])
    image, = minigdino.frames(tmp_path / "found.mp4")
    assert image.shape == (32, 34, 3)
    close_to(image[28:, :], np.full((4, 34, 3), picture(1)[30, 0]))


def test_detections_drawn_on_a_video(tmp_path, clip):
    found = tiny.model().detect(minigdino.frames(clip), "a cat.")
    video.write(tmp_path / "found.mp4", (one.plot() for one in found), video.rate(clip))
    assert len(list(minigdino.frames(tmp_path / "found.mp4"))) == N


def test_an_existing_file_is_never_replaced(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"of the user")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nothing.mp4")
    for name in ("clip.mp4", "link.mp4"):
        with pytest.raises(ArgumentError, match=f"{name} exists already, and is not replaced. Choose another name"):
            video.write(tmp_path / name, [picture(0)])
    assert (tmp_path / "clip.mp4").read_bytes() == b"of the user"


@pytest.mark.parametrize(("name", "pictures", "rate", "kind", "expected"), [
    ("found.webm", [picture(0)], 25, ArgumentError, "one of the endings .mp4, .mov, .mkv; got '.webm'"),
    ("found", [picture(0)], 25, ArgumentError, "got ''"),
    ("found.mp4", [], 25, ArgumentError, "a video must have at least one picture; got none"),
    ("found.mp4", [picture(0), picture(0)[:20]], 25, ArgumentError, "the size of the first, 64 x 48; got 64 x 20"),
    ("found.mp4", [picture(0), None], 25, ImageError, "an image must be"),
    *(("found.mp4", [picture(0)], rate, ArgumentError, "rate must be a number of frames per second")
      for rate in (0, -1, 1e-9, 1e9, float("nan"), float("inf"), "25", None, True, 25j)),
    *(("found.mp4", pictures, 25, ArgumentError, f"pictures must be a list or another iterable of images; got {kind}")
      for pictures, kind in ((None, "NoneType"), (5, "int"), ("cat.jpg", "str"), (Path("cat.jpg"), "PosixPath|Windows"),
                             (picture(0), "ndarray"), (Image.new("RGB", (8, 8)), "Image"))),
    ("https://example.org/found.mp4", [picture(0)], 25, ArgumentError, "must be written to this machine; got a URL"),
    ("https://me:secret@host/found.mp4", [picture(0)], 25, ArgumentError, "^https://host/found.mp4: "),
    (None, [picture(0)], 25, ArgumentError, "a video must be written to a path; got NoneType"),
    (b"found.mp4", [picture(0)], 25, ArgumentError, "got bytes")])
def test_what_cannot_be_written_leaves_no_file(tmp_path, monkeypatch, name, pictures, rate, kind, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=expected):
        video.write(name, pictures, rate)
    assert not os.listdir(tmp_path)


def test_an_array_of_pictures(tmp_path):
    video.write(tmp_path / "found.mp4", np.stack([picture(0), picture(1)]))
    assert len(list(minigdino.frames(tmp_path / "found.mp4"))) == 2


@pytest.mark.parametrize("rate", [np.float32(12.5), np.int64(12), Fraction(25, 2)])
def test_other_types_of_a_rate(tmp_path, rate):
    video.write(tmp_path / "found.mp4", [picture(0)] * 2, rate)
    assert video.rate(tmp_path / "found.mp4") == rate


def test_a_path_that_cannot_be_written_is_refused_before_the_first_picture(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"found.mp4: cannot write there \("):
        video.write(tmp_path / "file" / "found.mp4", iter_must_not_start())


def iter_must_not_start():
    raise AssertionError("a picture was requested")
    yield


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    def pictures():
        yield picture(0)
        (tmp_path / "found.mp4").write_bytes(b"of the user")

    with pytest.raises(ArgumentError, match="found.mp4 exists already, and is not replaced"):
        video.write(tmp_path / "found.mp4", pictures())
    assert (tmp_path / "found.mp4").read_bytes() == b"of the user"
    assert os.listdir(tmp_path) == ["found.mp4"]


def test_a_link_in_a_folder_that_is_protected_from_writing_can_be_the_path(tmp_path, monkeypatch):
    make = tempfile.TemporaryFile

    def protected(*arguments, dir, **options):
        if os.path.realpath(dir) != os.path.realpath(tmp_path / "target"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(*arguments, dir=dir, **options)

    (tmp_path / "target").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "target/found.mp4")
    monkeypatch.setattr(tempfile, "TemporaryFile", protected)
    video.write(tmp_path / "link.mp4", [picture(0)], overwrite=True)
    assert (tmp_path / "link.mp4").is_symlink() and os.listdir(tmp_path / "target") == ["found.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize(("name", "limit"), [("found.mp4", 10), ("found.mp4", 50_000), ("found.mkv", 50_000)])
def test_a_full_disk_is_an_error_of_the_path(tmp_path, capfd, name, limit):
    """A limit for the size of files stands in for the disk."""
    import resource

    noise, given = np.random.default_rng(0), []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ArgumentError, match=rf"{name}: cannot write there \(File too large\). Choose another path"):
            video.write(tmp_path / name, (given.append(1) or noise.integers(0, 256, (64, 64, 3), np.uint8)
                                          for _ in range(300)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(given) < 300  # the rest is not encoded
    assert not capfd.readouterr().err and not os.listdir(tmp_path)


def test_an_exception_of_the_pictures_is_unchanged(tmp_path):
    def pictures():
        yield picture(0)
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        video.write(tmp_path / "found.mp4", pictures())
    assert not os.listdir(tmp_path)

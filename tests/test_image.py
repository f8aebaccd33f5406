"""Image preprocessing: image modes, the resize rule, the settings files."""

import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import types
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fuzz
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, GribStubImagePlugin, Image, ImageCms, ImageOps, PngImagePlugin

import minigdino
from minigdino import heif
from minigdino import image as module
from minigdino.image import (
    FORMATS,
    ImageSettings,
    endings,
    is_image,
    open_image,
    preprocess,
    read_file,
    read_size,
    resized,
    to_rgb,
)

edges = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((480, 640), (800, 1066)),
        ((427, 640), (800, 1199)),
        ((1080, 1920), (750, 1333)),
        ((800, 1334), (799, 1333)),
        ((3000, 800), (1333, 355)),
        ((114, 584), (260, 1332)),
        ((800, 800), (800, 800)),
        ((800, 1000), (800, 1000)),
    ],
)
def test_images_are_resized_to_the_published_sizes(before, after):
    assert resized(*before, 800, 1333) == after


@given(edges, edges)
def test_the_resize_rule_respects_its_limits_and_the_aspect_ratio(h, w):
    H, W = resized(h, w, 800, 1333)
    assert max(H, W) <= 1333 or (h, w) == (H, W)
    assert min(H, W) == 800 or max(H, W) >= 1331 or min(H, W) < 800
    assert resized(w, h, 800, 1333) == (W, H)
    if (h, w) == (H, W):  # an image whose shorter edge is already right, after rounding, is not resized
        return
    exact = min(800 / min(h, w), 1333 / max(h, w))
    assert abs(H - h * exact) <= 1.5
    assert abs(W - w * exact) <= 1.5 + exact


@pytest.mark.parametrize(("before", "after"), [
    ((480, 640), (600, 800)), ((640, 480), (800, 600)), ((90, 90), (800, 800)), ((3000, 800), (800, 213)),
    ((114, 584), (156, 800))])
@pytest.mark.parametrize("shortest", [800, 1333, 10_000])
def test_with_a_shortest_edge_above_the_longest_the_longer_is_exact(before, after, shortest):
    assert resized(*before, shortest, 800) == after  # up to rounding


@given(edges, edges)
def test_without_a_longest_edge_the_shorter_is_exact(h, w):
    assert min(resized(h, w, 100)) == 100


def test_the_other_kinds_of_size_are_supported():
    assert ImageSettings(size=(("height", 30), ("width", 50))).target(7, 9) == (30, 50)
    assert ImageSettings(size=(("max_height", 100), ("max_width", 100))).target(200, 50) == (100, 25)
    assert ImageSettings(do_resize=False).target(7, 9) == (7, 9)
    assert ImageSettings(do_resize=False).target(200, 400, (100, 150)) == (75, 150)


def test_pixels_are_the_resized_and_normalised_image():
    photo = tiny.photo(50, 70)
    pixels = preprocess(Image.fromarray(photo), ImageSettings(size=(("longest_edge", 200), ("shortest_edge", 100))))
    small = np.asarray(Image.fromarray(photo).resize((140, 100), Image.Resampling.BILINEAR), np.float64)
    want = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.float32, (3, 100, 140), True)
    np.testing.assert_allclose(pixels, want.transpose(2, 0, 1), atol=1e-6)


def test_steps_that_are_switched_off_are_skipped():
    photo = Image.fromarray(tiny.photo(8, 8))
    raw = preprocess(photo, ImageSettings(do_resize=False, do_rescale=False, do_normalize=False))
    np.testing.assert_array_equal(raw, np.asarray(photo).transpose(2, 0, 1))


COLOUR = (200, 30, 90)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 3), (77, 77, 77)),
        ("La", (77, 255), (77, 77, 77)),
        ("RGB", COLOUR, COLOUR),
        ("RGBA", (*COLOUR, 0), COLOUR),
        ("RGBX", (*COLOUR, 0), COLOUR),
        ("RGBa", (*COLOUR, 255), COLOUR),
        ("CMYK", (55, 225, 165, 0), COLOUR),
        ("I;16", 257 * 120, (120, 120, 120)),
        ("I;16B", 257 * 120, (120, 120, 120)),
        ("I;16L", 257 * 120, (120, 120, 120)),
        ("I", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, expected):
    image = to_rgb(Image.new(mode, (3, 2), colour))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((1, 1)) == expected


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "P", "PA"])
def test_other_colour_spaces_are_converted_up_to_rounding(mode):
    rgb = Image.new("RGB", (4, 4), COLOUR)
    if mode == "LAB":
        image = Image.new("LAB", (4, 4), (128, 128, 128))  # mid grey
        assert np.ptp(to_rgb(image).getpixel((0, 0))) <= 2
        return
    image = rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)
    assert np.abs(np.subtract(to_rgb(image).getpixel((0, 0)), COLOUR)).max() <= 26  # mode P uses the coarse web palette


def test_transparent_palettes_are_expanded_without_their_alpha(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    image.save(tmp_path / "p.png", transparency=1)
    assert open_image(tmp_path / "p.png").getpixel((0, 0)) == COLOUR


def test_sixteen_bit_png_files_are_scaled(tmp_path):
    Image.fromarray(np.full((2, 3), 257 * 9, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (9, 9, 9)


def turned(kind, value):
    """An image file with an orientation, which is in its EXIF block or in its XMP text."""
    exif, xmp = Image.Exif(), f'<x tiff:Orientation="{value}"/>'
    exif[274] = value
    format, _, text = kind.partition("+")
    if kind == "PNG+XMP":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        return encoded("PNG", pnginfo=info)
    return encoded(format, xmp=xmp.encode()) if text else encoded(format, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "PNG+XMP", "JPEG+XMP", "WEBP+XMP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_an_image_file_gives_the_same_upright_image_in_every_form(tmp_path, kind, value):
    """As a path, as bytes, as a file object, and opened with Pillow: not decoded yet, decoded, and converted."""
    data = turned(kind, value)
    (tmp_path / "photo").write_bytes(data)
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert want.size == ((9, 7) if value < 5 else (7, 9)) == read_size(tmp_path / "photo")
    decoded = Image.open(io.BytesIO(data))
    decoded.load()
    with open(tmp_path / "photo", "rb") as file, Image.open(tmp_path / "photo") as opened:
        for image in (tmp_path / "photo", str(tmp_path / "photo"), data, bytearray(data), io.BytesIO(data), file,
                      opened, opened, decoded, decoded.copy(), decoded.convert("RGBA"), want):
            got = open_image(image)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(open_image(got), want)  # it is not rotated again


@pytest.mark.parametrize("kind", ["PNG", "PNG+XMP"])
def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path, kind):
    data = turned(kind, 6)
    start = next(data.index(name) for name in (b"eXIf", b"iTXt") if name in data) - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    assert read_size(tmp_path / "a.png") == open_image(tmp_path / "a.png").size == (7, 9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_the_size_of_an_image_is_read_from_its_header(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(encoded(kind, Image.fromarray(tiny.photo(90, 120)))[:-400])  # without its last pixels
    assert read_size(path) == (120, 90)
    with pytest.raises(minigdino.ImageError, match="not a readable image"):
        open_image(path)


def test_a_file_without_a_size_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    for name, message in (("a.jpg", "a.jpg: not a readable image"), ("b.jpg", "b.jpg: no such file in the folder"),
                          ("\0.jpg", "null"), (".", "got a folder")):
        with pytest.raises(minigdino.ImageError, match=message):
            read_size(tmp_path / name)


def test_an_orientation_set_by_hand_is_applied():
    photo = Image.fromarray(tiny.photo(7, 9))
    photo.getexif()[274] = 6
    np.testing.assert_array_equal(open_image(photo), photo.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(photo, tiny.photo(7, 9))  # the image itself stays
    photo.getexif()[274] = [6]  # no orientation
    np.testing.assert_array_equal(open_image(photo), photo)


def test_the_colour_profile_stays_but_the_orientation_does_not():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6
    got = open_image(encoded("PNG", exif=exif, icc_profile=profile))
    assert got.info["icc_profile"] == profile
    assert not got.getexif()


def test_arrays_may_have_any_memory_layout():
    photo = tiny.photo(5, 7)
    for array in (photo, np.asfortranarray(photo), photo[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(np.asarray(open_image(array)), photo)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"got float64 \[4, 4, 3\].*scale to 0..255"),
        (np.zeros((3, 4, 5), np.uint8), "move the channels last"),
        (np.zeros((4, 4), np.uint8), "repeat the grey"),
        (np.zeros((4, 4, 4), np.uint8), "drop alpha"),
        (np.zeros((0, 4, 3), np.uint8), "non-empty"),
        (Image.new("F", (2, 2)), "got float pixels"),
        (Image.new("I", (2, 2), 70000), "0..65535"),
        (Image.new("RGB", (0, 3)), "must have pixels; got a size of 0 x 3"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"several images as a list: list\(image\)"),
        (np.array(["a.png", "b.png"]), r"paths as a list: image.tolist\(\)"),
        (7, "bytes or a binary file object; got int"),
        (None, "got None.*cv2.imread returns None for a file that it cannot read; check the path"),
        ({"a.png"}, r"got set.*for several images, give a list: list\(images\)"),
        (["a.png"], "got a list.*give one image. For several, give detect a flat list"),
        (memoryview(b"x"), r"got memoryview.*give its bytes: bytes\(image\)"),
        (b"no image", "not a readable image; expected the content of one of the formats"),
        (b"photo.png", "got b'photo.png', which is a path. Give it as a str: 'photo.png'"),
        (bytearray(b"a/B.JPG"), "got b'a/B.JPG', which is a path. Give it as a str: 'a/B.JPG'"),
        (b"", "got an empty file or no bytes. Copy or download the image again"),
        (io.BytesIO(), "got an empty file or no bytes"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
)
def test_unsupported_images_are_rejected(image, message):
    with pytest.raises(minigdino.ImageError, match=f"(?s){message}"):
        open_image(image)


def test_corrupted_files_are_rejected_with_their_name(tmp_path):
    data = io.BytesIO()
    Image.fromarray(tiny.photo(40, 40)).save(data, "JPEG")
    for name, content, message in (("cut.jpg", data.getvalue()[:300], "not a readable image"),
                                   ("list.txt", b"a.jpg", "not a readable image"),
                                   ("empty.png", b"", "expected an image; got an empty file")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(minigdino.ImageError, match=f"{name}: {message}"):
            open_image(tmp_path / name)


def test_an_image_without_rows_after_resizing_is_rejected():
    with pytest.raises(minigdino.ImageError, match="4000 x 1 would be resized to 1333 x 0"):
        preprocess(Image.new("RGB", (4000, 1)), ImageSettings())


SETTINGS = {
    "size": {"shortest_edge": 64, "longest_edge": 99},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25] * 3,
    "rescale_factor": 0.5,
    "do_pad": True,
    "pad_size": None,
    "resample": 3,
}


@pytest.mark.parametrize(
    ("name", "content"),
    [("preprocessor_config.json", SETTINGS), ("processor_config.json", {"image_processor": SETTINGS})],
)
def test_settings_are_read_from_either_file(tmp_path, name, content):
    assert ImageSettings.from_directory(tmp_path) == ImageSettings()
    (tmp_path / name).write_text(json.dumps(content))
    got = ImageSettings.from_directory(tmp_path)
    assert (dict(got.size), got.image_mean, got.resample) == (SETTINGS["size"], (0.5, 0.5, 0.5), 3)


def test_settings_survive_a_round_trip_through_json(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tiny.SETTINGS.to_dict()))
    assert ImageSettings.from_directory(tmp_path) == tiny.SETTINGS


@pytest.mark.parametrize(
    "bad",
    [
        {"size": {"edge": 3}},
        {"size": 3},
        {"image_mean": [1, 2]},
        {"image_std": [1, 0, 1]},
        {"resample": 77},
        {"size": {"shortest_edge": -1}},
        {"rescale_factor": "x"},
    ],
)
def test_invalid_settings_are_rejected(tmp_path, bad):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(bad))
    with pytest.raises(minigdino.CheckpointError, match="invalid image settings"):
        ImageSettings.from_directory(tmp_path)


# formats: only those that Pillow decodes without help


def encoded(kind, image=None, **options):
    data = io.BytesIO()
    (image or Image.fromarray(tiny.photo(7, 9))).save(data, kind, **options)
    return data.getvalue()


def peak_of(call, *arguments):
    """Peak memory of a call in bytes: Python objects and arrays, but not the images of Pillow."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def ghostscript(monkeypatch):
    """Calls of Ghostscript, which is replaced by a function that returns a black image."""
    calls = []

    def decode(*arguments):
        calls.append(arguments)
        return Image.new("RGB", (9, 7)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", decode)
    return calls


def iptc(data):
    """An IPTC file that contains another image file."""
    fields = {(3, 20): b"\0\x07", (3, 30): b"\0\x09", (3, 60): b"\1\0", (3, 120): b"\1", (8, 10): data}
    return b"".join(b"\x1c" + bytes(tag) + len(value).to_bytes(2, "big") + value for tag, value in fields.items())


@pytest.mark.parametrize("wrap", [bytes, iptc])
def test_no_file_starts_ghostscript(tmp_path, ghostscript, wrap):
    """Pillow recognises a format by its content, whatever the name of the file."""
    data = wrap(encoded("EPS"))
    (tmp_path / "cat.jpg").write_bytes(data)
    for image in (tmp_path / "cat.jpg", str(tmp_path / "cat.jpg"), io.BytesIO(data)):
        with pytest.raises(minigdino.ImageError, match="one of the formats PNG, JPEG,.*Convert it to PNG"):
            open_image(image)
    with Image.open(tmp_path / "cat.jpg") as opened, pytest.raises(minigdino.ImageError, match=r"call image.load\(\)"):
        open_image(opened)
    assert ghostscript == []


def test_an_image_that_the_caller_has_decoded_may_be_of_any_format(ghostscript):
    with Image.open(io.BytesIO(encoded("EPS"))) as opened:
        opened.load()
        assert len(ghostscript) == 1
        assert open_image(opened).size == (9, 7)


def test_no_file_starts_a_registered_handler(monkeypatch):
    class Handler:
        def open(self, image):
            image._size = 1, 1

        def load(self, image):
            raise AssertionError

    monkeypatch.setattr(GribStubImagePlugin.GribStubImageFile, "_handler", Handler())
    data = b"GRIB\0\0\0\1" + bytes(20)
    with pytest.raises(minigdino.ImageError, match="one of the formats"):
        open_image(io.BytesIO(data))
    with Image.open(io.BytesIO(data)) as opened, pytest.raises(minigdino.ImageError, match="got GRIB"):
        open_image(opened)


def test_the_supported_formats_are_read():
    read = set()
    for data in fuzz.pictures():
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode != "F":
                assert sorted(open_image(io.BytesIO(data)).size) == sorted(opened.size)  # some are rotated
                assert open_image(opened).mode == "RGB"
            read.add(opened.format)
    assert {"PNG", "JPEG", "TIFF", "GIF"} <= read <= set(FORMATS)


def test_file_name_endings_are_those_of_the_supported_formats():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif", ".bmp"} <= endings()
    assert not {".eps", ".ps", ".wmf", ".grib", ".h5", ".mpg", ".pdf", ".iim"} & endings()
    assert {Image.registered_extensions()[ending] for ending in endings() - {*heif.ENDINGS}} <= set(FORMATS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read(tmp_path):
    """A pipe could wait without end, and a device could fill the memory. A process with limits reads them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("loop")
    (tmp_path / "loop").symlink_to("link")
    code = """
import resource, sys
from minigdino import ImageError
from minigdino.image import open_image
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
for path in sys.argv[1:]:
    try:
        open_image(path)
    except ImageError as error:
        print(error)
"""
    paths = [str(tmp_path / "pipe"), "/dev/zero", "/dev/null", str(tmp_path / "link")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60)
    *special, loop = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(special)) == (0, "", 3)
    for path, line in zip(paths, special):
        assert line.startswith(f"{path}: expected a regular file; got a pipe or a device. Read it first")
    assert "not a readable image" in loop


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "photo").write_bytes(encoded("PNG"))
    (tmp_path / "link").symlink_to("photo")
    assert open_image(tmp_path / "link").size == (9, 7)


# files that take little space, and much memory or time


def jpeg(scans, side=16, between=b""):
    """A progressive grey JPEG: one scan for the mean of each block, then scans that change nothing."""
    tables = b"\xff\xdb\0\x43\0" + b"\1" * 64
    for kind in (0x00, 0x10):
        tables += b"\xff\xc4\0\x14" + bytes([kind, 1]) + bytes(16)
    frame = b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0)
    mean, rest = (b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, first, last, 0) + b"\x7f" for first, last in
                  ((0, 0), (1, 63)))
    return b"\xff\xd8" + between + tables + frame + mean + rest * (scans - 1) + b"\xff\xd9"


def test_a_jpeg_with_thousands_of_scans_is_refused(tmp_path):
    data = jpeg(5000)
    (tmp_path / "slow.jpg").write_bytes(data)
    with Image.open(io.BytesIO(data)) as opened:
        for image in (tmp_path / "slow.jpg", io.BytesIO(data), opened):
            with pytest.raises(minigdino.ImageError, match="at most 100 scans; got more.*Convert it to PNG"):
                open_image(image)


def app1(content, n=1):
    return n * (b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content)


@pytest.mark.parametrize("block", [1, 2, 9, 10, 100, 2**20])
def test_the_parts_of_a_jpeg_are_counted_exactly(monkeypatch, block):
    """Only the scans of the image itself: a file can contain a preview before its data, and a video after it."""
    monkeypatch.setattr(module, "BLOCK", block)
    others = b"\xff\xda\0\2" * 300
    before = app1(others) + app1(b"http://ns.adobe.com/xmp/extension/\0", 300) + app1(b"Exif\0\0", 100)
    for scans in (1, 5, 100):
        assert open_image(io.BytesIO(jpeg(scans, between=before) + others)).size == (16, 16)
    with pytest.raises(minigdino.ImageError, match="100 scans"):
        open_image(io.BytesIO(jpeg(101)))
    with pytest.raises(minigdino.ImageError, match="100 EXIF blocks"):
        open_image(io.BytesIO(jpeg(1, between=app1(b"Exif\0\0", 101))))
    for n in (100, 101):
        assert module._count(io.BytesIO(b"x" * 5 + app1(b"Exif\0\0", n)), 5, module.EXIF_BLOCK, 9) == n
    data = encoded("JPEG", progressive=True, exif=Image.Exif())
    markers = [segment[0] for segment in module._segments(io.BytesIO(data))]
    assert markers.count(0xDA) == data.count(b"\xff\xda") > 5
    for end in range(3, len(data)):
        cut = [segment[0] for segment in module._segments(io.BytesIO(data[:end]))]
        assert cut == markers[: len(cut)]


def test_frames_of_mpo_files_are_read():
    photos = [Image.fromarray(tiny.photo(7, 9, seed)) for seed in (1, 2)]
    data = encoded("MPO", photos[0], save_all=True, append_images=photos[1:])
    with Image.open(io.BytesIO(data)) as opened:
        first = np.asarray(open_image(opened))
        opened.seek(1)
        second = np.asarray(open_image(opened))
    np.testing.assert_array_equal(first, open_image(io.BytesIO(data)))
    assert np.abs(first - second.astype(float)).mean() > 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
@pytest.mark.parametrize("block", [7, 300, 2**20])
def test_every_sixteen_bit_value_is_divided_by_257_and_rounded(monkeypatch, mode, block):
    monkeypatch.setattr(module, "BLOCK", block)
    values = np.random.default_rng(0).permutation(65536).reshape(512, 128)
    image = Image.fromarray(values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode]))
    assert image.mode == mode
    got = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(got, np.repeat(np.round(values / 257).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integer_pixels_outside_sixteen_bits_are_rejected(value):
    image = Image.new("I", (3, 2), 7)
    image.putpixel((2, 1), value)
    low, high = sorted((7, value))
    with pytest.raises(minigdino.ImageError, match=f"got {low}..{high}. Scale it first"):
        to_rgb(image)


def test_sixteen_bit_images_need_little_memory_beside_the_image():
    assert peak_of(to_rgb, Image.new("I;16", (4000, 3000))) < 40e6  # 8 bytes per pixel would be 96 MB


def test_preprocessing_holds_one_copy_of_the_pixels():
    image = Image.new("RGB", (1000, 1000))
    assert peak_of(preprocess, image, ImageSettings(do_resize=False)) < 20e6  # of which 12 MB for the result


def test_settings_may_ask_for_fewer_pixels_than_the_caller(monkeypatch):
    photo = Image.fromarray(tiny.photo(8, 8))
    with pytest.raises(minigdino.ImageError, match="at most 16777216 pixels.*8192 x 8192.*Give a `size`"):
        preprocess(photo, ImageSettings(size=(("height", 8192), ("width", 8192))))
    monkeypatch.setattr(module, "MAX_PIXELS_OF_SETTINGS", 99)
    monkeypatch.setattr(module, "MAX_PIXELS", 400)
    assert preprocess(photo, ImageSettings(do_resize=False)).shape == (3, 8, 8)
    assert preprocess(photo, ImageSettings(), (20, 20)).shape == (3, 20, 20)
    for settings in (ImageSettings(), ImageSettings(do_resize=False)):
        with pytest.raises(minigdino.ImageError, match="at most 99 pixels"):
            preprocess(photo.resize((10, 10)), settings)
    with pytest.raises(minigdino.ImageError, match="at most 400 pixels.*Use a smaller `size`"):
        preprocess(photo, ImageSettings(), (21, 21))


def test_pixels_are_finite_with_the_most_extreme_settings_of_a_file(tmp_path):
    black_and_white = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    for factor, mean, std in itertools.product((1e-9, 1e9), (-1e9, 0, 1e9), (1e-9, 1e9)):
        values = {"rescale_factor": factor, "image_mean": [mean] * 3, "image_std": [std] * 3, "do_resize": False}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        assert np.isfinite(preprocess(black_and_white, ImageSettings.from_directory(tmp_path))).all()


def test_the_limit_of_pillow_applies(monkeypatch):
    """Above it, Pillow warns; above twice the limit, it raises. The warning can be made an error too."""
    data = encoded("PNG")  # 63 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(io.BytesIO(data)).size == (9, 7)
    with pytest.raises(minigdino.ImageError, match=r"exceeds limit.*raise PIL.Image.MAX_IMAGE_PIXELS"):
        open_image(io.BytesIO(data))  # these tests make warnings errors
    assert Image.MAX_IMAGE_PIXELS == 40


def tags(count, size):
    """A TIFF or EXIF header with `count` entries that all refer to the same `size` bytes."""
    start = 8 + 2 + 12 * count + 4
    entries = [struct.pack("<HHLL", 1000 + i, 7, size, start) for i in range(count)]
    return b"II*\0" + struct.pack("<LH", 8, count) + b"".join(entries) + bytes(4) + bytes(size)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_entries_that_share_their_data_do_not_multiply_it(kind):
    block = tags(500, 1_000_000)
    data = block if kind == "TIFF" else encoded(kind, exif=b"Exif\0\0" + block)

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns once per entry
            if kind == "TIFF":  # no image, but the entries are read
                with pytest.raises(minigdino.ImageError):
                    open_image(io.BytesIO(data))
            else:
                assert open_image(io.BytesIO(data)).size == (9, 7)

    assert peak_of(read) < 50e6


def test_the_first_frame_of_an_animation_is_read_unless_the_caller_chose_another():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
        assert np.argmax(open_image(io.BytesIO(data)).getpixel((0, 0))) == 0
        with Image.open(io.BytesIO(data)) as opened:
            opened.seek(1)
            assert np.argmax(open_image(opened).getpixel((0, 0))) == 1


def test_a_picture_whose_file_was_closed_is_rejected(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded("JPEG"))
    with Image.open(tmp_path / "photo.jpg") as opened:
        pass
    with pytest.raises(minigdino.ImageError, match=r"was closed before its pixels were read. Open it again"):
        open_image(opened)


def test_a_closed_picture_of_any_format_is_called_closed():
    for data in fuzz.pictures():
        opened = Image.open(io.BytesIO(data))
        opened.close()
        with pytest.raises(minigdino.ImageError, match="closed"):
            open_image(opened)
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
        if opened.mode != "F":
            assert open_image(opened).mode == "RGB"


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000, "\ud800.png", ""])
def test_impossible_paths_are_rejected(path):
    with pytest.raises(minigdino.ImageError):
        open_image(path)


LETTER = np.zeros((32, 64, 3), np.uint8)  # no rotation or reflection maps it to itself
LETTER[:16, :16], LETTER[:16, 16:32] = 255, (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("MPO", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 100}),
    ],
)
def test_a_file_is_rotated_once_by_its_orientation(kind, options, orientation, tmp_path):
    """Pillow rotates a TIFF itself."""
    exif = Image.Exif()
    exif[274] = orientation
    original = Image.fromarray(LETTER)
    try:
        data = encoded(kind, original, exif=exif, **options)
    except (OSError, KeyError) as error:
        pytest.skip(str(error))  # not supported by this build of Pillow
    upright = original if orientation == 1 else original.transpose(module.ROTATIONS[orientation])
    got = open_image(io.BytesIO(data))
    (tmp_path / "a").write_bytes(data)
    assert got.size == upright.size == read_size(tmp_path / "a")
    assert np.abs(np.subtract(got, upright, dtype=float)).mean() < 10  # a wrong rotation differs by more than 40
    if kind == "TIFF":
        with Image.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(open_image(opened), got)


def test_deep_pictures_in_icon_files_are_scaled():
    """Pillow learns their mode when it reads the pixels."""
    values = np.random.default_rng(0).integers(0, 65536, (128, 128)).astype(np.uint16)
    png = encoded("PNG", Image.fromarray(values))
    data = b"icns" + struct.pack(">L", len(png) + 16) + b"ic07" + struct.pack(">L", len(png) + 8) + png
    want = np.repeat(np.round(values / 257).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(open_image(io.BytesIO(data)), want)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(open_image(opened), want)


@pytest.mark.parametrize("before", [b"", b"\xff\xd9", b"\xff\xf0\xff\xff"], ids=["start", "end", "unknown segment"])
def test_exif_blocks_are_found_wherever_pillow_looks_for_them(before):
    data, blocks = jpeg(1), app1(b"Exif\0\0" + b"x" * 10, 3000)
    with pytest.raises(minigdino.ImageError, match="at most 100 EXIF blocks"):
        open_image(io.BytesIO(data[:2] + before + blocks + data[2:]))
    assert open_image(io.BytesIO(data[:2] + app1(b"Exif\0\0", 50) + data[2:])).size == (16, 16)


@pytest.mark.parametrize("header", [b"P1\n4 4\n", b"P2\n4 4\n255\n", b"P3\n4 4\n255\n"])
def test_a_plain_ppm_with_thousands_of_comments_is_refused(header):
    pixels = b"1 " * 48
    for wrap in (io.BytesIO, lambda data: Image.open(io.BytesIO(data))):
        assert open_image(wrap(header + b"# a comment\n" * 100 + pixels)).size == (4, 4)
        for comments in (b"#\n" * 101, b"#\n" * 500_000):
            with pytest.raises(minigdino.ImageError, match="plain PPM with at most 100 comments; got more"):
                open_image(wrap(header + comments + pixels))


def test_other_ppm_files_may_contain_any_byte():
    assert open_image(io.BytesIO(b"P6\n20 20\n255\n" + b"#" * 1200)).getpixel((0, 0)) == (35, 35, 35)


def test_an_exception_of_a_signal_handler_is_no_error_of_the_image(monkeypatch):
    def handler(number, frame):
        raise RuntimeError("timeout of the job")

    before = signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(Image, "open", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
    try:
        with pytest.raises(RuntimeError, match="timeout of the job"):
            open_image(io.BytesIO(b"x"))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_too_little_memory_for_an_image_is_named(monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(minigdino.ImageError, match="more memory than there is"):
        open_image(io.BytesIO(b"x"))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("lazy", [True, False])
def test_threads_may_share_an_image_that_is_not_decoded_yet(name, lazy):
    """Pillow itself cannot decode an image in several threads."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(file, name)
    expected = open_image(io.BytesIO(file.getvalue())).tobytes()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            shared = Image.open(io.BytesIO(file.getvalue())) if lazy else io.BytesIO(file.getvalue())
            assert set(pool.map(lambda _, image=shared: open_image(image).tobytes(), range(4))) == {expected}


def test_the_position_of_the_callers_file_stays():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    file.seek(5)
    open_image(file)
    assert file.tell() == 5


# file objects


class Unseekable(io.RawIOBase):
    """A stream that returns few bytes at a time, as a network connection does."""

    def __init__(self, data):
        self.data = memoryview(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        n = min(len(buffer), 7, len(self.data))
        buffer[:n], self.data = self.data[:n], self.data[n:]
        return n


def test_a_file_object_is_read_from_its_position_to_its_end_and_stays_open(tmp_path):
    data = encoded("PNG")
    (tmp_path / "photo").write_bytes(b"header" + data)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo", b"header" + data)
    with zipfile.ZipFile(tmp_path / "photos.zip") as archive, tempfile.NamedTemporaryFile() as written:
        written.write(b"header" + data)
        written.seek(0)
        for file in (open(tmp_path / "photo", "rb"), open(tmp_path / "photo", "rb", buffering=0), written,  # noqa: SIM115
                     io.BufferedReader(Unseekable(b"header" + data)), Unseekable(b"header" + data),
                     archive.open("photo")):
            with file:
                assert file.read(6) == b"header"
                np.testing.assert_array_equal(open_image(file), tiny.photo(7, 9))
                assert not file.closed
                with pytest.raises(minigdino.ImageError, match=r"at its position; got its end.*call seek\(0\)"):
                    open_image(file)


def test_the_blocks_of_a_file_object_are_joined(monkeypatch):
    data = encoded("PNG")
    for block in (1, 7, len(data), len(data) + 1):
        monkeypatch.setattr(module, "BLOCK", block)
        assert read_file(Unseekable(data)) == data


def test_a_very_long_file_object_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    assert len(read_file(Unseekable(bytes(100)))) == 100
    with open(__file__, "rb") as long, pytest.raises(minigdino.ImageError, match="at most 100 bytes; got more"):
        open_image(long)


@pytest.mark.parametrize("format", ["WEBP", "AVIF"])
def test_a_file_that_pillow_reads_as_a_whole_has_a_limit(tmp_path, format):
    path = tmp_path / "sparse"
    path.write_bytes(encoded(format))
    size = open_image(path).size
    os.truncate(path, 2**33)  # has no blocks on the disk
    for read in (open_image, read_size):
        with pytest.raises(minigdino.ImageError, match="sparse: expected a (WebP|AVIF) of at most 268435456 bytes; got "
                                                       "8589934592. Convert"):
            read(path)
    path.write_bytes(encoded("PNG"))
    os.truncate(path, 2**33)  # of other formats, only what the header names is read
    assert open_image(path).size == size


def test_an_image_is_told_from_other_files(tmp_path):
    for name, content, wanted in (("a.json", encoded("PNG"), True), ("a.png", b"{}", False), ("b.png", b"", False)):
        (tmp_path / name).write_bytes(content)
        assert is_image(tmp_path / name) == wanted
    assert not is_image(tmp_path) and not is_image(tmp_path / "none.png")


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "photo").write_bytes(encoded("PNG"))
    with open(tmp_path / "photo") as text, tempfile.NamedTemporaryFile("w+") as temporary:
        for file in (text, temporary, io.StringIO("x")):
            with pytest.raises(minigdino.ImageError, match='must be binary; got a text file. Open it with mode "rb"'):
                open_image(file)


def test_a_file_object_that_cannot_be_read_is_refused(tmp_path):
    with open(tmp_path / "new", "wb") as file, pytest.raises(minigdino.ImageError, match="open for reading; .*Unsup"):
        open_image(file)
    with open(tmp_path / "new", "rb") as file:
        pass
    with pytest.raises(minigdino.ImageError, match=r"read\(\) failed \(ValueError: .* closed file\). Open it again"):
        open_image(file)
    with io.BytesIO(encoded("PNG")) as file:
        pass
    with pytest.raises(minigdino.ImageError, match=r"open for reading; .*getvalue\(\) failed \(.*closed file"):
        open_image(file)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo", "content")
    damaged = (tmp_path / "photos.zip").read_bytes().replace(b"content", b"CONTENT")
    with zipfile.ZipFile(io.BytesIO(damaged)) as archive, archive.open("photo") as file, \
            pytest.raises(minigdino.ImageError, match=r"read\(\) failed \(BadZipFile: Bad CRC"):
        open_image(file)
    with pytest.raises(minigdino.ImageError, match=r"read\(\) of a file object must return bytes; got str"):
        open_image(types.SimpleNamespace(read=lambda n: "text"))


class ConnectionLost(Exception):
    """An exception of a library for remote files."""


@pytest.mark.parametrize("kind", [ConnectionLost, OSError, FileNotFoundError, ValueError, KeyError, RuntimeError])
def test_an_error_of_a_file_object_is_the_cause_of_the_image_error(kind):
    error = kind("the server is gone")

    def read(n):
        raise error

    file = types.SimpleNamespace(read=read)
    message = rf"read\(\) failed \({kind.__name__}: .*the server is gone"
    with pytest.raises(minigdino.ImageError, match=message) as raised:
        open_image(file)
    assert raised.value.__cause__ is error
    returned = minigdino.load("shapes").detect(file, "a star.", errors="return")
    assert str(returned) == str(raised.value)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [ConnectionLost, OSError, MemoryError, KeyboardInterrupt])
def test_a_timeout_while_a_file_object_is_read_passes_through(kind):
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(kind) as raised:
            open_image(types.SimpleNamespace(read=lambda n: signal.raise_signal(signal.SIGALRM)))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


# tensors


@pytest.mark.parametrize(
    ("package", "conversion"),
    [
        ("torch", r"image.detach\(\).cpu\(\).numpy\(\)"),
        ("tensorflow.python.framework.ops", r"image.numpy\(\)"),
        ("jaxlib._jax", r"numpy.asarray\(image\)"),
        ("cupy", r"image.get\(\)"),
    ],
)
def test_a_tensor_is_named_with_its_conversion(package, conversion):
    tensor = type("Tensor", (), {"__module__": package, "__iter__": lambda self: iter(())})
    derived = type("Parameter", (tensor,), {"__module__": "elsewhere"})
    for kind in (tensor, derived):
        name = f"got a {package.partition('.')[0]} {kind.__name__}"
        with pytest.raises(minigdino.ImageError, match=f"(?s){name}.*{conversion}.*channels last.*uint8"):
            open_image(kind())


def test_an_unsupported_input_imports_nothing():
    code = """
import sys, minigdino
from minigdino.image import open_image
before = set(sys.modules)
for image in (None, 7, {1}, type("Tensor", (), {"__module__": "torch"})()):
    try:
        open_image(image)
    except minigdino.ImageError:
        pass
sys.exit(str(set(sys.modules) - before) if set(sys.modules) - before else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""HEIC images: decoded by pillow-heif, upright, without a change of Pillow's global state."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino import heif
from minigdino.image import endings, open_image

pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif, which is not installed")


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8).repeat(2, 0).repeat(2, 1))


def heic(image, orientation=None):
    """The bytes of a HEIC file, lossless. An orientation is stored as phones do."""
    encoded, file = pillow_heif.from_pillow(image), io.BytesIO()
    if orientation:
        exif = Image.Exif()
        exif[0x112] = orientation
        encoded.info["exif"] = exif.tobytes()
    encoded.save(file, quality=-1, chroma=444)
    return file.getvalue()


def assert_equal(one, other):
    assert one.size == other.size and one.mode == "RGB"
    difference = np.abs(np.asarray(one, int) - np.asarray(other.convert("RGB"), int))
    assert difference.max() <= 8  # the conversion to YCbCr rounds


def test_a_path_bytes_and_files_are_read(tmp_path):
    (tmp_path / "a.heic").write_bytes(data := heic(picture()))
    with open(tmp_path / "a.heic", "rb") as file:
        for image in (tmp_path / "a.heic", str(tmp_path / "a.heic"), data, io.BytesIO(data), file):
            assert_equal(open_image(image), picture())


@pytest.mark.parametrize(("orientation", "operation"), [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)])
def test_a_rotated_image_is_upright_once(orientation, operation):
    found = open_image(heic(picture(), orientation))
    assert_equal(found, picture().transpose(operation))
    assert open_image(found).size == found.size


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_other_modes_become_rgb(mode):
    assert_equal(open_image(heic(picture().convert(mode))), picture().convert(mode))


def test_pillow_is_not_changed():
    open_image(heic(picture()))
    assert "HEIF" not in Image.OPEN and ".heic" not in Image.registered_extensions()
    assert {".heic", ".heif"} <= endings()


def test_a_message_names_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(heic(picture()))  # the content decides
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(minigdino.ImageError, match=r"a\.jpg: a HEIC image needs the package pillow-heif.*pip install"):
        open_image(tmp_path / "a.jpg")


def with_brand(data, brand):
    return data[:8] + brand + data[12:]


@pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
def test_the_further_brands_decide_about_a_general_one(brand, monkeypatch):
    if "AVIF" not in Image.SAVE:
        pytest.skip("needs a Pillow with AVIF")
    assert_equal(open_image(with_brand(heic(picture()), brand)), picture())
    file = io.BytesIO()
    picture().save(file, "AVIF", quality=100, subsampling="4:4:4")
    with Image.open(io.BytesIO(file.getvalue())) as want:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)  # is not needed
        assert_equal(open_image(with_brand(file.getvalue(), brand)), want)


@pytest.mark.parametrize("size", [0, 8, 11, 12, 15, 16, 2**32 - 1])
def test_any_length_of_the_list_of_brands(size):
    start = size.to_bytes(4, "big") + b"ftypmif1"
    assert heif.is_heif(io.BytesIO(start))
    assert heif.is_heif(io.BytesIO(start + bytes(4) + b"avif")) == (size < 20)
    assert not heif.is_heif(io.BytesIO(start[:11]))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "a.heic", "wb") as file:
        file.write(heic(picture()))
        file.truncate(2**33)  # has no blocks on the disk
    with pytest.raises(minigdino.ImageError, match="expected a HEIC image of at most 268435456 bytes; got 8589934592"):
        open_image(tmp_path / "a.heic")


def test_a_damaged_file_is_an_error():
    data = heic(picture())
    for damaged in (data[:12], data[:100], data[: len(data) // 2], data[:60] + bytes(200) + data[260:]):
        with pytest.raises(minigdino.ImageError, match="not a readable image|expected|HEIC"):
            open_image(damaged)


DATA = heic(picture().resize((32, 16)), orientation=6)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_an_error_of_the_image(data):
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff"]))
        damaged[start : start + len(noise)] = noise
    del damaged[data.draw(st.integers(12, len(damaged)) | st.just(len(damaged))) :]
    try:
        assert open_image(bytes(damaged)).mode == "RGB"
    except minigdino.ImageError as error:
        assert str(error).isprintable()


def test_an_image_with_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(minigdino.ImageError, match="MAX_IMAGE_PIXELS"):
        open_image(heic(picture()))

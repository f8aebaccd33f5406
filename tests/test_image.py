"""Image preprocessing: image modes, the resize rule, the settings files."""

import io
import json

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino.image import ImageSettings, open_image, preprocess, resized, to_rgb

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


def test_the_exif_orientation_is_applied_to_paths_but_not_to_pil_images(tmp_path):
    image = Image.fromarray(tiny.photo(4, 6))
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (4, 6)
    assert open_image(str(tmp_path / "turned.png")).size == (4, 6)
    with Image.open(tmp_path / "turned.png") as opened:
        assert open_image(opened).size == (6, 4)


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
        (7, "got int"),
        (None, "got NoneType"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
)
def test_unsupported_images_are_rejected(image, message):
    with pytest.raises(minigdino.ImageError, match=f"(?s){message}"):
        open_image(image)


def test_corrupted_files_are_rejected_with_their_name(tmp_path):
    data = io.BytesIO()
    Image.fromarray(tiny.photo(40, 40)).save(data, "JPEG")
    for name, content in (("cut.jpg", data.getvalue()[:300]), ("text.jpg", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(minigdino.ImageError, match=f"{name}: not a readable image"):
            open_image(tmp_path / name)
    with pytest.raises(minigdino.ImageError, match="not a readable image"):
        open_image(tmp_path)


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

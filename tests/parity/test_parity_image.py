"""Image preprocessing: sizes and pixels equal those of transformers' Pillow image processor."""

import numpy as np
import pytest
import skimage.data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import FAMILIES, small
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

import minigdino
from minigdino.image import ImageSettings, open_image, preprocess, resized

edges = st.integers(1, 4000)
SIZES = [(114, 584), (584, 114), (480, 640), (427, 640), (1080, 1920), (800, 1334), (3000, 800), (800, 800),
         (801, 1333), (37, 61), (512, 300), (333, 333), (9, 300)]
SIZE_DICTS = [{"shortest_edge": 800, "longest_edge": 1333}, {"shortest_edge": 224, "longest_edge": 300},
              {"height": 160, "width": 250}, {"max_height": 200, "max_width": 333}]
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee"]


def picture(height, width, seed=0):
    """Return an image of noise on a gradient: errors of resizing change its pixels."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, height)[:, None, None] * [1, 0.5, 0] + np.linspace(0, 128, width)[:, None] * [0, 0.5, 1]
    return Image.fromarray(np.clip(slope + rng.integers(-60, 60, (height, width, 3)), 0, 255).astype(np.uint8))


def pixels_of_transformers(image, **options):
    """Pixels computed by transformers -> [3, H, W]"""
    return GroundingDinoImageProcessorPil(**options)(images=image, return_tensors="np")["pixel_values"][0]


def settings_of(size):
    """Image settings with a size that is given as a dict."""
    return ImageSettings(size=tuple(sorted(size.items())))


@settings(max_examples=2000, deadline=None)
@given(edges, edges, st.integers(1, 1500), st.integers(1, 2000))
@example(114, 584, 800, 1333)
@example(584, 114, 800, 1333)
@example(1333, 32, 800, 1333)
def test_resized_sizes_agree(height, width, shortest, longest):
    size = resized(height, width, shortest, longest)
    assert size == tuple(get_size_with_aspect_ratio((height, width), shortest, longest))


@settings(max_examples=2000, deadline=None)
@given(edges, edges)
def test_resized_sizes_agree_for_the_published_settings(height, width):
    assert ImageSettings().target(height, width) == tuple(get_size_with_aspect_ratio((height, width), 800, 1333))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_pixels_are_identical(size):
    only_resize = {"do_rescale": False, "do_normalize": False}
    image = picture(*size)
    expected = pixels_of_transformers(image, **only_resize)
    assert expected.dtype == np.uint8
    np.testing.assert_array_equal(preprocess(image, ImageSettings(**only_resize)), expected)


@pytest.mark.parametrize("size", SIZE_DICTS, ids=lambda size: " ".join(size))
@pytest.mark.parametrize("image", [picture(480, 640), picture(123, 77), picture(160, 250)], ids=lambda i: str(i.size))
def test_other_size_rules_agree(size, image):
    actual, expected = preprocess(image, settings_of(size)), pixels_of_transformers(image, size=size)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_normalised_photographs_agree(name):
    image = Image.fromarray(getattr(skimage.data, name)())
    actual, expected = preprocess(image, ImageSettings()), pixels_of_transformers(image)
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"do_resize": False}, {"do_rescale": False}, {"do_normalize": False},
                                     {"resample": Image.Resampling.BICUBIC}, {"rescale_factor": 1 / 128},
                                     {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}], ids=str)
def test_other_settings_agree(options):
    image = picture(200, 133)
    actual, expected = preprocess(image, ImageSettings(**options)), pixels_of_transformers(image, **options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * max(1, abs(expected).max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_argument_agrees(family):
    image, model = picture(480, 640), minigdino.Model.random(small(family))
    expected = pixels_of_transformers(image, size={"shortest_edge": 320, "longest_edge": 400})
    np.testing.assert_allclose(model.preprocess(image, size=(320, 400)), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.preprocess(np.asarray(image), size=(320, 400)), expected, rtol=0, atol=1e-6)


def test_a_rotated_image_file_with_alpha_agrees(tmp_path):
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    path = tmp_path / "rotated.png"
    picture(60, 90).convert("RGBA").save(path, exif=exif)
    size = {"shortest_edge": 80, "longest_edge": 100}
    expected = pixels_of_transformers(load_image(str(path)), size=size)
    np.testing.assert_allclose(preprocess(open_image(path), settings_of(size)), expected, rtol=0, atol=1e-6)


def test_settings_saved_by_transformers_load(tmp_path):
    size = {"shortest_edge": 96, "longest_edge": 128}
    processor = GroundingDinoImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    image = picture(70, 90)
    expected = processor(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, ImageSettings.from_directory(tmp_path)), expected, rtol=0, atol=1e-6)


def test_transformers_loads_saved_settings(tmp_path):
    settings = ImageSettings(size=(("longest_edge", 128), ("shortest_edge", 96)), image_std=(0.1, 0.2, 0.3))
    minigdino.Model.random(small(FAMILIES[0]), settings=settings).save(tmp_path)
    image = picture(70, 90)
    processor = GroundingDinoImageProcessorPil.from_pretrained(tmp_path)
    expected = processor(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, settings), expected, rtol=0, atol=1e-6)

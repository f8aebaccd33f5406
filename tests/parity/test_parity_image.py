"""Images: sizes and pixels are those of transformers' processor, its Pillow side."""

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
    """Noise over a slope, so that resizing has something to get wrong."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, height)[:, None, None] * [1, 0.5, 0] + np.linspace(0, 128, width)[:, None] * [0, 0.5, 1]
    return Image.fromarray(np.clip(slope + rng.integers(-60, 60, (height, width, 3)), 0, 255).astype(np.uint8))


def theirs(image, **options):
    """transformers' pixels [3, H, W]"""
    return GroundingDinoImageProcessorPil(**options)(images=image, return_tensors="np")["pixel_values"][0]


def frozen(size):
    return ImageSettings(size=tuple(sorted(size.items())))


@settings(max_examples=2000, deadline=None)
@given(edges, edges, st.integers(1, 1500), st.integers(1, 2000))
@example(114, 584, 800, 1333)
@example(584, 114, 800, 1333)
@example(1333, 32, 800, 1333)
def test_every_size_is_theirs(height, width, shortest, longest):
    ours = resized(height, width, shortest, longest)
    assert ours == tuple(get_size_with_aspect_ratio((height, width), shortest, longest))


@settings(max_examples=2000, deadline=None)
@given(edges, edges)
def test_every_size_of_the_published_settings_is_theirs(height, width):
    assert ImageSettings().target(height, width) == tuple(get_size_with_aspect_ratio((height, width), 800, 1333))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_pixels_are_theirs_to_the_bit(size):
    plain = {"do_rescale": False, "do_normalize": False}
    image = picture(*size)
    wanted = theirs(image, **plain)
    assert wanted.dtype == np.uint8
    np.testing.assert_array_equal(preprocess(image, ImageSettings(**plain)), wanted)


@pytest.mark.parametrize("size", SIZE_DICTS, ids=lambda size: " ".join(size))
@pytest.mark.parametrize("image", [picture(480, 640), picture(123, 77), picture(160, 250)], ids=lambda i: str(i.size))
def test_other_size_rules_are_theirs(size, image):
    ours, wanted = preprocess(image, frozen(size)), theirs(image, size=size)
    assert ours.shape == wanted.shape
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_normalised_photographs_are_theirs(name):
    image = Image.fromarray(getattr(skimage.data, name)())
    ours, wanted = preprocess(image, ImageSettings()), theirs(image)
    assert ours.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"do_resize": False}, {"do_rescale": False}, {"do_normalize": False},
                                     {"resample": Image.Resampling.BICUBIC}, {"rescale_factor": 1 / 128},
                                     {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}], ids=str)
def test_other_settings_are_theirs(options):
    image = picture(200, 133)
    ours, wanted = preprocess(image, ImageSettings(**options)), theirs(image, **options)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * max(1, abs(wanted).max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caller_s_size_is_their_size(family):
    image, model = picture(480, 640), minigdino.Model.random(small(family))
    wanted = theirs(image, size={"shortest_edge": 320, "longest_edge": 400})
    np.testing.assert_allclose(model.preprocess(image, size=(320, 400)), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.preprocess(np.asarray(image), size=(320, 400)), wanted, rtol=0, atol=1e-6)


def test_an_image_file_is_read_as_transformers_reads_it(tmp_path):
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6  # taken sideways
    path = tmp_path / "sideways.png"
    picture(60, 90).convert("RGBA").save(path, exif=exif)
    wanted = theirs(load_image(str(path)), size={"shortest_edge": 80, "longest_edge": 100})
    ours = preprocess(open_image(path), frozen({"shortest_edge": 80, "longest_edge": 100}))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


def test_settings_files_of_transformers_are_read(tmp_path):
    size = {"shortest_edge": 96, "longest_edge": 128}
    processor = GroundingDinoImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    image = picture(70, 90)
    wanted = processor(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, ImageSettings.from_directory(tmp_path)), wanted, rtol=0, atol=1e-6)


def test_transformers_reads_the_settings_we_save(tmp_path):
    settings = ImageSettings(size=(("longest_edge", 128), ("shortest_edge", 96)), image_std=(0.1, 0.2, 0.3))
    minigdino.Model.random(small(FAMILIES[0]), settings=settings).save(tmp_path)
    image = picture(70, 90)
    processor = GroundingDinoImageProcessorPil.from_pretrained(tmp_path)
    wanted = processor(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, settings), wanted, rtol=0, atol=1e-6)

"""Augmentation: boxes follow their objects, stay inside the image, and the same seed gives the same result."""

import numpy as np
import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from strategies import rngs

from minigdino.image import MAX_EDGE, ImageSettings, resized
from minigdino.learning import augmentation
from minigdino.learning.augmentation import augmented, cropped, flipped, scaled, sizes_of

edges = st.integers(1, 90)
SIZES = [(24, 40), (32, 40)]


@st.composite
def pictures(draw, most=4):
    """An image of random pixels, and boxes with an area on its 64ths: coordinates are exact in float32."""
    height, width, rng = draw(edges), draw(edges), draw(rngs())
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    corners = np.sort(rng.integers(0, 65, (draw(st.integers(0, most)), 2, 2)), axis=1)  # [B, low and high, x and y]
    corners = corners[(corners[:, 0] < corners[:, 1]).all(axis=1)]
    return image, (corners * np.array([width, height]) / 64).reshape(-1, 4).astype(np.float32)


@st.composite
def drawings(draw):
    """A black image with a white rectangle, and its box."""
    height, width = draw(st.integers(2, 90)), draw(st.integers(2, 90))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    return image, np.float32([[left, top, right, bottom]])


def box_of(image):
    """The box of the white pixels of an image; none if there are none."""
    rows, columns = (np.flatnonzero(image[..., 0].any(axis=axis)) for axis in (1, 0))
    return [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]] if len(rows) else []


def assert_inside(boxes, image):
    height, width = image.shape[:2]
    assert boxes.dtype == np.float32
    assert (boxes >= 0).all() and (boxes <= np.float32([width, height, width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@given(pictures())
def test_flipping_twice_is_the_identity(picture):
    for before, after in zip(picture, flipped(*flipped(*picture))):
        np.testing.assert_array_equal(before, after)
    assert_inside(flipped(*picture)[1], picture[0])


@given(pictures())
def test_flipping_mirrors_columns_only(picture):
    image, boxes = flipped(*picture)
    np.testing.assert_array_equal(image, np.asarray(Image.fromarray(picture[0]).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT)))
    np.testing.assert_array_equal(boxes[:, 1::2], picture[1][:, 1::2])
    np.testing.assert_array_equal(boxes[:, 2] - boxes[:, 0], picture[1][:, 2] - picture[1][:, 0])


@given(drawings(), rngs())
def test_the_box_of_a_drawn_rectangle_is_found_in_the_augmented_pixels(drawing, rng):
    image, boxes, kept, _ = augmented(*drawing, rng, SIZES)
    assert boxes.tolist() == box_of(image)
    assert kept.tolist() == [0] * len(boxes)


@given(pictures(), rngs())
def test_a_crop_is_a_part_of_the_image(picture, rng):
    """Boxes in it have the same pixels as before, and those that are left out have none."""
    numbered = np.arange(picture[0].shape[0] * picture[0].shape[1] * 3).reshape(picture[0].shape)
    image, boxes, kept = cropped(numbered, picture[1], rng)
    top, left = np.argwhere(numbered[..., 0] == image[0, 0, 0])[0]
    height, width = image.shape[:2]
    np.testing.assert_array_equal(image, numbered[top : top + height, left : left + width])
    short = min(numbered.shape[:2])
    assert min(height, width) >= round(0.64 * short)
    assert max(height, width) <= round(1.5 * short) + 1
    assert_inside(boxes, image)
    low = np.maximum(picture[1][:, :2], [left, top])
    high = np.minimum(picture[1][:, 2:], [left + width, top + height])
    np.testing.assert_array_equal(kept, np.flatnonzero((low < high).all(axis=1)))
    np.testing.assert_allclose(boxes, np.concatenate([low, high], axis=1)[kept] - [left, top, left, top], atol=1e-4)


@given(pictures(), rngs())
def test_augmented_boxes_are_those_of_the_kept_indices(picture, rng):
    image, boxes, kept, size = augmented(*picture, rng, SIZES)
    assert image.dtype == np.uint8 and image.ndim == 3 and 0 not in image.shape
    assert_inside(boxes, image)
    assert len(boxes) == len(kept) <= len(picture[1])
    assert (np.diff(kept) > 0).all()
    assert size in SIZES


@given(pictures(), st.integers(0, 99), st.lists(st.sampled_from(["cat", "left hand"])))
def test_the_same_seed_gives_the_same_result(picture, seed, labels):
    """An array and a PIL image give the same. Later draws do not depend on the labels."""
    rng, other, third = (np.random.default_rng(seed) for _ in range(3))
    for one, two in zip(augmented(*picture, rng, SIZES), augmented(Image.fromarray(picture[0]), picture[1], other,
                                                                   SIZES)):
        np.testing.assert_array_equal(one, two)
    augmented(*picture, third, SIZES, labels)
    assert rng.random() == other.random() == third.random()


@pytest.mark.parametrize(("label", "flips"), [
    ("the cat on the left", False), ("Right-hand glove", False), ("rightmost star", False), ("left", False),
    ("bright star", True), ("upright piano", True), ("cat", True)])
def test_an_image_with_a_side_in_a_label_is_not_flipped(monkeypatch, label, flips):
    monkeypatch.setattr(augmentation, "cropped", lambda image, boxes, rng: (image, boxes, np.arange(len(boxes))))
    image, boxes = tiny.photo(20, 30), np.float32([[1, 2, 9, 8], [3, 3, 5, 5]])
    found = [augmented(image, boxes, np.random.default_rng(seed), SIZES, ["cat", label]) for seed in range(20)]
    assert any((pixels != image).any() for pixels, *_ in found) == flips
    assert any((moved != boxes).any() for _, moved, *_ in found) == flips
    assert all((pixels == image).all() == (moved == boxes).all() for pixels, moved, *_ in found)


def test_half_of_the_images_are_flipped_and_half_are_cropped():
    image, boxes, rng = tiny.photo(20, 30), np.zeros((0, 4), np.float32), np.random.default_rng(0)
    images = [augmented(image, boxes, rng, SIZES)[0] for _ in range(1000)]
    whole = [pixels for pixels in images if pixels.shape == image.shape]
    assert 0.4 < len(whole) / len(images) < 0.6
    assert 0.4 < sum((pixels == image).all() for pixels in whole) / len(whole) < 0.6


def test_the_sizes_of_the_published_checkpoints_are_those_of_the_paper():
    assert sizes_of(ImageSettings()) == [(edge, 1333) for edge in range(480, 801, 32)]


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sizes_are_relative_to_the_checkpoint(edge, other):
    shortest, longest = sorted((edge, other))
    for size in ((("shortest_edge", shortest), ("longest_edge", longest)), (("height", edge), ("width", other))):
        found = sizes_of(ImageSettings(size=size))
        assert found[-1] == (shortest, longest)
        assert found == sorted(found) and len(found) == 11
        assert found[0][0] == max(round(0.6 * shortest), 1)
    assert sizes_of(ImageSettings(size=(("shortest_edge", edge),)))[-1] == (edge, MAX_EDGE)


def test_a_checkpoint_that_does_not_resize_has_no_sizes():
    assert sizes_of(ImageSettings(do_resize=False)) == []
    assert scaled(np.random.default_rng(0), []) is None


def test_each_size_is_chosen():
    rng = np.random.default_rng(0)
    assert {scaled(rng, sizes_of(ImageSettings())) for _ in range(200)} == set(sizes_of(ImageSettings()))


@given(st.integers(300, 3000), st.integers(300, 3000), rngs())
def test_a_resized_crop_reaches_its_shortest_edge(height, width, rng):
    """A crop is never so elongated that the limit of the longest edge counts, unlike the image."""
    assume(max(height, width) < 3 * min(height, width))
    image, *_ = cropped(np.empty((height, width, 0)), np.zeros((0, 4), np.float32), rng)
    assert min(resized(*image.shape[:2], 800, 1333)) == 800

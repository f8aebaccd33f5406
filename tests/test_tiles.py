"""Tiles: where they are, which boxes of theirs count, and what they find."""

import weakref

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_cache import counted, fresh  # noqa: F401  a fixture

import minigdino
from minigdino import Detections, ImageError
from minigdino.overlap import iou
from minigdino.tiles import View, merged, views
from training.backgrounds import background
from training.outlines import outline, rotate
from training.world import SEEN, TILT, silhouette, tint

lengths = st.integers(1, 400)
sides = st.integers(64, 300)


@given(lengths, lengths, sides)
def test_tiles_cover_the_image_and_overlap_by_a_quarter(width, height, tile):
    whole, *tiles = views((width, height), tile)
    assert whole == View(0, 0, width, height)
    if tile >= max(width, height):
        assert not tiles
        return
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(tile, width), min(tile, height))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert len(set(tiles)) == len(tiles)
    for starts, length in (({view.left for view in tiles}, width), ({view.top for view in tiles}, height)):
        starts = sorted(starts)
        assert all(later - earlier <= 0.75 * tile for earlier, later in zip(starts, starts[1:]))
        assert length <= tile or len(starts) <= 2 + (length - tile) / int(0.75 * tile)  # no more tiles than necessary


def test_without_tiles_there_is_the_whole_only():
    assert views((4000, 3000), None) == [View(0, 0, 4000, 3000)]


def in_views(box, size, tile):
    """Perfect detections of one object in every view: its visible part, if there is one."""
    for view in views(size, tile):
        part = np.array(box) - [view.left, view.top, view.left, view.top]
        part = np.clip(part, 0, [*view.size, *view.size])
        seen = int(part[0] < part[2] and part[1] < part[3])
        yield view, Detections(np.float32([part] * seen).reshape(-1, 4), np.float32([0.5] * seen), ["a"] * seen,
                               np.zeros(seen, int), ["a"] * seen, view.size)


@given(st.data(), sides)
def test_a_small_object_is_complete_in_a_tile_and_never_in_parts(data, tile):
    size = [data.draw(st.integers(tile // 2, 3 * tile)) for _ in range(2)]
    low = [data.draw(st.integers(0, length - 10)) for length in size]
    high = [data.draw(st.integers(a + 1, min(a + 3 * tile // 16, length))) for a, length in zip(low, size)]
    box = [*low, *high]
    found = merged(in_views(box, size, tile), tuple(size))
    assert {tuple(one.box) for one in found} == {tuple(box)}
    assert len(found) >= 2 or max(size) <= tile  # in the whole, and in a tile
    assert len(found.nms(0.5)) == 1


@given(st.data(), sides)
def test_an_object_of_any_size_is_found_once_and_whole(data, tile):
    size = [data.draw(st.integers(tile // 2, 3 * tile)) for _ in range(2)]
    low = [data.draw(st.integers(0, length - 1)) for length in size]
    high = [data.draw(st.integers(a + 1, length)) for a, length in zip(low, size)]
    found = merged(in_views([*low, *high], size, tile), tuple(size))
    assert {tuple(one.box) for one in found} == {(*low, *high)}


def test_an_edge_of_the_image_cuts_no_box():
    found = merged(in_views([0, 0, 30, 20], (300, 200), 100), (300, 200))
    assert len(found) == 2
    assert found.image_size == (300, 200)


def test_tiles_are_detected_one_by_one_with_each_prompt(counted):  # noqa: F811
    photo = tiny.photo(100, 150)
    found = fresh().detect(photo, ["a cat", "a dog", "hat"], threshold=0, tile=80, chunk=2)
    n = len(views((150, 100), 80))
    assert n == 1 + 3 * 2
    assert counted == {"bert": 2, "swin": n}
    assert set(found.label_ids) <= {0, 1, 2}
    assert found.image is photo
    assert found.image_size == (150, 100)
    model, moved = tiny.model(), []
    for view in views((150, 100), 80):
        part = model.detect(photo[view.top:view.bottom, view.left:view.right], ["a cat", "a dog", "hat"], threshold=0,
                            chunk=2)
        moved.append(part.boxes + np.float32([view.left, view.top] * 2))
    distances = abs(found.boxes[:, None] - np.concatenate(moved)).max(axis=2)  # to the boxes of all views
    assert distances.min(axis=1).max() < 1e-3


def test_boxes_are_merged_by_suppression():
    model, photo = tiny.model(), tiny.photo(100, 150)

    def detect(**options):
        return model.detect(photo, ["a cat", "a dog"], threshold=0, tile=80, **options).to_dict()

    assert detect() == detect(nms=0.5)
    every = model.detect(photo, ["a cat", "a dog"], threshold=0, tile=80, nms=1)
    assert detect(nms=0.6) == every.nms(0.6).to_dict()
    assert detect(class_agnostic=True) == every.nms(0.5, class_agnostic=True).to_dict()
    assert len(every) > len(every.nms(0.6)) > len(every.nms(0.5, class_agnostic=True))
    assert detect(max_area=0.1, max_detections=4) == every.filter(max_area=0.1).nms(0.5).top(4).to_dict()


def test_a_tile_that_the_image_fits_into_leaves_the_whole():
    model, photo = tiny.model(), tiny.photo(60, 90)
    found = model.detect(photo, "a cat.", threshold=0, tile=90)
    assert found.to_dict() == model.detect(photo, "a cat.", threshold=0, nms=0.5).to_dict()


def test_an_image_that_cannot_be_used_is_an_error_of_the_image():
    model = tiny.model()
    found, error = model.detect([tiny.photo(100, 150), tiny.photo(2, 2000)], "a cat.", tile=80, errors="return")
    assert isinstance(found, Detections)
    assert isinstance(error, ImageError)


def test_a_tile_that_is_too_small_for_the_queries_is_named():
    """The whole image has enough tokens, because it is elongated."""
    model, photo = tiny.model(), tiny.photo(160, 1600)
    assert len(model.detect(photo, "a cat.", size=(16, 200), threshold=0)) == 20
    with pytest.raises(ImageError, match="must each of its tiles; 16 x 16 pixels after resizing give 7. Use a larger"):
        model.detect(photo, "a cat.", size=(16, 200), tile=160)


def test_only_one_tile_is_in_memory(monkeypatch):
    """The pixels of a view are released before those of the next one are made."""
    alive, preprocess = [], minigdino.detector.images.preprocess

    def counting(*arguments):
        assert not any(pixels() is not None for pixels in alive)
        pixels = preprocess(*arguments)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(minigdino.detector.images, "preprocess", counting)
    fresh().detect(tiny.photo(100, 150), "a cat.", tile=80)
    assert len(alive) == 7


SIDE = 40  # pixels of each thing


def scene(rng, width, height, n):
    """Draw n things that do not touch: uint8 [H, W, 3], their names, and their boxes [n, 4]."""
    canvas = background("gradient", rng, height, width)
    names, boxes = [], np.zeros((0, 4))
    while len(names) < n:
        colour, shape = SEEN[rng.integers(len(SEEN))]
        polygons = rotate(outline(shape, rng, False), rng.uniform(-TILT, TILT))
        low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
        extent = (high - low) * SIDE / (high - low).max()
        corner = rng.integers((0, 0), (width - SIDE, height - SIDE))
        box, patch = np.array([*corner, *corner + extent]), canvas[corner[1] :, corner[0] :][:SIDE, :SIDE]
        paint = tint(colour, rng)
        is_clear = np.linalg.norm(patch - paint, axis=-1).min() > 0.4
        if is_clear and not iou(box[None] + [-SIDE, -SIDE, SIDE, SIDE], boxes).any():
            cover = silhouette([(p - low) * SIDE / (high - low).max() for p in polygons], SIDE, SIDE)[..., None]
            patch += cover * (paint - patch)
            names.append(f"{colour} {shape}")
            boxes = np.vstack([boxes, box])
    return (canvas.clip(0, 1) * 255).astype(np.uint8), np.array(names), boxes


@pytest.mark.parametrize(("width", "height", "n"), [
    (1200, 240, 6), pytest.param(2000, 1500, 60, marks=pytest.mark.slow)])
def test_tiles_find_most_of_what_is_small_in_a_large_image(width, height, n):
    image, names, boxes = scene(np.random.default_rng(0), width, height, n)
    model, phrases = minigdino.load("shapes"), sorted(set(names))

    def right(found):
        """Which detections have the label and an IoU of 0.5 or more of a thing [N, n]."""
        return (iou(found.boxes.astype(float), boxes) >= 0.5) & (np.array(found.labels)[:, None] == names)

    plain = model.detect(image, phrases, chunk=6, threshold=0.3)
    tiled = model.detect(image, phrases, chunk=6, threshold=0.3, tile=192)
    assert right(plain).any(axis=0).mean() < 0.2
    assert right(tiled).any(axis=0).mean() > 0.75
    assert right(tiled).any(axis=1).mean() > 0.75
    assert right(tiled).sum(axis=0).max() == 1  # never twice

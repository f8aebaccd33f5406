"""Inputs of `detect`: bytes and file objects, errors in place of results, and iterators of images."""

import collections
import copy
import gc
import io
import itertools
import pickle
import signal
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino import ArgumentError, CheckpointError, Detections, ImageError, Model, PromptError, detector

TEXT = ["a cat", "remote control"]
MODEL = tiny.model(queries=40)
PHOTOS = [tiny.photo(30, 40, seed) for seed in range(3)]
ELONGATED = np.zeros((8, 400, 3), np.uint8)  # it has fewer image tokens than the model has queries
BAD = ["missing.png", b"no image", None, np.zeros((4, 4), np.uint8), ELONGATED]


class Damaged:
    """A mapped file that has changed."""

    def check(self):
        raise CheckpointError("the file has changed")


def same(a, b):
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert (a.labels, a.phrases, a.image_size) == (b.labels, b.phrases, b.image_size)


def alone(photo):
    return MODEL.detect(photo, TEXT, threshold=0)


def encoded(photo, orientation=1):
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    Image.fromarray(photo).save(data, "PNG", exif=exif)
    return data.getvalue()


@pytest.fixture(params=["Model.detect", "detect", "detect, by name"])
def detect(request, tmp_path, monkeypatch):
    """`detect` of the model, and of the package: with the model, and with its path."""
    if request.param == "Model.detect":
        return MODEL.detect
    if request.param == "detect":
        return lambda *args, **options: minigdino.detect(*args, model=MODEL, **options)
    MODEL.save(tmp_path / "model")
    monkeypatch.setattr(detector, "_models", {})
    return lambda *args, **options: minigdino.detect(*args, model=tmp_path / "model", **options)


# ---- one image


def test_every_form_of_a_file_has_the_result_of_its_path_and_shares_its_cache(tmp_path):
    data = encoded(PHOTOS[0], orientation=6)
    (tmp_path / "photo.png").write_bytes(data)
    want = alone(tmp_path / "photo.png")
    assert want.image_size == (30, 40)  # upright
    MODEL.clear()
    with open(tmp_path / "photo.png", "rb") as file, Image.open(tmp_path / "photo.png") as opened, \
            urlopen((tmp_path / "photo.png").as_uri()) as answer:
        forms = [tmp_path / "photo.png", data, bytearray(data), io.BytesIO(data), file, opened, answer]
        for form in forms:
            found = alone(form)
            same(found, want)
            assert found.plot().tobytes() == want.plot().tobytes()
            assert found.image is form or found.image == data
            assert len(MODEL._image_cache._results) == 1


def test_the_picture_of_a_file_object_can_be_drawn_after_the_file_was_closed():
    data = encoded(PHOTOS[0])
    with io.BufferedReader(io.BytesIO(data)) as file:
        found = alone(file)
    assert found.image == data
    assert found.plot().tobytes() == alone(data).plot().tobytes()
    assert pickle.loads(pickle.dumps(found)).image == data


def test_preprocess_takes_the_same_images(tmp_path):
    data = encoded(PHOTOS[0], orientation=3)
    (tmp_path / "photo.png").write_bytes(data)
    want = MODEL.preprocess(tmp_path / "photo.png")
    for form in (data, io.BytesIO(data), io.BufferedReader(io.BytesIO(data)), Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(MODEL.preprocess(form), want)


# ---- errors


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*PHOTOS, *BAD])), st.sampled_from([list, tuple, iter]))
def test_an_image_that_cannot_be_used_has_its_error_in_place_of_its_result(images, kind):
    results = list(MODEL.detect(kind(images), TEXT, threshold=0, errors="return"))
    assert len(results) == len(images)
    for image, result in zip(images, results):
        if any(image is bad for bad in BAD):
            with pytest.raises(ImageError) as raised:
                alone(image)
            assert (type(result), str(result)) == (ImageError, str(raised.value))
        else:
            same(result, alone(image))


def test_errors_are_raised_unless_they_are_asked_for(detect):
    assert isinstance(detect("missing.png", TEXT, errors="return"), ImageError)
    assert isinstance(detect(PHOTOS[0], TEXT, errors="return"), Detections)
    for options in ({}, {"errors": "raise"}):
        for image in ("missing.png", ["missing.png"], iter(["missing.png"])):
            with pytest.raises(ImageError, match="missing.png: no such file"):
                list(detect(image, TEXT, **options))


@pytest.mark.parametrize(
    ("kind", "text", "options"),
    [
        (PromptError, "", {}),
        (PromptError, [["a cat"], ["a dog"], ["a cat"]], {}),
        (ArgumentError, TEXT, {"threshold": 2}),
        (ArgumentError, TEXT, {"size": (0, 4)}),
        (ArgumentError, TEXT, {"size": (10**6, 10**6)}),
    ],
)
def test_errors_of_other_arguments_are_never_returned(detect, kind, text, options):
    for images in (["missing.png", PHOTOS[0]], "missing.png", PHOTOS[0]):
        with pytest.raises(kind):
            detect(images, text, errors="return", **options)


@pytest.mark.parametrize("errors", ["ignore", None, True, 3, ["raise"], np.array(["raise", "return"])])
def test_another_value_of_errors_is_refused(detect, errors):
    with pytest.raises(ArgumentError, match='errors must be "raise" or "return"; got '):
        detect(PHOTOS[0], TEXT, errors=errors)


def test_an_error_of_the_checkpoint_is_never_returned():
    bare = Model.random(MODEL.config, settings=MODEL.settings)
    with pytest.raises(CheckpointError, match="tokenizing text needs"):
        bare.detect([PHOTOS[0]], TEXT, errors="return")
    damaged = copy.copy(MODEL)
    damaged._files = [Damaged()]
    with pytest.raises(CheckpointError, match="has changed"):
        damaged.detect([PHOTOS[0]], TEXT, errors="return")


def test_a_returned_error_keeps_no_image():
    photo = ELONGATED.copy()
    reference = weakref.ref(photo)
    error = MODEL.detect(photo, TEXT, errors="return")
    del photo
    gc.collect()
    assert "at least 40 image tokens" in str(error)
    assert reference() is None


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
def test_an_exception_of_a_signal_handler_is_not_returned():
    error = ImageError("the job took too long")

    def handler(signum, frame):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(ImageError) as raised:
            MODEL.detect(types.SimpleNamespace(read=lambda n: signal.raise_signal(signal.SIGALRM)), TEXT,
                         errors="return")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


# ---- iterators


@pytest.mark.parametrize("kind", [iter, lambda photos: (p for p in photos), lambda photos: map(np.copy, photos)])
def test_an_iterator_of_images_gives_an_iterator_of_results(detect, kind):
    results = detect(kind(PHOTOS), TEXT, threshold=0)
    assert isinstance(results, Iterator)
    for result, photo in itertools.zip_longest(results, PHOTOS):
        same(result, alone(photo))
    assert list(detect(iter([]), TEXT)) == []


def test_paths_of_a_folder_are_an_iterator(tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(PHOTOS[0]))
    result, = MODEL.detect(Path(tmp_path).glob("*.png"), TEXT, threshold=0)
    same(result, alone(PHOTOS[0]))


def test_each_image_is_taken_when_its_result_is_requested(detect):
    taken = []
    results = detect((taken.append(i) or PHOTOS[i % 3] for i in itertools.count()), TEXT)
    for n in range(5):
        assert len(taken) == n
        next(results)
    assert len(taken) == 5


def test_one_image_is_in_memory_at_a_time(detect):
    references = []

    def photo():
        gc.collect()
        assert not any(reference() is not None for reference in references)
        image = tiny.photo(30, 40, len(references))
        references.append(weakref.ref(image))
        return image

    results = detect((photo() for _ in range(4)), TEXT, threshold=0)
    collections.deque(results, maxlen=0)  # keeps no result; the variable of a loop would keep the last one
    assert len(references) == 4
    kept = next(detect((photo() for _ in range(1)), TEXT))
    assert kept.image is references[-1]()  # the result holds it, for `plot`


def test_the_other_arguments_are_checked_at_the_call(detect):
    def photos():
        raise AssertionError("requested an image")
        yield

    for kind, text, options in (
        (PromptError, "", {}),
        (PromptError, ["a cat", "A CAT."], {}),
        (ArgumentError, TEXT, {"threshold": 2}),
        (ArgumentError, TEXT, {"text_threshold": "x"}),
        (ArgumentError, TEXT, {"size": 3}),
        (ArgumentError, TEXT, {"size": (10**6, 10**6)}),
        (ArgumentError, TEXT, {"errors": "ignore"}),
    ):
        with pytest.raises(kind):
            detect(photos(), text, **options)
    with pytest.raises(PromptError, match="one prompt for all images of an iterator.*call detect for each image"):
        detect(photos(), [["a cat"]])


def test_an_exception_of_the_iterator_passes_through(detect):
    def photos():
        yield PHOTOS[0]
        raise ImageError("the video is damaged")

    results = detect(photos(), TEXT, errors="return")
    assert isinstance(next(results), Detections)
    with pytest.raises(ImageError, match="the video is damaged"):
        next(results)


def test_a_damaged_model_is_loaded_again_after_an_error_of_an_iterator(monkeypatch, tmp_path):
    MODEL.save(tmp_path)
    monkeypatch.setattr(detector, "_models", {})
    results = minigdino.detect(iter(PHOTOS), TEXT, model=tmp_path)
    next(results)
    (model,) = detector._models.values()
    monkeypatch.setattr(model, "_files", [Damaged()])
    with pytest.raises(CheckpointError, match="has changed"):
        next(results)
    assert not detector._models
    assert isinstance(minigdino.detect(PHOTOS[0], TEXT, model=tmp_path), Detections)


def test_an_iterator_of_results_goes_on_after_an_error(tmp_path):
    given = [scene(), tmp_path / "missing.png", scene()]
    for results in (minigdino.detect(iter(given), "a red star.", model="shapes"),
                    minigdino.load("shapes").detect(iter(given), "a red star.")):
        assert len(next(results)) > 0
        with pytest.raises(minigdino.ImageError, match=r"missing\.png"):
            next(results)
        assert len(next(results)) > 0
        with pytest.raises(StopIteration):
            next(results)


def scene():
    return Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"

"""The checkpoint inside the package detects the objects that a prompt names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minigdino
from training import demo
from training.evaluate import average_precision, false_boxes
from training.predict import with_minigdino
from training.scenes import scenes

FOLDER = Path(minigdino.__file__).parent / "models" / "shapes"
SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"


@pytest.fixture(scope="module")
def model():
    return minigdino.load("shapes")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "floor50", "floor"), [("seen", 0.93, 0.72), ("unseen", 0.92, 0.72)])
def test_average_precision_on_fixed_scenes_exceeds_a_minimum(name, floor50, floor):
    """On 40 scenes. The model card has the values for 500 scenes."""
    pytest.importorskip("faster_coco_eval")
    result = average_precision(FOLDER, name, 40)
    assert result["AP50"] > floor50
    assert result["AP"] > floor


@pytest.mark.slow
def test_false_detections_are_rare_without_matching_objects():
    assert false_boxes(with_minigdino(FOLDER), 40) <= 0.2


def test_different_prompts_find_different_boxes(model):
    star, heart = (model.detect(SCENE, f"a {what}.", threshold=0.35) for what in ("purple star", "green heart"))
    assert len(star) == len(heart) == 1
    assert abs(star.boxes - heart.boxes).max() > 100


def test_swapped_words_swap_the_labels(model):
    one = model.detect(SCENE, ["a purple star", "a green heart"], threshold=0.35)
    two = model.detect(SCENE, ["a green heart", "a purple star"], threshold=0.35)
    for found in (one, two):
        by_label = {d.label: d.box for d in found}
        assert set(by_label) == {"a purple star", "a green heart"}
        assert by_label["a purple star"][0] < 100 < by_label["a green heart"][0]
    assert {d.label: d.label_id for d in one} != {d.label: d.label_id for d in two}


def test_the_image_of_the_demonstration_is_the_drawn_scene():
    assert abs(np.asarray(Image.open(SCENE), int) - demo.scene().image).mean() < 2  # JPEG


@pytest.mark.parametrize("threshold", [0.25, 0.4])
@pytest.mark.parametrize("pair", demo.PAIRS, ids=" ".join)
def test_each_object_of_the_demonstration_is_found_by_its_words(model, pair, threshold):
    (thing,) = (thing for thing in demo.scene().things if (thing.colour, thing.shape) == pair)
    for text in (f"a {thing.colour} {thing.shape}.", f"a {thing.colour} shape."):
        (found,) = model.detect(SCENE, text, threshold=threshold)
        np.testing.assert_allclose(found.box, thing.box, atol=25)  # the model sees 160 x 128 pixels


@pytest.mark.parametrize("shape", ["star", "heart", "ring", "triangle"])
def test_objects_of_the_demonstration_are_found_by_their_shape(model, shape):
    found = model.detect(SCENE, f"{shape}.")
    assert len(found) == sum(thing.shape == shape for thing in demo.scene().things)


@pytest.mark.parametrize("text", ["a blue diamond.", "a black shape.", "a brown circle.", "a photo of a cat."])
def test_an_absent_object_is_not_found(model, text):
    assert len(model.detect(SCENE, text)) == 0


def test_fast_and_reference_find_the_same_detections(model):
    """End to end, each mode with its own query selection."""
    for scene, prompt in scenes("seen", 3):
        image = Image.fromarray(scene.image)
        fast = model.detect(image, prompt.phrases, threshold=0.3)
        with minigdino.use("reference"):
            slow = model.detect(image, prompt.phrases, threshold=0.3)
        assert fast.labels == slow.labels
        np.testing.assert_allclose(fast.boxes, slow.boxes, atol=0.05)


def test_the_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "README.md"} <= set(files)

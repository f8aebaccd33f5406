"""The checkpoint inside the package is one that transformers loads: same logits, same boxes, same detections."""

from pathlib import Path

import numpy as np
import pytest
from oracle import close, load, numpy, run, torch, transformers
from PIL import Image

import minigdino
from training.evaluate import scenes

FOLDER = Path(minigdino.__file__).parent / "models" / "shapes"
SCENE = Path(__file__).parents[2] / "docs" / "images" / "scene.jpg"


@pytest.fixture(scope="module")
def both():
    """Ours, theirs, and their processor, each from the folder."""
    processor = transformers.GroundingDinoProcessor(
        transformers.AutoImageProcessor.from_pretrained(FOLDER), transformers.AutoTokenizer.from_pretrained(FOLDER)
    )
    return minigdino.load("shapes"), load(FOLDER), processor


def questions():
    yield Image.open(SCENE).convert("RGB"), ["a purple star", "a green heart", "an orange ring"]
    for scene, prompt in (*scenes("seen", 4), *scenes("larger", 4)):
        yield Image.fromarray(scene.image), prompt.phrases


@pytest.mark.parametrize(("image", "phrases"), list(questions()))
def test_transformers_finds_the_same_in_the_same_folder(both, image, phrases):
    mine, theirs, processor = both
    inputs = processor(images=image, text=" ".join(f"{phrase}." for phrase in phrases), return_tensors="pt")
    pixels, ids = numpy(inputs["pixel_values"]), numpy(inputs["input_ids"])
    close("pixels", mine.preprocess(image), pixels, 1e-6)
    np.testing.assert_array_equal(mine.tokenize(phrases).ids, ids)

    output, _ = run(theirs, pixels, ids)
    ours = mine.forward(pixels, ids)
    close("logits", ours.logits, numpy(output.logits)[:, : len(ids)], 2e-4)
    close("boxes", ours.boxes, numpy(output.pred_boxes), 1e-4)

    found, = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=0.3, text_threshold=0.25, target_sizes=[image.size[::-1]]
    )
    order = torch.argsort(found["scores"], descending=True, stable=True)
    detections = mine.detect(image, phrases, threshold=0.3)
    assert detections.phrases == [found["text_labels"][i] for i in order]
    np.testing.assert_allclose(detections.scores, found["scores"][order].numpy(), atol=1e-4)
    np.testing.assert_allclose(detections.boxes, found["boxes"][order].numpy(), atol=1e-4 * max(image.size))

"""transformers loads the embedded checkpoint and computes the same logits, boxes and detections."""

from pathlib import Path

import numpy as np
import pytest
from oracle import close, load, numpy, run, torch, transformers
from PIL import Image

import minigdino
from training.scenes import scenes

FOLDER = Path(minigdino.__file__).parent / "models" / "shapes"
SCENE = Path(__file__).parents[2] / "docs" / "images" / "scene.jpg"


@pytest.fixture(scope="module")
def both():
    """minigdino's model, transformers' model and processor, all of the embedded checkpoint."""
    processor = transformers.GroundingDinoProcessor(
        transformers.AutoImageProcessor.from_pretrained(FOLDER), transformers.AutoTokenizer.from_pretrained(FOLDER)
    )
    return minigdino.load("shapes"), load(FOLDER), processor


def inputs():
    """Yield (image, phrases)."""
    yield Image.open(SCENE).convert("RGB"), ["a purple star", "a green heart", "an orange ring"]
    for scene, prompt in (*scenes("seen", 4), *scenes("larger", 4)):
        yield Image.fromarray(scene.image), prompt.phrases


@pytest.mark.parametrize(("image", "phrases"), list(inputs()))
def test_transformers_finds_the_same_detections(both, image, phrases):
    model, reference, processor = both
    encoded = processor(images=image, text=" ".join(f"{phrase}." for phrase in phrases), return_tensors="pt")
    pixels, ids = numpy(encoded["pixel_values"]), numpy(encoded["input_ids"])
    close("pixels", model.preprocess(image), pixels, 1e-6)
    np.testing.assert_array_equal(model.tokenize(phrases).ids, ids)

    expected, _ = run(reference, pixels, ids)
    actual = model.forward(pixels, ids)
    close("logits", actual.logits, numpy(expected.logits)[:, : len(ids)], 2e-4)
    close("boxes", actual.boxes, numpy(expected.pred_boxes), 1e-4)

    found, = processor.post_process_grounded_object_detection(
        expected, encoded["input_ids"], threshold=0.3, text_threshold=0.25, target_sizes=[image.size[::-1]]
    )
    order = torch.argsort(found["scores"], descending=True, stable=True)
    detections = model.detect(image, phrases, threshold=0.3)
    assert detections.phrases == [found["text_labels"][i] for i in order]
    np.testing.assert_allclose(detections.scores, found["scores"][order].numpy(), atol=1e-4)
    np.testing.assert_allclose(detections.boxes, found["boxes"][order].numpy(), atol=1e-4 * max(image.size))

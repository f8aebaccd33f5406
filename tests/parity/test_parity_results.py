"""Post-processing of given logits, and the whole pipeline from image and text to boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FAMILIES, GEOMETRIES, VOCABULARY, close, load, small, torch, transformers
from PIL import Image
from scipy.optimize import linear_sum_assignment
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

import minigdino
from minigdino import Model
from minigdino.network.boxes import sigmoid
from minigdino.prompt import Prompt, Tokenizer
from minigdino.results import post_process

TEXT = "a cat. the dog's bone. x-ray, machine! a remote control."
SIZE = (640, 427)  # width, height
MAX_ULP = 5  # of scores. The sigmoid of transformers is up to 2.0 ulps from the exact value, minigdino's up to 3.3


@pytest.fixture(scope="module", params=[False, True], ids=["as decoded", "cleaned up"])
def both(request, tmp_path_factory):
    """minigdino's tokenizer and transformers' processor of one directory, with and without cleaning up spaces."""
    return text_side(tmp_path_factory.mktemp("processor"), request.param)


def text_side(directory, clean_up):
    """Save a processor -> (minigdino's tokenizer, transformers' processor)"""
    options = {"clean_up_tokenization_spaces": clean_up, "model_max_length": 512}
    tokenizer = transformers.BertTokenizer(str(VOCABULARY / "vocab.txt"), **options)
    processor = transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer)
    processor.save_pretrained(directory)
    return Tokenizer.from_directory(directory), processor


def result_of_transformers(processor, logits, boxes, ids, threshold, text_threshold, size=SIZE):
    """Post-process an output with transformers -> scores, boxes, phrases; sorted by score, descending"""
    padded = np.full((1, len(logits), 256), -np.inf, np.float32)
    padded[0, :, : len(ids)] = logits
    output = SimpleNamespace(logits=torch.tensor(padded), pred_boxes=torch.tensor(boxes)[None],
                             input_ids=torch.tensor(ids)[None])
    found, = processor.post_process_grounded_object_detection(
        output, threshold=threshold, text_threshold=text_threshold, target_sizes=[size[::-1]])
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    return found["scores"].numpy()[order], found["boxes"].numpy()[order], [found["text_labels"][i] for i in order]


def random_output(seed, n, n_tokens, spread=2.0):
    """Random logits [n, n_tokens] and boxes [n, 4]"""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, n_tokens), np.float32) * np.float32(spread) - np.float32(1),
            rng.uniform(-0.1, 1.1, (n, 4)).astype(np.float32))


def assert_same(detections, expected):
    """The same boxes to the bit. Two scores that differ by a few ulps may be in another order."""
    scores, boxes, phrases = expected
    rank = {tuple(box): i for i, box in enumerate(boxes)}
    order = [rank.get(tuple(box), -1) for box in detections.boxes]
    assert sorted(order) == list(range(len(scores)))
    np.testing.assert_array_max_ulp(detections.scores, scores[order], maxulp=MAX_ULP)
    assert detections.phrases == [phrases[i] for i in order]
    assert (np.diff(detections.scores) <= 0).all()
    assert detections.boxes.dtype == detections.scores.dtype == np.float32


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # for the comma
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), spread=st.sampled_from([0.1, 1.0, 3.0, 15.0]),
       threshold=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]),
       text_threshold=st.sampled_from([0.0, 0.25, 0.4, 0.8]))
def test_boxes_scores_and_phrases_agree(both, seed, n, spread, threshold, text_threshold):
    tokenizer, processor = both
    prompt = tokenizer.encode(TEXT)
    logits, boxes = random_output(seed, n, len(prompt.ids), spread)
    detections = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, threshold, text_threshold)
    assert_same(detections, result_of_transformers(processor, logits, boxes, prompt.ids, threshold, text_threshold))


@pytest.mark.parametrize("n_tokens", [255, 256])
def test_column_256_is_ignored_in_phrases(both, n_tokens):
    tokenizer, processor = both
    ids = np.array([101, *np.random.default_rng(0).integers(1996, 30000, n_tokens - 3), 1012, 102])
    prompt = Prompt(ids, ["everything"], [(1, n_tokens - 2)])
    logits, boxes = random_output(1, 30, n_tokens)
    logits[::2, -1] = 5  # the last token has the highest logit of these queries
    logits[::3, 0] = 6
    detections = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, 0.3, 0.6)
    assert_same(detections, result_of_transformers(processor, logits, boxes, ids, 0.3, 0.6))
    assert any("[SEP]" in phrase for phrase in detections.phrases) == (n_tokens < 256)


@pytest.mark.parametrize("below", [0, 1e-10, 1e-6])
def test_a_score_equal_to_the_threshold_is_dropped(both, below):
    tokenizer, processor = both
    prompt = tokenizer.encode("a cat.")
    column = np.linspace(-3, 3, 61, dtype=np.float32)[:, None]
    column = column[torch.sigmoid(torch.tensor(column)).numpy() == sigmoid(column)]  # where both round alike
    assert len(column) > 30
    for logit in column:
        logits, boxes = np.full((1, len(prompt.ids)), logit), random_output(0, 1, 1)[1]
        threshold = float(sigmoid(logit)) - below  # as a float32, 1e-10 below rounds to the score
        detections = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, threshold, threshold)
        assert_same(detections, result_of_transformers(processor, logits, boxes, prompt.ids, threshold, threshold))
        assert len(detections) == (below == 1e-6)


def tensors_with_lower_scores(config, seed=0):
    """A random checkpoint with smaller logits, so that scores do not all round to 1."""
    tensors = Model.random(config, seed).tensors
    return {name: tensor * np.float32(0.1) if name.startswith("model.decoder.layer_norm.") else tensor
            for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=[(f, g) for f in FAMILIES for g in GEOMETRIES], ids="-".join)
def detectors(request, tmp_path_factory):
    """minigdino's model, transformers' model and processor, all of one directory."""
    directory = tmp_path_factory.mktemp("detector")
    config = small(*request.param, text_config={**small(*request.param).text_config.__dict__, "vocab_size": 30522})
    text_side(directory, clean_up=True)
    Model(tensors_with_lower_scores(config), config).save(directory)
    (directory / "preprocessor_config.json").unlink()  # leaves the image settings that transformers saved
    processor = transformers.AutoProcessor.from_pretrained(directory, backend="pil")
    return minigdino.load(directory), load(directory), processor


@pytest.mark.parametrize("text", ["a cat. a remote control.", ["A cup", "the dog's bone", "x-ray"]], ids=str)
@pytest.mark.parametrize("picture", ["astronaut", "chelsea", "coffee"])
def test_detect_agrees_with_the_whole_pipeline(detectors, picture, text):
    model, reference, processor = detectors
    image = Image.fromarray(getattr(skimage.data, picture)())
    image = image.resize((image.width // 3, image.height // 3))
    size = (320, 500)
    inputs = processor(images=image, text=text, return_tensors="pt",
                       images_kwargs={"size": dict(zip(("shortest_edge", "longest_edge"), size))})
    output = reference(**inputs)
    threshold = between_scores(torch.sigmoid(output.logits[0]).max(-1)[0].numpy())
    found, = processor.post_process_grounded_object_detection(
        output, threshold=threshold, text_threshold=threshold, target_sizes=[(image.height, image.width)])
    detections = model.detect(image, text, threshold=threshold, text_threshold=threshold, size=size)
    assert len(detections) == len(found["scores"]) > 5
    edge = np.float32(max(image.size))
    actual = np.column_stack([detections.boxes / edge, detections.scores])
    expected = np.column_stack([found["boxes"].numpy() / edge, found["scores"].numpy()])
    order = match(actual, expected)
    close("detect: boxes (relative to the longer edge) and scores", actual, expected[order], 1e-4)
    assert detections.phrases == [found["text_labels"][i] for i in order]


def between_scores(scores):
    """A threshold far from every score: the middle of the widest gap in the lower half of the sorted scores."""
    low = np.sort(scores)[: len(scores) // 2 + 1]
    widest = np.diff(low).argmax()
    return float(low[widest : widest + 2].mean())


def match(actual, expected):
    """Indices that order the rows of `expected` like those of `actual`: the assignment of minimum total distance."""
    assert len(actual) == len(expected)
    return linear_sum_assignment(abs(actual[:, None] - expected[None]).sum(axis=-1))[1]

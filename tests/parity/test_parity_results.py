"""Post-processing, and then everything at once: picture and words in, boxes out."""

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
SIGMOID = 5  # float32 ulps: from the exact value theirs is up to 2.0 away, and ours 3.3


@pytest.fixture(scope="module", params=[False, True], ids=["as decoded", "cleaned up"])
def both(request, tmp_path_factory):
    """Our tokenizer and their processor, of one directory; clean_up_tokenization_spaces either way."""
    return tokenizers_of(tmp_path_factory.mktemp("processor"), request.param)


def tokenizers_of(where, clean_up):
    options = {"clean_up_tokenization_spaces": clean_up, "model_max_length": 512}
    tokenizer = transformers.BertTokenizer(str(VOCABULARY / "vocab.txt"), **options)
    processor = transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer)
    processor.save_pretrained(where)
    return Tokenizer.from_directory(where), processor


def their_result(processor, logits, boxes, ids, threshold, text_threshold, size=SIZE):
    """What transformers keeps of the same numbers, best first."""
    padded = np.full((1, len(logits), 256), -np.inf, np.float32)
    padded[0, :, : len(ids)] = logits
    output = SimpleNamespace(logits=torch.tensor(padded), pred_boxes=torch.tensor(boxes)[None],
                             input_ids=torch.tensor(ids)[None])
    found, = processor.post_process_grounded_object_detection(
        output, threshold=threshold, text_threshold=text_threshold, target_sizes=[size[::-1]])
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    return found["scores"].numpy()[order], found["boxes"].numpy()[order], [found["text_labels"][i] for i in order]


def random_output(seed, n, n_tokens, spread=2.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, n_tokens), np.float32) * np.float32(spread) - np.float32(1),
            rng.uniform(-0.1, 1.1, (n, 4)).astype(np.float32))


def assert_same(ours, theirs):
    scores, boxes, phrases = theirs
    assert len(ours) == len(scores)
    np.testing.assert_array_max_ulp(ours.scores, scores, maxulp=SIGMOID)
    np.testing.assert_array_equal(ours.boxes, boxes)
    assert ours.phrases == phrases
    assert ours.boxes.dtype == ours.scores.dtype == np.float32


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), spread=st.sampled_from([0.1, 1.0, 3.0, 15.0]),
       threshold=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]),
       text_threshold=st.sampled_from([0.0, 0.25, 0.4, 0.8]))
def test_the_same_boxes_scores_and_phrases_are_kept(both, seed, n, spread, threshold, text_threshold):
    tokenizer, processor = both
    prompt = tokenizer.encode(TEXT)
    logits, boxes = random_output(seed, n, len(prompt.ids), spread)
    ours = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, threshold, text_threshold)
    assert_same(ours, their_result(processor, logits, boxes, prompt.ids, threshold, text_threshold))


@pytest.mark.parametrize("n_tokens", [255, 256])
def test_the_last_of_256_columns_is_never_read_as_text(both, n_tokens):
    tokenizer, processor = both
    ids = np.array([101, *np.random.default_rng(0).integers(1996, 30000, n_tokens - 3), 1012, 102])
    prompt = Prompt(ids, ["everything"], [(1, n_tokens - 2)])
    logits, boxes = random_output(1, 30, n_tokens)
    logits[::2, -1] = 5  # the last token speaks loudest
    logits[::3, 0] = 6
    ours = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, 0.3, 0.6)
    assert_same(ours, their_result(processor, logits, boxes, ids, 0.3, 0.6))
    assert any("[SEP]" in phrase for phrase in ours.phrases) == (n_tokens < 256)


@pytest.mark.parametrize("below", [0, 1e-10, 1e-6])
def test_a_score_at_the_threshold_is_dropped(both, below):
    tokenizer, processor = both
    prompt = tokenizer.encode("a cat.")
    column = np.linspace(-3, 3, 61, dtype=np.float32)[:, None]
    column = column[torch.sigmoid(torch.tensor(column)).numpy() == sigmoid(column)]  # where both round alike
    assert len(column) > 30
    for logit in column:
        logits, boxes = np.full((1, len(prompt.ids)), logit), random_output(0, 1, 1)[1]
        threshold = float(sigmoid(logit)) - below  # 1e-10 is lost when the threshold becomes a float32
        ours = post_process(logits, boxes, prompt, tokenizer.decode, SIZE, threshold, threshold)
        assert_same(ours, their_result(processor, logits, boxes, prompt.ids, threshold, threshold))
        assert len(ours) == (below == 1e-6)


def calmed(config, seed=0):
    """A random checkpoint whose scores do not all round to 1."""
    tensors = Model.random(config, seed).tensors
    return {name: tensor * np.float32(0.1) if name.startswith("model.decoder.layer_norm.") else tensor
            for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=[(f, g) for f in FAMILIES for g in GEOMETRIES], ids="-".join)
def detectors(request, tmp_path_factory):
    """One directory, read by both: our model, their model and processor."""
    where = tmp_path_factory.mktemp("detector")
    config = small(*request.param, text_config={**small(*request.param).text_config.__dict__, "vocab_size": 30522})
    tokenizers_of(where, clean_up=True)
    Model(calmed(config), config).save(where)
    (where / "preprocessor_config.json").unlink()  # both read what transformers wrote
    return minigdino.load(where), load(where), transformers.AutoProcessor.from_pretrained(where, backend="pil")


@pytest.mark.parametrize("text", ["a cat. a remote control.", ["A cup", "the dog's bone", "x-ray"]], ids=str)
@pytest.mark.parametrize("picture", ["astronaut", "chelsea", "coffee"])
def test_detect_finds_what_their_whole_pipeline_finds(detectors, picture, text):
    mine, reference, processor = detectors
    image = Image.fromarray(getattr(skimage.data, picture)())
    image = image.resize((image.width // 3, image.height // 3))
    size = (320, 500)
    inputs = processor(images=image, text=text, return_tensors="pt",
                       images_kwargs={"size": dict(zip(("shortest_edge", "longest_edge"), size))})
    output = reference(**inputs)
    threshold = gap(torch.sigmoid(output.logits[0]).max(-1)[0].numpy())
    wanted, = processor.post_process_grounded_object_detection(
        output, threshold=threshold, text_threshold=threshold, target_sizes=[(image.height, image.width)])
    found = mine.detect(image, text, threshold=threshold, text_threshold=threshold, size=size)
    assert len(found) == len(wanted["scores"]) > 5
    edge = np.float32(max(image.size))
    ours = np.column_stack([found.boxes / edge, found.scores])
    theirs = np.column_stack([wanted["boxes"].numpy() / edge, wanted["scores"].numpy()])
    same = match(ours, theirs)
    close("detect: boxes (of the longer edge) and scores", ours, theirs[same], 1e-4)
    assert found.phrases == [wanted["text_labels"][i] for i in same]


def gap(scores):
    """A threshold that no score is near: the middle of the widest gap in the lower half of them."""
    low = np.sort(scores)[: len(scores) // 2 + 1]
    widest = np.diff(low).argmax()
    return float(low[widest : widest + 2].mean())


def match(ours, theirs):
    """Rows of theirs, so ordered that together they are nearest to ours, each used once."""
    assert len(ours) == len(theirs)
    return linear_sum_assignment(abs(ours[:, None] - theirs[None]).sum(axis=-1))[1]

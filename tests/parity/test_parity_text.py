"""Tokenisation: token ids equal those of transformers' processor, with the published vocabulary of 30,522 tokens."""

import shutil

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import VOCABULARY, transformers
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from minigdino import PromptError
from minigdino.evaluation.ground_truth import Category
from minigdino.evaluation.protocols import COCO, prompts
from minigdino.prompt import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # many texts have unknown words
FILES = ("tokenizer.json", "vocab.txt")
TEXTS = [
    "a cat.", "a cat. a remote control.", "A Cat . A DOG .", "a cat. a dog", "is it a cat? a dog?", "a cat. . a dog.",
    "..a cat..", "a cat!", "one, two; three: four.", "x-ray. state-of-the-art. -", "the dog's bone. o'clock. 'quoted'.",
    "café. naïve façade. Ångström. ÜBER. İstanbul. ß.", "e\u0301te\u0301. \ufb01sh.", "a\u00adb. zero\u200bwidth.",
    "中文 文字. 猫.", "日本語テスト. 한국어.", "العربية. עברית. ไทย. हिन्दी.", "３ＤＯ　ｗｉｄｅ．", "a。b．c？",
    "🐈. a 🐕 dog. 👨\u200d👩\u200d👧.", "don’t – “quote” … dash—dash.", "tab\tnew\nline\r\nend.", "  a   cat  .  ",
    "[MASK] [SEP] [PAD] [UNK] [CLS].", "[cls] ##ing #hash.", "a" * 101 + ".", "\x00nul\x7f control.",
    "unbelievableness. electroencephalographically.", "C++ & C#. 50% of $3.99. a_b. a/b. (x) [y] {z}.",
]
LISTS = [["a cat"], ["a cat", "a dog"], ["A Cat ", " a DOG"], ["x-ray", "the dog's bone"], ["café", "中文", "a 🐈"],
         ["cat", "remote control", "sofa", "naïve façade"], ("a", "b", "c"), ["don’t", "50%"],
         ["an " + "a" * 101, "b!"]]
COCO_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush""".strip().replace("\n", " ").split(", ")
text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" .?'-#éあ中🐈")), max_size=40)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """transformers' processor as AutoProcessor loads it, with a tokenizer that neither pads nor truncates."""
    directory = tmp_path_factory.mktemp("processor")
    backend = tokenizers.Tokenizer.from_file(str(VOCABULARY / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(directory / "tokenizer.json"))
    shutil.copy(VOCABULARY / "tokenizer_config.json", directory)
    tokenizer = transformers.BertTokenizer.from_pretrained(directory)
    transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer).save_pretrained(directory)
    processor = transformers.AutoProcessor.from_pretrained(directory, backend="pil")
    assert type(processor) is transformers.GroundingDinoProcessor
    return processor


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """minigdino's tokenizers: one loaded from tokenizer.json, one from vocab.txt."""
    found = {}
    for name in FILES:
        directory = tmp_path_factory.mktemp(name)
        shutil.copy(VOCABULARY / name, directory)
        found[name] = Tokenizer.from_directory(directory)
    return found


@pytest.fixture(params=FILES)
def tokenizer(request, loaded):
    return loaded[request.param]


def ids_of_transformers(processor, text):
    return np.asarray(processor(text=text)["input_ids"]).reshape(-1)


def closed(text):
    """Add the final dot that minigdino adds to a str without one."""
    return text if text.rstrip(" \t\r\n").endswith((".", "?")) else text + "."


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_a_str_agree(processor, tokenizer, text):
    np.testing.assert_array_equal(tokenizer.encode(text).ids, ids_of_transformers(processor, closed(text)))


@pytest.mark.parametrize("labels", LISTS, ids=str)
def test_ids_of_a_list_agree(processor, tokenizer, labels):
    np.testing.assert_array_equal(tokenizer.encode(labels).ids, ids_of_transformers(processor, labels))
    np.testing.assert_array_equal(tokenizer.encode(labels).ids, ids_of_transformers(processor, [list(labels)]))


@settings(max_examples=300, deadline=None)
@given(text=text)
def test_ids_of_any_str_agree(loaded, processor, text):
    for tokenizer in loaded.values():
        try:
            found = tokenizer.encode(text).ids
        except PromptError:
            continue
        np.testing.assert_array_equal(found, ids_of_transformers(processor, closed(text)))


@settings(max_examples=300, deadline=None)
@given(labels=st.lists(text.filter(lambda t: not set(t) & set(".?")), min_size=1, max_size=5))
def test_ids_of_any_list_agree(loaded, processor, labels):
    for tokenizer in loaded.values():
        try:
            found = tokenizer.encode(labels).ids
        except PromptError:
            continue
        np.testing.assert_array_equal(found, ids_of_transformers(processor, labels))


def test_padding_and_truncation_of_a_tokenizer_are_switched_off(processor):
    text = "a cat. " * 80  # the tokenizer file requests padding and truncation to 128 tokens
    found = Tokenizer.from_directory(VOCABULARY).encode(text).ids
    assert len(found) == 242
    np.testing.assert_array_equal(found, ids_of_transformers(processor, text))


@pytest.mark.parametrize("clean_up", [False, True])
def test_decoded_text_agrees(processor, tokenizer, clean_up):
    rng = np.random.default_rng(0)
    texts = [ids_of_transformers(processor, text)[1:-1] for text in TEXTS]
    random = [rng.integers(0, 30522, n) for n in rng.integers(0, 9, 200)]
    tokenizer = Tokenizer(tokenizer.backend, clean_up=clean_up)
    for ids in [*texts, *[t[1::2] for t in texts], *random]:
        expected = processor.tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=clean_up)
        assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("clean_up", [None, False, True])
def test_the_setting_for_cleaning_up_spaces_loads(tmp_path, clean_up):
    options = {} if clean_up is None else {"clean_up_tokenization_spaces": clean_up}
    reference = transformers.BertTokenizer.from_pretrained(VOCABULARY, **options)
    reference.save_pretrained(tmp_path)
    ids = reference("the dog's bone isn't here. we've won!")["input_ids"]
    assert Tokenizer.from_directory(tmp_path).decode(ids) == reference.decode(ids)


def test_transformers_loads_a_saved_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        np.testing.assert_array_equal(reference(closed(text))["input_ids"], tokenizer.encode(text).ids)


def test_the_prompt_of_coco_is_that_of_the_published_code(processor, tokenizer):
    """The tokens of a name are found by its characters in the text, as create_positive_map of MMDetection does."""
    (found,) = prompts([Category(i, name) for i, name in enumerate(COCO_NAMES)], tokenizer, COCO)
    text = "".join(f"{name}. " for name in COCO_NAMES)
    encoding = processor.tokenizer(text)
    assert found.ids.tolist() == encoding.input_ids
    assert len(found.ids) == 195
    start = 0
    for name, span in zip(COCO_NAMES, found.spans):
        assert span == (encoding.char_to_token(start), encoding.char_to_token(start + len(name) - 1) + 1)
        start += len(name) + 2

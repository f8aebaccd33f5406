"""Bodies of requests: what is accepted, and the texts of refusals. Any bytes give a request or a refusal."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import BOUNDARY, as_json, form, picture

from minigdino.serving import bodies
from minigdino.serving.bodies import parse
from minigdino.serving.refusals import Refused

FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def parsed(body, headers, allow_urls=False):
    return parse(body, headers.get("Content-Type", ""), allow_urls)


def refusal(body, headers, **options):
    with pytest.raises(Refused) as caught:
        parsed(body, headers, **options)
    assert len(str(caught.value)) < 1500
    return caught.value


def test_a_form_and_json_give_the_same_request():
    images = [picture(seed=1), picture(seed=2)]
    fields = [("phrase", "a cat"), ("phrase", "a dog, é"), ("threshold", "0.5"), ("size", "80,120"), ("nms", "0.7"),
              ("class_agnostic", "true"), ("max_detections", "9"), ("precision", "high"), ("tile", "128")]
    from_form = parsed(*form([("image", images[0]), *fields, ("image", images[1])]))
    from_json = parsed(*as_json(images, phrases=["a cat", "a dog, é"], threshold=0.5, size=[80, 120], nms=0.7,
                                class_agnostic=True, max_detections=9, precision="high", tile=128))
    assert from_form == from_json
    assert from_form.images == images
    assert from_form.text == ["a cat", "a dog, é"]
    assert len(set(from_form.digests)) == 2
    assert from_form.options == {**bodies.DEFAULTS, "threshold": 0.5, "size": [80, 120], "nms": 0.7,
                                 "class_agnostic": True, "max_detections": 9, "tile": 128}


def test_a_text_is_taken_as_it_is():
    assert parsed(*form([("image", picture()), ("text", "a cat. a dog.")])).text == "a cat. a dog."
    assert parsed(*as_json(text="a cat. a dog.", phrases=None)).text == "a cat. a dog."


@pytest.mark.parametrize("value", ['{"a cat": 0.4}', ' {"a cat": 0.4}'])
def test_a_threshold_may_be_one_for_each_phrase(value):
    found = parsed(*form([("image", picture()), ("phrase", "a cat"), ("threshold", value)]))
    assert found.options["threshold"] == {"a cat": 0.4}
    assert parsed(*as_json(phrases=["a cat"], threshold={"a cat": 0.4})).options == found.options


@pytest.mark.parametrize(("value", "kind"), [("png", "png"), ("jpg", "jpeg"), ("jpeg", "jpeg"), ("webp", "webp"),
                                             ("true", "png"), ("false", None)])
def test_the_format_of_a_picture(value, kind):
    assert parsed(*form([("image", picture()), ("text", "a"), ("draw", value)])).draw == kind
    assert parsed(*as_json(text="a", draw={"true": True, "false": False}.get(value, value))).draw == kind


def test_json_may_hold_data_urls_and_urls_only_if_they_are_allowed():
    encoded = "data:image/png;base64," + base64.b64encode(picture()).decode()
    body = json.dumps({"images": [encoded, "https://example.org/cat.jpg"], "text": "a"}).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    found = parsed(body, headers, allow_urls=True)
    assert found.images == [picture(), "https://example.org/cat.jpg"]
    assert len(found.digests) == 1
    assert "does not download" in str(refusal(body, headers))


IMAGE = ("image", picture())
CASES = {
    "no content type": ((b"x", {}), 415, "got none. See /docs"),
    "another content type": ((b"x", {"Content-Type": "text/plain"}), 415, "got 'text/plain'"),
    "a form without a boundary": ((b"x", {"Content-Type": "multipart/form-data"}), 422, "expected a multipart form"),
    "no form": ((b"x", FORM), 422, "expected a multipart form"),
    "an empty form": ((b"", FORM), 422, "its end is missing"),
    "a form without its end": ((form([IMAGE, ("text", "a")])[0][:-5], FORM), 422, "its end is missing"),
    "a long text": (as_json(text="a" * 65_537), 422, "text must have at most 65536 characters"),
    "a long field": (form([IMAGE, ("text", "a" * 2**20)]), 422, "'text' must have at most 524288 bytes; got 1048576"),
    "many values of a threshold": (form([IMAGE, ("text", "a"), ("threshold", '{"a": [' + "[]," * 2**18 + "0]}")]), 422,
                                   "'threshold' must have at most 524288 bytes"),
    "long phrases of thresholds": (as_json(phrases=["a"], threshold={"a": 0.5, " " * 70_000: 0.5}), 422,
                                   "threshold must have at most 65536 characters in total"),
    "many lists": ((b'{"images": [' + b"[]," * 100_000 + b"[]]}", {"Content-Type": "application/json"}), 422,
                   "at most 200000 of the characters , : [ {; got 200004. Send several"),
    "many lists in another encoding": ((f'{{"images": [{"[]," * 100_000}[]]}}'.encode("utf-16"),
                                        {"Content-Type": "application/json"}), 422, "at most 200000 of the characters"),
    "a long URL": ((json.dumps({"images": ["http://" + "a" * 9000], "text": "a"}).encode(),
                    {"Content-Type": "application/json"}), 422, "a URL must have at most 8192 characters; got 9007"),
    "too many parts": (form([IMAGE] + [("phrase", "a")] * bodies.MAX_PARTS), 422, "at most"),
    "no image in a form": (form([("text", "a")]), 422, "1 to 16 images; got none"),
    "too many images": (form([IMAGE] * 17 + [("text", "a")]), 422, "1 to 16 images; got 17"),
    "an empty image": (form([("image", b""), ("text", "a")]), 422, "got an empty one"),
    "a file elsewhere": (form([("file", b"x")]), 422, "in the field image; got one in 'file'"),
    "an unknown field": (form([IMAGE, ("text", "a"), ("colour", "red")]), 422, "got 'colour'"),
    "the JSON name in a form": (form([IMAGE, ("phrases", "a"), ("phrase", "b")]), 422, "got the field phrases"),
    "a field twice": (form([IMAGE, ("text", "a"), ("text", "b")]), 422, "given once; got it twice"),
    "no prompt": (form([IMAGE]), 422, "either text or phrases; got neither"),
    "two prompts": (form([IMAGE, ("text", "a"), ("phrase", "b")]), 422, "got both"),
    "text in another encoding": ((form([IMAGE, ("text", "a")])[0].replace(b"\r\n\r\na\r\n", b"\r\n\r\n\xff\r\n"),
                                  FORM), 422, "must be text in UTF-8"),
    "no number": (form([IMAGE, ("text", "a"), ("threshold", "high")]), 422, "got 'high'. Write for example 0.3"),
    "NaN": (form([IMAGE, ("text", "a"), ("threshold", "nan")]), 422, "threshold must be a number from 0 to 1"),
    "no JSON": (form([IMAGE, ("text", "a"), ("threshold", "{")]), 422, "or JSON such as"),
    "no size": (form([IMAGE, ("text", "a"), ("size", "800")]), 422, "got [800]. Write for example 800,1333 in a form"),
    "no numbers": (form([IMAGE, ("text", "a"), ("size", "8e2,9")]), 422, "longest edge in pixels; got '8e2,9'. Write"),
    "no whole number": (form([IMAGE, ("text", "a"), ("tile", "9.5")]), 422, "whole number; got '9.5'. Write for"),
    "a whole number below 1": (as_json(text="a", max_detections=0), 422, "a whole number of 1 or more; got 0"),
    "a huge size": (form([IMAGE, ("text", "a"), ("size", "9999,9999")]), 422, "product is at most 4194304"),
    "no flag": (form([IMAGE, ("text", "a"), ("class_agnostic", "maybe")]), 422, "must be true or false"),
    "a flag in another spelling": (form([IMAGE, ("text", "a"), ("class_agnostic", "1")]), 422, "or false; got '1'"),
    "an unknown precision": (form([IMAGE, ("text", "a"), ("precision", "low")]), 422, "precision must be one of"),
    "an unknown format": (form([IMAGE, ("text", "a"), ("draw", "gif")]), 422, "draw must be png, jpeg or webp"),
    "a number for a format": (form([IMAGE, ("text", "a"), ("draw", "1")]), 422, "draw must be png, jpeg or webp"),
    "two pictures": (form([IMAGE, IMAGE, ("text", "a"), ("draw", "png")]), 422, "draw expects one image"),
    "no JSON body": ((b"{", {"Content-Type": "application/json"}), 422, "expected JSON"),
    "deep JSON": ((b"[" * 100_000, {"Content-Type": "application/json"}), 422, "expected JSON"),
    "a long number": ((b'{"threshold": ' + b"9" * 5000 + b"}", {"Content-Type": "application/json"}), 422, "JSON"),
    "a list": ((b"[]", {"Content-Type": "application/json"}), 422, "expected a JSON object; got []"),
    "images that are no list": ((b'{"images": "x"}', {"Content-Type": "application/json"}), 422, "must be a list"),
    "no base64": ((b'{"images": ["x!"], "text": "a"}', {"Content-Type": "application/json"}), 422, "base64; got 'x!'"),
    "text that is no text": (as_json(text=5), 422, "text must be a text"),
    "phrases that are no list": (as_json(phrases="a cat"), 422, "phrases must be a list"),
    "phrases that are no texts": (as_json(phrases=["a cat", 5]), 422, "phrases must be a list"),
    "too many phrases": (as_json(phrases=["a"] * 2001), 422, "at most 2000 phrases; got 2001"),
    "long phrases": (as_json(phrases=["a" * 40_000] * 2), 422, "at most 65536 characters in total"),
    "a size that is no list": (as_json(text="a", size="800,1333"), 422, "in a form, and [800, 1333] in JSON"),
    "a size of a flag": (as_json(text="a", size=[True, 9]), 422, "size must be the shortest and the longest edge"),
    "draw of another type": (as_json(text="a", draw=["png"]), 422, "draw must be png"),
    "precision of another type": (as_json(text="a", precision=["high"]), 422, "precision must be one of"),
    "a threshold of no phrase": (as_json(text="a", threshold={"a": "x"}), 422, "threshold of 'a' must be a number"),
    "an option alone": (as_json(text="a", class_agnostic=True), 422, "needs nms or tile")}


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_states_what_was_expected_and_what_came(case):
    request, status, text = CASES[case]
    found = refusal(*request)
    assert found.status == status
    assert text in str(found)


def test_the_longest_request_is_accepted():
    phrases = [f"{',' * 28}{i:04}" for i in range(bodies.MAX_PHRASES)]
    body, headers = as_json([picture(seed=i) for i in range(bodies.MAX_IMAGES)], phrases=phrases,
                            threshold=dict.fromkeys(phrases, 0.5), size=[80, 120])
    found = parsed(body, headers)
    assert (found.text, len(found.images)) == (phrases, bodies.MAX_IMAGES)
    encoded = json.dumps(found.options["threshold"])
    assert parsed(*form([IMAGE, *(("phrase", phrase) for phrase in phrases), ("threshold", encoded)])).text == phrases
    assert parsed(*as_json(text="," * 65_536)).text == "," * 65_536


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=4)
NAMES = st.sampled_from(["images", "text", "phrases", "phrase", "image", "draw", "precision", "model",
                         *bodies.DEFAULTS]) | st.text(max_size=5)


def check(body, kind, allow_urls=False):
    """A body gives a request, or a refusal that can be sent."""
    try:
        query = parse(body, kind, allow_urls)
    except Refused as error:
        assert error.status in (415, 422)
        assert len(str(error)) < 1500
        json.dumps({"error": str(error)}).encode()
    else:
        json.dumps([query.text, query.options, query.precision, query.draw]).encode()
        assert query.images
        assert all(query.images)


@given(st.dictionaries(NAMES, JSON, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_json_gives_a_request_or_a_refusal(fields, allow_urls):
    valid = {"images": [base64.b64encode(picture()).decode()], "text": "a cat."}
    for body in (fields, valid | fields):
        check(json.dumps(body).encode(), "application/json", allow_urls)


KINDS = ["application/json", FORM["Content-Type"], "multipart/form-data", "multipart/form-data; boundary=", "", "x/y"]


@given(st.binary(max_size=60), st.sampled_from(KINDS) | st.text(st.characters(codec="latin-1"), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_request_or_a_refusal(body, kind):
    check(body, kind)


@given(st.lists(st.tuples(NAMES, st.text(max_size=8) | st.binary(max_size=8)), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_any_form_gives_a_request_or_a_refusal(parts, data):
    body, headers = form([IMAGE, ("text", "a"), *((name.replace('"', ""), value) for name, value in parts)])
    check(body, headers["Content-Type"])
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for other in (bytes(damaged), body[:cut], body[cut:]):
        check(other, headers["Content-Type"])

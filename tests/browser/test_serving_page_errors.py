"""The page of `minigdino serve` in a browser: refusals, failures, keys, limits and requests that are replaced."""

import numpy as np
import pytest
from PIL import Image
from serving_page import (
    DETECT,
    PHRASES,
    SCENE,
    add,
    choose,
    detections,
    encoded,
    example,
    expected,
    plain,
    problem,
    refuse,
    serving,
    until,
)

import minigdino

BUSY = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": "the queue is full. Try again in 1 s"}}


def test_the_text_of_a_refusal_is_shown(visit):
    tab = visit()
    refuse(tab, {"status": 422, "json": {"error": "a phrase must have letters; got '!'"}})
    tab.click("#example")
    assert problem(tab) == "A phrase must have letters; got '!'."
    assert tab.locator("#retry").is_hidden()
    assert tab.locator("#detect").text_content() == "Detect"


def test_a_refusal_by_the_server_itself_is_shown(visit):
    tab = visit()
    add(tab, "a cat")
    choose(tab, b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "drawn.svg", "image/svg+xml")
    assert problem(tab)  # browsers show such pictures; the server does not read them
    assert tab.locator("#results").is_hidden()


def test_a_busy_server_is_asked_again_at_its_time(visit, model):
    tab = visit()
    seen = refuse(tab, BUSY)
    tab.click("#example")
    assert problem(tab) == "The queue is full. Try again in 1 s."
    assert "Next try in" in tab.locator("#progress").text_content()
    tab.wait_for_selector("#rows tr")
    assert len(seen) == 2 and tab.locator("#message").is_hidden()
    assert detections(tab) == expected(model.detect(SCENE, PHRASES))


def test_the_wait_for_a_busy_server_can_be_stopped(visit):
    tab = visit()
    seen = refuse(tab, BUSY)
    tab.click("#example")
    problem(tab)
    tab.click("#detect")
    assert tab.locator("#detect").text_content() == "Detect" and tab.locator("#message").is_hidden()
    tab.wait_for_timeout(1300)
    assert len(seen) == 1


STATES = {  # answer -> words of the message
    "timeout": ({"status": 504, "json": {"error": "expected an answer within 1 s"}}, "Expected an answer within 1 s."),
    "failure": ({"status": 500, "json": {"error": "the server failed"}}, "The server failed."),
    "end": ({"status": 503, "json": {"error": "the server is shutting down"}}, "The server is shutting down."),
    "proxy": ({"status": 502, "body": "<html>Bad gateway</html>"}, "does not answer"),
    "proxy's limit": ({"status": 504, "body": "<html>Timeout</html>"}, "did not finish in time"),
    "unknown": ({"status": 599, "body": ""}, "status 599"),
    "another server": ({"status": 200, "body": "<html>It works!</html>"}, "no result"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_failed_request_can_be_tried_again(visit, model, state):
    tab = visit()
    answer, words = STATES[state]
    refuse(tab, answer)
    tab.click("#example")
    assert words in problem(tab)
    tab.click("#retry")
    tab.wait_for_selector("#rows tr")
    assert detections(tab) == expected(model.detect(SCENE, PHRASES))
    assert tab.evaluate("document.activeElement.id") == "detect"  # the button that had the focus is gone


def test_a_lost_connection_is_named(visit):
    tab = visit()
    tab.route(DETECT, lambda route: route.abort("connectionrefused"))
    tab.click("#example")
    assert "No connection to the server at 127.0.0.1" in problem(tab)
    tab.unroute(DETECT)
    tab.click("#retry")
    tab.wait_for_selector("#rows tr")


def test_a_key_is_requested_only_by_a_server_that_needs_one(visit):
    tab = visit()
    assert tab.locator("#key").is_hidden()
    seen = refuse(tab, {"status": 401, "json": {"error": "a key"}})
    tab.click("#example")
    assert "API key" in problem(tab)
    tab.fill("#key", "secret")
    tab.press("#key", "Enter")
    tab.wait_for_selector("#rows tr")
    assert [one.headers.get("authorization") for one in seen] == [None, "Bearer secret"]


def test_a_picture_above_the_limit_is_named_and_can_be_made_smaller(visit):
    tab = visit()
    seen = refuse(tab, {"status": 413, "json": {"error": "an image must have at most 2 megapixels; got 3"}})
    add(tab, "a red star")
    exif = Image.Exif()
    exif[0x0112] = 6
    choose(tab, encoded(plain(3200, 800), "JPEG", exif=exif), "wide.jpg", "image/jpeg")
    assert problem(tab) == "An image must have at most 2 megapixels; got 3."
    tab.click("#shrink")
    until(tab, "!document.getElementById('results').hidden")
    assert tab.locator("#file").text_content() == "wide-small.jpg, 400 × 1600"
    assert len(seen) == 2 and tab.locator("#message").is_hidden()


def test_a_server_with_a_key_and_a_limit_is_usable(visit):
    with serving("--api-key", "secret", "--max-pixels", "1000000") as url:
        tab = visit(url)
        choose(tab, encoded(Image.open(SCENE).resize((1280, 1024)), "JPEG"), "scene.jpg", "image/jpeg")
        add(tab, "a red star")
        assert "API key" in problem(tab)
        tab.fill("#key", "secret")
        tab.click("#detect")
        until(tab, "document.getElementById('problem').textContent.includes('at most 1000000 pixels')")
        tab.click("#shrink")
        tab.wait_for_selector("#rows tr")
        assert tab.locator("#file").text_content() == "scene-small.jpg, 640 × 512"


def test_a_file_above_the_limit_is_named_and_can_be_made_smaller(visit):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    with serving("--max-bytes", "2000000") as url:
        tab = visit(url)
        add(tab, "a red star")
        choose(tab, encoded(Image.fromarray(noise)))
        assert "2000000 bytes" in problem(tab)
        tab.click("#shrink")
        until(tab, "!document.getElementById('results').hidden")
        assert tab.locator("#file").text_content() == "picture-small.jpg, 1000 × 750"


def test_warnings_about_the_prompt_are_shown(visit, model):
    tab = example(visit())
    with pytest.warns(minigdino.PromptWarning) as warned:
        model.detect(SCENE, [*PHRASES, "日 star"])
    add(tab, "日 star")
    tab.wait_for_selector("#warnings:not([hidden])")
    assert tab.locator("#warnings").text_content() == str(warned[0].message)


def test_a_change_replaces_the_request_under_way(visit, model):
    tab, held = visit(), []
    tab.route(DETECT, lambda route: held.append(route))  # no answer
    tab.click("#example")
    until(tab, "document.getElementById('detect').textContent === 'Stop'")
    tab.unroute(DETECT)
    tab.press("#phrase", "Backspace")
    tab.wait_for_selector("#rows tr")
    assert detections(tab) == expected(model.detect(SCENE, PHRASES[:2]))
    assert len(held) == 1


def test_a_request_can_be_stopped(visit):
    tab = example(visit())
    tab.route(DETECT, lambda route: None)  # no answer
    add(tab, "a red star")
    until(tab, "document.getElementById('detect').textContent === 'Stop'")
    assert "Detecting" in tab.locator("#progress").text_content()
    tab.click("#detect")
    assert tab.locator("#detect").text_content() == "Detect"
    assert tab.locator("#results").is_hidden() and tab.locator("#message").is_hidden()


def test_missing_inputs_are_named(visit):
    tab = visit()
    tab.click("#detect")
    assert problem(tab) == "Choose a picture first."
    choose(tab, encoded(plain(64, 64)))
    until(tab, "document.getElementById('message').hidden")
    until(tab, "document.getElementById('file').textContent")
    tab.click("#detect")
    assert "Add a phrase" in problem(tab)

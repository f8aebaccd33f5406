"""Helpers for the tests of the page of `minigdino serve`."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from serving import Server

SCENE = Path(__file__).parents[2] / "docs" / "images" / "scene.jpg"
PHRASES = ["a purple star", "a green heart", "an orange ring"]  # of the example
DETECT = "**/v1/detect"


@contextlib.contextmanager
def serving(*options):
    """Run a server with the embedded checkpoint, and yield its URL."""
    server = Server("--model", "shapes", "--workers", "1", *options)
    try:
        yield f"http://127.0.0.1:{server.port}/"
    finally:
        server.stop()
        server.kill()


def until(tab, condition):
    """Wait for a condition in JavaScript. The policy of the page forbids what `wait_for_function` does."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"not within 10 s: {condition}")


def example(tab):
    """Use the example, and wait for its boxes."""
    tab.click("#example")
    tab.wait_for_selector("#rows tr")
    return tab


def add(tab, phrase):
    tab.fill("#phrase", phrase)
    tab.press("#phrase", "Enter")


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def plain(*size):
    return Image.new("RGB", size, "navy")


def choose(tab, data, name="picture.png", mime="image/png"):
    tab.set_input_files("#choose", {"name": name, "mimeType": mime, "buffer": data})


def slide(locator, value):
    locator.evaluate("(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value)


def detections(tab):
    """Return the rows of the table: (label, score, box)"""
    rows = [row.locator("td").all_text_contents() for row in tab.locator("#rows tr").all()]
    return [(label, score, [int(v) for v in box.split(", ")]) for label, score, box in rows]


def expected(found):
    """The same of `Detections`, rounded as JavaScript does."""
    return [(d.label, f"{d.score:.2f}", [int(np.floor(v + 0.5)) for v in d.box]) for d in found]


def problem(tab):
    """Wait for a message, and return its text."""
    tab.wait_for_selector("#message:not([hidden])")
    return tab.locator("#problem").text_content()


def refuse(tab, *answers):
    """Replace the next answers to requests for detection. Return the list of requests, which grows."""
    waiting, seen = list(answers), []

    def handle(route):
        seen.append(route.request)
        if waiting:
            route.fulfill(**waiting.pop(0))
        else:
            route.continue_()

    tab.route(DETECT, handle)
    return seen


def answer(found=(), warnings=(), size=(640, 512)):
    """An answer of the server for `refuse`, with the detections in a picture of a size."""
    result = {"width": size[0], "height": size[1], "detections": list(found)}
    return {"status": 200, "json": {"model": "shapes", "seconds": {"computed": 1}, "warnings": list(warnings),
                                    "results": [result]}}  # fmt: skip

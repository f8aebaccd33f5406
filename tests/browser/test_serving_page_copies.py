"""The page of `minigdino serve` in a browser: copies as JSON, curl command and Python program."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_page import PHRASES, SCENE, choose, example, slide, until

OWN = dict(zip(PHRASES, (0.1, 0.95, 0.25)))  # thresholds
HOSTILE = "it's a \"b\"; c,d $(e) \\f.jpg"


@pytest.fixture
def copied(visit, tmp_path):
    """copied(format, **options) -> the text that is copied, for the scene in a file with a hostile name in tmp_path."""

    def copy(kind, **options):
        tab = example(visit(permissions=["clipboard-read", "clipboard-write"], **options))
        (tmp_path / HOSTILE).write_bytes(SCENE.read_bytes())
        choose(tab, SCENE.read_bytes(), HOSTILE, "image/jpeg")
        until(tab, "!document.getElementById('file').textContent.startsWith('example')")
        tab.wait_for_selector("#rows tr")
        tab.click("#each summary")
        for i, phrase in enumerate(PHRASES[:2]):
            slide(tab.locator("#thresholds input").nth(i), OWN[phrase])
        tab.click(f"[data-copy={kind}]")
        until(tab, "document.getElementById('live').textContent.startsWith('Copied')")
        tab.evaluate("document.body.append(Object.assign(document.createElement('textarea'), {id: 'pasted'}))")
        tab.focus("#pasted")
        tab.keyboard.press("Control+V")
        return tab.input_value("#pasted")

    return copy


def test_the_json_has_the_shown_boxes(copied, model):
    assert json.loads(copied("json")) == model.detect(SCENE, PHRASES, threshold=OWN).to_dict()


def test_the_copy_works_without_the_clipboard_interface(copied, model):
    """Pages from another machine over HTTP have none."""
    text = copied("json", init="Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    assert json.loads(text) == model.detect(SCENE, PHRASES, threshold=OWN).to_dict()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the program curl is not installed")
def test_the_curl_command_gets_the_shown_boxes(copied, model, tmp_path):
    done = subprocess.run(["sh", "-c", copied("curl")], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout)["results"] == [model.detect(SCENE, PHRASES, threshold=OWN).to_dict()], done.stderr


def test_the_python_program_prints_the_shown_boxes(copied, model, tmp_path):
    done = subprocess.run([sys.executable, "-c", copied("python")], cwd=tmp_path, capture_output=True, text=True)
    found = model.detect(SCENE, PHRASES, threshold=OWN)
    assert done.stdout.splitlines() == [f"{d.label} {round(d.score, 2)} {[round(v) for v in d.box]}" for d in found]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=12)
SNIPPET = """async ([how, request]) => (await import("/static/snippets.js"))[how](request)"""


def request(name, thresholds, with_key=False):
    return {"url": "http://localhost:8000/v1/detect", "name": name, "thresholds": thresholds, "withKey": with_key}


def words(command):
    """Return the arguments of curl, as a shell reads them."""
    script = f"curl() {{ printf '%s\\0' \"$@\"; }}\n{command}"
    return subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")


def values(field, arguments):
    return [word.removeprefix(f"{field}=") for word in arguments if word.startswith(f"{field}=")]


def test_any_name_and_phrase_can_be_copied(visit):
    tab = visit()

    @given(name=TEXTS, phrases=st.lists(TEXTS, min_size=1, max_size=3, unique=True), each=st.booleans())
    @settings(max_examples=60)
    def check(name, phrases, each):
        thresholds = [[phrase, 0.25 + 0.5 * each * i] for i, phrase in enumerate(phrases)]
        limits = dict(thresholds) if each and len(phrases) > 1 else 0.25
        arguments = words(tab.evaluate(SNIPPET, ["asCurl", request(name, thresholds)]))
        assert 'image=@"{}"'.format(re.sub(r'([\\"])', r"\\\1", name)) in arguments
        assert values("phrase", arguments) == phrases
        assert arguments.count("--form-string") == len(phrases) + 1  # -F would read a file for "@name"
        assert [json.loads(value) for value in values("threshold", arguments)] == [limits]
        program = ast.parse(tab.evaluate(SNIPPET, ["asPython", request(name, thresholds)]))
        body = next(node.value for node in program.body if isinstance(node, ast.Assign))
        fields = dict(zip((key.value for key in body.keys), body.values))
        assert ast.literal_eval(fields["phrases"]) == phrases
        assert ast.literal_eval(fields["threshold"]) == limits
        assert name in [node.value for node in ast.walk(fields["images"]) if isinstance(node, ast.Constant)]

    check()


def test_copies_read_the_key_from_the_environment(visit):
    tab = visit()
    for how in ("asCurl", "asPython"):
        texts = [tab.evaluate(SNIPPET, [how, request("a.jpg", [["a cat", 0.25]], with_key)]) for with_key in (0, 1)]
        assert ["MINIGDINO_API_KEY" in text and "Bearer" in text for text in texts] == [False, True]

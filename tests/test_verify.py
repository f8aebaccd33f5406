"""The comparison with published results, tested with random models and results computed from them."""

import copy
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tiny
from local_hub import LocalHub, environment, files_of
from PIL import Image

from minigdino import ArgumentError, ImageError
from minigdino.checkpoints import hub
from minigdino.evaluation import verify as module
from minigdino.evaluation.verify import PUBLISHED, Expectation, Tolerance, coco_image, verify

NAME, TEXT = "owner/random", "a cat. a remote control."


def rounded(values):
    return np.round(np.asarray(values, float), 4).tolist()


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    """A random model whose `forward` always returns one output, computed once for the test image and prompt."""
    original = tiny.model(family)
    output = original.forward(original.preprocess(tiny.photo()), original.tokenize(TEXT).ids)
    model = copy.copy(original)
    model.forward = lambda *_, **__: output
    return model


@pytest.fixture(scope="module")
def true(model):
    """Correct published results of this model, as fields of an Expectation."""
    output = model.forward(model.preprocess(tiny.photo()), model.tokenize(TEXT).ids)
    scores = np.sort(model.detect(tiny.photo(), TEXT, threshold=0).scores)[::-1]
    threshold = float(scores[3] + scores[4]) / 2
    found = model.detect(tiny.photo(), TEXT, threshold=threshold, text_threshold=0.3)
    return dict(model_id=NAME, text=TEXT, source="a test", image_size=[120, 90], threshold=threshold,
                logits=rounded(output.logits[:3, :3]), boxes=rounded(output.boxes[:3, :3]),
                scores=rounded(found.scores)[::-1], labels=found.phrases[::-1],
                corners=rounded(found.boxes)[::-1])  # fmt: skip


def run(model, values, **changes):
    return verify(NAME, tiny.photo(), model, expectations=[Expectation(**{**values, **changes})])


def failures(report):
    return [check.what for _, checks in report.checks for check in checks if not check.ok]


# the comparison


def test_correct_values_agree(model, true):
    report = run(model, true)
    assert report.ok and report.status == 0, str(report)
    checks = report.checks[0][1]
    assert [check.what for check in checks[:7]] == [
        "image size", *(f"logits, rank {i}" for i in (1, 2, 3)), *(f"box, rank {i}" for i in (1, 2, 3))
    ]  # fmt: skip
    assert len(checks) == 7 + 4 * 3
    assert max(check.difference for check in checks) < 1e-3


@pytest.mark.parametrize(
    ("field", "index", "change", "row"),
    [
        ("image_size", 0, 1, "image size"),
        ("logits", (0, 2), 0.002, "logits, rank 1"),
        ("boxes", (2, 0), -0.0003, "box, rank 3"),
        ("scores", 1, 0.002, "detection 2"),
        ("corners", (3, 2), 0.02, "detection 4"),
        ("labels", 0, "a dog", "detection 1, a dog: label"),
    ],
)
def test_one_wrong_value_is_found_and_named(model, true, field, index, change, row):
    values = np.array(true[field], object if field == "labels" else None)
    values[index] = change if field == "labels" else values[index] + change
    report = run(model, true, **{field: values.tolist()})
    assert report.status == 1
    (failed,) = failures(report)
    assert failed.startswith(row)
    table = str(report).splitlines()
    assert [line for line in table if line.endswith("  NO")] == [line for line in table if line.startswith(failed)]
    assert "1 of 19 differ." in str(report)
    assert "MINIGDINO_KERNELS=reference" in table[-1]


def test_the_table_shows_expected_and_computed_values(model, true):
    lines = str(run(model, true)).splitlines()
    assert lines[0].startswith("owner/random from ")
    assert lines[2] == '"a cat. a remote control."  (a test)'
    assert lines[3].split() == ["value", "expected", "got", "difference", "tolerance", "ok"]
    assert lines[4].split() == ["image", "size", "120", "x", "90", "120", "x", "90", "0", "0", "yes"]
    expected = [f"{value:.4f}" for value in true["logits"][0]]
    assert lines[5].split()[3:6] == expected
    assert lines[5].split()[-2:] == ["0.001", "yes"]
    assert lines[-1] == "all 19 agree"


def test_the_order_of_detections_has_no_effect(model, true):
    order = [2, 0, 3, 1]
    reordered = {field: [true[field][i] for i in order] for field in ("scores", "labels", "corners")}
    assert run(model, true, **reordered).ok


def test_boxes_can_be_fractions_or_given_for_the_first_detections_only(model, true):
    fractions = rounded(np.array(true["corners"]) / [120, 90, 120, 90])
    assert run(model, true, corners=fractions, pixels=False, corner=Tolerance(2e-4)).ok
    assert run(model, true, corners=true["corners"][:1]).ok
    assert run(model, true, corners=(), labels=()).ok


def test_missing_and_unexpected_detections_are_found(model, true):
    more = run(model, true, scores=[*true["scores"], 0.9], labels=[*true["labels"], "a cat"])
    assert failures(more) == ["detection 5, a cat: score"]
    assert "none" in str(more)
    fewer = run(model, true, **{field: true[field][:3] for field in ("scores", "labels", "corners")})
    assert failures(fewer) == ["not published, 1 of 1"]


def test_only_the_best_unexpected_detections_are_shown(model, true):
    report = run(model, true, scores=true["scores"][:1], labels=(), corners=(), threshold=0.0)
    assert failures(report) == ["not published, 1 of 19"] * 5


def test_an_unexpected_detection_at_the_threshold_is_no_failure(model, true):
    """Its score exceeds the threshold by less than the tolerance of scores."""
    lowest = min(true["scores"])
    rest = {field: true[field][1:] for field in ("scores", "labels", "corners")}
    assert true["scores"][0] == lowest
    assert run(model, true, **rest, threshold=lowest - 0.0005).ok
    assert not run(model, true, **rest, threshold=lowest - 0.0015).ok


def test_swapped_ranks_are_matched_and_reported(model, true):
    swapped = {field: [true[field][i] for i in (1, 0, 2)] for field in ("logits", "boxes")}
    report = run(model, true, **swapped)
    assert report.ok
    assert "logits, rank 1 (minigdino: 2)" in str(report)
    assert "box, rank 2 (minigdino: 1)" in str(report)
    assert not run(model, true, logits=swapped["logits"]).ok  # boxes and logits move together


def test_nan_never_agrees(model, true):
    report = run(model, true, logits=[[float("nan")] * 3] * 3)
    assert failures(report) == [f"logits, rank {i}" for i in (1, 2, 3)]


def test_a_tolerance_has_an_absolute_and_a_relative_part():
    assert Tolerance(0.1, 0.01)(np.array([-10.0, 0.0])).tolist() == [0.2, 0.1]


def test_a_model_without_published_results_is_rejected(model):
    with pytest.raises(ArgumentError, match=r"'owner/other'. Choose one of IDEA-Research/grounding-dino-tiny, o"):
        verify("owner/other", tiny.photo(), model)


# the published values


def test_published_values_are_consistent():
    """Find typing errors.

    Scores are sigmoids of logits, both forms of a box agree, and all models find two cats and two remote controls.
    """
    objects = np.array([[344, 24, 638, 374], [8, 53, 317, 473], [38, 71, 176, 118], [333, 77, 371, 187]])
    for e in PUBLISHED:
        assert hub.is_model_id(e.model_id)
        assert e.text.endswith(".") and e.image_size == (640, 480) and e.source.startswith("transformers, ")
        assert len(e.corners) in (1, len(e.scores)) and min(e.scores) > e.threshold
        corners = np.array(e.corners) * (1 if e.pixels else [640, 480, 640, 480])
        nearest = [abs(objects - corner).max(axis=1).argmin() for corner in corners]
        assert len(set(nearest)) == len(nearest)
        assert abs(objects[nearest] - corners).max() < 5, e.model_id
        if len(e.logits):
            probabilities = 1 / (1 + np.exp(-np.array(e.logits)))
            np.testing.assert_allclose(probabilities.max(axis=1)[:2], e.scores, atol=1e-4)
            left, top, right, bottom = e.corners[0]
            box = [(left + right) / 1280, (top + bottom) / 960, (right - left) / 640]
            np.testing.assert_allclose(e.boxes[0], box, atol=1e-4)


def test_every_family_and_size_has_published_values():
    names = [e.model_id for e in PUBLISHED]
    assert names.count(hub.DEFAULT) == 2
    assert len(set(names)) == 12  # all but grounding-dino-base
    for size in ("tiny", "base", "large"):
        assert any(f"mm_grounding_dino_{size}" in name for name in names)
        assert f"iSEE-Laboratory/llmdet_{size}" in names


# the image


@pytest.fixture(scope="module")
def served():
    with LocalHub() as server:
        yield server


@pytest.fixture
def picture(served, tmp_path, monkeypatch):
    """Path of an image that can be downloaded, in a folder that does not exist yet."""
    Image.fromarray(tiny.photo()).save(tmp_path / "photo.png")
    served.pages["/val2017/photo.jpg"] = (tmp_path / "photo.png").read_bytes()
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", f"{served.url}/val2017/photo.jpg")
    monkeypatch.setenv("MINIGDINO_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "downloads" / module._stored_name(f"{served.url}/val2017/photo.jpg")


def test_the_image_is_downloaded_once(served, picture):
    before = served.requests.count(("GET", "/val2017/photo.jpg"))
    assert coco_image() == coco_image() == picture
    assert served.requests.count(("GET", "/val2017/photo.jpg")) == before + 1
    np.testing.assert_array_equal(Image.open(picture), tiny.photo())
    assert list(picture.parent.iterdir()) == [picture]


def test_images_of_the_users_choice_with_equal_names_are_stored_apart(served, picture, monkeypatch):
    Image.fromarray(tiny.photo(seed=1)).save(data := io.BytesIO(), "PNG")
    served.pages["/other/photo.jpg"] = data.getvalue()
    first = coco_image()
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", f"{served.url}/other/photo.jpg")
    assert coco_image().read_bytes() == data.getvalue() != first.read_bytes()


def test_a_download_has_a_limit_of_time_and_of_bytes(served, picture, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 0.5)
    chunks = iter(lambda: time.sleep(0.01) or b"x", None)  # a server that never stops sending
    slow = types.SimpleNamespace(read1=lambda n: next(chunks))
    with pytest.raises(TimeoutError, match=r"took more than 0.5 seconds"):
        module._body(slow)
    fast = io.BytesIO(b"x" * 100)
    monkeypatch.setattr(module, "MAX_BYTES", 30)
    assert (module._body(fast), fast.tell()) == (b"x" * 30, 30)
    monkeypatch.setattr(module, "MAX_SECONDS", -1)
    with pytest.raises(ImageError, match="cannot be downloaded to .*took more than -1 seconds"):
        coco_image()
    assert not list(picture.parent.iterdir())


def test_the_image_can_be_a_local_file(picture, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", str(tmp_path / "photo.png"))
    assert coco_image() == tmp_path / "photo.png"
    assert not picture.parent.exists()


def test_the_default_folder_is_in_the_users_cache(served, picture, tmp_path, monkeypatch):
    monkeypatch.delenv("MINIGDINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert coco_image() == tmp_path / "cache" / "minigdino" / picture.name
    assert coco_image(tmp_path / "given") == tmp_path / "given" / picture.name


@pytest.mark.parametrize(
    ("page", "folder", "reason"),
    [
        ("/val2017/none.jpg", None, r"none.jpg cannot be downloaded .*: the server answered 404"),
        ("/portal.jpg", None, "not a readable image"),
        ("/val2017/photo.jpg", "/dev/null/downloads", "Not a directory"),
        (None, None, "refused"),
    ],
)
def test_an_image_that_cannot_be_downloaded_is_reported(served, picture, monkeypatch, page, folder, reason):
    served.pages["/portal.jpg"] = b"<html>log in first</html>"
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", served.url + page if page else "http://127.0.0.1:1/photo.jpg")
    with pytest.raises(ImageError, match=reason) as raised:
        coco_image(folder)
    assert "set MINIGDINO_VERIFY_IMAGE to its path" in str(raised.value)
    assert not picture.parent.exists() or not list(picture.parent.iterdir())


@pytest.fixture
def published(served, picture, monkeypatch):
    """The image as if it were the published one: from the built-in address, with a known checksum."""
    monkeypatch.delenv("MINIGDINO_VERIFY_IMAGE")
    monkeypatch.setattr(module, "IMAGE", f"{served.url}/val2017/photo.jpg")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(served.pages["/val2017/photo.jpg"]).hexdigest())
    return picture.with_name("photo.jpg")


def test_the_published_image_comes_over_https_and_has_a_checksum():
    assert module.IMAGE.startswith("https://")
    assert module.IMAGE.endswith("/val2017/000000039769.jpg")
    assert len(bytes.fromhex(module.SHA256)) == 32


def test_a_download_with_another_checksum_is_refused(served, published):
    Image.fromarray(tiny.photo(seed=1)).save(other := published.parent.parent / "other.png")
    served.pages["/val2017/photo.jpg"] = other.read_bytes()
    with pytest.raises(ImageError, match="(?s)expected a file with the SHA-256 checksum .*; got .*hint: download it"):
        coco_image()
    assert list(published.parent.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_stored_image_with_another_checksum_is_downloaded_again(served, published, damage):
    data = served.pages["/val2017/photo.jpg"]
    published.parent.mkdir()
    published.write_bytes(damage(data))
    before = len(served.requests)
    assert coco_image() == coco_image() == published
    assert published.read_bytes() == data
    assert len(served.requests) == before + 1


def test_an_image_of_the_users_choice_may_have_any_content(served, published, monkeypatch):
    monkeypatch.setattr(module, "SHA256", "0" * 64)
    with pytest.raises(ImageError, match="checksum"):
        coco_image()
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", f"{served.url}/val2017/photo.jpg?size=full")
    assert coco_image().exists()


def test_without_a_home_folder_the_error_names_the_setting(published, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIGDINO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.Path, "home", home)
    with pytest.raises(ImageError, match="Set MINIGDINO_CACHE"):
        coco_image()


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/photo.jpg", "data:image/png,x"])
def test_other_schemes_than_http_are_not_fetched(picture, monkeypatch, address):
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", address)
    with pytest.raises(ImageError, match="no such file"):
        verify(NAME, model=object(), expectations=[Expectation(NAME, TEXT, "a test")])


# end to end, in a process: model and image from a local hub


CODE = """
import json, sys
from minigdino.evaluation.verify import Expectation, verify
for expected in json.load(sys.stdin):
    report = verify("owner/random", expectations=[Expectation(**values) for values in expected])
    print(report, f"status {report.status}", sep="\\n")
sys.exit(report.status)
"""


def test_verify_downloads_model_and_image_and_reports_the_result(served, picture, tmp_path, family, true):
    tiny.model(family).save(tmp_path / "model")
    served.add(NAME, files_of(tmp_path / "model"))
    wrong = {**true, "logits": np.add(true["logits"], [[0], [0.01], [0]]).tolist()}
    others = dataclasses.asdict(PUBLISHED[0])
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path / "home"), MINIGDINO_CACHE=str(picture.parent),
                      MINIGDINO_VERIFY_IMAGE=f"{served.url}/val2017/photo.jpg", NO_PROXY="*")  # fmt: skip
    expected = json.dumps([[true, others], [others, wrong]])
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, input=expected, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{NAME} from {tmp_path / 'home' / 'hub'}")
    first, second = done.stdout.split("status 0\n")
    assert "all 19 agree" in first
    assert "1 of 19 differ" in second
    assert second.count("  NO\n") == 1
    assert second.endswith("\nstatus 1\n")
    assert hub.DEFAULT not in done.stdout  # values of other models are ignored

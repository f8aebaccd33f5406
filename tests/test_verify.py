"""The check of the released weights, with random ones and numbers made from them."""

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
from local_hub import LocalHub, environment, files_of
from PIL import Image

from minigdino import ArgumentError, ImageError
from minigdino.checkpoints import hub
from minigdino.evaluation.verify import PUBLISHED, Expectation, Tolerance, coco_image, verify

NAME, TEXT = "owner/random", "a cat. a remote control."


def rounded(values):
    return np.round(np.asarray(values, float), 4).tolist()


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    """A random model that runs its network once: all these tests show it one picture and one prompt."""
    whole = tiny.model(family)
    output = whole.forward(whole.preprocess(tiny.photo()), whole.tokenize(TEXT).ids)
    same = copy.copy(whole)
    same.forward = lambda *_, **__: output
    return same


@pytest.fixture(scope="module")
def true(model):
    """What somebody who ran this model would publish, as a dict."""
    output = model.forward(model.preprocess(tiny.photo()), model.tokenize(TEXT).ids)
    scores = np.sort(model.detect(tiny.photo(), TEXT, threshold=0).scores)[::-1]
    threshold = float(scores[3] + scores[4]) / 2
    found = model.detect(tiny.photo(), TEXT, threshold=threshold, text_threshold=0.3)
    return dict(model_id=NAME, text=TEXT, source="a test", image_size=[120, 90], threshold=threshold,
                logits=rounded(output.logits[:3, :3]), boxes=rounded(output.boxes[:3, :3]),
                scores=rounded(found.scores)[::-1], labels=found.phrases[::-1],
                places=rounded(found.boxes)[::-1])  # fmt: skip


def run(model, values, **changes):
    return verify(NAME, tiny.photo(), model, expectations=[Expectation(**{**values, **changes})])


def failures(report):
    return [check.what for _, checks in report.checks for check in checks if not check.ok]


# the comparison


def test_right_numbers_agree(model, true):
    report = run(model, true)
    assert report.ok and report.status == 0, str(report)
    checks = report.checks[0][1]
    assert [check.what for check in checks[:7]] == [
        "image size", *(f"logits, rank {i}" for i in (1, 2, 3)), *(f"box, rank {i}" for i in (1, 2, 3))
    ]  # fmt: skip
    assert len(checks) == 7 + 4 * 3
    assert max(check.difference for check in checks) < 1e-3


@pytest.mark.parametrize(
    ("field", "place", "by", "row"),
    [
        ("image_size", 0, 1, "image size"),
        ("logits", (0, 2), 0.002, "logits, rank 1"),
        ("boxes", (2, 0), -0.0003, "box, rank 3"),
        ("scores", 1, 0.002, "detection 2"),
        ("places", (3, 2), 0.02, "detection 4"),
        ("labels", 0, "a dog", "detection 1, a dog: label"),
    ],
)
def test_one_wrong_number_is_found_and_named(model, true, field, place, by, row):
    values = np.array(true[field], object if field == "labels" else None)
    values[place] = by if field == "labels" else values[place] + by
    report = run(model, true, **{field: values.tolist()})
    assert report.status == 1
    (wrong,) = failures(report)
    assert wrong.startswith(row)
    table = str(report).splitlines()
    assert [line for line in table if line.endswith("  NO")] == [line for line in table if line.startswith(wrong)]
    assert "1 of 19 differ." in str(report)
    assert "MINIGDINO_KERNELS=reference" in table[-1]


def test_the_table_shows_each_value_beside_its_expectation(model, true):
    lines = str(run(model, true)).splitlines()
    assert lines[0].startswith("owner/random from ")
    assert lines[2] == '"a cat. a remote control."  (a test)'
    assert lines[3].split() == ["what", "expected", "got", "difference", "tolerance", "ok"]
    assert lines[4].split() == ["image", "size", "120", "x", "90", "120", "x", "90", "0", "0", "yes"]
    expected = [f"{value:.4f}" for value in true["logits"][0]]
    assert lines[5].split()[3:6] == expected
    assert lines[5].split()[-2:] == ["0.001", "yes"]
    assert lines[-1] == "all 19 agree"


def test_detections_are_a_set(model, true):
    order = [2, 0, 3, 1]
    mixed = {field: [true[field][i] for i in order] for field in ("scores", "labels", "places")}
    assert run(model, true, **mixed).ok


def test_boxes_may_be_fractions_and_only_of_the_first(model, true):
    fractions = rounded(np.array(true["places"]) / [120, 90, 120, 90])
    assert run(model, true, places=fractions, pixels=False, place=Tolerance(2e-4)).ok
    assert run(model, true, places=true["places"][:1]).ok
    assert run(model, true, places=(), labels=()).ok


def test_a_missing_and_a_surplus_detection_are_found(model, true):
    more = run(model, true, scores=[*true["scores"], 0.9], labels=[*true["labels"], "a cat"])
    assert failures(more) == ["detection 5, a cat: score"]
    assert "none" in str(more)
    fewer = run(model, true, **{field: true[field][:3] for field in ("scores", "labels", "places")})
    assert failures(fewer) == ["not published, 1 of 1"]


def test_of_many_surplus_detections_the_best_are_shown(model, true):
    report = run(model, true, scores=true["scores"][:1], labels=(), places=(), threshold=0.0)
    assert failures(report) == ["not published, 1 of 19"] * 5


def test_a_detection_at_the_threshold_may_fall_on_either_side(model, true):
    """The lowest of ours passes by less than a score's tolerance, and nobody published it."""
    lowest = min(true["scores"])
    rest = {field: true[field][1:] for field in ("scores", "labels", "places")}
    assert true["scores"][0] == lowest
    assert run(model, true, **rest, threshold=lowest - 0.0005).ok
    assert not run(model, true, **rest, threshold=lowest - 0.0015).ok


def test_ranks_that_change_places_are_matched_and_told(model, true):
    swapped = {field: [true[field][i] for i in (1, 0, 2)] for field in ("logits", "boxes")}
    report = run(model, true, **swapped)
    assert report.ok
    assert "logits, rank 1, here 2" in str(report)
    assert "box, rank 2, here 1" in str(report)
    assert not run(model, true, logits=swapped["logits"]).ok  # boxes and logits move together


def test_what_is_not_a_number_never_agrees(model, true):
    report = run(model, true, logits=[[float("nan")] * 3] * 3)
    assert failures(report) == [f"logits, rank {i}" for i in (1, 2, 3)]


def test_a_tolerance_is_absolute_and_relative():
    assert Tolerance(0.1, 0.01)(np.array([-10.0, 0.0])).tolist() == [0.2, 0.1]


def test_a_model_of_which_nothing_is_published(model):
    with pytest.raises(ArgumentError, match=r"'owner/other'; there are some for IDEA-Research/grounding-dino-tiny, o"):
        verify("owner/other", tiny.photo(), model)


# what is published


def test_published_numbers_fit_one_another():
    """Typing errors: a score is the sigmoid of a logit, a place is the box of its rank, and all models see the same
    two cats and two remotes."""
    things = np.array([[344, 24, 638, 374], [8, 53, 317, 473], [38, 71, 176, 118], [333, 77, 371, 187]])
    for e in PUBLISHED:
        assert hub.is_model_id(e.model_id)
        assert e.text.endswith(".") and e.image_size == (640, 480) and e.source.startswith("transformers, ")
        assert len(e.places) in (1, len(e.scores)) and min(e.scores) > e.threshold
        places = np.array(e.places) * (1 if e.pixels else [640, 480, 640, 480])
        nearest = [abs(things - place).max(axis=1).argmin() for place in places]
        assert len(set(nearest)) == len(nearest)
        assert abs(things[nearest] - places).max() < 5, e.model_id
        if len(e.logits):
            probabilities = 1 / (1 + np.exp(-np.array(e.logits)))
            np.testing.assert_allclose(probabilities.max(axis=1)[:2], e.scores, atol=1e-4)
            left, top, right, bottom = e.places[0]
            box = [(left + right) / 1280, (top + bottom) / 960, (right - left) / 640]
            np.testing.assert_allclose(e.boxes[0], box, atol=1e-4)


def test_numbers_of_every_family_and_size_are_published():
    names = [e.model_id for e in PUBLISHED]
    assert names.count(hub.DEFAULT) == 2
    assert len(set(names)) == 12  # all but grounding-dino-base
    for size in ("tiny", "base", "large"):
        assert any(f"mm_grounding_dino_{size}" in name for name in names)
        assert f"iSEE-Laboratory/llmdet_{size}" in names


# the picture


@pytest.fixture(scope="module")
def served():
    with LocalHub() as server:
        yield server


@pytest.fixture
def picture(served, tmp_path, monkeypatch):
    """A picture to be fetched, and an empty folder to keep it in."""
    Image.fromarray(tiny.photo()).save(tmp_path / "photo.png")
    served.pages["/val2017/photo.jpg"] = (tmp_path / "photo.png").read_bytes()
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", f"{served.url}/val2017/photo.jpg")
    monkeypatch.setenv("MINIGDINO_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "kept" / "photo.jpg"


def test_the_picture_is_fetched_once_and_kept(served, picture):
    before = served.requests.count(("GET", "/val2017/photo.jpg"))
    assert coco_image() == coco_image() == picture
    assert served.requests.count(("GET", "/val2017/photo.jpg")) == before + 1
    np.testing.assert_array_equal(Image.open(picture), tiny.photo())
    assert list(picture.parent.iterdir()) == [picture]


def test_the_picture_may_lie_on_disk(picture, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", str(tmp_path / "photo.png"))
    assert coco_image() == tmp_path / "photo.png"
    assert not picture.parent.exists()


def test_without_a_setting_the_users_cache_folder_keeps_the_picture(served, picture, tmp_path, monkeypatch):
    monkeypatch.delenv("MINIGDINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert coco_image() == tmp_path / "cache" / "minigdino" / "photo.jpg"
    assert coco_image(tmp_path / "given") == tmp_path / "given" / "photo.jpg"


@pytest.mark.parametrize(
    ("page", "folder", "reason"),
    [
        ("/val2017/none.jpg", None, r"none.jpg cannot be fetched .*: the server answered 404"),
        ("/portal.jpg", None, "not a readable image"),
        ("/val2017/photo.jpg", "/dev/null/kept", "Not a directory"),
        (None, None, "refused"),
    ],
)
def test_a_picture_that_cannot_be_had(served, picture, monkeypatch, page, folder, reason):
    served.pages["/portal.jpg"] = b"<html>log in first</html>"
    monkeypatch.setenv("MINIGDINO_VERIFY_IMAGE", served.url + page if page else "http://127.0.0.1:1/photo.jpg")
    with pytest.raises(ImageError, match=reason) as raised:
        coco_image(folder)
    assert "set MINIGDINO_VERIFY_IMAGE to its path" in str(raised.value)
    assert not picture.parent.exists() or not list(picture.parent.iterdir())


# all of it, as a process: model and picture from a hub on 127.0.0.1


CODE = """
import json, sys
from minigdino.evaluation.verify import Expectation, verify
for numbers in json.load(sys.stdin):
    report = verify("owner/random", expectations=[Expectation(**values) for values in numbers])
    print(report, f"status {report.status}", sep="\\n")
sys.exit(report.status)
"""


def test_verify_fetches_model_and_picture_and_says_whether_they_agree(served, picture, tmp_path, family, true):
    tiny.model(family).save(tmp_path / "model")
    served.add(NAME, files_of(tmp_path / "model"))
    wrong = {**true, "logits": np.add(true["logits"], [[0], [0.01], [0]]).tolist()}
    others = dataclasses.asdict(PUBLISHED[0])
    env = environment(HF_ENDPOINT=served.url, HF_HOME=str(tmp_path / "home"), MINIGDINO_CACHE=str(picture.parent),
                      MINIGDINO_VERIFY_IMAGE=f"{served.url}/val2017/photo.jpg", NO_PROXY="*")  # fmt: skip
    numbers = json.dumps([[true, others], [others, wrong]])
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, input=numbers, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{NAME} from {tmp_path / 'home' / 'hub'}")
    first, second = done.stdout.split("status 0\n")
    assert "all 19 agree" in first
    assert "1 of 19 differ" in second
    assert second.count("  NO\n") == 1
    assert second.endswith("\nstatus 1\n")
    assert hub.DEFAULT not in done.stdout  # numbers of other models are left alone

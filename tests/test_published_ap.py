"""minigdino verify --coco: AP with its confidence interval, against a published AP."""

import dataclasses
import json
import re

import numpy as np
import pytest
from annotated import random_set
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import rngs

import minigdino
from minigdino import ArgumentError, ImageError, cli
from minigdino.checkpoints.published import SHAPES
from minigdino.evaluation.candidates import Candidates
from minigdino.evaluation.interval import NORMAL, Matches
from minigdino.evaluation.published_ap import ANNOTATIONS, Comparison, verify_ap
from training import sets

IMAGES = 10


@settings(max_examples=40)
@given(rngs(), st.booleans())
def test_ap_is_that_of_the_package_for_coco(rng, coarse):
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs the extra evaluate")
    from minigdino.evaluation.coco_ap import coco_table

    truth, detections = random_set(rng, federated=False, coarse=coarse)
    expected = coco_table(truth, detections)["AP"]
    np.testing.assert_allclose(Matches(truth, detections).average_precision(), expected, rtol=0, atol=1e-9)


def repeated(truth, detections, counts):
    """A set with copies of each image."""
    parts, found, number = [], [], 0
    for picture, (image, candidates), count in zip(truth.pictures, detections, counts):
        for _ in range(count):
            own = truth.only([image])
            parts.append(dataclasses.replace(own, pictures=[dataclasses.replace(picture, id=number)],
                                             image_ids=np.full(len(own.ids), number)))
            found.append((number, candidates))
            number += 1
    joined = {name: np.concatenate([getattr(part, name) for part in parts])
              for name in ("ids", "image_ids", "category_ids", "boxes", "areas", "crowd")}
    return dataclasses.replace(truth, pictures=[part.pictures[0] for part in parts], **joined), found


@settings(max_examples=30)
@given(rngs())
def test_an_image_that_counts_twice_is_as_two_images(rng):
    """But that precision is read after both copies of a detection, not after one: never less is found."""
    truth, detections = random_set(rng, federated=False, coarse=False)
    counts = rng.multinomial(5, np.full(5, 0.2))
    weighted = Matches(truth, detections).average_precision(counts)
    copied = Matches(*repeated(truth, detections, counts)).average_precision()
    np.testing.assert_allclose(weighted, copied, rtol=0, atol=0.02)


@settings(max_examples=30)
@given(rngs())
def test_an_image_that_does_not_count_is_as_none(rng):
    truth, detections = random_set(rng, federated=False, coarse=False)
    counts = rng.permutation([1, 1, 1, 0, 0])
    weighted = Matches(truth, detections).average_precision(counts)
    np.testing.assert_allclose(weighted, Matches(*repeated(truth, detections, counts)).average_precision(), rtol=1e-12)


def coin_flips(rng, n):
    """A set of one object an image, and a detection with a random score that is right in 70 % of the images."""
    box, elsewhere = [0.0, 0, 10, 10], [50.0, 50, 10, 10]
    right = rng.random(n) < 0.7
    truth, _ = random_set(rng, federated=False)
    truth = dataclasses.replace(
        truth, pictures=[dataclasses.replace(truth.pictures[0], id=i) for i in range(n)],
        categories=truth.categories[:1], ids=np.arange(n), image_ids=np.arange(n),
        category_ids=np.full(n, truth.categories[0].id), boxes=np.tile(box, (n, 1)), areas=np.full(n, 100.0),
        crowd=np.zeros(n, bool))
    return truth, [(i, Candidates(np.array([box if right[i] else elsewhere]), rng.random(1),
                                  np.array([truth.categories[0].id]))) for i in range(n)]


def test_the_standard_error_is_the_spread_over_many_sets():
    """Of sets that were really drawn again, in contrast to a bootstrap."""
    aps = [Matches(*coin_flips(np.random.default_rng(seed), 50)).average_precision() for seed in range(150)]
    errors = [Matches(*coin_flips(np.random.default_rng(seed), 50)).standard_error(60) for seed in range(4)]
    assert np.mean(errors) == pytest.approx(np.std(aps), rel=0.25)


def test_the_standard_error_depends_on_its_seed_only():
    matches = Matches(*coin_flips(np.random.default_rng(0), 30))
    assert matches.standard_error(20) == matches.standard_error(20) != matches.standard_error(20, seed=1)


# The comparison.


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder as COCO's, with drawn pictures."""
    folder = tmp_path_factory.mktemp("coco")
    sets.coco(folder, IMAGES)
    (folder / "annotations").mkdir()
    (folder / sets.ANNOTATIONS).rename(folder / ANNOTATIONS)
    (folder / sets.IMAGES).rename(folder / "val2017")
    return folder


@pytest.fixture(scope="module")
def model():
    return minigdino.load("shapes")


def known(ap):
    return (dataclasses.replace(SHAPES, coco=ap),)


def test_the_ap_of_all_images_is_in_the_interval_of_some(coco, model):
    seen = []
    whole = verify_ap(coco, "shapes", model, limit=IMAGES, known=known(50.0), on_image=lambda: seen.append(1))
    assert len(seen) == whole.images == IMAGES
    some = verify_ap(coco, "shapes", model, limit=IMAGES // 2, known=known(whole.ap))
    assert some.images == IMAGES // 2
    assert some.ok and some.status == 0 and some.error > 1
    wrong = verify_ap(coco, "shapes", model, limit=IMAGES // 2, known=known(some.ap - 3 * some.error))
    assert not wrong.ok and wrong.status == 1
    assert f"published AP on all images: {wrong.published:.1f}, outside the interval." in str(wrong)


def test_the_interval_has_95_percent():
    found = Comparison("m", 9, 40.0, 2.0, 43.9)
    assert found.interval == (40 - 2 * NORMAL, 40 + 2 * NORMAL) and found.ok
    assert not dataclasses.replace(found, published=44.0).ok


def test_the_command_prints_the_comparison(coco, capsys):
    status = cli.main(["verify", "grounding-dino-tiny", "--coco", str(coco), "--limit", "4", "--model", "shapes"])
    out = capsys.readouterr().out
    ap, low, high = map(float, re.search(r"val2017: ([\d.]+)\n95 % .*: (-?[\d.]+) to ([\d.]+) \(", out).groups())
    assert out.startswith("IDEA-Research/grounding-dino-tiny from shapes\n\nAP on the first 4 images of COCO val2017: ")
    assert "published AP on all images: 48.4" in out
    assert low < ap < high
    assert status == (0 if low <= 48.4 <= high else 1)


@pytest.mark.parametrize(("words", "message"), [
    (["llmdet_tiny"], "needs a model with a published AP on COCO; got 'iSEE-Laboratory/llmdet_tiny'"),
    (["nothing"], "needs a model with a published AP on COCO; got 'nothing'"),
    (["--limit", "1"], "--limit must be 2 or more images; got 1"),
    (["--coco", "void"], "void/annotations/instances_val2017.json: no such file. Give --coco the folder"),
])  # fmt: skip
def test_bad_arguments_are_refused(coco, capsys, words, message):
    assert cli.main(["verify", "--model", "shapes", "--coco", str(coco), *words]) == 1
    assert message in capsys.readouterr().err


def test_options_that_do_not_fit_together_are_usage_errors(coco, capsys):
    for words in (["--limit", "5"], ["--coco", str(coco), "--image", "a.jpg"]):
        with pytest.raises(SystemExit):
            cli.main(["verify", *words])


def test_images_must_be_there_and_have_their_size(coco, model, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    content = json.loads((coco / ANNOTATIONS).read_text())
    (tmp_path / ANNOTATIONS).write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match="none of the 3 is there, such as 000001.png"):
        verify_ap(tmp_path, "shapes", model, limit=3, known=known(50.0))
    (tmp_path / "val2017/000001.png").write_bytes((coco / "val2017/000001.png").read_bytes())
    with pytest.raises(ImageError, match="000002.png"):
        verify_ap(tmp_path, "shapes", model, limit=3, known=known(50.0))

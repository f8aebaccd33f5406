"""minigdino evaluate: raw detections that survive a kill, shards, tables, and what is wrong with an input."""

import dataclasses
import json
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import minigdino
from minigdino import ArgumentError, cli
from minigdino.evaluation.detections import RawDetections, numbers
from minigdino.evaluation.evaluate import is_table
from minigdino.evaluation.protocols import prompts
from minigdino.evaluation.run import Shard, file_name
from minigdino.evaluation.tasks import COCO, LVIS
from minigdino.image import open_image
from training import new_words, sets
from training.evaluate import average_precision

SHAPES = Path(minigdino.__file__).parent / "models" / "shapes"
PICTURES = 5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a drawn set of each format."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, draw in sets.FORMATS.items():
        draw(folder / name, PICTURES)
    return folder


def arguments(drawn, protocol, out, *more):
    folder = drawn / protocol
    images = folder if protocol == "lvis" else folder / "images"  # LVIS's names include the folder
    return ["evaluate", protocol, folder / "annotations.json", "--images", images, "--model", "shapes", "--out", out,
            *more]


def run(*words):
    return cli.main([*map(str, words)])


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The folder of a complete run on the set in LVIS's format."""
    out = tmp_path_factory.mktemp("whole")
    assert run(*arguments(drawn, "lvis", out, "--report")) == 0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def merge(drawn, *files, protocol="lvis"):
    return run("evaluate", protocol, drawn / protocol / "annotations.json", "--merge", *files)


def printed(capsys):
    out, err = capsys.readouterr()
    return out.splitlines(), err


# The run.


def test_the_table_is_printed_and_written(drawn, whole, capsys):
    merge(drawn, whole / "detections.jsonl")
    (names, values, note), _ = printed(capsys)
    table = json.loads((whole / "table.json").read_text())
    assert names.split() == list(table["table"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert values.split() == ["–" if v is None else f"{100 * v:.1f}" for v in table["table"].values()]
    assert note == f"{PICTURES} images"
    assert table["table"]["AP50"] > 0.5
    assert {"model": "shapes", "protocol": "lvis", "images": PICTURES, "without_detections": 0}.items() <= table.items()


def test_coco_has_the_columns_of_its_papers(drawn, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    assert run(*arguments(drawn, "coco", tmp_path / "out")) == 0
    (names, values, _), _ = printed(capsys)
    assert names.split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert float(values.split()[1]) > 50


def test_refcoco_has_accuracies(drawn, tmp_path, capsys):
    assert run(*arguments(drawn, "refcoco", tmp_path / "out")) == 0
    (names, values, note), _ = printed(capsys)
    assert re.split("  +", names.strip()) == [f"refcoco accuracy @{k}" for k in (1, 5, 10)]
    assert float(values.split()[0]) > 70
    assert note.endswith(" captions")


def test_flickr_has_recalls_of_both_protocols(drawn, tmp_path, capsys):
    assert run(*arguments(drawn, "flickr", tmp_path / "out")) == 0
    (names, values, note), _ = printed(capsys)
    assert re.split("  +", names.strip()) == [f"flickr {kind}-box recall @{k}" for kind in ("any", "merged")
                                              for k in (1, 5, 10)]
    assert float(values.split()[0]) > 50
    assert note == f"{PICTURES} captions"


def test_a_line_has_the_header_and_the_detections_of_an_image(drawn, whole):
    header, *found = lines(whole / "detections.jsonl")
    assert {"minigdino", "model", "fingerprint", "annotations", "protocol", "precision"} <= header.keys()
    assert [line["image"] for line in found] == [str(i + 1) for i in range(PICTURES)]
    for line in found:
        assert len(line["boxes"]) == len(line["scores"]) == len(line["category_ids"]) == 2 * 300


def test_a_prompt_of_its_own_limits_the_categories_of_an_image(drawn, tmp_path):
    pytest.importorskip("faster_coco_eval")
    truth = json.loads((drawn / "prompts" / "annotations.json").read_text())
    words = [drawn / "prompts" / "annotations.json", "--images", drawn / "prompts" / "images"]
    assert run("evaluate", "coco", *words, "--model", "shapes", "--out", tmp_path / "out") == 0
    for image, line in zip(truth["images"], lines(tmp_path / "out" / "detections.jsonl")[1:]):
        assert set(line["category_ids"]) == set(image["prompt"])
        assert len(line["scores"]) == 20 * len(image["prompt"])  # queries


def test_objects_of_other_categories_do_not_count_in_an_image_with_a_prompt(drawn, tmp_path):
    content = json.loads((drawn / "prompts" / "annotations.json").read_text())
    whole = COCO.read(drawn / "prompts" / "annotations.json")
    content["annotations"].append(content["annotations"][0] | {"id": 999, "category_id": next(
        entry["id"] for entry in content["categories"] if entry["id"] not in content["images"][0]["prompt"])})
    (tmp_path / "more.json").write_text(json.dumps(content))
    assert COCO.read(tmp_path / "more.json").ids.tolist() == whole.ids.tolist()
    del content["images"][0]["prompt"], content["images"][0]["phrases"]
    (tmp_path / "more.json").write_text(json.dumps(content))
    assert COCO.read(tmp_path / "more.json").ids.tolist() == [*whole.ids.tolist(), 999]


@pytest.mark.parametrize("phrases", [["a star"] * 9, [], [1], "a star", None])
def test_a_prompt_needs_a_wording_for_each_of_its_categories(drawn, tmp_path, phrases):
    content = json.loads((drawn / "prompts" / "annotations.json").read_text())
    content["images"][1]["phrases"] = phrases
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match=r'images\[1\]: expected a list of \d texts, one for each id of "prompt"'):
        COCO.read(tmp_path / "wrong.json")


def test_the_score_of_a_name_is_the_mean_or_the_maximum_over_its_tokens(drawn):
    truth, model = LVIS.read(drawn / "lvis" / "annotations.json"), minigdino.load("shapes")
    picture, protocols = truth.pictures[0], [dataclasses.replace(LVIS.protocol, score=s, kept=10**6, clip=False)
                                             for s in ("mean", "max")]
    image = open_image(drawn / "lvis" / picture.file_name)
    mean, maximum = (dataclasses.replace(LVIS, protocol=p).predictor(model, truth, None)(picture, image)
                     for p in protocols)
    prompt, *_ = prompts(truth.categories, model.tokenizer, LVIS.protocol)
    output = model.forward(model.preprocess(image), prompt.ids)
    start, stop = prompt.spans[7]
    assert stop - start == 2
    expected = 1 / (1 + np.exp(-output.logits[:, start:stop].astype(float)))
    for found, scores in ((mean, expected.mean(axis=1)), (maximum, expected.max(axis=1))):
        own = found.scores[found.category_ids == truth.categories[7].id]
        np.testing.assert_allclose(np.sort(own), np.sort(scores), rtol=1e-4)


def test_the_wording_of_a_prompt_matters(drawn, tmp_path):
    """"the red thing" is one of the wordings of the category "red shape"."""
    pytest.importorskip("faster_coco_eval")
    truth, found = json.loads((drawn / "prompts" / "annotations.json").read_text()), []
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps(truth))
        words = ["--images", drawn / "prompts" / "images", "--model", "shapes", "--out", tmp_path / f"out{number}"]
        assert run("evaluate", "coco", tmp_path / f"{number}.json", *words) == 0
        found.append(lines(tmp_path / f"out{number}" / "detections.jsonl")[1:])
        for image in truth["images"]:
            image["phrases"] = [phrase + " thing" for phrase in image["phrases"]]
    assert all(a["scores"] != b["scores"] for a, b in zip(*found))


def test_the_model_card_has_the_figures_of_an_independent_evaluation():
    """AP50 by `learning.average_precision`, which shares no code with the command."""
    pytest.importorskip("faster_coco_eval")
    expected = new_words.ap50(new_words.old(SHAPES, 8))
    assert average_precision(SHAPES, "seen", 8)["AP50"] == pytest.approx(expected, abs=1e-9)


# Resuming and merging.


@settings(max_examples=3)
@given(part=st.floats(0.01, 0.999))
def test_a_killed_run_is_resumed_without_a_difference(drawn, whole, tmp_path_factory, part):
    """A kill can leave any part of the file."""
    complete, out = (whole / "detections.jsonl").read_bytes(), tmp_path_factory.mktemp("killed")
    (out / "detections.jsonl").write_bytes(complete[: int(part * len(complete))])
    assert run(*arguments(drawn, "lvis", out, "--resume")) == 0
    assert (out / "detections.jsonl").read_bytes() == complete
    assert (out / "table.json").read_bytes() == (whole / "table.json").read_bytes()


def test_a_run_that_is_killed_keeps_the_images_that_are_done(drawn, whole, tmp_path):
    words = [*map(str, arguments(drawn, "lvis", tmp_path))]
    process = subprocess.Popen([sys.executable, "-m", "minigdino", *words], stdout=subprocess.DEVNULL)
    path, end = tmp_path / "detections.jsonl", time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") > 2) and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = path.read_bytes()
    assert done.count(b"\n") > 2
    assert run(*words, "--resume") == 0
    assert path.read_bytes().startswith(done[: done.rindex(b"\n")])
    assert path.read_bytes() == (whole / "detections.jsonl").read_bytes()


@pytest.mark.parametrize(("more", "named"), [
    (["--size", "96", "128"], "size None; got size [96, 128]"),
    (["--score", "max"], "score 'mean'; got score 'max'"),
    (["--no-clip"], "clip True; got clip False"),
    (["--precision", "medium"], "precision 'highest'; got precision 'medium'"),
])  # fmt: skip
def test_another_option_is_refused_by_name(drawn, whole, capsys, more, named):
    before = (whole / "detections.jsonl").read_bytes()
    assert run(*arguments(drawn, "lvis", whole, "--resume", *more)) == 1
    assert named in printed(capsys)[1]
    assert (whole / "detections.jsonl").read_bytes() == before


def test_other_annotations_and_another_model_are_refused(drawn, whole, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text((drawn / "lvis" / "annotations.json").read_text() + " ")
    words = arguments(drawn, "lvis", whole, "--resume")
    words[2] = other
    assert run(*words) == 1
    assert "--resume needs the model and the options with which the file was begun, annotations '" in printed(capsys)[1]
    assert run("evaluate", "lvis", other, "--merge", whole / "detections.jsonl") == 1
    assert "expected detections with the annotations '" in printed(capsys)[1]
    assert merge(drawn, whole / "detections.jsonl", protocol="refcoco") == 1


def test_an_existing_run_is_not_replaced(drawn, whole, capsys):
    assert run(*arguments(drawn, "lvis", whole)) == 1
    assert "exists already. Give --resume to continue it, --overwrite to replace it" in printed(capsys)[1]


def test_a_table_of_the_user_is_not_replaced(drawn, tmp_path, capsys):
    (tmp_path / "table.json").write_text("{}")
    assert run(*arguments(drawn, "lvis", tmp_path)) == 1
    assert "not marked as written by minigdino" in printed(capsys)[1]
    assert (tmp_path / "table.json").read_text() == "{}"
    assert not (tmp_path / "detections.jsonl").exists()
    assert run(*arguments(drawn, "lvis", tmp_path, "--overwrite", "--limit", 1)) == 0
    assert is_table(tmp_path / "table.json")


def test_shards_give_the_table_of_the_whole(drawn, whole, tmp_path, capsys):
    files = []
    for number in (1, 2):
        assert run(*arguments(drawn, "lvis", tmp_path, "--shard", f"{number}/2")) == 0
        files.append(tmp_path / f"detections-{number}-of-2.jsonl")
    assert not (tmp_path / "table.json").exists()
    assert sum(len(lines(file)) - 1 for file in files) == PICTURES
    for order in (files, files[::-1]):
        words = ["evaluate", "lvis", drawn / "lvis" / "annotations.json", "--merge", *order]
        assert run(*words, "--out", tmp_path) == 0
        merged, one = (json.loads((folder / "table.json").read_text()) for folder in (tmp_path, whole))
        assert merged == one
    capsys.readouterr()
    assert merge(drawn, files[0]) == 1
    left = [line["image"] for line in lines(files[1])[1:]]
    err = printed(capsys)[1]
    assert f"{len(left)} image" in err and "without a line" in err
    assert all(f"{number} (images/" in err for number in left)
    assert merge(drawn, *files, whole / "detections.jsonl") == 0
    assert f"{PICTURES} images in several files, of which the first counts: 1 (images/000001.png)" in printed(capsys)[1]


def test_detections_count_more_than_an_error_in_another_file(drawn, whole, tmp_path, capsys):
    first, failed = tmp_path / "first.jsonl", '{"image": "2", "file_name": "images/000002.png", "error": "gone"}\n'
    first.write_text((whole / "detections.jsonl").read_text().splitlines(keepends=True)[0] + failed)
    for files in ([first, whole / "detections.jsonl"], [whole / "detections.jsonl", first]):
        assert merge(drawn, *files) == 0
        assert printed(capsys)[0][-1] == f"{PICTURES} images"


def test_a_shard_without_an_image_has_a_file_all_the_same(drawn, tmp_path, capsys):
    words = arguments(drawn, "lvis", tmp_path, "--shard", "9/99")
    assert run(*words) == 0
    assert len(lines(tmp_path / "detections-9-of-99.jsonl")) == 1
    assert merge(drawn, tmp_path / "detections-9-of-99.jsonl") == 1
    assert "none of the 5 has any" in printed(capsys)[1]


def test_shards_of_different_options_are_not_merged(drawn, whole, tmp_path, capsys):
    assert run(*arguments(drawn, "lvis", tmp_path, "--shard", "1/2", "--score", "max")) == 0
    assert merge(drawn, whole / "detections.jsonl", tmp_path / "detections-1-of-2.jsonl") == 1
    assert "files that are merged must have the same model and options, score 'mean'" in printed(capsys)[1]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 50))
def test_an_image_is_in_exactly_one_shard(image, of):
    assert [image in Shard(number, of) for number in range(1, of + 1)].count(True) == 1


def test_shards_are_the_same_everywhere():
    """Machines that evaluate different shards must agree, also those with other versions."""
    assert [next(n for n in range(1, 5) if i in Shard(n, 4)) for i in range(9)] == [2, 3, 1, 2, 3, 1, 1, 3, 3]
    assert file_name(Shard(2, 16)) == "detections-2-of-16.jsonl"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"])
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(ArgumentError, match="a shard must be i/n with 1 <= i <= n"):
        Shard.parsed(text)


# Raw detections.


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1e6, 1e6, width=32)))
def test_numbers_are_short_and_exact(values):
    found = numbers(values)
    assert (np.float32(found) == values).all()
    assert all(len(repr(number)) <= 15 for number in found)


def test_memory_does_not_grow_with_the_number_of_images(whole, drawn, tmp_path):
    """A file of 50 images takes as much as one of 5, but for 200 bytes an image."""
    header, line = (whole / "detections.jsonl").read_text().splitlines()[:2]
    truth, peaks = json.loads((drawn / "lvis" / "annotations.json").read_text()), []
    for n in (5, 50):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("\n".join([header, *(line.replace('"1"', f'"{i}"', 1) for i in range(n))]) + "\n")
        (tmp_path / "truth.json").write_text(json.dumps(truth | {"images": [
            truth["images"][0] | {"id": i} for i in range(n)]} | {"annotations": truth["annotations"][:1]}))
        pictures = LVIS.read(tmp_path / "truth.json")
        tracemalloc.start()
        with RawDetections([path]) as raw:
            assert sum(1 for _ in LVIS.candidates(pictures, raw)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 50 * 20_000
    assert peaks[1] < peaks[0] + 45 * 200


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace("boxes", "b", 1), 'expected "boxes", "scores" and "category_ids" in its line'),
    (lambda text: text.replace("[[", "[[1, ", 1), 'expected "boxes", "scores" and "category_ids" in its line'),
    (lambda text: text.replace('"scores": [', '"scores": [1, ', 1), "expected boxes [K, 4], and K scores"),
    (lambda text: text.replace("category_ids\": [", "category_ids\": [99, ", 1), "expected boxes [K, 4], and K scores"),
    (lambda text: text.replace('{"image"', '"image"', 1), "is no JSON object"),
    (lambda text: text.replace('"image": "1"', '"image": "one"', 1), "has no image"),
    (lambda text: text.partition("\n")[2], "as `minigdino evaluate` writes it; got another one"),
    (lambda text: "", "got no complete line"),
])  # fmt: skip
def test_a_damaged_file_is_named(drawn, whole, tmp_path, capsys, change, message):
    path = tmp_path / "found.jsonl"
    path.write_text(change((whole / "detections.jsonl").read_text()))
    assert merge(drawn, path) == 1
    assert message in printed(capsys)[1]


def test_an_incomplete_last_line_is_no_detection(drawn, whole, tmp_path, capsys):
    path = tmp_path / "found.jsonl"
    path.write_text((whole / "detections.jsonl").read_text()[:-1])
    assert merge(drawn, path) == 1
    assert f"1 image without a line: {PICTURES} (images/" in printed(capsys)[1]


def test_a_missing_file_of_detections_is_named(drawn, tmp_path, capsys):
    for path in (tmp_path / "none.jsonl", tmp_path):
        assert merge(drawn, path) == 1
        assert f"{path}: expected a file of raw detections" in printed(capsys)[1]


# Bad input.


@pytest.fixture
def damaged(drawn, tmp_path):
    """A copy of the drawn set in LVIS's format, with the function that runs the command on it."""
    folder = tmp_path / "lvis"
    (folder / "images").mkdir(parents=True)
    for path in (drawn / "lvis").rglob("*.*"):
        (folder / path.relative_to(drawn / "lvis")).write_bytes(path.read_bytes())
    return folder, lambda *more: run(*arguments(tmp_path, "lvis", tmp_path / "out", *more))


def test_images_that_cannot_be_used_are_named_counted_and_tried_again(damaged, drawn, whole, capsys):
    folder, evaluate = damaged
    (folder / "images" / "000002.png").unlink()
    Image.new("RGB", (40, 50)).save(folder / "images" / "000004.png")
    assert evaluate() == 1
    (_, _, note), err = printed(capsys)
    assert note == f"{PICTURES - 2} images; 2 of {PICTURES} have no detections"
    assert "000002.png: " in err
    assert re.search(r"000004.png: expected an image of \d+ x \d+ pixels, as in the annotations; got 40 x 50", err)
    assert "2 images with an error instead of detections: 2 (images/000002.png), 4 (images/000004.png)" in err
    for name in ("000002.png", "000004.png"):
        (folder / "images" / name).write_bytes((drawn / "lvis" / "images" / name).read_bytes())
    assert evaluate("--resume") == 0
    (_, values, note), err = printed(capsys)
    assert note == f"{PICTURES} images"
    assert merge(drawn, whole / "detections.jsonl") == 0
    assert printed(capsys)[0][1] == values  # the detections that were there, and those of the two images


def test_a_folder_without_the_images_is_refused_at_once(damaged, capsys):
    folder, evaluate = damaged
    assert evaluate("--images", folder / "images") == 1  # one folder too deep
    assert "none of the 5 is there, such as images/000001.png. Give the folder in which" in printed(capsys)[1]
    assert evaluate("--images", folder / "annotations.json") == 1
    assert "expected the folder of the images for --images; got a file" in printed(capsys)[1]
    assert evaluate("--images", folder / "void") == 1
    assert "got no such folder" in printed(capsys)[1]
    assert not (folder.parent / "out" / "detections.jsonl").exists()


@pytest.mark.parametrize(("protocol", "file", "message"), [
    ("lvis", "coco", 'its categories have no "frequency", as those of COCO. Run: minigdino evaluate coco'),
    ("coco", "lvis", 'its categories have a "frequency", as those of LVIS. Run: minigdino evaluate lvis'),
    ("flickr", "refcoco", 'has no "tokens_positive_eval". Run: minigdino evaluate refcoco'),
    ("refcoco", "flickr", 'has a "tokens_positive_eval". Run: minigdino evaluate flickr'),
    ("refcoco", "coco", "caption"),
])  # fmt: skip
def test_the_format_of_another_protocol_is_named(drawn, tmp_path, capsys, protocol, file, message):
    words = arguments(drawn, file, tmp_path / "out")
    words[1] = protocol
    assert run(*words) == 1
    assert message in printed(capsys)[1]


@pytest.mark.parametrize(("change", "message"), [
    ({"images": []}, "expected at least one object in images"),
    ({"annotations": []}, "expected at least one object in annotations"),
    ({"annotations": [{"id": 1, "image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "99"),
    ({"categories": [{"id": 1, "name": "(only)", "frequency": "f"}]}, "expected"),
])  # fmt: skip
def test_bad_annotations_are_refused_before_a_file_is_written(damaged, capsys, change, message):
    folder, evaluate = damaged
    path = folder / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert evaluate() == 1
    assert message in printed(capsys)[1]
    assert not (folder.parent / "out" / "detections.jsonl").exists()


@pytest.mark.parametrize("words", [
    ["--images", "x"], ["--out", "x"], ["--merge", "x", "--model", "shapes"], ["--merge", "x", "--resume"],
    ["--merge", "x", "--report"], ["--images", "x", "--out", "y", "--report", "--shard", "1/2"],
])  # fmt: skip
def test_arguments_that_do_not_fit_together_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as exit:
        run("evaluate", "lvis", "annotations.json", *words)
    assert exit.value.code == 2


@pytest.mark.parametrize("words", [["--report"], ["--score", "max"], ["--no-clip"]])
def test_options_of_detection_are_refused_for_captions(words, capsys):
    with pytest.raises(SystemExit) as exit:
        run("evaluate", "refcoco", "annotations.json", "--images", "x", "--out", "y", *words)
    assert exit.value.code == 2


@pytest.mark.parametrize(("words", "message"), [
    (["--limit", 0], "--limit must be 1 or more; got 0"),
    (["--size", 0, 9], "each edge of `size` must be 1 to"),
    (["--model", "nothing/here/"], "no such file or directory"),
])  # fmt: skip
def test_an_invalid_option_leaves_no_file(drawn, tmp_path, capsys, words, message):
    assert run(*arguments(drawn, "lvis", tmp_path / "out", *words)) == 1
    assert message in printed(capsys)[1]
    assert not (tmp_path / "out" / "detections.jsonl").exists()


def test_a_missing_package_is_named_before_the_images_are_done(drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert run(*arguments(drawn, "coco", tmp_path)) == 1
    assert 'pip install "faster-coco-eval>=' in printed(capsys)[1]
    assert not (tmp_path / "detections.jsonl").exists()
    assert run(*arguments(drawn, "coco", tmp_path, "--shard", "1/1")) == 0  # another machine may make the table


def test_the_annotations_are_never_an_output(drawn, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    path = out / "table.json"
    path.write_text((drawn / "lvis" / "annotations.json").read_text())
    words = arguments(drawn, "lvis", out, "--overwrite")
    words[2] = path
    assert run(*words) == 1
    assert "expected different files for ANNOTATIONS and --out" in printed(capsys)[1]


@pytest.mark.parametrize("protocol", ["coco", "lvis"])
def test_images_without_an_object_give_a_table_and_a_report(drawn, tmp_path, capsys, protocol):
    if protocol == "coco":
        pytest.importorskip("faster_coco_eval")
    content = json.loads((drawn / protocol / "annotations.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]
    (tmp_path / "some.json").write_text(json.dumps(content))
    words = arguments(drawn, protocol, tmp_path / "out", "--limit", 1, "--report")
    words[2] = tmp_path / "some.json"
    assert run(*words) == 0
    (_, values, note), _ = printed(capsys)
    assert {*values.split()} == {"–"} and note == "1 image"
    assert (tmp_path / "out" / "report.html").stat().st_size > 5000


def test_limit_takes_the_first_images(drawn, tmp_path, capsys):
    assert run(*arguments(drawn, "lvis", tmp_path, "--limit", 2)) == 0
    assert [line["image"] for line in lines(tmp_path / "detections.jsonl")[1:]] == ["1", "2"]
    assert printed(capsys)[0][-1] == "2 images"
    assert run(*arguments(drawn, "lvis", tmp_path, "--resume")) == 0  # the limit may change
    assert printed(capsys)[0][-1] == f"{PICTURES} images"

"""Training: the loss falls, the same seed gives the same bits, and a killed run is resumed without a difference."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import minigdino
from minigdino import ArgumentError, CheckpointError, ImageError, cli
from minigdino.checkpoints import saving
from minigdino.learning import command, features, state, training
from minigdino.learning.annotations import Sample
from minigdino.learning.curve import HEIGHT, WIDTH, curve, smoothed
from minigdino.learning.features import FeatureStore, prompt_features
from minigdino.learning.optimizer import TRAINED, group
from minigdino.learning.prompts import new_tokens
from minigdino.learning.training import AUGMENTS, Options, evaluate, train
from minigdino.network import model as network
from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask

MODEL = tiny.model("mm-grounding-dino", encoder_layers=1, decoder_layers=2)
FAST = Options(steps=3, rate=1e-3, size=(48, 64))
COLOURS = {"red star": "#e02020", "blue hat": "#2030e0"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two images with a rectangle of each colour, and one without boxes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for number in range(3):
        picture, boxes = Image.fromarray(tiny.photo(60, 80, number)), []
        for place, colour in enumerate(COLOURS.values() if number < 2 else ()):
            left, top = 5 + 38 * place, int(rng.integers(5, 20))
            boxes.append([left, top, left + 30, top + 32])
            ImageDraw.Draw(picture).rectangle([left, top, left + 29, top + 31], colour)
        path = folder / f"{number}.png"
        picture.save(path)
        found.append(Sample(str(path), np.float32(boxes).reshape(-1, 4), tuple(COLOURS)[: len(boxes)]))
    return found


@pytest.fixture(scope="module")
def whole_run(samples, tmp_path_factory):
    """The folder of an uninterrupted run, and its steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, list(train(MODEL, samples, folder, FAST, validation=samples))


def weights(folder):
    return minigdino.load(folder).tensors


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# What is learned.


def test_the_loss_of_an_image_falls_and_the_written_model_has_it(samples, tmp_path):
    sample, options = samples[0], Options(steps=30, rate=1e-3, size=(48, 64), augment="none", phrases=2)
    steps = list(train(MODEL, [sample], tmp_path / "run", options, save_every=50))
    assert [step.number for step in steps] == list(range(1, 31))
    assert np.mean([step.loss for step in steps[-5:]]) < steps[0].loss / 2
    model = minigdino.load(tmp_path / "run")
    arguments = sample.path, list(sample.labels), sample.boxes, sample.labels
    before, after = (m.loss(*arguments, size=options.size) for m in (MODEL, model))
    assert after.total < before.total / 2
    assert after.terms["loss_giou"] < before.terms["loss_giou"] / 2
    assert sorted(os.listdir(tmp_path / "run" / "training")) == ["settings.json", "state.safetensors"]


def test_the_first_loss_is_that_of_the_model(samples, tmp_path):
    """With auxiliary losses, which a run always has."""
    options = dataclasses.replace(FAST, augment="none", steps=1, phrases=2)
    (step,) = train(MODEL, samples[:1], tmp_path / "run", options)
    config = dataclasses.replace(MODEL.config, auxiliary_loss=True)
    model = minigdino.Model(MODEL.tensors, config, tokenizer=MODEL.tokenizer, settings=MODEL.settings)
    losses = {model.loss(samples[0].path, list(phrases), samples[0].boxes, samples[0].labels, size=FAST.size).total
              for phrases in itertools.permutations(COLOURS)}
    assert any(step.loss == pytest.approx(loss, rel=1e-5) for loss in losses)


def test_an_object_with_several_labels_is_one_target(samples, tmp_path):
    """It has a query for all its labels; a box with another label is another object."""
    sample = dataclasses.replace(samples[0], boxes=samples[0].boxes[[0, 1, 0]], labels=("red star", "blue hat", "star"))
    found, compute = [], training.total_loss

    def total_loss(*args):
        found.append(args[5])
        return compute(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "total_loss", total_loss)
        list(train(MODEL, [sample], tmp_path / "run", dataclasses.replace(FAST, steps=1, augment="none")))
    (targets,) = found
    size = np.array([80, 60])
    centres = [((box[:2] + box[2:]) / 2 / size).tolist() for box in samples[0].boxes]
    np.testing.assert_allclose(targets.boxes[:, :2], centres, rtol=1e-6)
    assert targets.tokens.sum(axis=1).tolist() == [3, 2]  # "red star" and "star", "blue hat"
    assert not (targets.tokens[0] & targets.tokens[1]).any()


@pytest.mark.parametrize("what", TRAINED)
def test_only_the_chosen_tensors_change(samples, tmp_path, what):
    options = dataclasses.replace(FAST, steps=1, train=what)
    for _ in train(MODEL, samples[:1], tmp_path / "run", options):
        pass
    after = weights(tmp_path / "run")
    changed = {group(name) for name in after if (after[name] != MODEL.tensors[name]).any()}
    assert changed == set(TRAINED[what])


def test_backbones_learn_at_a_tenth_of_the_rate(samples, tmp_path):
    """The first step of AdamW changes each element by about the rate."""
    options = dataclasses.replace(FAST, steps=1, train="all", warm_up=0, weight_decay=0.0)
    for _ in train(MODEL, samples[:1], tmp_path / "run", options):
        pass
    largest = {}
    for name, array in weights(tmp_path / "run").items():
        part = group(name)
        largest[part] = max(largest.get(part, 0), abs(array - MODEL.tensors[name]).max())
    for part, change in largest.items():
        assert change == pytest.approx(1e-4 if part in ("backbone", "text") else 1e-3, rel=0.05), part


def test_a_batch_is_the_mean_of_its_images(samples):
    runs = {n: training._Run(MODEL, samples, list(COLOURS), Path("unused"), dataclasses.replace(
        FAST, batch=n, augment="none", train="all")) for n in (1, 2)}
    start = state.initial({name: MODEL.tensors[name] for name in runs[1]._start})
    both = runs[2]._next(start, 1e-3)
    means, losses = [], []
    for number in (0, 1):
        loss, gradients = runs[2]._gradients(start, *runs[2]._sample(number))
        means.append(gradients)
        losses.append(loss)
    assert both.losses == (pytest.approx(np.mean(losses), rel=1e-6),)
    mean = {name: (means[0][name] + means[1][name]) / 2 for name in means[0]}
    clip = training.clip_factor(training.global_norm(mean), 0.1)
    for name, moments in both.moments.items():
        np.testing.assert_allclose(moments.mean, 0.1 * clip * mean[name], rtol=1e-3, atol=1e-9)


def test_an_epoch_takes_each_image_once(samples):
    run = training._Run(MODEL, samples, list(COLOURS), Path("unused"), dataclasses.replace(FAST, train="all"))
    paths = [run._sample(number)[0].path for number in range(30)]
    for epoch in range(10):
        assert len(set(paths[3 * epoch : 3 * epoch + 3])) == 3
    assert len({tuple(paths[3 * epoch : 3 * epoch + 3]) for epoch in range(10)}) > 1


@pytest.mark.parametrize("augment", AUGMENTS)
def test_boxes_follow_the_picture(samples, augment):
    """The rectangles are found in every variant by their colours."""
    run = training._Run(MODEL, samples, list(COLOURS), Path("unused"), dataclasses.replace(FAST, augment=augment))
    lefts = set()
    for seed in range(20):
        picture, boxes, labels, _ = run._varied(samples[0], np.random.default_rng(seed))
        lefts.add(float(boxes[0, 0]) if len(boxes) else None)
        for box, label in zip(boxes, labels):
            colour = np.array(Image.new("RGB", (1, 1), COLOURS[label]))[0, 0]
            y, x = np.nonzero((picture == colour).all(axis=-1))
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert (len(lefts) > 1) == (augment != "none")
    assert (len(lefts) > 2) == (augment == "crop")


def test_an_image_with_a_side_in_its_labels_is_not_flipped(samples):
    run = training._Run(MODEL, samples, list(COLOURS), Path("unused"), FAST)
    sample = dataclasses.replace(samples[0], labels=("the left star", "hat"))
    for seed in range(9):
        assert run._varied(sample, np.random.default_rng(seed))[1] is sample.boxes


def test_the_model_keeps_a_share_of_the_starting_weights(samples, whole_run, tmp_path):
    """A run that is done can be written again with another share; the training does not depend on it."""
    trained = dict(weights(whole_run[0]))
    shutil.copytree(whole_run[0], tmp_path / "run")
    for keep in (0.25, 1.0, 0.0):
        options = dataclasses.replace(FAST, keep=keep)
        assert list(train(MODEL, samples, tmp_path / "run", options, validation=samples, resume=True)) == []
        for name, array in weights(tmp_path / "run").items():
            expected = keep * MODEL.tensors[name] + (1 - keep) * trained[name]
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert_equal(weights(tmp_path / "run"), trained)
    other = list(train(MODEL, samples, tmp_path / "other", dataclasses.replace(FAST, keep=0.25)))
    assert [step.loss for step in other] == [step.loss for step in whole_run[1]]


# The same bits.


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(samples, whole_run, tmp_path):
    folder, steps = whole_run
    for seed in (0, 1):
        run = tmp_path / str(seed)
        again = list(train(MODEL, samples, run, dataclasses.replace(FAST, seed=seed)))
        assert ([s.loss for s in again] == [s.loss for s in steps]) == (seed == 0)
        if seed == 0:
            assert_equal(weights(run), weights(folder))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_is_resumed_gives_the_same_bits(samples, whole_run, tmp_path, stop):
    steps = train(MODEL, samples, tmp_path / "run", FAST, validation=samples)
    first = list(itertools.islice(steps, stop))
    steps.close()
    rest = list(train(MODEL, samples, tmp_path / "run", FAST, validation=samples, resume=True))
    assert [(s.number, s.loss, s.precision) for s in first + rest] == [(s.number, s.loss, s.precision)
                                                                       for s in whole_run[1]]
    assert_equal(weights(tmp_path / "run"), weights(whole_run[0]))
    assert (tmp_path / "run" / "curve.png").read_bytes() == (whole_run[0] / "curve.png").read_bytes()


def test_a_run_that_is_interrupted_has_a_curve(samples, tmp_path):
    steps = train(MODEL, samples, tmp_path / "run", FAST)
    next(steps)
    steps.close()
    with Image.open(tmp_path / "run" / "curve.png") as picture:
        assert picture.size == (WIDTH, HEIGHT)


def test_steps_since_the_last_state_are_repeated(samples, tmp_path):
    steps = train(MODEL, samples, tmp_path / "run", FAST, save_every=2)
    first = list(itertools.islice(steps, 1))
    steps.close()
    rest = list(train(MODEL, samples, tmp_path / "run", FAST, save_every=2, resume=True))
    assert [s.number for s in rest] == [1, 2, 3]
    assert rest[0].loss == first[0].loss


def test_a_finished_run_can_be_resumed_without_a_step(samples, whole_run):
    before = dict(weights(whole_run[0]))
    assert list(train(MODEL, samples, whole_run[0], FAST, validation=samples, resume=True)) == []
    assert_equal(weights(whole_run[0]), before)


KILLED = """
import sys, dataclasses
import tiny
from minigdino.learning.annotations import read
from minigdino.learning.training import train
from test_training import FAST, MODEL
for step in train(MODEL, read(sys.argv[1]), sys.argv[2], dataclasses.replace(FAST, steps=6), resume=True):
    print(step.number, flush=True)
"""


def coco(samples, folder):
    """Write samples as a COCO file, and return its path."""
    names = list(COLOURS)
    path = folder / "data.json"
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": sample.path} for i, sample in enumerate(samples)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": names.index(label), "bbox": [
            float(x) for x in (*box[:2], *(box[2:] - box[:2]))]} for i, sample in enumerate(samples)
            for box, label in zip(sample.boxes, sample.labels)]}))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_loses_only_the_step_that_ran(samples, tmp_path):
    data, options = coco(samples, tmp_path), dataclasses.replace(FAST, steps=6)
    run = tmp_path / "run"
    arguments = [sys.executable, "-c", KILLED, str(data), str(run)]
    done = 0
    for stop in (2, 4):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
            assert process.stdout is not None
            for line in process.stdout:
                done = int(line)
                if done == stop:
                    process.kill()
                    break
        assert process.returncode == -signal.SIGKILL
        start = state.initial({name: MODEL.tensors[name] for name in training.trained_names(
            MODEL.tensors, "detector")})
        assert state.read(run, start).step >= stop
        assert not (run / "model.safetensors").exists()
    for _ in train(MODEL, samples, run, options, resume=True):
        pass
    for _ in train(MODEL, samples, tmp_path / "whole", options):
        pass
    assert_equal(weights(run), weights(tmp_path / "whole"))


HOLD = """
import sys, time
from minigdino.learning.annotations import read
from minigdino.learning.training import train
from test_training import FAST, MODEL
for step in train(MODEL, read(sys.argv[1]), sys.argv[2], FAST):
    print(step.number, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not saving.fcntl, reason="no locks of folders on this system")
def test_a_second_process_does_not_continue_a_run_until_the_first_is_killed(samples, whole_run, tmp_path):
    data, run = coco(samples, tmp_path), tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(data), str(run)], stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parent,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        before = {path: path.read_bytes() for path in (run / "training").glob("*.*")}
        for resume in (True, False):
            with pytest.raises(ArgumentError, match="run: expected the folder of a run that no process continues"):
                train(MODEL, samples, run, FAST, resume=resume)
        assert {path: path.read_bytes() for path in (run / "training").glob("*.*")} == before
        process.kill()
    assert [step.number for step in train(MODEL, samples, run, FAST, resume=True)] == [2, 3]
    assert_equal(weights(run), weights(whole_run[0]))


@pytest.mark.skipif(not saving.fcntl, reason="no locks of folders on this system")
def test_a_run_holds_its_folder_from_its_first_step_to_its_last(samples, tmp_path):
    first, second = (train(MODEL, samples, tmp_path / "run", FAST, resume=True) for _ in range(2))
    next(first)
    with pytest.raises(ArgumentError, match="that no process continues"):
        next(second)
    first.close()
    assert len(list(train(MODEL, samples, tmp_path / "run", FAST, resume=True))) == 2
    assert list(train(MODEL, samples, tmp_path / "run", FAST, resume=True)) == []


def test_a_file_system_without_locks_is_used_without(samples, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if saving.fcntl:
        monkeypatch.setattr(saving.fcntl, "flock", refuse)
    assert len(list(train(MODEL, samples[:1], tmp_path / "run", dataclasses.replace(FAST, steps=1)))) == 1


def test_unfinished_files_of_a_killed_run_are_removed(samples, tmp_path):
    part = tmp_path / "training" / ".0123.part"
    part.parent.mkdir()
    part.write_bytes(b"half of a file")
    state.open_folder(tmp_path, {"rate": 1}, resume=False)  # the run was killed before it had settings
    assert os.listdir(part.parent) == ["settings.json"]


# Files.


def test_the_folder_of_another_run_or_with_other_files_is_refused(samples, whole_run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for folder, message in ((tmp_path, "it has other files"), (whole_run[0], "Give --resume"),
                            (tmp_path / "mine.txt", "got a file")):
        with pytest.raises(ArgumentError, match=message):
            train(MODEL, samples, folder, FAST)
    with pytest.raises(ArgumentError, match="it has other files"):
        train(MODEL, samples, tmp_path, FAST, resume=True)
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(("change", "message"), [
    ({"rate": 0.01}, r"begun, rate 0\.001 \(now 0\.01\)"), ({"seed": 5, "steps": 9}, r"steps 3 \(now 9\), seed 0"),
    ({"size": (48, 65)}, r"size \[48, 64\] \(now \[48, 65\]\)"),
])
def test_other_settings_do_not_continue_a_run(samples, whole_run, change, message):
    with pytest.raises(ArgumentError, match=message):
        train(MODEL, samples, whole_run[0], dataclasses.replace(FAST, **change), validation=samples, resume=True)


def test_other_annotations_or_another_model_do_not_continue_a_run(samples, whole_run):
    with pytest.raises(ArgumentError, match="data '"):
        train(MODEL, samples[:2], whole_run[0], FAST, validation=samples, resume=True)
    other = tiny.model("mm-grounding-dino", 1, encoder_layers=1, decoder_layers=2)
    with pytest.raises(ArgumentError, match="fingerprint '"):
        train(other, samples, whole_run[0], FAST, validation=samples, resume=True)


@given(st.binary(max_size=200))
def test_a_damaged_state_is_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    (folder / "training").mkdir()
    (folder / "training" / "state.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        state.read(folder, state.initial({"a.b": np.zeros(3, np.float32)}))


@given(st.lists(st.sampled_from([(), (3,), (2, 0), (2, 3)]), min_size=1, max_size=4), st.integers(0, 3))
def test_a_state_is_read_as_it_was_written(tmp_path_factory, shapes, n):
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(n)
    start = state.initial({f"a.{i}": np.asarray(rng.normal(size=s), np.float32) for i, s in enumerate(shapes)})
    written = dataclasses.replace(start, losses=tuple(rng.normal(size=n).tolist()), precisions=((n, 0.5),) * n)
    state.write(folder, written)
    found = state.read(folder, start)
    assert (found.step, found.losses, found.precisions) == (n, written.losses, written.precisions)
    assert_equal(found.tensors, start.tensors)
    with pytest.raises(CheckpointError, match="of a run that trains 1 tensors"):
        state.read(folder, state.initial({"b": np.zeros(7, np.float32)}))


# Features of a frozen backbone.


def maps_of(pixels):
    return pixels[:, ::2, ::2].transpose(1, 2, 0).copy(), pixels[:1, :1, :1] * 2


def test_features_are_computed_once_for_each_image(tmp_path):
    calls, store = [], FeatureStore(tmp_path, 2)
    images = [tiny.pixels(8, 8, seed) for seed in range(3)]
    for pixels in images + images[::-1]:
        found = store.get(pixels, lambda x: calls.append(1) or maps_of(x))
        for array, expected in zip(found, maps_of(pixels)):
            assert type(array) is np.ndarray
            np.testing.assert_array_equal(array, expected)
    assert len(calls) == 3
    again = FeatureStore(tmp_path, 2).get(images[0], None)  # also in the next process
    np.testing.assert_array_equal(again[1], maps_of(images[0])[1])


def test_a_changed_image_has_other_features_and_damaged_files_are_written_again(tmp_path):
    store, pixels = FeatureStore(tmp_path, 2), tiny.pixels(8, 8)
    store.get(pixels, maps_of)
    changed = pixels.copy()
    changed[0, 0, 0] += 1
    np.testing.assert_array_equal(store.get(changed, maps_of)[1], maps_of(changed)[1])
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(store.get(pixels, maps_of)[0], maps_of(pixels)[0])
    np.testing.assert_array_equal(store.get(pixels, None)[0], maps_of(pixels)[0])


def test_a_full_store_computes_features_each_time(tmp_path):
    store = FeatureStore(tmp_path, 2, max_bytes=500)  # each image needs 49 floats and two headers of 128 bytes
    for seed in (0, 1, 1):
        pixels = tiny.pixels(8, 8, seed)
        np.testing.assert_array_equal(store.get(pixels, maps_of)[1], maps_of(pixels)[1])
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 500


def test_a_run_computes_the_features_of_two_variants_of_each_image(samples, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "swin", lambda *args, **kw: calls.append(1) or SWIN(*args, **kw))
    for _ in train(MODEL, samples[:1], tmp_path / "run", dataclasses.replace(FAST, steps=6), save_every=9):
        pass
    assert len(calls) == 2
    assert not (tmp_path / "run" / "training" / "features").exists()


SWIN = training.swin


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
@given(ids=st.lists(st.sampled_from([200, 201, 202, 1012, 1029]), max_size=40))
def test_features_of_a_prompt_are_those_of_its_phrases(family, ids):
    model, ids = tiny.model(family), np.array([101, *ids, 102])
    mask, positions = phrase_mask(ids, PUBLISHED_DELIMITERS)

    def features_of(ids, mask, positions):
        return training.bert(ids, mask, positions, **model.weights["text_backbone"], config=model.config.text_config)

    whole, lengths = features_of(ids, mask, positions), []

    def compute(part):
        lengths.append(len(part))
        return features_of(part, np.ones((len(part), len(part)), bool), np.arange(len(part)))

    np.testing.assert_allclose(prompt_features(ids, PUBLISHED_DELIMITERS, compute), whole, rtol=0,
                               atol=3e-6 * max(abs(whole).max(), 1))
    assert lengths == [mask[i].sum() for i in range(len(ids)) if positions[i] == 0]


def bert_calls(monkeypatch):
    """Lists of the token ids of all phrases, and of all prompts, of which BERT is computed from now on."""
    of_phrases, of_prompts = [], []
    for module, calls in ((training, of_phrases), (network, of_prompts)):
        monkeypatch.setattr(module, "bert", lambda ids, *args, real=module.bert, calls=calls, **options: (
            calls.append(tuple(map(int, ids))) or real(ids, *args, **options)))
    return of_phrases, of_prompts


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_run_with_a_frozen_text_backbone_computes_each_phrase_once(samples, tmp_path, monkeypatch, augment):
    of_phrases, of_prompts = bert_calls(monkeypatch)
    list(train(MODEL, samples, tmp_path / "run", dataclasses.replace(FAST, steps=6, augment=augment), save_every=9))
    assert not of_prompts
    labels = {label for sample in samples for label in sample.labels}
    expected = {(MODEL.tokenizer.cls,), (MODEL.tokenizer.sep,)}
    expected |= {(*MODEL.tokenizer.tokens(label), MODEL.tokenizer.dot) for label in labels}
    assert sorted(of_phrases) == sorted(expected)


@pytest.mark.parametrize("remember", [(), ("a cat",), ("a cat", *COLOURS)])
def test_bert_runs_in_each_step_where_it_or_a_word_is_trained(samples, tmp_path, monkeypatch, remember):
    options = dataclasses.replace(FAST, train="detector" if remember else "all", phrases=99, remember=remember)
    new = set(new_tokens([label for sample in samples for label in sample.labels], remember, MODEL.tokenizer))
    of_phrases, of_prompts = bert_calls(monkeypatch)
    list(train(MODEL, samples, tmp_path / "run", options))
    assert not new & {i for ids in of_phrases for i in ids}  # whose features change
    assert len(of_prompts) == (options.steps if new or not remember else 0)
    assert bool(of_phrases) == bool(remember)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_steps_with_kept_features_of_phrases_are_those_with_bert(samples, tmp_path, monkeypatch, family):
    model = tiny.model(family, encoder_layers=1, decoder_layers=2)
    kept = [step.loss for step in train(model, samples, tmp_path / "kept", FAST)]
    monkeypatch.setattr(training._Run, "_words", lambda run, ids: None)
    assert kept == pytest.approx([step.loss for step in train(model, samples, tmp_path / "bert", FAST)], rel=1e-4)


# What stops a run.


@pytest.mark.parametrize("part", ["loss", "gradients"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights(samples, tmp_path, monkeypatch, part):
    compute = training.value_and_gradients
    calls = []

    def broken(function, parameters, **options):
        value, gradients = compute(function, parameters, **options)
        calls.append(1)
        if len(calls) == 3:
            if part == "loss":
                return np.float32(np.nan), gradients
            gradients["model.level_embed"] = gradients["model.level_embed"] * np.float32(np.inf)
        return value, gradients

    monkeypatch.setattr(training, "value_and_gradients", broken)
    steps, run = train(MODEL, samples, tmp_path / "run", FAST, save_every=10), []
    with pytest.raises(ArgumentError, match=r"\.png: .* in step 3, (it is nan|its gradients)") as caught:
        run.extend(steps)
    named = training._Run(MODEL, samples, list(COLOURS), tmp_path, FAST)._sample(2)[0]
    assert str(caught.value).startswith(named.path)
    assert (tmp_path / "run" / "curve.png").exists()
    after = weights(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in after.values())
    monkeypatch.setattr(training, "value_and_gradients", compute)
    assert [s.number for s in train(MODEL, samples, tmp_path / "run", FAST, resume=True)] == [3]


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 0}, "steps must be an int of 1 or more; got 0"), ({"batch": True}, "batch must be an int"),
    ({"rate": float("nan")}, "rate must be a number from 0 to 1; got nan"), ({"rate": "1"}, "rate must be"),
    ({"train": "head"}, "train must be one of heads, decoder, detector, all; got 'head'"), ({"seed": -1}, "seed must"),
    ({"augment": []}, "augment must be one of"), ({"warm_up": -1}, "warm_up must be an int of 0 or more"),
    ({"keep": 1.5}, "keep must be a number from 0 to 1; got 1.5"), ({"phrases": 0}, "phrases must"),
    ({"weight_decay": 2}, "weight_decay must be a number from 0 to 1"),
])
def test_invalid_options_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        Options(**options)


@pytest.mark.parametrize(("change", "message"), [
    ({"boxes": np.float32([[5, 5, 5, 20]]), "labels": ("hat",)}, r"an area inside the image of 80 x 60; boxes\[0\] is"),
    ({"boxes": [[90, 5, 99, 20]], "labels": ("hat",)}, "an area inside the image of 80 x 60"),
    ({"boxes": np.full((1, 4), np.nan), "labels": ("hat",)}, "of finite numbers"),
    ({"boxes": np.float32([5, 5, 9, 20]), "labels": ("hat",)}, r"an array \[N, 4\] .*; got float32 \[4\]"),
    ({"boxes": np.float32([[5, 5, 9, 20]]), "labels": ("hat", "cat")}, "one entry for each box; got 2 for 1 box"),
    ({"boxes": np.float32([[5, 5, 9, 20]]), "labels": "a"}, "labels must be a list"),
    ({"boxes": np.float32([[5, 5, 9, 20]]), "labels": (3,)}, "expected a phrase for each box; got 3"),
    ({"labels": ("a [SEP] b", "hat")}, "must not contain special tokens"),
    ({"labels": ("hat " * 300, "hat")}, "256 tokens"), ({"path": "missing.png"}, "no such file"),
])
def test_a_bad_sample_is_named_before_the_training_and_so_is_one_of_the_validation(samples, tmp_path, change, message):
    bad = dataclasses.replace(samples[0], **change)
    for annotated, validation in (([samples[1], bad], ()), (samples, [samples[1], bad])):
        with pytest.raises(minigdino.Error, match=message) as caught:
            train(MODEL, annotated, tmp_path / "run", dataclasses.replace(FAST, augment="crop"), validation=validation)
        assert str(caught.value).startswith(f"{bad.path}: ")
    assert os.listdir(tmp_path) == []


def test_samples_from_python_are_those_of_a_file(samples, tmp_path):
    """Boxes are clipped to the image, and any numbers and sequences are allowed."""
    whole = [dataclasses.replace(samples[0], boxes=np.float32([[0, 5, 80, 20], [3, 4, 30, 40]]))]
    rough = [dataclasses.replace(whole[0], boxes=[[-20, 5, 99, 20], [3, 4, 30, 40]], labels=list(samples[0].labels))]
    options = dataclasses.replace(FAST, steps=1)
    losses = [[step.loss for step in train(MODEL, given, tmp_path / str(i), options, validation=given)]
              for i, given in enumerate((whole, rough))]
    assert losses[0] == losses[1]


def test_labels_of_the_validation_may_need_several_prompts(samples, tmp_path):
    """The labels of a training image are one prompt."""
    labels = tuple("hat " * 100 + word for word in ("cat", "man", "dog"))
    boxes = np.float32([[5, 5, 30, 20], [5, 5, 30, 21], [5, 5, 30, 22]])
    long = dataclasses.replace(samples[0], boxes=boxes, labels=labels)
    with pytest.raises(ArgumentError, match="at most 256 tokens together"):
        train(MODEL, [long], tmp_path / "run", FAST)
    (step,) = train(MODEL, samples, tmp_path / "run", dataclasses.replace(FAST, steps=1), validation=[long])
    assert 0 <= step.precision <= 1


def test_a_run_is_resumed_with_another_validation(samples, whole_run, tmp_path):
    steps = train(MODEL, samples, tmp_path / "run", FAST, validation=samples)
    first = next(steps)
    steps.close()
    rest = list(train(MODEL, samples, tmp_path / "run", FAST, validation=samples[1:], resume=True))
    assert [step.loss for step in (first, *rest)] == [step.loss for step in whole_run[1]]
    assert_equal(weights(tmp_path / "run"), weights(whole_run[0]))


def test_wrong_arguments_are_errors_before_a_file_is_written(samples, tmp_path, monkeypatch):
    bare = minigdino.Model(MODEL.tensors, MODEL.config)
    hidden = "model.level_embed"  # the output of a model may hide it
    broken = minigdino.Model({**MODEL.tensors, hidden: MODEL.tensors[hidden] * np.float32(np.nan)}, MODEL.config,
                             tokenizer=MODEL.tokenizer, settings=MODEL.settings)
    empty = dataclasses.replace(samples[0], labels=("", "a"))
    for model, annotated, options, more, message in (
        (MODEL, [], FAST, {}, r"samples: expected at least one image with a box; got no image\. Add"),
        (MODEL, samples[2:], FAST, {}, "samples: .* got 1 image without a box"),
        (MODEL, samples, FAST, {"validation": samples[2:] * 2}, "validation: .* got 2 images without a box"),
        (MODEL, "x", FAST, {}, "samples: expected a list of Sample; got 'x'"),
        (MODEL, iter(samples), FAST, {}, "samples: expected a list of Sample; got .*iterator"),
        (MODEL, samples, FAST, {"validation": [3]}, r"validation: expected a list of Sample; got \[3\]"),
        (MODEL, [dataclasses.replace(samples[0], path=3)], FAST, {}, "the path of an image file in a Sample; got 3"),
        (MODEL, samples, {}, {}, "options must be an Options; got {}"),
        (MODEL, samples, dataclasses.replace(FAST, size=(0, 5)), {}, "size must be"),
        (bare, samples, FAST, {}, "needs tokenizer.json"),
        (broken, samples, FAST, {}, "weights must be finite; tensor model.level_embed holds NaN or infinity"),
        (MODEL, samples, FAST, {"save_every": 0}, "save_every must be an int of 1 or more"),
        (MODEL, samples, FAST, {"validate_every": 0.5}, "validate_every must be"),
        (MODEL, [empty], FAST, {}, r"0\.png: "),
    ):
        with pytest.raises(minigdino.Error, match=message):
            train(model, annotated, tmp_path / "run", options, **more)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ArgumentError, match="training needs the package scipy"):
        train(MODEL, samples, tmp_path / "run", FAST)
    assert os.listdir(tmp_path) == []


def test_an_image_that_is_too_small_is_named(samples, tmp_path):
    steps = train(MODEL, samples[:1], tmp_path / "run", dataclasses.replace(FAST, size=(8, 8)))
    with pytest.raises(ImageError, match=r"0\.png: an image must give at least 20 image tokens"):
        next(steps)
    settings = dataclasses.replace(MODEL.settings, size={"shortest_edge": 8, "longest_edge": 8})
    small = minigdino.Model(MODEL.tensors, MODEL.config, tokenizer=MODEL.tokenizer, settings=settings)
    with pytest.raises(ImageError, match=r"0\.png: an image must give at least 20 image tokens"):
        evaluate(small, samples[:1], [])


# Validation.


def test_long_lists_of_labels_take_several_prompts():
    names = {(i,) * (i % 5 + 1): f"name {i}" for i in range(100)}
    prompts = training._prompts(names, 40)
    assert [name for prompt in prompts for name in prompt] == list(names.values())
    lengths = {name: len(tokens) + 1 for tokens, name in names.items()}
    totals = [2 + sum(lengths[name] for name in prompt) for prompt in prompts]
    assert max(totals) <= 40
    assert all(total + lengths[after[0]] > 40 for total, after in zip(totals, prompts[1:]))


def test_evaluation_finds_what_detect_finds(samples):
    """If the boxes that the model detects are the annotated ones, AP50 is 1, in any wording of the label."""
    found = MODEL.detect(samples[0].path, ["cat", "hat"], threshold=0.0)
    best = found[:1]
    sample = Sample(samples[0].path, best.boxes, (best.labels[0].upper(),))
    result = evaluate(MODEL, [sample], ["cat", "hat", "cats"][: 2])
    assert result.by_label() == {best.labels[0]: 1.0}
    far = Sample(samples[0].path, best.boxes + 500, sample.labels)
    assert evaluate(MODEL, [far], ["cat", "hat"]).mean() == 0


# The command.


def run_command(*arguments):
    return cli.main(["train", *map(str, arguments)])


def test_the_command_trains_and_shows_the_progress(samples, tmp_path, capsys):
    MODEL.save(tmp_path / "model")
    data, out = coco(samples, tmp_path), tmp_path / "run"
    options = ["--model", tmp_path / "model", "--out", out, "--steps", 3, "--rate", 1e-3, "--size", 48, 64]
    assert run_command(data, *options, "--val", data) == 0
    first, *steps, last = capsys.readouterr().out.splitlines()
    assert first == "3 images with 4 boxes"
    assert [line.split("  ")[0] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("s/step" in line and " left" in line and "AP50 0." in line for line in steps)
    assert steps[-1].split("  ")[3] == "0:00:00 left"
    assert last == f"wrote {out}, a folder for --model"
    minigdino.load(out).detect(samples[0].path, "red star.")
    with Image.open(out / "curve.png") as picture:
        assert picture.info["Software"] == "minigdino"

    empty = coco(samples[2:], (tmp_path / "empty").mkdir() or tmp_path / "empty")
    for files in ((empty,), (data, "--val", empty)):
        assert run_command(*files, *options) == 1
        assert f"{empty}: expected at least one image with a box; got 1 image without a box" in capsys.readouterr().err
    assert run_command(data, *options, "--val", data) == 1
    assert "Give --resume" in capsys.readouterr().err
    assert run_command(data, *options, "--val", data, "--resume", "--seed", 1) == 1
    assert "seed 0 (now 1)" in capsys.readouterr().err
    assert run_command(data, *options, "--val", data, "--resume") == 0


def test_the_command_has_the_defaults_and_choices_of_the_library():
    found = cli.parser().parse_args(["train", "data.json", "--out", "run"])
    for field in dataclasses.fields(Options):
        if field.name not in ("weight_decay", "warm_up"):  # not options of the command
            assert getattr(found, field.name) == field.default
    for what, augment in itertools.product(TRAINED, AUGMENTS):
        cli.parser().parse_args(["train", "x", "--out", "y", "--train", what, "--augment", augment])


@pytest.mark.parametrize(("images", "line"), [(1, "1 image with 2 boxes"), (2, "2 images with 4 boxes")])
def test_the_command_counts_images_and_boxes(samples, tmp_path, monkeypatch, images, line):
    lines = []
    monkeypatch.setattr(command, "train", lambda *args, **options: iter(()))
    arguments = cli.parser().parse_args(["train", str(coco(samples[:images], tmp_path)), "--out", "run", "--model",
                                         "shapes"])
    command.run(arguments, lines.append)
    assert lines[0] == line


def test_lines_have_an_interval(samples, tmp_path, monkeypatch):
    lines, seconds = [], iter(range(0, 1000, 4))
    steps = [training.Step(number, 2.0 * number, 0.1, 4.0) for number in range(1, 9)]
    monkeypatch.setattr(command, "train", lambda *args, **options: iter(steps))
    arguments = cli.parser().parse_args(["train", str(coco(samples, tmp_path)), "--out", "run", "--steps", "8",
                                         "--model", "shapes"])
    command.run(arguments, lines.append, lambda: next(seconds))
    assert lines[1:-1] == ["step 1/8  loss 2.000  4.00 s/step  0:00:28 left",
                           "step 4/8  loss 6.000  4.00 s/step  0:00:16 left",
                           "step 7/8  loss 12.000  4.00 s/step  0:00:04 left",
                           "step 8/8  loss 16.000  4.00 s/step  0:00:00 left"]


# The curve.


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 9))
def test_a_running_mean_equals_its_definition(values, window):
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(smoothed(np.array(values, float), window), expected, atol=1e-6)


def test_the_curve_is_drawn_for_any_losses():
    for losses, precisions in (([], ()), ([1.0], ()), ([0.0, 0.0], ((1, float("nan")),)), ([3.0, 1, 2], ((2, 0.5),))):
        assert curve(losses, precisions).size == (WIDTH, HEIGHT)


def test_the_curve_falls_where_the_loss_falls():
    losses = [10 * 0.9**i for i in range(60)]
    pixels = np.asarray(curve(losses)).astype(int)
    dark = (abs(pixels - [0x1D, 0x4E, 0xD8]).sum(axis=2) < 30)[45:485, 110:870]  # without the labels of axes
    heights = [np.nonzero(column)[0].mean() for column in dark.T if column.any()]
    assert len(heights) > 700
    assert (np.diff(heights) >= -1).all()
    assert heights[-1] - heights[0] > 300


def test_features_have_a_limit():
    assert features.MAX_BYTES >= 100 * 18e6  # of a hundred images at 800 x 1066 pixels

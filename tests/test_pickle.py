"""Models can be pickled and copied. A loaded model is small: another process maps the same file."""

import copy
import dataclasses
import multiprocessing
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny

import minigdino
from minigdino import Model

FAMILIES = ["grounding-dino", "mm-grounding-dino"]
FIELDS = ("logits", "boxes", "text", "vision")


def equal(a: Model, b: Model) -> bool:
    """Return whether two models have the same configuration and the same output, to the bit."""
    first, second = (model.forward(tiny.pixels(), tiny.IDS) for model in (a, b))
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in FIELDS) and (
        (a.config, a.settings, a.device, str(a.source)) == (b.config, b.settings, b.device, str(b.source))
    )


def random(family="grounding-dino"):
    return Model.random(tiny.config(family), tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)


@pytest.fixture
def saved(tmp_path):
    random().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_tensors_is_pickled_with_them(family):
    model = random(family)
    again = pickle.loads(pickle.dumps(model))
    assert equal(again, model)
    assert np.array_equal(again.tokenize("a cat").ids, model.tokenize("a cat").ids)
    assert again.tensors.keys() == model.tensors.keys()
    assert equal(pickle.loads(pickle.dumps(Model(model.tensors, model.config))), Model(model.tensors, model.config))


def test_the_layout_of_tensors_does_not_change_the_output():
    """A pickle does not keep every layout, and products of other layouts differ in the last bits."""
    model = random()
    reversed_twice = {
        name: np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array
        for name, array in model.tensors.items()
    }
    for tensors in (reversed_twice, {name: np.asarray(array, order="F") for name, array in model.tensors.items()}):
        other = Model(tensors, model.config, settings=model.settings, source="random")
        assert equal(other, model)
        assert equal(pickle.loads(pickle.dumps(other)), model)


def test_a_loaded_model_is_pickled_as_its_path(saved):
    for source in (saved, str(saved), saved / "model.safetensors"):
        model = minigdino.load(source)
        model.detect(tiny.photo(), "a cat")  # fills the caches
        data = pickle.dumps(model)
        assert len(data) < 1000
        assert equal(pickle.loads(data), model)
    assert all(file.path == str(saved / "model.safetensors") for file in pickle.loads(data)._files)
    in_memory = pickle.loads(pickle.dumps(minigdino.load(saved, mmap=False)))
    assert not in_memory._files


def test_attributes_assigned_to_a_loaded_model_are_pickled(saved):
    settings = dataclasses.replace(tiny.SETTINGS, size=(("longest_edge", 64), ("shortest_edge", 48)))
    config = dataclasses.replace(tiny.config(), positional_embedding_temperature=33)
    model = minigdino.load(saved)
    model.settings = settings
    again = pickle.loads(pickle.dumps(model))
    assert again.settings == settings
    assert again._files  # the weights are still mapped
    again.tokenizer, again.config = None, config
    third = pickle.loads(pickle.dumps(copy.copy(again)))
    assert (third.settings, third.tokenizer, third.config) == (settings, None, config)
    assert equal(third, again)
    assert len(pickle.dumps(third)) < 5000


def test_a_source_assigned_to_a_loaded_model_is_pickled(saved):
    model = minigdino.load(saved)
    model.source = "renamed"
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model))))
    assert again.source == "renamed"
    assert again._files


def test_a_relative_path_is_pickled_as_an_absolute_one(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    models = [minigdino.load(path) for path in ("model", Path("model/model.safetensors"), "./model/..//model")]
    monkeypatch.chdir(saved)
    models += [minigdino.load("."), minigdino.load("model.safetensors")]
    data = [pickle.dumps(model) for model in models]
    monkeypatch.chdir("/")
    for model, one in zip(models, data):
        assert equal(pickle.loads(one), model)
        assert equal(pickle.loads(pickle.dumps(pickle.loads(one))), model)


def test_a_link_is_pickled_as_the_folder_it_named(saved, tmp_path):
    """A link to the newest model may name another one by the time the pickle is loaded."""
    link = tmp_path / "newest"
    link.symlink_to(saved)
    model = minigdino.load(link)
    data = pickle.dumps(model)
    link.unlink()
    assert equal(pickle.loads(data), model)


def test_the_embedded_model_is_pickled_by_name(monkeypatch, tmp_path):
    data = pickle.dumps(minigdino.load("shapes"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert len(data) < 200
    assert str(Path(minigdino.__file__).parent).encode() not in data
    assert pickle.loads(data).config.model_type == "mm-grounding-dino"


def test_a_vanished_source_is_named(saved):
    data = pickle.dumps(minigdino.load(saved))
    (saved / "model.safetensors").unlink()
    with pytest.raises(minigdino.CheckpointError, match="expected model.safetensors"):
        pickle.loads(data)
    shutil.rmtree(saved)
    with pytest.raises(minigdino.CheckpointError, match="model: no such file or directory"):
        pickle.loads(data)


def test_spawned_workers_get_the_same_bits(saved):
    loaded, own = minigdino.load(saved), random()
    photo = tiny.photo()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for model in (loaded, own):
            found, = pool.map(partial(model.detect, text="a cat", threshold=0), [photo])
            expected = model.detect(photo, "a cat", threshold=0)
            assert np.array_equal(found.boxes, expected.boxes)
            assert np.array_equal(found.scores, expected.scores)
        shutil.rmtree(saved)
        with pytest.raises(minigdino.CheckpointError, match="no such file or directory"):
            pool.apply(_load_pickle, (pickle.dumps(loaded),))


def _load_pickle(data):
    pickle.loads(data)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_share_weights_and_have_their_own_caches(saved, duplicate):
    for model in (random(), minigdino.load(saved)):
        model.detect(tiny.photo(), "a cat")
        new = duplicate(model)
        assert new is not model
        assert type(new) is Model
        assert new.tensors is model.tensors
        assert new.weights is model.weights
        assert len(new._image_cache._results) == 0
        assert new._image_cache is not model._image_cache
        assert equal(new, model)
        assert equal(pickle.loads(pickle.dumps(new)), model)
        assert equal(duplicate([model])[0], model)


def test_outputs_compare_by_identity():
    """Arrays have no single truth value."""
    a, b = (random().forward(tiny.pixels(), tiny.IDS) for _ in range(2))
    assert a == a
    assert a != b
    assert len({a, b}) == 2
    assert np.array_equal(pickle.loads(pickle.dumps(a)).logits, a.logits)

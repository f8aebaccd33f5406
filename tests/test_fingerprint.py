"""The fingerprint of a model: equal for equal models wherever they are, another one after any change."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import tiny
from hypothesis import given
from hypothesis import strategies as st

import minigdino
from minigdino.checkpoints.config import LOSS_FIELDS
from minigdino.checkpoints.fingerprint import fingerprint

MODEL = tiny.model()
SETTINGS = MODEL.settings.to_dict()
WANT = fingerprint(MODEL.tensors, MODEL.config, SETTINGS)


def of(model):
    return fingerprint(model.tensors, model.config, model.settings.to_dict())


@given(st.sampled_from(sorted(MODEL.tensors)), st.data())
def test_a_change_of_one_value_changes_it(name, data):
    array = MODEL.tensors[name].copy()
    index = data.draw(st.tuples(*(st.integers(0, n - 1) for n in array.shape)))
    array[index] = np.nextafter(array[index], np.float32(np.inf))
    assert fingerprint({**MODEL.tensors, name: array}, MODEL.config, SETTINGS) != WANT


@given(st.sampled_from(sorted(MODEL.tensors)), st.data())
def test_the_order_of_the_values_counts(name, data):
    array = MODEL.tensors[name].copy()
    first, second = (data.draw(st.integers(0, array.size - 1)) for _ in range(2))
    flat = array.reshape(-1)
    flat[[first, second]] = flat[[second, first]]
    same = fingerprint({**MODEL.tensors, name: array}, MODEL.config, SETTINGS) == WANT
    assert same == np.array_equal(array, MODEL.tensors[name])


def test_it_depends_on_values_only():
    reordered = dict(reversed(list(MODEL.tensors.items())))
    copies = {name: np.array(array, order="F") for name, array in reordered.items()}
    unused = {**copies, "model.text_backbone.pooler.dense.bias": np.ones(3, np.float32)}
    for tensors in (reordered, copies, unused):
        assert fingerprint(tensors, MODEL.config, SETTINGS) == WANT


def test_tensors_settings_and_geometry_count():
    first, second = (f"model.decoder.layers.{i}.fc1.weight" for i in range(2))
    swapped = {**MODEL.tensors, first: MODEL.tensors[second], second: MODEL.tensors[first]}
    others = {of(tiny.model(seed=1)), of(tiny.model("mm-grounding-dino")), fingerprint(swapped, MODEL.config, SETTINGS),
              fingerprint(MODEL.tensors, dataclasses.replace(MODEL.config, layer_norm_eps=1e-3), SETTINGS),
              fingerprint(MODEL.tensors, MODEL.config, {**SETTINGS, "do_resize": False})}
    assert len(others | {WANT}) == 6


def test_fields_for_losses_do_not_count():
    """Detections do not depend on them, and results of earlier versions keep their fingerprint."""
    changed = dict.fromkeys(LOSS_FIELDS, 1.0) | {"auxiliary_loss": True}
    assert fingerprint(MODEL.tensors, dataclasses.replace(MODEL.config, **changed), SETTINGS) == WANT
    assert of(minigdino.load("shapes")) == "afa593726697960a"


PRINT = """
import sys, minigdino
from minigdino.checkpoints.config import LOSS_FIELDS
from minigdino.checkpoints.fingerprint import fingerprint
model = minigdino.load(sys.argv[1])
print(fingerprint(model.tensors, model.config, model.settings.to_dict()))
"""


def test_a_moved_checkpoint_keeps_it_in_every_process(home, tmp_path):
    shutil.copytree(home / "model", tmp_path / "moved")
    assert of(minigdino.load(home / "model")) == of(minigdino.load(tmp_path / "moved", mmap=False)) == WANT
    done = subprocess.run([sys.executable, "-c", PRINT, tmp_path / "moved"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == WANT

"""Every step of a pass against values that transformers 5.23.0 computed (tests/golden/make.py); no PyTorch needed."""

from pathlib import Path

import numpy as np
import pytest
import tiny

import minigdino

GOLDEN = Path(__file__).parent / "golden"
IDS = [101, 200, 203, 1012, 206, 207, 205, 1029, 213, 102]  # two phrases, and a word that no dot closes
CASES = {
    "grounding_dino": {"family": "grounding-dino", "geometry": {}, "size": (75, 91), "ids": IDS},
    "mm_grounding_dino_five_levels": {
        "family": "mm-grounding-dino",
        "size": (101, 66),
        "ids": IDS,
        "geometry": {"stages": (1, 2, 3, 4), "levels": 5},
    },
}
TOLERANCE = 2e-5  # of a step's largest value: float32 sums taken in another order


def pixels_of(case):
    """Pixels that need no random stream: waves of three frequencies."""
    H, W = case["size"]
    y, x = np.mgrid[:H, :W].astype(np.float64)
    return np.stack([np.sin(0.3 * y + 0.1 * x * c) + np.cos(0.07 * x * y / 9 - c) for c in (1, 2, 3)]).astype(
        np.float32
    )


def sample(array):
    """At most 64 values, evenly spread."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(64, flat.size)).astype(int)]


def weights_digest(model):
    """Fails when NumPy's random stream is no longer the one the files were made with."""
    return np.array([float(np.asarray(v, np.float64).sum()) for v in list(model.tensors.values())[::37]])


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_transformers(name, kernels):
    case, golden = CASES[name], dict(np.load(GOLDEN / f"{name}.npz"))
    model = tiny.model(case["family"], **case["geometry"])
    np.testing.assert_allclose(
        weights_digest(model),
        golden.pop("weights"),
        rtol=1e-6,
        err_msg="the random stream has changed: run tests/golden/make.py",
    )
    with minigdino.use(kernels), minigdino.trace("forward.0/*") as seen:
        model.forward(pixels_of(case), case["ids"], selected=golden.pop("selected"))
    assert len(golden) > 20
    for path, want in golden.items():  # in the order of the pass, so the first message names the step that broke
        got = sample(seen[path])
        np.testing.assert_allclose(
            got, want, rtol=0, atol=TOLERANCE * abs(want).max(), err_msg=f"first divergence: {path}"
        )

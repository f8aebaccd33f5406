"""Every step of a forward pass against results of transformers 5.23.0 (tests/golden/make.py). Needs no PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import tiny

import minigdino

GOLDEN = Path(__file__).parent / "golden"
IDS = [101, 200, 203, 1012, 206, 207, 205, 1029, 213, 102]  # two phrases, and a word without a delimiter at its end
CASES = {
    "grounding_dino": {"family": "grounding-dino", "geometry": {}, "size": (75, 91), "ids": IDS},
    "mm_grounding_dino_five_levels": {
        "family": "mm-grounding-dino",
        "size": (101, 66),
        "ids": IDS,
        "geometry": {"stages": (1, 2, 3, 4), "levels": 5},
    },
}
TOLERANCE = 2e-5  # relative to a step's largest value: float32 sums run in another order


def pixels_of(case):
    """Pixels that do not depend on a random generator: sums of waves -> [3, H, W]"""
    H, W = case["size"]
    y, x = np.mgrid[:H, :W].astype(np.float64)
    return np.stack([np.sin(0.3 * y + 0.1 * x * c) + np.cos(0.07 * x * y / 9 - c) for c in (1, 2, 3)]).astype(
        np.float32
    )


def sample(array):
    """At most 64 evenly spaced elements of an array."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(64, flat.size)).astype(int)]


def weights_digest(model):
    """Sums of some tensors. They change if NumPy's random generator does; the golden files are then out of date."""
    return np.array([float(np.asarray(v, np.float64).sum()) for v in list(model.tensors.values())[::37]])


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_every_step_agrees_with_transformers(name, kernels):
    case, golden = CASES[name], dict(np.load(GOLDEN / f"{name}.npz"))
    model = tiny.model(case["family"], **case["geometry"])
    np.testing.assert_allclose(
        weights_digest(model),
        golden.pop("weights"),
        rtol=1e-6,
        err_msg="NumPy's random generator has changed: run tests/golden/make.py",
    )
    with minigdino.use(kernels), minigdino.trace("forward.0/*") as trace:
        model.forward(pixels_of(case), case["ids"], selected=golden.pop("selected"))
    assert len(golden) > 20
    for path, expected in golden.items():  # in the order of the forward pass: the first error names the faulty step
        np.testing.assert_allclose(
            sample(trace[path]),
            expected,
            rtol=0,
            atol=TOLERANCE * abs(expected).max(),
            err_msg=f"first divergence: {path}",
        )

"""The whole model on a GPU, compared with the CPU. `pytest -m gpu` runs these tests and those of `test_kernels.py`.

They were written without a GPU and have not been run on one.
"""

import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from test_fake_gpu import GEOMETRIES, fields

import minigdino
from minigdino import Config

pytestmark = pytest.mark.gpu
LOGITS, BOXES = 1e-3, 1e-4  # tolerances between two devices, for the same selected queries


def forward_on_both(on_cpu, on_gpu, pixels, ids):
    """Outputs of a forward pass on each device; the GPU decodes the queries that the CPU selected."""
    expected = on_cpu.forward(pixels, ids, details=True)
    return expected, on_gpu.forward(pixels, ids, details=True, selected=expected.selected)


@pytest.mark.parametrize("kernels", minigdino.runtime.kernels.MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_stage_of_a_small_model_agrees(geometry, kernels):
    on_cpu = tiny.model(**geometry)
    on_gpu = minigdino.Model.random(on_cpu.config, device="cuda")
    with minigdino.use(kernels):
        expected, actual = forward_on_both(on_cpu, on_gpu, tiny.pixels(61, 83), tiny.IDS)
    for (name, a), (_, e) in zip(fields(actual), fields(expected), strict=True):
        scale = abs(e[np.isfinite(e)]).max()
        np.testing.assert_allclose(a.get(), e, rtol=0, atol=1e-4 * scale, err_msg=f"first divergence: {name}")


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_tiny_geometry_at_full_size_agrees(family):
    config = Config(family)
    on_cpu, on_gpu = (minigdino.Model.random(config, device=device) for device in ("cpu", "cuda"))
    pixels = np.random.default_rng(0).standard_normal((3, 800, 1066), np.float32)
    expected, actual = forward_on_both(on_cpu, on_gpu, pixels, [101, 2000, 1012, 3000, 3001, 1012, 102])
    np.testing.assert_allclose(actual.logits.get(), expected.logits, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(actual.boxes.get(), expected.boxes, rtol=0, atol=BOXES)


def test_detections_of_the_embedded_checkpoint_agree():
    expected, actual = (
        minigdino.load("shapes", device=device).detect("docs/images/scene.jpg", "star. heart. ring.", threshold=0.4)
        for device in ("cpu", "cuda")
    )
    assert actual.labels == expected.labels
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=0.1)  # pixels
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-3)


def test_several_threads_can_share_a_model():
    model = minigdino.Model.random(tiny.config(), device="cuda")
    expected = model.forward(tiny.pixels(), tiny.IDS).logits.get()
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(model.forward(tiny.pixels(), tiny.IDS).logits.get()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for actual in results:
        np.testing.assert_array_equal(actual, expected)


def test_the_first_and_the_last_gpu_agree():
    import cupy

    if (n := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip("needs two GPUs")
    first, last = (
        minigdino.Model.random(tiny.config(), device=f"cuda:{i}").forward(tiny.pixels(), tiny.IDS) for i in (0, n - 1)
    )
    assert last.logits.device.id == n - 1
    np.testing.assert_allclose(last.logits.get(), first.logits.get(), rtol=0, atol=LOGITS)


def test_compute_sanitizer_finds_no_error():
    """NVIDIA's tool checks every memory access of a forward pass of a small model."""
    if not (tool := shutil.which("compute-sanitizer")):
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "import sys; sys.path.insert(0, 'tests')\nimport tiny, minigdino\n"
        "minigdino.Model.random(tiny.config(), device='cuda').forward(tiny.pixels(31, 44), tiny.IDS).logits.get()\n"
    )
    run = subprocess.run(
        [tool, "--error-exitcode", "9", sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]

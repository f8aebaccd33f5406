"""On a real GPU: the whole model beside NumPy. `pytest -m gpu` runs this and every op's problems in `test_kernels.py`.

None of this has run where it was written: there was no GPU.
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
LOGITS, BOXES = 1e-3, 1e-4  # what may lie between two devices, given the same selection


def same_pass(on_cpu, on_gpu, pixels, ids):
    """Both devices' outputs of a pass, the GPU's with the CPU's selection."""
    want = on_cpu.forward(pixels, ids, details=True)
    return want, on_gpu.forward(pixels, ids, details=True, selected=want.selected)


@pytest.mark.parametrize("kernels", minigdino.runtime.kernels.MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_step_of_a_small_model_is_numpys(geometry, kernels):
    on_cpu = tiny.model(**geometry)
    on_gpu = minigdino.Model.random(on_cpu.config, device="cuda")
    with minigdino.use(kernels):
        want, got = same_pass(on_cpu, on_gpu, tiny.pixels(61, 83), tiny.IDS)
    for (name, a), (_, b) in zip(fields(got), fields(want), strict=True):
        scale = abs(b[np.isfinite(b)]).max()
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=1e-4 * scale, err_msg=f"first divergence: {name}")


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_tiny_geometry_at_full_size_is_numpys(family):
    config = Config(family)
    on_cpu, on_gpu = (minigdino.Model.random(config, device=device) for device in ("cpu", "cuda"))
    pixels = np.random.default_rng(0).standard_normal((3, 800, 1066), np.float32)
    want, got = same_pass(on_cpu, on_gpu, pixels, [101, 2000, 1012, 3000, 3001, 1012, 102])
    np.testing.assert_allclose(got.logits.get(), want.logits, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(got.boxes.get(), want.boxes, rtol=0, atol=BOXES)


def test_the_embedded_checkpoint_finds_the_same_shapes():
    want, got = (
        minigdino.load("shapes", device=device).detect("docs/images/scene.jpg", "star. heart. ring.", threshold=0.4)
        for device in ("cpu", "cuda")
    )
    assert got.labels == want.labels
    np.testing.assert_allclose(got.boxes, want.boxes, atol=0.1)  # pixels
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-3)


def test_threads_share_a_model():
    model = minigdino.Model.random(tiny.config(), device="cuda")
    want = model.forward(tiny.pixels(), tiny.IDS).logits.get()
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(model.forward(tiny.pixels(), tiny.IDS).logits.get()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    for got in seen:
        np.testing.assert_array_equal(got, want)


def test_the_last_gpu_computes_as_the_first():
    import cupy

    if (n := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip("there is one GPU")
    first, last = (
        minigdino.Model.random(tiny.config(), device=f"cuda:{i}").forward(tiny.pixels(), tiny.IDS) for i in (0, n - 1)
    )
    assert last.logits.device.id == n - 1
    np.testing.assert_allclose(last.logits.get(), first.logits.get(), rtol=0, atol=LOGITS)


def test_compute_sanitizer_finds_nothing():
    """NVIDIA's own look at every access, on a pass of a small model."""
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

"""Which device: errors that say what is missing, and CuPy imported only when a GPU is asked for."""

import contextlib
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import tiny

import minigdino
from minigdino.checkpoints.weights import on_device
from minigdino.runtime import device


class CUDARuntimeError(Exception):
    pass


def fake_cupy(count, **more):
    """What device.py asks of CuPy."""
    runtime = types.SimpleNamespace(
        getDeviceCount=count, getDeviceProperties=lambda i: {"name": f"Card {i}".encode()}, **more
    )
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), __version__="14.2.0")


@pytest.fixture
def cupy(monkeypatch):
    """Pretend that CuPy is installed, or with None that it is not."""

    def install(module):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
        monkeypatch.setitem(sys.modules, "cupy", module)

    return install


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:-1", "CPU", "", None, 0, "cuda:1 "])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(minigdino.ArgumentError, match='device must be "cpu", "cuda" or "cuda:N"; got'):
        minigdino.load("shapes", device=name)


def test_without_cupy_the_error_says_how_to_install_it(cupy):
    cupy(None)
    for call in (
        lambda: minigdino.load("shapes", device="cuda"),
        lambda: minigdino.detect(tiny.photo(), "star.", model="shapes", device="cuda"),
        lambda: minigdino.Model.random(tiny.config(), device="cuda"),
    ):
        with pytest.raises(minigdino.ArgumentError) as caught:
            call()
        assert "'cuda' needs CuPy, which is not installed" in str(caught.value)
        assert 'pip install "minigdino[cuda12]", or "minigdino[cuda13]"' in str(caught.value)
    assert minigdino.info()["gpu"] == "none: CuPy is not installed"


def test_without_a_gpu_the_error_says_what_cupy_said(cupy):
    def no_gpu():
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected\nmore")

    cupy(fake_cupy(no_gpu))
    with pytest.raises(minigdino.ArgumentError, match=r"'cuda:1': CuPy is installed but finds no GPU .*NoDevice.*\)\."):
        minigdino.load("shapes", device="cuda:1")
    assert minigdino.info()["gpu"] == (
        "none: CuPy finds no GPU it can use (cudaErrorNoDevice: no CUDA-capable device is detected)"
    )


def test_a_cupy_that_cannot_be_imported_is_no_gpu(cupy, monkeypatch):
    cupy(fake_cupy(lambda: 1))
    monkeypatch.setitem(sys.modules, "cupy", None)  # import raises
    with pytest.raises(minigdino.ArgumentError, match="CuPy is installed but finds no GPU that it can use"):
        minigdino.load("shapes", device="cuda")


@pytest.mark.parametrize(("count", "there"), [(0, "none"), (1, "cuda:0"), (3, "cuda:0, cuda:1, cuda:2")])
def test_a_gpu_too_far_is_told_which_there_are(cupy, count, there):
    cupy(fake_cupy(lambda: count))
    with pytest.raises(minigdino.ArgumentError, match=rf"'cuda:7' is not here; GPUs that are: {there}\."):
        minigdino.load("shapes", device="cuda:7")


def test_a_device_is_found_by_its_number(cupy):
    cupy(fake_cupy(lambda: 2))
    assert [device.find_device(name).name for name in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    assert minigdino.info()["gpu"] == "CuPy 14.2.0, cuda:0 Card 0, cuda:1 Card 1"


def test_weights_go_to_the_gpu_that_was_asked_for(cupy):
    """The calls of CuPy that `Gpu` makes, in their order, each on the right device."""
    current = ["cuda:0"]

    class There:
        def __init__(self, shape, dtype):
            self.home, self.numbers = current[-1], np.empty(shape, dtype)

        def set(self, array):
            assert current[-1] == self.home
            self.numbers[...] = array

        def get(self):
            assert current[-1] == self.home
            return self.numbers.copy()

    @contextlib.contextmanager
    def use_device(index):
        current.append(f"cuda:{index}")
        yield
        current.pop()

    module = fake_cupy(lambda: 2)
    module.empty, module.cuda.Device = There, use_device
    cupy(module)
    gpu, array = device.find_device("cuda:1"), np.arange(6, dtype=np.float32).reshape(2, 3)
    there = gpu.send(array)
    assert there.home == gpu.name == "cuda:1"
    assert current == ["cuda:0"]
    np.testing.assert_array_equal(gpu.fetch(there), array)


def test_the_device_is_checked_before_anything_is_read():
    with pytest.raises(minigdino.ArgumentError, match="device must be"):
        minigdino.load("no/such/place", device="tpu")


def test_cupys_warnings_at_import_are_not_ours(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("import warnings; warnings.warn('no CUDA path could be detected')\nraise OSError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert minigdino.info()["gpu"] == "none: CuPy finds no GPU it can use (OSError)"


def test_cupy_is_not_imported_unless_a_gpu_is_asked_for(tmp_path):
    """A CuPy that ends the process when imported; `import` and the CPU do not touch it."""
    (tmp_path / "cupy.py").write_text("import os; os._exit(7)")
    start = "import sys; sys.path.insert(0, sys.argv[1])\nimport minigdino\n"
    on_cpu = "import numpy as np\nminigdino.detect(np.zeros((64, 64, 3), np.uint8), 'star.', model='shapes')\n"
    on_gpu = "minigdino.load('shapes', device='cuda')\n"
    env = {k: v for k, v in os.environ.items() if k != "MINIGDINO_KERNELS"}
    for code, status in ((start + on_cpu, 0), (start + on_gpu, 7)):
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, check=False)
        assert run.returncode == status, run.stderr


def test_shared_weights_are_sent_once():
    shared, own = np.ones(2), np.zeros(2)
    sent = []

    def send(array):
        sent.append(array)
        return array.copy()

    there = on_device({"heads": [{"w": shared}, {"w": shared}, {}], "norm": {"w": own}}, send)
    assert len(sent) == 2
    assert there["heads"][0]["w"] is there["heads"][1]["w"] is not shared
    assert there["heads"][2] == {}
    np.testing.assert_array_equal(there["norm"]["w"], own)

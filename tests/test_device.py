"""Devices: error messages name what is missing, and CuPy is imported only when a GPU is requested."""

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
    """The part of CuPy that device.py uses."""
    runtime = types.SimpleNamespace(
        getDeviceCount=count, getDeviceProperties=lambda i: {"name": f"Card {i}".encode()}, **more
    )
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), __version__="14.2.0")


@pytest.fixture
def cupy(monkeypatch):
    """Simulate an installed CuPy, or with None a missing one."""

    def install(module):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
        monkeypatch.setitem(sys.modules, "cupy", module)

    return install


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:-1", "CPU", "", None, 0, "cuda:1 "])
def test_an_unknown_device_is_rejected(name):
    with pytest.raises(minigdino.ArgumentError, match='device must be "cpu", "cuda" or "cuda:N"; got'):
        minigdino.load("shapes", device=name)


def test_without_cupy_the_error_explains_how_to_install_it(cupy):
    cupy(None)
    for call in (
        lambda: minigdino.load("shapes", device="cuda"),
        lambda: minigdino.detect(tiny.photo(), "star.", model="shapes", device="cuda"),
        lambda: minigdino.Model.random(tiny.config(), device="cuda"),
    ):
        with pytest.raises(minigdino.ArgumentError) as caught:
            call()
        assert "'cuda' needs CuPy, which is not installed" in str(caught.value)
        assert 'pip install "minigdino[cuda12]" or "minigdino[cuda13]"' in str(caught.value)
    assert minigdino.info()["gpu"] == "none: CuPy is not installed"


def test_without_a_gpu_the_error_quotes_cupy(cupy):
    def no_gpu():
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected\nmore")

    cupy(fake_cupy(no_gpu))
    with pytest.raises(minigdino.ArgumentError, match=r"'cuda:1' needs a GPU, but CuPy finds none .*NoDevice.*\)\."):
        minigdino.load("shapes", device="cuda:1")
    assert minigdino.info()["gpu"] == (
        "none: CuPy finds no GPU it can use (cudaErrorNoDevice: no CUDA-capable device is detected)"
    )


def test_a_failing_import_of_cupy_is_reported(cupy, monkeypatch):
    cupy(fake_cupy(lambda: 1))
    monkeypatch.setitem(sys.modules, "cupy", None)  # import raises
    with pytest.raises(minigdino.ArgumentError, match="needs a GPU, but CuPy finds none that it can use"):
        minigdino.load("shapes", device="cuda")


@pytest.mark.parametrize(("count", "available"), [(0, "none"), (1, "cuda:0"), (3, "cuda:0, cuda:1, cuda:2")])
def test_an_index_out_of_range_lists_the_available_gpus(cupy, count, available):
    cupy(fake_cupy(lambda: count))
    with pytest.raises(minigdino.ArgumentError, match=rf"'cuda:7' does not exist; available GPUs: {available}\."):
        minigdino.load("shapes", device="cuda:7")


def test_a_device_is_found_by_its_name(cupy):
    cupy(fake_cupy(lambda: 2))
    assert [device.find_device(name).name for name in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    assert minigdino.info()["gpu"] == "CuPy 14.2.0, cuda:0 Card 0, cuda:1 Card 1"


def test_arrays_are_copied_to_the_requested_gpu(cupy):
    """`Gpu` calls CuPy in the right order, with the right current device."""
    current = ["cuda:0"]

    class DeviceArray:
        def __init__(self, shape, dtype):
            self.device, self.values = current[-1], np.empty(shape, dtype)

        def set(self, array):
            assert current[-1] == self.device
            self.values[...] = array

        def get(self):
            assert current[-1] == self.device
            return self.values.copy()

    @contextlib.contextmanager
    def use_device(index):
        current.append(f"cuda:{index}")
        yield
        current.pop()

    module = fake_cupy(lambda: 2)
    module.empty, module.cuda.Device = DeviceArray, use_device
    cupy(module)
    gpu, array = device.find_device("cuda:1"), np.arange(6, dtype=np.float32).reshape(2, 3)
    copy = gpu.send(array)
    assert copy.device == gpu.name == "cuda:1"
    assert current == ["cuda:0"]
    np.testing.assert_array_equal(gpu.fetch(copy), array)


def test_the_device_is_checked_before_files_are_read():
    with pytest.raises(minigdino.ArgumentError, match="device must be"):
        minigdino.load("no/such/place", device="tpu")


def test_warnings_of_the_import_of_cupy_are_suppressed(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("import warnings; warnings.warn('no CUDA path could be detected')\nraise OSError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert minigdino.info()["gpu"] == "none: CuPy finds no GPU it can use (OSError)"


def test_cupy_is_imported_only_for_a_gpu(tmp_path):
    """The test replaces CuPy by a module that ends the process when imported."""
    (tmp_path / "cupy.py").write_text("import os; os._exit(7)")
    start = "import sys; sys.path.insert(0, sys.argv[1])\nimport minigdino\n"
    on_cpu = "import numpy as np\nminigdino.detect(np.zeros((64, 64, 3), np.uint8), 'star.', model='shapes')\n"
    on_gpu = "minigdino.load('shapes', device='cuda')\n"
    env = {k: v for k, v in os.environ.items() if k != "MINIGDINO_KERNELS"}
    for code, status in ((start + on_cpu, 0), (start + on_gpu, 7)):
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, check=False)
        assert run.returncode == status, run.stderr


def test_shared_weights_are_copied_once():
    shared, own = np.ones(2), np.zeros(2)
    sent = []

    def send(array):
        sent.append(array)
        return array.copy()

    copied = on_device({"heads": [{"w": shared}, {"w": shared}, {}], "norm": {"w": own}}, send)
    assert len(sent) == 2
    assert copied["heads"][0]["w"] is copied["heads"][1]["w"] is not shared
    assert copied["heads"][2] == {}
    np.testing.assert_array_equal(copied["norm"]["w"], own)

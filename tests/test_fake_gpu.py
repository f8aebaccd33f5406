"""The whole model on emulated CuPy arrays: results equal NumPy's, without transfers or waiting in a forward pass."""

import inspect
import re

import fake_gpu
import numpy as np
import pytest
import tiny
from fake_gpu import FUNCTIONS, METHODS, UFUNCS, Array, Gpu, Rejected
from minigdino._ext import cuda
from places import WITH_COMPILER, launching_on_host

import minigdino
from minigdino import detector

pytestmark = pytest.mark.once

GEOMETRIES = {
    "grounding dino": {"family": "grounding-dino"},
    "mm grounding dino": {"family": "mm-grounding-dino"},
    "five levels": {"family": "mm-grounding-dino", "stages": (1, 2, 3, 4), "levels": 5},
}
PIXELS = tiny.pixels(31, 44)  # sizes that need padding for patches, windows and patch merging
TRANSFERS = [(2, len(tiny.IDS)), (len(tiny.IDS),), PIXELS.shape]  # phrases and positions, token ids, pixels
TOLERANCE = 2e-5  # relative to a step's largest value, as in test_golden.py: float32 sums run in another order


@pytest.fixture(params=GEOMETRIES)
def models(request, monkeypatch):
    """The same model on the CPU and on the emulated GPU, and that GPU."""
    return both(monkeypatch, **GEOMETRIES[request.param])


def both(monkeypatch, **geometry):
    gpu, find = Gpu(), detector.find_device
    monkeypatch.setattr(detector, "find_device", lambda device: gpu if device == "cuda" else find(device))
    on_cpu = tiny.model(**geometry)
    on_gpu = minigdino.Model.random(on_cpu.config, tokenizer=on_cpu.tokenizer, settings=on_cpu.settings, device="cuda")
    assert len(gpu.sent) == len(on_cpu.tensors)  # once for each tensor, although layers share some
    gpu.clear()
    return on_cpu, on_gpu, gpu


def fields(output):
    """Yield (name, array) for every array of a detailed output, in the order of the forward pass."""
    for name, value in vars(output).items():
        if name == "image_features":
            yield from ((f"{name}.{i}", part) for i, part in enumerate(value))
        elif name != "sizes" and value is not None:
            yield name, value


def test_the_references_give_the_same_bits(models):
    on_cpu, on_gpu, gpu = models
    with minigdino.use("reference"):
        expected = on_cpu.forward(PIXELS, tiny.IDS, details=True)
        actual = on_gpu.forward(PIXELS, tiny.IDS, details=True)
    assert actual.sizes == expected.sizes
    for (name, a), (_, e) in zip(fields(actual), fields(expected), strict=True):
        assert isinstance(a, Array)
        np.testing.assert_array_equal(a.get(), e, err_msg=name)
    # in every encoder layer, the reference of deformable attention sends the sizes of the levels; the kernel does not
    level_sizes = [(len(expected.sizes), 2)] * on_cpu.config.encoder_layers
    assert gpu.sent == TRANSFERS + level_sizes
    assert not gpu.fetched


@WITH_COMPILER
def test_the_kernels_agree_with_the_cpu(models):
    on_cpu, on_gpu, gpu = models
    expected = on_cpu.forward(PIXELS, tiny.IDS, details=True)
    with launching_on_host():
        actual = on_gpu.forward(PIXELS, tiny.IDS, details=True, selected=expected.selected)
    for (name, a), (_, e) in zip(fields(actual), fields(expected), strict=True):
        scale = abs(e[np.isfinite(e)]).max()
        np.testing.assert_allclose(a.get(), e, rtol=0, atol=TOLERANCE * scale, err_msg=f"first divergence: {name}")
    assert gpu.sent == [*TRANSFERS, expected.selected.shape]
    assert not gpu.fetched
    launched = {name.partition("<")[0] for name in gpu.launched if "<" in name}
    # the kernel of deform_attn includes the sampling; only its reference calls bilinear
    assert launched == {kernel for kernels in cuda.KERNELS.values() for kernel in kernels} - {"bilinear"}


@WITH_COMPILER
def test_detect_gives_the_same_detections_with_one_fetch(models):
    on_cpu, on_gpu, gpu = models
    image, text = tiny.photo(31, 44), ["a cat", "red"]
    with launching_on_host():
        expected, actual = (m.detect(image, text, threshold=0.0, size=(31, 44)) for m in (on_cpu, on_gpu))
        assert gpu.fetched == [(on_cpu.config.num_queries, len(on_cpu.tokenize(text).ids) + 4)]
        assert len(actual) == len(expected) == on_cpu.config.num_queries
        np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-3)
        gpu.clear()
        on_gpu.detect(image, ["a dog"], size=(31, 44))  # the image features are cached, so no pixels are sent
    assert [len(shape) for shape in gpu.sent] == [2, 1]
    assert len(gpu.fetched) == 1


def test_long_lists_and_tiles_send_each_view_once_and_fetch_once_for_each_prompt(monkeypatch):
    on_cpu, on_gpu, gpu = both(monkeypatch)
    options = {"threshold": 0, "chunk": 1, "tile": 64, "nms": 1}
    with minigdino.use("reference"):
        expected, actual = (m.detect(tiny.photo(64, 70), ["a cat", "red"], **options) for m in (on_cpu, on_gpu))
        views = 3  # the whole and two tiles
        assert actual.to_dict() == expected.to_dict()
        assert [len(shape) for shape in gpu.sent].count(3) == views
        assert len(gpu.fetched) == 2 * views


MAX_LAUNCHES = 922  # of a forward pass of this model; each launch costs microseconds, however little it computes


@WITH_COMPILER
def test_the_number_of_launches_is_bounded(monkeypatch):
    """Counts CuPy calls that compute. `benchmarks/gpu.py` counts the launches on a real GPU."""
    _, on_gpu, gpu = both(monkeypatch)
    with launching_on_host():
        on_gpu.forward(PIXELS, tiny.IDS)
    fast = gpu.launched.copy()
    gpu.clear()
    with minigdino.use("reference"):
        on_gpu.forward(PIXELS, tiny.IDS)
    assert fast.total() <= MAX_LAUNCHES
    assert gpu.launched.total() > 4 * fast.total()  # the references need many more


def test_a_model_on_a_gpu_can_be_saved(monkeypatch, tmp_path):
    on_cpu, on_gpu, _ = both(monkeypatch)
    on_gpu.save(tmp_path)
    loaded = minigdino.load(tmp_path)
    for name, tensor in on_cpu.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
    assert (on_cpu.device, on_gpu.device, loaded.device) == ("cpu", "cuda:0", "cpu")


def test_an_error_names_a_tensor_with_nan_on_a_gpu(monkeypatch):
    on_cpu, _, _ = both(monkeypatch)
    tensors = {**on_cpu.tensors, "model.enc_output.bias": np.full(64, np.nan, np.float32)}
    model = minigdino.Model(
        tensors, on_cpu.config, tokenizer=on_cpu.tokenizer, settings=on_cpu.settings, device="cuda"
    )
    with (
        minigdino.use("reference"),
        pytest.raises(minigdino.CheckpointError, match=r"tensor model\.enc_output\.bias holds NaN"),
    ):
        model.detect(tiny.photo(31, 44), "cat.")


# Tests of the emulation: it must reject everything that CuPy rejects, or the tests above are not valid.


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, host: np.asarray(x),
        lambda x, host: x + host,
        lambda x, host: host @ x,
        lambda x, host: np.concatenate([x, host]),
        lambda x, host: np.where(x > 0, host, 0),
        lambda x, host: np.add(x, 1, out=host),
        lambda x, host: np.add(x, 1, where=True),
        lambda x, host: np.add.reduce(x),
        lambda x, host: x[host > 0],
        lambda x, host: x[x > 0],
        lambda x, host: x[np.array([0])],
        lambda x, host: x[[0, 1]],
        lambda x, host: bool(x[0, 0]),
        lambda x, host: float(x[0, 0]),
        lambda x, host: int(x[0, 0]),
        lambda x, host: range(x[0, 0].astype(int)),
        lambda x, host: x.tolist(),
        lambda x, host: x.item(),
        lambda x, host: np.einsum("ij,jk->ik", x, x),
        lambda x, host: np.full((2, 2), 1.0, like=x),  # NumPy passes device=None, which CuPy's does not accept
        lambda x, host: np.ascontiguousarray(x),  # dispatches to CuPy only with like=
        lambda x, host: np.argsort(x, kind="quicksort"),
        lambda x, host: x.mean(axis=0, where=True),
        lambda x, host: x.max(axis=0, initial=0),
    ],
)
def test_operations_that_cupy_rejects_are_rejected(operation):
    gpu, host = Gpu(), np.ones((2, 2), np.float32)
    x = gpu.send(host)
    with gpu.computing(), pytest.raises((Rejected, AttributeError)):
        operation(x, host)


def test_computing_without_a_current_device_is_rejected():
    gpu = Gpu()
    x = gpu.send(np.ones((2, 2), np.float32))
    for compute in (lambda: x + 1, lambda: x.mean(), lambda: np.arange(3, like=x), lambda: x[x.astype(int)]):
        with pytest.raises(Rejected, match="outside"):
            compute()


def test_uninitialised_memory_holds_nan():
    gpu = Gpu()
    x = gpu.send(np.ones(2, np.float32))
    with gpu.computing():
        assert np.isnan(np.empty((2, 2), np.float32, like=x).get()).all()


def real_cupy():
    """CuPy, which can be imported without a GPU."""
    return pytest.importorskip("cupy", reason="comparing fake_gpu.py with CuPy needs the extra gpu-check")


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_listed_functions_have_cupys_signatures(name):
    listed, real = fake_gpu.SIGNATURES[name].parameters, inspect.signature(getattr(real_cupy(), name)).parameters
    assert [p.name for p in listed.values()] == list(real)[: len(listed)]
    for parameter in listed.values():
        assert parameter.default == real[parameter.name].default


@pytest.mark.parametrize("name", sorted(METHODS))
def test_listed_methods_have_cupys_signatures(name):
    """Compiled methods have their signature in the first line of their docstring."""
    method = getattr(real_cupy().ndarray, name)
    found = re.match(rf"_ndarray_base\.{name}\(self, (.*?)\)", method.__doc__)
    real = [re.sub(r"^\w+ (?=\w)", "", part) for part in found[1].split(", ")]  # without C types
    listed = [part.replace("'", "") for part in METHODS[name].split(", ")]
    assert listed == [part.replace("u'", "'").replace("'", "") for part in real[: len(listed)]]


@pytest.mark.parametrize("name", sorted(UFUNCS))
def test_listed_ufuncs_have_numpys_argument_counts_in_cupy(name):
    ufunc, in_numpy = getattr(real_cupy(), name), getattr(np, name)
    assert type(ufunc).__name__ in ("ufunc", "_MatMul", "_GUFunc")
    if name != "matmul":
        assert (ufunc.nin, ufunc.nout) == (in_numpy.nin, in_numpy.nout)


def test_cupys_arrays_have_the_emulated_attributes():
    array = real_cupy().ndarray
    for attribute in ("__array_function__", "__array_ufunc__", "device", "flags", "get", *fake_gpu.ATTRIBUTES):
        assert hasattr(array, attribute)
    assert array.__module__.partition(".")[0] == Array.__module__ == "cupy"

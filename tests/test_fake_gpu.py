"""The whole model on arrays that behave like CuPy's: nothing leaves the device or waits, and it is NumPy's answer."""

import inspect
import re

import fake_gpu
import numpy as np
import pytest
import tiny
from fake_gpu import FUNCTIONS, METHODS, UFUNCS, Array, Gpu, Refused
from minigdino._ext import cuda
from places import WITH_COMPILER, launching_on_host

import minigdino
from minigdino import detector

GEOMETRIES = {
    "grounding dino": {"family": "grounding-dino"},
    "mm grounding dino": {"family": "mm-grounding-dino"},
    "five levels": {"family": "mm-grounding-dino", "stages": (1, 2, 3, 4), "levels": 5},
}
PIXELS = tiny.pixels(31, 44)  # odd, padded to windows, patches and halves
# one message each way at most for the ids, the phrases they make, and the picture
MESSAGES = [(2, len(tiny.IDS)), (len(tiny.IDS),), PIXELS.shape]
TOLERANCE = 2e-5  # of a step's largest value, as in test_golden.py: float32 sums taken in another order


@pytest.fixture(params=GEOMETRIES)
def models(request, monkeypatch):
    """The same model on the CPU and on the fake GPU, and the fake GPU."""
    return both(monkeypatch, **GEOMETRIES[request.param])


def both(monkeypatch, **geometry):
    gpu, find = Gpu(), detector.find_device
    monkeypatch.setattr(detector, "find_device", lambda device: gpu if device == "cuda" else find(device))
    on_cpu = tiny.model(**geometry)
    on_gpu = minigdino.Model.random(on_cpu.config, tokenizer=on_cpu.tokenizer, settings=on_cpu.settings, device="cuda")
    assert len(gpu.sent) == len(on_cpu.tensors)  # every tensor once, though layers share some
    gpu.clear()
    return on_cpu, on_gpu, gpu


def fields(output):
    """(name, array) of all that a pass gives, in its order."""
    for name, value in vars(output).items():
        if name == "image_features":
            yield from ((f"{name}.{i}", part) for i, part in enumerate(value))
        elif name != "sizes" and value is not None:
            yield name, value


def test_the_formulas_alone_give_numpys_numbers_to_the_bit(models):
    on_cpu, on_gpu, gpu = models
    with minigdino.use("reference"):
        want = on_cpu.forward(PIXELS, tiny.IDS, details=True)
        got = on_gpu.forward(PIXELS, tiny.IDS, details=True)
    assert got.sizes == want.sizes
    for (name, a), (_, b) in zip(fields(got), fields(want), strict=True):
        assert isinstance(a, Array)
        np.testing.assert_array_equal(a.get(), b, err_msg=name)
    # deformable attention around points, once an encoder layer: its formula sends the levels' sizes, its kernel not
    tables = [(len(want.sizes), 2)] * on_cpu.config.encoder_layers
    assert gpu.sent == MESSAGES + tables
    assert not gpu.fetched


@WITH_COMPILER
def test_the_kernels_give_numpys_numbers(models):
    on_cpu, on_gpu, gpu = models
    want = on_cpu.forward(PIXELS, tiny.IDS, details=True)
    with launching_on_host():
        got = on_gpu.forward(PIXELS, tiny.IDS, details=True, selected=want.selected)
    for (name, a), (_, b) in zip(fields(got), fields(want), strict=True):
        scale = abs(b[np.isfinite(b)]).max()
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=TOLERANCE * scale, err_msg=f"first divergence: {name}")
    assert gpu.sent == [*MESSAGES, want.selected.shape]
    assert not gpu.fetched
    ours = {name.partition("<")[0] for name in gpu.launched if "<" in name}
    # bilinear is a step of deform_attn's formula, and part of its kernel
    assert ours == {kernel for kernels in cuda.KERNELS.values() for kernel in kernels} - {"bilinear"}


@WITH_COMPILER
def test_detect_gives_the_same_detections_and_fetches_once(models):
    on_cpu, on_gpu, gpu = models
    picture, text = tiny.photo(31, 44), ["a cat", "red"]
    with launching_on_host():
        want, got = (m.detect(picture, text, threshold=0.0, size=(31, 44)) for m in (on_cpu, on_gpu))
        assert gpu.fetched == [(on_cpu.config.num_queries, len(on_cpu.tokenize(text).ids) + 4)]
        assert len(got) == len(want) == on_cpu.config.num_queries
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-3)
        gpu.clear()
        on_gpu.detect(picture, ["a dog"], size=(31, 44))  # the picture is known, and does not travel again
    assert [len(shape) for shape in gpu.sent] == [2, 1]
    assert len(gpu.fetched) == 1


MOST_LAUNCHES = 910  # of one pass of this model; each costs microseconds, however little it computes


@WITH_COMPILER
def test_launches_are_counted(monkeypatch):
    """The count is of calls that compute; `benchmarks/gpu.py` has the card's own."""
    _, on_gpu, gpu = both(monkeypatch)
    with launching_on_host():
        on_gpu.forward(PIXELS, tiny.IDS)
    fast = gpu.launched.copy()
    gpu.clear()
    with minigdino.use("reference"):
        on_gpu.forward(PIXELS, tiny.IDS)
    assert fast.total() <= MOST_LAUNCHES
    assert gpu.launched.total() > 4 * fast.total()  # what the kernels are for


def test_a_model_on_a_gpu_is_saved_from_the_host(monkeypatch, tmp_path):
    on_cpu, on_gpu, _ = both(monkeypatch)
    on_gpu.save(tmp_path)
    again = minigdino.load(tmp_path)
    for name, tensor in on_cpu.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert (on_cpu.device, on_gpu.device, again.device) == ("cpu", "cuda:0", "cpu")


def test_broken_weights_are_named_on_a_gpu_too(monkeypatch):
    on_cpu, _, _ = both(monkeypatch)
    bad = {**on_cpu.tensors, "model.enc_output.bias": np.full(64, np.nan, np.float32)}
    model = minigdino.Model(
        bad, on_cpu.config, tokenizer=on_cpu.tokenizer, settings=on_cpu.settings, device="cuda"
    )
    with (
        minigdino.use("reference"),
        pytest.raises(minigdino.CheckpointError, match=r"tensor model\.enc_output\.bias holds NaN"),
    ):
        model.detect(tiny.photo(31, 44), "cat.")


# The stand-in itself: it must refuse what CuPy refuses, or it proves nothing.


@pytest.mark.parametrize(
    "leak",
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
        lambda x, host: np.full((2, 2), 1.0, like=x),  # NumPy hands on device=None, which CuPy's does not take
        lambda x, host: np.ascontiguousarray(x),  # no function that CuPy could answer for, but for like=
        lambda x, host: np.argsort(x, kind="quicksort"),
        lambda x, host: x.mean(axis=0, where=True),
        lambda x, host: x.max(axis=0, initial=0),
    ],
)
def test_what_cupy_refuses_is_refused(leak):
    gpu, host = Gpu(), np.ones((2, 2), np.float32)
    x = gpu.send(host)
    with gpu.computing(), pytest.raises((Refused, AttributeError)):
        leak(x, host)


def test_nothing_is_computed_outside_the_device():
    gpu = Gpu()
    x = gpu.send(np.ones((2, 2), np.float32))
    for compute in (lambda: x + 1, lambda: x.mean(), lambda: np.arange(3, like=x), lambda: x[x.astype(int)]):
        with pytest.raises(Refused, match="outside"):
            compute()


def test_fresh_memory_is_not_what_anyone_hopes_for():
    gpu = Gpu()
    x = gpu.send(np.ones(2, np.float32))
    with gpu.computing():
        assert np.isnan(np.empty((2, 2), np.float32, like=x).get()).all()


def real_cupy():
    """CuPy, which imports without a GPU."""
    return pytest.importorskip("cupy", reason="CuPy is needed to compare fake_gpu.py's list with it: extra gpu-check")


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_on_the_list_is_cupys(name):
    ours, real = fake_gpu.SIGNATURES[name].parameters, inspect.signature(getattr(real_cupy(), name)).parameters
    assert [p.name for p in ours.values()] == list(real)[: len(ours)]
    for parameter in ours.values():
        assert parameter.default == real[parameter.name].default


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_on_the_list_is_cupys(name):
    """Compiled methods carry their signature in the first line of their text."""
    method = getattr(real_cupy().ndarray, name)
    found = re.match(rf"_ndarray_base\.{name}\(self, (.*?)\)", method.__doc__)
    theirs = [re.sub(r"^\w+ (?=\w)", "", part) for part in found[1].split(", ")]  # less C's types
    ours = [part.replace("'", "") for part in METHODS[name].split(", ")]
    assert ours == [part.replace("u'", "'").replace("'", "") for part in theirs[: len(ours)]]


@pytest.mark.parametrize("name", sorted(UFUNCS))
def test_a_ufunc_on_the_list_is_cupys(name):
    ufunc, numpys = getattr(real_cupy(), name), getattr(np, name)
    assert type(ufunc).__name__ in ("ufunc", "_MatMul", "_GUFunc")
    if name != "matmul":
        assert (ufunc.nin, ufunc.nout) == (numpys.nin, numpys.nout)


def test_cupys_arrays_dispatch_by_name():
    array = real_cupy().ndarray
    for attribute in ("__array_function__", "__array_ufunc__", "device", "flags", "get", *fake_gpu.ATTRIBUTES):
        assert hasattr(array, attribute)
    assert array.__module__.partition(".")[0] == Array.__module__ == "cupy"

"""The CUDA kernels without a GPU: their bounds, their launcher, what compilers make of them.

That they compute what the formulas compute is in `test_kernels.py`, place "cuda-on-host".
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import fake_gpu
import numpy as np
import on_host
import pytest
import toolchain
from minigdino._ext import cuda
from places import HOST, WITH_COMPILER, launching_on_host, mapped, twin
from strategies import LOOSE_PROBLEMS

from minigdino.network import ops
from minigdino.runtime import kernels

HERE = Path(__file__).parent
F32 = np.dtype(np.float32)


def sanitized(*command):
    """Run Python with the sanitizers' library loaded before anything else."""
    libraries = [
        subprocess.run(
            [on_host.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("this compiler has no AddressSanitizer library")
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "MINIGDINO_SANITIZE": "1",
        "PYTHONPATH": str(HERE),
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, cwd=HERE.parent, check=False, timeout=600
    )


@WITH_COMPILER
def test_kernels_stay_within_their_arrays_and_do_nothing_undefined():
    """The same generated problems, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    run = sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_kernels.py", "-k", HOST)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert " passed" in run.stdout


LAUNCH = """
import numpy as np, fake_gpu, on_host
with fake_gpu.Gpu().computing():
    x, out = fake_gpu.Array(np.ones((2, 40), np.float32)), fake_gpu.Array(np.ones((2, 40), np.float32))
    on_host.compiled("relu", x.dtype)(({blocks},), (64,), (x, None, np.intc({width}), out))
"""


@WITH_COMPILER
@pytest.mark.parametrize(("blocks", "width"), [(3, 40), (2, 41)])
def test_the_sanitizer_sees_a_launch_that_is_too_large(blocks, width):
    assert sanitized("-c", LAUNCH.format(blocks=2, width=40)).returncode == 0
    assert "heap-buffer-overflow" in sanitized("-c", LAUNCH.format(blocks=blocks, width=width)).stderr


BROKEN = {
    "order": (
        "__shared__ float last; last = threadIdx.x; out[threadIdx.x] = last;"
        "if (threadIdx.x) out[threadIdx.x] = out[threadIdx.x - 1] + 1;",
        "depends on the order of its threads",
    ),
    "lanes": (
        "if (threadIdx.x < 7) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1); else out[threadIdx.x] = 0;",
        "do not meet at a shuffle",
    ),
    "block": ("if (threadIdx.x < 32) __syncthreads(); out[threadIdx.x] = 0;", "do not meet at __syncthreads"),
}


@WITH_COMPILER
@pytest.mark.parametrize("fault", BROKEN)
def test_a_missing_barrier_is_noticed(fault):
    """What `cuda_on_host.h` is for: threads that do not meet, or that count on an order among them."""
    body, complaint = BROKEN[fault]
    code = f"""
import functools, numpy as np, fake_gpu, on_host
text = "template <typename T> void broken(T *out) {{ {body} }}"
on_host.library = lambda file: on_host.build(text + on_host.wrapper("broken<float>"))
on_host.cuda.KERNELS["broken"] = ("broken",)
with fake_gpu.Gpu().computing():
    out = fake_gpu.Array(np.ones(64, np.float32))
    on_host.compiled("broken", out.dtype)((1,), (64,), (out,))
"""
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert run.returncode != 0
    assert complaint in run.stderr


@WITH_COMPILER
def test_the_registry_names_what_is_launched():
    """Every op with a CUDA twin launches kernels that `cuda.KERNELS` names, and nothing is named that none launches."""
    gpu = fake_gpu.Gpu()
    rng = np.random.default_rng(0)
    x, map_, row = rng.random((6, 8), F32), rng.random((2, 3, 8), F32), rng.random(8, F32)
    offsets, scores = rng.random((4, 2, 1, 3, 2), F32), rng.random((4, 2, 3), F32)
    problems = {
        "add_norm": (x, x, row, row),
        "attend_in_windows": (*(rng.random(n, F32) for n in ((3, 5, 3, 2, 4), (3, 2, 4), (2, 4, 4))), 2, 1),
        "bilinear": (rng.random((4, 5, 2, 3), F32), rng.random((4, 2, 3, 2), F32)),
        "deform_attn": (rng.random((6, 2, 4), F32), ((2, 3),), rng.random((4, 2), F32), offsets, scores),
        "gelu": (x, row),
        "group_norm": (map_, row, row, 4),
        "layer_norm": (x, row, row),
        "relu": (x,),
        "softmax": (x,),
    }
    with_twin = {name for name, op in kernels.OPS.items() if "cupy" in op.twins}
    assert problems.keys() == with_twin
    products = {"linear", "feed_forward", "attend", "attend_both_ways", "window_attention"}  # cuBLAS's, and ops
    assert set(kernels.OPS) - with_twin == products
    for name in with_twin:
        assert kernels.load(kernels.OPS[name].twins["cupy"]) is getattr(cuda, name)
        with gpu.computing(), launching_on_host():
            kernels.OPS[name](*mapped(gpu.send, problems[name]))
    launched = {name for name in gpu.launched if name.endswith("<float>")}
    assert launched == {name for file in cuda.KERNELS for name in cuda.instances(file, F32)}


@pytest.mark.skipif(not toolchain.COMPILERS, reason="neither NVRTC (nvidia-cuda-nvrtc) nor nvcc is here")
@pytest.mark.parametrize("capability", ["7.5", "8.0", "9.0", "10.0"])
@pytest.mark.parametrize("file", cuda.KERNELS)
@pytest.mark.parametrize("compiler", toolchain.COMPILERS)
def test_every_kernel_is_in_what_the_compiler_makes(compiler, file, capability):
    names = [name for dtype in on_host.TYPES for name in cuda.instances(file, dtype)]
    found = toolchain.COMPILERS[compiler](cuda.source(file), names, capability)
    assert found.keys() == set(names)
    for name, text in found.items():  # float work is float's, but for sums too long for it
        in_double = re.search(r"\b(add|sub|mul|fma|div)(\.\w+)*\.f64\b", text) is not None
        assert in_double == (name.endswith("<double>") or name == "group_norm<float>"), name


@pytest.mark.skipif(not toolchain.COMPILERS, reason="neither NVRTC (nvidia-cuda-nvrtc) nor nvcc is here")
@pytest.mark.parametrize("compiler", toolchain.COMPILERS)
def test_a_kernel_that_is_not_there_is_not_found(compiler):
    with pytest.raises(toolchain.Failed, match="no_such_kernel"):
        toolchain.COMPILERS[compiler](cuda.source("ops"), ["no_such_kernel<float>"], "9.0")


def on_fake(op, *args):
    gpu = fake_gpu.Gpu()
    with gpu.computing(), launching_on_host():
        return op(*mapped(gpu.send, args))


def test_launches_refuse_what_does_not_fit():
    value, at = np.zeros((6, 2, 4), F32), np.zeros((3, 2), F32)
    offsets, scores = np.zeros((3, 2, 1, 1, 2), F32), np.zeros((3, 2, 1), F32)
    row, short = np.zeros((2, 5), F32), np.zeros(4, F32)
    windows = np.zeros((2, 2, 3, 1, 4), F32), np.zeros((3, 1, 4), F32), np.zeros((1, 4, 4), F32)
    for op, args in [
        (cuda.deform_attn, (value, ((2, 4),), at, offsets, scores)),
        (cuda.deform_attn, (value, ((2, 3), (0, 0)), at, offsets, scores)),
        (cuda.deform_attn, (value, ((-2, -3),), at, offsets, scores)),
        (cuda.deform_attn, (value, ((2, 3),), at[:2], offsets, scores)),
        (cuda.deform_attn, (value, ((2, 3),), at[:, :1], offsets, scores)),
        (cuda.deform_attn, (value, ((2, 3),), at, offsets, scores[:, :1])),
        (cuda.deform_attn, (value[:, :1], ((2, 3),), at, offsets, scores)),
        (cuda.bilinear, (np.zeros((2, 2, 3, 1), F32), np.zeros((1, 2, 1, 2), F32))),
        (cuda.layer_norm, (row, short, short)),
        (cuda.add_norm, (row, row[:1], row[0], row[0])),
        (cuda.group_norm, (np.zeros((2, 2, 5), F32), row[0], row[0], 2)),
        (cuda.attend_in_windows, (*windows, 2, 2)),
    ]:
        with pytest.raises(ValueError, match="fit"):
            on_fake(op, *args)
    with pytest.raises(ValueError, match=r"takes a bias of \(5,\); got \(4,\)"):
        on_fake(cuda.relu, row, short)
    many = tuple((1, 1) for _ in range(33))
    zeros = np.zeros((33, 1, 1), F32), many, at, np.zeros((3, 1, 33, 1, 2), F32), np.zeros((3, 1, 33), F32)
    with pytest.raises(ValueError, match="33 levels are more than the 32"):
        on_fake(cuda.deform_attn, *zeros)
    with pytest.raises(TypeError, match="float32 or all float64"):
        on_fake(cuda.relu, row, row[0].astype(np.float64))
    with pytest.raises(TypeError, match="float32 or all float64"):
        on_fake(cuda.softmax, row.astype(np.float16))
    with pytest.raises(ValueError, match="more than a kernel counts"):
        cuda.launch("relu", F32, 2**31, 1)


def test_launches_refuse_what_lies_elsewhere():
    gpu, other = fake_gpu.Gpu(), fake_gpu.Gpu(1)
    row = np.zeros(5, F32)
    here, there = gpu.send(row), other.send(row)
    with gpu.computing():
        with pytest.raises(TypeError, match="arrays of the host and of a GPU do not mix; got a ndarray"):
            ops.relu(here, row)
        with pytest.raises(ValueError, match=r"arrays lie on several GPUs, \[0, 1\]"):
            ops.relu(here, there)
        with pytest.raises(ValueError, match="arrays lie on GPU 1, but GPU 0 is the current one"):
            ops.relu(there)


def test_nothing_to_do_is_not_launched():
    none = np.zeros((0, 2, 1, 1, 2), F32)
    value, at = np.zeros((6, 2, 4), F32), np.zeros((0, 2), F32)
    assert on_fake(cuda.deform_attn, value, ((2, 3),), at, none, none[..., 0, 0]).shape == (0, 8)
    empty, one = np.zeros((0, 5), F32), np.ones(5, F32)
    for op, args in ((ops.relu, ()), (ops.gelu, ()), (ops.softmax, ()), (ops.layer_norm, (one, one))):
        assert on_fake(op, empty, *args).shape == (0, 5)
    nowhere = on_fake(cuda.bilinear, np.zeros((0, 3, 1, 2), F32), np.zeros((1, 1, 2, 2), F32)).get()
    np.testing.assert_array_equal(nowhere, np.zeros((1, 1, 2, 2)))
    no_points = np.zeros((3, 2, 1, 0, 2), F32), np.zeros((3, 2, 0), F32)
    pointless = on_fake(cuda.deform_attn, value, ((2, 3),), np.zeros((3, 2), F32), *no_points)
    np.testing.assert_array_equal(pointless.get(), np.zeros((3, 8)))


@WITH_COMPILER
def test_slices_of_one_product_are_read_where_they_lie():
    """Offsets and scores come out of one product: no copy of either, whatever follows a row."""
    rng = np.random.default_rng(0)
    Q, M, L, P, value = 5, 2, 1, 3, rng.random((6, 2, 4), F32)
    wide, at = rng.standard_normal((Q, M * L * P * 3)).astype(F32), rng.random((Q, 2), F32)
    gpu = fake_gpu.Gpu()
    with gpu.computing(), launching_on_host():
        offsets, scores = np.split(gpu.send(wide), [M * L * P * 2], axis=1)
        args = [gpu.send(value), ((2, 3),), gpu.send(at), offsets.reshape(Q, M, L, P, 2), scores.reshape(Q, M, L * P)]
        got = cuda.deform_attn(*args)
    assert gpu.launched == {"deform_attn<float>": 1}
    want = kernels.OPS["deform_attn"].reference(value, ((2, 3),), at, *(a.get() for a in args[3:]))
    np.testing.assert_allclose(got.get(), want, rtol=1e-5, atol=1e-6)


def test_every_generated_problem_has_a_place_on_the_gpu():
    """The registry that `pytest -m gpu` walks is the one that is walked here."""
    assert set(LOOSE_PROBLEMS) == set(kernels.OPS)
    assert callable(twin("linear", HOST))

"""The CUDA kernels without a GPU: memory accesses, argument checks of launches, and compilation.

`test_kernels.py` compares their results with the NumPy references (place "cuda-on-host"). `test_refused.py` passes
wrong arguments to their twins.
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
from places import HOST, WITH_COMPILER, launching_on_host, mapped, runs_on_gpu, twin
from strategies import LOOSE_PROBLEMS

from minigdino.network import ops
from minigdino.runtime import kernels

pytestmark = pytest.mark.once

HERE = Path(__file__).parent
F32 = np.dtype(np.float32)


def sanitized(*command):
    """Run Python with the sanitizers' libraries loaded first."""
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
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # as malloc does for an impossible size
        "MINIGDINO_SANITIZE": "1",
        "PYTHONPATH": str(HERE),
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, cwd=HERE.parent, check=False, timeout=600
    )


@pytest.mark.slow
@WITH_COMPILER
def test_sanitizers_find_no_error_in_the_kernels():
    """The generated problems of test_kernels.py, under AddressSanitizer and UndefinedBehaviorSanitizer."""
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
def test_the_sanitizer_detects_a_launch_that_is_too_large(blocks, width):
    assert sanitized("-c", LAUNCH.format(blocks=2, width=40)).returncode == 0
    assert "heap-buffer-overflow" in sanitized("-c", LAUNCH.format(blocks=blocks, width=width)).stderr


BROKEN = {  # fault -> body of a kernel, error message
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
def test_a_missing_barrier_is_detected(fault):
    """`cuda_on_host.h` reports barriers that some threads miss, and results that depend on the order of threads."""
    body, message = BROKEN[fault]
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
    assert message in run.stderr


@WITH_COMPILER
def test_the_registry_lists_exactly_the_launched_kernels():
    """Every kernel launched by an op with a CUDA twin is in `cuda.KERNELS`, and every kernel there is launched."""
    gpu = fake_gpu.Gpu()
    rng = np.random.default_rng(0)
    x, map_, row = rng.random((6, 8), F32), rng.random((2, 3, 8), F32), rng.random(8, F32)
    offsets, scores = rng.random((4, 2, 1, 3, 2), F32), rng.random((4, 2, 3), F32)
    fc1 = {"weight": rng.random((5, 8), F32), "bias": rng.random(5, F32)}
    fc2 = {"weight": rng.random((8, 5), F32), "bias": row}
    problems = {
        "add_norm": (x, x, row, row),
        "attend_in_windows": (*(rng.random(n, F32) for n in ((3, 5, 3, 2, 4), (3, 2, 4), (2, 4, 4))), 2, 1),
        "bilinear": (rng.random((4, 5, 2, 3), F32), rng.random((4, 2, 3, 2), F32)),
        "deform_attn": (rng.random((6, 2, 4), F32), ((2, 3),), rng.random((4, 2), F32), offsets, scores),
        "feed_forward": (x, fc1, fc2, "relu"),
        "gelu": (x,),
        "group_norm": (map_, row, row, 4),
        "layer_norm": (x, row, row),
        "relu": (x,),
        "softmax": (x,),
    }
    with_twin = {name for name, op in kernels.OPS.items() if "cupy" in op.twins}
    assert problems.keys() == with_twin
    without = {"linear", "matmul", "attend", "attend_both_ways", "window_attention"}  # these call cuBLAS and other ops
    assert {name for name in kernels.OPS if runs_on_gpu(name)} - with_twin == without
    for name in with_twin:
        assert kernels.load(kernels.OPS[name].twins["cupy"]) is getattr(cuda, name)
        with gpu.computing(), launching_on_host():
            kernels.OPS[name](*mapped(gpu.send, problems[name]))
    launched = {name for name in gpu.launched if name.endswith("<float>")}
    assert launched == {name for file in cuda.KERNELS for name in cuda.instances(file, F32)}


@pytest.mark.skipif(not toolchain.COMPILERS, reason="neither NVRTC (nvidia-cuda-nvrtc) nor nvcc is installed")
@pytest.mark.parametrize("capability", ["7.5", "8.0", "9.0", "10.0"])
@pytest.mark.parametrize("file", cuda.KERNELS)
@pytest.mark.parametrize("compiler", toolchain.COMPILERS)
def test_the_compiler_output_contains_every_kernel(compiler, file, capability):
    names = [name for dtype in on_host.TYPES for name in cuda.instances(file, dtype)]
    found = toolchain.COMPILERS[compiler](cuda.source(file), names, capability)
    assert found.keys() == set(names)
    for name, text in found.items():  # float kernels contain no double arithmetic, except for long sums
        in_double = re.search(r"\b(add|sub|mul|fma|div)(\.\w+)*\.f64\b", text) is not None
        assert in_double == (name.endswith("<double>") or name == "group_norm<float>"), name


@pytest.mark.skipif(not toolchain.COMPILERS, reason="neither NVRTC (nvidia-cuda-nvrtc) nor nvcc is installed")
@pytest.mark.parametrize("compiler", toolchain.COMPILERS)
def test_a_missing_kernel_is_an_error(compiler):
    with pytest.raises(toolchain.Failed, match="no_such_kernel"):
        toolchain.COMPILERS[compiler](cuda.source("ops"), ["no_such_kernel<float>"], "9.0")


def on_fake(op, *args):
    """Run an op on the emulated GPU."""
    gpu = fake_gpu.Gpu()
    with gpu.computing(), launching_on_host():
        return op(*mapped(gpu.send, args))


def test_problems_that_are_too_large_for_a_kernel_are_rejected():
    many = tuple((1, 1) for _ in range(33))
    value, references, scores = np.zeros((33, 1, 1), F32), np.zeros((3, 2), F32), np.zeros((3, 1, 33), F32)
    with pytest.raises(ValueError, match="expected at most 32 levels; got 33"):
        on_fake(cuda.deform_attn, value, many, references, np.zeros((3, 1, 33, 1, 2), F32), scores)
    for blocks, width, argument in ((2**31, 1, 1), (1, 2**31, 1), (1, 1, 2**31)):
        with pytest.raises(ValueError, match="relu: expected sizes of at most 2147483647"):
            cuda.launch("relu", F32, blocks, width, argument)


def test_arrays_on_the_wrong_device_are_rejected():
    gpu_0, gpu_1 = fake_gpu.Gpu(0), fake_gpu.Gpu(1)
    row = np.zeros(5, F32)
    on_0, on_1 = gpu_0.send(row), gpu_1.send(row)
    with gpu_0.computing():
        with pytest.raises(TypeError, match="expected CuPy arrays only; got a ndarray"):
            ops.layer_norm(on_0, row, row)
        with pytest.raises(ValueError, match=r"expected arrays on one GPU; got arrays on GPUs \[0, 1\]"):
            ops.layer_norm(on_0, on_1, on_1)
        with pytest.raises(ValueError, match="expected arrays on the current GPU, 0; got arrays on GPU 1"):
            ops.relu(on_1)


def test_empty_inputs_launch_nothing():
    no_offsets = np.zeros((0, 2, 1, 1, 2), F32)
    value, no_references = np.zeros((6, 2, 4), F32), np.zeros((0, 2), F32)
    no_queries = on_fake(cuda.deform_attn, value, ((2, 3),), no_references, no_offsets, no_offsets[..., 0, 0])
    assert no_queries.shape == (0, 8)
    empty, one = np.zeros((0, 5), F32), np.ones(5, F32)
    for op, args in ((ops.relu, ()), (ops.gelu, ()), (ops.softmax, ()), (ops.layer_norm, (one, one))):
        assert on_fake(op, empty, *args).shape == (0, 5)
    no_pixels = on_fake(cuda.bilinear, np.zeros((0, 3, 1, 2), F32), np.zeros((1, 1, 2, 2), F32))
    np.testing.assert_array_equal(no_pixels.get(), np.zeros((1, 1, 2, 2)))
    offsets, scores = np.zeros((3, 2, 1, 0, 2), F32), np.zeros((3, 2, 0), F32)
    no_points = on_fake(cuda.deform_attn, value, ((2, 3),), np.zeros((3, 2), F32), offsets, scores)
    np.testing.assert_array_equal(no_points.get(), np.zeros((3, 8)))


@WITH_COMPILER
def test_column_slices_of_a_product_are_not_copied():
    """Offsets and scores are column slices of one product; the kernel reads them with a row stride."""
    rng = np.random.default_rng(0)
    Q, M, L, P, value = 5, 2, 1, 3, rng.random((6, 2, 4), F32)
    product, references = rng.standard_normal((Q, M * L * P * 3)).astype(F32), rng.random((Q, 2), F32)
    gpu = fake_gpu.Gpu()
    with gpu.computing(), launching_on_host():
        offsets, scores = np.split(gpu.send(product), [M * L * P * 2], axis=1)
        offsets, scores = offsets.reshape(Q, M, L, P, 2), scores.reshape(Q, M, L * P)
        actual = cuda.deform_attn(gpu.send(value), ((2, 3),), gpu.send(references), offsets, scores)
    assert gpu.launched == {"deform_attn<float>": 1}
    expected = kernels.OPS["deform_attn"].reference(value, ((2, 3),), references, offsets.get(), scores.get())
    np.testing.assert_allclose(actual.get(), expected, rtol=1e-5, atol=1e-6)


def test_problems_are_generated_for_every_op():
    """So `pytest -m gpu` compares every registered op on the GPU."""
    assert set(LOOSE_PROBLEMS) == set(kernels.OPS)
    assert callable(twin("linear", HOST))

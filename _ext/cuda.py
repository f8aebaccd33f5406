"""GPU twins: argument checks, compilation and launch of the kernels in the .cu files.

CuPy does not check the arguments of a kernel and ignores strides, so every argument is checked before a launch. CuPy
compiles a kernel at its first launch on a device and caches it, on disk too. Kernels run on the current device, one
block for each row, query or window.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_activation, check_arrays, check_groups, check_levels, check_shift
from .erfc import ERFC

KERNELS = {  # file -> its kernels, each compiled for float and double
    "deformable": ("bilinear", "deform_attn"),
    "ops": ("add_norm", "group_norm", "softmax", "relu", "gelu"),
    "swin": ("attend_in_windows",),
}
NAMES = {"f": "float", "d": "double"}  # dtype.char -> C type
WARP, MOST_THREADS = 32, 1024
MOST_LEVELS = 32  # deformable.cu's Sizes
LARGEST = 2**31 - 1  # maximum number of blocks per launch and of elements per block: kernels count in 32 bits

SIZES = np.dtype([("of", np.intc, (MOST_LEVELS, 2))])


def source(file: str) -> str:
    """The text of a .cu file, its includes expanded."""
    here = Path(__file__).parent
    text = (here / f"{file}.cu").read_text(encoding="utf-8")
    return re.sub(r'#include "(\w+\.cuh)"', lambda found: (here / found[1]).read_text(encoding="utf-8"), text)


def instances(file: str, dtype: np.dtype) -> list[str]:
    """Template instances of a file for a dtype: ["relu<float>", ...]"""
    return [f"{kernel}<{NAMES[dtype.char]}>" for kernel in KERNELS[file]]


@functools.cache
def compiled(kernel: str, dtype: np.dtype):
    """A kernel, compiled by CuPy for the device of each launch: call it with (grid, block, arguments)."""
    import cupy

    file = next(file for file, kernels in KERNELS.items() if kernel in kernels)
    module = cupy.RawModule(code=source(file), options=("-std=c++17",), name_expressions=instances(file, dtype))
    return module.get_function(f"{kernel}<{NAMES[dtype.char]}>")


def launch(kernel: str, dtype: np.dtype, blocks: int, width: int, *arguments) -> None:
    """Launch a kernel with `blocks` blocks of up to `width` threads. Python ints are passed as C ints."""
    if (largest := max(blocks, width, *(a for a in arguments if isinstance(a, int)))) > LARGEST:
        raise ValueError(f"{kernel}: expected sizes of at most {LARGEST}; got {largest}")
    threads = min(MOST_THREADS, math.ceil(width / WARP) * WARP)
    ready = tuple(np.intc(a) if isinstance(a, int) else a for a in arguments)
    compiled(kernel, dtype)((blocks,), (threads,), ready)


def check_gpu_arrays(op: str, spec: str, /, *arrays, **given: int) -> list:
    """`check_arrays`, for arrays that must all be on one GPU. Raises TypeError or ValueError unless they are."""
    present = [a for a in arrays if a is not None]
    if strange := [type(a).__name__ for a in present if type(a).__module__.partition(".")[0] != "cupy"]:
        raise TypeError(f"{op}: expected CuPy arrays only; got a {strange[0]}")
    if len(homes := {a.device.id for a in present}) > 1:
        raise ValueError(f"{op}: expected arrays on one GPU; got arrays on GPUs {sorted(homes)}")
    return check_arrays(op, spec, *arrays, **given)


def fresh(shape, like):
    """An empty array on the device of `like`. Raises ValueError if that is not the current device."""
    out: Any = np.empty(shape, like.dtype, like=like)  # a CuPy array, as `like` is
    if out.device.id != like.device.id:
        raise ValueError(f"expected arrays on the current GPU, {out.device.id}; got arrays on GPU {like.device.id}; "
                         f"compute inside `with cupy.cuda.Device({like.device.id})`")
    return out


def contiguous(array):
    """The array itself if it is C-contiguous, else a copy that is."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array, like=array)


def rows_of(array):
    """An array with contiguous rows and any row stride (such as a column slice), and that stride in elements."""
    rows = array if array[:1].flags.c_contiguous and array.strides[0] > 0 else contiguous(array)
    return rows, np.longlong(rows.strides[0] // rows.itemsize)


def bilinear(image, xy):
    """image [H, W, M, D], xy [Q, M, P, 2] -> [Q, M, P, D]"""
    H, W, M, D, Q, P = check_gpu_arrays("bilinear", "image [H, W, M, D], xy [Q, M, P, 2]", image, xy)
    if not image.size:
        return np.zeros((Q, M, P, D), image.dtype, like=image)
    check_levels("bilinear", [(H, W)], 1, H * W)
    out = fresh((Q, M, P, D), image)
    if out.size:
        launch("bilinear", image.dtype, Q, M * P * D, contiguous(image), contiguous(xy), H, W, M, D, P, out)
    return out


def deform_attn(value, sizes, references, offsets, scores):
    """value [S, M, D], sizes ((H, W), ...), references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P]
    -> [Q, M*D]"""
    S, M, D, Q, R, L, P = check_gpu_arrays(
        "deform_attn", "value [S, M, D], references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P]",
        value, references, offsets, scores)
    if R not in (2, 4):
        raise ValueError(f"deform_attn: references {references.shape} do not fit: expected 2 or 4 coordinates each")
    if L > MOST_LEVELS:
        raise ValueError(f"deform_attn: expected at most {MOST_LEVELS} levels; got {L}")
    sizes = check_levels("deform_attn", sizes, L, S)
    if not L * P:
        return np.zeros((Q, M * D), value.dtype, like=value)
    out = fresh((Q, M * D), value)
    if out.size:
        levels = np.zeros((), SIZES)
        levels["of"][:L] = sizes
        (offsets, offsets_step), (scores, scores_step) = rows_of(offsets), rows_of(scores)
        launch("deform_attn", value.dtype, Q, M * D, contiguous(value), levels, contiguous(references), offsets, scores,
               M, D, L, P, R, offsets_step, scores_step, out)
    return out


def layer_norm(x, weight, bias, eps=1e-5):
    """x [..., C], weight [C], bias [C] -> [..., C]"""
    return _norm("layer_norm", "x [..., C], residual? [..., C], weight [C], bias [C]", x, None, weight, bias, eps)


def add_norm(x, residual, weight, bias, eps=1e-5):
    """x [..., C], residual [..., C], weight [C], bias [C] -> [..., C]"""
    return _norm("add_norm", "x [..., C], residual [..., C], weight [C], bias [C]", x, residual, weight, bias, eps)


def _norm(op, spec, x, residual, weight, bias, eps):
    _, C = check_gpu_arrays(op, spec, x, residual, weight, bias)
    out = fresh(x.shape, x)
    if out.size:
        launch("add_norm", x.dtype, x.size // C, C, contiguous(x), None if residual is None else contiguous(residual),
               contiguous(weight), contiguous(bias), x.dtype.type(eps), C, out)
    return out


def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """x [H, W, C], weight [C], bias [C] -> [H, W, C]"""
    H, W, C = check_gpu_arrays("group_norm", "x [H, W, C], weight [C], bias [C]", x, weight, bias)
    check_groups("group_norm", groups, C)
    out = fresh(x.shape, x)
    if out.size:
        launch("group_norm", x.dtype, groups, H * W * (C // groups), contiguous(x), contiguous(weight),
               contiguous(bias), np.float64(eps), H * W, groups, C // groups, out)
    return out


def softmax(x, axis=-1):
    """x [...] -> [...]"""
    check_gpu_arrays("softmax", "x [...]", x)
    if axis not in range(-x.ndim, x.ndim):
        raise ValueError(f"softmax: expected an axis of x {x.shape}; got {axis}")
    n, C = x.shape[axis], math.prod(x.shape[axis % x.ndim + 1 :])
    out = fresh(x.shape, x)
    if out.size:
        launch("softmax", x.dtype, x.size // n, n, contiguous(x), n, C, out)
    return out


def relu(x):
    """x [..., C] -> [..., C]"""
    return _activate("relu", x)


def gelu(x):
    """x [..., C] -> [..., C]"""
    return _activate("gelu", x)


def _activate(kernel, x, bias=None):
    """Activation of x + bias: x [..., C], bias [C] -> [..., C]"""
    _, C = check_gpu_arrays(kernel, "x [..., C], bias? [C]", x, bias)
    dtype = x.dtype
    constants = [np.array((ERFC,), [("of", dtype, (len(ERFC),))])] if kernel == "gelu" else []
    out = fresh(x.shape, x)
    if out.size:
        launch(kernel, dtype, x.size // C, C, contiguous(x), None if bias is None else contiguous(bias), *constants, C,
               out)
    return out


def feed_forward(x, fc1, fc2, activation, residual=None):
    """x [N, C], residual [N, C] -> [N, C]: the first bias is added inside the activation's kernel"""
    check_gpu_arrays(
        "feed_forward", "x [N, C], fc1_weight [F, C], fc1_bias [F], fc2_weight [C, F], fc2_bias [C], residual? [N, C]",
        x, fc1["weight"], fc1["bias"], fc2["weight"], fc2["bias"], residual)
    check_activation("feed_forward", activation)
    hidden = _activate(activation, x @ fc1["weight"].T, fc1["bias"])
    y = hidden @ fc2["weight"].T + fc2["bias"]
    return y if residual is None else y + residual


QUERIES = 8  # queries per block, one warp each, of one window: neighbouring warps read the same keys


def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> [H, W, M, D]"""
    H, W, M, D = check_gpu_arrays(
        "attend_in_windows", "qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, K]", qkv, qkv_bias,
        position_bias, K=k * k)
    check_shift("attend_in_windows", shift, k)
    out = fresh((H, W, M, D), qkv)
    if out.size:
        windows = math.ceil(H / k) * math.ceil(W / k)
        launch("attend_in_windows", qkv.dtype, windows * M, min(k * k, QUERIES) * WARP, contiguous(qkv),
               contiguous(qkv_bias), contiguous(position_bias), H, W, M, D, k, shift, out)
    return out

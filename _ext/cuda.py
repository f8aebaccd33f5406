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

import numpy as np

from .checks import same_dtype
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
    if max(blocks, width) > LARGEST:
        raise ValueError(f"{kernel}: expected at most {LARGEST} rows and elements per row; got {blocks}, {width}")
    threads = min(MOST_THREADS, math.ceil(width / WARP) * WARP)
    ready = tuple(np.intc(a) if isinstance(a, int) else a for a in arguments)
    compiled(kernel, dtype)((blocks,), (threads,), ready)


def of_one_gpu(op: str, *arrays) -> np.dtype:
    """The one dtype of all arrays. Raises TypeError or ValueError unless they have one dtype and one GPU."""
    if strange := [type(a).__name__ for a in arrays if type(a).__module__.partition(".")[0] != "cupy"]:
        raise TypeError(f"{op}: expected CuPy arrays only; got a {strange[0]}")
    if len(homes := {a.device.id for a in arrays}) > 1:
        raise ValueError(f"{op}: expected arrays on one GPU; got arrays on GPUs {sorted(homes)}")
    return same_dtype(*arrays)


def fresh(shape, like):
    """An empty array on the device of `like`. Raises ValueError if that is not the current device."""
    out = np.empty(shape, like.dtype, like=like)
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
    dtype = of_one_gpu("bilinear", image, xy)
    if image.ndim != 4 or xy.ndim != 4 or xy.shape[1] != image.shape[2] or xy.shape[3] != 2:
        raise ValueError(f"bilinear: image {image.shape} and xy {xy.shape} do not fit together")
    (H, W, M, D), (Q, _, P, _) = image.shape, xy.shape
    if not image.size:
        return np.zeros((Q, M, P, D), dtype, like=image)
    out = fresh((Q, M, P, D), image)
    if out.size:
        launch("bilinear", dtype, Q, M * P * D, contiguous(image), contiguous(xy), H, W, M, D, P, out)
    return out


def deform_attn(value, sizes, references, offsets, scores):
    """value [S, M, D], sizes ((H, W), ...), references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P]
    -> [Q, M*D]"""
    dtype = of_one_gpu("deform_attn", value, references, offsets, scores)
    Q, M, L, P, _ = offsets.shape
    if (value.ndim != 3 or value.shape[1] != M or references.shape not in ((Q, 2), (Q, 4))
            or offsets.shape != (Q, M, L, P, 2) or scores.shape != (Q, M, L * P) or len(sizes) != L
            or any(H < 0 or W < 0 for H, W in sizes) or sum(H * W for H, W in sizes) != len(value)):
        raise ValueError(f"deform_attn: value {value.shape}, sizes {sizes}, references {references.shape}, offsets "
                         f"{offsets.shape} and scores {scores.shape} do not fit together")
    if L > MOST_LEVELS:
        raise ValueError(f"deform_attn: expected at most {MOST_LEVELS} levels; got {L}")
    D, R = value.shape[2], references.shape[1]
    if not L * P:
        return np.zeros((Q, M * D), dtype, like=value)
    out = fresh((Q, M * D), value)
    if out.size:
        levels = np.zeros((), SIZES)
        levels["of"][:L] = sizes
        (offsets, offsets_step), (scores, scores_step) = rows_of(offsets), rows_of(scores)
        launch("deform_attn", dtype, Q, M * D, contiguous(value), levels, contiguous(references), offsets, scores,
               M, D, L, P, R, offsets_step, scores_step, out)
    return out


def layer_norm(x, weight, bias, eps=1e-5):
    """x [..., C], weight [C], bias [C] -> [..., C]"""
    return _norm(x, None, weight, bias, eps)


def add_norm(x, residual, weight, bias, eps=1e-5):
    """x [..., C], residual [..., C], weight [C], bias [C] -> [..., C]"""
    if residual.shape != x.shape:
        raise ValueError(f"add_norm: x {x.shape} and residual {residual.shape} do not fit together")
    return _norm(x, residual, weight, bias, eps)


def _norm(x, residual, weight, bias, eps):
    dtype = of_one_gpu("layer_norm", *(a for a in (x, residual, weight, bias) if a is not None))
    C = x.shape[-1]
    if weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"layer_norm: x {x.shape}, weight {weight.shape} and bias {bias.shape} do not fit together")
    out = fresh(x.shape, x)
    if out.size:
        launch("add_norm", dtype, x.size // C, C, contiguous(x), None if residual is None else contiguous(residual),
               contiguous(weight), contiguous(bias), dtype.type(eps), C, out)
    return out


def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """x [H, W, C], weight [C], bias [C] -> [H, W, C]"""
    dtype = of_one_gpu("group_norm", x, weight, bias)
    H, W, C = x.shape
    if C % groups or weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"group_norm: x {x.shape}, weight {weight.shape}, bias {bias.shape} and {groups} groups do "
                         "not fit together")
    out = fresh(x.shape, x)
    if out.size:
        launch("group_norm", dtype, groups, H * W * (C // groups), contiguous(x), contiguous(weight), contiguous(bias),
               np.float64(eps), H * W, groups, C // groups, out)
    return out


def softmax(x, axis=-1):
    """x [...] -> [...]"""
    dtype = of_one_gpu("softmax", x)
    axis = axis % x.ndim
    n, C = x.shape[axis], math.prod(x.shape[axis + 1 :])
    out = fresh(x.shape, x)
    if out.size:
        launch("softmax", dtype, x.size // n, n, contiguous(x), n, C, out)
    return out


def relu(x):
    """x [..., C] -> [..., C]"""
    return _activate("relu", x)


def gelu(x):
    """x [..., C] -> [..., C]"""
    return _activate("gelu", x)


def _activate(kernel, x, bias=None):
    """Activation of x + bias: x [..., C], bias [C] -> [..., C]"""
    dtype = of_one_gpu(kernel, *(a for a in (x, bias) if a is not None))
    C = x.shape[-1]
    if bias is not None and bias.shape != (C,):
        raise ValueError(f"{kernel}: bias {bias.shape} does not fit rows of {(C,)}")
    constants = [np.array((ERFC,), [("of", dtype, (len(ERFC),))])] if kernel == "gelu" else []
    out = fresh(x.shape, x)
    if out.size:
        launch(kernel, dtype, x.size // C, C, contiguous(x), None if bias is None else contiguous(bias), *constants, C,
               out)
    return out


def feed_forward(x, fc1, fc2, activation, residual=None):
    """x [N, C], residual [N, C] -> [N, C]: the first bias is added inside the activation's kernel"""
    of_one_gpu("feed_forward", x, *fc1.values(), *fc2.values(), *([] if residual is None else [residual]))
    N, C = len(x), len(fc2["weight"])
    if fc2["bias"].shape != (C,) or (residual is not None and residual.shape != (N, C)):
        raise ValueError(f"feed_forward: bias {fc2['bias'].shape} and residual "
                         f"{None if residual is None else residual.shape} do not fit rows of {(N, C)}")
    hidden = _activate(activation, x @ fc1["weight"].T, fc1["bias"])
    y = hidden @ fc2["weight"].T + fc2["bias"]
    return y if residual is None else y + residual


QUERIES = 8  # queries per block, one warp each, of one window: neighbouring warps read the same keys


def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> [H, W, M, D]"""
    dtype = of_one_gpu("attend_in_windows", qkv, qkv_bias, position_bias)
    H, W, three, M, D = qkv.shape
    if three != 3 or qkv_bias.shape != (3, M, D) or position_bias.shape != (M, k * k, k * k) or not 0 <= shift < k:
        raise ValueError(f"attend_in_windows: qkv {qkv.shape}, bias {qkv_bias.shape} and position bias "
                         f"{position_bias.shape} do not fit windows of {k} by {k}, shifted by {shift}")
    out = fresh((H, W, M, D), qkv)
    if out.size:
        windows = math.ceil(H / k) * math.ceil(W / k)
        launch("attend_in_windows", dtype, windows * M, min(k * k, QUERIES) * WARP, contiguous(qkv),
               contiguous(qkv_bias), contiguous(position_bias), H, W, M, D, k, shift, out)
    return out

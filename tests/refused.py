"""Wrong arguments for every op, derived from right ones: shapes, dtypes, numbers.

    python tests/refused.py LEVEL [OP ...]

A twin must refuse them with a ValueError or TypeError that names an op, or return what its reference returns. The
script checks the twins of one instruction set, and prints a line of JSON for each op: {"op", "faults"}. A crash
ends the script, so `test_refused.py` runs it in another process. The last line on stderr is then the case.
"""

from __future__ import annotations

import inspect
import json
import sys

import numpy as np
from places import mapped, parts, twin

from minigdino.runtime import kernels

HUGE = (2**31, 2**62)
CONVERTED = ("float32", "float16", "int64", "bool", "complex128", "object", ">f8")


def problems() -> dict[str, list[tuple]]:
    """Right arguments of every op: {op: [arguments, ...]}. The sizes differ, so no two axes fit by accident."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape)

    def layer(outputs, inputs):
        return {"weight": array(outputs, inputs), "bias": array(outputs)}

    def windows(H, W, k):
        return array(H, W, 6), *(layer(6, 6) for _ in range(4)), array((2 * k - 1) ** 2, 2), 2, k, 1, array(H, W, 6)

    return {
        "add_norm": [(array(2, 3, 5), array(2, 3, 5), array(5), array(5), 1e-5)],
        "attend": [(array(2, 3, 5), array(2, 4, 5), array(2, 4, 5), rng.random((3, 4)) < 0.8)],
        "attend_both_ways": [(array(7, 5), array(2, 3, 5), array(2, 3), array(2, 3, 5), array(5), array(7, 5))],
        "attend_in_windows": [(array(5, 7, 3, 2, 6), array(3, 2, 6), array(2, 4, 4), 2, 1)],
        "bilinear": [(array(4, 6, 2, 3), rng.random((5, 2, 7, 2)))],
        "deform_attn": [
            (array(26, 2, D), ((4, 5), (2, 3)), rng.random((7, R)), array(7, 2, 2, 3, 2), array(7, 2, 6))
            for D, R in ((5, 2), (32, 4))
        ],
        "feed_forward": [(array(N, 5), layer(7, 5), layer(5, 7), "gelu", array(N, 5)) for N in (3, 1100)],
        "gelu": [(array(2, 3, 5),)],
        "group_norm": [(array(3, 5, 12), array(12), array(12), 4, 1e-5)],
        "layer_norm": [(array(2, 3, 5), array(5), array(5), 1e-5)],
        "linear": [(array(2, 3, 5), array(7, 5), array(7), array(2, 3, 7)), (array(3, 5), array(7, 5), None, None)],
        "matmul": [(array(2, 3, 5), array(2, 5, 7)), (array(3, 5), array(5, 7))],
        "relu": [(array(2, 3, 5),)],
        "softmax": [(array(2, 3, 5), 1)],
        "through_samples": [
            (array(7, 2, D), array(26, 2, D), ((4, 5), (2, 3)), rng.random((7, 2, 2, 3, 2)), array(7, 2, 2, 3))
            for D in (5, 32)
        ],
        "through_windows": [(array(5, 7, 2, 6), array(5, 7, 3, 2, 6), array(3, 2, 6), array(2, 4, 4), 2, 1)],
        "window_attention": [windows(5, 7, 3), windows(9, 200, 3)],
    }


def cases(name):
    """Yield (description, arguments) of wrong arguments for an op."""
    names = list(inspect.signature(kernels.OPS[name]).parameters)
    for number, args in enumerate(problems()[name]):
        for i, arg in enumerate(args):
            for what, wrong in changes(arg):
                yield f"{number}: {names[i]} {what}", (*args[:i], wrong, *args[i + 1 :])
        for dtype in CONVERTED[1:]:
            yield f"{number}: all arrays {dtype}", mapped(lambda a, dtype=dtype: a.astype(dtype), args)
        yield f"{number}: all arrays empty", mapped(lambda a: a[:0], args)
        yield f"{number}: all arrays without channels", mapped(lambda a: a[..., :0], args)


def changes(value):
    """Yield (description, wrong value) for an argument."""
    if isinstance(value, np.ndarray):
        yield from of_array(value)
    elif isinstance(value, dict):
        for key, array in value.items():
            yield f"without {key}", {k: v for k, v in value.items() if k != key}
            yield from ((f"{key} {what}", {**value, key: wrong}) for what, wrong in changes(array))
    elif isinstance(value, tuple):
        yield from of_sizes(value)
    elif isinstance(value, str):
        yield from ((repr(wrong), wrong) for wrong in ("tanh", "softmax", "", None, 1))
    elif isinstance(value, int):
        numbers = (0, -1, -2, -value, value - 1, value + 1, 2 * value, *HUGE, *(-n for n in HUGE))
        yield from ((repr(wrong), wrong) for wrong in (*numbers, value + 0.5, float("nan"), None, "1", (1, 1)))


def of_array(a):
    """Yield (description, array) with another number of axes, other sizes or another dtype."""
    yield "without axes", a[(0,) * a.ndim][()] if a.ndim else a
    yield "as 0-d array", a.ravel()[0].reshape(())
    yield "flat", a.ravel()
    yield "without first axis", a[0]
    yield "without last axis", a[..., 0]
    yield "with a new first axis", a[None]
    yield "with a new last axis", a[..., None]
    yield "reversed axes", a.T
    for axis in range(a.ndim):
        n = a.shape[axis]
        for size in sorted({0, 1, n - 1, n + 1, 2 * n} - {n}):
            yield f"with axis {axis} of {size}", np.take(a, np.arange(size) % n, axis)
        for other in range(axis + 1, a.ndim):
            yield f"with axes {axis} and {other} swapped", a.swapaxes(axis, other)
    for dtype in CONVERTED:
        yield dtype, a.astype(dtype)
    yield "as list", a.tolist()
    yield "as one number", 1.0
    yield "None", None


def of_sizes(sizes):
    """Yield (description, sizes) for the rows and columns of levels."""
    (H, W), *rest = sizes
    for first in ((W, H), (H * W, 1), (1, H * W), (H, W + 1), (0, 0), (-H, -W), (H, -W), (2**32, 2**32), (H, 2**62),
                  (H + 0.5, W), (H,), (H, W, 1), H, None, "45"):
        yield f"beginning with {first}", (first, *rest)
    yield "reversed", sizes[::-1]
    yield "one too few", sizes[1:]
    yield "one too many", (*sizes, (0, 0))
    yield "joined", ((sum(H * W for H, W in sizes), 1),)
    yield "flat", tuple(n for size in sizes for n in size)
    yield "none", ()
    yield "None", None


def fault(name, run, args):
    """Return what is wrong with the way in which a twin handles arguments; None if nothing is.

    A TypeError that names no op is Python's own if the reference raises one too. A KeyError names the tensor that is
    missing. An empty array may give zeros or an empty result where the reference raises an error.
    """
    with np.errstate(all="ignore"):
        try:
            expected = kernels.OPS[name].reference(*args)
        except Exception as error:
            expected = error
        try:
            actual = run(*args)
        except (ValueError, TypeError, KeyError) as error:
            named = isinstance(error, KeyError) or str(error).partition(":")[0] in kernels.OPS
            same = isinstance(error, TypeError) and isinstance(expected, TypeError)
            return None if named or same else f"{type(error).__name__} names no op: {error}"
        except Exception as error:
            return f"expected a ValueError or TypeError; got {error!r}"
    if isinstance(expected, Exception):
        if not all(size(args)) and not any(part.any() for part in parts(actual)):
            return None
        return f"expected an error, as the reference raises {expected!r}; got a result"
    for got, wanted in zip(parts(actual), parts(expected), strict=True):
        if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True):
            return f"the result {got.shape} differs from the reference {wanted.shape}"
    return None


def size(args):
    """The number of elements of every array in nested arguments."""
    found = []
    mapped(lambda array: found.append(array.size), args)
    return found


def faults(name, place, log=lambda case: None):
    """Return the cases that a twin does not handle as it should: {case: what is wrong}."""
    found, run = {}, twin(name, place)
    for case, args in cases(name):
        log(case)
        if wrong := fault(name, run, args):
            found[case] = wrong
    return found


if __name__ == "__main__":
    for op in sys.argv[2:] or sorted(kernels.OPS):
        found = faults(op, sys.argv[1], lambda case, op=op: print(f"{op} {case}", file=sys.stderr, flush=True))
        print(json.dumps({"op": op, "faults": found}), flush=True)

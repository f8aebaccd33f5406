"""Emulation of CuPy for machines without a GPU: NumPy computes, but arrays move and dispatch as CuPy's do.

- Arrays dispatch as `cupy.ndarray` does (NEP 13 and 18, by the name of a function).
- Only the functions, methods and arguments listed below exist. `test_fake_gpu.py` compares the list with CuPy, where it
  is installed.
- `Rejected` is raised where CuPy would raise an error or wait for the GPU. Examples are host arrays as operands,
  conversion to NumPy, truth values, and boolean masks as indices.
- `Rejected` is also raised for a computation without a current device.
- Uninitialised memory holds NaN.
- A `Gpu` records every transfer and every kernel launch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter

import numpy as np

# Signatures of CuPy 14. Arguments that are left out here must not be used.
FUNCTIONS = {
    "all": "a, axis=None, out=None, keepdims=False",
    "arange": "start, stop=None, step=1, dtype=None",
    "argsort": "a, axis=-1, kind=None",
    "asarray": "a, dtype=None, order=None",
    "ascontiguousarray": "a, dtype=None",
    "broadcast_to": "array, shape",
    "clip": "a, a_min, a_max, out=None",
    "concatenate": "tup, axis=0, out=None",
    "empty": "shape, dtype=float, order='C'",
    "full": "shape, fill_value, dtype=None, order='C'",
    "moveaxis": "a, source, destination",
    "pad": "array, pad_width, mode='constant'",
    "roll": "a, shift, axis=None",
    "split": "ary, indices_or_sections, axis=0",
    "stack": "tup, axis=0, out=None",
    "where": "condition, x=None, y=None",
    "zeros": "shape, dtype=float, order='C'",
}
METHODS = {
    "astype": "dtype, order='K', casting=None, subok=None, copy=True",
    "max": "axis=None, out=None, keepdims=False",
    "mean": "axis=None, dtype=None, out=None, keepdims=False",
    "reshape": "*shape",
    "sum": "axis=None, dtype=None, out=None, keepdims=False",
    "swapaxes": "axis1, axis2",
    "transpose": "*axes",
}
UFUNCS = {
    "absolute", "add", "bitwise_and", "cos", "divmod", "equal", "exp", "floor", "floor_divide", "greater",
    "greater_equal", "less", "less_equal", "log", "matmul", "maximum", "multiply", "negative", "power", "sin", "sqrt",
    "subtract", "true_divide",
}  # fmt: skip
UFUNC_KEYWORDS = {"out"}
ATTRIBUTES = ("shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes")
VIEWS = {"broadcast_to", "moveaxis", "split", "swapaxes", "transpose"}  # these launch no kernel
CREATORS = {"arange", "asarray", "empty", "full", "zeros"}  # these take no array

SIGNATURES = {
    name: inspect.signature(eval(f"lambda {text}: 0")) for name, text in {**FUNCTIONS, **METHODS}.items()
}


class Gpu:
    """Counterpart of `minigdino.runtime.device.Gpu` that records transfers and launches."""

    current: Gpu | None = None

    def __init__(self, index=0):
        self.id, self.name = index, f"cuda:{index}"
        self.launched: Counter[str] = Counter()  # number of launches by kernel: of minigdino and of CuPy
        self.sent: list[tuple[int, ...]] = []  # shapes of arrays copied to the device
        self.fetched: list[tuple[int, ...]] = []  # shapes of arrays copied to the host

    @contextlib.contextmanager
    def computing(self):
        """Make this the current device."""
        before, Gpu.current = Gpu.current, self
        try:
            yield
        finally:
            Gpu.current = before

    def send(self, array):
        """Copy a host array to this device."""
        with self.computing():
            return np.asarray(array, like=Array(np.zeros(0)))

    def fetch(self, array):
        """Copy an array of this device to the host."""
        self.fetched.append(array.shape)
        return array.get()

    def clear(self):
        """Reset the records."""
        self.launched.clear()
        self.sent.clear()
        self.fetched.clear()


class Rejected(TypeError):
    """CuPy would raise an error here, or wait for the GPU."""


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the emulated GPU. Only this file and `on_host.py` read its elements, in `_host`."""

    def __init__(self, host):
        self._host, self.device = host, Gpu.current

    def get(self):
        """Return a copy as a NumPy array."""
        return self._host.copy()

    def __array__(self, *_, **__):
        raise Rejected("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        name = ufunc.__name__
        name = {"divide": "true_divide"}.get(name, name)
        if name not in UFUNCS or method != "__call__" or not keywords.keys() <= UFUNC_KEYWORDS:
            raise Rejected(f"numpy.{ufunc.__name__}, {method}, {sorted(keywords)}: not listed in fake_gpu.py")
        for x in (*inputs, *keywords.get("out", ())):
            if not isinstance(x, (Array, bool, int, float, np.generic)):
                raise Rejected(f"numpy.{name} of {type(x)}: CuPy accepts only its own arrays and scalars")
        launch(name)
        out = tuple(_unwrapped(keywords.get("out", ())))
        return _wrapped(ufunc(*map(_unwrapped, inputs), **({"out": out} if out else {})))

    def __array_function__(self, function, types, args, keywords):
        name = function.__name__
        if name not in FUNCTIONS or function.__module__ != "numpy":  # CuPy looks up the same path
            raise Rejected(f"numpy.{name}: not listed in fake_gpu.py")
        return checked_call(name, function, args, keywords)

    def __getitem__(self, key):
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, Array):
                if part.dtype.kind not in "iu":
                    raise Rejected(f"an index of dtype {part.dtype}: the size of the result must come from the GPU")
                launch("take")
            elif not (part is None or part is Ellipsis or type(part) in (int, slice)):
                raise Rejected(f"an index of {type(part)} would be copied to the GPU")
        return _wrapped(self._host[_unwrapped(key)])

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __len__(self):
        return len(self._host)

    @property
    def T(self):
        return Array(self._host.T)

    @property
    def flags(self):
        return self._host.flags

    def _rejected(self, *_, **__):
        raise Rejected("the program would wait for the GPU here")

    __bool__ = __int__ = __float__ = __index__ = item = tolist = __setitem__ = _rejected

    def __repr__(self):
        return f"fake {self._host!r}"


Array.__module__ = "cupy"  # minigdino/runtime/kernels.py recognises CuPy's arrays by this name


def _method(name):
    def method(self, *args, **keywords):
        return checked_call(name, getattr(type(self._host), name), (self, *args), keywords, is_method=True)

    return method


for _name in METHODS:
    setattr(Array, _name, _method(_name))
for _name in ATTRIBUTES:
    setattr(Array, _name, property(lambda self, name=_name: getattr(self._host, name)))


def checked_call(name, function, args, keywords, is_method=False):
    """Call a listed function or method, after checking its arguments against CuPy's signature."""
    try:
        SIGNATURES[name].bind(*args[is_method:], **keywords)
    except TypeError as error:
        raise Rejected(f"{name}: {error}; CuPy's signature is {SIGNATURES[name]}") from None
    if name == "argsort" and keywords.get("kind") not in (None, "stable"):
        raise Rejected(f'argsort: kind must be None or "stable"; got {keywords["kind"]!r}')
    if name == "asarray" and not isinstance(args[0], Array):
        Gpu.current.sent.append(np.shape(args[0]))
    elif name not in CREATORS:
        _no_host_arrays(name, (args, keywords))
    result = function(*_unwrapped(args), **_unwrapped(keywords))
    if name == "asarray" and not isinstance(args[0], Array):
        result = result.copy(order="K")  # the device has its own memory
    if name == "empty":
        result.fill(np.nan if result.dtype.kind == "f" else 77)
    copies = name == "reshape" and not np.shares_memory(result, args[0]._host) and result.size
    if copies or not (name in VIEWS or name in ("asarray", "empty", "reshape")):
        launch(name)
    elif Gpu.current is None:
        launch(name)  # raises Rejected
    return _wrapped(result)


def launch(name):
    """Record a kernel launch. Raises Rejected without a current device."""
    if Gpu.current is None:
        raise Rejected(f"{name}: outside `with device.computing()`, CuPy would use any GPU that is current")
    Gpu.current.launched[name] += 1


def _no_host_arrays(name, value):
    if isinstance(value, np.ndarray):
        raise Rejected(f"{name}: Unsupported type {type(value)}: a host array as an operand on the device")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ():
        _no_host_arrays(name, part)


def _unwrapped(x):
    if isinstance(x, Array):
        return x._host
    if isinstance(x, (tuple, list)):
        return type(x)(map(_unwrapped, x))
    return {key: _unwrapped(part) for key, part in x.items()} if isinstance(x, dict) else x


def _wrapped(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return Array(np.asarray(x))
    return type(x)(map(_wrapped, x)) if isinstance(x, (tuple, list)) else x

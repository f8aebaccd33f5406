"""An array that records how it was computed, so that gradients can be passed back: reverse-mode differentiation.

The layers of `minigdino.network` are functions of arrays. Called with a `Recorded` array, NumPy passes each of
its functions to this module (NEP 13 and NEP 18), which computes the value and records how the gradient of the result
becomes gradients of the operands. So no layer contains a line for learning.

For y = f(x), a rule computes the product g dy/dx, where g is the gradient of the final value with respect to y. It has
the shape of x. `RULES` has one for every function that a layer may use and that has a derivative. `CONSTANT` lists the
functions without one: their results are plain arrays. A call that no rule covers is an error.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

CONSTANT = frozenset({
    "all", "arange", "argsort", "asarray", "bitwise_and", "empty", "equal", "floor", "floor_divide", "full",
    "greater", "greater_equal", "less", "less_equal", "zeros",
})  # fmt: skip
CREATED = frozenset({"arange", "full"})  # those of CONSTANT whose arguments must be constants, too
OPERANDS = frozenset({"x", "a", "b", "condition"})  # arguments of rules that can be a recorded array
SEQUENCES = frozenset({"arrays", "operands"})  # arguments of rules that can contain recorded arrays


class Node:
    """A step of a computation: which steps it used, and how the gradient passes on to them.

    Attributes:
        back: called with the gradient of the result; yields pairs (node of an operand, its gradient). None for a step
            without operands, such as a parameter, and after the gradient has passed.
        number: counts the steps. An operand has a smaller number than a result.
    """

    __slots__ = ("back", "number")
    _numbers = itertools.count()

    def __init__(self, back: Callable[[Any], Iterable[tuple[Node, Any]]] | None = None):
        self.back, self.number = back, next(self._numbers)


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of which gradients are wanted, or that was computed from one.

    Attributes:
        value: the NumPy array.
        node: the step that computed it.
    """

    __slots__ = ("node", "value")

    def __init__(self, value: np.ndarray, node: Node):
        self.value, self.node = value, node

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    T = property(lambda self: self.transpose())

    def __array__(self, *_, **__):
        raise TypeError("a recorded array must not become a plain one on the way, because its gradient would be lost. "
                        "Use .value, or np.asarray(x, like=x), where no gradient is wanted")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        name = {"divide": "true_divide"}.get(ufunc.__name__, ufunc.__name__)  # one ufunc, whose name NumPy changed
        if method != "__call__" or keywords:
            raise TypeError(f"numpy.{name}: no gradient of .{method} with {sorted(keywords) or 'no keywords'}. Write a "
                            "plain call, which returns a new array")
        return _called(name, ufunc, [np.asarray(x) if isinstance(x, (list, tuple)) else x for x in inputs], {})

    def __array_function__(self, function, types, args, keywords):
        return _called(function.__name__, function, args, keywords)

    def __getitem__(self, key):
        return RULES["getitem"](self, key)

    def __len__(self):
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        raise TypeError("the truth value of a recorded array is unknown to its gradient. Compare .value instead")

    def _method(self, name, *args, **keywords):
        return _called(name, None, (self, *args), keywords)

    # as of np.ndarray
    astype = functools.partialmethod(_method, "astype")
    max = functools.partialmethod(_method, "max")
    mean = functools.partialmethod(_method, "mean")
    sum = functools.partialmethod(_method, "sum")
    reshape = functools.partialmethod(_method, "reshape")
    swapaxes = functools.partialmethod(_method, "swapaxes")
    transpose = functools.partialmethod(_method, "transpose")


_signature = functools.cache(inspect.signature)


def _called(name, function, args, keywords):
    """The result of a call with recorded arrays: by its rule, or a plain array for a function without a derivative."""
    if name in CONSTANT and (name not in CREATED or next(leaves((args, keywords)), None) is None):
        return function(*map(values, args), **{key: values(x) for key, x in keywords.items()})
    if name not in RULES:
        raise TypeError(f"numpy.{name} has no rule in learning/recording.py. Add one, with its test")
    try:
        arguments = _signature(RULES[name]).bind(*args, **keywords).arguments
    except TypeError as error:
        raise no_rule(name, str(error)) from None
    for argument, value in arguments.items():
        if argument in OPERANDS:
            if isinstance(value, (list, tuple)):
                raise no_rule(name, f"a list as argument {argument!r}")
        elif argument not in SEQUENCES and next(leaves(value), None) is not None:
            raise no_rule(name, f"a recorded argument {argument!r}")
    return RULES[name](*args, **keywords)


def no_rule(name, form):
    """The error of a call with arguments for which a rule gives no gradient."""
    return TypeError(f"numpy.{name} has no rule in learning/recording.py for this call: {form}. Write the call in "
                     "another way, or extend the rule, with its test")


def replaced(x: Any, function: Callable[[Recorded], Any]) -> Any:
    """The same structure of dicts, lists and tuples, with function(recorded array) in place of recorded arrays."""
    if isinstance(x, Recorded):
        return function(x)
    if isinstance(x, dict):
        return {key: replaced(part, function) for key, part in x.items()}
    return type(x)(replaced(part, function) for part in x) if type(x) in (list, tuple) else x


def values(x: Any) -> Any:
    """The same structure of dicts, lists and tuples, with plain arrays in place of recorded ones."""
    return replaced(x, lambda recorded: recorded.value)


def leaves(x):
    """Yield the recorded arrays in a structure of dicts, lists and tuples."""
    if isinstance(x, Recorded):
        yield x
    elif isinstance(x, (dict, list, tuple)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from leaves(part)


def record(value, *operands):
    """Record a result.

    Args:
        value: the result, an array.
        operands: pairs (operand, function of g that returns the gradient of the operand). Operands that are not
            recorded are constants, and their functions are not called.

    Returns:
        A `Recorded`, or the value itself if no operand is recorded. So is a value of integers, which are steps of the
        operands with the derivative 0.
    """
    if value.dtype.kind in "biu":
        return value
    if value.dtype.kind != "f":
        raise TypeError(f"arrays of {value.dtype} have no rule in learning/recording.py. Use real numbers")
    edges = [(x.node, pull) for x, pull in operands if isinstance(x, Recorded)]
    return Recorded(value, Node(lambda g: ((node, pull(g)) for node, pull in edges))) if edges else value


def pull_back(y, g, wanted: Iterable[Node]) -> dict[Node, np.ndarray]:
    """Pass a gradient back through all steps, latest first. The steps are forgotten on the way, which frees memory.

    All uses of a step are later steps. So when it is the latest that is left, its gradient is complete.

    Args:
        y: result of a computation, an array or a tuple of arrays.
        g: gradient of the final value with respect to y; for a tuple {index: gradient of that part}.
        wanted: nodes without operands.

    Returns:
        {node: gradient}; nodes on which y does not depend are missing.
    """
    pending: dict[Node, Any] = {}
    queue: list[tuple[int, Node]] = []

    def add(node, gradient):
        if node in pending:
            pending[node] = _sum(pending[node], gradient)
        else:
            pending[node] = gradient
            heapq.heappush(queue, (-node.number, node))

    for part, gradient in [(y[i], g[i]) for i in g] if isinstance(y, tuple) else [(y, g)]:
        if isinstance(part, Recorded):
            add(part.node, gradient)
    found, wanted = {}, set(wanted)
    while queue:
        _, node = heapq.heappop(queue)
        gradient = pending.pop(node)
        if node in wanted:
            found[node] = gradient
        elif node.back:
            for other, contribution in node.back(gradient):
                add(other, contribution)
            node.back = None
    return found


def _sum(a, b):
    """Sum of two gradients, of an array or of the parts {index: gradient} of a tuple."""
    return {**a, **b} if isinstance(a, dict) else a + b


RULES: dict[str, Callable[..., Any]] = {}


def rule(function):
    """Decorator that registers the rule of a NumPy function or method, under its name."""
    RULES[function.__name__.rstrip("_")] = function
    return function


def fitted(g, x):
    """The gradient of an operand that NumPy has broadcast: the sum over all copies of each element."""
    shape = np.shape(values(x))
    g = g.sum(axis=tuple(range(g.ndim - len(shape)))) if g.ndim > len(shape) else g
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 != g.shape[i])
    return g.sum(axis=stretched, keepdims=True) if stretched else g


def elementwise(function, *derivatives):
    """Make the rule of a ufunc.

    Args:
        function: the ufunc.
        derivatives: for each operand, a function of (g, y, *operands) that returns the gradient before `fitted`.
    """

    def called(*operands):
        arrays = values(operands)
        y = function(*arrays)
        return record(y, *((x, lambda g, x=x, d=d: fitted(d(g, y, *arrays), x)) for x, d in zip(operands, derivatives)))

    RULES[function.__name__ if function is not np.divide else "true_divide"] = called


elementwise(np.add, lambda g, y, a, b: g, lambda g, y, a, b: g)
elementwise(np.subtract, lambda g, y, a, b: g, lambda g, y, a, b: -g)
elementwise(np.multiply, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
elementwise(np.divide, lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b)
elementwise(np.negative, lambda g, y, x: -g)
elementwise(np.exp, lambda g, y, x: g * y)
elementwise(np.log, lambda g, y, x: g / x)
elementwise(np.log1p, lambda g, y, x: g / (1 + x))
elementwise(np.sqrt, lambda g, y, x: g / (2 * y))
elementwise(np.sin, lambda g, y, x: g * np.cos(x))
elementwise(np.cos, lambda g, y, x: -g * np.sin(x))
elementwise(np.power, lambda g, y, a, b: g * b * a ** (b - 1), lambda g, y, a, b: g * y * np.log(a))
# at a kink, the derivative from the right, as for x >= 0 in formulas with np.where(x < 0, ...)
elementwise(np.absolute, lambda g, y, x: np.where(x < 0, -g, g))
# where both are equal, the second one: the derivative of ReLU, maximum(x, 0), is 0 at 0
elementwise(np.minimum, lambda g, y, a, b: np.where(a < b, g, 0), lambda g, y, a, b: np.where(a < b, 0, g))
elementwise(np.maximum, lambda g, y, a, b: np.where(a > b, g, 0), lambda g, y, a, b: np.where(a > b, 0, g))


@rule
def matmul(a, b):
    """y = a b: da = g b^T, db = a^T g"""
    left, right = values((a, b))
    if min(left.ndim, right.ndim) < 2:
        raise no_rule("matmul", "an operand with one axis")
    return record(left @ right, (a, lambda g: fitted(g @ right.swapaxes(-1, -2), a)),
                  (b, lambda g: fitted(left.swapaxes(-1, -2) @ g, b)))


@rule
def clip(x, low=None, high=None):
    """The gradient passes where x is within the bounds."""
    y = np.clip(x.value, low, high)
    return record(y, (x, lambda g: fitted(np.where(y == x.value, g, 0), x)))


@rule
def where(condition, a, b):
    """Each operand gets the gradient of the elements that come from it."""
    condition = np.asarray(values(condition)).astype(bool)

    def pull(x, chosen):
        return x, lambda g: fitted(np.where(condition == chosen, g, 0), x)

    return record(np.where(condition, values(a), values(b)), pull(a, True), pull(b, False))


@rule
def sum_(x, axis=None, *, keepdims=False, dtype=None):
    """Every summand has the derivative 1."""
    if dtype is not None and np.dtype(dtype).kind != "f":
        raise no_rule("sum", f"dtype={np.dtype(dtype)}")
    return record(x.value.sum(axis, dtype, keepdims=keepdims),
                  (x, lambda g: np.broadcast_to(_kept(g, x, axis, keepdims), x.shape).astype(x.dtype)))


@rule
def mean(x, axis=None, *, keepdims=False, dtype=None):
    """A sum, divided by the number of elements."""
    total = sum_(x, axis, keepdims=keepdims, dtype=dtype)
    return total / (x.size // max(total.size, 1))


@rule
def max_(x, axis=None, *, keepdims=False):
    """The gradient passes to the largest element; elements that are equal share it."""
    y = x.value.max(axis, keepdims=True)
    largest = x.value == y
    share = largest / largest.sum(axis, dtype=x.dtype, keepdims=True)
    return record(y if keepdims else x.value.max(axis), (x, lambda g: share * _kept(g, x, axis, keepdims)))


def _kept(g, x, axis, keepdims):
    """The gradient of a reduction, with the reduced axes of x as axes of length 1."""
    if keepdims:
        return g
    axes = range(x.ndim) if axis is None else [i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))]
    return np.expand_dims(g, tuple(axes))


@rule
def astype(x, dtype):
    """The gradient is converted back."""
    return record(x.value.astype(dtype), (x, lambda g: g.astype(x.dtype)))


@rule
def reshape(x, *shape):
    """The gradient gets the old shape."""
    return record(x.value.reshape(*shape), (x, lambda g: g.reshape(x.shape)))


@rule
def swapaxes(x, axis1, axis2):
    """The same axes are swapped again."""
    return record(x.value.swapaxes(axis1, axis2), (x, lambda g: g.swapaxes(axis1, axis2)))


@rule
def transpose(x, *axes):
    """The inverse permutation of the axes."""
    order = range(x.ndim)[::-1] if axes in ((), (None,)) else np.ravel(axes) % x.ndim
    return record(x.value.transpose(*axes), (x, lambda g: g.transpose(*np.argsort(order))))


@rule
def moveaxis(x, source, destination):
    """The axes are moved back."""
    return record(np.moveaxis(x.value, source, destination), (x, lambda g: np.moveaxis(g, destination, source)))


@rule
def broadcast_to(x, shape):
    """Sum over all copies of an element."""
    return record(np.broadcast_to(x.value, shape), (x, lambda g: fitted(g, x)))


@rule
def roll(x, shift, axis=None):
    """The gradient is rolled back."""
    return record(np.roll(x.value, shift, axis), (x, lambda g: np.roll(g, np.negative(shift), axis)))


@rule
def pad(x, pad_width, mode: Any = "constant"):
    """The gradient of the padding is dropped."""
    if mode != "constant" or isinstance(pad_width, dict):
        raise no_rule("pad", f"mode {mode!r}, pad_width {pad_width}")
    widths = np.broadcast_to(pad_width, (x.ndim, 2))
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))
    return record(np.pad(x.value, pad_width, mode), (x, lambda g: g[inside]))


@rule
def concatenate(arrays, axis=0):
    """Each operand gets its part of the gradient."""
    arrays = _each(arrays)
    if axis is None:
        arrays, axis = [x.reshape(-1) for x in arrays], 0
    edges = np.cumsum([0, *(x.shape[axis] for x in arrays)])
    return record(np.concatenate(values(arrays), axis), *(
        (x, lambda g, a=a, b=b: np.moveaxis(np.moveaxis(g, axis, 0)[a:b], 0, axis))
        for x, a, b in zip(arrays, edges, edges[1:])))


@rule
def stack(arrays, axis=0):
    """Each operand gets its slice of the gradient."""
    arrays = _each(arrays)
    return record(np.stack(values(arrays), axis), *(
        (x, lambda g, i=i: np.moveaxis(g, axis, 0)[i]) for i, x in enumerate(arrays)))


def _each(arrays):
    """The operands as a list of arrays. An operand that is a list of recorded arrays is an error."""
    return [x if isinstance(x, Recorded) else np.asarray(x) for x in arrays]


@rule
def split(x, indices_or_sections, axis=0):
    """Every part is a slice."""
    before = (slice(None),) * (axis % x.ndim)
    parts = np.split(np.arange(x.shape[axis]), indices_or_sections)  # indices of each part, contiguous
    return [x[(*before, slice(part[0], part[-1] + 1) if len(part) else slice(0))] for part in parts]


@rule
def getitem(x, key):
    """An element gets the sum of the gradients of all its copies, or 0."""
    basic = all(part is None or part is ... or isinstance(part, (int, slice))
                for part in (key if isinstance(key, tuple) else (key,)))

    def pull(g):
        gradient = np.zeros(x.shape, x.dtype)
        if basic:
            gradient[key] = g
        else:
            np.add.at(gradient, key, g)  # an element can be chosen several times
        return gradient

    return record(x.value[key], (x, pull))

"""Gradients: every rule against finite differences in float64, every backward pass against the recorded formula."""

import re
import warnings

import fake_gpu
import numpy as np
import pytest
import shapecheck
import tiny
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from places import mapped
from strategies import LOOSE_PROBLEMS, rngs
from test_golden import CASES, GOLDEN, pixels_of

import minigdino
from minigdino.checkpoints.names import UNUSED
from minigdino.checkpoints.weights import build
from minigdino.learning import backward, recording
from minigdino.learning.gradients import value_and_gradients
from minigdino.network import decoder, queries
from minigdino.network.boxes import sigmoid
from minigdino.network.deformable import sampling_locations
from minigdino.network.model import forward
from minigdino.network.ops import detach
from minigdino.network.phrases import PUBLISHED_DELIMITERS
from minigdino.runtime import kernels

STEP = 1e-6


def arrays_in(value):
    """The float arrays in nested tuples, lists and dicts."""
    found = []
    mapped(lambda a: found.append(a) if a.dtype.kind == "f" else None, value)
    return found


def with_arrays(value, arrays):
    """The same structure with other float arrays."""
    rest = iter(arrays)
    return mapped(lambda a: next(rest) if a.dtype.kind == "f" else a, value)


def as_number(result, rng):
    """A sum of all elements of some results, with random weights: one number that depends on each of them."""
    parts = result if isinstance(result, (tuple, list)) else [result]
    return sum((part * rng.standard_normal(part.shape)).sum() for part in parts)


def gradients_of(function, args, seed=0, **options):
    """Value of `as_number` of function(*args), and the gradient of each float array in args."""
    parameters = dict(enumerate(arrays_in(args)))
    return value_and_gradients(lambda recorded: as_number(function(*with_arrays(args, recorded.values())),
                                                          np.random.default_rng(seed)), parameters, **options)


def assert_gradient(function, args, seed=0, tolerance=1e-6, **options):
    """Compare the slope along a random direction with the difference of two values."""
    _, gradients = gradients_of(function, args, seed, **options)
    rng = np.random.default_rng(seed + 1)
    arrays = arrays_in(args)
    for i, x in enumerate(arrays):
        direction = rng.standard_normal(x.shape)
        ends = [as_number(function(*with_arrays(args, [*arrays[:i], x + h * direction, *arrays[i + 1 :]])),
                          np.random.default_rng(seed)) for h in (STEP, -STEP)]
        slope = (ends[0] - ends[1]) / (2 * STEP)
        assert gradients[i].shape == x.shape and gradients[i].dtype == x.dtype
        scale = (abs(gradients[i]) * abs(direction)).sum()
        assert (gradients[i] * direction).sum() == pytest.approx(slope, rel=tolerance, abs=tolerance * (1 + scale))


@st.composite
def shapes(draw, smallest=1, n_axes=3):
    return tuple(draw(st.lists(st.integers(smallest, 4), min_size=1, max_size=n_axes)))


@st.composite
def broadcast(draw):
    """Two arrays that NumPy broadcasts, without zeros."""
    shape, rng = draw(shapes()), draw(rngs())
    other = tuple(draw(st.sampled_from([n, 1])) for n in shape)[draw(st.integers(0, len(shape))) :]
    pair = [rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n) for n in (shape, other)]
    return tuple(pair[:: draw(st.sampled_from([1, -1]))])


def one(function, low=-2.0, high=2.0, apart=0.0):
    """Problems of a function of one array with elements in a range, whose absolute values are at least `apart`."""
    @st.composite
    def problem(draw):
        x = draw(rngs()).uniform(low, high, draw(shapes()))
        return function, (np.where(abs(x) < apart, x + np.copysign(apart, x), x),)

    return problem()


def two(function):
    return broadcast().map(lambda pair: (function, pair))


def fixed(function, *shapes):
    """Problems of a function of arrays of given shapes."""
    return rngs().map(lambda rng: (function, tuple(rng.standard_normal(shape) for shape in shapes)))


INDICES = np.array([[2, 0], [2, 2]])
PROBLEMS = {  # for each rule, strategies of (function, arguments)
    "absolute": [one(np.absolute, apart=0.01)],
    "add": [two(np.add), two(lambda a, b: a + 1 + (2 + b))],
    "astype": [fixed(lambda x: x.astype(np.float64), (2, 3))],
    "broadcast_to": [fixed(lambda x: np.broadcast_to(x, (4, 2, 3)), (2, 1)), fixed(
        lambda x: np.broadcast_to(x[:, None], (2, 3)), (2,))],
    "clip": [one(lambda x: np.clip(x, -1.03, 0.97)), one(lambda x: np.clip(x, None, 0.97)), fixed(
        lambda x: np.clip(x, np.zeros((2, 1, 3)), 9), (2, 3))],
    "concatenate": [fixed(lambda *x, axis=axis: np.concatenate(x, axis), *shapes) for axis, shapes in (
        (0, ((2, 3), (1, 3))), (-1, ((2, 3), (2, 1), (2, 2))), (1, ((2, 3), (2, 2))), (None, ((2, 3), (2,))))],
    "cos": [one(np.cos)],
    "exp": [one(np.exp)],
    "getitem": [fixed(lambda x, key=key: x[key], (3, 4)) for key in (
        1, slice(None, None, 2), (slice(1, 3), slice(None, None, -1)), (..., None, 2), INDICES, (INDICES, INDICES),
        (slice(None), INDICES), np.array([True, False, True]), [0, 0], (slice(None), [0, 0, 1]))],
    "log": [one(np.log, 0.5, 3)],
    "log1p": [one(np.log1p, -0.5, 2)],
    "matmul": [fixed(np.matmul, *pair) for pair in (
        ((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 1)), ((2, 1, 2, 3), (4, 3, 2)), ((2, 3), (5, 3, 4)))],
    "max": [fixed(lambda x, o=o: x.max(**o), (3, 4)) for o in ({}, {"axis": 1}, {"axis": -1, "keepdims": True})],
    "maximum": [two(lambda a, b: np.maximum(a, 0.1 + 2 * b)), one(lambda x: np.maximum(x, 0), apart=0.01)],
    "mean": [fixed(lambda x, o=o: x.mean(**o), (3, 4, 2)) for o in (
        {}, {"axis": 1}, {"axis": (0, 2), "keepdims": True, "dtype": np.float64})],
    "minimum": [two(lambda a, b: np.minimum(a, 0.1 + 2 * b))],
    "moveaxis": [fixed(lambda x: np.moveaxis(x, -1, 0), (2, 3, 4))],
    "multiply": [two(np.multiply), fixed(lambda x: x * x, (3,)), fixed(lambda x: 2 * x * True, (3,))],
    "negative": [one(np.negative)],
    "pad": [fixed(lambda x, n=n: np.pad(x, n), (2, 3)) for n in (((1, 0), (0, 2)), (2, 1), 1)],
    "power": [one(lambda x: x**3), one(lambda x: x**-0.5, 0.5, 2), one(lambda x: 10**x), fixed(
        lambda a, b: abs(a) ** b, (3,), (3,))],
    "reshape": [fixed(lambda x: x.reshape(-1, 2), (3, 4)), fixed(lambda x: x.reshape((4, 3)), (3, 4))],
    "roll": [fixed(lambda x: np.roll(x, (1, -2), (0, 1)), (3, 4)), fixed(lambda x: np.roll(x, 1, 1), (3, 4))],
    "sin": [one(np.sin)],
    "split": [fixed(lambda x: np.split(x, [1, 3], axis=1), (2, 4)), fixed(lambda x: np.split(x, 3), (6, 2)),
              fixed(lambda x: np.split(x, [0, 2], axis=-1)[1:], (2, 4))],
    "sqrt": [one(np.sqrt, 0.5, 3)],
    "stack": [fixed(lambda *x, axis=axis: np.stack(x, axis), (2, 3), (2, 3)) for axis in (0, 1, -1)],
    "subtract": [two(np.subtract), two(lambda a, b: 1 - a - (b - 2))],
    "sum": [fixed(lambda x, o=o: x.sum(**o), (3, 4, 2)) for o in ({}, {"axis": 1}, {"axis": (0, 2), "keepdims": True})],
    "swapaxes": [fixed(lambda x: x.swapaxes(0, 2), (2, 3, 4))],
    "transpose": [fixed(lambda x: x.transpose(2, 0, 1), (2, 3, 4)), fixed(lambda x: x.T, (2, 3)), fixed(
        lambda x: x.transpose((1, 0, 2)), (2, 3, 4)), fixed(np.transpose, (2, 3)), fixed(
        lambda x: x.transpose(-1, 0, 1), (3, 3, 3))],
    "true_divide": [two(np.divide), one(lambda x: 1 / x, 0.5, 2)],
    "where": [two(lambda a, b: np.where(a * 0 + b > 0, a, b)), one(lambda x: np.where(x < 0, x * x, 1)), one(
        lambda x: np.where(np.array(True), 1.0, x)), two(lambda a, b: np.where(np.array(2), a, b))],
}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name in PROBLEMS for i in range(len(PROBLEMS[name]))])
@settings(max_examples=12)
@given(data=st.data())
def test_the_rule_of_every_function_gives_the_slope(name, number, data):
    assert_gradient(*data.draw(PROBLEMS[name][number]))


def test_every_function_that_a_layer_may_use_has_a_rule_or_no_derivative():
    """So a layer cannot use a new function before it has a rule, and a rule cannot stay without a test."""
    # only the launcher of CUDA kernels uses ascontiguousarray, which does not dispatch; divmod is for integers, because
    # its remainder has a derivative; losses run on the host
    allowed = {*fake_gpu.FUNCTIONS, *fake_gpu.METHODS, *fake_gpu.UFUNCS} - {"ascontiguousarray", "divmod"}
    assert recording.RULES.keys() | recording.CONSTANT == allowed | {"getitem", "log1p", "minimum"}
    assert not recording.RULES.keys() & recording.CONSTANT
    assert PROBLEMS.keys() == recording.RULES.keys()


X, Y = object(), object()  # in FORMS, two arrays [3, 3] that are recorded
AXES = [None, 0, 1, -1, (0, 1), (1, -2), [0, 1], 2]
SHAPES = [9, -1, (9,), (1, 9), [3, 3], (2, 3, 3)]
KEYS = [0, -1, True, None, ..., slice(None, None, -2), np.int64(1), [0, 0], [True, False, True], [[0, 1], [1, 1]],
        np.array([2, 0, 2]), (0, 1), ([0, 0], [1, 1]), (slice(None), [0, 0, 1]), ([0, 0], slice(1, 3)),
        (..., [1, 1]), ((0, 0), 1), (None, [2, 2]), np.eye(3, dtype=bool), X, (X, 0)]
NUMBERS = [X, Y, 2, -1.5, True, 1j, [1.0, 2, 3], np.full((2, 1, 3), 1.5), [X, Y, Y]]
SUMS = {"dtype": [None, np.float64, np.longdouble, int, complex], "keepdims": [False, True], "out": [None],
        "where": [True, np.eye(3) > 0], "initial": [1.0]}
FORMS = {  # values for each argument of calls, of which the last ones can be missing, and keyword arguments
    **{name: ([NUMBERS, NUMBERS], {"where": [True], "dtype": [np.float64]}) for name in (
        "add", "divmod", "floor_divide", "matmul", "maximum", "minimum", "multiply", "power", "subtract",
        "true_divide")},
    **{name: ([NUMBERS], {"dtype": [np.float64]}) for name in (
        "absolute", "cos", "exp", "floor", "log", "log1p", "negative", "sin", "sqrt")},
    **{name: ([[X], AXES, SUMS["dtype"]], SUMS) for name in ("max", "mean", "sum")},
    "astype": ([[X], [np.float64, float, np.longdouble, int, bool, complex, object]], {"copy": [True, False]}),
    "broadcast_to": ([[X], [*SHAPES, (3, 3)]], {"subok": [False, True]}),
    "clip": ([[X, np.ones((3, 3))], [None, -1, 0.5, Y, np.zeros(3), np.zeros((2, 1, 3))], [None, 0.7, Y, [1, 2, 0]]],
             {"a_min": [0], "dtype": [np.float64]}),
    "concatenate": ([[[X, Y], (X, Y, X), X, [X, np.ones((2, 3))], [X, [[1.0, 2, 3]]], [[X, Y], X]], AXES],
                    {"dtype": [None, np.longdouble]}),
    "full": ([[(2, 2)], [X, 1.0]], {"like": [X]}),
    "getitem": ([[X], KEYS], {}),
    "moveaxis": ([[X], AXES, AXES], {}),
    "pad": ([[X], [1, (1, 2), ((1, 2),), ((1, 0), (0, 2)), [[1], [2]], {0: 1}, np.array(2)],
             ["constant", "edge", "mean", "wrap"]], {"constant_values": [1.0], "mode": ["edge", "constant"]}),
    "reshape": ([[X], SHAPES], {"order": ["C", "F"], "copy": [True]}),
    "roll": ([[X], [1, -2, (1, 2), [1, 1], np.array(2)], AXES], {}),
    "split": ([[X], [1, 3, [1], (0, 2), [2, 1], np.array([-1]), 2], [0, 1, -1, 2]], {}),
    "stack": ([[[X, Y], (X, X), X, [X, np.eye(3)], [X, np.eye(3).tolist()]], [0, 1, -1, 3]],
              {"dtype": [None, np.longdouble]}),
    "swapaxes": ([[X], AXES, AXES], {}),
    "transpose": ([[X], [None, (1, 0), [0, 1], (-1, 0), (-1, -2), 0], [0, 1]], {"axes": [(0, 1)]}),
    "where": ([[X, True, [True, False, True], np.array([2, 0, 1])], NUMBERS, NUMBERS], {}),
}  # fmt: skip


@st.composite
def forms(draw):
    """A function of two arrays [3, 3]: a call in a form that NumPy accepts, whether or not it has a gradient."""
    name = draw(st.sampled_from(sorted(FORMS)))
    places, keywords = FORMS[name]
    args = [draw(st.sampled_from(values)) for values in places[: draw(st.integers(1, len(places)))]]
    named = draw(st.dictionaries(st.sampled_from(sorted(keywords)), st.none(), max_size=2)) if keywords else {}
    named = {key: draw(st.sampled_from(keywords[key])) for key in named}
    is_method = name in fake_gpu.METHODS and draw(st.booleans())

    def filled(value, x, y):
        if isinstance(value, (list, tuple)):
            return type(value)(filled(part, x, y) for part in value)
        return x if value is X else y if value is Y else value

    def function(x, y):
        values, options = filled(args, x, y), {key: filled(value, x, y) for key, value in named.items()}
        if name == "getitem":
            return values[0][values[1]]
        called = getattr(values.pop(0), name) if is_method else getattr(np, name)
        return called(*values, **options)

    function.__qualname__ = f"{name}({args}, {named}), method: {is_method}"
    return function


@settings(max_examples=500)
@given(forms(), rngs())
def test_every_form_of_a_call_is_refused_or_gives_the_slope(form, rng):
    """A gradient must not be wrong without an error."""
    arrays = tuple(rng.uniform(0.3, 1.8, (2, 3, 3)))

    def function(x, y):
        result = form(x, y)
        return [*(result if isinstance(result, (tuple, list)) else [result]), 0 * x, 0 * y]

    with np.errstate(all="ignore"), warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        try:
            results = [np.asarray(part) for part in function(*arrays)]
        except (TypeError, ValueError, IndexError, AttributeError):
            reject()  # NumPy refuses it, too
        assume(all(np.isfinite(result).all() for result in results if result.dtype.kind in "fc"))
        try:
            gradients_of(function, arrays)
        except TypeError as error:
            assert re.search("(has|have) no rule|no gradient of|gradient would be lost", str(error)), error
        else:
            assert {result.dtype.kind for result in results} <= set("fbiu")
            assert_gradient(function, arrays, tolerance=1e-5)


def recorded(*shape):
    return recording.Recorded(np.ones(shape), recording.Node())


@pytest.mark.parametrize(("use", "message"), [
    (lambda x: np.tanh(x), "numpy.tanh has no rule"),
    (lambda x: np.sort(x), "numpy.sort has no rule"),
    (lambda x: np.add(x, 1, out=np.ones(3)), "no gradient of .*out"),
    (lambda x: np.add.reduce(x), "reduce"),
    (lambda x: np.asarray(x), "gradient would be lost"),
    (lambda x: np.pad(x, 1, "edge"), "numpy.pad has no rule .* mode 'edge'"),
    (lambda x: divmod(x, 2), "numpy.divmod has no rule"),
    (lambda x: x @ x, "numpy.matmul has no rule .* one axis"),
    (lambda x: np.clip(x, x, 1), "numpy.clip has no rule .* recorded argument 'low'"),
    (lambda x: np.full(2, x[0], like=x), "numpy.full has no rule"),
    (lambda x: x.sum(where=True), "numpy.sum has no rule .* 'where'"),
    (lambda x: x.mean(0, np.float64), "numpy.mean has no rule"),
    (lambda x: np.stack([x, [x[0], x[1], x[2]]]), "gradient would be lost"),
    (lambda x: np.where(True, [x, x], x), "numpy.where has no rule .* list as argument 'a'"),
    (lambda x: x * 1j, "complex128 have no rule"),
    (lambda x: bool(x[0] > 0) or bool(x[0]), "truth value"),
    (lambda x: value_and_gradients(lambda p: p["x"], {"x": np.ones(3)}), "expected a number"),
    (lambda x: value_and_gradients(lambda p: 1.0, {"x": np.ones(3)}), "expected a number"),
])  # fmt: skip
def test_what_has_no_gradient_is_refused(use, message):
    with pytest.raises(TypeError, match=message):
        if use(recorded(3)):
            bool(recorded())


def test_an_array_that_is_used_several_times_gets_the_sum_of_all_gradients():
    x = np.array([1.0, 2.0])
    value, gradients = value_and_gradients(lambda p: (p["x"] * p["x"] + p["x"][0] * p["y"]).sum(), {"x": x, "y": x + 1})
    assert value == 10
    np.testing.assert_array_equal(gradients["x"], [2 + 5, 4])
    np.testing.assert_array_equal(gradients["y"], [1, 1])


def test_parameters_without_influence_have_gradients_of_zeros():
    _, gradients = value_and_gradients(lambda p: p["x"].sum() + (p["y"] > 0).sum() + detach(p["y"]).sum(),
                                       {"x": np.ones(2), "y": np.ones(3)})
    np.testing.assert_array_equal(gradients["y"], np.zeros(3))
    np.testing.assert_array_equal(gradients["x"], np.ones(2))


def test_detach_returns_the_array_itself():
    x = np.ones(3)
    assert detach(x) is x


def test_at_a_kink_the_derivative_is_that_from_the_right_and_of_relu_0():
    def slope(function):
        return float(value_and_gradients(lambda p: function(p["x"]).sum(), {"x": np.zeros(1)})[1]["x"][0])

    assert slope(abs) == 1
    assert slope(lambda x: np.maximum(x, 0)) == 0
    assert slope(sigmoid) == 0.25  # its formula has abs(x)
    for mode in kernels.MODES:
        with minigdino.use(mode):
            assert slope(kernels.OPS["gelu"]) == pytest.approx(0.5, abs=1e-7)
            assert slope(kernels.OPS["relu"]) == 0


def test_equal_largest_elements_share_the_gradient():
    _, gradients = value_and_gradients(lambda p: p["x"].max(), {"x": np.array([3.0, 1, 3])})
    np.testing.assert_array_equal(gradients["x"], [0.5, 0, 0.5])


FORWARD = sorted(name for name, op in kernels.OPS.items() if op.__module__.startswith("minigdino.network"))


def smooth(name, args):
    """Problems without kinks within a step, in the ranges of a model."""
    args = mapped(lambda a: np.clip(a, -3, 3) if a.dtype.kind == "f" else a, args)
    if name == "relu":
        args = mapped(lambda a: a + np.copysign(0.01, a), args)
    if name in ("bilinear", "deform_attn"):  # the slope of bilinear sampling changes at the centres of pixels
        sizes = (args[0].shape[:2],) if name == "bilinear" else args[1]
        locations = args[1][:, :, None] if name == "bilinear" else sampling_locations(args[2], args[3], sizes)
        pixels = locations * np.array(sizes)[:, None, ::-1] - 0.5  # [Q, M, L, P, 2]
        assume(abs(pixels - pixels.round()).min() > 100 * STEP)
    return tuple("gelu" if isinstance(arg, str) else arg for arg in args)


ROUNDING = {"gelu": 1e-6, "feed_forward": 1e-6}  # the formula differentiates the polynomial of erfc, the rule erfc


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("name", FORWARD)
@settings(max_examples=8)
@given(data=st.data())
def test_the_gradients_of_every_op_give_the_slope(name, mode, data):
    op, args = kernels.OPS[name], smooth(name, data.draw(LOOSE_PROBLEMS[name]()))
    with minigdino.use(mode):
        assert_gradient(op, args, tolerance=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", FORWARD)
@settings(max_examples=8)
@given(data=st.data())
def test_the_gradients_of_every_op_are_those_of_its_formula(name, recompute, data):
    op, args = kernels.OPS[name], data.draw(LOOSE_PROBLEMS[name]())
    value, gradients = gradients_of(op, args, recompute=recompute)
    with minigdino.use("reference"):
        expected_value, expected = gradients_of(op, args)
    tolerance = ROUNDING.get(name, 1e-10)
    assert value == pytest.approx(expected_value, rel=tolerance, abs=tolerance)
    for i, gradient in gradients.items():
        assert abs(gradient - expected[i]).max(initial=0) <= tolerance * abs(expected[i]).max(initial=1)


def test_only_operands_that_are_recorded_are_computed(monkeypatch):
    """A frozen weight costs nothing: its gradient, a third of a step, is not computed."""
    asked = []

    def rule(g, y, **arguments):
        return {name: lambda name=name: asked.append(name) or np.zeros(arguments[name].shape) for name in arguments}

    monkeypatch.setitem(backward.RULES, "linear", rule)
    w, b = np.ones((3, 2)), np.ones(3)
    value_and_gradients(lambda p: kernels.OPS["linear"](p["x"], w, bias=b).sum(), {"x": np.ones((4, 2))})
    assert asked == ["x"]


def test_ops_without_recorded_operands_run_their_twins(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "load", lambda path, real=kernels.load: calls.append(path) or real(path))
    x = np.ones((4, 2), np.float32)

    def frozen_then_trained(p):
        return kernels.OPS["linear"](kernels.OPS["relu"](x), p["w"]).sum()

    value_and_gradients(frozen_then_trained, {"w": np.ones((3, 2), np.float32)})
    assert [path.rpartition(":")[2] for path in calls] == ["relu", "linear"]


def output_weights(shape):
    """Weights of a sum of outputs, which do not depend on a random generator -> float32 [...]"""
    return np.sin(np.arange(np.prod(shape)) * 0.7 + 1).reshape(shape).astype(np.float32)


def eight(array):
    """Eight evenly spaced elements of an array, some of them several times if it has fewer."""
    return array.reshape(-1)[np.linspace(0, array.size - 1, 8).astype(int)]


def whole_model(name, dtype):
    """A weighted sum of all outputs of a small model, as a function of all tensors that it uses; and these tensors."""
    case, golden = CASES[name], dict(np.load(GOLDEN / f"{name}.npz"))
    model = tiny.model(case["family"], **case["geometry"])
    tensors = {name: array.astype(dtype) for name, array in model.tensors.items() if not UNUSED.fullmatch(name)}

    def function(tensors):
        output = forward(pixels_of(case).astype(dtype), np.array(case["ids"]), PUBLISHED_DELIMITERS,
                         build(tensors, model.config), model.config, selected=golden["selected"], details=True)
        return sum((x * output_weights(x.shape)).sum() for x in (
            output.layer_logits, output.layer_boxes, output.encoder_logits, sigmoid(output.encoder_boxes)))

    return function, tensors


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"mode": "reference"}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_every_tensor_is_that_of_transformers(name, options):
    """A bias of keys shifts all scores of a query alike, so its gradient is 0 but for rounding."""
    golden = np.load(GOLDEN / f"{name}_gradients.npz")
    function, tensors = whole_model(name, np.float32)
    with minigdino.use(options.get("mode", "fast")):
        _, gradients = value_and_gradients(function, tensors, recompute="recompute" in options)
    expected = {alias(tensor): pair for tensor, *pair in zip(golden["names"], golden["values"], golden["largest"])}
    assert gradients.keys() == tensors.keys()
    for tensor, gradient in gradients.items():
        values, largest = expected[alias(tensor)]
        error = abs(eight(gradient) - values).max()
        assert error <= 1e-4 * max(largest, 1 if tensor.endswith("key.bias") else 0), tensor


def alias(tensor):
    """One name for the two of a head: in transformers, the model and its decoder have the same heads."""
    return re.sub(r"^model\.decoder\.(?=bbox_embed|class_embed)", "", tensor)


def test_the_shapes_in_backward_passes_are_right():
    function, tensors = whole_model("grounding_dino", np.float32)
    with shapecheck.checked() as stated:
        value_and_gradients(function, tensors)
    assert {"backward.attend: A", "backward.deform_attn: locations"} <= stated


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_whole_model_gives_the_slope(name, monkeypatch):
    """Where boxes pass their gradients on, too: `detach` stops them in training."""
    for module in (decoder, queries):
        monkeypatch.setattr(module, "detach", lambda x: x)
    function, tensors = whole_model(name, np.float64)
    value, gradients = value_and_gradients(function, tensors)
    rng = np.random.default_rng(0)
    direction = {tensor: rng.standard_normal(x.shape) * abs(x).mean() for tensor, x in tensors.items()}
    ends = [function({tensor: x + h * direction[tensor] for tensor, x in tensors.items()}) for h in (1e-7, -1e-7)]
    slope = sum((gradients[tensor] * direction[tensor]).sum() for tensor in tensors)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-5)

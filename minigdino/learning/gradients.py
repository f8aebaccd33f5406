"""Gradients of functions of the layers with respect to the tensors of a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..runtime.kernels import intercepted, multiplying
from ..runtime.memory import reused
from .backward import run_op
from .recording import Node, Recorded, pull_back


def value_and_gradients(function: Callable[[dict], Any], parameters: Mapping[str, np.ndarray], *,
                        recompute: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compute the value of a function and its gradient with respect to each parameter.

    Args:
        function: called once with {name: recorded array}; returns one number, a recorded array [].
        parameters: {name: array}, all float32 or all float64.
        recompute: whether composed ops, such as the feed-forward network, compute their inner steps again in the
            backward pass. This takes less memory and more time.

    Returns:
        value: the number, an array [].
        gradients: {name: array of the parameter's shape}; zeros where the value does not depend on a parameter.

    Raises:
        TypeError: if the function returns no number that depends on the parameters, or uses a NumPy function that has
            no rule in `recording`.
    """
    recorded = {name: Recorded(array, Node()) for name, array in parameters.items()}
    with multiplying(), reused(), intercepted(functools.partial(run_op, recompute=recompute)):
        y = function(recorded)
    if not isinstance(y, Recorded) or y.shape:
        raise TypeError(f"expected a number that depends on the parameters; got {type(y).__name__} "
                        f"{getattr(y, 'shape', '')}. Return the sum of the losses")
    with multiplying(), reused():
        found = pull_back(y, np.ones((), y.dtype), [x.node for x in recorded.values()])
    return y.value, {name: found[x.node] if x.node in found else np.zeros(x.shape, x.dtype)
                     for name, x in recorded.items()}

"""The counted FLOPs equal those of the matrix products that run."""

import numpy as np
import pytest
import tiny

import minigdino
from minigdino.network.model import forward
from minigdino.network.phrases import PUBLISHED_DELIMITERS
from minigdino.runtime import flops


class Counting(np.ndarray):
    """An array that counts the FLOPs of its matrix products, and of those of all arrays computed from it."""

    flop = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(i) if isinstance(i, Counting) else i for i in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(o) if isinstance(o, Counting) else o for o in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counting.flop += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function, types, args, options):
        if not hasattr(function, "_implementation"):  # np.empty(..., like=) and its kind
            return function(*args, **options).view(Counting)
        result = super().__array_function__(function, types, args, options)
        return result.view(Counting) if type(result) is np.ndarray else result  # np.pad and others lose the type


def counting(weights):
    """Return the same tree with Counting arrays."""
    if isinstance(weights, dict):
        return {name: counting(value) for name, value in weights.items()}
    if isinstance(weights, (list, tuple)):
        return [counting(value) for value in weights]
    return weights.view(Counting) if isinstance(weights, np.ndarray) else weights


@pytest.mark.parametrize(
    ("family", "more", "size"),
    [("grounding-dino", {}, (64, 80)), ("mm-grounding-dino", {"levels": 5, "stages": (1, 2, 3, 4)}, (101, 131))],
)
def test_counted_flops_are_those_that_run(family, more, size):
    model = tiny.model(family, **more)
    config = model.config
    Counting.flop = 0
    with minigdino.use("reference"):
        forward(tiny.pixels(*size).view(Counting), tiny.IDS, PUBLISHED_DELIMITERS, counting(model.weights), config)
    S = flops.image_tokens(config, *size)
    points = 4 * config.num_feature_levels  # bilinear sampling, which is not a matrix product
    sampling = config.encoder_layers * flops.matmul(S, config.d_model, points * config.encoder_n_points)
    sampling += config.decoder_layers * flops.matmul(
        config.num_queries, config.d_model, points * config.decoder_n_points
    )
    assert pytest.approx(flops.total(config, *size, len(tiny.IDS)) - sampling, rel=1e-4) == Counting.flop


def test_reorderings_reduce_the_flops():
    config = minigdino.Config()
    none, implemented, all_of_them = (
        flops.total(config, 800, 1066, 9, reorderings) for reorderings in (flops.NONE, flops.IMPLEMENTED, flops.ALL)
    )
    assert none > 1.3 * implemented > 1.3 * all_of_them
    assert 480e9 < implemented < 490e9

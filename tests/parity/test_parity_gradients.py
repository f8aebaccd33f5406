"""The gradient of the loss with respect to every tensor equals that of transformers with PyTorch's autograd in float64.

In float64, this shows that the formulas are the same. What is left is the error of the GELU, 4e-8 of its value. In
float32, gradients differ by rounding. A few of them are sums of terms that cancel, or jump where a sampling point lies
between two pixels. They may differ by as much as the gradient of transformers does when its parameters are rounded.
"""
import contextlib
import copy
import functools
import re
from unittest import mock

import numpy as np
import pytest
from oracle import FAMILIES, GEOMETRIES, new_pair, noise, selecting, small, torch
from test_parity_losses import IDS, annotated

import minigdino
from minigdino.checkpoints.names import UNUSED, published
from minigdino.checkpoints.weights import build
from minigdino.learning.gradients import value_and_gradients
from minigdino.learning.recording import values
from minigdino.network import losses, matching
from minigdino.network.model import forward
from minigdino.network.ops import detach
from minigdino.network.phrases import PUBLISHED_DELIMITERS

LOSS = {np.float64: 1e-7, np.float32: 1e-5}  # largest relative differences
GRADIENT = {np.float64: 1e-6, np.float32: 1e-4}  # of a tensor's largest gradient
ROUNDING = 1e-6  # relative change of parameters; errors of float32 add up to it over the layers


def alias(tensor):
    """One name for the two of a head: in transformers, the model and its decoder have the same heads."""
    return re.sub(r"^model\.decoder\.(?=bbox_embed|class_embed)", "", tensor)


@contextlib.contextmanager
def float64_only():
    """Transformers computes positions, anchors and Swin's softmax in float32, also if its parameters are float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch, "float32", torch.float64):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def autograd(reference, pixels, labels, selected=None):
    """Loss, gradient of each tensor and selected image tokens, all in float64."""
    reference.requires_grad_(True).zero_grad()
    with float64_only(), selecting(selected):
        output = reference(pixel_values=torch.tensor(pixels, dtype=torch.float64)[None],
                           input_ids=torch.tensor(IDS)[None],
                           labels=[{**one, "boxes": one["boxes"].double()} for one in labels])
        output.loss.backward()
    if selected is None:
        selected = torch.topk(output.enc_outputs_class.max(-1)[0], output.logits.shape[1], dim=1)[1][0].numpy()
    return output.loss.item(), {alias(published(name)): np.zeros(x.shape) if x.grad is None else x.grad.numpy().copy()
                                for name, x in reference.named_parameters()}, selected


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_every_tensor_is_equal(family, geometry):
    model, reference = new_pair(small(family, geometry, auxiliary_loss=True))
    pixels, (targets, labels) = noise(96, 160), annotated(5)
    expected_loss, expected, selected = autograd(reference.double(), pixels, labels)
    typical = np.median([abs(gradient).max() for gradient in expected.values()])

    def loss(tensors, dtype):
        output = forward(pixels.astype(dtype), np.array(IDS), PUBLISHED_DELIMITERS, build(tensors, model.config),
                         model.config, selected=selected, details=True)
        # the encoder's term of transformers: its logits do not depend on the image, its boxes are detached
        encoder = {"_enc": (output.query_logits, detach(output.references[0]))}
        stages = losses.stages(output, True) | encoder
        matches, _ = matching.match(values(stages), targets, model.config)
        return losses.total(losses.losses(stages, targets, matches, model.config), model.config)

    @functools.cache
    def rounded(seed):
        """The gradients of transformers with slightly different parameters."""
        other, random = copy.deepcopy(reference), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in other.parameters():
                x.mul_(1 + ROUNDING * torch.randn(x.shape, generator=random, dtype=x.dtype))
        return autograd(other, pixels, labels, selected)[1]

    sensitive = set()
    for dtype in LOSS:
        tensors = {name: x.astype(dtype) for name, x in model.tensors.items() if not UNUSED.fullmatch(name)}
        for mode in ("fast", "reference"):
            with minigdino.use(mode):
                value, gradients = value_and_gradients(functools.partial(loss, dtype=dtype), tensors)
            assert float(value) == pytest.approx(expected_loss, rel=LOSS[dtype])
            assert gradients.keys() == tensors.keys()
            for name, gradient in gradients.items():
                theirs = expected[alias(name)]
                # a bias of keys shifts all scores of a query alike, so its gradient is 0 but for rounding
                largest = typical if name.endswith("key.bias") else abs(theirs).max()
                if (error := abs(gradient - theirs).max()) > GRADIENT[dtype] * largest:
                    assert dtype is np.float32, f"float64, {mode}: {name}: {error:.1e} of {largest:.1e}"
                    sensitive.add(name)
                    assert error <= max(abs(rounded(seed)[alias(name)] - theirs).max() for seed in range(3)), (
                        f"float32, {mode}: {name}: {error:.1e} of {largest:.1e}")
    assert len(sensitive) < 0.01 * len(tensors)

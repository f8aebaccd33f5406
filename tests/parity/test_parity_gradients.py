"""The gradient of the loss with respect to every tensor equals that of transformers with PyTorch's autograd.

A few gradients are sums of terms that cancel, or jump where a sampling point lies between two pixels. Rounding of the
pixels then changes the gradients of transformers as much as they differ from ours.
"""
import re

import numpy as np
import pytest
from oracle import FAMILIES, GEOMETRIES, new_pair, noise, perturbed, small, torch
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

RELATIVE = 1e-4  # of a tensor's largest gradient


def alias(tensor):
    """One name for the two of a head: in transformers, the model and its decoder have the same heads."""
    return re.sub(r"^model\.decoder\.(?=bbox_embed|class_embed)", "", tensor)


def autograd(reference, pixels, labels):
    """Loss, gradient of each tensor and selected image tokens."""
    reference.requires_grad_(True).zero_grad()
    output = reference(pixel_values=torch.tensor(pixels)[None], input_ids=torch.tensor(IDS)[None], labels=labels)
    output.loss.backward()
    selected = torch.topk(output.enc_outputs_class.max(-1)[0], output.logits.shape[1], dim=1)[1][0].numpy()
    return output.loss.item(), {alias(published(name)): None if x.grad is None else x.grad.numpy()
                                for name, x in reference.named_parameters()}, selected


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_every_tensor_is_equal(family, geometry):
    model, reference = new_pair(small(family, geometry, auxiliary_loss=True))
    pixels, (targets, labels) = noise(96, 160), annotated(5)
    expected_loss, expected, selected = autograd(reference, pixels, labels)
    tensors = {name: array for name, array in model.tensors.items() if not UNUSED.fullmatch(name)}

    def loss(tensors):
        output = forward(pixels, np.array(IDS), PUBLISHED_DELIMITERS, build(tensors, model.config), model.config,
                         selected=selected, details=True)
        # the encoder's term of transformers: its logits do not depend on the image, its boxes are detached
        encoder = {"_enc": (output.query_logits, detach(output.references[0]))}
        stages = losses.stages(output, True) | encoder
        matches, _ = matching.match(values(stages), targets, model.config)
        return losses.total(losses.losses(stages, targets, matches, model.config), model.config)

    def sensitivity(name):
        """The largest change of a gradient of transformers when pixels change by 1e-7."""
        changed = [autograd(reference, perturbed(pixels, seed), labels)[1][alias(name)] for seed in range(3)]
        return max(abs(gradient - expected[alias(name)]).max() for gradient in changed)

    sensitive = set()
    for mode in ("fast", "reference"):
        with minigdino.use(mode):
            value, gradients = value_and_gradients(loss, tensors)
        assert float(value) == pytest.approx(expected_loss, rel=1e-5)
        assert gradients.keys() == tensors.keys()
        typical = np.median([abs(g).max() for g in gradients.values()])
        for name, gradient in gradients.items():
            theirs = expected[alias(name)]
            theirs = np.zeros(gradient.shape) if theirs is None else theirs
            # a bias of keys shifts all scores of a query alike, so its gradient is 0 but for rounding
            tolerance = RELATIVE * (typical if name.endswith("key.bias") else abs(theirs).max())
            if (error := abs(gradient - theirs).max()) > tolerance:
                sensitive.add(name)
                assert error <= 3 * sensitivity(name), f"{mode}: {name}"
    assert len(sensitive) < 0.01 * len(tensors)

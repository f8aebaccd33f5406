"""AdamW (arXiv 1711.05101, Algorithm 2), gradient clipping and the learning rate, as pure functions of arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..checkpoints.names import BACKBONE, UNUSED

BETAS = 0.9, 0.999  # decay of the two running means, as in Table 8 of Grounding DINO's appendix and in PyTorch
EPS = 1e-8
BACKBONES = "backbone", "text"  # groups with a lower rate
SLOWER = 0.1  # their rate is a tenth of the others' (Table 8 of the appendix: 1e-5 and 1e-4)
NEW_WORDS = "new_words"  # the embeddings of new words, which are no tensor of a checkpoint on their own
FASTER = 10.0  # their rate is ten times that of the others

# Groups of tensors by published name; the first pattern that matches counts
GROUPS = {
    "backbone": re.compile(re.escape(BACKBONE)),
    "text": re.compile(r"model\.text_backbone\."),
    "heads": re.compile(r"(model\.decoder\.)?(bbox|class)_embed\.|model\.encoder_output_"),
    "decoder": re.compile(r"model\.(decoder|enc_output|enc_output_norm|query_position_embeddings)\."),
    "enhancer": re.compile(r""),
}
TRAINED = {  # what a run trains -> its groups
    "heads": ("heads",),
    "decoder": ("heads", "decoder"),
    "detector": ("heads", "decoder", "enhancer"),
    "all": tuple(GROUPS),
}


def group(name: str) -> str:
    """Return the group of a tensor.

    Args:
        name: its published name.

    Returns:
        "backbone" and "text" for the two backbones, "heads" for box and class heads, "decoder" for the rest of the
        decoder and the query selection, and "enhancer" for the feature enhancer and the projections before it.
    """
    return next(group for group, pattern in GROUPS.items() if pattern.match(name))


def relative_rate(name: str) -> float:
    """Return the learning rate of a tensor, as a multiple of that of a run."""
    if name == NEW_WORDS:
        return FASTER
    return SLOWER if group(name) in BACKBONES else 1.0


def trained_names(names, what: str) -> list[str]:
    """List the tensors that a run trains.

    Args:
        names: published names of all tensors.
        what: a key of `TRAINED`.

    Returns:
        Sorted names.
    """
    return sorted(name for name in names if not UNUSED.fullmatch(name) and group(name) in TRAINED[what])


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether weight decay applies to a tensor: to matrices, kernels and embeddings, not to biases and norms.

    So it is in the trainer of transformers. MMDetection applies it to biases and norms, too.

    Args:
        name: published name.
        shape: shape of the tensor.
    """
    return len(shape) > 1 and "bias" not in name  # the table of relative position biases has two axes


def learning_rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Return the learning rate of a step: it rises linearly to the peak, then falls to 0 along half a cosine.

    Args:
        step: number of the step, from 0.
        steps: number of steps.
        peak: highest rate.
        warm_up: number of steps in which the rate rises.

    Returns:
        The rate, above 0.
    """
    if step < warm_up:
        return peak * (step + 1) / (warm_up + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def global_norm(gradients: Mapping[str, np.ndarray]) -> float:
    """Return the Euclidean norm of all gradients together, summed in float64."""
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))


def clip_factor(norm: float, limit: float) -> float:
    """Return the factor that scales gradients of a global norm to at most a limit; 1 for smaller ones."""
    return min(1.0, limit / norm) if norm else 1.0


@dataclass(frozen=True, eq=False)
class Moments:
    """State of AdamW for one parameter: running means of its gradient and of the square of its gradient."""

    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def zeros(cls, parameter: np.ndarray) -> Moments:
        """The state before the first step."""
        return cls(np.zeros_like(parameter), np.zeros_like(parameter))


def adamw(parameter, gradient, moments, step, rate, decay, betas=BETAS, eps=EPS):
    """One step of AdamW (arXiv 1711.05101, Algorithm 2, lines 6 to 12). No argument is changed.

    Args:
        parameter [...]: values.
        gradient [...]: gradient of the loss.
        moments: `Moments` before the step.
        step: number of the step, from 0.
        rate: learning rate.
        decay: weight decay; the parameter shrinks by the factor 1 - rate * decay.
        betas: decay of the running means.
        eps: bound of the denominator.

    Returns:
        The new parameter [...] and the new `Moments`.
    """
    mean = betas[0] * moments.mean + (1 - betas[0]) * gradient
    square = betas[1] * moments.square + (1 - betas[1]) * gradient * gradient
    # both start at 0, so they are too small by these factors
    unbiased_mean, unbiased_square = mean / (1 - betas[0] ** (step + 1)), square / (1 - betas[1] ** (step + 1))
    change = rate * unbiased_mean / (np.sqrt(unbiased_square) + eps)
    # asarray: arithmetic makes scalars of arrays without axes, such as a class bias
    return np.asarray(parameter * (1 - rate * decay) - change), Moments(np.asarray(mean), np.asarray(square))

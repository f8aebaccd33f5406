"""The scenes of the evaluation, and their prompts: the same ones for every call with one seed."""

from collections.abc import Iterator

import numpy as np

from training.prompts import Prompt, random_prompt
from training.world import HELD_OUT, SEEN, Scene, draw_scene

SEED = 20260  # differs from all training seeds, so no scene occurs in training


def seen(rng: np.random.Generator, **drawing) -> tuple[Scene, Prompt]:
    """Scenes of pairs that occur in training, with prompts of every kind."""
    scene = draw_scene(rng, **drawing)
    return scene, random_prompt(scene.things, rng)


def unseen(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Scenes in which about half of the objects are held-out pairs, with prompts that name held-out pairs.

    The other objects have the same colours and shapes, in other combinations.
    """
    scene = draw_scene(rng, pairs=SEEN + HELD_OUT * (len(SEEN) // len(HELD_OUT)))
    return scene, random_prompt(scene.things, rng, held_out=True, kinds=(1.0, 0.0, 0.0))


def absent(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Prompts that name only absent objects. Often the colour or the shape of a phrase is present."""
    scene = draw_scene(rng)
    return scene, random_prompt(scene.things, rng, absent=True)


def larger(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Images of 192 to 512 pixels per side."""
    return seen(rng, size=(int(rng.integers(192, 513)), int(rng.integers(192, 513))))


def jpeg(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Images stored as JPEG of quality 50."""
    return seen(rng, jpeg=50)


def other(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """A second drawing style: bent edges, outlines and other proportions."""
    return seen(rng, other=True)


SETS = {"seen": seen, "unseen": unseen, "larger": larger, "jpeg": jpeg, "other": other}


def scenes(name: str, count: int, seed: int = SEED) -> Iterator[tuple[Scene, Prompt]]:
    """Generate the scenes of a set, the same for every call with one seed; scenes without a prompt are skipped.

    Args:
        name: a key of SETS, or "absent".
        count: number of scenes.
        seed: random seed.
    """
    kind, number = {**SETS, "absent": absent}[name], 0
    while count:
        rng = np.random.default_rng([seed, *name.encode(), number])
        scene, prompt = kind(rng)
        number += 1
        if prompt.phrases:
            count -= 1
            yield scene, prompt

"""Evaluate a checkpoint: python -m training.evaluate minigdino/models/shapes [--json figures.json]"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.precision import Precision
from training.predict import BACKENDS, Predict
from training.prompts import Prompt, random_prompt
from training.world import HELD_OUT, SEEN, Scene, draw_scene

SEED = 20260  # differs from all training seeds, so no scene occurs in training
FALSE_BOX = 0.4  # a box for an absent phrase is a false box above this score


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


def average_precision(predict: Predict, name: str, count: int) -> dict[str, float]:
    """Measure AP, AP50 and AP75 over all queries, on the first `count` scenes of a set."""
    precision = Precision()
    for scene, prompt in scenes(name, count):
        boxes, scores = predict(scene.image, prompt.phrases)
        for i, meaning in enumerate(prompt.meanings):
            truth = np.array([t.box for t in scene.things if meaning.fits(t)])
            precision.add(meaning, boxes, scores[:, i], truth)
    return precision.summary()


def false_boxes(predict: Predict, count: int) -> float:
    """Count the boxes per image with a score above FALSE_BOX, when every phrase is absent."""
    return float(
        np.mean([(predict(s.image, p.phrases)[1].max(axis=1) > FALSE_BOX).sum() for s, p in scenes("absent", count)])
    )


def figures(predict: Predict, count: int) -> dict:
    """Measure all figures of the model card."""
    result = {name: average_precision(predict, name, count) for name in SETS}
    return {"scenes": count, **result, "false_boxes": false_boxes(predict, count)}


def main() -> None:
    """Print the figures, and write them as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", choices=BACKENDS, default="transformers")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = figures(BACKENDS[options.backend](options.folder), options.scenes)
    for name in SETS:
        print(f"{name:8}", "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    print(f"false boxes per image, all phrases absent, threshold {FALSE_BOX}: {result['false_boxes']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

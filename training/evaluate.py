"""The figures of a checkpoint: python -m training.evaluate minigdino/models/shapes [--json figures.json]"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.precision import Precision
from training.predict import BACKENDS, Predict
from training.prompts import Prompt, ask
from training.world import HELD_OUT, SEEN, Scene, draw_scene

SEED = 20260  # apart from any training seed, so that every scene is fresh
FALSE_BOX = 0.4  # a box on an absent phrase counts as false from this score on


def seen(rng: np.random.Generator, **drawing) -> tuple[Scene, Prompt]:
    """Pairs that training drew, prompts of every kind."""
    scene = draw_scene(rng, **drawing)
    return scene, ask(scene.things, rng)


def unseen(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Held-out pairs, half of all things, asked for by name; the others share their colours and shapes."""
    scene = draw_scene(rng, pairs=SEEN + HELD_OUT * (len(SEEN) // len(HELD_OUT)))
    return scene, ask(scene.things, rng, held_out=True, kinds=(1.0, 0.0, 0.0))


def absent(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Every phrase about something that is not there, often half of it: its colour or its shape."""
    scene = draw_scene(rng)
    return scene, ask(scene.things, rng, absent=True)


def larger(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Pictures of 192 to 512 pixels a side."""
    return seen(rng, size=(int(rng.integers(192, 513)), int(rng.integers(192, 513))))


def jpeg(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Stored as JPEG of quality 50."""
    return seen(rng, jpeg=50)


def other(rng: np.random.Generator) -> tuple[Scene, Prompt]:
    """Hand-drawn: bent edges, a pencil line round each, other proportions."""
    return seen(rng, other=True)


SETS = {"seen": seen, "unseen": unseen, "larger": larger, "jpeg": jpeg, "other": other}


def scenes(name: str, count: int, seed: int = SEED) -> Iterator[tuple[Scene, Prompt]]:
    """The first `count` scenes of a set that have a prompt; always the same ones of a seed."""
    kind, number = {**SETS, "absent": absent}[name], 0
    while count:
        rng = np.random.default_rng([seed, *name.encode(), number])
        scene, prompt = kind(rng)
        number += 1
        if prompt.phrases:
            count -= 1
            yield scene, prompt


def average_precision(predict: Predict, name: str, count: int) -> dict[str, float]:
    """AP, AP50 and AP75 over all queries on the first `count` scenes of a set."""
    precision = Precision()
    for scene, prompt in scenes(name, count):
        boxes, scores = predict(scene.image, prompt.phrases)
        for i, meaning in enumerate(prompt.meanings):
            truth = np.array([t.box for t in scene.things if meaning.fits(t)])
            precision.add(meaning, boxes, scores[:, i], truth)
    return precision.summary()


def false_boxes(predict: Predict, count: int) -> float:
    """How many boxes a picture get a score above FALSE_BOX for any phrase, when no phrase is there."""
    return float(
        np.mean([(predict(s.image, p.phrases)[1].max(axis=1) > FALSE_BOX).sum() for s, p in scenes("absent", count)])
    )


def figures(predict: Predict, count: int) -> dict:
    """Everything the model card quotes."""
    result = {name: average_precision(predict, name, count) for name in SETS}
    return {"scenes": count, **result, "false_boxes": false_boxes(predict, count)}


def main() -> None:
    """Print the figures, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", choices=BACKENDS, default="transformers")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = figures(BACKENDS[options.backend](options.folder), options.scenes)
    for name in SETS:
        print(f"{name:8}", "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    print(f"false boxes per picture, all phrases absent, threshold {FALSE_BOX}: {result['false_boxes']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

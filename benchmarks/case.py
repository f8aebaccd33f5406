"""Write the input files of a benchmark: a checkpoint, and the pixels and token ids of one image and one prompt.

    python -m benchmarks.case FOLDER [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT]

"random" is the published tiny geometry with random weights. The image is resized to exactly the given size, without
keeping its aspect ratio. The other commands run this one in a separate process, to keep their own memory small
(`processes.py` gives the reason).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "scene.jpg"
SHAPES = ROOT / "minigdino" / "models" / "shapes"
BUILT_IN = ("random", "shapes")  # models that are not given as a directory


class Case(NamedTuple):
    """Paths of the input files."""

    folder: Path
    checkpoint: Path
    inputs: Path  # pixels [3, H, W] float32 and ids [T] int64


def case(folder, model: str) -> Case:
    """Return the paths of a case in a folder. The files need not exist."""
    known = {"random": Path(folder) / "checkpoint", "shapes": SHAPES}
    return Case(Path(folder), known.get(model, Path(model)), Path(folder) / "inputs.npz")


def pictures(size, n: int = 1):
    """Yield the image n times, each time shifted by another distance: uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    height, width = size
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize((width, height)))
    for i in range(n):
        yield np.roll(picture, i * width // n, axis=1)


def edges(size):
    """Return the argument `size` of `preprocess` and `detect` that leaves an image of this size unchanged."""
    return min(size), max(size)


def write(where: Case, model: str, size, text: str) -> None:
    """Write the checkpoint, if the model is "random", and the inputs."""
    import numpy as np

    import minigdino
    from minigdino.prompt import Tokenizer

    where.folder.mkdir(parents=True, exist_ok=True)
    if model == "random":
        minigdino.Model.random(tokenizer=Tokenizer.from_directory(SHAPES)).save(where.checkpoint)
    network = minigdino.load(where.checkpoint)
    pixels = network.preprocess(next(pictures(size)), size=edges(size))
    np.savez(where.inputs, pixels=pixels, ids=network.tokenize(text).ids)


def add_options(options: argparse.ArgumentParser) -> None:
    """Add the options that select a case."""
    options.add_argument("--model", default="random", help="random, shapes, or the directory of a checkpoint")
    options.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--text", default="a star. a green heart.", help="the prompt; by default one of nine tokens")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder")
    add_options(options)
    options = options.parse_args()
    write(case(options.folder, options.model), options.model, options.size, options.text)

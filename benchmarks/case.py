"""What all programs are given, as files: a checkpoint, and the pixels and token ids of one picture and one prompt.

    python -m benchmarks.case FOLDER [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT]

"random" is the published tiny geometry with random weights, every parameter alive. The picture is squeezed to exactly
the size asked for. The other commands here start this one in a process of its own, since they must stay small
(`processes.py` says why).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "scene.jpg"
SHAPES = ROOT / "minigdino" / "models" / "shapes"
MADE = ("random", "shapes")  # models that are no directory of the caller's


class Case(NamedTuple):
    """Where the files are."""

    folder: Path
    checkpoint: Path
    inputs: Path  # pixels [3, H, W] float32 and ids [T] int64


def case(folder, model: str) -> Case:
    """The case in a folder, whether or not it is there yet."""
    known = {"random": Path(folder) / "checkpoint", "shapes": SHAPES}
    return Case(Path(folder), known.get(model, Path(model)), Path(folder) / "inputs.npz")


def pictures(size, n: int = 1):
    """The picture n times, each time shifted to another place: yields uint8 [H, W, 3]"""
    import numpy as np
    from PIL import Image

    height, width = size
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize((width, height)))
    for i in range(n):
        yield np.roll(picture, i * width // n, axis=1)


def edges(size):
    """What `preprocess` and `detect` call the size of a picture that is to stay as it is."""
    return min(size), max(size)


def write(where: Case, model: str, size, text: str) -> None:
    """Write the checkpoint, if it is to be made, and the inputs."""
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
    """Which case."""
    options.add_argument("--model", default="random", help="random, shapes, or the directory of a checkpoint")
    options.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--text", default="a star. a green heart.", help="the prompt; by default one of nine tokens")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder")
    add_options(options)
    options = options.parse_args()
    write(case(options.folder, options.model), options.model, options.size, options.text)

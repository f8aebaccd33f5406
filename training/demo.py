"""Draw the image of the demonstration: python -m training.demo docs/images/scene.jpg"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from training.world import draw_scene

# The purple star and the green heart are held out of training.
PAIRS = (
    ("purple", "star"),
    ("green", "heart"),
    ("red", "star"),
    ("yellow", "circle"),
    ("white", "cross"),
    ("orange", "ring"),
)
SEED = 155  # the first with all six pairs in its scene and all three phrases of the prompt detected


def main() -> None:
    """Draw and save the scene, and print its objects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    scene = draw_scene(rng, pairs=PAIRS, size=(512, 640), count=len(PAIRS), kind="photo")
    Image.fromarray(scene.image).save(options.path, quality=90)
    for thing in scene.things:
        print(thing.colour, thing.shape, *(round(side) for side in thing.box))


if __name__ == "__main__":
    main()

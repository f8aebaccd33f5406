"""Compare the five published geometries with transformers, with random weights, on photographs.

    python tests/parity/published.py [tiny|base|large ...]

Prints one line per result, and exits with 1 if one is out of tolerance. The large model needs about 12 GB of memory.
"""

import gc
import sys
import time

import skimage.data
from oracle import VOCABULARY, compare, new_pair

from minigdino import Config
from minigdino.prompt import Tokenizer

SHAPES = [("grounding-dino", "tiny", "coffee", "a cup. a spoon. a saucer."),
          ("grounding-dino", "base", "chelsea", "a cat."),
          ("mm-grounding-dino", "tiny", "chelsea", "a cat. an ear. a pair of green eyes"),
          ("mm-grounding-dino", "base", "astronaut", "a woman. a helmet. a space shuttle."),
          ("mm-grounding-dino", "large", "astronaut", "an astronaut. a flag.")]
ROW = "{:24} {:22} {:>6}  {:18} {:>10} {:>10}  {}"


def report(family, size, photograph, text) -> bool:
    """Compare one model and print its results -> whether all are within tolerance"""
    start = time.perf_counter()
    model, reference = new_pair(Config.published(family, size))
    pixels = model.preprocess(getattr(skimage.data, photograph)())
    ids = Tokenizer.from_directory(VOCABULARY).encode(text).ids
    passed = True
    for name, (difference, tolerance, widened, fraction) in compare(model, reference, pixels, ids).items():
        verdict = "ok" if difference <= tolerance else "DIFFERS"
        if widened:
            verdict += f"; tolerance widened, {fraction:.3%} within the original"
        print(ROW.format(f"{family} {size}", f"{photograph} {pixels.shape[1]}x{pixels.shape[2]}", len(ids), name,
                         f"{difference:.1e}", f"{tolerance:.1e}", verdict), flush=True)
        passed &= difference <= tolerance
    print(f"{'':24} {time.perf_counter() - start:.0f} s", flush=True)
    return passed


def main(sizes) -> int:
    print(ROW.format("model", "image", "tokens", "result", "difference", "tolerance", "verdict"))
    passed = True
    for shape in SHAPES:
        if not sizes or shape[1] in sizes:
            passed &= report(*shape)
            gc.collect()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

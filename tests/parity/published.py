"""Compare the five published shapes, at full width and with random weights, with transformers on real photographs.

    python tests/parity/published.py [tiny|base|large ...]

Prints one line a result and exits with 1 if any is out of tolerance. The large model needs about 12 GB of memory.
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
    """Print one shape's lines; -> is everything within tolerance."""
    start = time.perf_counter()
    mine, theirs = new_pair(Config.published(family, size))
    pixels = mine.preprocess(getattr(skimage.data, photograph)())
    ids = Tokenizer.from_directory(VOCABULARY).encode(text).ids
    good = True
    for name, (apart, tolerance, widened, share) in compare(mine, theirs, pixels, ids).items():
        verdict = "ok" if apart <= tolerance else "DIFFERS"
        if widened:
            verdict += f"; 5 x the reference's own, {share:.3%} within the usual"
        print(ROW.format(f"{family} {size}", f"{photograph} {pixels.shape[1]}x{pixels.shape[2]}", len(ids), name,
                         f"{apart:.1e}", f"{tolerance:.1e}", verdict), flush=True)
        good &= apart <= tolerance
    print(f"{'':24} {time.perf_counter() - start:.0f} s", flush=True)
    return good


def main(sizes) -> int:
    print(ROW.format("model", "image", "tokens", "result", "difference", "tolerance", "verdict"))
    good = True
    for shape in SHAPES:
        if not sizes or shape[1] in sizes:
            good &= report(*shape)
            gc.collect()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

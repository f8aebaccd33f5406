"""Measure `detect` with long lists of names, beside the sum of its parts.

    python -m benchmarks.long_lists [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--names N ...] [--threads N]
                                    [--rounds N]

The parts are the image backbone once, and the enhancer and the decoder once per prompt. They are measured in the same
process, in turn with `detect`. Every detection has another image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time

from .case import case as case_of
from .case import edges, pictures
from .processes import add_options, add_rounds, call, prepared

WORDS = 21  # of the vocabulary; that of the embedded checkpoint has no more


def names(tokenizer, n: int) -> list[str]:
    """Return n different names of one to three words of the vocabulary. Each word is one token."""
    vocabulary = sorted(tokenizer.backend.get_vocab().items(), key=lambda entry: entry[1])
    words = [word for word, _ in vocabulary if word.isascii() and word.isalpha() and len(word) > 2]
    found = itertools.chain.from_iterable(itertools.combinations(words[:WORDS], length) for length in (1, 2, 3))
    listed = [" ".join(name) for name in itertools.islice(found, n)]
    if len(listed) < n:
        raise SystemExit(f"--names must be at most {len(listed)}; got {n}")
    return listed


def parts(model, pixels, ids, texts) -> float:
    """Return the seconds of the image backbone once, and of enhancer and decoder for each prompt.

    Args:
        model: the model.
        pixels: [3, H, W].
        ids: token ids of each prompt.
        texts: their text features. `Model.forward` has no argument for them.
    """
    image_features = None
    start = time.perf_counter()
    for tokens, text in zip(ids, texts, strict=True):
        output = model._forward(pixels, tokens, image_features=image_features, text_features=text)
        image_features = output.image_features
    return time.perf_counter() - start


def measure(checkpoint, size, n: int, threads: int, rounds: int) -> dict:
    """Measure a list of n names, in this process.

    Returns:
        {"prompts": number, "first": seconds of the first image, which include all text features,
        "seconds": [of each later image], "parts": [seconds of its parts]}.
    """
    import minigdino
    from minigdino.detector import prompts

    minigdino.set_threads(threads)
    model = minigdino.load(checkpoint)
    listed = names(model.tokenizer, n)
    ids = [prompt.ids for prompt in prompts(model, listed)]
    images = pictures(size, 2 + rounds)
    pixels = model.preprocess(next(images), size=edges(size))
    texts = [model.forward(pixels, tokens).text_features for tokens in ids]
    seconds, of_parts = [], []
    for image in images:
        start = time.perf_counter()
        model.detect(image, listed, size=edges(size))
        seconds.append(time.perf_counter() - start)
        of_parts.append(parts(model, model.preprocess(image, size=edges(size)), ids, texts))
    return {"prompts": len(ids), "first": seconds[0], "seconds": seconds[1:], "parts": of_parts[1:]}


def row(n: int, found: dict) -> str:
    """Return a row of the table, as a line of Markdown: medians of the rounds."""
    seconds = statistics.median(found["seconds"])
    ratio = statistics.median(a / b for a, b in zip(found["seconds"], found["parts"], strict=True))
    return (f"| {n} | {found['prompts']} | {found['first']:.3g} s | {seconds:.3g} s | "
            f"{seconds / found['prompts']:.3g} s | {ratio:.3f} |")


def report(options) -> None:
    """Measure, and print the table."""
    print("| names | forward passes | first image | later image | per pass | later image ÷ its parts |",
          "|---|---|---|---|---|---|", sep="\n", flush=True)
    with prepared(options) as case:
        for n in options.names:
            output = call("long_lists", "--inside", "--model", case.checkpoint, "--size", *options.size, "--names", n,
                          "--threads", options.threads, "--rounds", options.rounds, threads=options.threads)
            print(row(n, json.loads(output)), flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds):
        add(options)
    options.add_argument("--names", type=int, nargs="+", default=(80, 365, 1203), metavar="N", help="lengths of lists")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.inside:
        checkpoint = case_of(".", options.model).checkpoint
        print(json.dumps(measure(checkpoint, options.size, options.names[0], options.threads, options.rounds)))
    else:
        report(options)

"""`minigdino train`: what the command does with its arguments."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from datetime import timedelta

from ..detector import load
from ..files import read_phrases
from .annotations import need_boxes, read
from .training import Options, train

INTERVAL = 10  # seconds between two lines, unless there is a new AP50


def run(arguments: argparse.Namespace, show: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic) -> None:
    """Train a model, and report the progress.

    Args:
        arguments: values of the options.
        show: prints a line.
        clock: function that returns the time in seconds.

    Raises:
        Error: as `annotations.read`, `load` and `train` do.
    """
    options = Options(arguments.steps, arguments.rate, arguments.batch, arguments.train, arguments.augment,
                      tuple(arguments.size) if arguments.size else None, arguments.phrases, seed=arguments.seed,
                      recompute=arguments.recompute, keep=arguments.keep,
                      remember=tuple(read_phrases(arguments.remember, "--remember")) if arguments.remember else ())
    samples = _read(arguments.data, arguments.images)
    validation = _read(arguments.val, arguments.images) if arguments.val else []
    model = load(arguments.model, precision=arguments.precision)
    steps = train(model, samples, arguments.out, options, validation=validation, save_every=arguments.save_every,
                  resume=arguments.resume)
    boxes = sum(len(sample.labels) for sample in samples)
    show(f"{len(samples)} image{'s' * (len(samples) != 1)} with {boxes} box{'es' * (boxes != 1)}")
    began, shown, losses = clock(), -math.inf, []
    for done, step in enumerate(steps, start=1):
        losses.append(step.loss)
        now = clock()
        if now - shown >= INTERVAL or step.precision is not None or step.number == options.steps:
            each = (now - began) / done
            left = timedelta(seconds=round(each * (options.steps - step.number)))
            precision = "" if step.precision is None else f"  AP50 {step.precision:.3f}"
            show(f"step {step.number}/{options.steps}  loss {sum(losses) / len(losses):.3f}  {each:.2f} s/step  "
                 f"{left} left{precision}")
            shown, losses = now, []
    show(f"wrote {arguments.out}, a folder for --model")


def _read(source, images):
    samples = read(source, images)
    need_boxes(samples, source)
    return samples

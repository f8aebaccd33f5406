"""Measure a training step on one image, beside PyTorch through transformers.

    python -m benchmarks.learning [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                                  [--rounds N] [--passes N]

A step is the loss, its gradients, the clipping of their norm, and AdamW, as in `minigdino train`. The state of a run is
not written. Both programs have the same learning rates and weight decays.

Two settings: every tensor is trained, or the image and text backbones are frozen. "minigdino-cached" has the features
of the frozen backbones in memory instead of computing them; `minigdino train` reads them from files. Each program runs
in its own process, one at a time. The table shows medians over all rounds, and ratios of runs in the same round.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict

from .case import case as case_of
from .peers import add_passes, machine
from .processes import add_options, add_rounds, alternate, call, prepared, steady

RUNS = [("all", "minigdino"), ("all", "minigdino-recompute"), ("all", "transformers"),
        ("frozen", "minigdino"), ("frozen", "minigdino-cached"), ("frozen", "transformers")]
RATE, WEIGHT_DECAY = 1e-4, 1e-4
BOXES = ((0.3, 0.4, 0.2, 0.3), (0.7, 0.5, 0.3, 0.2), (0.5, 0.5, 0.9, 0.8))  # (cx, cy, w, h)


def minigdino_step(checkpoint, pixels, ids, program, frozen):
    """Return a function that does a step, and returns all tensors after it."""
    import numpy as np

    import minigdino
    from minigdino.learning.gradients import value_and_gradients
    from minigdino.learning.optimizer import global_norm, trained_names
    from minigdino.learning.state import initial
    from minigdino.learning.training import total_loss, updated
    from minigdino.network.bert import bert
    from minigdino.network.losses import Targets
    from minigdino.network.phrases import PUBLISHED_DELIMITERS, phrase_mask

    model = minigdino.load(checkpoint)
    trained = trained_names(model.tensors, "detector" if frozen else "all")
    state = initial({name: model.tensors[name] for name in trained})
    tokens = np.zeros((len(BOXES), len(ids)), bool)
    tokens[:, 1 : next(i for i in range(1, len(ids)) if ids[i] in PUBLISHED_DELIMITERS)] = True  # the first phrase
    targets = Targets(np.array(BOXES, np.float32), tokens)
    features = ()
    if program == "minigdino-cached":
        features = (model.forward(pixels, ids).image_features,
                    bert(ids, *phrase_mask(ids, PUBLISHED_DELIMITERS), **model.weights["text_backbone"],
                         config=model.config.text_config))

    def loss(tensors):
        return total_loss({**model.tensors, **tensors}, model.config, pixels, ids, PUBLISHED_DELIMITERS, targets,
                          *features)

    def step():
        nonlocal state
        value, gradients = value_and_gradients(loss, state.tensors, recompute=program == "minigdino-recompute")
        state = updated(state, float(value), gradients, global_norm(gradients), RATE, WEIGHT_DECAY)
        return {**model.tensors, **state.tensors}

    return step


def transformers_step(checkpoint, pixels, ids, frozen):
    """Return the same function of PyTorch."""
    import torch

    from minigdino.learning.optimizer import decays, relative_rate
    from minigdino.learning.training import CLIP

    from .reference import Reference

    network = Reference(checkpoint).network.requires_grad_(True)
    network.config.auxiliary_loss = True
    for part in (network.model.backbone, network.model.text_backbone) if frozen else ():
        part.requires_grad_(False)
    trained = {name: x for name, x in network.named_parameters() if x.requires_grad}
    groups = defaultdict(list)
    for name, x in trained.items():
        groups[RATE * relative_rate(name), WEIGHT_DECAY if decays(name, x.shape) else 0.0].append(x)
    optimizer = torch.optim.AdamW([{"params": group, "lr": rate, "weight_decay": decay}
                                   for (rate, decay), group in groups.items()], fused=True)  # as transformers' trainer
    labels = [{"class_labels": torch.zeros(len(BOXES), dtype=torch.long), "boxes": torch.tensor(BOXES)}]

    def step():
        optimizer.zero_grad()
        network(pixel_values=torch.tensor(pixels)[None], input_ids=torch.tensor(ids)[None],
                labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        return {name: x.numpy() for name, x in network.state_dict().items()}

    return step


def measure(program: str, trained: str, checkpoint, inputs, passes: int) -> dict:
    """Measure in this process. Returns {"seconds": [...], "peak": bytes}."""
    import numpy as np

    with np.load(inputs) as given:
        pixels, ids = given["pixels"], given["ids"]
    frozen = trained == "frozen"
    step = (transformers_step(checkpoint, pixels, ids, frozen) if program == "transformers" else
            minigdino_step(checkpoint, pixels, ids, program, frozen))
    seconds = []
    for _ in range(1 + passes):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def table(found: dict[tuple[str, str], list[dict]]) -> list[str]:
    """Make the table, as lines of Markdown.

    Args:
        found: {(trained, program): results of `measure`, one per round}.
    """
    lines = ["| trained | program | seconds | beside transformers | peak memory |", "|---|---|---|---|---|"]
    for (trained, program), runs in found.items():
        seconds = [steady(run["seconds"]) for run in runs]
        theirs = [steady(run["seconds"]) for run in found[trained, "transformers"]]
        ratio = statistics.median(ours / other for ours, other in zip(seconds, theirs))
        peak = statistics.median(run["peak"] for run in runs) / 1e9
        lines.append(f"| {trained} | {program} | {statistics.median(seconds):.2f} | {ratio:.2f} | {peak:.1f} GB |")
    return lines


def report(options) -> None:
    """Measure, and print the table."""
    found: dict[tuple[str, str], list[dict]] = {run: [] for run in RUNS}
    with prepared(options) as case:
        for trained, program in alternate(tuple(found), options.rounds):
            output = call("learning", "--inside", program, "--trained", trained, "--folder", case.folder, "--model",
                          case.checkpoint, "--passes", options.passes, "--threads", options.threads,
                          threads=options.threads)
            found[trained, program].append(json.loads(output.splitlines()[-1]))
    print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}; {options.rounds} rounds of "
          f"{options.passes} steps, after one for warm-up", end="\n\n")
    print(*table(found), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_passes):
        add(options)
    options.add_argument("--inside", help=argparse.SUPPRESS)
    options.add_argument("--trained", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.inside:
        case = case_of(options.folder, options.model)
        print(json.dumps(measure(options.inside, options.trained, case.checkpoint, case.inputs, options.passes)))
    else:
        report(options)

"""Train the embedded checkpoint, or resume: python -m training.train [--runs FOLDER]"""

import argparse
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from training.batches import Batches
from training.evaluate import average_precision
from training.losses import loss
from training.model import create, image_processor
from training.names import Namer, Scenes, accuracy, naming_loss
from training.predict import with_network

NAME_BATCH, NAME_STEPS = 32, 2000  # first stage: the backbone
BATCH, STEPS = 16, 4000  # second stage: the whole detector
ABSENT_STEPS, ABSENT, ABSENT_RATE = 800, 0.5, 2e-4  # third stage: half of the prompts name only absent objects
RATE, WARM_UP = 5e-4, 200  # peak learning rate and warm-up steps of a stage
CLIP = 0.1


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory: every step allocates the same large arrays, and new pages are slow."""
    if sys.platform == "linux":
        libc = ctypes.CDLL("libc.so.6")
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**31 - 1)


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up to `peak`, then cosine decay to zero."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def save(path: Path, step: int, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Save the state after `step` steps atomically: an interruption leaves the previous file."""
    temporary = path.with_suffix(".new")
    torch.save({"step": step, "network": network.state_dict(), "optimiser": optimiser.state_dict()}, temporary)
    os.replace(temporary, path)


def fit(
    path: Path, network: nn.Module, loss: Callable, batches: Dataset, progress: Callable, peak: float = RATE
) -> None:
    """Train one stage, one batch per step, and save its state every 250 steps.

    Args:
        path: file of the state; an existing file is resumed.
        network: module to train.
        loss: function of (network, batch).
        batches: dataset of the stage.
        progress: function of the network that returns a line to print, every 500 steps.
        peak: highest learning rate.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=1e-4)
    done, steps = 0, len(batches)
    if path.exists():
        state = torch.load(path)
        done = state["step"]
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
    remaining = Subset(batches, range(done, steps))
    total, images, clock = 0.0, 0, time.monotonic()
    for step, batch in enumerate(DataLoader(remaining, batch_size=None, num_workers=1, prefetch_factor=8), start=done):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        value = loss(network.train(), batch)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        total, images = total + value.item(), images + len(batch.pixels)
        if (step + 1) % 50 == 0:
            speed = images / (time.monotonic() - clock)
            print(f"step {step + 1}/{steps}  loss {total / 50:.3f}  {speed:.1f} images/s", flush=True)
            total, images, clock = 0.0, 0, time.monotonic()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(path, step + 1, network, optimiser)
        if (step + 1) % 500 == 0:
            print(progress(network.eval()), flush=True)
            clock = time.monotonic()


def estimate(network: nn.Module) -> str:
    """Estimate the average precision on the first scenes of the evaluation."""
    predict = with_network(network, image_processor())
    result = {name: average_precision(predict, name, 60) for name in ("seen", "unseen")}
    return "  ".join(f"{name} AP {r['AP']:.2f} AP50 {r['AP50']:.2f}" for name, r in result.items())


def train(runs: Path, name_steps: int, steps: int, absent_steps: int, seed: int) -> None:
    """Run all stages; each resumes from its checkpoint in `runs` if there is one."""
    network = create(seed)
    backbone = network.model.backbone.conv_encoder.model
    namer = Namer(backbone, sum(backbone.channels))
    validation = Scenes(seed, name_steps + 1, 256)[name_steps]
    fit(runs / "names.pt", namer, naming_loss, Scenes(seed, name_steps, NAME_BATCH), lambda n: accuracy(n, validation))
    fit(runs / "phrases.pt", network, loss, Batches(seed, steps, BATCH), estimate)
    absent = Batches(seed + 1, absent_steps, BATCH, ABSENT)
    fit(runs / "absent.pt", network, loss, absent, estimate, ABSENT_RATE)


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs")
    parser.add_argument("--name-steps", type=int, default=NAME_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--absent-steps", type=int, default=ABSENT_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    options.runs.mkdir(parents=True, exist_ok=True)
    train(options.runs, options.name_steps, options.steps, options.absent_steps, options.seed)


if __name__ == "__main__":
    main()

"""Measure the time of each stage on a GPU, beside the GPU's speed and beside transformers on PyTorch.

    python -m benchmarks.gpu [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--rounds N] [--passes N]

Requires CuPy (the extra `cuda12` or `cuda13`), the extra `bench`, and a PyTorch with CUDA. Both programs run the same
checkpoint, image and prompt in float32 without TF32. They run in turn, each in its own process.

- Times of stages come from CUDA events.
- The time of a forward pass is measured from arrays on the host to results on the host.
- Launches are counted by PyTorch's profiler, which records all kernels of a process, including those of CuPy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np

from . import processes

INPUTS, OUTPUTS = 256, 2048  # of the largest matrix product of the tiny model; its rows are the image tokens
COPIED = 1 << 28  # bytes of the copy that measures the bandwidth
WARM_UP = 3  # untimed repetitions before the first timed one


class Minigdino:
    """minigdino on CuPy, timed by CuPy's events."""

    def __init__(self, directory):
        os.environ["CUPY_TF32"] = "0"
        import cupy

        import minigdino

        self.cupy, self.model = cupy, minigdino.load(directory, device="cuda")
        card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        self.version = f"{minigdino.__version__}, CuPy {cupy.__version__}"
        toolkit, driver = (f"{n // 1000}.{n % 1000 // 10}" for n in
                           (cupy.cuda.runtime.runtimeGetVersion(), cupy.cuda.runtime.driverGetVersion()))
        self.card = f"{card}, CUDA {toolkit}, driver for CUDA {driver}"

    def forward(self, pixels, ids):
        """Start a forward pass. Returns logits, boxes, vision and scores on the GPU, without waiting."""
        output = self.model.forward(pixels, ids)
        return output.logits, output.boxes, output.vision, output.selection_scores

    def fetch(self, arrays):
        """Copy arrays to the host. Waits until they are computed."""
        return [array.get() for array in arrays]

    def event(self):
        """Record an event on the GPU."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def between(self, start, end):
        """Return the milliseconds between two events. Waits for the second one."""
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end)

    def random(self, *shape):
        """Return a random array on the GPU."""
        return self.cupy.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


class Transformers:
    """transformers on PyTorch, with its default attention implementation."""

    def __init__(self, directory):
        import torch

        from .reference import Reference
        from .reference import transformers as library

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.torch, self.model = torch, Reference(directory).cuda()
        self.version = f"{library.__version__}, torch {torch.__version__}"
        self.card = torch.cuda.get_device_name(0)

    def forward(self, pixels, ids):
        """Start a forward pass. Returns logits, boxes, vision and scores on the GPU, without waiting."""
        with self.torch.inference_mode():
            inputs = (self.torch.from_numpy(array).cuda()[None] for array in (pixels, ids))
            return [result[0] for result in self.model(*inputs)]

    def fetch(self, arrays):
        """Copy arrays to the host. Waits until they are computed."""
        return [array.cpu().numpy() for array in arrays]


PROGRAMS = {"minigdino": Minigdino, "transformers": Transformers}


def milliseconds(program, pixels, ids, passes):
    """Return the milliseconds of each forward pass, from host arrays to logits and boxes on the host.

    The image is shifted by another distance for each forward pass.
    """
    took = []
    for i in range(WARM_UP + passes):
        picture = np.ascontiguousarray(np.roll(pixels, 7 * i, axis=2))
        start = time.perf_counter()
        program.fetch(program.forward(picture, ids)[:2])
        took.append(1e3 * (time.perf_counter() - start))
    return took[WARM_UP:]


def stage_milliseconds(program, pixels, ids, passes):
    """Return {stage: median milliseconds on the GPU}, and "forward pass" for the total."""
    from minigdino.inspection.tracing import at_functions
    from minigdino.runtime.bench import STAGES

    def one_pass():
        begun, spans = [], {name: [] for name in STAGES}
        with at_functions(STAGES, lambda _: begun.append(program.event()),
                          lambda name: spans[name].append((begun.pop(), program.event()))):
            start = program.event()
            program.forward(pixels, ids)
            end = program.event()
        took = {STAGES[name]: sum(program.between(*span) for span in ends) for name, ends in spans.items()}
        return {**took, "forward pass": program.between(start, end)}

    measured = [one_pass() for _ in range(WARM_UP + passes)][WARM_UP:]
    return {name: statistics.median(one[name] for one in measured) for name in measured[0]}


def rates(program, rows):
    """Return the FLOP/s of one large matrix product, and the bytes/s (read and written) of one large copy."""
    a, b, c = program.random(rows, INPUTS), program.random(INPUTS, OUTPUTS), program.random(COPIED // 4)
    products, copies = [], []
    for _ in range(WARM_UP + 10):
        start = program.event()
        a @ b
        middle = program.event()
        c.copy()
        end = program.event()
        products.append(program.between(start, middle))
        copies.append(program.between(middle, end))
    return 2 * rows * INPUTS * OUTPUTS / min(products[WARM_UP:]) * 1e3, 2 * COPIED / min(copies[WARM_UP:]) * 1e3


def launches(program, pixels, ids):
    """Count (kernel launches, copies between host and GPU) of one forward pass, with PyTorch's profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):  # the first profile includes the start of the profiler
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            program.fetch(program.forward(pixels, ids)[:2])
    names = [event.name for event in seen.events() if event.device_type == DeviceType.CUDA]
    copies = [name for name in names if name.startswith("Memcpy") and "DtoD" not in name]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names), len(copies)


def measure(name, directory, inputs, passes, save=None):
    """Measure one program in this process. Returns a dict that can be printed as JSON."""
    program = PROGRAMS[name](directory)
    given = np.load(inputs)
    pixels, ids = given["pixels"], given["ids"]
    found = {"version": program.version, "card": program.card, "ms": milliseconds(program, pixels, ids, passes)}
    if name == "minigdino":
        from minigdino.runtime.flops import image_tokens, stages

        size = pixels.shape[1:]
        found["stages"] = stage_milliseconds(program, pixels, ids, passes)
        found["flop"] = stages(program.model.config, *size, len(ids))
        found["rates"] = rates(program, image_tokens(program.model.config, *size))
    if save:
        np.savez(save, *program.fetch(program.forward(pixels, ids)))
    found["launches"] = launches(program, pixels, ids)
    return found


def stage_table(found) -> str:
    """Make the table of stages, with the GPU's rates above it."""
    product, copy = found["rates"]
    total = sum(found["flop"].values())
    lines = [found["card"],
             f"matrix product: {product / 1e12:.1f} TFLOP/s; copy: {copy / 1e9:.0f} GB/s, read and written", "",
             "| | GFLOP | ms | TFLOP/s | of product rate |", "|---|---|---|---|---|"]
    for name, ms in found["stages"].items():
        flop = found["flop"].get(name, total)
        speed = flop / max(ms, 1e-6) * 1e3
        lines.append(f"| {name} | {flop / 1e9:.2f} | {ms:.3f} | {speed / 1e12:.2f} | {speed / product:.0%} |")
    return "\n".join(lines)


def program_table(rounds) -> str:
    """Make the table of programs.

    Args:
        rounds: {program: results of `measure`, one per round}.
    """
    own = [statistics.median(one["ms"]) for one in rounds["minigdino"]]
    lines = ["| | ms | minimum to maximum | minigdino's time ÷ this | launches | copies between host and GPU |",
             "|---|---|---|---|---|---|"]
    for name, found in rounds.items():
        took = [statistics.median(one["ms"]) for one in found]
        ratio = statistics.median(a / b for a, b in zip(own, took))
        kernels, copies = found[-1]["launches"]
        lines.append(f"| {name} {found[-1]['version']} | {statistics.median(took):.2f} | {min(took):.2f} to "
                     f"{max(took):.2f} | {ratio:.2f} | {kernels} | {copies} |")
    return "\n".join(lines)


def report(options) -> None:
    """Measure both programs, print the tables and compare the results."""
    rounds = {name: [] for name in PROGRAMS}
    with processes.prepared(options) as case:
        saved = {name: case.folder / f"{name}.npz" for name in PROGRAMS}
        for name in processes.alternate(tuple(PROGRAMS), options.rounds):
            text = processes.call("gpu", "--program", name, "--checkpoint", case.checkpoint, "--inputs", case.inputs,
                                  "--passes", options.passes, "--save", saved[name])
            rounds[name].append(json.loads(text.splitlines()[-1]))
        print(stage_table(rounds["minigdino"][-1]), program_table(rounds), sep="\n\n", end="\n\n")
        first, second = (np.load(file) for file in saved.values())
        # other results depend on the ranks of queries, which are unstable
        for i, name in ((2, "image tokens after the enhancer"), (3, "selection scores")):
            difference = abs(first[f"arr_{i}"] - second[f"arr_{i}"]).max()
            print(f"{name}: the programs differ by at most {difference:.1e}")


def main(arguments=None) -> None:
    """Run the command line: print one program's JSON with --program, else the report."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    processes.add_options(options)
    processes.add_rounds(options)
    options.add_argument("--passes", type=int, default=20, help="timed forward passes of each program in a round")
    options.add_argument("--program", choices=PROGRAMS,
                         help="measure one program in this process; needs --checkpoint and --inputs")
    options.add_argument("--checkpoint", help="directory of the model")
    options.add_argument("--inputs", help="file of pixels and ids that benchmarks.case wrote")
    options.add_argument("--save", help="file for the program's results")
    options = options.parse_args(arguments)
    if options.program:
        print(json.dumps(measure(options.program, options.checkpoint, options.inputs, options.passes, options.save)))
    else:
        report(options)


if __name__ == "__main__":
    main()

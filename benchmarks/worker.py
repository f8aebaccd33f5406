"""Measure one program in this process: time of each forward pass, of import and load, and peak resident memory.

    python -m benchmarks.worker PEER MODEL INPUTS [--passes N] [--threads N] [--save FILE] [--product] [--together]

MODEL is the directory of a checkpoint, or a graph that `export.py` made. Prints one line of JSON.

The image is shifted by another distance for each forward pass, so a program cannot reuse cached features. Only the
standard library is imported before the timed import of a program.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

clock = time.perf_counter


class Program(NamedTuple):
    """A program that has loaded its model."""

    forward: Callable  # pixels [3, H, W], ids [T] -> logits [Q, T], boxes [Q, 4], vision [S, C], scores [S]
    version: str
    started: float  # times of `clock`: before the import, after the import, after loading the model
    imported: float
    loaded: float


def minigdino(directory, threads, precision="highest"):
    """Load minigdino."""
    started = clock()
    import minigdino
    imported = clock()
    model = minigdino.load(directory, precision=precision)
    loaded = clock()
    minigdino.set_threads(threads)

    def forward(pixels, ids):
        output = model.forward(pixels, ids)
        return output.logits, output.boxes, output.vision, output.selection_scores

    info = minigdino.info()
    return Program(forward, f"{info['minigdino']}, {info['kernels']}, NumPy {info['numpy']}", started, imported,
                   loaded)


def minigdino_after_numpy(directory, threads):
    """Load minigdino after NumPy, whose import is not timed. A forward pass should take the same time."""
    import numpy  # noqa: F401

    return minigdino(directory, threads)


def minigdino_reference(directory, threads):
    """Load minigdino without compiled twins."""
    os.environ["MINIGDINO_KERNELS"] = "reference"
    return minigdino(directory, threads)


def transformers(directory, threads, bfloat16=False):
    """Load transformers on PyTorch, with its default attention implementation. bfloat16 is PyTorch's autocast."""
    started = clock()
    import torch

    from .reference import Reference
    from .reference import transformers as library
    imported = clock()
    model = Reference(directory)
    loaded = clock()
    torch.set_num_threads(threads)

    def forward(pixels, ids):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            results = model(torch.from_numpy(pixels)[None], torch.from_numpy(ids)[None])
        return [x[0].float().numpy() for x in results]  # NumPy has no bfloat16

    return Program(forward, f"{library.__version__}, torch {torch.__version__}", started, imported, loaded)


def onnxruntime(graph, threads):
    """Load ONNX Runtime for the CPU, with all optimizations, which is the default."""
    started = clock()
    import onnxruntime
    imported = clock()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    loaded = clock()

    def forward(pixels, ids):
        return [x[0] for x in session.run(None, {"pixels": pixels[None], "ids": ids[None]})]

    return Program(forward, onnxruntime.__version__, started, imported, loaded)


def openvino(graph, threads, precision="f32"):
    """Load OpenVINO for the CPU, with one request at a time. It computes in bfloat16 only if the CPU supports it."""
    started = clock()
    import openvino
    imported = clock()
    # with fewer threads than CPUs, binding them to CPUs would bind those of all processes to the same ones
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision,
                "ENABLE_CPU_PINNING": threads >= len(os.sched_getaffinity(0))}
    model = openvino.Core().compile_model(graph, "CPU", settings)
    loaded = clock()

    def forward(pixels, ids):
        output = model({"pixels": pixels[None], "ids": ids[None]})
        return [output[i][0] for i in range(len(output))]

    # the precision in use, which differs from the requested one if the CPU does not support it
    computes = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Program(forward, f"{openvino.__version__.partition('-')[0]}, {computes}", started, imported, loaded)


PROGRAMS = {"minigdino": minigdino, "minigdino-high": partial(minigdino, precision="high"),
            "minigdino-medium": partial(minigdino, precision="medium"), "minigdino-after-numpy": minigdino_after_numpy,
            "minigdino-reference": minigdino_reference, "transformers": transformers,
            "transformers-bf16": partial(transformers, bfloat16=True), "onnxruntime": onnxruntime,
            "openvino": openvino, "openvino-bf16": partial(openvino, precision="bf16")}


def wait_for_others() -> None:
    """Print "ready", and wait until the process that started this one answers."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("the process that started this one ended")


def measure(program: Program, inputs, passes: int, save=None, together=False) -> dict:
    """Measure a program.

    Args:
        program: the loaded program.
        inputs: file of pixels and ids.
        passes: number of forward passes.
        save: file for the results of the first forward pass.
        together: whether to wait for other processes after the first forward pass.

    Returns:
        {"version", "import": seconds, "load": seconds, "seconds": [of each forward pass], "ends": [time of `clock` at
        the end of each forward pass], "peak": bytes}.
    """
    import numpy as np

    given = np.load(inputs)
    pixels, ids, seconds, ends = given["pixels"], given["ids"], [], []
    for i in range(passes):
        moved = np.roll(pixels, i, axis=2)
        start = clock()
        results = program.forward(moved, ids)
        ends.append(clock())
        seconds.append(ends[-1] - start)
        if save and i == 0:
            np.savez(save, **dict(zip(("logits", "boxes", "vision", "scores"), results)))
        if together and i == 0:
            wait_for_others()
    return {"version": program.version, "import": program.imported - program.started,
            "load": program.loaded - program.imported, "seconds": seconds, "ends": ends,
            "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # ru_maxrss is in KiB on Linux


def main() -> None:
    """Run the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("peer", choices=PROGRAMS)
    options.add_argument("model")
    options.add_argument("inputs")
    options.add_argument("--passes", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--save", help="a .npz file for the results of the first forward pass")
    options.add_argument("--product", action="store_true", help="also measure one large NumPy matrix product")
    options.add_argument("--together", action="store_true",
                         help='after the first forward pass, print "ready" and wait for a line of input')
    options = options.parse_args()
    found = measure(PROGRAMS[options.peer](options.model, options.threads), options.inputs, options.passes,
                    options.save, options.together)
    if options.product:
        from minigdino.runtime.bench import product_rate

        found["rate"] = product_rate()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

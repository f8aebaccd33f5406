"""One program, alone in its process: seconds of every pass, of import and load, and the largest resident memory.

    python -m benchmarks.worker PEER MODEL INPUTS [--passes N] [--threads N] [--save FILE] [--product]

MODEL is a checkpoint's directory, or the graph that `export.py` made of it. Prints one line of JSON. Every pass is
given the picture at another place, so nothing that a program may keep is of use to it. Nothing but the standard library
is imported before the clock of a program's own import runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

clock = time.perf_counter


class Program(NamedTuple):
    """A program that has loaded its model."""

    forward: Callable  # pixels [3, H, W], ids [T] -> logits [Q, T], boxes [Q, 4], vision [S, C], scores [S]
    version: str
    begun: float
    imported: float
    loaded: float


def minigdino(directory, threads):
    """This package."""
    begun = clock()
    import minigdino
    imported = clock()
    model = minigdino.load(directory)
    loaded = clock()
    minigdino.set_threads(threads)

    def forward(pixels, ids):
        output = model.forward(pixels, ids)
        return output.logits, output.boxes, output.vision, output.selection_scores

    info = minigdino.info()
    return Program(forward, f"{info['minigdino']}, {info['kernels']}, NumPy {info['numpy']}", begun, imported, loaded)


def formulas(directory, threads):
    """This package without its compiled twins."""
    os.environ["MINIGDINO_KERNELS"] = "reference"
    return minigdino(directory, threads)


def transformers(directory, threads):
    """PyTorch, with the attention that transformers chooses by itself."""
    begun = clock()
    import torch

    from .reference import Reference
    from .reference import transformers as library
    imported = clock()
    model = Reference(directory)
    loaded = clock()
    torch.set_num_threads(threads)

    def forward(pixels, ids):
        with torch.inference_mode():
            return [x[0].numpy() for x in model(torch.from_numpy(pixels)[None], torch.from_numpy(ids)[None])]

    return Program(forward, f"{library.__version__}, torch {torch.__version__}", begun, imported, loaded)


def onnxruntime(graph, threads):
    """ONNX Runtime's provider for CPUs, every optimization on, as it is by default."""
    begun = clock()
    import onnxruntime
    imported = clock()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    loaded = clock()

    def forward(pixels, ids):
        return [x[0] for x in session.run(None, {"pixels": pixels[None], "ids": ids[None]})]

    return Program(forward, onnxruntime.__version__, begun, imported, loaded)


def openvino(graph, threads, precision="f32"):
    """OpenVINO's plugin for CPUs, one request at a time."""
    begun = clock()
    import openvino
    imported = clock()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(graph, "CPU", settings)
    loaded = clock()

    def forward(pixels, ids):
        output = model({"pixels": pixels[None], "ids": ids[None]})
        return [output[i][0] for i in range(len(output))]

    # what it computes in, which is not what was asked for where the processor has no such numbers
    computes = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Program(forward, f"{openvino.__version__.partition('-')[0]}, {computes}", begun, imported, loaded)


def openvino_bf16(graph, threads):
    """OpenVINO in bfloat16, where the processor has it."""
    return openvino(graph, threads, "bf16")


PROGRAMS = {"minigdino": minigdino, "formulas": formulas, "transformers": transformers, "onnxruntime": onnxruntime,
            "openvino": openvino, "openvino-bf16": openvino_bf16}


def measure(program: Program, inputs, passes: int, save=None) -> dict:
    """Run it and say what it took. save: a file for the results of the first pass."""
    import numpy as np

    given = np.load(inputs)
    pixels, ids, seconds = given["pixels"], given["ids"], []
    for i in range(passes):
        moved = np.roll(pixels, i, axis=2)
        start = clock()
        results = program.forward(moved, ids)
        seconds.append(clock() - start)
        if save and i == 0:
            np.savez(save, **dict(zip(("logits", "boxes", "vision", "scores"), results)))
    return {"version": program.version, "import": program.imported - program.begun,
            "load": program.loaded - program.imported, "seconds": seconds,
            "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # Linux counts in KiB


def main() -> None:
    """Measure what the command line names."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("peer", choices=PROGRAMS)
    options.add_argument("model")
    options.add_argument("inputs")
    options.add_argument("--passes", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--save", help="a .npz file for the results of the first pass")
    options.add_argument("--product", action="store_true", help="measure one large NumPy product, too")
    options = options.parse_args()
    found = measure(PROGRAMS[options.peer](options.model, options.threads), options.inputs, options.passes,
                    options.save)
    if options.product:
        from minigdino.runtime.bench import product_rate

        found["rate"] = product_rate()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

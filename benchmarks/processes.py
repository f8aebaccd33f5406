"""Processes for what is measured, one after the other; and the case they are all given.

Linux counts what the parent held at the start of a process towards its ru_maxrss. So whoever starts a measurement must
stay small: here is neither a model nor a library that has one, and checkpoints and graphs are written by processes too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from . import case as cases

# runtimes that read an exported graph, each from whichever it runs faster
GRAPHS = ("onnxruntime", "openvino", "openvino-bf16")
PEERS = ("minigdino", "transformers", *GRAPHS)
ATTENTIONS = ("sdpa", "eager")  # the two ways in which transformers can write down its attention


def call(module: str, *arguments, threads: int | None = None) -> str:
    """What `python -m benchmarks.MODULE ARGUMENTS` prints."""
    limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    run = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)], cwd=cases.ROOT,
                         env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"benchmarks.{module} {' '.join(map(str, arguments))} failed:\n{run.stderr}")
    return run.stdout


def measure(peer: str, model, inputs, threads: int, passes: int, *more) -> dict:
    """A program in a process of its own -> what `worker.py` says of it."""
    output = call("worker", peer, model, inputs, "--threads", threads, "--passes", passes, *more, threads=threads)
    return json.loads(output.splitlines()[-1])  # libraries print, too


def alternate(things, rounds: int):
    """Every thing once a round, in turn, every second round backwards: a slow minute of the machine hits all alike."""
    for i in range(rounds):
        yield from (things if i % 2 == 0 else tuple(reversed(things)))


def steady(seconds) -> float:
    """Seconds of a pass, once the first is over; of the first if there is no other."""
    return statistics.median(seconds[1:] or seconds)


def graph(case: cases.Case, attention: str) -> Path:
    """The case's graph, exported when first asked for."""
    path = case.folder / f"{attention}.onnx"
    if not path.exists():
        call("export", case.checkpoint, case.inputs, attention, path)
    return path


def fastest(case: cases.Case, peer: str, threads: int) -> str:
    """Which of the two graphs a runtime runs faster; asked once for a folder."""
    file = case.folder / "fastest.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    key = f"{peer}, {threads} threads"
    if key not in known:
        took = {attention: min(measure(peer, graph(case, attention), case.inputs, threads, 3)["seconds"])
                for attention in ATTENTIONS}
        known[key] = min(took, key=took.get)
        file.write_text(json.dumps(known))
    return known[key]


def model_of(case: cases.Case, peer: str, threads: int) -> Path:
    """What a program reads: the checkpoint, or the graph that it runs fastest."""
    return graph(case, fastest(case, peer, threads)) if peer in GRAPHS else case.checkpoint


@contextlib.contextmanager
def prepared(options: argparse.Namespace, **changes):
    """The files of a case, in the folder asked for or in a temporary one. changes: other options for this case."""
    asked = {**vars(options), **changes}
    # processes run elsewhere, so no path may be relative
    model = asked["model"] if asked["model"] in cases.MADE else str(Path(asked["model"]).resolve())
    arguments = ["--model", model, "--size", *asked["size"], "--text", asked["text"]]
    name = f"{Path(model).name}-{zlib.crc32(json.dumps(arguments).encode()):08x}"  # one case, one folder
    with contextlib.ExitStack() as stack:
        folder = Path(asked["folder"] or stack.enter_context(tempfile.TemporaryDirectory())).resolve() / name
        case = cases.case(folder, model)
        if not case.inputs.exists():  # written last
            call("case", folder, *arguments)
        yield case


def add_options(options: argparse.ArgumentParser) -> None:
    """What every command asks."""
    cases.add_options(options)
    options.add_argument("--folder", help="where checkpoints and graphs are kept and taken from; by default temporary")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


def add_rounds(options: argparse.ArgumentParser) -> None:
    """What a command asks that takes seconds."""
    options.add_argument("--rounds", type=int, default=5, help="how often each measurement is taken")


def add_peers(options: argparse.ArgumentParser) -> None:
    """What a command asks that runs several programs."""
    options.add_argument("--only", nargs="+", choices=(*PEERS, "formulas"), default=PEERS, metavar="PEER",
                         help=f"of {', '.join(PEERS)}, and formulas: minigdino without its compiled twins")

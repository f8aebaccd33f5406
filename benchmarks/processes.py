"""Start the measured programs, each in its own process, and prepare their input files.

On Linux, the ru_maxrss of a process includes the memory that its parent used at the start. The process that starts a
measurement must therefore be small. It loads neither models nor large libraries; other processes write checkpoints and
graphs.
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
import time
import zlib
from pathlib import Path

from . import case as cases

# programs that run an exported graph; each uses the attention implementation that is faster there
GRAPHS = ("onnxruntime", "openvino", "openvino-bf16")
MINIGDINO = {"highest": "minigdino", "high": "minigdino-high", "medium": "minigdino-medium"}  # precision -> program
PEERS = (*MINIGDINO.values(), "minigdino-after-numpy", "transformers", "transformers-bf16", *GRAPHS)
INEXACT = ("minigdino-high", "minigdino-medium", "transformers-bf16", "openvino-bf16")  # less exact than float32
ATTENTIONS = ("sdpa", "eager")  # attention implementations of transformers


def start(module: str, *arguments, threads: int | None = None, **streams) -> subprocess.Popen:
    """Start `python -m benchmarks.MODULE ARGUMENTS`."""
    limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return subprocess.Popen([sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)], cwd=cases.ROOT,
                            env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True, **streams)


def call(module: str, *arguments, threads: int | None = None) -> str:
    """Run `python -m benchmarks.MODULE ARGUMENTS` and return its output."""
    with start(module, *arguments, threads=threads, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"benchmarks.{module} {' '.join(map(str, arguments))} failed:\n{errors}")
    return output


def measure(peer: str, model, inputs, threads: int, passes: int, *more) -> dict:
    """Run a program in a new process.

    Returns:
        The result of `worker.py`, and "first result": seconds from the start of the process to its first result.
    """
    started = time.perf_counter()  # on Linux, all processes have the same clock
    output = call("worker", peer, model, inputs, "--threads", threads, "--passes", passes, *more, threads=threads)
    found = json.loads(output.splitlines()[-1])  # libraries may print before it
    return {**found, "first result": found["ends"][0] - started}


def uncache(model: Path) -> bool:
    """Drop the weights of a checkpoint or graph from the page cache. Returns whether that worked.

    It works on Linux, unless a process maps the file or the file system has no disk.
    """
    if sys.platform != "linux":
        return False
    for path in model.glob("*.safetensors") if model.is_dir() else [model]:
        with path.open("rb") as file:
            os.fsync(file)  # pages that are not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            try:  # to read from the middle of the file without waiting for the disk
                os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
                return False
            except BlockingIOError:
                pass
            except OSError:  # the file system cannot say
                return False
    return True


def alternate(things, rounds: int):
    """Yield all things once per round, in reverse order in every second round.

    A slow period of the machine then affects all of them alike.
    """
    for i in range(rounds):
        yield from (things if i % 2 == 0 else tuple(reversed(things)))


def steady(seconds) -> float:
    """Return the median seconds of all forward passes but the first, or of the first if it is the only one."""
    return statistics.median(seconds[1:] or seconds)


def graph(case: cases.Case, attention: str) -> Path:
    """Return the case's graph. Exports it if it does not exist."""
    path = case.folder / f"{attention}.onnx"
    if not path.exists():
        call("export", case.checkpoint, case.inputs, attention, path)
    return path


def fastest(case: cases.Case, peer: str, threads: int) -> str:
    """Return the attention implementation of the graph that a program runs faster. Measured once per folder."""
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
    """Return the model file of a program: the checkpoint, or the graph that it runs fastest."""
    return graph(case, fastest(case, peer, threads)) if peer in GRAPHS else case.checkpoint


@contextlib.contextmanager
def prepared(options: argparse.Namespace, **changes):
    """Yield a case whose files exist, in options.folder or in a temporary folder.

    Args:
        options: options of the command line.
        changes: options that replace those of the command line.
    """
    values = {**vars(options), **changes}
    # the path must be absolute, because processes run in another folder
    model = values["model"] if values["model"] in cases.BUILT_IN else str(Path(values["model"]).resolve())
    arguments = ["--model", model, "--size", *values["size"], "--text", values["text"]]
    name = f"{Path(model).name}-{zlib.crc32(json.dumps(arguments).encode()):08x}"  # a folder for each case
    with contextlib.ExitStack() as stack:
        folder = Path(values["folder"] or stack.enter_context(tempfile.TemporaryDirectory())).resolve() / name
        case = cases.case(folder, model)
        if not case.inputs.exists():  # written last
            call("case", folder, *arguments)
        yield case


def add_options(options: argparse.ArgumentParser) -> None:
    """Add the options that all commands have."""
    cases.add_options(options)
    options.add_argument("--folder", help="folder to store checkpoints and graphs for later runs (temporary)")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


def add_rounds(options: argparse.ArgumentParser) -> None:
    """Add the options of commands that measure time."""
    options.add_argument("--rounds", type=int, default=5, help="number of repetitions of each measurement")


def add_peers(options: argparse.ArgumentParser) -> None:
    """Add the options of commands that run several programs."""
    options.add_argument("--only", nargs="+", choices=(*PEERS, "minigdino-reference"), default=PEERS, metavar="PEER",
                         help=f"programs to run, from {', '.join(PEERS)} (the default) and minigdino-reference, which "
                              "runs minigdino without compiled twins")

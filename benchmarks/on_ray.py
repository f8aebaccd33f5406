"""Compare a run on a Ray cluster of this machine with bare processes that detect in a loop.

    python -m benchmarks.on_ray [--images N] [--processes N] [--rounds N] [--model M]

Both have as many processes, with one thread each, and the same pictures of drawn shapes. The bare ones share them
equally and write nothing. The run deals them out, and writes its lines to a file. Starts are not timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import ray
from PIL import Image

from minigdino.files import JsonLines
from minigdino.runs.batches import DetectBatch
from minigdino.runs.items import Item
from minigdino.runs.on_ray import detect_each
from training.scenes import scenes

TEXT = "a red star. a blue ring. a green heart."
SPAWN = multiprocessing.get_context("spawn")
WARM = 10  # images of each process that are not timed


def bare(items: list[Item], start: dict, barrier, results) -> None:
    """Detect in a loop. A process runs this function."""
    detect = DetectBatch(**start)
    detect.lines(items[:WARM])
    barrier.wait()
    began = time.perf_counter()
    for item in items[WARM:]:
        detect.lines([item])
    results.put((began, time.perf_counter()))


def bare_rate(items: list[Item], start: dict, processes: int) -> float:
    """Return images per second of bare processes."""
    barrier, results = SPAWN.Barrier(processes), SPAWN.Queue()
    running = [SPAWN.Process(target=bare, args=(items[i::processes], start, barrier, results))
               for i in range(processes)]
    for process in running:
        process.start()
    times = [results.get() for _ in running]
    for process in running:
        process.join()
    return (len(items) - WARM * processes) / (max(end for _, end in times) - min(began for began, _ in times))


def ray_rate(items: list[Item], start: dict, processes: int, folder: Path) -> float:
    """Return images per second of a run on Ray."""
    detect = DetectBatch(**start)
    done, began, timed = 0, 0.0, 0
    with JsonLines(folder / f"{time.time_ns()}.jsonl", header=detect.header) as lines:
        for group in detect_each(ray, items, start, detect.header["fingerprint"], workers=processes):
            lines.write(*group)
            done += len(group)
            if not began and done >= WARM * processes:
                began, timed = time.perf_counter(), done
    return (done - timed) / (time.perf_counter() - began)


def main() -> None:
    """Measure in turns, and print medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="number of pictures")
    parser.add_argument("--processes", type=int, default=2, help="processes, and CPUs of the cluster")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--model", default="shapes", help="as in minigdino.load")
    options = parser.parse_args()
    start = {"text": TEXT, "model": options.model, "threads": 1}
    rates: dict[str, list[float]] = {"bare": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for i, (scene, _) in enumerate(scenes("larger", options.images)):
            path = Path(folder, f"{i}.png")
            Image.fromarray(scene.image).save(path)
            items.append(Item(i, str(path)))
        ray.init(num_cpus=options.processes, include_dashboard=False, log_to_driver=False)
        for _ in range(options.rounds):
            rates["bare"].append(bare_rate(items, start, options.processes))
            rates["ray"].append(ray_rate(items, start, options.processes, Path(folder)))
        ray.shutdown()
    ratio = statistics.median(on / off for on, off in zip(rates["ray"], rates["bare"]))
    print(json.dumps({"images per second": rates, "median of ray / bare": round(ratio, 3)}))


if __name__ == "__main__":
    main()

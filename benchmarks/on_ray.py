"""Compare a run on a Ray cluster of this machine with bare processes that detect in a loop.

    python -m benchmarks.on_ray [--images N] [--processes N] [--rounds N] [--model M]

Both have as many processes, with one thread each, and the same pictures of drawn shapes. The bare ones share them
equally and write nothing. The run deals them out, and writes its lines to a file. Starts are not timed.

Seconds of CPU per image count all processes of Ray, also those that only wait. They vary less than images per second
where other programs run on the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
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
    began, used = time.perf_counter(), time.process_time()
    for item in items[WARM:]:
        detect.lines([item])
    results.put((began, time.perf_counter(), time.process_time() - used))


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its descendants have used. For Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, map(int, children)))


def bare_rates(items: list[Item], start: dict, processes: int) -> tuple[float, float]:
    """Return images per second, and seconds of CPU per image, of bare processes."""
    barrier, results = SPAWN.Barrier(processes), SPAWN.Queue()
    running = [SPAWN.Process(target=bare, args=(items[i::processes], start, barrier, results))
               for i in range(processes)]
    for process in running:
        process.start()
    times = [results.get() for _ in running]
    for process in running:
        process.join()
    began, ended, used = zip(*times)
    timed = len(items) - WARM * processes
    return timed / (max(ended) - min(began)), sum(used) / timed


def ray_rates(items: list[Item], start: dict, processes: int, folder: Path) -> tuple[float, float]:
    """Return the same of a run on Ray."""
    detect = DetectBatch(**start)
    done, began, used, timed = 0, 0.0, 0.0, 0
    with JsonLines(folder / f"{time.time_ns()}.jsonl", header=detect.header) as lines:
        for group in detect_each(ray, items, start, detect.header["fingerprint"], workers=processes):
            lines.write(*group)
            done += len(group)
            if not began and done >= WARM * processes:
                began, used, timed = time.perf_counter(), cpu_seconds(os.getpid()), done
            if done == len(items):  # before the actors end, and their time is no longer found
                seconds, used = time.perf_counter() - began, cpu_seconds(os.getpid()) - used
    return (done - timed) / seconds, used / (done - timed)


def main() -> None:
    """Measure in turns, and print medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="number of pictures")
    parser.add_argument("--processes", type=int, default=2, help="processes, and CPUs of the cluster")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--model", default="shapes", help="as in minigdino.load")
    options = parser.parse_args()
    start = {"text": TEXT, "model": options.model, "threads": 1}
    bare_ones, on_ray = [], []
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for i, (scene, _) in enumerate(scenes("larger", options.images)):
            path = Path(folder, f"{i}.png")
            Image.fromarray(scene.image).save(path)
            items.append(Item(i, str(path)))
        ray.init(num_cpus=options.processes, include_dashboard=False, log_to_driver=False)
        for _ in range(options.rounds):
            bare_ones.append(bare_rates(items, start, options.processes))
            on_ray.append(ray_rates(items, start, options.processes, Path(folder)))
        ray.shutdown()
    for place, name in enumerate(("images per second", "seconds of CPU per image")):
        values = {"bare": [one[place] for one in bare_ones], "ray": [one[place] for one in on_ray]}
        ratio = statistics.median(on / off for on, off in zip(values["ray"], values["bare"]))
        print(json.dumps({name: values, "median of ray / bare": round(ratio, 3)}))


if __name__ == "__main__":
    main()

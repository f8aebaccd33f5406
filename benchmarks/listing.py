"""Measure what a run of millions of images costs besides detection: reading its manifest, and merging its shards.

    python -m benchmarks.listing [--images N] [--shards N] [--folder FOLDER] [--skip-merge]

The names of the images are drawn, and so are their detections: 0 to 3 of them per image. Each part runs in its own
process. Seconds are those of the processor. With 10 million images, the folder needs 15 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path

from .peers import machine
from .processes import call

FORMATS = "parquet", "csv", "jsonl"
RUN, BLOCK = "run", 100_000
HEADER = {"minigdino": "0.1.0", "model": "shapes", "fingerprint": "0" * 16, "text": ["a cat", "a dog"],
          "tokens": [101, 102], "threshold": 0.25, "text_threshold": 0.25, "size": None, "precision": "highest",
          "recursive": False}


def name(number: int) -> str:
    """Return the name of an image."""
    return f"s3://bucket/images/{number % 1000:03}/{number:010}.jpg"


def write_manifests(folder: Path, images: int) -> None:
    """Write a manifest in each format."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = pa.schema([("id", pa.int64()), ("uri", pa.string())])
    with (parquet.ParquetWriter(folder / "images.parquet", columns) as table, (folder / "images.csv").open("w") as csv,
          (folder / "images.jsonl").open("w") as lines):
        csv.write("id,uri\n")
        for start in range(0, images, BLOCK):
            rows = [(number, name(number)) for number in range(start, min(start + BLOCK, images))]
            table.write_table(pa.table(list(zip(*rows)), schema=columns))
            csv.writelines(f"{number},{uri}\n" for number, uri in rows)
            lines.writelines(f'{{"id": {number}, "uri": "{uri}"}}\n' for number, uri in rows)


def write_run(folder: Path, images: int, shards: int) -> None:
    """Write the files of a run in shards, whose results are drawn."""
    import numpy as np

    from minigdino.runs.shard import Shard, file_name

    rng = np.random.default_rng(0)
    results = []
    for _ in range(1000):
        found = [{"box": rng.random(4, np.float32).tolist(), "score": float(rng.random(dtype=np.float32)),
                  "label": HEADER["text"][label], "label_id": int(label), "phrase": HEADER["text"][label]}
                 for label in rng.integers(0, 2, rng.integers(0, 4))]
        results.append(json.dumps({"width": 640, "height": 480, "detections": found})[1:])
    (folder / RUN).mkdir()
    with contextlib.ExitStack() as stack:
        files = []
        for number in range(1, shards + 1):
            path = folder / RUN / file_name("found", Shard(number, shards))
            files.append(stack.enter_context(path.open("w")))
            header = {**HEADER, "sources": [str(folder / "images.parquet")], "shard": f"{number}/{shards}"}
            files[-1].write(json.dumps(header) + "\n")
        for number in range(images):
            shard = number * 7919 % shards  # not in the order of the ids
            files[shard].write(f'{{"image": "{name(number)}", "id": {number}, {results[number % 1000]}\n')


def list_images(source: Path, shard: str | None) -> int:
    """List the images of a manifest, as `minigdino run` does before it begins. Returns their number."""
    from minigdino.runs.items import read_items
    from minigdino.runs.shard import Shard

    part = Shard.parsed(shard) if shard else None
    return sum(1 for item in read_items([str(source)]) if part is None or item.uri in part)


def merge(folder: Path, output: str) -> int:
    """Merge the files of the run. Returns the size of the output, in bytes."""
    from minigdino import cli

    path = folder / f"merged.{output}"
    if cli.main(["merge", str(folder / RUN), f"--{output}", str(path)]):
        raise SystemExit("minigdino merge failed")
    size = path.stat().st_size
    path.unlink()
    return size


def measured(folder: Path, part: str, detail: str) -> dict:
    """Run a part in this process. Returns {"result", "seconds" of the processor, "elapsed", "peak": bytes}."""
    began = time.perf_counter()
    result = merge(folder, detail) if part == "merge" else list_images(folder / f"images.{part}", detail or None)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"result": result, "seconds": usage.ru_utime + usage.ru_stime, "elapsed": time.perf_counter() - began,
            "peak": 1024 * usage.ru_maxrss}


def report(options) -> None:
    """Measure, and print the table."""
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(exist_ok=True)
        call("listing", "--part", "write", "--folder", folder, "--images", options.images, "--shards",
             0 if options.skip_merge else options.shards)
        parts = [(part, shard) for part in FORMATS for shard in ("", f"1/{options.shards}")]
        parts += [] if options.skip_merge else [("merge", "jsonl"), ("merge", "parquet")]
        print(f"{machine(1)}; {options.images:,} images, {options.shards} shards\n")
        print("| | seconds of the processor | elapsed | peak MB | images, or MB |\n|---|---|---|---|---|")
        for part, detail in parts:
            found = json.loads(call("listing", "--part", part, "--detail", detail, "--folder", folder).splitlines()[-1])
            row = f"merge, {detail}" if part == "merge" else f"list {part}" + (f", shard {detail}" if detail else "")
            result = f"{found['result'] / 1e6:.0f} MB" if part == "merge" else f"{found['result']:,}"
            print(f"| {row} | {found['seconds']:.1f} | {found['elapsed']:.1f} | {found['peak'] / 1e6:.0f} | {result} |",
                  flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=10**7)
    options.add_argument("--shards", type=int, default=100)
    options.add_argument("--folder", type=Path, help="folder for the files (temporary)")
    options.add_argument("--skip-merge", action="store_true", help="measure the manifests only")
    options.add_argument("--part", help=argparse.SUPPRESS)
    options.add_argument("--detail", default="", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.part == "write":
        write_manifests(options.folder, options.images)
        if options.shards:
            write_run(options.folder, options.images, options.shards)
    elif options.part:
        print(json.dumps(measured(options.folder, options.part, options.detail)))
    else:
        report(options)

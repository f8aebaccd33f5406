"""Run all benchmarks. This takes over two hours on two cores, for the tiny model.

    python -m benchmarks [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N] [--rounds N] ...

Requires the extra `bench`. Each part is also a command: benchmarks.peers, .stages, .products, .throughput, .learning,
.growth, .detections, .serving and .agreement.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

from . import agreement, detections, growth, learning, peers, processes, products, serving, stages, throughput


def main() -> int:
    """Run all parts and print their tables. Returns the exit status: 1 if the float32 programs disagree, else 0."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (processes.add_options, processes.add_rounds, processes.add_peers, peers.add_passes, growth.add_sizes,
                detections.add_detections, serving.add_serving):
        add(options)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or folder  # all parts use the same checkpoints and graphs
        print("## Beside other programs", end="\n\n", flush=True)
        peers.report(options)
        print("## Time of each stage", end="\n\n", flush=True)
        stages.report(options)
        print("## Matrix products", end="\n\n", flush=True)
        products.report(options)
        print("## Throughput", end="\n\n", flush=True)
        throughput.report(options)
        print("## Learning", end="\n\n", flush=True)
        learning.report(options)
        print("## Growth", end="\n\n", flush=True)
        growth.report(options)
        print("## Start-up and memory", end="\n\n", flush=True)
        detections.report(options)
        print("## Server", end="\n\n", flush=True)
        serving.report(options)
        print("## Agreement", end="\n\n", flush=True)
        return 0 if agreement.report(options) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Detect in the images of a manifest with Daft, on one machine or on its clusters: `pip install daft`.

    python examples/on_daft.py images.parquet "a cat. a dog." found --model grounding-dino-tiny --processes 16

Each process has the model and one thread. Machines need minigdino with the extra `run`, and the model.
"""

from __future__ import annotations

import argparse

import daft
import pyarrow as pa

from minigdino.runs.batches import DetectBatch
from minigdino.runs.table import schema

ROW = daft.DataType.from_arrow_type(pa.struct(list(schema())))


@daft.cls(use_process=True)
class Detect:
    """A process of Daft that has loaded the model.

    Args:
        text: the prompt.
        options: those of `minigdino.runs.batches.DetectBatch`.
    """

    def __init__(self, text, options):
        self.detect = DetectBatch(text, threads=1, **options)

    @daft.method.batch(return_dtype=ROW, unnest=True, batch_size=16)
    def rows(self, ids, uris):
        """Return the rows of some images."""
        batch = pa.table({"id": ids.to_arrow(), "uri": uris.to_arrow()})
        return self.detect(batch).to_struct_array().combine_chunks()


def detected(manifest: daft.DataFrame, text, processes: int = 1, **options) -> daft.DataFrame:
    """Return the rows of the images of a manifest, with the columns of `minigdino merge --parquet`."""
    detect = Detect(text, options).rows.with_concurrency(processes)
    return manifest.select(detect(manifest["id"], manifest["uri"]))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("manifest", help="Parquet with the columns id and uri")
    arguments.add_argument("text", help="the prompt")
    arguments.add_argument("out", help="folder for Parquet files")
    arguments.add_argument("--model", help="as for `minigdino run`")
    arguments.add_argument("--processes", type=int, default=1, help="processes at once, for example one per core")
    arguments = arguments.parse_args()
    images = daft.read_parquet(arguments.manifest)
    detected(images, arguments.text, arguments.processes, model=arguments.model).write_parquet(arguments.out)

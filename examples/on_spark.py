"""Detect in the images of a manifest with Apache Spark. On a machine with Java 17 and `pip install "pyspark[sql]"`:

    spark-submit examples/on_spark.py images.parquet "a cat. a dog." found --model grounding-dino-tiny

The executors need minigdino with the extra `run`, and the model. Each task of Spark is one process with one thread.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import from_json
from pyspark.sql.types import StringType

ROW = ("id bigint, uri string, width int, height int, boxes array<array<float>>, scores array<float>, "
       "label_ids array<int>, phrases array<string>, error string")


def detector(text, **options):
    """Return a column function of Spark: from id and uri to the row of the image as JSON.

    `predict_batch_udf` loads the model once in each process of Python. It has no type for nested lists such as boxes.

    Args:
        text: the prompt.
        options: those of `minigdino.runs.batches.DetectBatch`.
    """
    def make_predict_fn():
        from minigdino.runs.batches import DetectBatch

        detect = DetectBatch(text, threads=1, **options)

        def predict(ids, uris):
            rows = detect({"id": ids, "uri": uris}).to_pylist()
            return np.array([json.dumps(row) for row in rows], dtype=object)

        return predict

    return predict_batch_udf(make_predict_fn, return_type=StringType(), batch_size=16)


def detected(manifest: DataFrame, text, **options) -> DataFrame:
    """Return the rows of the images of a manifest, with the columns of `minigdino merge --parquet`."""
    detect = detector(text, **options)
    return manifest.select(from_json(detect("id", "uri"), ROW).alias("row")).select("row.*")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("manifest", help="Parquet with the columns id and uri")
    arguments.add_argument("text", help="the prompt")
    arguments.add_argument("out", help="folder for Parquet files")
    arguments.add_argument("--model", help="as for `minigdino run`")
    arguments.add_argument("--partitions", type=int, default=1000,
                           help="number of tasks, of a few minutes each. A task that fails is repeated")
    arguments = arguments.parse_args()
    spark = SparkSession.builder.appName("minigdino").getOrCreate()
    manifest = spark.read.parquet(arguments.manifest).repartition(arguments.partitions)
    detected(manifest, arguments.text, model=arguments.model).write.parquet(arguments.out)
    spark.stop()

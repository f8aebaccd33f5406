"""Detect in the images of a manifest with Ray Data. The same command again continues an interrupted run.

    python examples/ray_data.py images.parquet "a cat. a dog." s3://bucket/found --model llmdet_tiny --actors 64

The folder gets Parquet files, one row per image, and the ids that are done. All nodes must see it.
"""

import argparse

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from minigdino.runs.batches import DetectBatch


def main() -> None:
    """Read ids and URIs, detect in actors, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="Parquet file with the columns id (int64) and uri")
    parser.add_argument("text", help="the prompt")
    parser.add_argument("out", help="folder for the results")
    parser.add_argument("--model", default="grounding-dino-tiny", help="as in minigdino.load")
    parser.add_argument("--actors", type=int, default=2, help="largest number of actors")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of an actor")
    options = parser.parse_args()
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{options.out}/done", delete_checkpoint_on_success=False)
    images = ray.data.read_parquet(options.manifest, columns=["id", "uri"])
    found = images.repartition(target_num_rows_per_block=BLOCK).map_batches(
        DetectBatch,
        fn_constructor_kwargs={"text": options.text, "model": options.model},
        compute=ActorPoolStrategy(min_size=1, max_size=options.actors),
        num_cpus=options.cpus,
        batch_size=8,
        batch_format="pyarrow",
    )
    found.write_parquet(f"{options.out}/parts")


BLOCK = 32  # images that an actor loses if it ends


if __name__ == "__main__":
    main()

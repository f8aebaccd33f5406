"""Detect in the images of a manifest with Ray Data. The same command again continues an interrupted run.

    python examples/ray_data.py images.parquet "a cat. a dog." s3://bucket/found --model llmdet_tiny --actors 64

The folder gets Parquet files, one row per image, and the ids that are done. All nodes must see it. Actors must leave a
CPU of the cluster free, or no task could read the manifest and the run would wait without end.
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
    parser.add_argument("--actors", type=int, help="largest number of actors; by default, as many as fit")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of an actor")
    options = parser.parse_args()
    ray.init()
    most = room(ray.nodes(), options.cpus)
    actors = max(most, 1) if options.actors is None else options.actors
    if actors > most:
        parser.error(f"expected room for {actors} actors with {options.cpus} CPUs each, and a free CPU to read the "
                     f"manifest; the nodes have room for {most}. Use fewer --actors or --cpus, or start more nodes")
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{options.out}/done", delete_checkpoint_on_success=False)
    images = ray.data.read_parquet(options.manifest, columns=["id", "uri"])
    found = images.repartition(target_num_rows_per_block=BLOCK).map_batches(
        DetectBatch,
        fn_constructor_kwargs={"text": options.text, "model": options.model},
        compute=ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=options.cpus,
        batch_size=8,
        batch_format="pyarrow",
    )
    found.write_parquet(f"{options.out}/parts")


BLOCK = 32  # images that an actor loses if it ends


def room(nodes: list[dict], cpus: int) -> int:
    """Return the number of actors that fit on the nodes of a cluster while a CPU is free.

    Args:
        nodes: as from `ray.nodes`.
        cpus: CPUs of an actor.
    """
    each = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return max(min(sum(n // cpus for n in each), (sum(each) - 1) // cpus), 0)


if __name__ == "__main__":
    main()

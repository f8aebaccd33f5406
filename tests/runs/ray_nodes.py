"""A Ray cluster on this machine: `python ray_nodes.py 2 2` starts two nodes with 2 CPUs each, and prints the address.
`2:1` is a node with 2 CPUs that declares a GPU, whether the machine has one or not.

A line "kill" on standard input kills the last node at once, "add N" adds one with N CPUs. Each is answered by a line.
The end of the input ends all nodes.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start the nodes, and follow the lines."""
    head, *others = map(resources, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    nodes = [cluster.add_node(**other) for other in others]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "kill\n":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(**resources(line.removeprefix("add "))))
        print("done", flush=True)
    cluster.shutdown()


def resources(text: str) -> dict[str, int]:
    """Return the CPUs and GPUs of a node."""
    cpus, _, gpus = text.partition(":")
    return {"num_cpus": int(cpus), "num_gpus": int(gpus or 0)}


if __name__ == "__main__":
    main()

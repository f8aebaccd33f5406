"""A Ray cluster on this machine: `python ray_nodes.py 2 2` starts two nodes with 2 CPUs each, and prints the address.

A line "kill" on standard input kills the last node at once, "add N" adds one with N CPUs. Each is answered by a line.
The end of the input ends all nodes.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start the nodes, and follow the lines."""
    head, *others = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=n) for n in others]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "kill\n":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(num_cpus=int(line.removeprefix("add "))))
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

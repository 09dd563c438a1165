"""A real Ray cluster of two machines in this one: a program, controlled by lines on its input.

It prints the address of the head, then one line per command: ``kill`` kills the second machine as a
power failure would, ``add`` adds it again. The machines have different addresses of loopback.
"""

from __future__ import annotations

import sys

SECOND = "127.0.0.2"


def main() -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415  # only this process has Ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2, node_ip_address=SECOND)
    print(cluster.address, flush=True)  # noqa: T201
    for line in sys.stdin:
        if line == "kill\n":
            cluster.remove_node(second, allow_graceful=False)
        elif line == "add\n":
            second = cluster.add_node(num_cpus=2, node_ip_address=SECOND)
        print("done", flush=True)  # noqa: T201
    cluster.shutdown()


if __name__ == "__main__":
    main()

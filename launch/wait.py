"""Until a Ray cluster has all its nodes and all their devices, or a bound is reached."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from launch.node import wait_for_port

STEP_S = 1.0
DEVICE = "GPU"  # also the logical ones of the CPU platform


@dataclass(frozen=True)
class Node:
    host: str
    address: str
    devices: int


def alive_nodes() -> list[Node]:
    """The cluster's living nodes; this process is connected."""
    return [
        Node(node["NodeManagerHostname"], node["NodeManagerAddress"], int(node["Resources"].get(DEVICE, 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def missing(found: list[Node], nodes: int, devices_per_node: int) -> str | None:
    """What a cluster lacks; None where it is complete."""
    ready = [node for node in found if node.devices >= devices_per_node]
    if len(ready) >= nodes:
        return None
    seen = ", ".join(f"{node.host} {node.address} with {node.devices} devices" for node in found) or "none"
    return f"{len(ready)} of {nodes} nodes with {devices_per_node} devices each are there; nodes: {seen}"


def wait_for_cluster(
    address: str, nodes: int, devices_per_node: int, timeout_s: float, lost: Callable[[], bool] = lambda: False
) -> list[Node]:
    """Connect to the cluster at HOST:PORT and wait until it is complete.

    Raises:
        TimeoutError: it was not within `timeout_s`, with what is there.
        RuntimeError: `lost` says that a node is gone already.
    """
    deadline = time.monotonic() + timeout_s

    def check() -> bool:
        if lost():
            raise RuntimeError(
                "a node's Ray ended while the cluster was put together; see ray_*.log in the attempt's folder"
            )
        return False

    wait_for_port(address, timeout_s, check)
    os.environ["RAY_ADDRESS"] = address
    while not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, RuntimeError) as error:  # the port is open before the rest is ready
            ray.shutdown()
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"Ray at {address} cannot be joined after {timeout_s:.0f} s: {error}") from error
            time.sleep(STEP_S)
    try:
        while True:
            found = alive_nodes()
            lack = missing(found, nodes, devices_per_node)
            if lack is None:
                return found
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the cluster was not complete after {timeout_s:.0f} s: {lack}. See ray_*_worker.log in the "
                    "attempt's folder; do gpus_per_node and interface fit the nodes? waits.nodes_s is the bound"
                )
            time.sleep(STEP_S)
    finally:
        ray.shutdown()

"""Checks before a run, on this machine or on every node of a Ray cluster: a table of what passes and what to do."""

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from launch.checks import GB, Check, node_checks, versions
from launch.compose import resolved
from launch.node import wait_for_port
from launch.runfile import RunFile

MB_OF_ALL_REDUCE = 64
CONNECT_S = 10.0


def inputs(config: DictConfig) -> dict[str, list[str]]:
    """What every node must see: the model, data files and the reward function's file."""

    def as_list(value) -> list[str]:
        return [value] if isinstance(value, str) else [str(item) for item in value or []]

    found = {
        "model": as_list(config.actor_rollout_ref.model.path),
        "train data": as_list(config.data.train_files),
        "validation data": as_list(config.data.val_files),
        "reward": as_list(config.reward.custom_reward_function.path),
    }
    return {name: paths for name, paths in found.items() if paths}


def local_checks(run: RunFile, prepared: bool = True) -> list[Check]:
    """This machine alone.

    Args:
        prepared: `prepare` of the run file has been done; before it the data it makes cannot be asked for.
    """
    wanted = inputs(resolved(run, cluster=False))
    return node_checks(run, wanted if prepared else {"model": []}, ray_runs=False)


def table(checks: list[Check]) -> str:
    """One line per check and the remedies of those that failed."""
    width = max((len(f"{item.node} {item.name}") for item in checks), default=0)
    lines = [f"{'pass' if c.ok else 'FAIL'}  {f'{c.node} {c.name}':<{width}}  {c.found}" for c in checks]
    failed = [item for item in checks if not item.ok]
    lines += ["", *dict.fromkeys(f"{item.node} {item.name}: {item.remedy}" for item in failed)]
    lines.append(f"{len(failed)} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    return "\n".join(lines)


def cluster_checks(run: RunFile) -> list[Check]:
    """Every node of the cluster at RAY_ADDRESS, and what lies between them.

    Raises:
        TimeoutError: there is no cluster at RAY_ADDRESS.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        if address != "auto":  # Ray itself tries for two minutes
            wait_for_port(address, CONNECT_S)
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    deadline = time.monotonic() + run.preflight.timeout_s
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= run.gpus_per_node]
    found = [
        Check("nodes", len(nodes) >= run.nodes, f"{len(nodes)} with {run.gpus_per_node} devices each",
              f"nodes={run.nodes} wanted: see `ray status`; did the others join, with --num-gpus?", "cluster")
    ]  # fmt: skip
    if not nodes:
        return found

    def everywhere(function: Callable, *arguments, devices: float = 0) -> list:
        """`function(*arguments)` on each node at once; where devices are needed, with one of them.

        Raises:
            Unanswered: which nodes did not answer in time, or what went wrong on one.
        """
        remote = ray.remote(function)
        answers = [
            remote.options(
                num_cpus=0, num_gpus=devices, max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(*[argument[rank] if isinstance(argument, PerNode) else argument for argument in arguments])
            for rank, node in enumerate(nodes)
        ]  # fmt: skip
        remaining = max(1.0, deadline - time.monotonic())
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=remaining)
        silent = [
            node["NodeManagerAddress"] for node, answer in zip(nodes, answers, strict=True) if answer not in ready
        ]
        if silent:
            raise Unanswered(f"no answer from {', '.join(silent)} within {run.preflight.timeout_s} s")
        try:
            return ray.get(answers)
        except ray.exceptions.RayError as error:
            raise Unanswered(str(error).strip().splitlines()[-1]) from error

    def all_nodes() -> list[Check]:
        answers = everywhere(_node_checks, run.to_json(), inputs(resolved(run, cluster=True)), devices=devices)
        return [check for checks in answers for check in checks]

    def between_nodes() -> list[Check]:
        if len(nodes) == 1:
            return []
        hosts = everywhere(_free_address, run.interface)
        seconds = everywhere(
            all_reduce, PerNode(range(len(nodes))), len(nodes), hosts[0], run.accelerator, run.interface,
            devices=min(devices, 1),
        )  # fmt: skip
        return [_bandwidth(run, max(seconds), len(nodes))]

    devices = run.gpus_per_node if run.accelerator == "gpu" else 0
    busy = "is the node overloaded, or do other jobs hold its devices (`ray status`)? preflight.timeout_s is the bound"
    for name, remedy, check in (
        ("node", busy, all_nodes),
        ("versions agree", busy, lambda: [_same("versions agree", everywhere(versions))]),
        ("shared folder", f"can all nodes write {run.root}? {busy}", lambda: _canary(run, everywhere)),
        ("clocks", busy, lambda: [_clocks(run, everywhere)]),
        ("all-reduce", "can the nodes reach each other on `interface`, or is a firewall between?", between_nodes),
    ):
        try:
            found += check()
        except Unanswered as error:
            if gone := _gone(nodes):  # a host that has just died is still in Ray's list when the checks start
                found[0] = Check("nodes", False, f"{', '.join(gone)} left the cluster", found[0].remedy, "cluster")
                return found
            found.append(Check(name, False, str(error), remedy, "all"))
    return found


def _gone(nodes: list[dict]) -> list[str]:
    """Addresses of those that are no longer in Ray's cluster."""
    import ray

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [node["NodeManagerAddress"] for node in nodes if node["NodeID"] not in alive]


class Unanswered(Exception):
    """A node did not answer, or its check ended with an error."""


class PerNode(list):
    """An argument that differs from node to node."""


def _node_checks(spec: str, wanted: dict[str, list[str]]) -> list[Check]:
    return node_checks(RunFile.from_json(spec), wanted, ray_runs=True)


def _same(name: str, answers: list) -> Check:
    different = [str(answer) for answer in answers if answer != answers[0]]
    return Check(
        name, not different, f"{len(answers)} nodes", f"{answers[0]} and {different[:1]}: one image for all", "all"
    )


def _write(folder: str, name: str, text: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, name).write_text(text)


def _read_all(folder: str) -> dict[str, str]:
    os.listdir(folder)  # asks a network filesystem anew
    return {path.name: path.read_text() for path in Path(folder).glob("*")}


def _canary(run: RunFile, everywhere: Callable) -> list[Check]:
    """Every node writes a file in the run's folder, and every node must then read them all."""
    import shutil

    folder = run.root / f".canary_{secrets.token_hex(4)}"
    everywhere(_write_own, str(folder))
    seen = everywhere(_read_all, str(folder))
    count = max(len(answer) for answer in seen)
    ok = all(answer == seen[0] and len(answer) == len(seen) for answer in seen)
    shutil.rmtree(folder, ignore_errors=True)
    remedy = f"{run.root} is not the same folder on all nodes: set `folder` to a path on a shared filesystem"
    return [Check("shared folder", ok, f"{count} of {len(seen)} nodes' files seen", remedy, "all")]


def _write_own(folder: str) -> None:
    import ray

    name = ray.get_runtime_context().get_node_id()
    _write(folder, name, secrets.token_hex(8))


def _now() -> float:
    return time.time()


def _clocks(run: RunFile, everywhere: Callable) -> Check:
    """Differences of the nodes' clocks, of an answer that took at most so long as it took."""
    everywhere(_now)  # starts the workers: the second answer is quick
    start = time.time()
    answers = everywhere(_now)
    end = time.time()
    skews = [max(0.0, start - then, then - end) for then in answers]
    limit = run.preflight.max_clock_skew_s
    return Check(
        "clocks", max(skews) <= limit, f"at most {max(skews):.2f} s apart", f"{limit} s wanted: is NTP running?", "all"
    )


def _free_address(interface: str | None) -> str:
    import socket

    from launch.node import address_of

    address = address_of(interface)
    with socket.socket() as probe:
        probe.bind((address, 0))
        return f"{address}:{probe.getsockname()[1]}"


def all_reduce(rank: int, size: int, address: str, accelerator: str, interface: str | None) -> float:
    """Seconds of one all-reduce of MB_OF_ALL_REDUCE megabytes between so many processes, the best of three."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    if interface:  # before the first communicator is made
        os.environ |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    gpu = accelerator == "gpu"
    dist.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"tcp://{address}", rank=rank, world_size=size,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    try:
        data = torch.ones(MB_OF_ALL_REDUCE * 250_000, device="cuda" if gpu else "cpu")
        best = float("inf")
        for _ in range(3):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(data)
            total = data[0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
            if total != size:
                raise RuntimeError(f"all-reduce of ones over {size} nodes gave {total}")
            data.fill_(1.0)
        return best
    finally:
        dist.destroy_process_group()


def _bandwidth(run: RunFile, seconds: float, nodes: int) -> Check:
    """Bus bandwidth as NCCL's tests define it: 2 (n - 1) / n x bytes / seconds."""
    rate = 2 * (nodes - 1) / nodes * MB_OF_ALL_REDUCE * 1e6 / seconds / GB
    limit = run.preflight.min_allreduce_gb_s
    remedy = (
        f"{limit} GB/s wanted: is `interface` the fast network (NCCL_DEBUG=INFO says which NCCL takes)? Or lower "
        "preflight.min_allreduce_gb_s"
    )
    return Check("all-reduce", rate >= limit, f"{rate:.2f} GB/s between {nodes} nodes", remedy, "all")

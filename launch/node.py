"""Ray on one node of a job: started with explicit addresses, ports and sizes, ended whole, logs copied out."""

import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from launch.attempt import TEARDOWN, marked, say
from launch.environment import public_environment, secrets, with_project
from launch.processes import Child, Signals
from launch.redact import Secrets
from launch.runfile import ROOT, RunFile, RunFileError

STEP_S = 0.5
STARTED = b"Ray runtime started."  # what `ray start` says then


def address_of(interface: str | None) -> str:
    """This machine's IPv4 address on an interface; None: the one that its host name or its default route leads to.

    Raises:
        RuntimeError: no such interface, or none with an address.
    """
    found = {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    if interface is not None:
        if interface not in found:
            raise RuntimeError(
                f"{socket.gethostname()} has no interface {interface} with an IPv4 address. Set `interface` in the run "
                f"file to one of: {', '.join(f'{name} ({ip})' for name, ip in sorted(found.items()))}"
            )
        return found[interface]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: the kernel only chooses the route
            return probe.getsockname()[0]
        except OSError:  # no default route
            others = [ip for name, ip in found.items() if not ip.startswith("127.")]
            return others[0] if others else "127.0.0.1"


def wait_for_port(address: str, timeout_s: float, ended=lambda: False) -> None:
    """Until something listens at HOST:PORT.

    Raises:
        TimeoutError: nothing did within the bound.
        RunFileError: that is not an address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RunFileError(f"address: {address}: want HOST:PORT of Ray's head, for instance 10.0.0.1:20000")
    deadline = time.monotonic() + timeout_s
    while not ended():
        try:
            with socket.create_connection((host, int(port)), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Ray's head at {address} did not answer within {timeout_s:.0f} s ({error}). See its log "
                    "ray_*_head.log in the attempt's folder; if it runs, is the interface the right one, and a "
                    "firewall between?"
                ) from error
        time.sleep(STEP_S)


def ray_command(run: RunFile, head: str | None, ip: str, temp: Path) -> list[str]:
    """`ray start` for the head (head=None) or for a worker of the head HOST:PORT.

    CPU counts are given: under Slurm's limits Ray would count the machine's, and its workers then fail to register.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--head", "--dashboard-host=0.0.0.0"] if head is None else [f"--address={head}"]
    command += [f"--node-ip-address={ip}", f"--num-cpus={run.ray_cpus or run.slurm.cpus_per_node}"]
    command += [f"--num-gpus={run.gpus_per_node}", f"--temp-dir={temp}"]
    if run.object_store_bytes:
        command.append(f"--object-store-memory={run.object_store_bytes}")
    return [*command, *run.ports.ray_options(head=head is None)]


def node_environment(run: RunFile) -> dict[str, str]:
    """Ray's workers inherit the environment of their node: it is complete here, secrets too."""
    env = public_environment(run) | {name: value for name, value in os.environ.items() if name not in run.env}
    env = with_project(env)
    env.pop("RAY_ADDRESS", None)
    return env


def run_node(run: RunFile, head: str | None, logs: Path, name: str) -> int:
    """Run Ray on this node until a signal, the mark TEARDOWN or Ray itself ends it; its logs are then under `logs`.

    Args:
        head: HOST:PORT of the head; None: this node is it.
        name: tells this node's files from the others'.

    Returns:
        0 after a signal or the mark; otherwise Ray's own status, or 1 where that is 0: a node must not end by itself.
    """
    role = "head" if head is None else "worker"
    ip = address_of(run.interface)
    if taken := run.ports.taken():
        raise RuntimeError(
            f"{socket.gethostname()}: ports {taken} are taken, by another Ray cluster or job on this node. Set "
            "ports.base in the run file to another value, or ask for whole nodes (slurm.exclusive)"
        )
    hidden = secrets(run)
    temp = Path(f"/tmp/pr_{os.environ.get('SLURM_JOB_ID', os.getpid())}_{name}")  # short: it holds Unix sockets
    with Signals() as signals:
        if head is not None:
            wait_for_port(head, run.waits.head_s, ended=lambda: signals.end is not None or marked(logs, TEARDOWN))
        deadline = time.monotonic() + (run.waits.head_s if head is None else run.waits.nodes_s)
        while True:
            say(f"Ray {role} on {name}, {ip}")
            log = logs / f"ray_{name}_{role}.log"
            child = Child(ray_command(run, head, ip, temp), log, hidden, node_environment(run), ROOT)
            try:
                while signals.end is None and not marked(logs, TEARDOWN) and child.process.poll() is None:
                    time.sleep(STEP_S)
                code = child.process.poll()
                child.interrupt(run.waits.teardown_s / 2, signal.SIGTERM)
            finally:
                child.clear()
                copy_logs(temp, logs / f"ray_{name}", hidden)
                shutil.rmtree(temp, ignore_errors=True)
            if code is None or STARTED in log.read_bytes() or time.monotonic() > deadline:
                break
            # Ray gives itself 30 s to start, which a slow filesystem or a busy node can exceed.
            say(f"Ray {role} on {name} did not start (status {code}): once more")
    if code is None:
        return 0
    say(f"Ray {role} on {name} ended by itself with status {code}")
    return code or 1


def copy_logs(temp: Path, target: Path, hidden: Secrets) -> None:
    """Ray's logs of this node, secrets masked."""
    for session in temp.glob("session_2*"):
        for path in (session / "logs").rglob("*"):
            if path.is_file() and not path.is_symlink():
                copy = target / path.relative_to(session / "logs")
                copy.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "rb") as reader, open(copy, "wb") as writer:
                    hidden.stream().copy(reader, writer)

"""`launch ray` on a cluster of two hosts with addresses of their own: training, a host that dies, going on after it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from launch.attempts import last_step
from launch.runfile import ROOT, load

HERE = Path(__file__).parent
TWO_NODES = ["bash", str(HERE / "two_nodes.sh")]
HEAD, BASE = "10.213.7.11", 25000
pytestmark = [pytest.mark.long, pytest.mark.timeout(4800)]


@pytest.fixture
def hosts():
    check = subprocess.run([*TWO_NODES, "hosts_check"], capture_output=True, text=True)
    if check.returncode:
        pytest.skip(check.stderr.strip())
    try:
        subprocess.run([*TWO_NODES, "hosts_up"], check=True)
        yield
    finally:
        subprocess.run([*TWO_NODES, "hosts_down"], check=True)


@pytest.fixture
def run_path(tmp_path):
    settings = {
        "base": str(ROOT / "launch/runs/cpu_poise_2x1.yaml"),
        "name": "hosts",
        "folder": str(tmp_path / "run"),
        "interface": "fast0",
        "ports": {"base": BASE},
        "preflight": {"min_device_gb": 1},
        "waits": {"head_s": 180, "nodes_s": 60, "teardown_s": 30},
        "prepare": ["python -m recipe.poise.quickstart.prepare --out ${folder}/assets --fast"],
        "overrides": {
            "data.train_batch_size": 16,
            "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": 2,
            "trainer.total_training_steps": 10,
            "poise.probe.min_rows": 16,
        },
    }
    path = tmp_path / "hosts.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


class Cluster:
    """Ray nodes, each in its host, started by `launch node`."""

    def __init__(self, spec: Path, logs: Path):
        self.spec, self.logs, self.nodes = spec, logs, {}
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}

    def inside(self, host: str, *command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{host}", *command], cwd=ROOT, env=self.environment, text=True, **options
        )

    def start(self, host: str, head: str | None = None) -> None:
        command = [sys.executable, "-m", "launch", "node", "--run", str(self.spec), "--logs", str(self.logs)]
        command += ["--head", head] if head else []
        self.environment["SLURMD_NODENAME"] = host
        self.nodes[host] = self.inside(host, *command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def wait(self, nodes: int, limit_s: float = 240) -> None:
        address = f"{HEAD}:{load_ports(self.spec)}"
        command = [sys.executable, "-m", "launch", "wait", "--address", address, "--nodes", str(nodes)]
        command += ["--devices", "1", "--timeout", str(limit_s)]
        done = self.inside("poise1", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        out, _ = done.communicate(timeout=limit_s + 60)
        assert done.returncode == 0, out

    def kill(self, host: str) -> None:
        """As a machine that loses power: everything on it at once."""
        for pid in subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.nodes.pop(host).wait()

    def end(self) -> None:
        for process in self.nodes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.nodes.values():
            process.wait(timeout=90)


def load_ports(spec: Path) -> int:
    return json.loads(spec.read_text())["ports"]["base"]


@pytest.fixture
def cluster(hosts, run_path, tmp_path):
    logs = tmp_path / "nodes"
    logs.mkdir()
    (logs / "run.json").write_text(load(run_path).to_json())
    found = Cluster(logs / "run.json", logs)
    found.start("poise1")
    found.wait(1)
    found.start("poise2", f"{HEAD}:{load_ports(found.spec)}")
    found.wait(2)
    yield found
    found.end()


def submit(cluster: Cluster, run_path: Path) -> subprocess.Popen:
    address = f"http://{HEAD}:{load(run_path).ports.dashboard}"
    command = [sys.executable, "-m", "launch", "ray", str(run_path), "--address", address]
    return cluster.inside("poise1", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps(root: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]


def test_a_host_dies_and_the_run_goes_on_when_there_is_another(cluster, run_path, tmp_path):
    root = tmp_path / "run"
    job = submit(cluster, run_path)
    logged = root / "logs/attempt_1/metrics.jsonl"  # a step is logged after its checkpoint
    deadline = time.monotonic() + 1500
    while (last_step(logged) or 0) < 2:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0][-8000:]
        time.sleep(0.5)
    cluster.kill("poise2")
    start = time.monotonic()
    out, _ = job.communicate(timeout=600)
    assert job.returncode != 0, out[-8000:]
    assert time.monotonic() - start < 300
    assert "nodes=2 wanted" in out, out[-8000:]  # the next attempt's preflight

    cluster.start("poise2", f"{HEAD}:{load_ports(cluster.spec)}")
    cluster.wait(2)
    job = submit(cluster, run_path)
    out, _ = job.communicate(timeout=1800)
    assert job.returncode == 0, out[-8000:]
    attempts = json.loads((root / "attempts.json").read_text())["attempts"]
    assert attempts[0]["outcome"] == "crashed" and attempts[-1]["outcome"] == "done"
    assert attempts[-1]["resumed_from"] >= 2
    assert steps(root) == list(range(1, 11))
    cluster.end()
    cluster.nodes.clear()
    # of this test's cluster: other Ray clusters may run on the machine
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if re.search(r"/tmp/pr_\d+_poise[12]\b", line)]

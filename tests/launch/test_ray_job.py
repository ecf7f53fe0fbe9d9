"""`launch ray` on a real Ray cluster of one node, which `launch node` starts and ends; a payload trains nothing."""

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
from ray.job_submission import JobStatus, JobSubmissionClient

from launch.node import wait_for_port
from launch.runfile import ROOT, load

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BASE = 24000
PAYLOAD = Path(__file__).parent / "slurm_payload"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head on this machine; the dashboard's address. It is ended by TERM and leaves nothing."""
    logs = tmp_path_factory.mktemp("head")
    settings = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "interface": "lo",
        "ports": {"base": BASE},
        "ray_cpus": 4,
        "object_store_bytes": 80_000_000,
    }
    (logs / "head.yaml").write_text(yaml.safe_dump(settings))
    run = load(logs / "head.yaml")
    (logs / "run.json").write_text(run.to_json())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{PAYLOAD}", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "launch", "node", "--run", str(logs / "run.json"), "--logs", str(logs)]
    head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    wait_for_port(f"127.0.0.1:{run.ports.dashboard}", 180)
    yield f"http://127.0.0.1:{run.ports.dashboard}"
    children = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    assert head.wait(timeout=90) == 0
    left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not left
    assert any(logs.rglob("raylet*")), "Ray's logs were not copied out"


def test_preflight_of_a_cluster_names_nodes_that_do_not_answer(cluster, write_run):
    settings = {"interface": "lo", "ports": {"base": BASE}, "preflight": {"min_device_gb": 0.5, "timeout_s": 1}}
    command = [sys.executable, "-m", "launch", "preflight", str(write_run("slow", **settings))]
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{BASE}", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"FAIL  all node +no answer from [\d.]+ within 1 s", done.stdout), done.stdout
    assert "preflight.timeout_s is the bound" in done.stdout and "Traceback" not in done.stderr


def submit(path, address: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch", "ray", str(path), "--address", address]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "WANDB_API_KEY": "wandb-0123456789abcdef"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def interrupt(path, address: str, answer: str) -> tuple[int, str]:
    """Ctrl-C once the job is in its first step: exit status and output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "ray", str(path), "--address", address], cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    before = ""
    while "payload: step" not in before:
        line = process.stdout.readline()
        assert line, before
        before += line
    process.send_signal(signal.SIGINT)
    after, _ = process.communicate(answer + "\n", timeout=100)
    return process.returncode, before + after


def test_a_job_is_followed_and_its_status_returned(cluster, write_run, payload_folder):
    settings = {"interface": "lo", "ports": {"base": BASE}, "preflight": {"at_start": False}}
    done = submit(write_run("good", **settings, overrides={"+payload.seconds": 0}), cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "payload: step 8" in done.stdout and "not sent: " in done.stdout and "WANDB_API_KEY" in done.stdout
    attempts = json.loads((payload_folder / "runs/good/attempts.json").read_text())["attempts"]
    assert [item["outcome"] for item in attempts] == ["done"]

    # Ctrl-C asks: the job goes on, or is stopped
    path = write_run("long", **settings, overrides={"+payload.seconds": 2, "trainer.total_training_steps": 100})
    code, out = interrupt(path, cluster, "n")
    assert code == 0 and "the job goes on" in out
    job = out.split("[launch] job ")[1].split()[0]
    client = JobSubmissionClient(cluster)
    assert client.get_job_status(job) == JobStatus.RUNNING
    client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    code, out = interrupt(path, cluster, "y")
    assert code == 1 and "stopping the job" in out and "STOPPED" in out
    steps = [line for line in out.splitlines() if line.startswith("payload: step")]
    assert steps and len(steps) == len(set(steps))  # the log is sent from its start each time

    done = submit(write_run("bad", **settings, overrides={"+payload.seconds": 0, "+payload.crash_at": 3}), cluster)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step 3 failed twice" in done.stdout

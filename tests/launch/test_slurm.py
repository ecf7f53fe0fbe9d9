"""The written sbatch file under a real Slurm with two nodes of their own addresses, a payload in place of training."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from launch import quoting

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TWO_NODES = ["bash", str(HERE / "two_nodes.sh")]
KEY = "wandb-0123456789abcdef-secret"
SETTINGS = {
    "nodes": 2,
    "interface": "fast0",
    "slurm": {"cpus_per_node": 2, "mem": None, "time": "20:00", "exclusive": True},
    "resume": {"stop_grace_s": 120},
    "waits": {"head_s": 120, "nodes_s": 180, "teardown_s": 30},
}
pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Two nodes; its configuration is in the environment."""
    check = subprocess.run([*TWO_NODES, "check"], capture_output=True, text=True)
    if check.returncode:
        pytest.skip(check.stderr.strip())
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged runs as a user of its own
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([*TWO_NODES, "up", str(folder)], check=True, timeout=120)
        yield folder
    finally:
        subprocess.run([*TWO_NODES, "down", str(folder)], check=True, timeout=120)
        del os.environ["SLURM_CONF"]


def launch(*arguments, **env) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # the payload's, where it is used
    env = os.environ | {"PYTHONPATH": path, **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def submit(path: Path) -> str:
    run = launch("slurm", path, WANDB_API_KEY=KEY, EXPECTED_KEY=KEY)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("job ")[-1].split(";")[0].strip()


def job(number: str) -> dict[str, str]:
    out = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True).stdout
    return dict(item.split("=", 1) for item in out.split() if "=" in item)


def output(root: Path) -> str:
    """Everything that the job wrote, for a failed test's message."""
    return "\n".join(f"== {path}\n{path.read_text()[-6000:]}" for path in root.glob("logs/slurm-*.out"))


def until(condition, root: Path, limit_s: float, what: str):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit_s} s\n{output(root)}"
        time.sleep(0.5)
    return found


def wait_for_end(number: str, root: Path, limit_s: float = 420) -> str:
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    return until(lambda: (state := job(number).get("JobState")) in ends and state, root, limit_s, "end of the job")


def attempts(root: Path) -> list[dict]:
    path = root / "attempts.json"
    return json.loads(path.read_text())["attempts"] if path.exists() else []


def metrics(root: Path) -> dict[int, dict]:
    return {r["step"]: r["data"] for r in map(json.loads, (root / "metrics.jsonl").read_text().splitlines())}


def ray_processes(number: str) -> list[str]:
    """Processes of a job's Ray that are still there."""
    found = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return [" ".join(line) for line in found if line and any(f"/tmp/pr_{number}_" in item for item in line)]


def assert_clean(number: str, root: Path) -> None:
    """No process of Ray is left, the key is in no file, and each attempt has the logs of both nodes."""
    until(lambda: not ray_processes(number), root, 20, "end of Ray's processes")
    holds = [path for path in root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not holds
    for item in attempts(root):
        logs = Path(item["logs"])
        assert (logs / "train.log").exists()
        for node in ("poise1", "poise2"):
            assert any((logs / f"ray_{node}").rglob("raylet*")), f"no Ray logs of {node} in {logs}"
    assert not list(Path("/tmp").glob(f"pr_{number}_*"))


@pytest.mark.parametrize("value", ["it's", '"a" b', "#1", "back\\slash\\", "packjob", "$(x) `y` {}", "a=b;c"])
def test_sbatch_reads_what_was_quoted(slurm, tmp_path, value):
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --hold\n#SBATCH {quoting.sbatch(f'--comment={value}')}\nexit 0\n")
    number = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True, check=True).stdout.strip()
    shown = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True).stdout
    subprocess.run(["scancel", number], check=True)
    assert f"   Comment={value}" in [line.rstrip() for line in shown.splitlines()], shown


def test_a_run_over_two_nodes(slurm, write_run, payload_folder):
    root = payload_folder / "runs/plain"
    number = submit(write_run("plain", **SETTINGS))
    assert wait_for_end(number, root) == "COMPLETED", output(root)
    assert [item["outcome"] for item in attempts(root)] == ["done"]
    found = metrics(root)
    assert sorted(found) == list(range(1, 9))
    assert all(step["nodes"] == 2 and step["secret_on_all"] for step in found.values())
    table = (root / "logs/attempt_1/preflight.txt").read_text()
    assert "all " in table and "all-reduce" in table and "shared folder" in table
    assert_clean(number, root)


def test_usr1_saves_requeues_and_goes_on(slurm, write_run, payload_folder):
    root = payload_folder / "runs/preempted"
    overrides = {"trainer.total_training_steps": 12, "trainer.save_freq": 100, "+payload.seconds": 2.0}
    number = submit(write_run("preempted", **SETTINGS, overrides=overrides))
    logged = root / "logs/attempt_1/metrics.jsonl"
    until(lambda: logged.exists() and len(logged.read_text().splitlines()) >= 2, root, 300, "second step")
    subprocess.run(["scancel", "--batch", "--signal=USR1", number], check=True)  # as Slurm sends it near the time limit
    assert wait_for_end(number, root) == "COMPLETED", output(root)
    first, second = attempts(root)
    assert (first["outcome"], first["code"], second["outcome"]) == ("stopped", 75, "done")
    assert second["resumed_from"] == first["last_step"] >= 2
    assert job(number)["Restarts"] == "1"
    assert sorted(metrics(root)) == list(range(1, 13))
    tracking = json.loads((root / "attempts.json").read_text())["tracking_id"]
    assert tracking.startswith("preempted-")
    assert_clean(number, root)


def test_a_crash_resumes_once_and_the_same_step_twice_ends_it(slurm, write_run, payload_folder):
    root = payload_folder / "runs/crash"
    number = submit(write_run("crash", **SETTINGS, overrides={"+payload.crash_at": "5:once"}))
    assert wait_for_end(number, root) == "COMPLETED", output(root)
    assert [(item["outcome"], item["resumed_from"]) for item in attempts(root)] == [("crashed", 0), ("done", 4)]
    assert_clean(number, root)

    root = payload_folder / "runs/always"
    number = submit(write_run("always", **SETTINGS, overrides={"+payload.crash_at": 5}))
    assert wait_for_end(number, root) == "FAILED", output(root)
    assert [(item["outcome"], item["last_step"]) for item in attempts(root)] == [("crashed", 4), ("crashed", None)]
    assert "step 5 failed twice" in output(root)
    assert_clean(number, root)


def test_a_dead_worker_node_is_seen_at_once_and_the_run_goes_on(slurm, write_run, payload_folder):
    root = payload_folder / "runs/dead"
    number = submit(write_run("dead", **SETTINGS, overrides={"+payload.seconds": 1.5}))
    logged = root / "logs/attempt_1/metrics.jsonl"
    until(lambda: logged.exists() and len(logged.read_text().splitlines()) >= 3, root, 300, "third step")
    raylets = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "raylet" and any(f"pr_{number}_poise2" in item for item in process.info["cmdline"])
    ]
    assert len(raylets) == 1
    raylets[0].kill()
    assert wait_for_end(number, root) == "COMPLETED", output(root)
    first, second = attempts(root)
    assert (first["outcome"], second["outcome"]) == ("crashed", "done") and second["resumed_from"] >= 2
    assert first["ended"] - first["started"] < 120
    assert_clean(number, root)


def test_workers_that_do_not_come_end_the_job_within_the_bound(slurm, write_run, payload_folder):
    root = payload_folder / "runs/short"
    # Ray's start takes longer than a second
    settings = SETTINGS | {"gpus_per_node": 1, "waits": {"head_s": 120, "nodes_s": 1, "teardown_s": 30}}
    number = submit(write_run("short", **settings))
    assert wait_for_end(number, root, 180) == "FAILED"
    assert "the cluster was not complete after 1 s" in output(root) and "1 of 2 nodes" in output(root)
    until(lambda: not ray_processes(number), root, 20, "end of Ray's processes")


@pytest.fixture
def write_training(tmp_path):
    """A function that writes a run file of real training over both nodes, one FSDP rank and one vLLM replica each."""

    def write(name: str) -> Path:
        assets = tmp_path / "assets"
        settings = SETTINGS | {
            "base": str(ROOT / "launch/runs/cpu_poise_2x1.yaml"),
            "name": name,
            "folder": str(tmp_path / "runs" / name),
            "prepare": [f"python -m recipe.poise.quickstart.prepare --out {assets} --fast"],
            "preflight": {"min_device_gb": 1},
            "slurm": SETTINGS["slurm"] | {"time": "60:00"},
            "resume": {"stop_grace_s": 300},
            "overrides": {
                "data.train_files": str(assets / "train.parquet"),
                "data.val_files": str(assets / "val.parquet"),
                "actor_rollout_ref.model.path": str(assets / "model"),
                "data.train_batch_size": 16,
                "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
                "trainer.val_before_train": False,
                "trainer.test_freq": -1,
                "trainer.save_freq": 100,
                "trainer.total_training_steps": 6,
                "poise.probe.min_rows": 16,
            },
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.mark.timeout(4800)
def test_training_over_two_nodes_and_a_requeue_changes_nothing(slurm, write_training, tmp_path):
    roots = [tmp_path / "runs" / name for name in ("unbroken", "requeued")]
    number = submit(write_training("unbroken"))
    assert wait_for_end(number, roots[0], 1800) == "COMPLETED", output(roots[0])
    assert_clean(number, roots[0])

    number = submit(write_training("requeued"))
    logged = roots[1] / "logs/attempt_1/metrics.jsonl"
    until(lambda: logged.exists() and len(logged.read_text().splitlines()) >= 2, roots[1], 1200, "second step")
    subprocess.run(["scancel", "--batch", "--signal=USR1", number], check=True)
    assert wait_for_end(number, roots[1], 1800) == "COMPLETED", output(roots[1])
    first, second = attempts(roots[1])
    assert (first["outcome"], second["outcome"]) == ("stopped", "done") and 2 <= second["resumed_from"] < 6
    assert job(number)["Restarts"] == "1"
    assert_clean(number, roots[1])

    expected, found = metrics(roots[0]), metrics(roots[1])
    assert sorted(expected) == sorted(found) == list(range(1, 7))
    for step in expected:
        # not compared: seconds; bins of the calibration, which jump where rounding moves a row over an edge
        left_out = ("poise/time_", "poise/calibration_")
        names = [name for name in expected[step] if name.startswith("poise/") and not name.startswith(left_out)]
        names += ["critic/score/mean", "response_length/mean", "actor/entropy", "actor/grad_norm"]
        assert {name: found[step][name] for name in names} == pytest.approx(
            {name: expected[step][name] for name in names}, rel=5e-3, abs=5e-4
        ), f"step {step}"

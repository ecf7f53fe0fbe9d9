"""`python -m launch local` with real training: stops at request behind a checkpoint, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture
def launched(assets, kill_marked, tmp_path):
    """A function that starts the run: the process, and the run's folder."""
    settings = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "name": "small",
        "folder": str(tmp_path / "run"),
        "prepare": [],
        "preflight": {"at_start": False},
        "overrides": {
            "data.train_files": str(assets / "train.parquet"),
            "data.val_files": str(assets / "val.parquet"),
            "actor_rollout_ref.model.path": str(assets / "model"),
            "data.train_batch_size": 16,
            "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": 100,
            "trainer.total_training_steps": STEPS,
            "poise.probe.min_rows": 16,
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    mark = uuid.uuid4().hex

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "launch", "local", str(tmp_path / "small.yaml")],
            cwd=ROOT,
            env=os.environ | {"POISE_TEST_RUN": mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield start, tmp_path / "run"
    assert kill_marked(mark) == 0, "processes were left behind"


def test_a_request_to_stop_saves_the_step_and_the_same_command_goes_on(launched):
    start, root = launched
    process = start()
    metrics = root / "logs/attempt_1/metrics.jsonl"
    deadline = time.monotonic() + 400
    while not metrics.exists() or not metrics.read_text().strip():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-6000:]
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75, out[-6000:]
    first = json.loads((root / "attempts.json").read_text())["attempts"][0]
    assert 1 <= first["last_step"] < STEPS
    assert [path.name for path in (root / "checkpoints").glob("global_step_*")] == [f"global_step_{first['last_step']}"]

    process = start()
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-6000:]
    attempts = json.loads((root / "attempts.json").read_text())["attempts"]
    assert [item["outcome"] for item in attempts] == ["stopped", "done"]
    assert attempts[1]["resumed_from"] == first["last_step"]
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # the probe's window went on too
    assert [line["data"]["poise/window_rows"] for line in lines] == [32 * step for step in range(1, STEPS + 1)]

"""The command that a new user types, shortened by overrides."""

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SHORT = (
    "data.train_batch_size=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=2",
)


def quickstart(out: Path, limit_s: int, kill_marked) -> str:
    mark = uuid.uuid4().hex
    try:
        result = subprocess.run(
            ["bash", "launch/quickstart.sh", "--out", str(out), *SHORT],
            cwd=ROOT,
            env=os.environ | {"POISE_PREPARE_ARGS": "--train-prompts 128 --val-prompts 16", "POISE_TEST_RUN": mark},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    finally:
        left = kill_marked(mark)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert left == 0, f"{left} processes of the run were still there half a minute after it"
    return result.stdout


def test_quickstart_trains_and_shows_a_figure_and_is_not_repeated(tmp_path, kill_marked):
    first = quickstart(tmp_path, 900, kill_marked)
    assert "validation accuracy" in first
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]
    assert (tmp_path / "checkpoints/global_step_2/critic/probe.safetensors").exists()
    for named in ("figure.png", "metrics.jsonl", "checkpoints"):
        assert str(tmp_path / named) in first

    again = quickstart(tmp_path, 120, kill_marked)
    assert "holds a finished run" in again
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(steps)
